"""Twelve SAEs, from dialogues to trained weights in memory: one fastzoo run beside sae-lens.

3 layers x 2 expansions x 2 architectures of the embedded model, all on the same dialogues:

* ``fastzoo``: the parts of recipes/train.py. Dialogues are tokenised once, the model runs once, one
  buffer feeds all SAEs.
* ``sae_lens``: twelve runs of ``LanguageModelSAETrainingRunner``, one after the other, each with its
  own forward passes and buffer. Dialogues are tokenised once for all of them, by sae-lens's own
  ``pretokenize_dataset``, as its documentation advises.
* ``sae_lens_multi``: one run of ``MultiSAETrainingRunner``, with which sae-lens shares a forward
  between SAEs.

Inside the timing on every side: reading the dialogues' file, chat template and tokeniser, forward
passes, buffer, starting values, every optimiser step. Outside: imports, loading the model (once for
all), evaluation, checkpoints, saving, trackers.

Equal on every side: tokens and batch size, float32, layers, widths, learning rate and its schedule,
betas, clipping, sparsity coefficients and their warm-up, starting thresholds and decoder norms (so that
about as many latents are active), the buffer's size and how much of it is served before a refill. In sae-lens's favour: its forward stops at
the hooked layer too, its activations' scale is estimated from one batch instead of the default thousand,
its biases start at zero (fastzoo computes a geometric median per layer), and its context size and
store batch are among the fastest of those tried (``CONTEXT``, ``STORE_BATCH``).

With ``--model`` and ``--data`` on its own (not by ``run.py``): the same on a real model, at layers 4, 12 and 20, with
what fastzoo's recipes have for one, a wanted L0 and sinks skipped. sae-lens knows neither; its steps take as long at any L0.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rounds import interleave, median_seconds, ratio

from fastzoo import tiny
from fastzoo.config.reading import resolve
from fastzoo.config.recipe import EMBEDDED_MODEL, Recipe
from fastzoo.data.split import Data, open_data
from fastzoo.data.tokenizer import ChatTokenizer
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.load import find_model, load_model, load_tokenizer
from fastzoo.lm.packing import packs
from fastzoo.saes.names import SAEName
from fastzoo.training.buffer import MixingBuffer
from fastzoo.training.columns import TrainingColumns, held_out_columns
from fastzoo.training.sharding import SharedForward
from fastzoo.training.trainer import Trainer, derived_seed

CONTEXT = 256
"""sae-lens's context size: the ``block_tokens`` of recipes/tiny.yaml."""
STORE_BATCH = 8
"""Contexts per forward pass of sae-lens: 2,048 tokens."""

FORWARD_TOKENS = 131_072
"""Of each run that is compared with the model's bare forward."""


def measure(*, quick: bool) -> dict[str, Any]:
    """All figures of this benchmark; nothing where sae-lens is missing."""
    if importlib.util.find_spec("sae_lens") is None:
        print("many: sae-lens is not installed, so there is nothing to compare with", file=sys.stderr)
        return {}
    with tempfile.TemporaryDirectory() as folder, quiet():
        for variant in variants(recipe_of(Path(folder), quick=True))[2].values():
            variant()  # to warm up
        return compare(recipe_of(Path(folder), quick))


