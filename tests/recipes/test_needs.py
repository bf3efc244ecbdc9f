"""What a run needs only later is looked at before it begins: its trackers, and room for its files."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from conftest import own_disk

from fastzoo.config.reading import load_recipe
from fastzoo.core.errors import InputError, OutputError
from fastzoo.training.checkpoints import checkpoint_bytes, sae_bytes
from fastzoo.training.run_folder import RECIPE_FILE, Start, check_space
from fastzoo.training.trackers import TRACKERS, check_trackers

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "train.py"

# --- trackers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_missing_is_refused_before_anything_is_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for package in TRACKERS[name]:
        monkeypatch.setitem(sys.modules, package, None)  # as if there were none
        (tmp_path / package).mkdir()  # such as wandb leaves behind
    train = runpy.run_path(str(SCRIPT), run_name="recipe")["main"]
    with pytest.raises(InputError) as caught:
        train(
            [f"output.trackers=[{name}]", "model.name=./nothing", "data.source=x.jsonl", "output.folder=out"]
        )
    assert str(caught.value) == f"output.trackers: {name} is not installed; pip install {name}"
    assert not (tmp_path / "out").exists()


BROKEN = {
    "no module of its own can be imported": "import a_module_that_is_not_there",
    "its version does not fit": "raise ImportError('needs another numpy')",
    "it is empty": "",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_that_is_not_whole(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(content)
    (tmp_path / f"{name}-0.1.dist-info").mkdir()
    (tmp_path / f"{name}-0.1.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        InputError, match=rf"^output\.trackers: {name} is installed, but not whole \(.*pip install"
    ):
        check_trackers([name])


def test_a_folder_of_a_trackers_name_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("trackio"):
        pytest.skip("trackio is installed")
    (tmp_path / "trackio").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.util.find_spec("trackio")
    with pytest.raises(InputError, match="trackio is not installed"):
        check_trackers(["trackio"])


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({}, "wandb login"),
        ({"WANDB_API_KEY": "short"}, "WANDB_API_KEY"),
        ({"WANDB_MODE": "offline"}, None),
        ({"WANDB_MODE": "disabled"}, None),
    ],
)
def test_wandb_without_a_login(tmp_path: Path, env: dict[str, str], says: str | None) -> None:
    pytest.importorskip("wandb")
    code = "from fastzoo.core.exit import report_failures as r; from fastzoo.training.trackers import check_trackers"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "NETRC"))}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nr(lambda: check_trackers(['wandb']))"],
        env=clean | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), **env},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == (InputError.exit_code if says else 0), done.stderr
    assert "Traceback" not in done.stderr and len(errors) == bool(says)
    assert all(f"{says}" in line and line.endswith("or WANDB_MODE=offline") for line in errors)


# --- room -----------------------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")
WIDTH = 4096


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RECIPE_FILE).touch()
    return tmp_path / "out"


def looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch, free: float, start: Start | None = None, *more: str
) -> list[str]:
    recipe = load_recipe(None, [f"output.folder={folder}", "layers=[1,2]", "expansions=[8]", *more])
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, int(free)))
    said: list[str] = []
    check_space(recipe, start or Start(), WIDTH, "bfloat16", said.append)
    return said


def test_clearly_too_little_room_is_refused_and_the_new_run_withdrawn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(None, ["layers=[1,2]", "expansions=[8]"])
    one = checkpoint_bytes(recipe.names(), WIDTH, recipe.training.buffer_tokens // 2, 2)
    results = sum(sae_bytes(name, WIDTH) for name in recipe.names())
    assert results == len(recipe.names()) * 8 * 8 * WIDTH**2 < one
    with pytest.raises(
        OutputError, match=r"^output\.folder: .* are free at '.*out', and this run needs .* GB for a"
    ):
        looked_at(folder, monkeypatch, one + results - 1)
    assert not folder.exists()
    folder.mkdir()
    (line,) = looked_at(folder, monkeypatch, one + results)
    assert "may become full" in line and "checkpoint.keep_last=1" in line
    assert looked_at(folder, monkeypatch, 3 * one + results) == []
    assert looked_at(folder, monkeypatch, 2 * one + results, None, "checkpoint.keep_last=1") == []
    assert looked_at(folder, monkeypatch, 0, Start(complete=True)) == []


def test_what_lies_there_already_is_not_counted_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = load_recipe(None, ["layers=[1,2]", "expansions=[8]"]).names()
    for name in names[1:]:
        (folder / str(name)).mkdir()
    with pytest.raises(OutputError):
        looked_at(folder, monkeypatch, sae_bytes(names[0], WIDTH))
    assert (folder / RECIPE_FILE).exists()
    steps = load_recipe(None).training.steps
    last = type("Checkpoint", (), {"step": steps})()
    assert looked_at(folder, monkeypatch, sae_bytes(names[0], WIDTH), Start(checkpoint=last)) == []


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = own_disk("mount -t tmpfs -o size=2m none .", disk)
    command: list[Any] = [sys.executable, SCRIPT, "layers=[1]", "expansions=[8]", "architectures=[standard]"]
    done = subprocess.run(
        [*inside, *command, "output.folder=out", "training.buffer_tokens=4096"],
        cwd=disk,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert done.returncode == OutputError.exit_code, done.stderr
    assert "are free at 'out', and this run needs 4." in line and "held out" not in done.stderr


def test_the_estimate_is_that_of_a_real_run(model_run: Path) -> None:
    """Of a run's results: what checkpoints have is compared in test_identity."""
    for record in model_run.glob("*/config.json"):
        sae = json.loads(record.read_text())["sae"]
        weights = record.parent / sae["hook_folder"] / "sae_weights.safetensors"
        name = next(n for n in load_recipe(model_run / RECIPE_FILE).names() if str(n) == record.parent.name)
        assert weights.stat().st_size == pytest.approx(sae_bytes(name, sae["d_in"]), rel=0.05)
