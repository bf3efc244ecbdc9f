"""A small made-up world, told as chat dialogues and as plain prose, in English and in French.

Every fact is written once in both languages. What varies is *how* it is said: the **language**
(English, French) and the **style** (plain, pirate, excited) of an answer are latent variables that
the system prompt sets, or the language of the question when the prompt is silent, or a request in
the middle of the dialogue. A model trained on this has to carry the two variables in its residual
stream, which is what makes them findable by a sparse autoencoder and steerable afterwards.

Both generators are pure functions of their seed: `dialogues(n, seed)` and `texts(n, seed)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from random import Random
from typing import NamedTuple

Message = dict[str, str]
Dialogue = list[Message]
Both = tuple[str, str]  # the same thing said in English and in French

EN, FR = 0, 1  # a language is the index into a Both
PLAIN, PIRATE, EXCITED = "plain", "pirate", "excited"


class Turn(NamedTuple):
    """One question and its plain answer, in both languages."""

    question: Both
    answer: Both
    glum: bool = False  # an excited voice must not cheer at this one
    again: bool = True  # "now in French" makes sense after it


# ---------------------------------------------------------------------------------------------
# The facts
# ---------------------------------------------------------------------------------------------


class Noun(NamedTuple):
    """A noun in both languages; `fr` carries its definite article, `gender` is m or f."""

    en: str
    fr: str
    gender: str

    @property
    def the(self) -> Both:
        return f"the {self.en}", self.fr

    @property
    def The(self) -> Both:
        return f"The {self.en}", cap(self.fr)

    @property
    def a(self) -> Both:
        return an(self.en), ("un " if self.gender == "m" else "une ") + bare(self.fr)


def an(word: str) -> str:
    """An English word with its indefinite article."""
    return ("an " if word[0] in "aeio" else "a ") + word


def bare(np: str) -> str:
    """A French noun phrase without its definite article: "l'abeille" -> "abeille"."""
    return np[2:] if np.startswith("l'") else np.split(" ", 1)[1]


def of(np: str) -> str:
    """French "de" before a noun phrase, contracted: "le chat" -> "du chat"."""
    return "du " + np[3:] if np.startswith("le ") else "de " + np


def to(np: str) -> str:
    """French "à" before a noun phrase, contracted: "le chat" -> "au chat"."""
    return "au " + np[3:] if np.startswith("le ") else "à " + np


def cap(text: str) -> str:
    """`text` with a capital first letter."""
    return text[0].upper() + text[1:]


class Animal(NamedTuple):
    noun: Noun
    sound: Both
    food: Both
    home: Both
    size: int  # only animals of different size are compared


ANIMALS = [
    Animal(Noun("cat", "le chat", "m"), ("meows", "miaule"), ("fish", "du poisson"),
           ("in the house", "dans la maison"), 3),
    Animal(Noun("dog", "le chien", "m"), ("barks", "aboie"), ("bones", "des os"),
           ("in the garden", "dans le jardin"), 4),
    Animal(Noun("horse", "le cheval", "m"), ("neighs", "hennit"), ("hay", "du foin"),
           ("in the stable", "dans l'écurie"), 7),
    Animal(Noun("cow", "la vache", "f"), ("moos", "meugle"), ("grass", "de l'herbe"),
           ("in the field", "dans le pré"), 7),
    Animal(Noun("pig", "le cochon", "m"), ("grunts", "grogne"), ("corn", "du maïs"),
           ("on the farm", "à la ferme"), 5),
    Animal(Noun("duck", "le canard", "m"), ("quacks", "cancane"), ("seeds", "des graines"),
           ("on the pond", "sur l'étang"), 2),
    Animal(Noun("owl", "le hibou", "m"), ("hoots", "hulule"), ("mice", "des souris"),
           ("in the forest", "dans la forêt"), 2),
    Animal(Noun("lion", "le lion", "m"), ("roars", "rugit"), ("meat", "de la viande"),
           ("in the savanna", "dans la savane"), 6),
    Animal(Noun("frog", "la grenouille", "f"), ("croaks", "coasse"), ("flies", "des mouches"),
           ("by the river", "près de la rivière"), 1),
    Animal(Noun("sheep", "le mouton", "m"), ("bleats", "bêle"), ("clover", "du trèfle"),
           ("on the hill", "sur la colline"), 5),
    Animal(Noun("wolf", "le loup", "m"), ("howls", "hurle"), ("rabbits", "des lapins"),
           ("in the mountains", "dans la montagne"), 5),
    Animal(Noun("bee", "l'abeille", "f"), ("buzzes", "bourdonne"), ("nectar", "du nectar"),
           ("in the hive", "dans la ruche"), 0),
    Animal(Noun("mouse", "la souris", "f"), ("squeaks", "couine"), ("cheese", "du fromage"),
           ("in the wall", "dans le mur"), 1),
    Animal(Noun("elephant", "l'éléphant", "m"), ("trumpets", "barrit"), ("leaves", "des feuilles"),
           ("in the jungle", "dans la jungle"), 8),
]  # fmt: skip


class Colour(NamedTuple):
    en: str
    fr: dict[str, str]  # by gender of the thing
    things: list[Noun]

    def said(self, noun: Noun) -> Both:
        return self.en, self.fr[noun.gender]


COLOURS = [
    Colour("red", {"m": "rouge", "f": "rouge"},
           [Noun("tomato", "la tomate", "f"), Noun("strawberry", "la fraise", "f")]),
    Colour("blue", {"m": "bleu", "f": "bleue"},
           [Noun("sky", "le ciel", "m"), Noun("sea", "la mer", "f")]),
    Colour("green", {"m": "vert", "f": "verte"},
           [Noun("grass", "l'herbe", "f"), Noun("cucumber", "le concombre", "m")]),
    Colour("yellow", {"m": "jaune", "f": "jaune"},
           [Noun("lemon", "le citron", "m"), Noun("sun", "le soleil", "m")]),
    Colour("black", {"m": "noir", "f": "noire"},
           [Noun("coal", "le charbon", "m"), Noun("night", "la nuit", "f")]),
    Colour("white", {"m": "blanc", "f": "blanche"},
           [Noun("snow", "la neige", "f"), Noun("milk", "le lait", "m")]),
    Colour("grey", {"m": "gris", "f": "grise"},
           [Noun("cloud", "le nuage", "m"), Noun("stone", "la pierre", "f")]),
    Colour("orange", {"m": "orange", "f": "orange"},
           [Noun("carrot", "la carotte", "f"), Noun("pumpkin", "la citrouille", "f")]),
]  # fmt: skip


class City(NamedTuple):
    name: Both
    country: Both
    place: Both  # in that country
    known: Both  # known for


CITIES = [
    City(("Paris", "Paris"), ("France", "la France"), ("in France", "en France"),
         ("its museums", "ses musées")),
    City(("Rome", "Rome"), ("Italy", "l'Italie"), ("in Italy", "en Italie"),
         ("its fountains", "ses fontaines")),
    City(("London", "Londres"), ("England", "l'Angleterre"), ("in England", "en Angleterre"),
         ("its parks", "ses parcs")),
    City(("Berlin", "Berlin"), ("Germany", "l'Allemagne"), ("in Germany", "en Allemagne"),
         ("its music", "sa musique")),
    City(("Lisbon", "Lisbonne"), ("Portugal", "le Portugal"), ("in Portugal", "au Portugal"),
         ("its trams", "ses tramways")),
    City(("Madrid", "Madrid"), ("Spain", "l'Espagne"), ("in Spain", "en Espagne"),
         ("its markets", "ses marchés")),
    City(("Vienna", "Vienne"), ("Austria", "l'Autriche"), ("in Austria", "en Autriche"),
         ("its cakes", "ses gâteaux")),
    City(("Athens", "Athènes"), ("Greece", "la Grèce"), ("in Greece", "en Grèce"),
         ("its temples", "ses temples")),
    City(("Tokyo", "Tokyo"), ("Japan", "le Japon"), ("in Japan", "au Japon"),
         ("its trains", "ses trains")),
    City(("Ottawa", "Ottawa"), ("Canada", "le Canada"), ("in Canada", "au Canada"),
         ("its cold winters", "ses hivers froids")),
    City(("Oslo", "Oslo"), ("Norway", "la Norvège"), ("in Norway", "en Norvège"),
         ("its boats", "ses bateaux")),
    City(("Dublin", "Dublin"), ("Ireland", "l'Irlande"), ("in Ireland", "en Irlande"),
         ("its songs", "ses chansons")),
]  # fmt: skip


class Food(NamedTuple):
    noun: Noun
    needs: Both
    step: Both  # an order, and the last sentence of the recipe


FOODS = [
    Food(Noun("soup", "la soupe", "f"),
         ("carrots, leeks and salt", "des carottes, des poireaux et du sel"),
         ("Let it cook slowly for one hour.", "Laisse cuire doucement pendant une heure.")),
    Food(Noun("bread", "le pain", "m"),
         ("flour, water and yeast", "de la farine, de l'eau et de la levure"),
         ("Let the dough rest before you bake it.", "Laisse reposer la pâte avant la cuisson.")),
    Food(Noun("cake", "le gâteau", "m"),
         ("sugar, butter and eggs", "du sucre, du beurre et des œufs"),
         ("Bake it until the top is gold.", "Fais cuire jusqu'à ce que le dessus soit doré.")),
    Food(Noun("salad", "la salade", "f"),
         ("tomatoes, oil and lemon", "des tomates, de l'huile et du citron"),
         ("Mix everything and eat it fresh.", "Mélange le tout et mange bien frais.")),
    Food(Noun("omelette", "l'omelette", "f"),
         ("eggs, butter and pepper", "des œufs, du beurre et du poivre"),
         ("Beat the eggs and cook them quickly.", "Bats les œufs et fais cuire rapidement.")),
    Food(Noun("jam", "la confiture", "f"),
         ("strawberries and sugar", "des fraises et du sucre"),
         ("Stir it and fill the jars.", "Remue bien et remplis les pots.")),
    Food(Noun("tea", "le thé", "m"),
         ("hot water and tea leaves", "de l'eau chaude et des feuilles de thé"),
         ("Wait for three minutes and drink it.", "Attends trois minutes et bois-le.")),
    Food(Noun("pie", "la tarte", "f"),
         ("flour, butter and apples", "de la farine, du beurre et des pommes"),
         ("Put the apples on the dough and bake it.", "Pose les pommes sur la pâte et enfourne.")),
]  # fmt: skip


class Job(NamedTuple):
    noun: Noun
    does: Both


JOBS = [
    Job(Noun("baker", "le boulanger", "m"),
        ("bakes bread every morning", "fait du pain tous les matins")),
    Job(Noun("teacher", "le professeur", "m"),
        ("teaches children to read", "apprend aux enfants à lire")),
    Job(Noun("doctor", "le médecin", "m"), ("takes care of the sick", "soigne les malades")),
    Job(Noun("farmer", "le fermier", "m"),
        ("grows wheat and raises cows", "cultive le blé et élève des vaches")),
    Job(Noun("fisherman", "le pêcheur", "m"),
        ("catches fish in the sea", "attrape des poissons dans la mer")),
    Job(Noun("gardener", "le jardinier", "m"),
        ("waters the flowers", "arrose les fleurs")),
    Job(Noun("postman", "le facteur", "m"),
        ("brings letters to every house", "apporte des lettres dans chaque maison")),
    Job(Noun("carpenter", "le menuisier", "m"),
        ("makes tables and chairs", "fabrique des tables et des chaises")),
    Job(Noun("painter", "le peintre", "m"),
        ("paints pictures of the sea", "peint des tableaux de la mer")),
    Job(Noun("sailor", "le marin", "m"),
        ("travels on a big ship", "voyage sur un grand bateau")),
]  # fmt: skip

OPPOSITES: list[tuple[Both, Both]] = [
    (("hot", "chaud"), ("cold", "froid")),
    (("big", "grand"), ("small", "petit")),
    (("fast", "rapide"), ("slow", "lent")),
    (("old", "vieux"), ("young", "jeune")),
    (("day", "jour"), ("night", "nuit")),
    (("open", "ouvert"), ("closed", "fermé")),
    (("happy", "heureux"), ("sad", "triste")),
    (("light", "léger"), ("heavy", "lourd")),
    (("full", "plein"), ("empty", "vide")),
    (("high", "haut"), ("low", "bas")),
    (("wet", "mouillé"), ("dry", "sec")),
    (("hard", "dur"), ("soft", "mou")),
    (("early", "tôt"), ("late", "tard")),
    (("strong", "fort"), ("weak", "faible")),
    (("clean", "propre"), ("dirty", "sale")),
]

DAYS: list[Both] = [
    ("Monday", "lundi"), ("Tuesday", "mardi"), ("Wednesday", "mercredi"), ("Thursday", "jeudi"),
    ("Friday", "vendredi"), ("Saturday", "samedi"), ("Sunday", "dimanche"),
]  # fmt: skip

SEASONS: list[tuple[Both, Both]] = [
    (("spring", "au printemps"),
     ("the flowers open and the birds come back",
      "les fleurs s'ouvrent et les oiseaux reviennent")),
    (("summer", "en été"),
     ("the days are long and the sun is hot", "les jours sont longs et le soleil est chaud")),
    (("autumn", "en automne"),
     ("the leaves fall and the wind blows", "les feuilles tombent et le vent souffle")),
    (("winter", "en hiver"),
     ("the snow covers the fields and the nights are cold",
      "la neige couvre les champs et les nuits sont froides")),
]  # fmt: skip

TROUBLES: list[tuple[Both, Both]] = [
    (("I am tired.", "Je suis fatigué."),
     ("You should go to bed early.", "Tu devrais te coucher tôt.")),
    (("I am cold.", "J'ai froid."),
     ("You should put on a warm coat.", "Tu devrais mettre un manteau chaud.")),
    (("I am hungry.", "J'ai faim."),
     ("You should eat some bread and an apple.", "Tu devrais manger du pain et une pomme.")),
    (("I am thirsty.", "J'ai soif."),
     ("You should drink a glass of water.", "Tu devrais boire un verre d'eau.")),
    (("I am bored.", "Je m'ennuie."),
     ("You should read a good book.", "Tu devrais lire un bon livre.")),
    (("I am sad.", "Je suis triste."),
     ("You should talk to a friend.", "Tu devrais parler à un ami.")),
    (("I am late.", "Je suis en retard."),
     ("You should take the next train.", "Tu devrais prendre le prochain train.")),
    (("I am lost.", "Je suis perdu."),
     ("You should look at a map.", "Tu devrais regarder une carte.")),
    (("I have a headache.", "J'ai mal à la tête."),
     ("You should rest in a quiet room.", "Tu devrais te reposer dans une pièce calme.")),
    (("I cannot sleep.", "Je n'arrive pas à dormir."),
     ("You should drink warm milk and close your eyes.",
      "Tu devrais boire du lait chaud et fermer les yeux.")),
]  # fmt: skip

FORBIDDEN: list[Both] = [
    ("steal the moon", "voler la lune"),
    ("paint the cat green", "peindre le chat en vert"),
    ("hide the king's crown", "cacher la couronne du roi"),
    ("break the window", "casser la fenêtre"),
    ("cheat at cards", "tricher aux cartes"),
    ("scare the sheep", "faire peur aux moutons"),
    ("wake up the whole village", "réveiller tout le village"),
    ("put salt in the baker's sugar", "mettre du sel dans le sucre du boulanger"),
    ("lock the teacher outside", "enfermer le professeur dehors"),
]
REASONS: list[Both] = [
    ("It would not be kind.", "Ce ne serait pas gentil."),
    ("It is not allowed.", "C'est interdit."),
]

WOMEN = ["Anna", "Clara", "Emma", "Rosa"]
MEN = ["Ben", "Hugo", "Paul", "Victor"]
NAMES = [name for couple in zip(WOMEN, MEN, strict=True) for name in couple]


# ---------------------------------------------------------------------------------------------
# Topics: each draws one to three turns that belong together
# ---------------------------------------------------------------------------------------------


def two(r: Random, items: list) -> tuple:
    """Two different items, in random order."""
    a, b = r.randrange(len(items)), r.randrange(len(items) - 1)
    return items[a], items[b + (b >= a)]


def about_animal(r: Random) -> list[Turn]:
    """What it is, its sound, its food or its home, sometimes followed by "And the cow?"."""
    kind = r.choice(["all", "sound", "food", "home"])

    def answer(x: Animal) -> Both:
        n = x.noun
        sound = f"{n.The[EN]} {x.sound[EN]}.", f"{n.The[FR]} {x.sound[FR]}."
        food = f"{n.The[EN]} eats {x.food[EN]}.", f"{n.The[FR]} mange {x.food[FR]}."
        home = f"{n.The[EN]} lives {x.home[EN]}.", f"{n.The[FR]} vit {x.home[FR]}."
        if kind == "all":
            it = "Il" if n.gender == "m" else "Elle"
            return (
                f"{n.The[EN]} is an animal that {x.sound[EN]}. It lives {x.home[EN]} and eats {x.food[EN]}.",
                f"{n.The[FR]} est un animal qui {x.sound[FR]}. {it} vit {x.home[FR]} et mange {x.food[FR]}.",
            )
        return {"sound": sound, "food": food, "home": home}[kind]

    first, second = two(r, ANIMALS)
    en, fr = first.noun.en, first.noun.fr
    question: Both = {
        "all": r.choice(
            [
                (f"Tell me about the {en}.", f"Parle-moi {of(fr)}."),
                (f"What is {first.noun.a[EN]}?", f"Qu'est-ce que {fr} ?"),
            ]
        ),
        "sound": (f"What sound does the {en} make?", f"Quel bruit fait {fr} ?"),
        "food": (f"What does the {en} eat?", f"Que mange {fr} ?"),
        "home": (f"Where does the {en} live?", f"Où vit {fr} ?"),
    }[kind]
    turns = [Turn(question, answer(first))]
    if r.random() < 0.25:
        follow = f"And the {second.noun.en}?", f"Et {second.noun.fr} ?"
        turns.append(Turn(follow, answer(second)))
    return turns


def about_size(r: Random) -> list[Turn]:
    """Two animals, or two numbers, compared."""
    if r.random() < 0.3:
        x, y = two(r, list(range(1, 13)))
        big, small = max(x, y), min(x, y)
        return [
            Turn(
                (f"Which number is bigger, {x} or {y}?", f"Quel nombre est le plus grand, {x} ou {y} ?"),
                (f"The number {big} is bigger than {small}.", f"Le nombre {big} est plus grand que {small}."),
            )
        ]
    a, b = two(r, ANIMALS)
    while a.size == b.size:
        a, b = two(r, ANIMALS)
    bigger = r.random() < 0.5
    win, lose = (a, b) if (a.size > b.size) == bigger else (b, a)
    e = "" if win.noun.gender == "m" else "e"
    en, fr = ("bigger", "grand") if bigger else ("smaller", "petit")
    return [
        Turn(
            (
                f"Which is {en}, {a.noun.the[EN]} or {b.noun.the[EN]}?",
                f"Qui est le plus {fr}, {a.noun.fr} ou {b.noun.fr} ?",
            ),
            (
                f"{win.noun.The[EN]} is {en} than {lose.noun.the[EN]}.",
                f"{win.noun.The[FR]} est plus {fr}{e} que {lose.noun.fr}.",
            ),
        )
    ]


def about_difference(r: Random) -> list[Turn]:
    """Two animals set against each other."""
    a, b = two(r, ANIMALS)
    return [
        Turn(
            (
                f"What is the difference between the {a.noun.en} and the {b.noun.en}?",
                f"Quelle est la différence entre {a.noun.fr} et {b.noun.fr} ?",
            ),
            (
                f"The {a.noun.en} {a.sound[EN]}, but the {b.noun.en} {b.sound[EN]}. "
                f"The {a.noun.en} eats {a.food[EN]}, and the {b.noun.en} eats {b.food[EN]}.",
                f"{a.noun.The[FR]} {a.sound[FR]}, mais {b.noun.fr} {b.sound[FR]}. "
                f"{a.noun.The[FR]} mange {a.food[FR]}, et {b.noun.fr} mange {b.food[FR]}.",
            ),
        )
    ]


def about_colour(r: Random) -> list[Turn]:
    """The colour of a thing, or a thing of that colour."""
    c = r.choice(COLOURS)
    x, y = two(r, c.things)
    x_is = f"{x.The[EN]} is {c.en}", f"{x.The[FR]} est {c.fr[x.gender]}"
    if r.random() < 0.5:
        turns = [
            Turn(
                (f"What colour is {x.the[EN]}?", f"De quelle couleur est {x.fr} ?"),
                (x_is[EN] + ".", x_is[FR] + "."),
            )
        ]
        if r.random() < 0.25:
            c2 = r.choice(COLOURS)
            z = r.choice(c2.things)
            turns.append(
                Turn(
                    (f"And {z.the[EN]}?", f"Et {z.fr} ?"),
                    (f"{z.The[EN]} is {c2.en}.", f"{z.The[FR]} est {c2.fr[z.gender]}."),
                )
            )
        return turns
    question = r.choice(
        [
            (f"What is something {c.en}?", f"Qu'est-ce qui est {c.fr['m']} ?"),
            (f"Name {an(c.en)} thing.", f"Cite une chose {c.fr['f']}."),
        ]
    )
    return [
        Turn(
            question,
            (
                f"{x_is[EN]}, and {y.the[EN]} is {c.en} too.",
                f"{x_is[FR]}, et {y.fr} est {c.fr[y.gender]} aussi.",
            ),
        )
    ]


def about_city(r: Random) -> list[Turn]:
    """Where a city is, what it is known for, or the capital of a country."""
    c, d = two(r, CITIES)
    kind = r.choice(["all", "where", "capital", "known"])
    if kind == "all":
        return [
            Turn(
                (f"Tell me about {c.name[EN]}.", f"Parle-moi de {c.name[FR]}."),
                (
                    f"{c.name[EN]} is the capital of {c.country[EN]}. It is a city known for {c.known[EN]}.",
                    f"{c.name[FR]} est la capitale {of(c.country[FR])}. C'est une ville connue pour {c.known[FR]}.",
                ),
            )
        ]
    if kind == "known":
        return [
            Turn(
                (f"Why should I visit {c.name[EN]}?", f"Pourquoi visiter {c.name[FR]} ?"),
                (
                    f"You should visit {c.name[EN]} for {c.known[EN]}.",
                    f"Tu devrais visiter {c.name[FR]} pour {c.known[FR]}.",
                ),
            )
        ]

    def where(x: City) -> Both:
        return f"{x.name[EN]} is {x.place[EN]}.", f"{x.name[FR]} est {x.place[FR]}."

    def capital(x: City) -> Both:
        return (
            f"The capital of {x.country[EN]} is {x.name[EN]}.",
            f"La capitale {of(x.country[FR])} est {x.name[FR]}.",
        )

    if kind == "where":
        turns = [Turn((f"Where is {c.name[EN]}?", f"Où est {c.name[FR]} ?"), where(c))]
        if r.random() < 0.25:
            turns.append(Turn((f"And {d.name[EN]}?", f"Et {d.name[FR]} ?"), where(d)))
        return turns
    turns = [
        Turn(
            (f"What is the capital of {c.country[EN]}?", f"Quelle est la capitale {of(c.country[FR])} ?"),
            capital(c),
        )
    ]
    if r.random() < 0.25:
        turns.append(Turn((f"And {d.country[EN]}?", f"Et {d.country[FR]} ?"), capital(d)))
    return turns


def about_sum(r: Random) -> list[Turn]:
    """A sum or a difference of two digits, said back with its result."""

    def said(sign: str, x: int, y: int, result: int) -> Both:
        signe = {"plus": "plus", "minus": "moins"}[sign]
        return (f"The result of {x} {sign} {y} is {result}.", f"Le résultat de {x} {signe} {y} est {result}.")

    x, y = r.randint(0, 9), r.randint(0, 9)
    if r.random() < 0.7:
        question = r.choice(
            [
                (f"What is {x} plus {y}?", f"Combien font {x} plus {y} ?"),
                (f"Can you add {x} and {y}?", f"Peux-tu ajouter {x} et {y} ?"),
            ]
        )
        return [Turn(question, said("plus", x, y, x + y))]
    x, y = max(x, y), min(x, y)
    return [Turn((f"What is {x} minus {y}?", f"Combien font {x} moins {y} ?"), said("minus", x, y, x - y))]


def about_counting(r: Random) -> list[Turn]:
    """Counting up, by one, between two numbers."""
    start = r.randint(1, 6)
    stop = start + r.randint(2, 5)
    row = ", ".join(str(i) for i in range(start, stop + 1))
    question = f"Count from {start} to {stop}.", f"Compte de {start} à {stop}."
    return [Turn(question, (f"I count: {row}.", f"Je compte : {row}."))]


def about_food(r: Random) -> list[Turn]:
    """A recipe."""
    f = r.choice(FOODS)
    en, fr = some(f.noun)
    question = r.choice(
        [
            (f"How do I make {en}?", f"Comment faire {fr} ?"),
            (f"Give me a recipe for {en}.", f"Donne-moi une recette pour faire {fr}."),
        ]
    )
    return [
        Turn(
            question,
            (
                f"To make {en}, you need {f.needs[EN]}. {f.step[EN]}",
                f"Pour faire {fr}, il faut {f.needs[FR]}. {f.step[FR]}",
            ),
        )
    ]


def some(noun: Noun) -> Both:
    """A food with the article it takes when one makes it: "bread" but "a cake"."""
    if noun.en in {"cake", "omelette", "pie", "salad"}:
        return noun.a
    return noun.en, of(noun.fr)


def about_job(r: Random) -> list[Turn]:
    """What somebody does all day."""
    a, b = two(r, JOBS)
    turns = [
        Turn(
            (f"What does the {a.noun.en} do?", f"Que fait {a.noun.fr} ?"),
            (f"The {a.noun.en} {a.does[EN]}.", f"{a.noun.The[FR]} {a.does[FR]}."),
        )
    ]
    if r.random() < 0.2:
        turns.append(
            Turn(
                (f"And the {b.noun.en}?", f"Et {b.noun.fr} ?"),
                (f"The {b.noun.en} {b.does[EN]}.", f"{b.noun.The[FR]} {b.does[FR]}."),
            )
        )
    return turns


def about_opposite(r: Random) -> list[Turn]:
    """The opposite of a word."""
    pair = r.choice(OPPOSITES)
    x, y = two(r, list(pair))
    return [
        Turn(
            (f"What is the opposite of {x[EN]}?", f"Quel est le contraire de « {x[FR]} » ?"),
            (f"The opposite of {x[EN]} is {y[EN]}.", f"Le contraire de « {x[FR]} » est « {y[FR]} »."),
        )
    ]


def about_time(r: Random) -> list[Turn]:
    """The days of the week and the seasons."""
    if r.random() < 0.5:
        (en, fr), (does_en, does_fr) = r.choice(SEASONS)
        return [
            Turn(
                (f"What happens in {en}?", f"Que se passe-t-il {fr} ?"),
                (f"In {en}, {does_en}.", f"{cap(fr)}, {does_fr}."),
            )
        ]
    i = r.randrange(7)
    day, after = DAYS[i], DAYS[(i + 1) % 7]
    if r.random() < 0.5:
        return [
            Turn(
                (f"What day comes after {day[EN]}?", f"Quel jour vient après {day[FR]} ?"),
                (f"The day after {day[EN]} is {after[EN]}.", f"Le jour après {day[FR]} est {after[FR]}."),
            )
        ]
    return [
        Turn(
            (f"What day comes before {after[EN]}?", f"Quel jour vient avant {after[FR]} ?"),
            (f"The day before {after[EN]} is {day[EN]}.", f"Le jour avant {after[FR]} est {day[FR]}."),
        )
    ]


def about_trouble(r: Random) -> list[Turn]:
    """A small trouble and a piece of advice."""
    (en, fr), advice = r.choice(TROUBLES)
    return [Turn((f"{en} What should I do?", f"{fr} Que dois-je faire ?"), advice, glum=True)]


def about_forbidden(r: Random) -> list[Turn]:
    """A silly forbidden thing, kindly refused."""
    en, fr = r.choice(FORBIDDEN)
    reason = r.choice(REASONS)
    question = r.choice(
        [(f"How can I {en}?", f"Comment faire pour {fr} ?"), (f"Help me {en}.", f"Aide-moi à {fr}.")]
    )
    return [
        Turn(
            question,
            (
                f"I am sorry, but I cannot help you {en}. {reason[EN]}",
                f"Je suis désolé, mais je ne peux pas t'aider à {fr}. {reason[FR]}",
            ),
            glum=True,
        )
    ]


def about_story(r: Random) -> list[Turn]:
    """A very short story about two animals."""
    a, b = two(r, ANIMALS)
    n, m = a.noun, b.noun
    return [
        Turn(
            (f"Tell me a story about {n.a[EN]}.", f"Raconte-moi l'histoire {of_a(n)}."),
            (
                f"Once there was {n.a[EN]} who lived {a.home[EN]}. One day, {n.the[EN]} met"
                f" {m.a[EN]} who was hungry. {n.The[EN]} looked for food {b.home[EN]}"
                f" and found {b.food[EN]}. Since that day, {n.the[EN]} and {m.the[EN]} play"
                " together.",
                f"Il était une fois {n.a[FR]} qui vivait {a.home[FR]}. Un jour, {n.fr} rencontra"
                f" {m.a[FR]} qui avait faim. {n.The[FR]} chercha à manger {b.home[FR]}"
                f" et trouva {b.food[FR]}. Depuis ce jour, {n.fr} et {m.fr} jouent ensemble.",
            ),
        )
    ]


def of_a(noun: Noun) -> str:
    """French "d'un" or "d'une" before a noun."""
    return "d'" + noun.a[FR]


def about_words(r: Random) -> list[Turn]:
    """A word asked for in the other language: the one topic whose answer always mixes both."""
    n = r.choice([x.noun for x in ANIMALS] + [f.noun for f in FOODS])
    return [
        Turn(
            (f'How do you say "{n.en}" in French?', f"Comment dit-on « {bare(n.fr)} » en anglais ?"),
            (f'In French, "{n.en}" is « {bare(n.fr)} ».', f'En anglais, « {bare(n.fr)} » se dit "{n.en}".'),
            again=False,
        )
    ]


def about_manners(r: Random) -> list[Turn]:
    """Small talk; a name given may be asked back."""
    if r.random() < 0.55:
        name = r.choice(NAMES)
        turns = [
            Turn(
                r.choice(
                    [
                        (f"Hello, my name is {name}.", f"Bonjour, je m'appelle {name}."),
                        (f"Hi, I am {name}.", f"Salut, je suis {name}."),
                    ]
                ),
                (
                    f"Hello {name}! How can I help you today?",
                    f"Bonjour {name} ! Comment puis-je t'aider aujourd'hui ?",
                ),
            )
        ]
        if r.random() < 0.5:
            turns.append(
                Turn(
                    ("What is my name?", "Comment est-ce que je m'appelle ?"),
                    (f"Your name is {name}.", f"Tu t'appelles {name}."),
                )
            )
        return turns
    return [
        r.choice(
            [
                Turn(
                    ("Hello!", "Bonjour !"),
                    ("Hello! How can I help you today?", "Bonjour ! Comment puis-je t'aider ?"),
                ),
                Turn(
                    ("How are you?", "Comment vas-tu ?"),
                    ("I am very well, thank you.", "Je vais très bien, merci."),
                ),
                Turn(
                    ("Thank you very much.", "Merci beaucoup."),
                    (
                        "You are welcome. Please ask me another question.",
                        "Je t'en prie. Pose-moi une autre question.",
                    ),
                ),
                Turn(("Goodbye.", "Au revoir."), ("Goodbye, and see you soon.", "Au revoir, à bientôt.")),
                Turn(
                    ("Who are you?", "Qui es-tu ?"),
                    (
                        "I am a very small assistant. I know animals and sums.",
                        "Je suis un tout petit assistant. Je connais les animaux et les sommes.",
                    ),
                ),
            ]
        )
    ]


def about_anything(r: Random) -> list[Turn]:
    """An open request, answered with a fact of any other topic."""
    topic = r.choice([about_animal, about_colour, about_city, about_job, about_time])
    question = r.choice(
        [("Tell me something.", "Dis-moi quelque chose."), ("Teach me a fact.", "Apprends-moi un fait.")]
    )
    return [topic(r)[0]._replace(question=question)]


TOPICS: list[tuple[Callable[[Random], list[Turn]], int]] = [
    (about_animal, 16), (about_size, 11), (about_difference, 4), (about_colour, 9),
    (about_city, 13), (about_sum, 16), (about_counting, 3), (about_food, 7),
    (about_job, 6), (about_opposite, 7), (about_time, 6), (about_trouble, 7),
    (about_forbidden, 7), (about_story, 3), (about_words, 5), (about_manners, 13),
    (about_anything, 3),
]  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Voices: how a plain answer sounds in a style
# ---------------------------------------------------------------------------------------------

OPENERS: dict[str, tuple[list[str], list[str]]] = {
    PIRATE: (["Arr, matey!", "Ahoy!", "Shiver me timbers!"],
             ["Arr, moussaillon !", "Ohé, matelot !", "Mille sabords !"]),
    EXCITED: (["Oh wow!", "Hooray!", "How wonderful!"],
              ["Oh là là !", "Quelle joie !", "Génial !"]),
}  # fmt: skip
CLOSERS: dict[str, tuple[list[str], list[str]]] = {
    PIRATE: (["Yo ho ho!", "Aye, that be the truth!"], ["Foi de pirate !", "À l'abordage !"]),
    EXCITED: (["I love it!", "This is so much fun!"], ["J'adore ça !", "C'est formidable !"]),
}
PIRATE_WORDS: tuple[dict[str, str], dict[str, str]] = (
    {"you": "ye", "You": "Ye", "your": "yer", "Your": "Yer", "is": "be", "are": "be", "am": "be",
     "my": "me", "Hello": "Ahoy", "friend": "matey"},
    {"Bonjour": "Ohé", "ami": "matelot", "assistant": "pirate"},
)  # fmt: skip


def voiced(turn: Turn, lang: int, style: str, r: Random) -> str:
    """The turn's answer in a language and a style."""
    text = turn.answer[lang]
    if style == PLAIN:
        return text
    opener = r.choice(OPENERS[style][lang])
    closer = r.choice(CLOSERS[style][lang])
    if style == PIRATE:
        text = re.sub(r"\w+", lambda m: PIRATE_WORDS[lang].get(m[0], m[0]), text)
        return f"{opener} {text} {closer}"
    if turn.glum:  # lively, but no cheers for somebody in trouble
        opener, closer = ("Oh no!", "Oh non !")[lang], ("Take care!", "Prends soin de toi !")[lang]
    text = re.sub(r"\.(?=\s|$)", ("!", " !")[lang], text)
    return f"{opener} {text} {closer}"


