"""Which script and language a text of a few sentences is in.

Languages of the Latin script are told apart by their function words, others by their script alone. A
short sentence ("Le cheval hennit.") may fit several languages: all of them are kept, and it differs from
another text only if they have no language in common.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

SCRIPTS = {
    script.upper(): script
    for script in "latin greek cyrillic arabic hebrew devanagari bengali tamil telugu thai georgian armenian".split()
} | dict.fromkeys("CJK HIRAGANA KATAKANA HANGUL BOPOMOFO".split(), "east-asian")
"""By the first word of a letter's Unicode name, the script that it counts as; all else is "other". Japanese and
Korean mix the last five within a word, so they are one."""

UNSPACED = frozenset({"east-asian", "thai"})
"""Scripts that put no blanks between words."""

FUNCTION_WORDS = {
    "en": "the a an and is are was were it its of to in that this these those you your i my he she they we "
    "not with for on but what how can from have has had be been will would should at by or as if do does "
    "who which there about more than them his her one",
    "fr": "le la les se un une des du de et est sont était il elle ils elles on je tu vous nous ne pas que qui "
    "dans pour sur avec mais ce cette ces au aux en par plus son sa ses mon ma mes ton ta tes leur où comme "
    "être avoir il y a ai as ont très aussi bien l' d' j' c' n' qu' s' t' m'",
    "de": "der die das den dem des ein eine einen einem einer und ist sind war ich du er sie es wir ihr nicht "
    "mit für auf aber was wie kann von haben hat sein wird zu im in am auch als wenn oder bei nach über noch",
    "es": "el la los las un una unos unas y es son era que en de del al con por para pero no lo se su sus mi "
    "tu como más este esta estos está están muy también hay fue ser yo él ella nos le les o si",
    "it": "il lo la i gli le un uno una e è sono era che di del della dei delle in nel nella con per ma non si "
    "su suo sua mio come più questo questa anche molto ha hanno essere io lui lei noi al alla dal o se",
    "pt": "o a os as um uma uns umas e é são era que em de do da dos das no na nos nas com por para mas não se "
    "seu sua meu como mais este esta isso também muito há foi ser eu ele ela nós ao à ou está",
    "nl": "de het een en is zijn was waren dat die dit deze van in op met voor maar niet je ik hij zij ze we "
    "wij er aan te om ook als of bij naar over nog wat hoe kan heeft hebben wordt zal meer dan",
}
"""Words of which hardly any sentence of the language has none; a word may belong to several languages."""

NAMES = {
    "en": "English",
    "fr": "French",
    "de": "German",
    "es": "Spanish",
    "it": "Italian",
    "pt": "Portuguese",
    "nl": "Dutch",
}

WORDS = {language: frozenset(words.split()) for language, words in FUNCTION_WORDS.items()}

LETTERS = {"fr": "çœèêëùîû", "de": "äöüß", "es": "ñ¿¡", "it": "òì", "pt": "ãõ"}
"""Letters that only one language has; they are worth half a function word."""

CLEAR_LEAD = 1.25
"""A language is out if another one has this many times its function words."""

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
"""A word for the length of a text; numbers and single Chinese or Japanese characters count as words."""

_TOKEN = re.compile(r"[^\W\d_]+['’]?")

_SENTENCE = re.compile(r"(?<=[.!?…。！？])\s+|\n+")


@dataclass(frozen=True)
class Language:
    """The script of most letters of a text, and the languages that it may be in."""

    script: str | None
    """A value of ``SCRIPTS``, ``other``, or None without letters."""
    languages: tuple[str, ...]
    """Keys of ``FUNCTION_WORDS``, the likeliest first; empty for other scripts, or where no word tells."""

    @property
    def language(self) -> str | None:
        return self.languages[0] if self.languages else None

    def differs(self, other: Language) -> bool:
        """Whether both are known and not the same: of another script, or no language in common."""
        if self.script != other.script:
            return None not in (self.script, other.script)
        known = bool(self.languages and other.languages)
        return known and set(self.languages).isdisjoint(other.languages)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case: letters only, an elision ("l'") by itself."""
    return [word.replace("’", "'") for word in _TOKEN.findall(text.lower())]


