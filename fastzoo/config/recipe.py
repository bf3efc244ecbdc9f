"""A run as one strict YAML file: every key, its default and what it accepts.

Order of precedence: defaults here < the preset (for ``training``) < the recipe file < overrides.
"""

from __future__ import annotations

from collections.abc import Container
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from fastzoo.core.paths import path_of
from fastzoo.core.strict_yaml import dump_yaml
from fastzoo.saes import ARCHITECTURES, Option, trainable
from fastzoo.saes.names import Method, SAEName, model_part

EMBEDDED_MODEL = "tiny-chat"
EMBEDDED_DATA = "embedded"
PRESETS = ("paper", "quick")
MAX_TOKENS, BLOCK_TOKENS = 8192, 2048
"""The paper's, for models whose context is as long."""


class Section(BaseModel):
    """Strict: no unknown keys, no silent conversions, finite numbers only."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @field_validator("*")
    @classmethod
    def _no_nul(cls, value: Any) -> Any:
        """The one character that no path can hold; YAML has it as "\\0"."""
        if isinstance(value, str) and "\0" in value:
            raise ValueError("a text cannot hold a NUL character")
        return value


def training_options(names: Container[Any] = ARCHITECTURES) -> dict[str, Option]:
    """The options that architectures add to ``training``, by key."""
    known = [name for name in ARCHITECTURES if name in names]
    return {key: option for name in known for key, option in ARCHITECTURES[name].options.items()}


class ModelSection(Section):
    """The language model whose residual stream is read."""

    name: str = Field(EMBEDDED_MODEL, min_length=1)
    """``tiny-chat`` (embedded), a Hub id, or a local folder."""
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: float32 on a CPU, bfloat16 on CUDA. SAEs are float32 always."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    pack_tokens: int | None = Field(None, ge=1, le=1 << 20)
    """Tokens per forward pass: whole dialogues are packed up to this many; null: what suits the device.
    A run sees the same tokens in the same order with any."""


class RowsSection(Section):
    """A file or dataset and how its rows are read."""

    source: str = Field(EMBEDDED_DATA, min_length=1)
    """``embedded``, a .jsonl or .parquet file, or a Hub dataset id."""
    revision: str | None = None
    subset: str | None = None
    split: str = "train"
    column: str | None = None
    shuffle: bool = True
    shuffle_rows: int = Field(10_000, ge=1)
    """How many rows of a streamed Hub dataset are held in memory and shuffled together; its files are
    shuffled, too. Local files are shuffled whole."""


class DataSection(RowsSection):
    """Dialogues: what fast and bt-f train on, and what every method is evaluated on.

    By default the turns are in the column ``messages``, else ``conversations``.
    """

    max_tokens: int | None = Field(None, ge=2)
    """Longer dialogues are truncated (and counted). null: to the model's context, at most 8,192 as in the paper."""
    block_tokens: int | None = Field(None, ge=2)
    """Block length of bt-f and bt-p. null: the model's context, at most 2,048 as in the paper."""
    special_text: Literal["literal", "drop", "allow"] = "literal"
    """Where content (also of ``text``), or another field, holds the text of a special token, such as "<|im_end|>": it is
    read as ordinary text, its row is skipped, or it becomes that token, as in transformers. Such rows
    are counted."""
    date: str = "26 Jul 2024"
    """Shown to chat templates that print today's date, by whatever clock, so that runs do not depend on it."""

    def fitted(self, max_positions: int | None = None) -> FittedData:
        """The same with every length a number: as given, else the paper's or the model's context if that is less."""
        context = max_positions if max_positions and max_positions > 1 else MAX_TOKENS
        lengths = {
            "max_tokens": self.max_tokens or min(MAX_TOKENS, context),
            "block_tokens": self.block_tokens or min(BLOCK_TOKENS, context),
        }
        return FittedData.model_construct(**(dict(self) | lengths))


class FittedData(DataSection):
    """Dialogues whose lengths are those for a model."""

    max_tokens: int = Field(ge=2)
    block_tokens: int = Field(ge=2)


class TextSection(RowsSection):
    """Plain text: what bt-p trains on."""

    column: str = "text"


StepsOrShare = float
"""At least 1: a number of steps. Below 1: a share of the run."""