def measure_real(model: str, data: Path, tokens: int, rounds: int) -> dict[str, Any]:
    """``twelve_saes_ratio_real``, and ``train_over_forward``: of four SAEs of two layers, early and late ones."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, quiet():
        recipe = recipe_of(Path(folder), False, model, data, tokens)
        for key, layers in {"": recipe.layers[:2], "_late": recipe.layers[1:]}.items():
            used = recipe.model_dump() | {"layers": layers, "expansions": [8]}
            # As recipes/smollm2-135m.yaml, but of the usual buffer a run as short as this would read a large part ahead.
            used["training"] = {"tokens": FORWARD_TOKENS, "batch_size": 512, "buffer_tokens": 16384}
            ours = Fastzoo(resolve(used, "benchmark"))
            times = interleave(
                {"train": ours.run, "forward": ours.forward}, seconds=0, least=2, warm_up=False
            )
            found |= {
                f"train_over_forward{key}": ratio(times["forward"], times["train"]),
                f"train_over_forward{key}_tokens_per_second": {
                    name: round(FORWARD_TOKENS / median_seconds(t)) for name, t in times.items()
                },
                f"train_over_forward{key}_seconds": {name: round(s, 1) for name, s in ours.split.items()},
            }
            del ours
        if not rounds:
            return found
        twelve, theirs = Fastzoo(recipe), SAELens(recipe)
        runs = {"fastzoo": twelve.run, "sae_lens": theirs.singles}
        times = interleave(runs, seconds=0, least=rounds, warm_up=False)
    found["twelve_saes_ratio_real"] = ratio(times["sae_lens"], times["fastzoo"])
    found["twelve_saes_real"] = {
        "tokens": recipe.training.steps * recipe.training.batch_size,
        "seconds": {name: round(median_seconds(t), 1) for name, t in times.items()},
        "fastzoo_seconds": {name: round(s, 1) for name, s in twelve.split.items()},
        "l0": {"fastzoo": twelve.l0, "sae_lens": theirs.l0},
    }
    return found


def recipe_of(
    folder: Path, quick: bool, model: str | None = None, data: Path | None = None, tokens: int = 262_144
) -> Recipe:
    """The shared settings, with no more dialogues than the tokens need (about 90 each, or more)."""
    tokens = 1024 if quick else tokens
    dialogues = folder / "dialogues.jsonl"
    with (data or tiny.DIALOGUES).open(encoding="utf-8") as lines:
        count = max(tokens, FORWARD_TOKENS if data else 0) // 64
        dialogues.write_text("".join(islice(lines, count)), encoding="utf-8")
    values = {
        "model": {"name": model or EMBEDDED_MODEL},
        "layers": [4, 12, 20] if model else [0, 1, 2],
        "expansions": [1, 2] if quick else [8, 16],
        "architectures": ["standard", "jumprelu"],
        "data": {"source": str(dialogues), "max_tokens": 512},
        "preset": "quick",
        "training": {
            "tokens": tokens,
            "batch_size": 256 if quick else 1024,
            # About the share of the run that it is in recipes/tiny.yaml: what a store holds beyond
            # the last batch was read for nothing, and must not weigh more here.
            "buffer_tokens": 512 if quick else 8192,
            "jumprelu_threshold": "log",  # as in sae-lens
            "l0": 50.0 if model else None,
            "sinks": "skip" if model else "train",
        },
        "evaluation": {"dialogues": 1},
        "output": {"log_every": 4},
    }
    return resolve(values, "benchmark")


def variants(recipe: Recipe) -> tuple[Fastzoo, SAELens, dict[str, Callable[[], object]]]:
    """Both sides, and their runs by name."""
    ours, theirs = Fastzoo(recipe), SAELens(recipe)
    runs = {"fastzoo": ours.run, "sae_lens": theirs.singles, "sae_lens_multi": theirs.multi}
    return ours, theirs, runs


def compare(recipe: Recipe) -> dict[str, Any]:
    ours, theirs, runs = variants(recipe)
    times = interleave(runs, seconds=0, least=2, warm_up=False)
    return {
        "twelve_saes_ratio": ratio(times["sae_lens"], times["fastzoo"]),
        "twelve_saes_ratio_multi": ratio(times["sae_lens_multi"], times["fastzoo"]),
        "twelve_saes": {
            "tokens": recipe.training.steps * recipe.training.batch_size,
            "seconds": {name: round(median_seconds(t), 2) for name, t in times.items()},
            "fastzoo_seconds": {name: round(s, 2) for name, s in ours.split.items()},
            "l0": {"fastzoo": ours.l0, "sae_lens": theirs.l0},
        },
    }


class Fastzoo:
    """One run of fastzoo, on a model that is loaded already."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.source = find_model(recipe.model)
        self.tokenizer = load_tokenizer(self.source)
        self.model = load_model(self.source, recipe.model, torch.device("cpu"))
        self.split: dict[str, float] = {}
        """Seconds of the latest run; reading activations includes tokenising and the buffer."""
        self.l0 = 0.0
        """Active latents per token, over the latest run and all SAEs."""

    def forward(self) -> None:
        """What no run can do without: one forward of as many tokens to the last layer that is read."""
        training = self.recipe.training
        left, reader = training.steps * training.batch_size, ResidualReader(self.model)
        for columns in reader.columns(
            packs(self._open().stream, reader.pack_tokens), [max(self.recipe.layers)]
        ):
            left -= len(columns["position"])
            if left <= 0:
                return

    def _open(self) -> Data:
        recipe = self.recipe
        chat = ChatTokenizer(self.tokenizer, recipe.data, self.source.name)
        return open_data(chat, recipe.method, recipe.text, recipe.evaluation, recipe.seed)

    def run(self) -> list[Any]:
        recipe, training = self.recipe, self.recipe.training
        started = time.perf_counter()
        data = self._open()
        reader = ResidualReader(self.model, pack_tokens=recipe.model.pack_tokens)
        buffer = MixingBuffer(
            TrainingColumns(
                SharedForward(reader, [recipe.names()], 0), data.stream, training.steps * training.batch_size
            ),
            training.buffer_tokens,
            training.batch_size,
            derived_seed(recipe.seed, "buffer"),
        )
        sample = buffer.fill()
        filled = time.perf_counter()
        layers = set(recipe.layers)
        held_out = held_out_columns(reader, data.held_out, layers) if training.l0 else None
        trainer = Trainer(
            recipe.names(),
            self.source.d_model,
            training,
            sample,
            seed=recipe.seed,
            device=torch.device("cpu"),
            log_every=recipe.output.log_every,
            compute=recipe.compute,
            held_out=held_out,
        )
        stepping = 0.0
        begun = time.perf_counter()
        for batch in trainer.guarded(buffer):
            before = time.perf_counter()
            trainer.step(batch)
            stepping += time.perf_counter() - before
        saes = [learner.finished() for learner in trainer.learners]
        ended = time.perf_counter()
        if trainer.step_number != training.steps:
            raise RuntimeError(f"fastzoo took {trainer.step_number} steps of {training.steps}")
        self.split = {
            "activations": filled - started + ended - begun - stepping,
            "starting_values": begun - filled,
            "steps": stepping,
        }
        rows = [row["l0"] for learner in trainer.learners for row in learner.log]
        self.l0 = round(sum(rows) / len(rows), 1)
        return saes


