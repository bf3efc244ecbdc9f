"""Where in a model an SAE sits, as the names of hooks, modules, folders and repositories say it.

Only SAEs of the residual stream after a layer are read; a name that means another place is refused.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import NamedTuple

from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line

_AFTER = ("", "hook_resid_post", "hook_out", "resid_post", "output", "output.0")
_BEFORE = ("hook_resid_pre", "hook_in", "resid_pre", "input", "input.0")
# Modules that hold a language model's layers; a vision tower or an encoder has layers too.
_HOLDERS = "model|transformer|gpt_neox|decoder|language_model|text_model|backbone|base_model|rwkv|module"
_LAYER = r"(?:blocks|block|layers|layer|h)[._/](?P<layer>[0-9]{1,4})"
_HOOK = re.compile(rf"(?:(?:{_HOLDERS})[./])*{_LAYER}(?:[./](?P<point>.+))?", re.ASCII)
_HOOKPOINT = re.compile(rf"(?:.*[./])?(?:{_LAYER}(?:[./].*)?|[a-z_]*(?:embed|norm|ln_f)[a-z_]*)", re.ASCII)

GEMMA_SCOPE_SITES = {
    "res": None,
    "resid_post": None,
    "mlp": "the outputs of MLPs",
    "mlp_out": "the outputs of MLPs",
    "att": "the outputs of attention heads",
    "attn": "the outputs of attention heads",
    "attn_out": "the outputs of attention heads",
    "transcoder": "from an MLP's input to its output",
    "transcoders": "from an MLP's input to its output",
    "clt": "from an MLP's input to the outputs of many",
    "crosscoder": "several layers at once",
    "crosscoders": "several layers at once",
    "embedding": "the embeddings",
}
"""What Gemma Scope's repositories (``gemma-scope-2b-pt-mlp``) and folders are for; None: residual streams."""
_SITE = "|".join(GEMMA_SCOPE_SITES).replace("_", "-")
_ONLY_SITE = re.compile(rf"({_SITE})(?:-all)?")
_WITH_SITE = re.compile(rf"(?:^|-)({_SITE})(?=-|$)")
_REPOSITORY_ABOVE_LAYER = 4
"""Folders from ``layer_20`` up to its repository's name: snapshots and a commit lie between in the Hub's cache."""


class Place(NamedTuple):
    """A residual stream: after the block, or before it."""

    block: int
    before: bool

    @property
    def layer(self) -> int:
        return self.block - self.before


def hook_place(hook: object) -> Place:
    """The residual stream that a hook's or module's name means, such as ``blocks.18.hook_resid_post``,
    ``model.layers.18`` or ``blocks.19.hook_resid_pre``, which is the same place.

    Raises InputError: it means no residual stream after a layer.
    """
    match = _HOOK.fullmatch(hook) if isinstance(hook, str) else None
    point = (match["point"] or "") if match else ""
    if match is None or point not in _AFTER + _BEFORE:
        right = "such as blocks.18.hook_resid_post or model.layers.18"
        raise InputError(
            f"'{one_line(hook, 60)}' is not the residual stream after a layer ({right}), which alone is read"
        )
    place = Place(int(match["layer"]), point in _BEFORE)
    if place.layer < 0:
        raise InputError(
            f"'{one_line(hook, 60)}' is the stream before the first layer; only after layers it is read"
        )
    return place


def layer_named(path: str) -> int | None:
    """The layer that the path of a weights file says, from its repository's name on; None if it says none.

    Raises InputError: its folders or its repository are named for another place than a residual stream.
    """
    *names, file = PurePath(path).parts or ("",)
    if file == "params.npz":
        return _gemma_scope_layer(names)
    return _sparsify_layer(names) if file == "sae.safetensors" else None


def _gemma_scope_layer(names: list[str]) -> int | None:
    # layer_20/width_16k/average_l0_71: other parts have numbers too
    at = next((i for i in reversed(range(len(names))) if names[i].startswith("layer_")), None)
    last = len(names) - 1 if at is None else at + 1
    for i in reversed(range(max(0, last - 1 - _REPOSITORY_ABOVE_LAYER), min(last + 1, len(names)))):
        site = _gemma_scope_site(names[i], beside=at is None or i >= at - 1)
        if site and (what := GEMMA_SCOPE_SITES[site]):
            raise InputError(
                f"'{one_line(names[i], 60)}' holds SAEs of {what}; only residual streams ('-res') are read"
            )
        if site:
            break
    number = names[at].removeprefix("layer_") if at is not None else ""
    return int(number) if re.fullmatch(r"[0-9]{1,4}", number) else None


def _gemma_scope_site(name: str, *, beside: bool) -> str | None:
    """The site that a folder is named for: one with Gemma Scope in its name, or of no other name ``beside`` the
    layer's. Others are their owner's, and may be named for anything."""
    plain = name.lower().replace("_", "-")
    found = _WITH_SITE.findall(plain) if re.search("gemma-?scope", plain) else []
    if beside and (only := _ONLY_SITE.fullmatch(plain)):
        found = [only[1]]
    return found[-1].replace("-", "_") if found else None


def _sparsify_layer(names: list[str]) -> int | None:
    """sparsify names an SAE's folder after the module whose output it is, and may put seeds below it."""
    seeded = len(names) > 1 and re.fullmatch(r"seed[0-9]+", names[-1])
    name = names[-2 if seeded else -1] if names else ""
    return hook_place(name).layer if _HOOKPOINT.fullmatch(name) else None