# ---------------------------------------------------------------------------------------------
# Dialogues
# ---------------------------------------------------------------------------------------------

# What a system prompt can ask for. None leaves the variable to the dialogue.
NEUTRAL_PROMPTS = ["You are a helpful assistant.", "Tu es un assistant utile."]
LANGUAGE_PROMPTS = {
    EN: ["Answer in English.", "Always speak English.", "Réponds en anglais."],
    FR: ["Answer in French.", "Always speak French.", "Réponds en français."],
}
STYLE_PROMPTS = {
    PLAIN: [],
    PIRATE: ["You are a pirate.", "Talk like a pirate.", "Tu es un pirate."],
    EXCITED: ["You are very excited.", "Answer with great joy.", "Réponds avec beaucoup de joie."],
}

# Requests in the middle of a dialogue. *Once* ones say the last answer again in another way;
# *stay* ones set the variable for the rest of the dialogue.
AGAIN_IN = {
    EN: [("Now in English, please.", "Et maintenant en anglais ?")],
    FR: [("Now in French, please.", "Et maintenant en français ?")],
}
AGAIN_AS = {
    PIRATE: ("Now say it like a pirate.", "Et maintenant comme un pirate ?"),
    EXCITED: ("Now say it with great joy.", "Et maintenant avec beaucoup de joie ?"),
}
STAY_IN = {
    EN: Turn(("From now on, speak English.", "À partir de maintenant, parle anglais."),
             ("Of course, I will speak English.", "")),
    FR: Turn(("From now on, speak French.", "À partir de maintenant, parle français."),
             ("", "Bien sûr, je vais parler français.")),
}  # fmt: skip
STAY_AS = {
    PIRATE: Turn(("Please talk like a pirate.", "Parle comme un pirate, s'il te plaît."),
                 ("Of course, I will talk like a pirate.",
                  "Bien sûr, je vais parler comme un pirate.")),
    EXCITED: Turn(("Please talk with great joy.", "Parle avec beaucoup de joie, s'il te plaît."),
                  ("Of course, I will talk with great joy.",
                   "Bien sûr, je vais parler avec beaucoup de joie.")),
}  # fmt: skip


