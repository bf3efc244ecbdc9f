"""Peak memory of training at the size of Qwen2.5-0.5B, beyond what cannot be avoided.

A process of its own loads a random-weight Qwen2 of that configuration (float32, as on any CPU) as
fastzoo does, and trains 4 SAEs (2 layers, 8x, both architectures, ``paper`` preset) with the real
reader, buffer and trainer until the buffer was refilled once. Its peak resident memory is then split:

* ``libraries``: resident after the imports, before anything is loaded;
* ``model``, ``saes``, ``adam``, ``buffer``: the exact bytes of the model's and the SAEs' parameters, of
  Adam's moments, and of the rows that the buffer holds;
* ``beyond``: the rest. Activations inside the model's forward pass, gradients, the batch, temporary
  copies, and what the allocator keeps.

Then a checkpoint is written; ``checkpoint`` is how much it adds to what is resident.

The peak counts from the moment that the model is loaded: what transformers needs to load it is not
fastzoo's. Linux only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

GB = 1e9
PROC = Path("/proc/self")

QWEN = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
}
"""Shape of Qwen2.5-0.5B."""
SMALL = QWEN | {"vocab_size": 1024, "hidden_size": 56, "intermediate_size": 64, "num_hidden_layers": 4}


def measure(*, quick: bool) -> dict[str, Any]:
    """All figures of this benchmark, in GB; nothing where the system has no /proc to read."""
    if not (PROC / "clear_refs").exists():
        print("memory: needs Linux's /proc, so there is nothing to measure", file=sys.stderr)
        return {}
    # key: (batch, buffer)
    sizes = {"memory": (128, 4096), "memory_4096": (4096, 8192)}
    if quick:
        sizes = {"memory": (16, 256), "memory_4096": (64, 256)}
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), SMALL if quick else QWEN)
        for key, (batch, buffer) in sizes.items():
            parts = in_a_process(
                {"model": folder, "layers": [1, 2] if quick else [12, 18], "batch": batch, "buffer": buffer}
            )
            figures[key.replace("memory", "memory_beyond_gb")] = parts["beyond"]
            figures[f"{key}_checkpoint"] = parts.pop("checkpoint")
            figures[f"{key}_parts_gb"] = parts
    return figures


def write_model(folder: Path, shape: dict[str, int]) -> None:
    """Random weights in bfloat16, as the real model is published."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(**shape, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def in_a_process(job: dict[str, Any]) -> dict[str, float]:
    """``train`` in a fresh process, whose peak is nobody else's."""
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(here / "memory.py"), json.dumps(job)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    return json.loads(done.stdout.splitlines()[-1])


# --- in the process ---


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Steps up to the first after a refill, and where the memory went, in GB.

    From the first refill on the model runs while gradients and moments are held: the peak of a run.
    """
    import torch
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401  (else imported while loading)
    from forward import ragged_lengths, random_dialogues

    import fastzoo.training.steps.sparse_kernels  # noqa: F401  (brings numba and LLVM)
    from fastzoo.config.reading import resolve
    from fastzoo.data.sequences import ResumePoint
    from fastzoo.lm.activations import ResidualReader
    from fastzoo.lm.load import find_model, load_model
    from fastzoo.lm.packing import packs
    from fastzoo.training.buffer import MixingBuffer
    from fastzoo.training.sharding import SharedForward
    from fastzoo.training.trainer import Trainer

    steps = job["buffer"] // 2 // job["batch"] + 1
    recipe = resolve(
        {
            "model": {"name": job["model"]},
            "layers": job["layers"],
            "expansions": [8],
            "architectures": ["standard", "jumprelu"],
            "preset": "paper",
            "data": {"source": "none.jsonl"},  # activations are made below, not read
            "training": {
                "tokens": job["buffer"] + steps * job["batch"],
                "batch_size": job["batch"],
                "buffer_tokens": job["buffer"],
                "lr_warmup": 0,
                "lr_decay": 0,
                "sparsity_warmup": 0,
            },
        },
        "benchmark",
    )
    training = recipe.training
    libraries = status("VmRSS")
    source = find_model(recipe.model)
    model = load_model(source, recipe.model, torch.device("cpu"))
    (PROC / "clear_refs").write_text("5")  # the peak starts again from what is resident now

    longest = min(2048, training.buffer_tokens)
    lengths = ragged_lengths(max(4, training.tokens // 150), longest)
    dialogues = random_dialogues(lengths, model.config.vocab_size)
    reader = ResidualReader(model, pack_tokens=recipe.model.pack_tokens)
    buffer = MixingBuffer(
        SharedForward(reader, [recipe.names()], 0).columns(packs(dialogues, reader.pack_tokens)),
        training.buffer_tokens,
        training.batch_size,
        seed=0,
        position=ResumePoint,
    )
    sample = buffer.fill()
    trainer = Trainer(
        recipe.names(),
        source.d_model,
        training,
        sample,
        seed=0,
        device=torch.device("cpu"),
        log_every=1,
        compute=recipe.compute,
    )
    for batch in islice(trainer.guarded(buffer), steps):
        trainer.step(batch)
    peak = status("VmHWM")

    saes = [learner.sae for learner in trainer.learners]
    moments = [m for learner in trainer.learners for m in learner.step.moments().values()]
    parts = {
        "libraries": libraries,
        "model": held(model.parameters()),
        "saes": held(p for sae in saes for p in sae.trained_parameters().values()),
        "adam": held(tensor for pair in moments for tensor in pair),
        "buffer": held(sample.values()),
    }
    parts = {"peak": peak, **parts, "beyond": peak - sum(parts.values())}
    figures = {name: round(size / GB, 4) for name, size in parts.items()}
    return {**figures, "checkpoint": checkpoint(trainer, buffer, reader)}


def checkpoint(trainer: Any, buffer: Any, reader: Any) -> dict[str, float]:
    """GB that writing one adds to the memory, beside those of the smallest SAE; GB on the disk, seconds."""
    from fastzoo.config.recipe import CheckpointSection
    from fastzoo.training.checkpoint_schedule import CheckpointSchedule
    from fastzoo.training.checkpoints import InTraining

    with tempfile.TemporaryDirectory() as folder:
        names = [learner.name for learner in trainer.learners]
        writer = CheckpointSchedule(Path(folder), CheckpointSection(), {}, {}, [names], 0)
        writer.watch(InTraining(trainer, buffer, reader))
        trainer.step_number += 1  # none is written for a step that has one
        before = status("VmRSS")
        (PROC / "clear_refs").write_text("5")
        writer.at_end()
        figures = {
            "beyond": status("VmHWM") - before,
            "one_sae": min(held(x.sae.parameters()) for x in trainer.learners),
            "on_disk": sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()),
        }
    return {n: round(v / GB, 4) for n, v in figures.items()} | {"seconds": round(writer.seconds, 2)}


def held(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def status(key: str) -> int:
    """Bytes of resident memory: now (VmRSS), or at most so far (VmHWM)."""
    lines = (PROC / "status").read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(train(json.loads(sys.argv[1]))))
