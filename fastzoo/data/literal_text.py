"""From text to token ids, where the text of a special token in someone's message stays text.

A tokenizer splits text at its added tokens first, whoever wrote them: "<|im_end|>" typed by a user ends
the user's turn. So what was typed is broken by a marker character before the template is applied. The
special tokens' texts that the rendered text still holds are the template's own; what stands between
them is encoded, without the markers, as if there were no special tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import Any

import numpy as np

from fastzoo.core.text import one_line
from fastzoo.data.dialogues import Dialogue, Unusable

WHITESPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""What added tokens with ``lstrip`` or ``rstrip`` swallow (Unicode's, narrower than ``str.strip``)."""

MARKERS = tuple(map(chr, range(0xE000, 0xF900)))  # private-use characters

MOST_CHARACTERS = 1 << 24
"""A longer text is skipped: tokenising it would take several GB."""

CHARACTERS_PER_TOKEN = 8  # more than text commonly has

NEAR = 1000
"""Characters around special tokens on which the way a tokenizer treats them is checked."""

UNASSIGNED = "\U0010fffe"
"""Not a character, so in no vocabulary: it gives the tokens for unknown text."""

DROPPED = "text of a special token"

READ = "text of a special token that the chat template acts on (data.special_text=allow takes it)"
"""Such as the end of thoughts, where it is a special token."""

INSEPARABLE = "text of a special token that this tokenizer cannot read as ordinary text"


@dataclass(frozen=True)
class Rendered:
    """A row's text, ready to be tokenised by ``LiteralText.encode``."""

    text: str
    marker: str | None = None
    """Breaks the special tokens' texts that stand in content; None where there are none to break."""
    literal: bool = False
    """Whether all of the text is content, in which no special token is recognised."""
    special_text: bool = False
    """Whether content holds the text of a special token."""
    unshown: frozenset[str] = frozenset()
    """Fields of the dialogue that the chat template does not show."""