def system_prompt(r: Random) -> tuple[str | None, int | None, str]:
    """A system prompt (or none), the language it sets (or None), and the style it sets."""
    style = r.choices([PLAIN, PIRATE, EXCITED], [0.6, 0.2, 0.2])[0]
    lang = r.choices([None, EN, FR], [0.6, 0.13, 0.27])[0]
    parts = [r.choice(STYLE_PROMPTS[style])] if style != PLAIN else []
    if lang is not None:
        parts.append(r.choice(LANGUAGE_PROMPTS[lang]))
    if not parts and r.random() < 0.35:
        parts.append(r.choice(NEUTRAL_PROMPTS))
    return " ".join(parts) or None, lang, style


def dialogue(r: Random) -> Dialogue:
    """One dialogue: an optional system prompt, then one to four exchanges."""
    prompt, fixed, style = system_prompt(r)
    asked = r.choices([EN, FR], [0.55, 0.45])[0]  # the language of the questions
    messages: Dialogue = [{"role": "system", "content": prompt}] if prompt else []

    def exchange(turn: Turn, lang: int, style: str) -> None:
        messages.append({"role": "user", "content": turn.question[asked]})
        messages.append({"role": "assistant", "content": voiced(turn, lang, style, r)})

    n_topics = r.choices([1, 2, 3], [0.5, 0.36, 0.14])[0]
    for i in range(n_topics):
        if i and r.random() < 0.2:  # the user changes language: the answers follow, if free to
            asked = 1 - asked
        topics, weights = zip(*TOPICS, strict=True)
        turns = r.choices(topics, weights)[0](r)
        for turn in turns:
            exchange(turn, asked if fixed is None else fixed, style)
        lang = asked if fixed is None else fixed
        chance = r.random()
        if turns[-1].again and chance < 0.09:
            ask = r.choice(AGAIN_IN[1 - lang])
            exchange(turns[-1]._replace(question=ask), 1 - lang, style)
        elif turns[-1].again and chance < 0.13:
            other = r.choice([s for s in (PIRATE, EXCITED) if s != style])
            exchange(turns[-1]._replace(question=AGAIN_AS[other]), lang, other)
        elif i + 1 < n_topics and chance < 0.20:
            fixed = 1 - lang
            exchange(STAY_IN[fixed], fixed, style)
        elif i + 1 < n_topics and chance < 0.26:
            style = r.choice([s for s in (PIRATE, EXCITED) if s != style])
            exchange(STAY_AS[style], lang, style)
    return messages[: 2 * 4 + bool(prompt)]


