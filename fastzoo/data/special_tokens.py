"""Special tokens and roles, as the chat template writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastzoo.core.errors import InputError, ModelError
from fastzoo.core.text import one_line
from fastzoo.data.dialogues import ROLES
from fastzoo.data.sequences import Counts, TokenSequence
from fastzoo.data.token_texts import TokenTexts
from fastzoo.data.tokenizer import ChatTokenizer

HEADER_TOKENS = 8
"""Tokens in which a role's name must be written."""


class Texts:
    """Tokens as a reader sees them, and whose turn they belong to."""

    def __init__(self, chat: ChatTokenizer) -> None:
        self._tokenizer = chat.tokenizer
        headers = SpecialTokens.of(chat).headers
        self._before = np.array(sorted({before for before, _ in headers}), dtype=np.int64)
        self._texts = TokenTexts(chat.tokenizer)

    def token(self, number: int) -> str:
        """A token's text; a part of a character as the vocabulary writes it."""
        return self._texts(number)

    def role(self, sequence: TokenSequence, place: int) -> str | None:
        """The role whose turn a token stands in, its header included; None where none is written."""
        starts = np.flatnonzero(
            sequence.special[: place + 1] & np.isin(sequence.ids[: place + 1], self._before)
        )
        for start in starts[::-1].tolist():
            written = self._decode(sequence.ids[start + 1 : start + 1 + HEADER_TOKENS].tolist())
            word = re.match(r"\s*([a-z]+)", written)
            role = _ROLES.get(word[1]) if word else None
            if role:
                return role
        return None

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))


_ROLES = {**ROLES, "model": "assistant", "ipython": "tool"}
"""Roles as chat templates write them."""


# --- prompts -----------------------------------------------------------------------------------


def answer_starts(
    chat: ChatTokenizer, sequences: Sequence[TokenSequence], count: int
) -> list[TokenSequence]:
    """The beginnings of up to ``count`` dialogues, each up to where its first answer begins.

    Raises:
        ModelError: the chat template marks no such place.
        InputError: none of the dialogues has an answer.
    """
    opening = _opening(chat)
    found: list[TokenSequence] = []
    for sequence in sequences:
        if len(found) == count:
            break
        end = _first_end(sequence.ids, opening)
        if end is not None:
            cut = {
                name: getattr(sequence, name)[:end]
                for name in ("ids", "position", "dialogue", "special")
            }
            found.append(replace(sequence, **cut))
    if not found:
        raise InputError(f"none of the {len(sequences)} dialogues has an assistant's answer")
    return found


def _first_end(ids: np.ndarray, part: np.ndarray) -> int | None:
    """Where ``part`` ends in ``ids`` for the first time; None if it does not stand there."""
    for start in np.flatnonzero(ids == part[0]).tolist():
        if np.array_equal(ids[start : start + len(part)], part):
            return int(start) + len(part)
    return None


def _opening(chat: ChatTokenizer) -> np.ndarray:
    """Token ids that the template writes before an answer. Raises ModelError."""
    turns = [{"role": "user", "content": "?"}]
    question, prompt = (
        _rendered(chat, turns, add_generation_prompt=wanted) for wanted in (False, True)
    )
    if prompt.startswith(question) and len(prompt) > len(question):
        return chat.tokenize([prompt[len(question) :]])[0]
    # A template without a generation prompt ends its question by a special token.
    ids = chat.tokenize([prompt])[0]
    places = np.flatnonzero(chat.is_special(ids))
    if not len(places) or places[-1] == 0:
        raise ModelError(
            f"the chat template of {chat.model_name} marks no place where an answer begins"
        )
    return ids[places[-1] :]


def _rendered(
    chat: ChatTokenizer, turns: list[dict[str, str]], *, add_generation_prompt: bool
) -> str:
    try:
        return str(
            chat.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                date_string=chat.data.date,
            )
        )
    except Exception:  # a template is a program and can fail in any way
        raise ModelError(
            f"the chat template of {chat.model_name} refuses a plain question"
        ) from None