class TrainingSection(Section):
    """How SAEs learn. Values come from the preset; options of single architectures are keys here, too."""

    model_config = ConfigDict(extra="allow")

    tokens: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    buffer_tokens: int = Field(ge=2)
    lr: float = Field(gt=0)
    lr_end: float = Field(ge=0)
    lr_warmup: StepsOrShare = Field(ge=0)
    lr_decay: StepsOrShare = Field(ge=0)
    adam_betas: list[float] = Field(min_length=2, max_length=2)
    adam_eps: float = Field(gt=0)
    clip_norm: float = Field(gt=0)
    l0: float | None = Field(gt=0)
    """Active latents per token that the run ends with (without sinks): λ is moved for that; null: it is as given."""
    sparsity_coefficient: dict[str, Annotated[float, Field(ge=0)] | None]
    """λ of the sparsity penalty, by architecture; where ``l0`` is given, what it begins with."""
    sparsity_width: int | None = Field(ge=1)
    """Residual width that the coefficients are meant for; they are scaled for others unless null."""
    sparsity_warmup: StepsOrShare = Field(ge=0)
    jumprelu_bandwidth: float = Field(gt=0)
    jumprelu_initial_threshold: float = Field(gt=0)
    jumprelu_threshold: Literal["log", "direct"]
    encoder_init: Literal["independent", "transposed"]
    b_dec_init: Literal["geometric_median", "mean", "zeros"]
    activation_scale: Literal["none", "unit_mean_square"]
    sinks: Literal["train", "skip"]
    """Attention sinks: trained on, or left out of training and passed through by the SAE."""
    sink_factor: float = Field(gt=1)
    """A token is a sink where the norm of its activation is above this many times the median norm."""
    dead_threshold: float = Field(ge=0)
    dead_window: int = Field(ge=1)
    feature_sampling_window: int = Field(ge=1)

    @model_validator(mode="after")
    def _of_known_architectures(self) -> TrainingSection:
        """No other sparsity coefficients than of architectures; no other keys than their options."""
        options = training_options()
        problems = [
            InitErrorDetails(type="extra_forbidden", loc=("sparsity_coefficient", name), input=value)
            for name, value in self.sparsity_coefficient.items()
            if name not in trainable()
        ]
        for key, value in (self.model_extra or {}).items():
            if key not in options:
                problems.append(InitErrorDetails(type="extra_forbidden", loc=(key,), input=value))
            elif not options[key].allows(value):
                kind = PydanticCustomError(
                    "option", "Input should be {values}", {"values": options[key].values}
                )
                problems.append(InitErrorDetails(type=kind, loc=(key,), input=value))
        if problems:  # told as pydantic tells its own
            raise ValidationError.from_exception_data("recipe", problems)
        return self

    @property
    def steps(self) -> int:
        """Optimiser steps: whole batches in the token budget."""
        return self.tokens // self.batch_size

    def in_steps(self, value: StepsOrShare) -> int:
        """``value`` as a number of steps of this run."""
        return int(value) if value >= 1 or value == 0 else round(value * self.steps)


class ComputeSection(Section):
    """How the optimiser step is computed; every way computes the same, up to rounding."""

    step: Literal["auto", "reference", "sparse", "cuda"] = "auto"
    """auto: ``cuda`` on a GPU with Triton, ``sparse`` on a CPU with numba, else ``reference``."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the matrix products on a GPU; weights and Adam state are float32 always."""


class EvaluationSection(Section):
    """The figures at the end, on dialogues that were not trained on."""

    dialogues: int = Field(200, ge=1)
    loss_dialogues: int | None = Field(50, ge=1)
    """In how many of them, spread evenly, cross-entropies and KL are measured, which take most of the
    time; null: in all."""
    source: str | None = None
    """Another file or dataset; by default dialogues are held out from ``data``."""


class OutputSection(Section):
    folder: str | None = None
    """Default: ``runs/<model>-<method>``."""
    log_every: int = Field(10, ge=1)
    """Steps between rows of training_log.csv."""
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = []
    project: str = "fastzoo"


class CheckpointSection(Section):
    """What a killed or stopped run resumes from; written when the buffer is about to be refilled."""

    minutes: float | None = Field(None, ge=0)
    """At least this many between two of them; null: as many as make them take 2% of the time."""
    keep_last: int = Field(2, ge=1)
    """How many are kept during training; the last one stays until the next is complete."""


class PushSection(Section):
    namespace: str | None = None
    """Hub user or organisation to publish the finished SAEs under; null publishes nothing."""
    private: bool = False
    public_at_end: bool = False
    """Make the repositories private, and public once all of them are complete."""
    collection: bool = True
    """Bring the namespace's collection and results dataset up to date, too."""


class Recipe(Section):
    """One resolved run."""

    model: ModelSection = ModelSection()
    layers: list[int] = Field(min_length=1)
    expansions: list[int] = Field(min_length=1)
    architectures: list[str] = Field(min_length=1)
    method: Method = "fast"
    data: DataSection = DataSection()
    text: TextSection = TextSection()
    preset: Literal["paper", "quick"] = "quick"
    training: TrainingSection
    compute: ComputeSection = ComputeSection()
    evaluation: EvaluationSection = EvaluationSection()
    output: OutputSection = OutputSection()
    checkpoint: CheckpointSection = CheckpointSection()
    push: PushSection = PushSection()
    seed: int = Field(42, ge=0, lt=2**63)
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of each process; null: the cores, shared out among this machine's processes."""

    @property
    def folder(self) -> Path:
        default = f"runs/{model_part(self.model.name)}-{self.method}"
        return path_of(self.output.folder or default, "output.folder")

    def fitted(self, max_positions: int | None) -> Recipe:
        """The recipe for a model of this context (None: not known): every length a number."""
        return self.model_copy(update={"data": self.data.fitted(max_positions)})

    def names(self) -> list[SAEName]:
        """The SAEs of this run, ordered by layer, expansion, architecture."""
        grid = product(self.layers, self.expansions, self.architectures)
        return [SAEName(model_part(self.model.name), *place, self.method) for place in grid]

    def to_yaml(self) -> str:
        return dump_yaml(self.model_dump())


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings, by dotted key, that decide a run's results. Not revisions: a run records their commits."""
    without: dict[str, Any] = {
        "model": {"revision"},
        "data": {"revision"},
        "text": {"revision"},
        "output": {"folder", "trackers", "project"},
        "checkpoint": True,
        "push": True,
        "threads": True,
    }
    flat: dict[str, Any] = {}
    for key, value in recipe.model_dump(exclude=without).items():
        inner = value if isinstance(value, dict) else {"": value}
        flat |= {f"{key}.{name}".rstrip("."): each for name, each in inner.items()}
    return flat
