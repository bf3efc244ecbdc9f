"""What a language model is, by content: digests of its weights, configuration, tokenizer, chat template and special tokens.

A Hub model's commit pins all of its files. A folder can be changed at any time, and a tokenizer is also what the
installed libraries make of its files. The generation configuration is left out: nothing that is trained or
measured depends on it.
"""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastzoo.core.errors import InputError
from fastzoo.core.files import read_json, sha256_of
from fastzoo.core.values import value_at

READERS = 4
"""Threads that read weights: one takes a second for 1.1 GB."""

WITHOUT_EFFECT = frozenset(("_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype"))
"""Keys of a configuration: fastzoo says itself in which type a model is loaded."""


def weights_digest(folder: Path) -> str | None:
    """``sha256:...`` of every weight file that transformers reads in a model's folder; None without one.

    Of a single file it is that file's own. A folder of the Hub's cache is not read: large files there have
    their sha256 as their name.
    """
    try:
        if not (names := _weight_files(folder)):
            return None
        with ThreadPoolExecutor(READERS) as threads:
            found = list(threads.map(lambda name: _file_sha256(folder / name), names))
    except (OSError, ValueError, InputError):
        return None  # loading says what is wrong with them
    return f"sha256:{found[0]}" if len(found) == 1 else _digest(dict(zip(names, found, strict=True)))


def _weight_files(folder: Path) -> list[str]:
    """In transformers' order: what the configuration names, one file, the shards of an index; and an adapter's."""
    named = value_at(read_json(folder / "config.json"), "transformers_weights")
    choices = [named] if isinstance(named, str) else ["model.safetensors", "model.safetensors.index.json"]
    main = next((name for name in choices if (folder / name).is_file()), None)
    if main is None:
        return []
    shards = value_at(read_json(folder / main), "weight_map") if main.endswith(".json") else None
    names = {str(name) for name in shards.values()} if isinstance(shards, dict) else {main}
    adapter = ("adapter_config.json", "adapter_model.safetensors")
    return sorted(names | {name for name in adapter if (folder / name).is_file()})


def _file_sha256(path: Path) -> str:
    stored = path.resolve()
    in_cache = stored.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", stored.name)
    return stored.name if in_cache else sha256_of(path)


def config_digest(folder: Path) -> str | None:
    """``sha256:...`` of a model's configuration as its file has it, without what has no effect."""

    def pruned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: pruned(inner) for key, inner in value.items() if key not in WITHOUT_EFFECT}
        return value

    try:
        return _digest(pruned(read_json(folder / "config.json")))
    except InputError:
        return None


def tokenizer_digest(tokenizer: Any) -> str:
    """``sha256:...`` of what decides which ids a text gets, and which of them are special."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()  # set by whoever used it last, and by each call anew
        backend.no_padding()
        made: Any = backend.to_str()
    else:
        files = [getattr(tokenizer, name, None) for name in getattr(tokenizer, "vocab_files_names", {})]
        there = [path for path in files if isinstance(path, str) and Path(path).is_file()]
        made = [tokenizer.get_vocab(), [sha256_of(Path(path)) for path in there]]
    added = {i: repr(token) for i, token in tokenizer.added_tokens_decoder.items()}
    return _digest([made, added, sorted(tokenizer.all_special_ids)])


def template_digest(tokenizer: Any) -> str:
    """``sha256:...`` of the chat template: of its text or, where a tokenizer has several, of all."""
    template = tokenizer.chat_template
    if isinstance(template, str):
        return f"sha256:{hashlib.sha256(template.encode('utf-8', 'surrogatepass')).hexdigest()}"
    return _digest(template)


def special_tokens_digest(tokenizer: Any) -> str:
    """``sha256:...`` of which token is the BOS, the EOS and the like: templates write them by these names, and an EOS
    ends an answer."""
    return _digest(tokenizer.special_tokens_map)


def _digest(value: Any) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()}"
