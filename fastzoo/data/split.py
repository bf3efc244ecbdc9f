"""A recipe's data, opened and checked: the training stream and the held-out dialogues."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastzoo.config.recipe import EMBEDDED_DATA, Recipe
from fastzoo.data.rows import Rows, SourceInfo, held_out_embedded, open_rows
from fastzoo.data.sequences import Counts, TokenSequence
from fastzoo.data.streams import TokenStream, held_out_sequences, nothing_usable
from fastzoo.data.tokenizer import ChatTokenizer


@dataclass
class Data:
    """What ``open_data`` found."""

    chat: ChatTokenizer
    stream: TokenStream
    held_out: list[TokenSequence]
    held_out_counts: Counts
    held_out_info: SourceInfo

    def summary(self) -> Iterator[str]:
        """Lines for the log: what was held out, what was skipped there and why."""
        counts = self.held_out_counts
        yield (
            f"held out: {counts.used} dialogues, {counts.tokens} tokens of {self.held_out_info.name}"
            + self._fate(counts)
        )
        yield f"training: {self.stream.recipe.method} on {self.stream.rows.info.name}"

    def after_training(self) -> str:
        """One line: what became of the training rows."""
        counts = self.stream.counts
        return f"rows read: {counts.rows}, used: {counts.used}{self._fate(counts)}"

    def _fate(self, counts: Counts) -> str:
        """What befell some of the rows."""
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts.skipped.most_common())
        text = f"; skipped: {reasons or 'none'}"
        if counts.truncated:
            text += f"; truncated: {counts.truncated}"
        if counts.special_text:
            policy = self.chat.data.special_text
            text += f"; with text of special tokens ({policy}): {counts.special_text}"
        return text


def open_data(
    recipe: Recipe, tokenizer: Any, model_name: str, embeddings: int | None = None
) -> Data:
    """Open the recipe's sources, set dialogues aside, and make sure that there is something to train on.

    Args:
        embeddings: token ids that the model has an embedding for, if that is known.

    Raises:
        DataError, HubError: missing, broken or unusable data.
        ModelError: no usable chat template, or a tokenizer that is not the model's.
    """
    chat = ChatTokenizer(tokenizer, recipe.data, model_name, embeddings)
    dialogues = open_rows(recipe.data, recipe.seed)
    held_rows = _held_out_rows(recipe, dialogues)
    train_rows = open_rows(recipe.text, recipe.seed) if recipe.method == "bt-p" else dialogues
    own = held_rows is train_rows
    wanted = recipe.evaluation.dialogues
    if own and held_rows.info.rows is not None:
        # A small file keeps nine tenths of its rows for training.
        wanted = min(wanted, max(1, held_rows.info.rows // 10))
    held_out, held_counts = held_out_sequences(chat, held_rows, wanted)
    stream = TokenStream(
        recipe,
        chat,
        train_rows,
        held_counts.rows if own else 0,
        frozenset(s.ids.tobytes() for s in held_out),
    )
    # A source without a usable row is found out now, not after the model was loaded.
    probe = TokenStream(recipe, chat, train_rows, stream.held_out, stream.exclude)
    if next(iter(probe), None) is None:
        raise nothing_usable(train_rows, probe.counts)
    return Data(chat, stream, held_out, held_counts, held_rows.info)


def _held_out_rows(recipe: Recipe, dialogues: Rows) -> Rows:
    source = recipe.evaluation.source
    if source is not None and source != recipe.data.source:
        return open_rows(recipe.data.model_copy(update={"source": source}), recipe.seed)
    if recipe.data.source == EMBEDDED_DATA:
        return held_out_embedded(recipe.seed)
    return dialogues
