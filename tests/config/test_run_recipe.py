"""Paths that a run's recipe remembers, from wherever they are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastzoo.config.run_recipe import RUN_RECIPE, remembered_path


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a run was started, with a model; it is asked for from another folder."""
    (tmp_path / "start" / "models" / "mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "start"


def run_of(folder: Path, name: str, output: str = "null") -> Path:
    folder.mkdir(parents=True)
    (folder / RUN_RECIPE).write_text(f"model: {{name: '{name}'}}\noutput: {{folder: {output}}}\n")
    return folder


@pytest.mark.parametrize(
    ("below", "output"), [("runs/mine-fast", "null"), ("out", "out"), ("a/b/c", "a/b/c/"), ("out", "./out")]
)
def test_relative_paths_begin_where_the_run_was_started(start: Path, below: str, output: str) -> None:
    run = run_of(start / below, "models/mine", output)
    assert remembered_path(run, "mine", "model", "name") == start / "models" / "mine"


def test_a_run_that_was_moved_is_asked_from_where_it_was_started(
    start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        run_of(start.parent / "kept", "models/mine", "runs/x"),
        run_of(start / "far", "models/mine", "/x"),
    ]
    for run in runs:
        gone = remembered_path(run, "mine", "model", "name")
        assert gone is not None and not gone.exists()
    monkeypatch.chdir(start)
    for run in runs:
        assert remembered_path(run, "mine", "model", "name") == Path("models/mine")


def test_absolute_paths_and_those_of_home(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(start))
    for i, name in enumerate((str(start / "models" / "mine"), "~/models/mine/")):
        run = run_of(start / "runs" / str(i), name)
        assert remembered_path(run, "mine", "model", "name") == start / "models" / "mine"


def test_what_is_no_path_of_the_record_is_none(start: Path) -> None:
    for i, name in enumerate(("org/mine", "tiny-chat", "models/other")):
        run = run_of(start / "runs" / str(i), name)
        assert remembered_path(run, "org/mine", "model", "name") is None
        assert remembered_path(run, "tiny-chat", "model", "name") is None
        assert remembered_path(run, "mine", "data", "source") is None
    assert remembered_path(start, "mine", "model", "name") is None


@pytest.mark.parametrize(
    "content", [b"\xff", b"a: [", b"7", b"model: 7", b"model: {name: [1]}", b"x" * 70_000]
)
def test_a_broken_recipe_remembers_nothing(start: Path, content: bytes) -> None:
    (start / RUN_RECIPE).write_bytes(content)
    assert remembered_path(start, "mine", "model", "name") is None
