"""What single tokens say; special tokens, roles and where answers begin, read off the chat template."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastzoo.config.recipe import DataSection
from fastzoo.core.errors import InputError, ModelError
from fastzoo.core.text import one_line
from fastzoo.data.dialogues import ROLES, Dialogue, Unusable
from fastzoo.data.sequences import TokenSequence, cut
from fastzoo.data.tokenizer import ChatTokenizer

ROLE_WORDS = ("user", "assistant")
WRITTEN_ROLES = {"user": "user", "assistant": "assistant", "model": "assistant"}
"""What chat templates write for these roles: Gemma's calls the assistant model."""

HEADER_TOKENS = 8
"""A role's name must be written within this many tokens."""


@dataclass(frozen=True)
class SpecialTokens:
    """Which tokens count as special, and what they say."""

    headers: Mapping[tuple[int, ...], str] = field(default_factory=dict)
    """A special token's id and those of the role word directly after it, as the chat template begins
    a turn with them; and the role, ``user`` or ``assistant``."""
    text: Callable[[int], str] = str
    """The text of a token id; without a tokenizer the id itself."""
    parts: Mapping[int, str] = field(default_factory=dict)
    """Of role words that are several tokens ("ass", "istant"): the id of each, and the word."""

    @classmethod
    def of(cls, chat: ChatTokenizer) -> SpecialTokens:
        """The ones of a chat template; without headers if it writes no role words or refuses a turn."""
        words: dict[tuple[int, ...], str] = {}
        try:
            text = chat.template.write(Dialogue([{"role": role, "content": "?"} for role in ROLE_WORDS]))
            ids = chat.tokenize([text])[0]
            for i in np.flatnonzero(chat.is_special(ids[:-1])).tolist():
                if found := _role_word(chat, ids[i + 1 : i + 1 + HEADER_TOKENS].tolist()):
                    word, length = found
                    words[tuple(ids[i : i + 1 + length].tolist())] = word
        except Unusable:
            pass
        parts = {part: word for header, word in words.items() if len(header) > 2 for part in header[1:]}
        headers = {header: WRITTEN_ROLES[word] for header, word in words.items()}
        return cls(headers, chat.tokenizer.convert_ids_to_tokens, parts)

    def among(self, ids: np.ndarray, position: np.ndarray, special: np.ndarray) -> np.ndarray:
        """(T,) bool: which tokens count, of dialogues laid end to end."""
        counted = special.copy()
        for header in self.headers:
            begins = _begins(ids, header)
            last = len(header) - 1
            begins &= position[last:][: len(begins)] >= last  # not over the end of a dialogue
            for place in range(1, len(header)):
                counted[place : place + len(begins)] |= begins
        return counted


def _role_word(chat: ChatTokenizer, ids: Sequence[int]) -> tuple[str, int] | None:
    """The role word that tokens begin with, and how many tokens it is."""
    for length in range(1, len(ids) + 1):
        word = chat.tokenizer.decode(ids[:length]).strip()
        if word in WRITTEN_ROLES:
            return word, length
        if not word or not any(role.startswith(word) for role in WRITTEN_ROLES):
            break
    return None


def _begins(ids: Any, part: Sequence[int] | np.ndarray) -> Any:
    """bool (..., places): where in ``ids`` (..., T), of numpy or torch, the ids ``part`` begin."""
    places = max(ids.shape[-1] - len(part) + 1, 0)
    found = ids[..., :places] == part[0]
    for i, number in enumerate(part[1:], start=1):
        found = found & (ids[..., i : i + places] == number)
    return found


def with_role_word(entry: Mapping[str, Any]) -> str:
    """A token of a report as a reader sees it: a part of a role word with the word."""
    word = entry.get("role_word")
    return f"{entry['token']} (of {word})" if word else str(entry["token"])


