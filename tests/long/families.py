"""Every family of transformers' causal language models, tiny and with random weights, against itself.

    python tests/long/families.py [--json] [FAMILY ...]

Of each: activations packed and alone, logits, training, evaluation, steering, logit lens. README.md says what
each is compared with, and holds the table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import runpy
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tiny_families import LONGEST, VARIANTS, WINDOW, families, tiny_config, tiny_model  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from fastzoo import logit_lens, steer, tiny  # noqa: E402
from fastzoo.core.errors import FastzooError  # noqa: E402
from fastzoo.data.sequences import TokenSequence  # noqa: E402
from fastzoo.data.special_tokens import SpecialTokens  # noqa: E402
from fastzoo.lm.activations import ResidualReader  # noqa: E402
from fastzoo.lm.head import logits  # noqa: E402
from fastzoo.lm.packing import packs  # noqa: E402
from fastzoo.lm.stack import hidden_of  # noqa: E402
from fastzoo.results.evaluate import evaluate  # noqa: E402

LAYER = 2
LENGTHS = [
    *(9, 4, 17, 4, 12),  # short
    *(WINDOW - 1, WINDOW, WINDOW + 1, 3, 60),  # around the window
    *(150, 6, 70, 5, 300, 20, 64, 65, 33),  # long, and long beside short
    *(LONGEST, 2, 40),
]
"""Tokens of the dialogues; packs hold 512."""

RECIPE = [
    *(f"layers=[{LAYER}]", "expansions=[2]", "architectures=[standard]", "training.tokens=2048"),
    *("training.batch_size=256", "training.buffer_tokens=1024", "training.dead_window=4"),
    *("training.feature_sampling_window=4", "evaluation.dialogues=6", "output.log_every=4", "threads=2"),
    *(f"data.source={tiny.DIALOGUES}", f"evaluation.source={tiny.HELDOUT}"),
]


def dialogues(lengths: list[int]) -> list[TokenSequence]:
    draw = np.random.default_rng(0)
    found = []
    for index, n in enumerate(lengths):
        ids = draw.integers(3, 900, n)
        place = np.arange(n, dtype=np.int32)
        found.append(TokenSequence(ids, place, np.full(n, index), np.zeros(n, bool)))
    return found


class Plain:
    """An unmodified model, one dialogue at a time, with a hook of its own on its layers."""

    def __init__(self, load: Callable[[], Any], layers: str) -> None:
        self.load, self.layers = load, layers
        self.model = load()

    @torch.no_grad()
    def forward(self, ids: Any, layer: int = LAYER, edit: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """States (T, D) after a layer, and logits (T, V); ``edit`` changes the states."""
        kept: list[torch.Tensor] = []

        def hook(module: Any, args: Any, output: Any) -> Any:
            states = hidden_of(output)
            kept.append(states[0].clone())
            if edit is None:
                return None
            states = edit(states)
            return type(output)([states, *output[1:]]) if isinstance(output, (tuple, list)) else states

        if "dynamic" in str(getattr(self.model.config, "rope_parameters", "")):
            self.model = self.load()  # it remembers the longest dialogue
        handle = self.model.get_submodule(self.layers)[layer].register_forward_hook(hook)
        try:
            out = self.model(input_ids=torch.as_tensor(np.asarray(ids))[None], use_cache=False)
        finally:
            handle.remove()
        return kept[0], out.logits[0]


def share(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far states differ, by the largest of the same token's; infinite where only one of them is NaN."""
    if not torch.isfinite(found).all():
        return float("inf")
    return ((found - wanted).abs() / wanted.abs().amax(-1, keepdim=True).clamp_min(1e-6)).max().item()


def packed(reader: ResidualReader, plain: Plain) -> float:
    """The largest difference of packed activations from those of each dialogue alone."""
    worst, sequences = 0.0, dialogues(LENGTHS)
    groups = list(packs(sequences, reader.pack_tokens))
    for group, columns in zip(groups, reader.columns(groups, [LAYER]), strict=True):
        for sequence, part in zip(group, columns[f"L{LAYER}"].split([len(s) for s in group]), strict=True):
            worst = max(worst, share(part, plain.forward(sequence.ids)[0]))
    return worst


def head(reader: ResidualReader, plain: Plain) -> float:
    """The largest difference of logits: by the head, of final states that were packed, and the model's own."""
    worst = 0.0
    for pack in reader.packs(dialogues([9, 40, 5])):
        found = logits(reader.model, reader.final_states(pack)).split(pack.lengths)
        for sequence, part in zip(pack.sequences, found, strict=True):
            worst = max(worst, share(part.float(), plain.forward(sequence.ids)[1].float()))
    return worst


def trained(folder: Path, model: Path, recipe: dict[str, Any]) -> tuple[ResidualReader, Any]:
    """A reader and an SAE after a few steps, as the recipe makes them. Raises FastzooError, and a
    RuntimeError where something was refused later than before the first step."""
    where = [f"model.name={model}", f"output.folder={folder}"]
    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stderr(nothing),
        contextlib.ExitStack() as held,
    ):
        settings, _ = recipe["read_arguments"]([*RECIPE, *where])
        run = recipe["prepare"](settings, recipe["begin"](settings), held, fresh=False)
        recipe["stream"](run)
        try:
            recipe["train"](run)
        except FastzooError as error:
            raise RuntimeError(f"while it trained: {error}") from None
    (learner,) = run.parts.trainer.learners
    return run.parts.reader, learner.finished()


