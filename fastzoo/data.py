"""A recipe's data, opened and checked: the training stream and the held-out dialogues."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fastzoo.activations import ResidualReader
from fastzoo.buffer import Columns
from fastzoo.config import EMBEDDED_DATA, Recipe
from fastzoo.models import ModelSource
from fastzoo.output import RunFacts, public_name
from fastzoo.ownership import SharedForward
from fastzoo.packing import packs
from fastzoo.sources import Rows, SourceInfo, held_out_embedded, open_rows
from fastzoo.streams import (
    ChatTokenizer,
    Counts,
    TokenSequence,
    TokenStream,
    described,
    held_out_sequences,
    nothing_usable,
)


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

    def fingerprint(self, recipe: Recipe, source: ModelSource) -> str:
        """Equal where the same run sees the same model and data, on whatever machine."""
        parts = [
            recipe.model_dump_json(exclude={"output"}),
            source.sha,
            self.stream.rows.info.revision,
            self.held_out_info.revision,
        ]
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()

    def facts(self, recipe: Recipe, source: ModelSource, reader: ResidualReader) -> RunFacts:
        """What all records of the run share."""
        seen = {int(i) for s in self.held_out for i in s.ids[s.special]}
        ids = sorted(seen)  # a tokenizer may reserve hundreds that no dialogue has
        tokens = self.chat.tokenizer.convert_ids_to_tokens(ids)
        return RunFacts(
            base_model={
                "name": public_name(source.name),
                "sha": source.sha,
                "class": type(reader.model).__name__,
                "dtype": str(reader.dtype).removeprefix("torch."),
            },
            training_data=described(self.stream.rows.info, self.stream.counts),
            evaluation_data=described(self.held_out_info, self.held_out_counts),
            special_tokens={str(i): token for i, token in zip(ids, tokens, strict=True)},
            recipe=recipe,
        )


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


def training_columns(
    forward: SharedForward, stream: TokenStream, recipe: Recipe
) -> Iterator[Columns]:
    """Activations of the stream's tokens until the recipe's budget is met, to the token."""
    left = recipe.training.steps * recipe.training.batch_size
    groups = _until(packs(stream, forward.reader.pack_tokens), left)
    for columns in forward.columns(groups):
        rows = len(columns["position"])
        if rows >= left:
            yield {name: column[:left] for name, column in columns.items()}
            return
        left -= rows
        yield columns


def _until(groups: Iterable[list[TokenSequence]], tokens: int) -> Iterator[list[TokenSequence]]:
    """Groups until they hold ``tokens``: what comes after those is neither read nor computed."""
    for group in groups:
        yield group
        tokens -= sum(map(len, group))
        if tokens <= 0:
            return
