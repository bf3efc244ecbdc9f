"""What only a whole recipe can get wrong, before anything is loaded."""

from __future__ import annotations

from fastzoo.config.recipe import Recipe
from fastzoo.core.errors import InputError
from fastzoo.core.text import did_you_mean, one_line
from fastzoo.saes import ARCHITECTURES, MOST_LATENTS, TRAINABLE
from fastzoo.saes.references import is_namespace

# --- checks ------------------------------------------------------------------------------------


def check_recipe(recipe: Recipe) -> None:
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
    if recipe.push.namespace is not None and not is_namespace(recipe.push.namespace):
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
