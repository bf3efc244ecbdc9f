"""A run as one strict YAML file: sections, presets, ``key=value`` overrides, checks.

Order of precedence: defaults here < the preset (for ``training``) < the recipe file < overrides.
Whatever cannot work is refused before anything is loaded, in one line that names the key, the value
and what would be right.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fastzoo.errors import InputError, did_you_mean, one_line
from fastzoo.hub import REPO
from fastzoo.names import METHODS, SAEName, model_part
from fastzoo.saes import ARCHITECTURES, MOST_LATENTS, TRAINABLE
from fastzoo.strict_yaml import LONGEST, dump_yaml, read_yaml

EMBEDDED_MODEL = "tiny-chat"
EMBEDDED_DATA = "embedded"
PRESETS = ("paper", "quick")


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


class ModelSection(Section):
    """The language model whose residual stream is read."""

    name: str = Field(EMBEDDED_MODEL, min_length=1)
    """``tiny-chat`` (embedded), a Hub id, or a local folder."""
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: float32 on a CPU, bfloat16 on CUDA. SAEs are float32 always."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    pack_tokens: int | None = Field(None, ge=1, le=1 << 20)
    """Tokens per forward pass: whole dialogues are packed up to this many; null: what suits the
    device. It has no effect on which tokens a run sees, nor on their order."""


class DataSection(Section):
    """Dialogues: what fast and bt-f train on, and what every method is evaluated on."""

    source: str = Field(EMBEDDED_DATA, min_length=1)
    """``embedded``, a .jsonl or .parquet file, or a Hub dataset id."""
    revision: str | None = None
    subset: str | None = None
    split: str = "train"
    column: str | None = None
    """Column of the turns; by default ``messages``, else ``conversations``."""
    shuffle: bool = True
    shuffle_rows: int = Field(10_000, ge=1)
    """Rows of a streamed Hub dataset that are shuffled together and held in memory meanwhile; its files
    are shuffled too. Local files are shuffled whole."""
    max_tokens: int = Field(8192, ge=2)
    """Longer dialogues are truncated (and counted)."""
    block_tokens: int = Field(2048, ge=2)
    """Block length of bt-f and bt-p."""
    special_text: Literal["literal", "drop", "allow"] = "literal"
    """Where content (also of ``text``) holds the text of a special token, such as "<|im_end|>": it is
    read as ordinary text, its row is skipped, or it becomes that special token, as transformers has
    it. Such rows are counted."""
    date: str = "26 Jul 2024"
    """Shown to chat templates that print today's date, so that runs do not depend on it."""


class TextSection(Section):
    """Plain text: what bt-p trains on."""

    source: str = Field(EMBEDDED_DATA, min_length=1)
    revision: str | None = None
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    shuffle: bool = True
    shuffle_rows: int = Field(10_000, ge=1)


class Coefficients(Section):
    """lambda of the sparsity penalty, per architecture."""

    standard: float | None = Field(None, ge=0)
    jumprelu: float | None = Field(None, ge=0)


StepsOrShare = float
"""At least 1: a number of steps. Below 1: a share of the run."""


class TrainingSection(Section):
    """How SAEs learn. Every value comes from the preset and can be overridden."""

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
    sparsity_coefficient: Coefficients
    sparsity_width: int | None = Field(ge=1)
    """Residual width that the coefficients are meant for; others scale them (null: none does)."""
    sparsity_warmup: StepsOrShare = Field(ge=0)
    jumprelu_bandwidth: float = Field(gt=0)
    jumprelu_initial_threshold: float = Field(gt=0)
    jumprelu_threshold: Literal["log", "direct"]
    encoder_init: Literal["independent", "transposed"]
    b_dec_init: Literal["geometric_median", "mean", "zeros"]
    activation_scale: Literal["none", "unit_mean_square"]
    dead_threshold: float = Field(ge=0)
    dead_window: int = Field(ge=1)
    feature_sampling_window: int = Field(ge=1)

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
    source: str | None = None
    """Another file or dataset; by default dialogues are held out from ``data``."""


class OutputSection(Section):
    folder: str | None = None
    """By default ``runs/<model>-<method>``."""
    log_every: int = Field(10, ge=1)
    """Steps between rows of training_log.csv."""
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = []
    project: str = "fastzoo"


class CheckpointSection(Section):
    """What a killed or stopped run goes on from; written when the buffer is about to be refilled."""

    minutes: float | None = Field(None, ge=0)
    """Between two of them, at least; null: so many that they take 2% of the time."""
    keep_last: int = Field(2, ge=1)
    """How many are kept while a run is in training; the last one is kept until the next is complete."""


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
    method: Literal["fast", "bt-f", "bt-p"] = "fast"
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
        return Path(os.path.expanduser(self.output.folder or default))

    def names(self) -> list[SAEName]:
        """The SAEs of this run, ordered by layer, expansion, architecture."""
        model = model_part(self.model.name)
        return [
            SAEName(model, layer, expansion, architecture, self.method)
            for layer in self.layers
            for expansion in self.expansions
            for architecture in self.architectures
        ]

    def to_yaml(self) -> str:
        return dump_yaml(self.model_dump())