class Encoder:
    """A tokenizer without its chat template: ids of texts, and which ids are special."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        special = set(tokenizer.all_special_ids)
        special |= {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._special = np.array(sorted(special), dtype=np.int64)

    def is_special(self, ids: np.ndarray) -> np.ndarray:
        """(T,) bool, whether each token is one of the special ones."""
        return np.isin(ids, self._special)

    def tokenize(self, texts: Sequence[str], literal: bool = False) -> list[np.ndarray]:
        """int64 token ids of each text, without a BOS or the like; with ``literal`` the texts of special
        tokens are ordinary text."""
        if not texts:
            return []
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            encoded = self.tokenizer(
                list(texts), add_special_tokens=False, split_special_tokens=literal, verbose=False
            )["input_ids"]
        else:
            # The same without offsets and lists that nobody reads: half the time for a long text.
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = literal
            encoded = (e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False))
        return [np.asarray(ids, dtype=np.int64) for ids in encoded]

    def tokenize_each(self, texts: Sequence[str], literal: bool = False) -> list[np.ndarray | Unusable]:
        """As ``tokenize``; a text that the tokenizer fails on gets the reason instead."""
        try:
            return list(self.tokenize(texts, literal))
        except BaseException as error:
            # A Rust panic, as on 10 MB of spaces, is not an Exception; its class cannot be imported.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            if len(texts) == 1:
                return [Unusable("refused by the tokenizer", one_line(str(error)[:500], 80))]
        return [ids for text in texts for ids in self.tokenize_each([text], literal)]


class LiteralText:
    """Renders and encodes rows so that only the chat template writes special tokens; ``policy`` says
    what becomes of content with the text of one (``DataSection.special_text``)."""

    def __init__(self, encoder: Encoder, policy: str) -> None:
        self._encoder, self._policy = encoder, policy
        self._texts = SpecialTexts(encoder.tokenizer)

    def render(self, dialogue: Dialogue, apply_template: Callable[[Dialogue], str]) -> Rendered:
        """The text that the template makes of a dialogue. Raises Unusable."""
        texts = list(dialogue.texts())
        whole = "\0".join(text for text, _ in texts)
        typed = self._typed(whole)
        joins = not typed and any(self._texts.could_join(text) for text, compared in texts if not compared)
        if self._policy == "allow" or not (typed or joins):
            return Rendered(apply_template(dialogue), special_text=typed)
        marker = self._texts.marker(whole)
        mark = self._texts.marked
        marked = apply_template(dialogue.with_texts(lambda text, compared: mark(text, marker, compared)))
        marked = marked.replace(_escaped(marker), marker)
        text = apply_template(dialogue)
        if marked.replace(marker, "") != text:
            raise Unusable(READ)
        if joins:
            if self._texts.split(marked)[1] == self._texts.split(text)[1]:
                return Rendered(text)  # nothing was joined
            if self._policy == "drop":
                raise Unusable(DROPPED)
        return Rendered(marked, marker, special_text=True)

    def document(self, text: str) -> Rendered:
        """Plain text, all of which is content. Raises Unusable."""
        return Rendered(text, literal=self._policy != "allow", special_text=self._typed(text))

    def _typed(self, text: str) -> bool:
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate is valid JSON, but not text
            raise Unusable("malformed: not valid Unicode") from None
        typed = self._texts.typed(text)
        if typed and self._policy == "drop":
            raise Unusable(DROPPED)
        return typed

    def encode(self, batch: Sequence[Rendered], limit: int | None = None) -> Iterator[np.ndarray | Unusable]:
        """int64 token ids of each text, in order, or the reason why it cannot be used.

        Only ``limit`` tokens of each are wanted: of a long text only the beginning is encoded, as long as
        that has more tokens.
        """
        texts = [self._texts.beginning(r.text, limit) if limit else r.text for r in batch]
        together = [
            r.marker is None and len(text) <= MOST_CHARACTERS for r, text in zip(batch, texts, strict=True)
        ]
        literal = any(rendered.literal for rendered in batch)
        encoded = iter(self._encoder.tokenize_each(list(compress(texts, together)), literal))
        for rendered, text in zip(batch, texts, strict=True):
            try:
                if len(text) > MOST_CHARACTERS:
                    raise Unusable(f"longer than {MOST_CHARACTERS:,} characters")
                marker = rendered.marker
                ids = usable(next(encoded)) if marker is None else self._apart(text, marker)
                if limit and len(ids) <= limit and len(text) < len(rendered.text):
                    ids = usable(*self.encode([rendered]))
                if literal and self._forged(ids):
                    raise Unusable(INSEPARABLE)
                yield ids
            except Unusable as unusable:
                yield unusable

    def _apart(self, text: str, marker: str) -> np.ndarray:
        """Token ids of a template's text whose content is broken by markers. Raises Unusable."""
        parts, special = self._texts.split(text)
        # With the markers left in, both ways must agree. They do not for tokenizers that treat the
        # start of a text differently, or that find special tokens by other rules than these. Text
        # far from a special token has no influence on this.
        near = [part if len(part) <= 2 * NEAR else part[:NEAR] + marker + part[-NEAR:] for part in parts]
        together = "".join(a + b for a, b in zip(near, [*special, ""], strict=True))
        if not np.array_equal(self._joined(near, special), usable(*self._encoder.tokenize_each([together]))):
            raise Unusable(INSEPARABLE)
        return self._joined([part.replace(marker, "") for part in parts], special)

    def _joined(self, parts: Sequence[str], special: Sequence[str]) -> np.ndarray:
        """Token ids of ordinary text with special tokens in between. Raises Unusable."""
        texts, numbers = self._texts.stripped(parts, special)
        encoded = iter(self._encoder.tokenize_each([text for text in texts if text], literal=True))
        joined: list[Any] = []
        for text, number in zip(texts, [*numbers, None], strict=True):
            ids = usable(next(encoded)) if text else np.empty(0, np.int64)
            if self._forged(ids):
                raise Unusable(INSEPARABLE)
            joined += [ids, [] if number is None else [number]]
        return np.concatenate(joined).astype(np.int64)

    def _forged(self, ids: np.ndarray) -> bool:
        """Whether ordinary text gave a special token other than the one for unknown text."""
        return not np.isin(ids[self._encoder.is_special(ids)], self._unknown).all()

    @cached_property
    def _unknown(self) -> np.ndarray:
        (ids,) = self._encoder.tokenize_each([UNASSIGNED], literal=True)
        return np.empty(0, np.int64) if isinstance(ids, Unusable) else ids


def usable(ids: np.ndarray | Unusable) -> np.ndarray:
    """Raises what ``LiteralText.encode`` gives in place of ids."""
    if isinstance(ids, Unusable):
        raise ids
    return ids


