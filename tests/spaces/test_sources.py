"""Which SAEs a page offers, and how it gets to the Hub."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import LoopbackHub
from space_pages import FOLDER, NAME, OTHER, free_port

from fastzoo.loading import open_sae
from fastzoo.steering.measured import read_measured

pytest.importorskip("gradio")

FIND = "import json, sys, sources; print(json.dumps(sources.find_saes(sys.argv[1:])))"


def find(where: Path, *wanted: str, code: int = 0, **more: str) -> Any:
    environment = os.environ | {"PYTHONPATH": str(FOLDER), "HF_HUB_OFFLINE": "1", **more}
    command = [sys.executable, "-c", FIND, *wanted]
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if not code else done.stderr.splitlines()[-1]


def test_what_is_here_comes_first_and_what_was_measured_before_the_rest(saes: Path) -> None:
    assert find(saes) == {NAME: f"runs/small/{NAME}", OTHER: f"runs/small/{OTHER}"}
    assert find(saes, "runs/small") == find(saes)
    assert find(saes, f"runs/small/{OTHER}", NAME) == {OTHER: f"runs/small/{OTHER}", NAME: NAME}


def test_sources_that_cannot_be(saes: Path, tmp_path: Path) -> None:
    shutil.copytree(saes / "runs", tmp_path / "runs")
    shutil.copytree(saes / "runs" / "small" / NAME, tmp_path / "again" / NAME)
    assert "is given twice" in find(tmp_path, f"runs/small/{NAME}", f"again/{NAME}", code=1)
    assert "no folder 'nothing/here'" in find(tmp_path, "nothing/here", code=1)


def test_without_any_sae_one_of_the_toy_is_trained(tmp_path: Path) -> None:
    small = "training.tokens=8192"
    quickly = f"sources.TRAINED.append({small!r}) or sources.MEASURED.update(candidates=4, dialogues=20) or "
    script = FIND.replace("sources.find", quickly + "sources.find")
    environment = os.environ | {"PYTHONPATH": str(FOLDER), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "no SAE here: one of the embedded toy model is trained" in done.stderr
    assert json.loads(done.stdout) == {
        "tiny-chat-L2-8x-jumprelu": "runs/tiny-chat-fast/tiny-chat-L2-8x-jumprelu"
    }
    (kept,) = read_measured(open_sae(tmp_path / "runs" / "tiny-chat-fast" / "tiny-chat-L2-8x-jumprelu"))
    assert kept.title == "French" and kept.questions == 24


def fastzoo(where: Path, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastzoo.cli.main", *arguments]
    return subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, timeout=300)


def test_push_makes_the_space_and_brings_it_up_to_date(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        env = hub.env(tmp_path)
        first = fastzoo(tmp_path, "space", "push", "--namespace", "org", "--sae", "hf:org/one", env=env)
        assert first.returncode == 0, first.stderr
        _, files = hub.files(hub.repos["space", "org/fastzoo"], "main")
        for path in FOLDER.glob("*.*"):
            assert files[path.name] == path.read_bytes()
        assert files["saes.txt"] == b"hf:org/one\n"
        again = fastzoo(tmp_path, "space", "push", "--namespace", "org", "--sae", "hf:org/one", env=env)
        assert again.returncode == 0 and "(unchanged)" in again.stdout
        back = fastzoo(tmp_path, "space", "push", "--namespace", "org", env=env)
        assert (
            back.returncode == 0
            and hub.files(hub.repos["space", "org/fastzoo"], "main")[1]["saes.txt"] == b""
        )
        lost = fastzoo(tmp_path, "space", "--sae", "hf:a/b", "push", "--namespace", "org", env=env)
        assert lost.returncode == 2 and "options of push come after it" in lost.stderr
        for wrong, said in (
            (["--namespace", "o/x"], "is not a name that the Hub takes"),
            (["--namespace", "org", "--sae", "runs/x"], "runs/x"),
            (["--namespace", "org", "--sae", "hf:../x"], "is not a repository's name"),
        ):
            done = fastzoo(tmp_path, "space", "push", *wrong, env=env)
            assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
        assert not hub.foreign


def test_command_line_faults(tmp_path: Path, saes: Path) -> None:
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    for arguments, code, said in (
        (["--sae", "nothing/here"], 2, "no folder 'nothing/here'"),
        (["--sae", "tiny-chat-L9-8x-jumprelu"], 3, "tiny-chat-L9-8x-jumprelu"),
        (["--port", "0"], 2, "--port"),
    ):
        done = fastzoo(saes, "space", "--no-browser", *arguments, env=env)
        assert done.returncode == code and said in done.stderr, done.stderr
    done = fastzoo(saes, "space", "--no-browser", env=env | {"GRADIO_SERVER_PORT": "abc"})
    assert done.returncode == 2 and "GRADIO_SERVER_PORT is not a port's number" in done.stderr
    import socket

    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = fastzoo(saes, "space", "--no-browser", "--port", str(port), env=env)
        assert done.returncode == 2 and "--port" in done.stderr.splitlines()[-1]


def test_without_gradio_the_line_says_what_to_install(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['gradio'] = None; import fastzoo.cli.main as m; sys.argv = ['fastzoo', 'space']; m.main()"
    done = subprocess.run([sys.executable, "-c", hide], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'fastzoo[space]'" in done.stderr
    assert importlib.util.find_spec("gradio") is not None