class SAELens:
    """The same SAEs by sae-lens's public runners, on models that are loaded already."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.source = find_model(recipe.model)
        self.tokenizer = load_tokenizer(self.source)
        self.hooks = {layer: f"model.layers.{layer}" for layer in recipe.layers}
        self.models = {hook: self._model([hook]) for hook in self.hooks.values()}
        self.all_hooked = self._model(list(self.hooks.values()))
        self.l0 = 0.0
        """Active latents per token, over the latest twelve runs."""

    def _model(self, hooks: list[str]) -> Any:
        from sae_lens.load_model import load_model

        model: Any = load_model(
            "AutoModelForCausalLM",
            self.source.path,
            device="cpu",
            model_from_pretrained_kwargs={"dtype": torch.float32},
            hook_names=hooks,
        )
        model.model.eval().requires_grad_(False)
        return model

    def singles(self) -> list[Any]:
        """Twelve runs, one after the other."""
        from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner

        dataset = self.tokenised()
        saes = []
        for name in self.recipe.names():
            hook = self.hooks[name.layer]
            config = LanguageModelSAERunnerConfig(
                **self.settings(), sae=self.sae_config(name), hook_name=hook, verbose=False
            )
            runner = LanguageModelSAETrainingRunner(
                config, override_dataset=dataset, override_model=self.models[hook]
            )
            saes.append(runner.run())
        self.l0 = round(sum(sae.cfg.metadata.l0 for sae in saes) / len(saes), 1)
        return saes

    def multi(self) -> Any:
        """All SAEs in one run that shares its forward passes."""
        from sae_lens import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig

        names = self.recipe.names()
        config = MultiSAETrainingRunnerConfig(
            **self.settings(),
            saes={str(name): self.sae_config(name) for name in names},
            hook_names={str(name): self.hooks[name.layer] for name in names},
        )
        return MultiSAETrainingRunner(
            config, override_dataset=self.tokenised(), override_model=self.all_hooked
        ).run()

    def tokenised(self) -> Any:
        """The dialogues through the chat template, joined and cut into contexts."""
        from datasets import Dataset
        from sae_lens.config import PretokenizeRunnerConfig
        from sae_lens.pretokenize_runner import pretokenize_dataset

        lines = Path(self.recipe.data.source).read_text(encoding="utf-8").splitlines()
        config = PretokenizeRunnerConfig(
            column_name="messages",
            use_chat_formatting=True,
            context_size=CONTEXT,
            shuffle=True,
            begin_batch_token=None,
            sequence_separator_token=None,
            num_proc=1,
        )
        return pretokenize_dataset(Dataset.from_list(list(map(json.loads, lines))), self.tokenizer, config)

    def settings(self) -> dict[str, Any]:
        """What both runners are told."""
        from sae_lens.config import LoggingConfig

        training = self.recipe.training
        return {
            "model_name": self.source.path,
            "model_class_name": "AutoModelForCausalLM",
            "streaming": False,
            "prepend_bos": False,
            "context_size": CONTEXT,
            "store_batch_size_prompts": STORE_BATCH,
            "n_batches_in_buffer": max(1, training.buffer_tokens // CONTEXT),
            "training_tokens": training.steps * training.batch_size,
            "train_batch_size_tokens": training.batch_size,
            "lr": training.lr,
            "lr_end": training.lr_end,
            "lr_scheduler_name": "cosineannealing",
            "lr_warm_up_steps": training.in_steps(training.lr_warmup),
            "lr_decay_steps": training.in_steps(training.lr_decay),
            "adam_beta1": training.adam_betas[0],
            "adam_beta2": training.adam_betas[1],
            "dead_feature_window": training.dead_window,
            "feature_sampling_window": training.feature_sampling_window,
            "n_batches_for_norm_estimate": 1,
            "logger": LoggingConfig(log_to_wandb=False),
            "checkpoint_path": None,
            "output_path": None,
            "device": "cpu",
            "dtype": "float32",
        }

    def sae_config(self, name: SAEName) -> Any:
        from sae_lens import JumpReLUTrainingSAEConfig, StandardTrainingSAEConfig

        training = self.recipe.training
        common: dict[str, Any] = {
            "d_in": self.source.d_model,
            "d_sae": self.source.d_model * name.expansion,
            "apply_b_dec_to_input": False,
            "normalize_activations": "expected_average_only_in",
            "decoder_init_norm": 1.0,  # as in fastzoo: about as many latents are active
        }
        warmup = training.in_steps(training.sparsity_warmup)
        if name.architecture == "jumprelu":
            return JumpReLUTrainingSAEConfig(
                **common,
                jumprelu_init_threshold=training.jumprelu_initial_threshold,
                jumprelu_bandwidth=training.jumprelu_bandwidth,
                l0_coefficient=training.sparsity_coefficient["jumprelu"],
                l0_warm_up_steps=warmup,
            )
        return StandardTrainingSAEConfig(
            **common, l1_coefficient=training.sparsity_coefficient["standard"], l1_warm_up_steps=warmup
        )


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings or log lines of sae-lens; its runners also take over two signals."""
    import sae_lens

    logging.getLogger(sae_lens.logger.name).setLevel(logging.ERROR)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    from run import as_json, machine

    parser = argparse.ArgumentParser(
        description="SAEs of a real model: one run beside sae-lens, and the forward."
    )
    parser.add_argument("--model", required=True, help="folder")
    parser.add_argument("--data", required=True, type=Path, help="dialogues, .jsonl")
    parser.add_argument("--tokens", type=int, default=32_768, help="for each SAE")
    parser.add_argument("--rounds", type=int, default=2, help="0: without sae-lens")
    options = parser.parse_args()
    print(json.dumps(as_json(measure_real(**vars(options)), machine()), indent=1))
