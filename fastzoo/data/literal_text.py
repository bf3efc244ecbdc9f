"""Text of special tokens that stands in content, told from the special tokens of the template.

A tokenizer splits text at its added tokens before anything else, whoever wrote them: "<|im_end|>" typed
by a user ends the user's turn. So what was typed is broken by a marker character before the template
is applied. The special tokens' texts that the rendered text still holds are the template's own, and
what stands between them is encoded, without the markers, as if there were no special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

WHITESPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""What added tokens with ``lstrip`` or ``rstrip`` swallow (Unicode's, narrower than ``str.strip``)."""

MARKERS = tuple(map(chr, range(0xE000, 0xF900)))
"""Private-use characters."""


class SpecialTexts:
    """The texts of a tokenizer's special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        added = {t.content: (i, t) for i, t in tokenizer.added_tokens_decoder.items() if t.content}
        self._added = added
        special = [text for text, (_, token) in added.items() if token.special]
        self._special = set(special)
        # Where tokenizers split: at the leftmost added token, of several there at the longest.
        self._anywhere = _any_of(added)
        self._typed = _first_of_any_of(special)
        self._heads = {text[:n] for text in special for n in range(1, len(text))}
        self._tails = {text[n:] for text in special for n in range(1, len(text))}
        self._first, self._last = {text[0] for text in special}, {text[-1] for text in special}
        self._together = "\0".join(special)
        self._longest = max(map(len, special), default=0)
        # Characters that the template could write itself are no markers.
        taken = set(f"{tokenizer.chat_template}{self._together}")
        self._markers = [c for c in MARKERS if c not in taken]
        # Tokens with ``normalized`` are looked for in normalised text: a full-width ＜s＞ can be one.
        normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
        normalised = [text for text in special if added[text][1].normalized]
        self._normalise = normalizer.normalize_str if normalizer and normalised else None
        if self._normalise:
            self._normalised = _any_of({self._normalise(text) for text in normalised} - {""})

    def typed(self, text: str) -> bool:
        """Whether the tokenizer would find a special token in ``text``."""
        if self._typed.search(text):
            return True
        return bool(self._normalise and self._normalised.search(self._normalise(text)))

    def could_join(self, text: str) -> bool:
        """Whether ``text`` and what a template writes beside it could make a special token's text."""
        core = text.strip()
        return self._joins_before(core) or self._joins_after(core)

    def _joins_before(self, core: str) -> bool:
        start = core[: self._longest]
        if self._last.isdisjoint(start):  # by far the most
            return self._within(core)
        return self._within(core) or any(start[:n] in self._tails for n in range(1, len(start) + 1))

    def _joins_after(self, core: str) -> bool:
        end = core[-self._longest :] if self._longest else ""
        if self._first.isdisjoint(end):
            return self._within(core)
        return self._within(core) or any(end[n:] in self._heads for n in range(len(end)))

    def _within(self, core: str) -> bool:
        """Whether ``core`` stands inside of a special token's text."""
        return 0 < len(core) < self._longest and core in self._together

    def marker(self, texts: Sequence[str]) -> str | None:
        """A character that occurs neither in ``texts`` nor in the template; None: they use up all."""
        used = set().union(*texts)
        return next((c for c in self._markers if c not in used), None)

    def mark(self, text: str, marker: str) -> str | None:
        """``text`` with its special tokens' texts broken; None: one of a single character cannot be."""
        marked = self._typed.sub(rf"\g<0>{marker}", text)
        if self._typed.search(marked):
            return None
        core = marked.strip()
        # Inside of the white space around it: a template that trims content must find it.
        before = marker if self._joins_before(core) else ""
        after = marker if self._joins_after(core) else ""
        return marked.replace(core, before + core + after, 1) if before or after else marked

    def sequence(self, rendered: str) -> list[str]:
        """The special tokens' texts in rendered text, in order."""
        return [m[0] for m in self._anywhere.finditer(rendered) if m[0] in self._special]

    def split(self, rendered: str) -> list[str]:
        """Rendered text in parts: text, special token, text, special token, ..., text."""
        parts, start = [], 0
        for match in self._anywhere.finditer(rendered):
            if match[0] in self._special:
                parts += [rendered[start : match.start()], match[0]]
                start = match.end()
        return [*parts, rendered[start:]]

    def between(self, parts: Sequence[str]) -> tuple[list[str], list[int]]:
        """Of such parts the texts, without the white space that special tokens swallow, and the ids of
        the special tokens.
        """
        texts = list(parts[::2])
        ids = []
        for i, text in enumerate(parts[1::2]):
            number, token = self._added[text]
            ids.append(number)
            if token.lstrip:
                texts[i] = texts[i].rstrip(WHITESPACE)
            if token.rstrip:
                texts[i + 1] = texts[i + 1].lstrip(WHITESPACE)
        return texts, ids

    def beginning(self, rendered: str, characters: int) -> str:
        """``rendered``, or its first part if it has over twice ``characters``: it ends after a special
        token, so that its token ids are the first of those of the whole text.
        """
        if len(rendered) <= 2 * characters:
            return rendered
        for match in self._anywhere.finditer(rendered):
            if match.start() >= characters and match[0] in self._special:
                token = self._added[match[0]][1]
                if not token.normalized and not token.single_word:
                    return rendered[: match.end()]
        return rendered


def _any_of(texts: Any) -> re.Pattern[str]:
    """A pattern of any of ``texts``, the longest first; of none, one that matches nowhere."""
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