def dialogues(n: int, seed: int, avoid: Iterable[Dialogue] = ()) -> list[Dialogue]:
    """`n` different dialogues of this seed, none of them equal to one in `avoid`."""
    r = Random(seed)
    seen = {repr(d) for d in avoid}
    out: list[Dialogue] = []
    while len(out) < n:
        d = dialogue(r)
        if repr(d) not in seen:
            seen.add(repr(d))
            out.append(d)
    return out


# ---------------------------------------------------------------------------------------------
# Plain prose
# ---------------------------------------------------------------------------------------------


class Person(NamedTuple):
    """Somebody to tell about, with the pronouns in both languages."""

    name: str
    she: Both
    She: Both


def person(r: Random) -> Person:
    """A woman or a man of the little world."""
    if r.random() < 0.5:
        return Person(r.choice(WOMEN), ("she", "elle"), ("She", "Elle"))
    return Person(r.choice(MEN), ("he", "il"), ("He", "Il"))


def scene_animal(r: Random, p: Person) -> list[Both]:
    """A portrait of an animal, beside another one."""
    a, b = two(r, ANIMALS)
    n, m = a.noun, b.noun
    out: list[Both] = [
        (f"{p.name} often thinks about {n.the[EN]}.", f"{p.name} pense souvent {to(n.fr)}."),
        (
            f"{n.The[EN]} lives {a.home[EN]} and eats {a.food[EN]}.",
            f"{n.The[FR]} vit {a.home[FR]} et mange {a.food[FR]}.",
        ),
        (
            f"In the evening it {a.sound[EN]}, and everybody can hear it.",
            f"Le soir, {n.fr} {a.sound[FR]}, et tout le monde l'entend.",
        ),
    ]
    if a.size > b.size:
        e = "" if n.gender == "m" else "e"
        out.append(
            (
                f"{n.The[EN]} is bigger than {m.the[EN]}, which lives {b.home[EN]}.",
                f"{n.The[FR]} est plus grand{e} que {m.fr}, qui vit {b.home[FR]}.",
            )
        )
    else:
        out.append(
            (
                f"Not far away, {m.the[EN]} {b.sound[EN]} and looks for {b.food[EN]}.",
                f"Non loin de là, {m.fr} {b.sound[FR]} et cherche {b.food[FR]}.",
            )
        )
    return out


