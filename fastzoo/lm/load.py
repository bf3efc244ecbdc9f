"""Language models: find one by name, check its configuration, load its weights and tokenizer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fastzoo.config.recipe import EMBEDDED_MODEL, ModelSection
from fastzoo.core.errors import FastzooError, ModelError
from fastzoo.core.paths import path_of
from fastzoo.core.text import one_line
from fastzoo.lm.identity import (
    config_digest,
    special_tokens_digest,
    template_digest,
    tokenizer_digest,
    weights_digest,
)


@dataclass(frozen=True)
class ModelSource:
    """Where a model is loaded from, pinned to a commit, with its configuration but not its weights."""

    name: str
    """As the user wrote it: ``tiny-chat``, a Hub id or a folder."""
    path: str
    """What transformers loads: a folder or a Hub id."""
    revision: str | None
    """Commit of a Hub model."""
    config: Any

    @cached_property
    def sha(self) -> str | None:
        """Commit, or ``sha256:...`` of a local model's weights, which are read whole."""
        return self.revision or weights_digest(self.folder)

    @property
    def weights(self) -> str | None:
        """``sha256:...`` of the weights; None of a Hub model's that were not fetched yet."""
        return weights_digest(self.folder) if self.revision else self.sha

    @property
    def folder(self) -> Path:
        """The model's files; of a Hub model the cache's, as far as they were fetched."""
        from transformers.utils import cached_file

        return Path(cached_file(self.path, "config.json", revision=self.revision)).parent

    def contents(self, tokenizer: Any) -> dict[str, str | None]:
        """Digests of what a result depends on besides ``sha``, by the names that records have them under."""
        return {
            "config": config_digest(self.folder),
            "tokenizer": tokenizer_digest(tokenizer),
            "chat_template": template_digest(tokenizer),
            "special_tokens": special_tokens_digest(tokenizer),
        }

    @property
    def public_name(self) -> str:
        """As others may see it: of a folder the last part."""
        local = self.revision is None and self.name != EMBEDDED_MODEL
        return os.path.basename(os.path.abspath(self.path)) if local else self.name

    @property
    def n_layers(self) -> int:
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def d_model(self) -> int:
        return int(self.config.get_text_config().hidden_size)

    @property
    def embeddings(self) -> int | None:
        """How many token ids the model has an embedding for, if its configuration says."""
        value = getattr(self.config.get_text_config(), "vocab_size", None)
        return int(value) if value else None

    @property
    def max_positions(self) -> int | None:
        return max_positions(self.config)


def max_positions(config: Any) -> int | None:
    """How many tokens a dialogue can have, if a configuration says; MPT's and BART's say it in words of theirs."""
    keys = ("max_position_embeddings", "max_seq_len", "max_target_positions")
    said = [getattr(config.get_text_config(), key, None) or 0 for key in keys]
    return next((int(value) for value in said if value > 0), None)


def find_model(section: ModelSection) -> ModelSource:
    """Find a model and read only its configuration. Raises ModelError or HubError: it does not exist, or
    is not a causal language model of known shape."""
    from transformers import AutoConfig

    path, revision = section.name, None
    if section.name == EMBEDDED_MODEL:
        from fastzoo import tiny

        path = str(tiny.MODEL)
    folder = path_of(path, "model.name")
    if os.path.isdir(folder):  # unlike Path.is_dir, false for a name that is too long
        path = str(folder)
    elif path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ModelError(
            f"model.name: '{one_line(path, 120)}' is neither '{EMBEDDED_MODEL}', nor a folder, nor a Hub id (org/name)"
        )
    else:
        from fastzoo.hub.client import commit_of

        revision = commit_of("model", path, section.revision)
    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
        source = ModelSource(section.name, path, revision, config)
        _ = source.n_layers, source.d_model
        if config.is_encoder_decoder:
            raise ValueError("an encoder-decoder model has no single residual stream")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"model.name: {section.name} has no usable configuration ({one_line(error, 160)})"
        ) from None
    return source


def refuse_unfit(config: Any, name: str, layer: int, width: int) -> None:
    """Raise ModelError unless an SAE of ``width`` after ``layer`` fits a model of ``config``."""
    config = config.get_text_config()
    if width != config.hidden_size or not 0 <= layer < config.num_hidden_layers:
        model = f"which has width {config.hidden_size} and layers 0 to {config.num_hidden_layers - 1}"
        raise ModelError(f"{name} (width {width}, layer {layer}) does not fit the model, {model}")


def load_tokenizer(source: ModelSource) -> Any:
    """The model's tokenizer. Raises ModelError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.path, revision=source.revision)
    except Exception as error:  # transformers and tokenizers raise many kinds
        said = f"cannot be loaded ({one_line(error, 160)})"
        raise ModelError(f"model.name: the tokenizer of {source.name} {said}") from None


def dtype_on(section: ModelSection, device: torch.device) -> str:
    """The type that a model is computed in; ``model.dtype=auto`` is float32 on a CPU and bfloat16 on a GPU."""
    auto = "float32" if device.type == "cpu" else "bfloat16"
    return auto if section.dtype == "auto" else section.dtype


def load_model(source: ModelSource, section: ModelSection, device: torch.device) -> Any:
    """The causal language model in evaluation mode on ``device``; safetensors only.

    Raises ModelError: there are no safetensors weights, or they do not fit the configuration.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.path,
            revision=source.revision,
            dtype=dtype_on(section, device),
            use_safetensors=True,
            attn_implementation=None if section.attention == "auto" else section.attention,
        )
    except FastzooError:
        raise
    except Exception as error:  # transformers, safetensors and httpx raise many kinds
        raise ModelError(f"model.name: {source.name} cannot be loaded ({one_line(error, 200)})") from None
    for config in [part.config for part in model.modules() if hasattr(part, "config")]:
        config.return_dict = True  # a model's file may ask for tuples, whose parts have no names
    return model.to(device).eval().requires_grad_(False)
