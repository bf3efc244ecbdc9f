"""Folders that one process, and one thread of it, has to itself."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import filelock
import pytest

from fastzoo.core import lock
from fastzoo.core.errors import OutputError
from fastzoo.core.lock import INSIDE, folder_lock

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.2)


def silent(line: str) -> None:
    """Nobody listens."""


def free(folder: Path) -> bool:
    """Whether another thread of this process could have the folder."""
    found: list[bool] = []

    def attempt() -> None:
        try:
            with folder_lock(folder, silent):
                found.append(True)
        except OutputError:
            found.append(False)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return found[0]


HOLD = """
import pathlib, sys
from fastzoo.core.lock import folder_lock
with folder_lock(pathlib.Path(sys.argv[1]), print):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds ``a/b``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "a" / "b")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout and process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_each_lock_frees_its_own_folder_only(tmp_path: Path) -> None:
    """A pull into one folder, while a run trains in another."""
    with folder_lock(tmp_path / "run", silent):
        with folder_lock(tmp_path / "pulled", silent):
            assert not free(tmp_path / "run") and not free(tmp_path / "pulled")
        assert free(tmp_path / "pulled") and not free(tmp_path / "run")
    assert free(tmp_path / "run")


def test_of_many_threads_one_at_a_time_has_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file goes with each of them, and the next makes a new one."""
    monkeypatch.setattr(lock, "WAIT_SECONDS", 30.0)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    inside, most = [0], [0]

    def use() -> None:
        for _ in range(20):
            with folder_lock(tmp_path / "new" / "run", silent):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                (tmp_path / "new" / "run" / "file").touch()
                (tmp_path / "new" / "run" / "file").unlink()
                inside[0] -= 1

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and inside == [0]


def test_another_process_is_kept_out_until_it_ends(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    said: list[str] = []
    folder = tmp_path / "a" / "b"
    with pytest.raises(OutputError, match=r"b' is in use by a friend; wait"):
        folder_lock(folder, said.append, "a friend; wait")
    assert said == [f"'{folder}' is in use by another process, which may be ending; waiting"]
    (tmp_path / "link").symlink_to("a")
    assert not free(tmp_path / "link" / "b")
    assert holder.stdin
    holder.stdin.write("\n")
    holder.stdin.flush()
    holder.wait()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "link"]
    with folder_lock(folder, silent):
        assert folder.is_dir()


def test_what_a_killed_process_leaves_keeps_nobody_out(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "a" / ".b.lock").exists()
    with folder_lock(tmp_path / "a" / "b", silent):
        assert not free(tmp_path / "a" / "b")
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b"]


def test_it_holds_while_the_folder_is_moved_and_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with folder_lock(folder, silent):
        (folder / "recipe.yaml").touch()
        folder.rename(tmp_path / "run.old-1")
        assert not free(folder)
        folder.mkdir()
        assert not free(folder) and list(folder.iterdir()) == []
        (folder / "recipe.yaml").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *("recipe.yaml", "recipe.yaml", "run", "run.old-1")
    ]


def test_folders_that_were_made_and_stay_empty_are_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for folder in ("mine", "mine/a/b", "mine/c/d"):
        with folder_lock(tmp_path / folder, silent):
            assert (tmp_path / folder).is_dir()
            if folder.endswith("d"):
                (tmp_path / folder / "file").touch()
    assert sorted(p.name for p in (tmp_path / "mine").rglob("*")) == ["c", "d", "file"]


@pytest.mark.parametrize("name", ["run", "x" * 255])
def test_where_nothing_can_stand_beside_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if len(name) < 255:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    folder = tmp_path / name
    folder.mkdir()
    with folder_lock(folder, silent):
        assert [path.name for path in folder.iterdir()] == [INSIDE]
        assert list(tmp_path.iterdir()) == [folder] and not free(folder)
    assert list(tmp_path.rglob("*")) == [folder]


def test_a_file_system_without_locks_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, **how: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    code = errno.ENOLCK
    with folder_lock(tmp_path / "run", silent), folder_lock(tmp_path / "run", silent):
        assert (tmp_path / "run").is_dir()
    code = errno.EROFS
    with pytest.raises(OSError, match="Read-only"), ExitStack() as stack:
        stack.enter_context(folder_lock(tmp_path / "new" / "run", silent))
    assert list(tmp_path.iterdir()) == []