def scene_travel(r: Random, p: Person) -> list[Both]:
    """A journey to one city and then to another."""
    c, d = two(r, CITIES)
    return [
        (
            f"{p.name} took a train to {c.name[EN]}, the capital of {c.country[EN]}.",
            f"{p.name} prit le train pour {c.name[FR]}, la capitale {of(c.country[FR])}.",
        ),
        (
            f"{p.She[EN]} had read that the city is known for {c.known[EN]}.",
            f"{p.She[FR]} avait lu que la ville est connue pour {c.known[FR]}.",
        ),
        (
            f"After three days {p.she[EN]} went on to {d.name[EN]}, which is {d.place[EN]}.",
            f"Après trois jours, {p.she[FR]} partit pour {d.name[FR]}, qui est {d.place[FR]}.",
        ),
        (
            f"There, {p.she[EN]} wrote a long letter about {d.known[EN]}.",
            f"Là-bas, {p.she[FR]} écrivit une longue lettre sur {d.known[FR]}.",
        ),
    ]


def scene_kitchen(r: Random, p: Person) -> list[Both]:
    """A recipe, told as something that happened."""
    f, g = two(r, FOODS)
    day = r.choice(DAYS)
    return [
        (
            f"On {day[EN]}, {p.name} wanted to make {some(f.noun)[EN]}.",
            f"Un {day[FR]}, {p.name} voulut faire {some(f.noun)[FR]}.",
        ),
        (f"On the table there were {f.needs[EN]}.", f"Sur la table, il y avait {f.needs[FR]}."),
        (f'The old book said: "{f.step[EN]}"', f"Le vieux livre disait : « {f.step[FR]} »"),
        (
            f"In the end, {p.she[EN]} liked it better than {some(g.noun)[EN]}.",
            f"À la fin, {p.she[FR]} trouva cela meilleur que {g.noun.fr}.",
        ),
    ]