def roles(tokenizer: Any, wanted: str | Iterable[str]) -> Callable[[Tensor], Tensor]:
    """Positions of the turns of ``user`` or ``assistant``, headers included, for ``steer``.

    Raises:
        InputError: another role, or a chat template whose turns cannot be told by their headers.
    """
    from fastzoo.config.recipe import DataSection
    from fastzoo.data.special_tokens import ROLE_WORDS, WRITTEN_ROLES, SpecialTokens
    from fastzoo.data.tokenizer import ChatTokenizer

    names = {wanted} if isinstance(wanted, str) else set(wanted)
    if not names or names - set(ROLE_WORDS):
        raise InputError(f"roles are {' and '.join(ROLE_WORDS)}, not {one_line(sorted(names), 80)}")
    chat = ChatTokenizer(tokenizer, DataSection(max_tokens=512), "the model", None)
    headers = {
        pair: WRITTEN_ROLES[tokenizer.decode([pair[1]]).strip()]
        for pair in SpecialTokens.of(chat).headers
    }
    if set(headers.values()) != set(ROLE_WORDS):
        raise InputError("the chat template does not write its roles as one token each")

    def mask(known_BT: Tensor) -> Tensor:
        turn_BT = torch.zeros_like(known_BT)  # 0: before any header; 1: not wanted; 2: wanted
        for (special, word), name in headers.items():
            at_BT = (known_BT[:, :-1] == special) & (known_BT[:, 1:] == word)
            turn_BT[:, :-1][at_BT] = 2 if name in names else 1
        place_BT = torch.where(
            turn_BT > 0, torch.arange(known_BT.shape[1], device=known_BT.device), 0
        )
        return turn_BT.gather(1, place_BT.cummax(1).values) == 2

    return mask


ROLE_WORDS = ("user", "assistant")

WRITTEN_ROLES = {"user": "user", "assistant": "assistant", "model": "assistant"}
"""What chat templates write for the roles: Gemma's calls the assistant model."""


@dataclass(frozen=True)
class SpecialTokens:
    """Which tokens count as special here, and their texts."""

    headers: frozenset[tuple[int, int]] = frozenset()
    """Ids of a special token and of the role word directly after it, as the chat template has them."""
    text: Callable[[int], str] = str
    """A token's text; without a tokenizer its id."""

    @classmethod
    def of(cls, chat: ChatTokenizer) -> SpecialTokens:
        """Those of a tokenizer; a template that writes no role words or refuses a turn has no headers."""
        turns = [{"role": role, "content": "?"} for role in ROLE_WORDS]
        row = {chat.data.column or "messages": turns}
        headers = set()
        for sequence in chat.dialogues([(0, row)], Counts(), truncate=False):
            ids = sequence.ids.tolist()
            for i in np.flatnonzero(sequence.special[:-1]).tolist():
                if chat.tokenizer.decode([ids[i + 1]]).strip() in WRITTEN_ROLES:
                    headers.add((ids[i], ids[i + 1]))
        return cls(frozenset(headers), chat.tokenizer.convert_ids_to_tokens)

    def among(self, ids: np.ndarray, position: np.ndarray, special: np.ndarray) -> np.ndarray:
        """(T,) bool, of dialogues laid end to end."""
        counted = special.copy()
        for before, word in self.headers:
            counted[1:] |= (ids[:-1] == before) & (ids[1:] == word) & (position[1:] > 0)
        return counted


@dataclass(frozen=True)
class ChosenTokens(SpecialTokens):
    """Any tokens instead, wherever they stand."""

    ids: frozenset[int] = frozenset()

    def among(self, ids: np.ndarray, position: np.ndarray, special: np.ndarray) -> np.ndarray:
        return np.isin(ids, list(self.ids))
