"""A recipe's data, opened and checked: the training stream and the held-out dialogues."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastzoo.activations import ResidualReader
from fastzoo.buffer import Columns
from fastzoo.config import EMBEDDED_DATA, Recipe, recipe_settings
from fastzoo.models import ModelSource
from fastzoo.output import RunFacts, public_name
from fastzoo.ownership import SharedForward
from fastzoo.packing import packs
from fastzoo.sources import Rows, SourceInfo, held_out_embedded, open_rows
from fastzoo.streams import (
    ChatTokenizer,
    Counts,
    Position,
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

    def settings(self, recipe: Recipe, source: ModelSource) -> dict[str, Any]:
        """What runs with the same results have in common: recipe, model and data, on any machine."""
        return {
            **recipe_settings(recipe),
            "model.revision": source.sha,
            "data.revision": self.stream.rows.info.revision,
            "evaluation.revision": self.held_out_info.revision,
        }

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


class TrainingColumns:
    """Activations of the stream's tokens until the recipe's budget is met, to the token.

    ``position`` is where the stream goes on after the columns that were given last.
    """

    def __init__(self, forward: SharedForward, stream: TokenStream, recipe: Recipe) -> None:
        self.forward, self.stream = forward, stream
        self.budget = recipe.training.steps * recipe.training.batch_size
        self.position = stream.start
        self._ahead: deque[Position] = deque()

    def __iter__(self) -> Iterator[Columns]:
        left = self.budget - self.position.counts.tokens
        for columns in self.forward.columns(self._groups(left)):
            self.position = self._ahead.popleft()
            rows = len(columns["position"])
            if rows >= left:
                # Without the dialogue that was read to see that it does not fit.
                self.stream.counts = self.position.counts.copy()
                yield {name: column[:left] for name, column in columns.items()}
                return
            left -= rows
            yield columns

    def _groups(self, tokens: int) -> Iterator[list[TokenSequence]]:
        """Packs until they hold ``tokens``: what comes after those is neither read nor computed.

        The model's forward takes them some time before it gives their activations.
        """
        if tokens <= 0:
            return
        for group in packs(self.stream, self.forward.reader.pack_tokens):
            after = group[-1].after
            assert after is not None
            self._ahead.append(after)
            yield group
            tokens -= sum(map(len, group))
            if tokens <= 0:
                return
