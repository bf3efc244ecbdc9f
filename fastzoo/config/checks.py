"""What only a whole recipe can get wrong, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from fastzoo.config.recipe import Recipe
from fastzoo.core.errors import InputError
from fastzoo.core.text import did_you_mean, one_line
from fastzoo.saes import ARCHITECTURES, MOST_LATENTS, trainable
from fastzoo.saes.references import is_namespace


def check_recipe(recipe: Recipe) -> None:
    """What can be checked without looking at the model. Raises InputError with the first problem."""
    for check in CHECKS:
        for problem in check(recipe):
            raise InputError(problem)


def _grid(recipe: Recipe) -> Iterator[str]:
    for key in ("layers", "expansions", "architectures"):
        values = getattr(recipe, key)
        if len(set(values)) != len(values):
            yield f"{key}: {one_line(values, 80)} names the same one twice"
    if (layer := min(recipe.layers)) < 0:
        yield f"layers: {layer} is below 0, the first layer"
    for expansion in recipe.expansions:
        if not 1 <= expansion <= 1024:
            yield f"expansions: {expansion} is not between 1 and 1024; the paper has 8, 16"


def _architectures(recipe: Recipe) -> Iterator[str]:
    names = trainable()
    for name in recipe.architectures:
        if name not in names:
            known = "can be loaded but not trained" if name in ARCHITECTURES else "is unknown"
            yield (
                f"architectures: '{one_line(name, 60)}' {known}; trainable are {', '.join(names)}."
                f"{did_you_mean(name, names)}"
            )
        elif recipe.training.sparsity_coefficient.get(name) is None:
            yield f"training.sparsity_coefficient.{name}: missing, and {name} needs it"


def _batches(recipe: Recipe) -> Iterator[str]:
    training = recipe.training
    size = training.batch_size
    if training.steps < 1:
        yield (f"training.tokens: {training.tokens} is less than one batch (training.batch_size: {size})")
    if training.buffer_tokens < 2 * size:
        yield (f"training.buffer_tokens: {training.buffer_tokens} holds fewer than two batches; at least {2 * size}")


def _schedule(recipe: Recipe) -> Iterator[str]:
    training = recipe.training
    warmup, decay = training.in_steps(training.lr_warmup), training.in_steps(training.lr_decay)
    if warmup + decay > training.steps:
        yield (
            f"training.lr_warmup + training.lr_decay: {warmup} + {decay} steps do not fit into the "
            f"{training.steps} steps of {training.tokens} tokens in batches of {training.batch_size};"
            " give shares of the run (below 1) or more tokens"
        )
    if training.in_steps(training.sparsity_warmup) > training.steps:
        yield (f"training.sparsity_warmup: {training.sparsity_warmup} is more than the run's {training.steps} steps")
    if training.lr_end > training.lr:
        yield f"training.lr_end: {training.lr_end} is above training.lr: {training.lr}"
    if not all(0 <= beta < 1 for beta in training.adam_betas):
        yield f"training.adam_betas: {training.adam_betas} are not both in [0, 1)"


def _sources(recipe: Recipe) -> Iterator[str]:
    for section in ("data", "text", "evaluation"):
        source = getattr(recipe, section).source
        if source is not None and not source.strip():
            yield f"{section}.source: empty; give 'embedded', a file or a Hub dataset id"


def _namespace(recipe: Recipe) -> Iterator[str]:
    name = recipe.push.namespace
    if name is not None and not is_namespace(name):
        yield (f"push.namespace: '{one_line(name, 60)}' is not the name of a Hub user or organisation")


CHECKS = (_grid, _architectures, _batches, _schedule, _sources, _namespace)
"""In this order. Each gives its problems, one line of text for each."""


def check_against_model(recipe: Recipe, n_layers: int, max_positions: int | None) -> None:
    """What needs the model's configuration (not its weights). Raises InputError."""
    model, data = recipe.model.name, recipe.data
    for layer in recipe.layers:
        if layer >= n_layers:
            raise InputError(
                f"layers: {layer} is not a layer of {model}, which has 0 to {n_layers - 1}; "
                f"the nearest is {n_layers - 1}"
            )
    lengths = {"max_tokens": data.max_tokens}
    if recipe.method != "fast":
        lengths["block_tokens"] = data.block_tokens
    for key, value in lengths.items():
        if max_positions is not None and value > max_positions:
            raise InputError(
                f"data.{key}: {value} is more than the {max_positions} positions of {model}; at most {max_positions}"
            )


def check_sizes(recipe: Recipe, width: int, memory: int) -> None:
    """What can never be held: more latents than files may say, or a buffer beyond the device.

    Args:
        width: of the model's residual stream.
        memory: bytes of the device that holds the buffer.

    Raises:
        InputError: before anything of that size is allocated.
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
