"""The wheel: built, installed into an environment of its own, used outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

from gradio_client import Client
from space_pages import free_port, serving

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=clean, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_wheel_outside_the_checkout(tmp_path: Path) -> None:
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT),
        cwd=tmp_path,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in (
        *("fastzoo/py.typed", "fastzoo/cards/sae.md.j2", "fastzoo/recipes/train.py"),
        *("fastzoo/recipes/tiny.yaml", "fastzoo/config/presets/paper.yaml", "fastzoo/saes/paper_mse.csv"),
        *("fastzoo/tiny/tiny-chat/model.safetensors", "fastzoo/tiny/data/dialogues.jsonl"),
        *("fastzoo/tiny/build.py", "fastzoo/recipes/accelerate/cpu.yaml"),
        "fastzoo/saes/paper_special_token_features.csv",
        *("fastzoo/spaces/steering/app.py", "fastzoo/spaces/steering/style.css"),
    ):
        assert needed in names
    assert not [n for n in names if n.startswith(("tests/", "spaces/"))]

    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel),
        cwd=tmp_path,
    )
    # Dependencies come from the environment of the tests; an editable fastzoo there stays unseen,
    # since .pth files are not followed from a .pth file.
    site = next(home.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    outside = tmp_path / "outside"
    outside.mkdir()
    where = run(python, "-c", "import fastzoo; print(fastzoo.__file__)", cwd=outside)
    assert Path(where.strip()).is_relative_to(home)

    small = ("training.tokens=8192", "training.batch_size=512", "training.buffer_tokens=4096")
    run(
        *(home / "bin" / "fastzoo", "train", *small, "layers=[1]", "architectures=[standard]"),
        "evaluation.dialogues=8",
        cwd=outside,
    )
    rows = json.loads(run(home / "bin" / "fastzoo", "list", "tiny*", "--json", cwd=outside))
    assert [row["name"] for row in rows] == ["tiny-chat-L1-8x-standard"]
    card = outside / "runs" / "tiny-chat-fast" / "tiny-chat-L1-8x-standard" / "README.md"
    assert "## Figures" in card.read_text()

    port = free_port()
    command = [home / "bin" / "fastzoo", "space", "--no-browser", "--port", str(port)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    with serving(command, port, cwd=outside, env=environment) as address:
        page = Client(address, verbose=False)
        assert page.predict(api_name="/saes") == ["tiny-chat-L1-8x-standard"]
        found = page.predict("tiny-chat-L1-8x-standard", 0, 5.0, "Where is Paris?", api_name="/steer")
        assert found["unsteered"] == "Paris is in France."
