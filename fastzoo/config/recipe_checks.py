"""What only a whole recipe can get wrong, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from fastzoo.config.recipe import EMBEDDED_DATA, EMBEDDED_MODEL, Recipe
from fastzoo.core.errors import InputError
from fastzoo.core.paths import path_of
from fastzoo.core.text import did_you_mean, one_line
from fastzoo.saes import ARCHITECTURES, MOST_LATENTS, trainable
from fastzoo.saes.references import is_namespace


def check_recipe(recipe: Recipe) -> None:
    """What can be checked without looking at the model. Raises InputError with the first problem."""
    for problem in _problems(recipe):
        raise InputError(problem)


def _problems(recipe: Recipe) -> Iterator[str]:
    for key in ("layers", "expansions", "architectures"):
        values = getattr(recipe, key)
        if len(set(values)) != len(values):
            yield f"{key}: {one_line(values, 80)} names the same one twice"
    if (layer := min(recipe.layers)) < 0:
        yield f"layers: {layer} is below 0, the first layer"
    for expansion in recipe.expansions:
        if not 1 <= expansion <= 1024:
            yield f"expansions: {expansion} is not between 1 and 1024; the paper has 8, 16"

    training, names = recipe.training, trainable()
    for name in recipe.architectures:
        if name not in names:
            known = "can be loaded but not trained" if name in ARCHITECTURES else "is unknown"
            could = f"trainable are {', '.join(names)}.{did_you_mean(name, names)}"
            yield f"architectures: '{one_line(name, 60)}' {known}; {could}"
        elif training.sparsity_coefficient.get(name) is None:
            yield f"training.sparsity_coefficient.{name}: missing, and {name} needs it"
        elif training.l0 is not None and not training.sparsity_coefficient[name]:
            yield f"training.sparsity_coefficient.{name}: 0 cannot be moved to what training.l0 asks for"

    steps, size, least = training.steps, training.batch_size, 2 * training.batch_size
    if steps < 1:
        yield f"training.tokens: {training.tokens} is less than one batch (training.batch_size: {size})"
    if training.buffer_tokens < least:
        yield f"training.buffer_tokens: {training.buffer_tokens} holds fewer than two batches; at least {least}"
    warmup, decay = training.in_steps(training.lr_warmup), training.in_steps(training.lr_decay)
    if warmup + decay > steps:
        yield (
            f"training.lr_warmup + training.lr_decay: {warmup} + {decay} steps do not fit into the {steps} steps of "
            f"{training.tokens} tokens in batches of {size}; give shares of the run (below 1) or more tokens"
        )
    if training.in_steps(training.sparsity_warmup) > steps:
        yield f"training.sparsity_warmup: {training.sparsity_warmup} is more than the run's {steps} steps"
    if training.lr_end > training.lr:
        yield f"training.lr_end: {training.lr_end} is above training.lr: {training.lr}"
    if not all(0 <= beta < 1 for beta in training.adam_betas):
        yield f"training.adam_betas: {training.adam_betas} are not both in [0, 1)"

    for section in ("data", "text", "evaluation"):
        source = getattr(recipe, section).source
        if source is not None and not source.strip():
            yield f"{section}.source: empty; give 'embedded', a file or a Hub dataset id"
    _ = recipe.folder
    for section, key in (("model", "name"), ("data", "source"), ("text", "source"), ("evaluation", "source")):
        if (text := getattr(getattr(recipe, section), key)) is not None:
            path_of(text, f"{section}.{key}")
    owner = recipe.push.namespace
    if owner is not None and not is_namespace(owner):
        yield f"push.namespace: '{one_line(owner, 60)}' is not the name of a Hub user or organisation"


def doubts(recipe: Recipe) -> Iterator[str]:
    """What a run is not refused for but should say: another model on the embedded data, a few hundred words in a few
    dozen patterns."""
    model = recipe.model.name
    if model == EMBEDDED_MODEL:
        return
    for section in ("data", "evaluation", *(["text"] if recipe.method == "bt-p" else [])):
        if getattr(recipe, section).source == EMBEDDED_DATA:
            toys = f"'{EMBEDDED_DATA}' is the data of the toy {EMBEDDED_MODEL}: {one_line(model, 80)} learns little from it"
            yield f"{section}.source: {toys}; give a .jsonl or .parquet file, or a Hub dataset id"


def check_against_model(recipe: Recipe, n_layers: int, max_positions: int | None) -> None:
    """What needs the model's configuration (not its weights). Raises InputError."""
    model, data = recipe.model.name, recipe.data
    for layer in recipe.layers:
        if layer >= n_layers:
            last = n_layers - 1
            raise InputError(
                f"layers: {layer} is not a layer of {model}, which has 0 to {last}; the nearest is {last}"
            )
    lengths = {"max_tokens": data.max_tokens}
    if recipe.method != "fast":
        lengths["block_tokens"] = data.block_tokens
    for key, value in lengths.items():
        if value is not None and max_positions is not None and value > max_positions:
            there = f"{max_positions} positions of {model}; at most {max_positions}"
            raise InputError(f"data.{key}: {value} is more than the {there}")


def check_sizes(recipe: Recipe, width: int, memory: int) -> None:
    """Refuse what can never be held: more latents than files may say, or a buffer beyond the device.

    Args:
        width: of the model's residual stream.
        memory: bytes of the device that holds the buffer.
    """
    for expansion in recipe.expansions:
        l0, most = recipe.training.l0, expansion * width // 2
        if l0 is not None and l0 > most:
            latents = f"{expansion * width} latents at expansion {expansion}"
            raise InputError(f"training.l0: {l0:g} is too much for {latents}; at most {most}")
        if expansion * width > MOST_LATENTS:
            what = f"{expansion} times the width {width} of {recipe.model.name} is more than {MOST_LATENTS} latents"
            raise InputError(f"expansions: {what}; at most {max(1, MOST_LATENTS // width)}")
    tokens, least = recipe.training.buffer_tokens, 2 * width  # one layer in the narrowest type
    if tokens * least > memory:
        needed = f"{tokens} activations of width {width} take {tokens * least >> 30} GiB for each layer"
        there = f"there are {memory >> 30} GiB of memory; less than {memory // least}"
        raise InputError(f"training.buffer_tokens: {needed}, and {there}")