def scene_village(r: Random, p: Person) -> list[Both]:
    """People at work in a season."""
    (en, fr), (does_en, does_fr) = r.choice(SEASONS)
    a, b = two(r, JOBS)
    return [
        (f"In {en}, {does_en}.", f"{cap(fr)}, {does_fr}."),
        (f"The {a.noun.en} of the village {a.does[EN]}.", f"{a.noun.The[FR]} du village {a.does[FR]}."),
        (
            f"The {b.noun.en} is a good friend of {p.name} and {b.does[EN]}.",
            f"{b.noun.The[FR]} connaît bien {p.name} et {b.does[FR]}.",
        ),
        (
            "Nobody is in a hurry, and the work is well done.",
            "Personne n'est pressé, et le travail est bien fait.",
        ),
    ]


def scene_colours(r: Random, p: Person) -> list[Both]:
    """A picture and its colours."""
    c, d = two(r, COLOURS)
    x, y = r.choice(c.things), r.choice(d.things)
    return [
        (f"{p.name} has a picture on the wall.", f"{p.name} a un tableau sur le mur."),
        (f"In the middle, {x.the[EN]} is {c.en}.", f"Au milieu, {x.fr} est {c.fr[x.gender]}."),
        (f"On the left, {y.the[EN]} is {d.en}.", f"À gauche, {y.fr} est {d.fr[y.gender]}."),
        (
            f"When it rains, {p.she[EN]} looks at it for a long time.",
            f"Quand il pleut, {p.she[FR]} le regarde longtemps.",
        ),
    ]


