"""Paths of any spelling: runs, their records and the commands on them; folders that refuse."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import TOYS_FILES, own_disk, write_jsonl

from fastzoo import load_sae, tiny
from fastzoo.config.reading import load_recipe
from fastzoo.core.errors import FastzooError, InputError, ModelError, OutputError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "train.py"
SMALL = [
    "training.tokens=16384",
    "training.batch_size=512",
    "training.buffer_tokens=4096",
    "evaluation.dialogues=12",
    "layers=[1]",
    "architectures=[jumprelu]",
    "threads=2",
]
NASTY = "-é \"q\" 'a' [b] $(x) :smile: 🙂\n\u202e\\"
OUT = NASTY + "x" * (255 - len(os.fsencode(NASTY)))
"""As long as a name can be on most file systems."""
MODEL, ROWS, LINK = "model of '\n ü", 'rows "\n é.jsonl', "link to\nmodels"

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture
def train() -> Any:
    """The recipe's main, in this process."""
    return runpy.run_path(str(SCRIPT), run_name="recipe")["main"]


def python(*arguments: str, cwd: Path, before: Sequence[str] = ()) -> Any:
    return subprocess.run(
        [*before, sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        timeout=300,
    )


def quoted(text: str) -> str:
    """A text as YAML has it, whatever is in it: JSON is YAML."""
    return json.dumps(text, ensure_ascii=False)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, its own name no UTF-8, in which one run had every path spelled as badly as can be."""
    folder = tmp_path_factory.mktemp("paths") / "here \udcff"
    try:
        folder.mkdir()
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system has no names that are not UTF-8")
    shutil.copytree(tiny.MODEL, folder / NASTY / MODEL)
    (folder / LINK).symlink_to(NASTY)
    rows = [json.loads(line) for line in tiny.DIALOGUES.read_text().splitlines()[:120]]
    write_jsonl(folder / NASTY / ROWS, rows)
    done = python(
        str(SCRIPT),
        *SMALL,
        f"output.folder={quoted(OUT)}",
        f"data.source={quoted(f'./{NASTY}/{ROWS}')}",
        f"model.name={quoted(f'{LINK}/{MODEL}')}",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return folder


NAME = "model-of-L1-8x-jumprelu"


def test_the_run_is_where_it_was_to_be_and_nothing_else_is(workplace: Path) -> None:
    assert {p.name for p in workplace.iterdir()} == {NASTY, OUT, LINK}
    assert {p.name for p in (workplace / OUT).iterdir()} == {NAME, "recipe.yaml"}


def test_records_are_valid_and_hold_no_path_of_the_machine(workplace: Path) -> None:
    folder = workplace / OUT / NAME
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".md", ".csv"):
            text = path.read_bytes().decode("utf-8")
            assert "/tmp" not in text and str(workplace.parent) not in text
            assert "link to" not in text and "x" * 100 not in text
            if path.suffix == ".json":
                json.loads(text, parse_constant=pytest.fail)
    assert "## Use it" in (folder / "README.md").read_text(encoding="utf-8")
    record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert record["base_model"]["name"] == MODEL
    assert record["training_data"]["name"] == ROWS
    again = load_recipe(workplace / OUT / "recipe.yaml")
    assert again.output.folder == OUT and again.model.name.endswith(MODEL)


def test_commands_find_the_sae_and_print_whole_lines(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    assert load_sae(f"{OUT}/{NAME}").d_sae == 1024
    # The folder that is not UTF-8 is in the path this time: what cannot be printed is escaped.
    above = workplace.parent
    found = python(
        *("-m", "fastzoo.cli.main", "list", "--local", "--json", "--folder"),
        f"{workplace.name}/{OUT}",
        cwd=above,
    )
    (row,) = json.loads(found.stdout.decode("utf-8"))
    assert row["name"] == NAME and row["path"] == f"{workplace.name}/{OUT}/{NAME}"
    listed = python(
        "-m", "fastzoo.cli.main", "list", "--local", "--folder", f"{workplace.name}/{OUT}", cwd=above
    )
    assert len(listed.stdout.decode("utf-8").splitlines()) == 2
    told = python("-m", "fastzoo.cli.main", "info", "--", f"{OUT}/{NAME}", cwd=workplace)
    lines = told.stdout.decode("utf-8").splitlines()
    assert told.returncode == 0 and all(line.isprintable() and line for line in lines)
    assert "base_model" in told.stdout.decode() and len(lines) > 20


def test_eval_of_one_sae_by_two_paths(workplace: Path) -> None:
    """Their own names do not tell them apart, so the table has the paths, brackets and all."""
    shutil.copytree(workplace / OUT, workplace / NASTY / "[/b]" / "copy")
    done = python(
        *("-m", "fastzoo.cli.main", "eval", "--dialogues", "3", "--model", f"{NASTY}/{MODEL}", "--"),
        *(f"{OUT}/{NAME}", f"{NASTY}/[/b]/copy/{NAME}"),
        cwd=workplace,
    )
    shutil.rmtree(workplace / NASTY / "[/b]")
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert "[/b]/copy" in done.stdout.decode("utf-8") and ":smile:" in done.stdout.decode("utf-8")


def test_a_folder_that_safetensors_cannot_open_says_so(workplace: Path) -> None:
    done = python("-m", "fastzoo.cli.main", "info", f"{workplace.name}/{OUT}/{NAME}", cwd=workplace.parent)
    assert done.returncode == InputError.exit_code and done.stdout == b""
    (line,) = done.stderr.decode("utf-8").splitlines()
    assert line.startswith("error: ") and line.endswith("not UTF-8; rename the folder")


# --- folders that refuse ------------------------------------------------------------------------


@pytest.fixture
def without_weights(tmp_path: Path) -> Path:
    """A model that cannot be loaded: whoever tries ends with another error."""
    shutil.copytree(tiny.MODEL, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("file", "File exists"),
        ("file/below", "Not a directory"),
        ("dangling", "cannot be written"),
        ("loop/below", "symbolic links"),
        ("x" * 256, "File name too long"),
        ("new/newer/" + "x" * 256, "File name too long"),
        ("y/" * 2500, "File name too long"),
        ("a\nb" * 86, "File name too long"),
        ("/proc/nothing", "cannot be written"),
        (".", "already holds other files"),
        ("linked", "already holds other files"),
    ],
)
def test_output_folders_that_cannot_be(
    train: Any, without_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, says: str
) -> None:
    place = tmp_path / "place"
    (place / "full").mkdir(parents=True)
    (place / "full" / "mine").touch()
    (place / "file").touch()
    (place / "dangling").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    (place / "linked").symlink_to("full")
    before = sorted(place.rglob("*"))
    monkeypatch.chdir(place)
    with pytest.raises(OutputError) as caught:
        train([*SMALL, f"model.name={without_weights}", *TOYS_FILES, f"output.folder={quoted(folder)}"])
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000 and says in message
    assert sorted(place.rglob("*")) == before


def test_folders_made_for_a_run_that_cannot_begin_are_removed(
    train: Any, without_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ModelError):
        train([*SMALL, f"model.name={without_weights}", *TOYS_FILES, f"output.folder={tmp_path}/mine/a/b/c"])
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("key", ["data.source", "text.source", "evaluation.source"])
@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x" * 300, "x" * 20),
        ("~nobody-of-this-name/a.jsonl", "a.jsonl' is not there"),
        ("loop", "loop' is not there"),
        (" ", "source: empty; give 'embedded', a file or a Hub dataset id"),
    ],
)
def test_sources_that_cannot_be(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, source: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FastzooError) as caught:
        train([*SMALL, "method=bt-p", f"{key}={quoted(source)}", "output.folder=out"])
    assert says in str(caught.value) and not (tmp_path / "out").exists()


def test_a_folder_on_a_read_only_disk(without_weights: Path, tmp_path: Path) -> None:
    """Root may write where permissions forbid it, but not where the mount does."""
    place = tmp_path / "disk"
    place.mkdir()
    inside = own_disk("mount --bind . . && mount -o remount,ro,bind .", place)
    done = python(
        *(str(SCRIPT), *SMALL, f"model.name={without_weights}", *TOYS_FILES, f"output.folder={place}/out"),
        cwd=place,
        before=inside,
    )
    assert done.returncode == OutputError.exit_code, done.stderr
    (line,) = [x for x in done.stderr.decode().splitlines() if x.startswith("error: ")]
    assert "Read-only file system" in line and b"Traceback" not in done.stderr
    assert list(place.iterdir()) == []


def test_another_model_on_the_embedded_data_is_told_whose_they_are(
    train: Any, without_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for data, said in (((), 1), (TOYS_FILES[1:], 1), (TOYS_FILES, 0)):
        with pytest.raises(ModelError):  # only now are weights asked for
            train([*SMALL, f"model.name={without_weights}", *data, f"output.folder={tmp_path}/out"])
        lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning: ")]
        assert len(lines) == said and all("'embedded' is the data of the toy tiny-chat" in x for x in lines)
