"""All alphas x all questions in as few generate calls as memory allows.

Each answer is a row of a left-padded batch with an alpha of its own; greedy answers are those of one
call per cell. Two controls run beside the latent: a random direction of the same length, and the same
wish said in the system prompt.
"""

from __future__ import annotations

import contextvars
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from fastzoo.core.errors import DataError, InputError, ModelError
from fastzoo.data.dialogues import Dialogue, Unusable, text_of
from fastzoo.data.tokenizer import ChatTokenizer
from fastzoo.lm.load import max_positions
from fastzoo.lm.padding import batch_key
from fastzoo.saes.base import SAE
from fastzoo.steering.edits import Edit, make_edit
from fastzoo.steering.generate import GenerationSettings, Step, write_answers
from fastzoo.steering.hooks import Steering, check_fits, open_blocks
from fastzoo.steering.scoring.scores import Cell, CellScores, Concept, score_cells
from fastzoo.steering.sweep_rows import (
    LATENT,
    PROMPT,
    RANDOM,
    SweepRow,
    arm_rows,
    groups_of,
    joined,
    random_edit,
    rows_that_fit,
)

Watch = Callable[[Step], None]


@dataclass
class Sweep:
    """Questions, the alphas to ask them at, and the model and latents that answer."""

    model: Any
    chat: ChatTokenizer
    sae: SAE
    layer: int
    latents: Sequence[int]
    """Each is steered by alpha."""
    questions: Sequence[Dialogue]
    alphas: Sequence[float]
    units: str = "raw"
    statistics: Any = None
    mode: str = "add"
    positions: Any = "all"
    wish: str | None = None
    """What the prompting baseline's system prompt says; None leaves this baseline out."""
    control: bool = True
    """Whether a random direction is swept beside the latent."""
    settings: GenerationSettings = field(default_factory=GenerationSettings)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.chat.tokenizer

    def cells(self, watch: Watch | None = None) -> list[Cell]:
        """All answers, by arm, question and alpha; of the prompting baseline alpha is 0.

        ``watch`` is called after each step with (row, token) of the rows that go on; rows are numbered as the
        returned cells are. Raises InputError for no question, no alpha, an alpha that is not finite, an open steering
        block with alphas per row, and as ``steer`` does; DataError for a question that the chat template refuses or
        that is too long for the model; ModelError for a width or layer that is not the model's.
        """
        return self._answers(self.rows(), watch)

    def pair(self, watch: Watch | None = None) -> tuple[Cell, Cell]:
        """The answers to two questions: the first unsteered, the second steered at the first alpha.

        They may be one question, or conversations that went their own ways. ``watch`` is told of rows 0 and 1. Raises
        as ``cells``.
        """
        unsteered, steered = self.prompts()
        edit, alpha = self.edit(self.latents), float(self.alphas[0])
        rows = [SweepRow(LATENT, 0, 0.0, unsteered), SweepRow(LATENT, 1, alpha, steered, edit)]
        first, second = self._answers(rows, watch)
        return first, second

    def many(self, latents: Sequence[int]) -> dict[int, list[Cell]]:
        """The cells of several latents, each alone and without controls, in as few calls."""
        assert self.mode == "add", "a row of a batch cannot be clamped by a latent of its own"
        prompts = self.prompts()
        rows = [row for k in latents for row in arm_rows(str(k), prompts, self.alphas, self.edit([k]))]
        cells = self._answers(rows, None)
        return {k: [cell for cell in cells if cell.arm == str(k)] for k in latents}

    def scores(self, cells: Sequence[Cell], concept: Concept | None = None) -> list[CellScores]:
        """The scores of each cell, beside the unsteered answers: the latent's own cells at alpha 0 where it is
        added. A latent that is clamped to 0 is steered, so other modes write them anew."""
        if self.mode == "add":
            unsteered = [cell for cell in cells if cell.arm == LATENT and cell.alpha == 0]
        else:
            unsteered = replace(self, mode="add", units="raw", alphas=[0.0], control=False, wish=None).cells()
        return score_cells(cells, unsteered, self.model, self.prompts(), self.ends(), self.tokenizer, concept)

    def prompts(self) -> list[list[int]]:
        """The questions' token ids, up to where the answer begins. Raises DataError."""
        return [self._prompt(i, question) for i, question in enumerate(self.questions)]

    def _told(self, index: int, question: Dialogue, wish: str) -> list[int]:
        """The prompt with a wish in its system turn; before the question where the chat template has no
        such turn (Gemma 2)."""
        turns, system = question.turns, "system"
        if turns[0]["role"] in ("system", "developer"):
            system = turns[0]["role"]
            wish, turns = f"{text_of(turns[0])}\n\n{wish}", turns[1:]
        try:
            told = [{"role": system, "content": wish}, *turns]
            return self._prompt(index, replace(question, turns=told))
        except DataError:
            first = {**turns[0], "content": f"{wish}\n\n{text_of(turns[0])}"}
            return self._prompt(index, replace(question, turns=[first, *turns[1:]]))

    def _prompt(self, index: int, question: Dialogue) -> list[int]:
        try:
            ids = self.chat.prompt(question)
        except Unusable as unusable:
            why = ": ".join(filter(None, (unusable.reason, unusable.detail)))
            raise DataError(f"question {index + 1}: {why}") from None
        longest = max_positions(self.model.config)
        if longest and len(ids) + self.settings.max_new_tokens > longest:
            more = f"with {self.settings.max_new_tokens} new ones that is more than the model's {longest} positions"
            raise DataError(f"question {index + 1} has {len(ids)} tokens; {more}")
        return ids

    def rows(self) -> list[SweepRow]:
        """All answers to be written, with their prompts and edits. Raises as ``cells`` does."""
        if not self.questions or not self.alphas:
            raise InputError("a sweep needs at least one question and one alpha")
        edit, prompts = self.edit(self.latents), self.prompts()
        rows = arm_rows(LATENT, prompts, self.alphas, edit)
        if self.control and self.mode == "add":
            rows += arm_rows(RANDOM, prompts, self.alphas, random_edit(edit, self.alphas, self.settings.seed))
        if self.wish is not None:
            for i, question in enumerate(self.questions):
                rows.append(SweepRow(PROMPT, i, 0.0, self._told(i, question, self.wish)))
        return rows

    def edit(self, latents: Sequence[int]) -> Edit:
        """What latents are steered by: one row for each alpha. Raises InputError, ModelError."""
        check_fits(self.model, self.sae, self.layer)
        how = {"layer": self.layer, "mode": self.mode, "units": self.units, "statistics": self.statistics}
        return make_edit(self.sae, dict.fromkeys(latents, self.alphas), **how)

    def _answers(self, rows: Sequence[SweepRow], watch: Watch | None) -> list[Cell]:
        if any(edit.rows > 1 for block in open_blocks(self.model) for edit in block.edits):
            raise InputError("a steering block with alphas per row is open, and a sweep has rows of its own")
        answers: list[list[int]] = [[] for _ in rows]
        told = _Told(watch) if watch else None
        longest = max(len(row.prompt) for row in rows)
        size = self.settings.rows or rows_that_fit(self.model, longest, self.settings.max_new_tokens)
        new, key = self.settings.max_new_tokens - 1, batch_key(self.model)
        for queue in groups_of(rows, lambda length: key(length, length + new)):
            while queue:
                batch = queue[:size]
                try:
                    found = self._generate(
                        [rows[group[0]] for group in batch], told.of(batch) if told else None
                    )
                except torch.OutOfMemoryError:
                    if size == 1:
                        raise ModelError("the device's memory is too small for a single answer") from None
                    torch.cuda.empty_cache()
                    size = max(1, len(batch) // 2)
                    continue
                for group, tokens in zip(batch, found, strict=True):
                    for place in group:
                        answers[place] = tokens
                del queue[: len(batch)]
        cells, ends = [], self.ends()
        for row, tokens in zip(rows, answers, strict=True):
            said = self._before_stop(tokens)
            ended = len(said) < len(tokens) or (bool(tokens) and tokens[-1] in ends)
            text = self.tokenizer.decode(said, skip_special_tokens=True)
            cells.append(Cell(row.question, row.alpha, tuple(said), ended, text, row.arm))
        return cells

    def _generate(self, rows: Sequence[SweepRow], told: Watch | None) -> list[list[int]]:
        """The tokens of rows that go together."""
        edits, prompts, ends = joined(rows), [row.prompt for row in rows], self.ends()
        pad = self.tokenizer.pad_token_id
        pad = min(ends, default=0) if pad is None else pad
        with Steering(self.model, edits, self.positions if edits else "all") as steering:
            return write_answers(
                self.model, prompts, self.settings, ends, pad, told, steering.keep, self._is_over
            )

    def ends(self) -> set[int]:
        """Tokens that end a turn: those of the model's configuration, and what the chat template ends turns with."""
        said = getattr(self.model.generation_config, "eos_token_id", None)
        known = {*(said if isinstance(said, list) else [said]), self.tokenizer.eos_token_id} - {None}
        return known | self._turn_ends[0]

    @cached_property
    def _turn_ends(self) -> tuple[set[int], str | None]:
        return self.chat.template.ends()

    def _is_over(self, tokens: Sequence[int]) -> bool:
        """Whether an answer goes on as the next turn does, in a template that writes no token before that."""
        stop = self._turn_ends[1]
        # A character has up to four tokens.
        return stop is not None and stop in self.tokenizer.decode(tokens[-4 * len(stop) - 4 :])

    def _before_stop(self, tokens: list[int]) -> list[int]:
        """An answer's tokens without the header of the next turn."""
        if not self._is_over(tokens):
            return tokens
        place = self.tokenizer.decode(tokens).index(self._turn_ends[1])
        return next(
            tokens[:n] for n in range(len(tokens), -1, -1) if len(self.tokenizer.decode(tokens[:n])) <= place
        )


class _Told:
    """Passes each row's tokens on to ``watch``, each once, even if rows start again for lack of memory."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._heard = watch, Counter[int]()
        # ``watch`` may use the model, which it finds as it was before the sweep.
        self._before = contextvars.copy_context()

    def of(self, groups: Sequence[Sequence[int]]) -> Watch:
        """The function that a batch with these groups of rows calls."""
        written: Counter[int] = Counter()

        def told(step: Step) -> None:
            new = []
            for row, token in step:
                written[row] += 1
                first = groups[row][0]
                if written[row] > self._heard[first]:
                    self._heard[first] += 1
                    new += [(place, token) for place in groups[row]]
            if new:
                self._before.run(self._watch, new)

        return told
