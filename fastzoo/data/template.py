"""A model's chat template: what it is given, and what trying it shows.

A template is a program. What it does with a turn's content, a list of parts, a tool call or a role is found by giving
it words of ours and looking for them in what it writes. So what it wants is what it gets; and dialogues of which it
would lose a turn are not trained on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

from jinja2 import TemplateSyntaxError

from fastzoo.core.errors import ModelError
from fastzoo.core.text import one_line
from fastzoo.data.dialogues import VARIABLES, Dialogue, Turn, Unusable, text_of
from fastzoo.data.template_date import CLOCK, with_fixed_date

WORDS = ("Kumquat", "Ocelot", "Quince", "Narwhal", "Tamarind")
"""What the turns of a trial say, by their place: words that no template has of its own."""

ARGUMENT = "Axolotl"

CONTEXTS = {
    "user": ("user", "system user", "user assistant"),
    "assistant": ("user assistant", "system user assistant"),
    "system": ("system user", "system user assistant"),
    "developer": ("developer user", "developer user assistant"),
    "tool": ("user call tool assistant", "user call tool"),
}
"""Dialogues in which a role is tried; the first that the template takes decides. Most know these roles, not all."""

LATER = "user assistant user assistant"

NULLS: tuple[Turn, ...] = ({}, {"content": ""}, {"content": None})
"""How null content can be given: not at all, as by transformers; as templates want it that add it to other text; and as
those want it that ask for it."""

NUMBERED = "Kumquat{}x"
"""What the turns of a dialogue are made to say to see which of them a template shows."""

MOST_SHAPES, MOST_TURNS = 4096, 64
"""Shapes of dialogues that are remembered, and turns of the longest of them."""

BESIDE_CALLS = "content beside tool_calls"


class ChatTemplate:
    """A tokenizer's chat template, with its date fixed.

    Attributes:
        source: its text, or the texts of several.
        reads: which of ``VARIABLES`` it may read.

    Raises ModelError: it shows nothing of a user's or an assistant's turns, or draws at random.
    """

    def __init__(self, tokenizer: Any, date: str, model_name: str) -> None:
        self._tokenizer, self._date, self._model_name = tokenizer, date, model_name
        template = tokenizer.chat_template
        self.source = "\n".join(template.values()) if isinstance(template, dict) else str(template)
        self._line = one_line(self.source, 1_000_000)
        if re.search(r"\|\s*random\b|\blipsum\b", self.source):
            raise self._error("draws at random, so results would differ from run to run")
        self.reads = frozenset(name for name in VARIABLES if name in self.source)
        try:
            tokenizer.get_chat_template()
        except ValueError:
            raise self._error("is one of several, and none of them is the default") from None
        self._manners: dict[bool, Manner] = {}  # without tools, and with tools
        self._lost: dict[Any, list[int]] = {}  # by the shape of a dialogue
        if hidden := self._manner({}).hidden():
            raise self._error(f"shows nothing of what the {hidden} says, neither of text nor of text parts")

    def _error(self, what: str) -> ModelError:
        return ModelError(f"model.name: the chat template of {self._model_name} {what}")

    def write(self, dialogue: Dialogue, *, answer: bool = False) -> str:
        """The text of a dialogue.

        Args:
            answer: whether the beginning of an answer follows (``add_generation_prompt``).

        Raises Unusable: the template refuses it, or writes nothing; ModelError: the template itself is broken.
        """
        try:
            text = self._render(dialogue, answer)
        except TemplateSyntaxError as error:
            said = f"line {error.lineno - (CLOCK in self.source)}: {one_line(error.message, 120)}"
            raise self._error(f"is not valid Jinja ({said})") from None
        except Exception as error:  # a template is a program and can fail in any way
            said = one_line(str(error)[:500], 80)
            # Only what stands in the template itself is sure to hold nothing of the dialogue.
            known = said and said in self._line
            what = said if known else type(error).__name__
            raise Unusable(f"refused by the chat template: {what}", "" if known else said) from None
        if not text.strip():
            raise Unusable("nothing rendered by the chat template")
        return text

    def unshown(self, dialogue: Dialogue, *, answer: bool = False) -> frozenset[str]:
        """What the template does not show of a dialogue besides whole turns. Raises Unusable: it loses a turn."""
        turns, found = dialogue.turns, dialogue.fields() - self._manner(dialogue.variables).shows
        lost = self._lost_turns(dialogue, answer)
        if any(turns[place].get("tool_calls") for place in lost):
            found |= {BESIDE_CALLS}
        for place in lost:
            role = self._manner(dialogue.variables).role(turns[place])
            if not turns[place].get("tool_calls"):
                earlier = role in ("user", "assistant") and place < len(turns) - 1
                what = "earlier turns" if earlier else f"a {role} turn"
                raise Unusable(f"the chat template shows nothing of {what}")
        return frozenset(found)

    def _lost_turns(self, dialogue: Dialogue, answer: bool) -> list[int]:
        """The places of turns whose content is not shown in a dialogue of this shape, whatever they say."""
        variables = sorted((name, bool(value)) for name, value in dialogue.variables.items())
        shape = answer, tuple(map(_shape, dialogue.turns)), *variables
        if (known := self._lost.get(shape)) is not None:
            return known
        told = [_saying(turn, NUMBERED.format(i)) for i, turn in enumerate(dialogue.turns)]
        try:
            text = self._render(Dialogue(told, dialogue.variables), answer)
        except Exception:  # such as a template that looks for words in content: then nothing is known
            return []
        pattern = re.escape(NUMBERED.casefold()).replace(r"\{\}", "([0-9]+)")
        seen = set(map(int, re.findall(pattern, text.casefold())))
        lost = [i for i, turn in enumerate(dialogue.turns) if text_of(turn).strip() and i not in seen]
        if len(dialogue.turns) <= MOST_TURNS:
            if len(self._lost) >= MOST_SHAPES:
                self._lost.clear()
            self._lost[shape] = lost
        return lost

    def ends(self) -> tuple[set[int], str | None]:
        """What ends an assistant's turn: token ids, and the text of the next turn's header if none stands before it.

        The first added token behind an answer ends it, if it does not also stand between the thoughts and the answer
        of one turn (gpt-oss).
        """
        added = {
            token.content: i for i, token in self._tokenizer.added_tokens_decoder.items() if token.content
        }
        pattern = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or "(?!)")
        written = self._manner({}).written
        alone, later = written(_turns("user assistant")), written(_turns(LATER))
        inside = _between(written([*_turns("user"), _thinking()]), ARGUMENT, WORDS[1])
        behind = [_between(alone, WORDS[1]), _between(later, WORDS[3]), _between(later, WORDS[1], WORDS[2])]
        first = [match[0] if (match := pattern.search(text)) else None for text in behind]
        found = {token for token in first if token and token not in inside}
        header, stop = behind[-1], None
        if first[-1] not in found and header.strip():
            blank = header[: len(header) - len(header.lstrip())]
            stop = ("\n" if "\n" in blank else "") + header.strip()
        return {added[token] for token in found}, stop

    def _manner(self, variables: dict[str, Any]) -> Manner:
        """Templates may take other branches, or be others, where there are tools."""
        tools = bool(variables.get("tools"))
        if tools not in self._manners:
            given = {"tools": [_tool("Pangolin")]} if tools else {}
            self._manners[tools] = Manner(self._fill, given, "developer" in self.source)
        return self._manners[tools]

    def _render(self, dialogue: Dialogue, answer: bool = False) -> str:
        """What the template writes. Raises anything."""
        manner = self._manner(dialogue.variables)
        return self._fill([manner.fitted(turn) for turn in dialogue.turns], dialogue.variables, answer)

    def _fill(self, turns: Sequence[Turn], variables: dict[str, Any], answer: bool = False) -> str:
        """What the template writes of turns as they are. Raises anything."""
        from transformers.utils.chat_template_utils import render_jinja_template

        variables = {**self._tokenizer.special_tokens_map, "date_string": self._date, **variables}
        source = self._tokenizer.get_chat_template(tools=variables.get("tools"))
        (text,), _ = render_jinja_template(
            [list(turns)],
            chat_template=with_fixed_date(source, self._date),
            add_generation_prompt=answer,
            **variables,
        )
        return str(text)


class Manner:
    """In which form a template wants turns, found by trials.

    Args:
        fill: what the template writes of turns and variables; may raise anything.
        given: variables that all trials have.
        knows_developers: whether it may know a developer's turn.

    Attributes:
        shows: of the fields that a template may not show (``Dialogue.fields``), those that it does, or may.
    """

    def __init__(
        self,
        fill: Callable[[Sequence[Turn], dict[str, Any]], str],
        given: dict[str, Any],
        knows_developers: bool,
    ) -> None:
        self._fill, self._given = fill, given
        self._one_part: set[str] = set()  # roles whose text is given as a list of one part
        self._lists: set[str] = set()  # roles whose lists of parts are given as they are
        self._shown: dict[
            str, bool | None
        ] = {}  # whether a role's content is; None where its turns are refused
        self._null, self._empty_is_null, self._developer = NULLS[0], False, "developer"
        for role in ("user", "assistant"):
            self._try_role(role)
        self._try_null()
        self._try_role("tool")
        self._try_role("system")
        if knows_developers:
            self._try_role("developer")
        if not self._shown.get("developer"):  # a developer's word is the system's for all but the newest
            self._developer = "system"
        self.shows = frozenset(self._shown_fields())

    def hidden(self) -> str | None:
        """The user or the assistant, if nothing of what it says is shown."""
        return next((role for role in ("user", "assistant") if self._shown.get(role) is False), None)

    def role(self, turn: Turn) -> str:
        """As the template knows it."""
        return self._developer if turn["role"] == "developer" else str(turn["role"])

    def fitted(self, turn: Turn) -> Turn:
        """A turn in the form that the template wants."""
        role = self.role(turn)
        content = turn.get("content")
        if content is None or (self._empty_is_null and turn.get("tool_calls") and not text_of(turn)):
            rest = {key: value for key, value in turn.items() if key != "content"}
            return self._null | rest | {"role": role}
        if isinstance(content, list) and role not in self._lists:
            content = text_of(turn)
        if isinstance(content, str) and role in self._one_part:
            content = [_part(content)]
        return turn | {"role": role, "content": content}

    def written(self, turns: Sequence[Turn], **variables: Any) -> str | None:
        """What the template writes of a trial; None where it refuses it."""
        try:
            return self._fill([self.fitted(turn) for turn in turns], self._given | variables)
        except Exception:  # a template is a program and can fail in any way
            return None

    def _try_role(self, role: str) -> None:
        """Whether the role's content is shown given as text, as a part, and as several."""
        text, one, several = (
            self._is_shown(role, content)
            for content in (ARGUMENT, [_part(ARGUMENT)], [_part(ARGUMENT), _part(WORDS[-1])])
        )
        if several:
            self._lists.add(role)
        if one and not text:
            self._one_part.add(role)
        self._shown[role] = bool(text or one) if {text, one} != {None} else None

    def _is_shown(self, role: str, content: Any) -> bool | None:
        """Whether all text of a content is shown, and not as Python or JSON writes a list; None if it is refused."""
        parts = content if isinstance(content, list) else [_part(content)]
        # As it is, whatever is known by now.
        before, self._one_part = self._one_part, self._one_part - {role}
        self._lists.add(role)
        try:
            for context in CONTEXTS[role]:
                turns = _turns(context)
                place = next(i for i, turn in enumerate(turns) if turn["role"] == role)
                turns[place] |= {"content": content}
                text = self.written(turns)
                if text is not None:
                    listed = isinstance(content, list) and re.search(r"""['"]text['"]\s*:""", text)
                    return not listed and _has(text, [part["text"] for part in parts])
            return None
        finally:
            self._one_part = before
            self._lists.discard(role)

    def _try_null(self) -> None:
        """The first way to give null content beside a tool call that shows the call, or else is not refused; and
        whether empty content has to be given that way too."""
        found = []
        for self._null in NULLS:
            shown = [_has(text, [ARGUMENT]) for text in self._calls()]
            found.append((any(shown), bool(shown)))
        self._null = NULLS[found.index(max(found))]
        self._empty_is_null = found[NULLS.index({"content": ""})] < max(found)

    def _calls(self) -> Iterator[str]:
        """What is written of dialogues with a tool call; some templates want its arguments as JSON."""
        for arguments, context in product(
            ({}, "{}"), ("user call tool assistant", "user call tool", "user call")
        ):
            text = self.written(_turns(context, arguments))
            if text is not None:
                yield text

    def _shown_fields(self) -> Iterator[str]:
        """Of the fields that it may not show, those that the template shows, or refuses to be tried with."""
        documents = [{"title": ARGUMENT, "text": ARGUMENT}]
        trials: dict[str, list[str | None]] = {
            "tool_calls": [*self._calls()],
            "reasoning_content": [self.written([*_turns("user"), _thinking()])],
            "tools": [self.written(_turns("user"), tools=[_tool(ARGUMENT)])],
            "documents": [self.written(_turns("user"), documents=documents)],
        }
        for name, texts in trials.items():
            written = [text for text in texts if text is not None]
            if not written or any(_has(text, [ARGUMENT]) for text in written):
                yield name


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _tool(name: str) -> dict[str, Any]:
    function = {"name": name, "description": name, "parameters": {"type": "object", "properties": {}}}
    return {"type": "function", "function": function}