def detect(text: str, whole: dict[str, float] | None = None) -> Language:
    """Script and languages of a text, also by the words of a whole that it is part of (see ``sentences``)."""
    scripts = Counter(script_of(c) for c in text if c.isalpha())
    script = scripts.most_common(1)[0][0] if scripts else None
    if script != "latin":
        return Language(script, ())
    hits = _hits(text)
    if whole is not None:
        most = max(whole.values()) or 1.0
        hits = {language: hits[language] + 2 * whole[language] / most for language in hits}
    most = max(hits.values())
    # Of equals, the first in FUNCTION_WORDS is the likelier.
    likeliest = sorted(hits, key=lambda language: -hits[language])
    return Language(script, tuple(x for x in likeliest if hits[x] and hits[x] * CLEAR_LEAD > most))


def sentences(text: str) -> list[tuple[str, Language]]:
    """The sentences (and lines) that have words, each with its script and languages.

    The whole text counts as two function words more in each sentence ("Yo ho ho!" is not Spanish), and
    decides where no word tells.
    """
    whole = _hits(text)
    found = [(sentence, detect(sentence, whole)) for sentence in _SENTENCE.split(text)]
    return [(sentence, known) for sentence, known in found if known.script is not None]


def _hits(text: str) -> dict[str, float]:
    """How many different function words of each language a text has, and half of one for its letters."""
    words = {form for word in words_of(text) for form in (word, word.rstrip("'"))}
    letters = set(text.casefold())
    return {
        language: len(words & known) + 0.5 * bool(letters & set(LETTERS.get(language, "")))
        for language, known in WORDS.items()
    }


def switched_share(text: str, reference: str) -> float:
    """Share of a text's words in sentences of another script or language than ``reference``; 0 where that is
    not clear."""
    was = detect(reference)
    return _share(text, lambda now: now.differs(was))


def language_share(text: str, language: str) -> float:
    """Share of a text's words in sentences of ``language``."""
    return _share(text, lambda now: now.language == language)


def _share(text: str, counts: Callable[[Language], bool]) -> float:
    """Share of the words (not numbers) that stand in the sentences that count."""
    counted = total = 0
    for sentence, now in sentences(text):
        words = sum(not word.isdecimal() for word in WORD.findall(sentence))
        total += words
        counted += words * counts(now)
    return counted / total if total else 0.0


def scripts_jumble(text: str) -> bool:
    """Whether scripts are mixed as in no text of one or two languages.

    Either a fifth of the words, and at least two, mix scripts within themselves; or the script changes
    between three in ten neighbouring words where there are three scripts, or between six in ten where
    both scripts put blanks between words. Neighbours with punctuation or a line break between them do
    not count: a list of translations has them. Nor do foreign words within East Asian text, which
    have no blanks around them, or Greek letters in formulas ("\u0394x").
    """
    words = ((word, {script_of(c) for c in word[0]} - {"other"}) for word in _TOKEN.finditer(text))
    found = [(word, scripts) for word, scripts in words if scripts]
    mixed = sum(
        len(scripts - {"east-asian"}) > 1 and not _formula(word[0], scripts) for word, scripts in found
    )
    if mixed >= 2 and mixed / len(found) >= 0.2:
        return True
    changes = [
        before | after
        for (one, before), (other, after) in pairwise(found)
        if before.isdisjoint(after) and not text[one.end() : other.start()].strip(" \t")
    ]
    spaced = sum(both.isdisjoint(UNSPACED) for both in changes)
    steps = len(found) - 1
    if len(set().union(*(scripts for _, scripts in found))) >= 3 and len(changes) >= 3:
        return len(changes) >= 0.3 * steps
    return spaced >= 6 and spaced >= 0.6 * steps


def _formula(word: str, scripts: set[str]) -> bool:
    """A few Greek and Latin letters, as in "\u0394x", "2\u03c0r", "k\u03a9"."""
    return len(word) <= 4 and scripts == {"greek", "latin"}


@lru_cache(maxsize=1 << 14)
def script_of(letter: str) -> str:
    """The script of a letter: a value of ``SCRIPTS``, or ``other``."""
    name = unicodedata.name(letter, "")
    return SCRIPTS.get(name.split(" ")[0].split("-")[0], "other")
