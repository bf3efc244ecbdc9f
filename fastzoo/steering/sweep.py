"""All alphas x all questions in as few generate calls as memory allows.

Each answer is a row of a left-padded batch with an alpha of its own; greedy answers are those of one
call per cell. Two controls run beside the latent: a random direction of the same length, and the same
wish said in the system prompt.
"""

from __future__ import annotations

import contextvars
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fastzoo.core.errors import DataError, InputError, ModelError
from fastzoo.core.files import machine_memory
from fastzoo.core.text import one_line
from fastzoo.data.tokenizer import apply_template
from fastzoo.lm.activations import decoder_layers
from fastzoo.saes.base import SAE
from fastzoo.steering.edits import Edit, make_edit
from fastzoo.steering.generate import write_answers
from fastzoo.steering.hooks import Steering, check_fits, open_blocks
from fastzoo.steering.scoring.scores import Cell, CellScores, Concept, score_cells

LATENT, RANDOM, PROMPT = "latent", "random", "prompt"

ARMS = (LATENT, RANDOM, PROMPT)

PAPER_ALPHAS = (0.0, 15.0, 25.0, 50.0, 100.0, 150.0, 200.0)
"""Raw, as in arXiv 2506.07691; they fit its models and no others."""

NORM_ALPHAS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.8, 1.2)
"""In units of the mean norm of the residual stream."""

MEMORY_SHARE = 0.4
"""Of the memory that is free, for the rows of one call."""

MOST_ROWS = 512

Turns = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Settings:
    """How answers are generated."""

    max_new_tokens: int = 200
    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0
    seed: int = 0
    rows: int | None = None
    """Rows of one call; by default what memory allows."""


