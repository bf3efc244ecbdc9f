"""Folders of SAEs with the names of the paper's grid, as a run of fastzoo leaves them, but tiny.

One real run of the embedded model is made; each SAE is that run's first one under another name, with
weights and figures of its own.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from fastzoo.saes.names import SAEName

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    *("layers=[1]", "architectures=[jumprelu]", "expansions=[2]", "evaluation.dialogues=8"),
    "evaluation.loss_dialogues=4",
    *("training.tokens=8192", "training.batch_size=512", "training.buffer_tokens=4096"),
)
WIDTH, LATENTS = 4, 8


def train_small(folder: Path, *overrides: str, layers: str = "[1]") -> Path:
    """Run the main job on very little data, in this process; the folder of its SAEs."""
    import runpy

    script = runpy.run_path(str(ROOT / "recipes" / "train.py"), run_name="fastzoo_recipe")
    with redirect_stdout(sys.stderr):
        script["main"]([*SMALL, f"layers={layers}", f"output.folder={folder}", *overrides])
    return folder


def make_zoo(folder: Path, names: Sequence[SAEName], model_run: Path) -> None:
    """Write a complete folder for each name.

    Args:
        model_run: what ``train_small`` made.
    """
    from fastzoo.core.files import read_json, write_json
    from fastzoo.results.card import render_card
    from fastzoo.results.licences import notice
    from fastzoo.saes import architecture
    from fastzoo.saes.formats import save_sae
    from fastzoo.saes.names import grid_row
    from fastzoo.saes.paper import paper_figures

    (model,) = (path.parent for path in model_run.glob("*/config.json"))
    record, figures = read_json(model / "config.json"), read_json(model / "metrics.json")
    for name in names:
        target = folder / str(name)
        target.mkdir(parents=True)
        row = grid_row(name)
        assert row is not None
        own = copy.deepcopy(record)
        own["name"] = str(name)
        own["sae"] |= {
            **{key: getattr(name, key) for key in ("architecture", "layer", "expansion", "method")},
            "d_in": WIDTH,
            "d_sae": LATENTS,
            "hook_folder": name.hook_folder,
        }
        own["base_model"] |= {"name": row.base_model, "sha": "0" * 40}
        write_json(target / "config.json", own)
        write_json(target / "metrics.json", mine := _figures(figures, name, paper_figures()))
        shutil.copy(model / "training.png", target)
        shutil.copy(model / "training_log.csv", target)
        sae = architecture(name.architecture)(WIDTH, LATENTS)
        _fill(sae, str(name))
        import torch

        save_sae(
            sae,
            target / name.hook_folder,
            layer=name.layer,
            metadata={"model_name": row.base_model},
            log_sparsity=torch.full((LATENTS,), -2.0),
        )
        (target / "README.md").write_text(render_card(own, mine), encoding="utf-8")
        if (text := notice(row.base_model)) is not None:
            (target / "NOTICE").write_text(text, encoding="utf-8")


def _figures(figures: dict[str, Any], name: SAEName, paper: dict[SAEName, Any]) -> dict[str, Any]:
    own = copy.deepcopy(figures)
    draw = random.Random(str(name))
    for subsets in own["metrics"].values():
        for cell in subsets.values():
            if isinstance(cell["value"], float):
                cell["value"] *= draw.uniform(0.5, 1.5)
    own["name"] = str(name)
    own["paper"] = vars(paper[name])
    return own


def _fill(sae: Any, seed: str) -> None:
    import torch

    generator = torch.Generator().manual_seed(random.Random(seed).getrandbits(32))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.1)


def main() -> None:
    """``python tests/zoo_folders.py OUT [COUNT]``: the grid's folders, to try a push by hand."""
    from fastzoo.saes.names import zoo_names

    out, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 240
    names = zoo_names()[:count]
    make_zoo(out / "zoo", names, train_small(out / "model"))
    print(json.dumps([str(name) for name in names]))


if __name__ == "__main__":
    main()