def _turns(context: str, arguments: Any = None) -> list[Turn]:
    """A trial's turns, each with a word of its own."""
    call = {"name": ARGUMENT, "arguments": {} if arguments is None else arguments}
    # Mistral wants identifiers of nine letters.
    calls = [{"id": "abcdefghi", "type": "function", "function": call}]
    turns: list[Turn] = []
    for role, word in zip(context.split(), WORDS, strict=False):
        if role == "call":
            turns.append({"role": "assistant", "tool_calls": calls})
        else:
            turns.append({"role": role, "content": word})
            if role == "tool":
                turns[-1] |= {"tool_call_id": "abcdefghi", "name": ARGUMENT}
    return turns


def _shape(turn: Turn) -> tuple[Any, ...]:
    """What of a turn, besides its words, decides what becomes of it."""
    content = turn.get("content")
    form = len(content) if isinstance(content, list) else type(content).__name__
    return (
        turn["role"],
        form,
        bool(text_of(turn).strip()),
        *sorted(key for key, value in turn.items() if value),
    )


def _saying(turn: Turn, word: str) -> Turn:
    """The turn with another content of the same form."""
    if not text_of(turn).strip():
        return turn
    content = turn["content"]
    return turn | {"content": word if isinstance(content, str) else [_part(word) for _ in content]}


def _thinking() -> Turn:
    return {"role": "assistant", "content": WORDS[1], "reasoning_content": ARGUMENT}


def _has(text: str, words: Sequence[str]) -> bool:
    """Whether words stand in a text, in whatever case."""
    return all(word.casefold() in text.casefold() for word in words)


def _between(text: str | None, start: str, stop: str | None = None) -> str:
    """What stands behind the last ``start``, or between it and the first ``stop`` after it."""
    match = re.search(f"{start}(?!.*{start})(.*{f'?(?={stop})' if stop else ''})", text or "", re.I | re.S)
    return match[1] if match else ""