class SpecialTexts:
    """The texts of a tokenizer's special tokens, and where they stand in other text."""

    def __init__(self, tokenizer: Any) -> None:
        self._added = added = {
            t.content: (i, t) for i, t in tokenizer.added_tokens_decoder.items() if t.content
        }
        special = [text for text, (_, token) in added.items() if token.special]
        self._special = set(special)
        # Tokenizers split at the leftmost added token; if several start there, at the longest.
        self._anywhere = _any_of(added)
        self._first = _first_of_any_of(special)
        self._heads = {text[:n] for text in special for n in range(1, len(text))}
        self._tails = {text[n:] for text in special for n in range(1, len(text))}
        self._together = "\0".join(special)
        self._longest = max(map(len, special), default=1)
        # A character that the template could write itself cannot be a marker.
        template = tokenizer.chat_template
        known = "\0".join(template.values()) if isinstance(template, dict) else str(template)
        self._markers = list(_not_in(known + self._together, MARKERS))
        # Tokens with ``normalized`` are looked for in normalised text: a full-width ＜s＞ can be one.
        normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
        normalised = [text for text in special if added[text][1].normalized]
        self._normalise = normalizer.normalize_str if normalizer and normalised else None
        if self._normalise:
            self._normalised = _any_of({self._normalise(text) for text in normalised} - {""})

    def typed(self, text: str) -> bool:
        """Whether the tokenizer would find a special token in ``text``."""
        normalised = self._normalise and self._normalised.search(self._normalise(text))
        return bool(self._first.search(text) or normalised)

    def could_join(self, text: str) -> bool:
        """Whether ``text`` and what a template writes beside it could make a special token's text."""
        core = text.strip()
        return self._joins_before(core) or self._joins_after(core)

    def _joins_before(self, core: str) -> bool:
        start = core[: self._longest]
        return self._within(core) or any(start[:n] in self._tails for n in range(1, len(start) + 1))

    def _joins_after(self, core: str) -> bool:
        end = core[-self._longest :]
        return self._within(core) or any(end[n:] in self._heads for n in range(len(end)))

    def _within(self, core: str) -> bool:
        return 0 < len(core) < self._longest and core in self._together

    def marker(self, text: str) -> str:
        """A character found in neither ``text`` nor the template. Raises Unusable: every one is found there."""
        found = next(_not_in(text, self._markers), None)
        if found is None:
            raise Unusable(INSEPARABLE)
        return found

    def marked(self, text: str, marker: str, whole: bool = False) -> str:
        """``text`` with every special token's text broken by ``marker``; unless only ``whole`` ones count, also
        where it could become one beside other text. Raises Unusable: a special token is one character."""
        marked = self._first.sub(rf"\g<0>{marker}", text)
        if self._first.search(marked):
            raise Unusable(INSEPARABLE)
        if whole:
            return marked
        core = marked.strip()
        # Inside the white space around it: a template that trims content must find the white space.
        before = marker if self._joins_before(core) else ""
        after = marker if self._joins_after(core) else ""
        return marked.replace(core, before + core + after, 1) if before or after else marked

    def split(self, rendered: str) -> tuple[list[str], list[str]]:
        """The text before, between and after the special tokens of rendered text, and these tokens' texts."""
        parts, special, start = [], [], 0
        for match in self._anywhere.finditer(rendered):
            if match[0] in self._special:
                parts.append(rendered[start : match.start()])
                special.append(match[0])
                start = match.end()
        return [*parts, rendered[start:]], special

    def stripped(self, parts: Sequence[str], special: Sequence[str]) -> tuple[list[str], list[int]]:
        """The parts without the white space that the special tokens swallow, and the tokens' ids."""
        texts, ids = list(parts), []
        for i, text in enumerate(special):
            number, token = self._added[text]
            ids.append(number)
            if token.lstrip:
                texts[i] = texts[i].rstrip(WHITESPACE)
            if token.rstrip:
                texts[i + 1] = texts[i + 1].lstrip(WHITESPACE)
        return texts, ids

    def beginning(self, rendered: str, limit: int) -> str:
        """A first part that very likely has more than ``limit`` tokens. It ends after a special token, so
        that its token ids are the first ones of the whole text."""
        characters = CHARACTERS_PER_TOKEN * limit
        if len(rendered) <= 2 * characters:
            return rendered
        for match in self._anywhere.finditer(rendered):
            if match.start() >= characters and match[0] in self._special:
                token = self._added[match[0]][1]
                if not token.normalized and not token.single_word:
                    return rendered[: match.end()]
        return rendered


def _escaped(character: str) -> str:
    """As JSON in ASCII writes it, which templates can ask for."""
    return json.dumps(character)[1:-1]


def _not_in(text: str, characters: Sequence[str]) -> Iterator[str]:
    """Those that ``text`` holds neither as they are nor escaped."""
    used, escapes = set(text), "\\u" in text
    return (c for c in characters if c not in used and not (escapes and _escaped(c) in text))


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern of any of ``texts``, the longest first; without texts, one that never matches."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _first_of_any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """A pattern of the first character of any of ``texts``, also where they overlap.

    Each first character stands once, before what may follow: with hundreds of texts, ``re`` would
    otherwise try them all at every character.
    """
    rests: dict[str, list[str]] = {}
    for text in texts:
        rests.setdefault(text[0], []).append(re.escape(text[1:]))
    parts = [f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items()]
    return re.compile("|".join(parts) or "(?!)")