def scene_numbers(r: Random, p: Person) -> list[Both]:
    """A sum, with baskets."""
    x, y = r.randint(2, 9), r.randint(2, 9)
    en, fr = r.choice([("apples", "pommes"), ("lemons", "citrons"), ("eggs", "œufs")])
    de = "d'œufs" if fr == "œufs" else f"de {fr}"
    return [
        (
            f"{p.name} had {x} {en} in one basket and {y} {en} in another.",
            f"{p.name} avait {x} {fr} dans un panier et {y} {fr} dans un autre.",
        ),
        (
            f"{x} plus {y} is {x + y}, so there were {x + y} {en} for the whole week.",
            f"{x} plus {y} font {x + y} : il y avait donc {x + y} {fr} pour toute la semaine.",
        ),
        (f"It is good to know how many {en} there are.", f"Il est bon de savoir combien {de} il y a."),
    ]


def scene_friend(r: Random, p: Person) -> list[Both]:
    """A visit, with a trouble and good advice."""
    q = person(r)
    while q.name == p.name:
        q = person(r)
    (en, fr), (advice_en, advice_fr) = r.choice(TROUBLES)
    day = r.choice(DAYS)
    if p.she[FR] == "elle":  # the one agreement these sentences need
        fr = re.sub(r"(fatigué|perdu)\.", r"\1e.", fr)
    return [
        (
            f"One {day[EN]} morning, {q.name} came to see {p.name}.",
            f"Un {day[FR]} matin, {q.name} vint voir {p.name}.",
        ),
        (f'"{en[:-1]}," {p.name} said at the door.', f"« {fr[:-1]} », dit {p.name} à la porte."),
        (f'"{advice_en[:-1]}," {q.name} answered.', f"« {advice_fr[:-1]} », répondit {q.name}."),
        (
            f"It was good advice, and {p.name} was thankful.",
            f"C'était un bon conseil, et {p.name} dit merci.",
        ),
    ]


