"""A recipe's data, opened and checked: the training stream and the held-out dialogues."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastzoo.config.recipe import EMBEDDED_DATA, DataSection, EvaluationSection, TextSection
from fastzoo.data.rows import Rows, SourceInfo, held_out_embedded, open_rows
from fastzoo.data.sequences import Counts, ResumePoint, TokenSequence
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
        held_out = f"held out: {counts.used} dialogues, {counts.tokens} tokens of {self.held_out_info.name}"
        yield held_out + self._fate(counts)
        yield f"training: {self.stream.method} on {self.stream.rows.info.name}"

    def after_training(self) -> str:
        """One line: what became of the training rows."""
        counts = self.stream.counts
        return f"rows read: {counts.rows}, used: {counts.used}{self._fate(counts)}"

    def _fate(self, counts: Counts) -> str:
        """What became of the rows that were not used as they are."""
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts.skipped.most_common())
        text = f"; skipped: {reasons or 'none'}"
        if counts.truncated:
            text += f"; truncated: {counts.truncated}"
        if counts.special_text:
            text += f"; with text of special tokens ({self.chat.data.special_text}): {counts.special_text}"
        if counts.unshown:
            fields = ", ".join(f"{name} of {n}" for name, n in counts.unshown.most_common())
            text += f"; not shown by the chat template: {fields} rows"
        return text


def is_split_off(data: DataSection, evaluation: EvaluationSection) -> bool:
    """Whether evaluation dialogues are rows of ``data``, but for the embedded set, which has some of its own."""
    return evaluation.source in (None, data.source) and data.source != EMBEDDED_DATA


def held_out_section(data: DataSection, evaluation: EvaluationSection) -> DataSection:
    """Where evaluation dialogues come from and how they are read."""
    return data if evaluation.source is None else data.model_copy(update={"source": evaluation.source})


def open_held_out(section: DataSection, seed: int) -> Rows:
    """The rows of such a section. Raises DataError, HubError."""
    return held_out_embedded(seed) if section.source == EMBEDDED_DATA else open_rows(section, seed)


def open_data(
    chat: ChatTokenizer, method: str, text: TextSection, evaluation: EvaluationSection, seed: int
) -> Data:
    """Open the sources of a run, set dialogues aside, and make sure that something is left to train on.

    ``chat.data`` names the dialogues, ``text`` the plain text that bt-p trains on. Raises DataError or
    HubError: missing, broken or unusable data.
    """
    data = chat.data
    dialogues = open_rows(data, seed)
    held_rows = dialogues
    if not is_split_off(data, evaluation):
        held_rows = open_held_out(held_out_section(data, evaluation), seed)
    train_rows = open_rows(text, seed) if method == "bt-p" else dialogues
    own = held_rows is train_rows
    wanted = evaluation.dialogues
    if own and held_rows.info.rows is not None and held_rows.info.data_set is None:
        # A small file keeps nine tenths of its rows for training.
        wanted = min(wanted, max(1, held_rows.info.rows // 10))
    held_out, held_counts = held_out_sequences(chat, held_rows, wanted)
    stream = TokenStream(
        chat,
        train_rows,
        method,
        block_tokens=data.block_tokens,
        column=text.column,
        held_out=held_counts.rows if own else 0,  # of what was built, none: it has splits of its own
        exclude=frozenset(s.ids.tobytes() for s in held_out),
    )
    # Find a source without a usable row now, not after the model was loaded.
    if next(iter(stream), None) is None:
        raise nothing_usable(train_rows, stream.counts)
    stream.start_at(ResumePoint())
    return Data(chat, stream, held_out, held_counts, held_rows.info)