# --- reading -----------------------------------------------------------------------------------


def preset_values(name: str) -> dict[str, Any]:
    """The values of a preset, as its file has them."""
    text = files("fastzoo").joinpath(f"presets/{name}.yaml").read_text(encoding="utf-8")
    return read_yaml(text, f"preset {name}")


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file (none: the embedded default), apply preset and overrides, and check it.

    Args:
        overrides: ``key=value`` with dotted keys; values are YAML (``layers=[1,2]``).

    Raises:
        InputError: anything that cannot work, in one line.
    """
    path = path or recipes_folder() / "tiny.yaml"
    where = one_line(path, 200)
    try:
        if path.exists() and not path.is_file():  # a pipe or device could be endless
            raise InputError(f"recipe '{where}' cannot be read: it is not a regular file")
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
    except FileNotFoundError:
        known = sorted(p.name for p in recipes_folder().glob("*.yaml"))
        raise InputError(
            f"no recipe file '{where}'.{did_you_mean(path.name, known)} Recipes that come with "
            f"fastzoo: {', '.join(known)} in {recipes_folder().name}/."
        ) from None
    except (OSError, ValueError) as error:  # not UTF-8; a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"recipe '{where}' cannot be read: {one_line(reason)}") from None
    raw = read_yaml(text, where)
    if not isinstance(raw, dict):
        raise InputError(f"{where}: a recipe is a mapping of keys to values")
    for override in overrides:
        _override(raw, override)
    return resolve(raw, where)


def resolve(raw: Mapping[str, Any], where: str) -> Recipe:
    """Fill in the preset and validate. Raises InputError."""
    values = dict(raw)
    preset = values.get("preset", "quick")
    if preset in PRESETS and isinstance(values.get("training", {}), dict):
        base = preset_values(preset)
        own = values.get("training", {})
        merged = {**base, **own}
        coefficients = own.get("sparsity_coefficient")
        if isinstance(coefficients, dict):
            merged["sparsity_coefficient"] = {**base["sparsity_coefficient"], **coefficients}
        values["training"] = merged
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(error, where)) from None
    _check(recipe)
    return recipe


AnySection = TypeVar("AnySection", bound=Section)


def make_section(kind: type[AnySection], where: str, **values: Any) -> AnySection:
    """One section by itself, from values of the user's. Raises InputError."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(error, where)) from None


def recipes_folder() -> Path:
    """Where the recipes are: inside an installed wheel, or beside the package in a checkout."""
    packaged = Path(__file__).parent / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "recipes"


def _override(raw: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]+(\.[A-Za-z_]+)*", key):
        raise InputError(f"'{one_line(text, 100)}' is not an override, which reads key=value")
    target = raw
    *parents, last = key.split(".")
    for parent in parents:
        inner = target.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise InputError(f"{one_line(text, 100)}: '{parent}' is a value, not a section")
        target = inner
    target[last] = read_yaml(value, f"override {key}")