class TokenTexts:
    """The text of each token of a tokenizer, its leading space included."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, number: int) -> str:
        """A token's text; if it is part of a character, as the vocabulary writes it."""
        if number not in self._known:
            word = str(self._tokenizer.convert_ids_to_tokens(number))
            # Decoding a single token drops the space that SentencePiece writes so.
            text = word.replace("▁", " ") if "▁" in word else self.decode([number])
            self._known[number] = word if "\ufffd" in text or not text else text
        return self._known[number]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens together, special ones included, as it was written."""
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def inside_words(self, ids: Sequence[int]) -> np.ndarray:
        """(tokens,) bool: tokens that continue a word, with a lower-case letter after a letter. Scripts
        without lower case have none, and neither has the "Name" of "getName"."""
        texts = [self(number) or " " for number in ids]
        inside = [b[0].islower() and a[-1].lower() != a[-1].upper() for a, b in pairwise(texts)]
        return np.array([False, *inside][: len(texts)], dtype=bool)


class TurnTexts(TokenTexts):
    """Tokens as a reader sees them, and whose turn they belong to."""

    def __init__(self, chat: ChatTokenizer) -> None:
        super().__init__(chat.tokenizer)
        self._before = sorted({header[0] for header in SpecialTokens.of(chat).headers})

    def role(self, sequence: TokenSequence, place: int) -> str | None:
        """The role whose turn a token stands in, header included; None if no header says so. Roles other
        than user and assistant count where they follow the same special token, in however many tokens."""
        ids = sequence.ids
        begins = sequence.special[: place + 1] & np.isin(ids[: place + 1], self._before)
        for start in np.flatnonzero(begins)[::-1].tolist():
            written = self.decode(ids[start + 1 : start + 1 + HEADER_TOKENS].tolist())
            word = re.match(r"\s*([a-z]+)", written)
            if word and (role := _NAMED_ROLES.get(word[1])):
                return role
        return None


_NAMED_ROLES = {**ROLES, **WRITTEN_ROLES, "ipython": "tool"}


def roles(tokenizer: Any, wanted: str | Iterable[str]) -> Callable[[Tensor], Tensor]:
    """Positions of the turns of ``user`` or ``assistant``, headers included, for ``steer``.

    Returns:
        A function from the tokens so far (B, T) to a mask (B, T) of those in such a turn.

    Raises:
        InputError: another role, or a chat template whose turns cannot be told by their headers.
        ModelError: a tokenizer without a usable chat template.
    """
    names = {wanted} if isinstance(wanted, str) else set(wanted)
    if not names or names - set(ROLE_WORDS):
        raise InputError(f"roles are {' and '.join(ROLE_WORDS)}, not {one_line(sorted(names), 80)}")
    headers = SpecialTokens.of(ChatTokenizer(tokenizer, DataSection(), "the model")).headers
    if set(headers.values()) != set(ROLE_WORDS):
        raise InputError("the chat template does not begin turns with a special token and the role's name")

    def mask(known_BT: Tensor) -> Tensor:
        turn_BT = torch.zeros_like(known_BT)  # 0: before any header; 1: not wanted; 2: wanted
        for header, name in headers.items():
            begins_BP = _begins(known_BT, header)
            turn_BT[:, : begins_BP.shape[1]][begins_BP] = 2 if name in names else 1
        place_BT = torch.where(turn_BT > 0, torch.arange(known_BT.shape[1], device=known_BT.device), 0)
        return turn_BT.gather(1, place_BT.cummax(1).values) == 2

    return mask


def answer_starts(chat: ChatTokenizer, sequences: Sequence[TokenSequence], count: int) -> list[TokenSequence]:
    """The beginnings of up to ``count`` dialogues, each up to where its first answer begins.

    Raises:
        ModelError: the chat template does not mark such a place.
        InputError: none of the dialogues has an answer.
    """
    opening = _opening(chat)
    starts = ((sequence, np.flatnonzero(_begins(sequence.ids, opening))) for sequence in sequences)
    ends = ((sequence, int(places[0]) + len(opening)) for sequence, places in starts if len(places))
    found = list(islice((cut(sequence, 0, end) for sequence, end in ends), count))
    if not found:
        raise InputError(f"none of the {len(sequences)} dialogues has an assistant's answer")
    return found


def _opening(chat: ChatTokenizer) -> np.ndarray:
    """Token ids that the template writes before an answer. Raises ModelError."""
    turns = Dialogue([{"role": "user", "content": "?"}])
    try:
        question, prompt = (chat.template.write(turns, answer=answer) for answer in (False, True))
    except Unusable:
        raise ModelError(f"the chat template of {chat.model_name} refuses a plain question") from None
    if prompt.startswith(question) and len(prompt) > len(question):
        return chat.tokenize([prompt[len(question) :]])[0]
    # A template without a generation prompt ends its question with a special token.
    ids = chat.tokenize([prompt])[0]
    places = np.flatnonzero(chat.is_special(ids))
    if not len(places) or places[-1] == 0:
        raise ModelError(f"the chat template of {chat.model_name} does not mark where an answer begins")
    return ids[places[-1] :]