def evaluated(reader: ResidualReader, plain: Plain, sae: Any) -> float:
    """The largest difference of recorded losses from those of the unmodified model, with the SAE in a hook."""
    sequences = dialogues([30, 70, 12])
    figures = evaluate(reader, {"it": (LAYER, sae)}, sequences, SpecialTokens())["it"].metrics
    own, spliced = [], []
    for s in sequences:
        targets = torch.from_numpy(s.ids[1:])
        for losses, edit in ((own, None), (spliced, lambda x: sae(x.float()))):
            found = plain.forward(s.ids, edit=edit)[1][:-1].float()
            losses.append(F.cross_entropy(found, targets, reduction="none"))
    pairs = (("ce_model", own), ("ce_reconstruction", spliced))
    return max(abs(figures[k]["all"]["value"] - float(torch.cat(x).mean())) for k, x in pairs)


def steered(reader: ResidualReader, plain: Plain, sae: Any) -> float:
    """The largest difference of steered logits from those with a manual hook."""
    (sequence,) = dialogues([40])
    with torch.no_grad(), steer(reader.model, sae, {5: 8.0}, layer=LAYER):
        found = reader.model(input_ids=torch.from_numpy(sequence.ids)[None], use_cache=False).logits[0]
    wanted = plain.forward(sequence.ids, edit=lambda x: x + 8.0 * sae.W_dec[5])[1]
    if torch.allclose(wanted, plain.forward(sequence.ids)[1]):
        return float("inf")
    return share(found.float(), wanted.float())


def lens(reader: ResidualReader, plain: Plain) -> float:
    """The share of the ten tokens of the logit lens that the model, with nothing but the direction in the
    last residual stream, does not raise most."""
    last = len(reader.layers) - 1
    directions = torch.randn(4, reader.model.config.get_text_config().hidden_size)
    found = logit_lens(reader.model, directions)
    missed = 0
    for direction, row in zip(directions, found, strict=True):
        up, down = (
            plain.forward([5], last, lambda x, d=d: torch.zeros_like(x) + 1e3 * d)[1][0]
            for d in (direction, -direction)
        )
        missed += len(set(row.topk(10).indices.tolist()) - set((up - down).topk(10).indices.tolist()))
    return missed / 40


def one(family: str, own: dict[str, Any], folder: Path, recipe: Any) -> dict[str, Any]:
    """What became of one model: its row of the table."""
    try:
        config = tiny_config(family, **own)
        source = tiny_model(config)
        source(input_ids=torch.arange(3, 40)[None], use_cache=False)
    except Exception as error:
        return {"outcome": "not built", "why": f"{type(error).__name__}: {error}"[:200]}
    row: dict[str, Any] = {"outcome": "wrong"}
    source.save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(Path(tiny.MODEL) / name, folder / "model")
    try:
        reader, sae = trained(folder / "run", folder / "model", recipe)
    except FastzooError as error:
        return {"outcome": "refused", "why": str(error).replace(str(folder), "")}
    names = {id(module): name for name, module in reader.model.named_modules()}
    load = partial(AutoModelForCausalLM.from_pretrained, folder / "model")
    plain = Plain(lambda: load().eval(), names[id(reader.layers)])
    row["packed"] = packed(reader, plain)
    row["logits"] = head(reader, plain)
    row["loss"] = evaluated(reader, plain, sae)
    row["steered"] = steered(reader, plain, sae)
    try:
        row["lens"] = lens(reader, plain)
    except FastzooError as error:
        row["lens"] = str(error)
    limits = {"packed": 1e-4, "logits": 1e-3, "loss": 1e-3, "steered": 1e-4, "lens": 0.05}
    bad = [k for k, v in limits.items() if isinstance(row[k], float) and not row[k] <= v]
    if bad:
        return row | {"why": "differs: " + ", ".join(bad)}
    return row | ({"outcome": "alone", "why": reader.alone} if reader.alone else {"outcome": "exact"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    disable_progress_bar()
    torch.set_num_threads(2)
    logging.disable(logging.ERROR)
    recipe = runpy.run_path(str(ROOT / "recipes" / "train.py"), run_name="recipe")
    cases = [(name, name, {}) for name in families()] + [(f"{f}: {n}", f, own) for f, n, own in VARIANTS]
    cases = [c for c in cases if not options.families or c[0] in options.families or c[1] in options.families]
    rows, started = {}, time.time()
    for name, family, own in cases:
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows[name] = one(family, own, Path(folder), recipe)
            except Exception as error:
                rows[name] = {"outcome": "wrong", "why": f"{type(error).__name__}: {error}"}
                if options.families:
                    traceback.print_exc()
        rows[name]["family"] = family
        if not options.json:
            print(name, rows[name], flush=True)
    counted: dict[str, Any] = {
        key: sorted(
            n
            for n, row in rows.items()
            if row["outcome"] == outcome and (n == row["family"] or key == "wrong")
        )
        for key, outcome in (
            ("exact", "exact"),
            ("alone_said", "alone"),
            ("refused_before_start", "refused"),
            ("wrong", "wrong"),
            ("not_built", "not built"),
        )
    }
    report = {"families": sum(n == r["family"] and r["outcome"] != "not built" for n, r in rows.items())} | {
        k: len(v) for k, v in counted.items()
    }
    report |= {"rows": rows, "seconds": round(time.time() - started)}
    print(json.dumps(report, indent=1))
    sys.exit(bool(counted["wrong"]))


if __name__ == "__main__":
    main()