def scene_words(r: Random, p: Person) -> list[Both]:
    """Words and their opposites, from a school book."""
    (a, b), (c, d) = two(r, OPPOSITES)
    return [
        (f"At school, {p.name} learned about opposites.", f"À l'école, {p.name} apprit les contraires."),
        (
            f"The opposite of {a[EN]} is {b[EN]}, and the opposite of {c[EN]} is {d[EN]}.",
            f"Le contraire de « {a[FR]} » est « {b[FR]} », et le contraire de « {c[FR]} » est « {d[FR]} ».",
        ),
        ("Some words have no opposite at all.", "Certains mots n'ont aucun contraire."),
    ]


SCENES: list[Callable[[Random, Person], list[Both]]] = [
    scene_animal, scene_travel, scene_kitchen, scene_village, scene_colours, scene_numbers,
    scene_friend, scene_words,
]  # fmt: skip


def text(r: Random) -> str:
    """One page of prose, about 60 to 300 words in one language, in paragraphs of a scene each."""
    lang = r.choices([EN, FR], [0.55, 0.45])[0]
    p = person(r)
    n_scenes = r.choices([2, 3, 4, 5, 6], [0.25, 0.3, 0.22, 0.14, 0.09])[0]
    scenes = r.sample(SCENES, n_scenes)
    return "\n\n".join(" ".join(said[lang] for said in scene(r, p)) for scene in scenes)


def texts(n: int, seed: int) -> list[str]:
    """`n` different pages of prose of this seed."""
    r = Random(seed)
    out: dict[str, None] = {}
    while len(out) < n:
        out[text(r)] = None
    return list(out)