def _explain(error: ValidationError, where: str) -> str:
    """The first problem in one line; how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    # Dotted key; positions in lists and pydantic's names of union members are left out.
    path = [part for part in first["loc"] if isinstance(part, str)]
    key = ".".join(path)
    value = one_line(repr(first["input"]), 80)
    kind = first["type"]
    if kind == "extra_forbidden":
        fields = _fields_at(path[:-1])
        section = f" of '{'.'.join(path[:-1])}'" if len(path) > 1 else ""
        text = f"unknown key '{key}' (value {value}).{did_you_mean(path[-1], fields)}"
        text += f" Keys{section}: {', '.join(fields)}."
    elif kind == "missing":
        text = f"the key '{key}' is missing"
    elif kind == "literal_error":
        choices = [c.strip(" '") for c in re.split(r",| or ", first["ctx"]["expected"])]
        hint = did_you_mean(str(first["input"]), choices)
        text = f"{key}: {value} is not one of {', '.join(choices)}.{hint}"
    elif kind == "model_type":
        text = f"{key}: got {value}; it is a section with keys {', '.join(_fields_at(path))}"
    else:
        text = f"{key}: got {value}; {first['msg'][0].lower()}{first['msg'][1:]}"
        if kind == "list_type":
            text += f", as in {key}=[{one_line(first['input'], 40)}]"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {one_line(text, 600)}{more}"


def _fields_at(path: Sequence[str]) -> list[str]:
    """Names of the keys of the section that ``path`` leads to."""
    section: type[BaseModel] = Recipe
    for part in path:
        annotation = section.model_fields[part].annotation
        options = [annotation, *get_args(annotation)]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(section.model_fields)


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """The keys, dotted, that runs with the same results have in common.

    Revisions are not among them: what they stand for when a run starts is.
    """
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


# --- checks ------------------------------------------------------------------------------------


def _check(recipe: Recipe) -> None:
    """What can be checked without looking at the model. Raises InputError."""
    training = recipe.training
    for key in ("layers", "expansions", "architectures"):
        values = getattr(recipe, key)
        if len(set(values)) != len(values):
            raise InputError(f"{key}: {one_line(values, 80)} names the same one twice")
    for layer in recipe.layers:
        if layer < 0:
            raise InputError(f"layers: {layer} is below 0, the first layer")
    for expansion in recipe.expansions:
        if not 1 <= expansion <= 1024:
            raise InputError(
                f"expansions: {expansion} is not between 1 and 1024; the paper has 8, 16"
            )
    for name in recipe.architectures:
        if name not in TRAINABLE:
            known = "can be loaded but not trained" if name in ARCHITECTURES else "is unknown"
            raise InputError(
                f"architectures: '{one_line(name, 60)}' {known}; trainable are "
                f"{', '.join(TRAINABLE)}.{did_you_mean(name, TRAINABLE)}"
            )
        if getattr(training.sparsity_coefficient, name) is None:
            raise InputError(f"training.sparsity_coefficient.{name}: missing, and {name} needs it")
    if training.steps < 1:
        raise InputError(
            f"training.tokens: {training.tokens} is less than one batch "
            f"(training.batch_size: {training.batch_size})"
        )
    if training.buffer_tokens < 2 * training.batch_size:
        raise InputError(
            f"training.buffer_tokens: {training.buffer_tokens} holds fewer than two batches; "
            f"at least {2 * training.batch_size}"
        )
    warmup, decay = training.in_steps(training.lr_warmup), training.in_steps(training.lr_decay)
    if warmup + decay > training.steps:
        raise InputError(
            f"training.lr_warmup + training.lr_decay: {warmup} + {decay} steps do not fit into the "
            f"{training.steps} steps of {training.tokens} tokens in batches of {training.batch_size};"
            " give shares of the run (below 1) or more tokens"
        )
    if training.in_steps(training.sparsity_warmup) > training.steps:
        raise InputError(
            f"training.sparsity_warmup: {training.sparsity_warmup} is more than the run's "
            f"{training.steps} steps"
        )
    if training.lr_end > training.lr:
        raise InputError(f"training.lr_end: {training.lr_end} is above training.lr: {training.lr}")
    if not all(0 <= beta < 1 for beta in training.adam_betas):
        raise InputError(f"training.adam_betas: {training.adam_betas} are not both in [0, 1)")
    sources = {"data": recipe.data.source, "text": recipe.text.source}
    for section, source in {**sources, "evaluation": recipe.evaluation.source}.items():
        if source is not None and not source.strip():
            raise InputError(f"{section}.source: empty; 'embedded', a file or a Hub dataset id")
    if recipe.push.namespace is not None and not REPO.fullmatch(f"{recipe.push.namespace}/x"):
        raise InputError(
            f"push.namespace: '{one_line(recipe.push.namespace, 60)}' is not the name of a Hub user or "
            "organisation"
        )


def check_against_model(recipe: Recipe, n_layers: int, max_positions: int | None) -> None:
    """What needs the model's configuration (not its weights). Raises InputError."""
    for layer in recipe.layers:
        if layer >= n_layers:
            raise InputError(
                f"layers: {layer} is not a layer of {recipe.model.name}, which has 0 to "
                f"{n_layers - 1}; the nearest is {n_layers - 1}"
            )
    if max_positions is None:
        return
    key = "max_tokens" if recipe.method == "fast" else "block_tokens"
    for name in {"max_tokens", key}:
        value = getattr(recipe.data, name)
        if value > max_positions:
            raise InputError(
                f"data.{name}: {value} is more than the {max_positions} positions of "
                f"{recipe.model.name}; at most {max_positions}"
            )


def check_sizes(recipe: Recipe, width: int, memory: int) -> None:
    """What can never be held: more latents than files may say, or a buffer beyond the device.

    Args:
        width: of the model's residual stream.
        memory: bytes of the device that holds the buffer.

    Raises:
        InputError: before anything of that size is asked for.
    """
    for expansion in recipe.expansions:
        if expansion * width > MOST_LATENTS:
            raise InputError(
                f"expansions: {expansion} times the width {width} of {recipe.model.name} is more "
                f"than {MOST_LATENTS} latents; at most {max(1, MOST_LATENTS // width)}"
            )
    tokens = recipe.training.buffer_tokens
    least = 2 * width  # one layer in the narrowest type
    if tokens * least > memory:
        raise InputError(
            f"training.buffer_tokens: {tokens} activations of width {width} take "
            f"{tokens * least >> 30} GiB for each layer, and there are {memory >> 30} GiB of memory; "
            f"less than {memory // least}"
        )


assert set(METHODS) == set(get_args(Recipe.model_fields["method"].annotation))
