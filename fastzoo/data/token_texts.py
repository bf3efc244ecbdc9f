"""What single tokens say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


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
        found = np.zeros(len(texts), dtype=bool)
        for i in range(1, len(texts)):
            before = texts[i - 1][-1]
            found[i] = texts[i][0].islower() and before.lower() != before.upper()
        return found