@dataclass
class Sweep:
    """What is asked, and of whom."""

    model: Any
    tokenizer: Any
    sae: SAE
    layer: int
    latents: Mapping[int, float]
    """Latent to its weight: alpha times it is what each is steered by."""
    questions: Sequence[Turns]
    alphas: Sequence[float]
    units: str = "raw"
    statistics: Any = None
    mode: str = "add"
    positions: Any = "all"
    wish: str | None = None
    """What the prompting baseline's system prompt says; without it there is none."""
    control: bool = True
    """Whether a random direction is swept beside the latent."""
    settings: Settings = field(default_factory=Settings)

    def cells(self, watch: Callable[[list[tuple[int, int]]], None] | None = None) -> list[Cell]:
        """All answers, by arm, question and alpha; of the prompting baseline alpha is 0.

        Args:
            watch: called after each step with (row, token) of the rows that go on; rows count as the
                cells that are returned do.

        Raises:
            InputError: no question, no alpha, an alpha that is not finite, an open steering block with
                alphas per row; see also ``steer``.
            DataError: the chat template refuses a question, or it is too long for the model.
            ModelError: a width or layer that is not the model's.
        """
        return self._answers(self._rows(), watch)

    def many(self, latents: Sequence[int]) -> dict[int, list[Cell]]:
        """The cells of several latents, each alone and without controls, in as few calls."""
        if self.mode != "add":  # a row of a batch can be clamped by its own latent only
            each = (replace(self, latents={k: 1.0}, control=False, wish=None) for k in latents)
            return {k: sweep.cells() for k, sweep in zip(latents, each, strict=True)}
        prompts = self.prompts()
        rows = [row for k in latents for row in self._arm(str(k), self._edit({k: 1.0}), prompts)]
        found: dict[int, list[Cell]] = {k: [] for k in latents}
        for cell in self._answers(rows, None):
            found[int(cell.arm)].append(cell)
        return found

    def scores(self, cells: Sequence[Cell], concept: Concept | None = None) -> list[CellScores]:
        """The scores of each cell, beside the unsteered answers.

        These are the latent's own cells at alpha 0 where it is added; to clamp it to 0 is no such thing.
        """
        unsteered = [cell for cell in cells if cell.arm == LATENT and cell.alpha == 0]
        if self.mode != "add":
            plain = replace(self, mode="add", units="raw", alphas=[0.0], control=False, wish=None)
            unsteered = plain.cells()
        return score_cells(
            cells,
            unsteered,
            self.model,
            self.prompts(),
            end_ids=self.ends(),
            tokenizer=self.tokenizer,
            concept=concept,
        )

    def _answers(self, rows: Sequence[_Row], watch: Any) -> list[Cell]:
        if any(edit.rows > 1 for block in open_blocks(self.model) for edit in block.edits):
            raise InputError(
                "a steering block with alphas per row is open; rows of a sweep are its own"
            )
        answers: list[list[int]] = [[] for _ in rows]
        # What is asked twice, such as alpha 0 of latent and control, is answered once.
        same: dict[Any, list[int]] = {}
        for i, row in enumerate(rows):
            same.setdefault(row.key(), []).append(i)

        def alone(numbers: list[int]) -> bool:  # a latent cannot be clamped in some rows only
            return self.mode != "add" and rows[numbers[0]].edit is None

        # Rows of like length lie together, so that little is padding.
        order = sorted(same.values(), key=lambda found: (alone(found), len(rows[found[0]].prompt)))
        heard: Counter[int] = Counter()
        start, size = 0, self._rows_at_once(max(len(row.prompt) for row in rows))
        while start < len(order):
            part = order[start : start + size]
            part = [numbers for numbers in part if alone(numbers) == alone(part[0])]
            try:
                found = self._generate([rows[numbers[0]] for numbers in part], part, watch, heard)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise ModelError(
                        "the device's memory is too small for a single answer"
                    ) from None
                torch.cuda.empty_cache()
                size = max(1, len(part) // 2)
                continue
            for numbers, tokens in zip(part, found, strict=True):
                for i in numbers:
                    answers[i] = tokens
            start += len(part)
        ends = self.ends()
        return [
            Cell(
                row.question,
                row.alpha,
                tuple(tokens),
                bool(tokens) and tokens[-1] in ends,
                self.tokenizer.decode(tokens, skip_special_tokens=True),
                row.arm,
            )
            for row, tokens in zip(rows, answers, strict=True)
        ]

    def prompts(self) -> list[list[int]]:
        """The questions' token ids, up to where the answer begins. Raises DataError."""
        return [self._prompt(i, turns) for i, turns in enumerate(self.questions)]

    # --- rows ---

    def _rows(self) -> list[_Row]:
        if not self.questions or not self.alphas:
            raise InputError("a sweep needs at least one question and one alpha")
        edit, prompts = self._edit(self.latents), self.prompts()
        rows = self._arm(LATENT, edit, prompts)
        if self.control and self.mode == "add":
            rows += self._arm(RANDOM, self._random(edit), prompts)
        if self.wish is not None:
            for question, turns in enumerate(self.questions):
                told = self._told(question, turns, self.wish)
                rows.append(_Row(PROMPT, question, 0.0, told, None, 0))
        return rows

    def _edit(self, latents: Mapping[int, float]) -> Edit:
        """One row for each alpha. Raises InputError, ModelError."""
        check_fits(self.model, self.sae, self.layer)
        return make_edit(
            self.sae,
            {k: [weight * alpha for alpha in self.alphas] for k, weight in latents.items()},
            layer=self.layer,
            mode=self.mode,
            units=self.units,
            statistics=self.statistics,
        )

    def _arm(self, arm: str, edit: Edit, prompts: Sequence[list[int]]) -> list[_Row]:
        """Every question at every alpha."""
        return [
            _Row(arm, question, float(alpha), prompt, edit, i)
            for question, prompt in enumerate(prompts)
            for i, alpha in enumerate(self.alphas)
        ]

    def _told(self, index: int, turns: Turns, wish: str) -> list[int]:
        """The prompt with a wish in its system turn; before the question where the chat template has no
        such turn (Gemma 2)."""
        if turns[0]["role"] == "system":
            wish, turns = f"{turns[0]['content']}\n\n{wish}", turns[1:]
        try:
            return self._prompt(index, [{"role": "system", "content": wish}, *turns])
        except DataError:
            first = {**turns[0], "content": f"{wish}\n\n{turns[0]['content']}"}
            return self._prompt(index, [first, *turns[1:]])

    def _prompt(self, index: int, turns: Turns) -> list[int]:
        try:
            ids = apply_template(self.tokenizer, turns, answer=True, tokenize=True)
        except Exception as error:  # jinja raises many kinds
            raise DataError(
                f"question {index + 1} is refused by the chat template: {one_line(error, 150)}"
            ) from None
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if longest and len(ids) + self.settings.max_new_tokens > longest:
            raise DataError(
                f"question {index + 1} has {len(ids)} tokens; with {self.settings.max_new_tokens} new "
                f"ones that is more than the model's {longest} positions"
            )
        return ids

    def _random(self, edit: Edit) -> Edit:
        """A random direction, each of its rows as long as the latent's."""
        assert edit.delta_RD is not None
        generator = torch.Generator().manual_seed(self.settings.seed)
        direction_D = torch.randn(edit.delta_RD.shape[1], generator=generator)
        direction_D /= direction_D.norm()
        # Of negative alphas, to the other side.
        sign_R1 = torch.tensor([[-1.0 if alpha < 0 else 1.0] for alpha in self.alphas])
        return Edit(
            edit.layer, "add", edit.delta_RD.norm(dim=1, keepdim=True) * sign_R1 * direction_D
        )

    def _rows_at_once(self, longest_prompt: int) -> int:
        if self.settings.rows is not None:
            return self.settings.rows
        config = self.model.config.get_text_config()
        width = config.hidden_size
        every = _size(config, "num_attention_heads", 1)
        heads = _size(config, "num_key_value_heads", every)
        head = _size(config, "head_dim", width // every)
        bytes_each = next(self.model.parameters()).element_size()
        tokens = longest_prompt + self.settings.max_new_tokens
        cache = 2 * len(decoder_layers(self.model)) * heads * head * bytes_each * tokens
        # The prompt's hidden states and MLP, and the logits of one step in float32.
        wide = longest_prompt * 4 * _size(config, "intermediate_size", 4 * width)
        row = cache + wide * bytes_each + 3 * 4 * config.vocab_size
        device = next(self.model.parameters()).device
        free = (
            torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else machine_memory() // 4
        )
        return int(min(MOST_ROWS, max(1, MEMORY_SHARE * free // row)))

    # --- generating ---

    def _generate(
        self,
        rows: Sequence[_Row],
        numbers: Sequence[Sequence[int]],
        watch: Any,
        heard: Counter[int],
    ) -> list[list[int]]:
        """The tokens of rows that go together; ``numbers`` are what ``watch`` knows each by, and
        ``heard`` says how many tokens it was told of each, before memory ran out."""
        settings = self.settings
        # Whoever watches may use the model, and finds it as it was before the sweep.
        before = contextvars.copy_context()

        written = [0] * len(rows)

        def told(step: list[tuple[int, int]]) -> None:
            said = []
            for row, token in step:
                written[row] += 1
                for number in numbers[row]:
                    if written[row] > heard[number]:
                        heard[number] += 1
                        said.append((number, token))
            if said:
                before.run(watch, said)

        with self._steered(rows) as steering:
            return write_answers(
                self.model,
                [row.prompt for row in rows],
                max_new_tokens=settings.max_new_tokens,
                ends=self.ends(),
                pad=self._padding(),
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=settings.seed,
                told=told if watch else None,
                kept=steering.keep,
            )

    def _steered(self, rows: Sequence[_Row]) -> Steering:
        """Every row by its own edit; rows of none by nothing."""
        if all(row.edit is None for row in rows):
            return Steering(self.model, [])
        width = self.sae.d_in
        if self.mode == "add":
            nothing = torch.zeros(width)
            deltas = [nothing if r.edit is None else r.edit.delta_RD[r.index] for r in rows]  # type: ignore[index]
            edit = Edit(self.layer, "add", torch.stack(deltas))
        else:
            first = next(row.edit for row in rows if row.edit is not None)
            assert first.values_RK is not None
            values = [first.values_RK[row.index] for row in rows]
            edit = Edit(
                self.layer, self.mode, None, first.sae, first.latents_K, torch.stack(values)
            )
        return Steering(self.model, [edit], self.positions)

    def ends(self) -> set[int]:
        """Tokens that end a turn."""
        said = getattr(self.model.generation_config, "eos_token_id", None)
        found = set(said if isinstance(said, list) else [] if said is None else [said])
        own = self.tokenizer.eos_token_id
        return found | ({own} if own is not None else set())

    def _padding(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else min(self.ends(), default=0))


def _size(config: Any, name: str, default: int) -> int:
    """A size of a model; the largest where layers differ."""
    said = getattr(config, name, None)
    return max(said, default=default) if isinstance(said, list | tuple) else said or default


@dataclass(frozen=True)
class _Row:
    arm: str
    question: int
    alpha: float
    prompt: list[int]
    edit: Edit | None
    index: int
    """Its row of the edit's alphas."""

    def key(self) -> tuple[Any, ...]:
        """Equal for rows with the same answer."""
        if self.edit is None or self.edit.delta_RD is None:
            return (tuple(self.prompt), self.edit and (id(self.edit), self.index))
        delta_D = self.edit.delta_RD[self.index]
        return (tuple(self.prompt), delta_D.numpy().tobytes() if delta_D.any() else None)
