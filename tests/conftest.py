"""Shared by the tests: small random models, unmodified reference forwards, recipes and rows."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor

from fastzoo import tiny
from fastzoo.config.reading import preset_values, resolve
from fastzoo.config.recipe import Recipe, TrainingSection
from fastzoo.data.sequences import TokenSequence
from fastzoo.data.split import Data, open_data
from fastzoo.data.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from publisher import Person

settings.register_profile("fastzoo", deadline=None, derandomize=True, database=None)
settings.load_profile("fastzoo")

# Nothing asks the real Hub, nor reads or writes the caches of whoever runs the tests. Clients of the
# loopback Hub run in subprocesses with an environment of their own.
CACHES = tempfile.TemporaryDirectory(prefix="fastzoo-hub-")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": CACHES.name}

from space_pages import browser, saes  # noqa: E402, F401 (fixtures; their modules read these settings)

# Triton reads this when it is imported, and whichever test comes first may import it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

TOYS_FILES = (f"data.source={tiny.DIALOGUES}", f"evaluation.source={tiny.HELDOUT}")
"""Overrides: the embedded data as files of whoever trains another model on them, which then is told nothing."""

VOCABULARY = 96
WIDTH = 32
LAYERS = 4


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Torch's CPU threads: two in the test, afterwards as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that is not asked, and of which nothing is known."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))


def training(preset: str = "quick", **changes: Any) -> TrainingSection:
    """A preset's training section with some values changed."""
    return TrainingSection.model_validate({**preset_values(preset), **changes})


def recipe(**values: Any) -> Recipe:
    """A small recipe on the embedded model; keyword arguments are its top-level keys."""
    base = {"layers": [1], "expansions": [2], "architectures": ["standard"]}
    return resolve({**base, **values}, "test recipe")


def opened(run: Recipe, tokenizer: Any, model_name: str = "test model") -> Data:
    """A recipe's data."""
    chat = ChatTokenizer(tokenizer, run.data, model_name)
    return open_data(chat, run.method, run.text, run.evaluation, run.seed)


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sequence(
    ids: Sequence[int] | np.ndarray, index: int = 0, special: Sequence[bool] | None = None
) -> TokenSequence:
    """One dialogue as the streams make it."""
    ids = np.asarray(ids, dtype=np.int64)
    flags = np.zeros(len(ids), bool) if special is None else np.asarray(special, bool)
    return TokenSequence(
        ids, np.arange(len(ids), dtype=np.int32), np.full(len(ids), index, dtype=np.int64), flags
    )


def random_dialogues(lengths: Sequence[int], seed: int = 0) -> list[TokenSequence]:
    """Random tokens; about a third of them count as special (ids below 32)."""
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, VOCABULARY, n) for n in lengths]
    return [sequence(ids, i, ids < 32) for i, ids in enumerate(drawn)]


def _shape(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        # Large weights: attention patterns are far from uniform, so a wrong mask shows.
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **more,
    }


SLIDING = ["sliding_attention", "full_attention"] * (LAYERS // 2)

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "layer_types": SLIDING}),
    "qwen3": ("Qwen3", {}),
    "llama": ("Llama", {}),
    "phi3": ("Phi3", {}),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": WIDTH}),
    "gemma2": (
        "Gemma2",
        {
            "sliding_window": 6,
            "layer_types": SLIDING,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
            "query_pre_attn_scalar": 5,
        },
    ),
}


def small_model(kind: str, attention: str = "eager", seed: int = 0, **more: Any) -> Any:
    """A random causal language model; the same arguments give the same weights."""
    import transformers

    family, own = CONFIGS[kind]
    config = getattr(transformers, f"{family}Config")(**_shape(**own, **more), attn_implementation=attention)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    # Norm weights and biases that do something.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval().requires_grad_(False)


Edit = Callable[[Tensor], Tensor]


@torch.no_grad()
def plain_forward(
    model: Any, ids: np.ndarray, edit: tuple[int, Edit] | None = None
) -> tuple[list[Tensor], Tensor]:
    """One dialogue through an unmodified model: residual stream after every layer, and logits.

    Args:
        edit: a layer and what to make of the residual stream (T, D) after it.
    """
    found: list[Tensor] = []

    def hook(index: int) -> Callable[..., Any]:
        def inner(module: Any, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            if edit is not None and edit[0] == index:
                hidden = edit[1](hidden[0])[None]
                output = (hidden, *output[1:]) if isinstance(output, tuple) else hidden
            found.append(hidden[0].clone())
            return output

        return inner

    handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(model.model.layers)]
    try:
        logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return found, logits


def randomise(sae: Any, seed: int = 0, scale: float = 0.3) -> Any:
    """Give an SAE random weights (thresholds positive), in its own dtype."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
            parameter.copy_(values.abs() + 0.05 if "threshold" in name else values)
    return sae


def own_disk(mount: str, place: Path) -> list[str]:
    """The beginning of a command that runs in ``place`` after the shell command ``mount`` mounted something over it,
    which nobody else sees. Skips the test where nothing can be mounted."""
    for unshare in (["unshare", "-rm"], ["unshare", "-m"]):
        command = [*unshare, "sh", "-c", f'{mount} && cd . && exec "$@"', "sh"]
        if shutil.which("unshare") and not subprocess.run([*command, "true"], cwd=place).returncode:
            return command
    pytest.skip("no disk can be mounted here")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within, the kernel refuses larger files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def value(figures: Mapping[str, Any], metric: str, subset: str = "all") -> Any:
    return figures[metric][subset]["value"]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The embedded model's tokenizer."""
    from transformers import AutoTokenizer

    from fastzoo import tiny

    return AutoTokenizer.from_pretrained(tiny.MODEL)


# --- publishing ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def model_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run's folder, of which zoos can be made."""
    from zoo_folders import train_small

    return train_small(tmp_path_factory.mktemp("model") / "run")


@pytest.fixture
def person(model_run: Path, tmp_path: Path) -> Iterator[Person]:
    """Someone with a zoo of four SAEs, and an empty Hub."""
    from hub_server import LoopbackHub
    from publisher import NAMES, Person
    from zoo_folders import make_zoo

    make_zoo(tmp_path / "zoo", NAMES, model_run)
    with LoopbackHub() as hub:
        yield Person(hub, tmp_path)
        assert hub.foreign == []
