"""The main job with its model and its dialogues on a (loopback) Hub, streamed, at pinned revisions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from hub_server import LoopbackHub, hang_up

from fastzoo import tiny
from fastzoo.lm.identity import weights_digest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "train.py"


def test_model_and_dialogues_from_the_hub(tmp_path: Path) -> None:
    rows = tiny.DIALOGUES.read_bytes().splitlines(keepends=True)[:150]
    rows[50] = b'{"messages": [{"role": "user", "content": 3}]}\n'
    model_files = {p.name: p.read_bytes() for p in tiny.MODEL.iterdir()}
    with LoopbackHub() as hub:
        model_sha = hub.add("model", "lab/Tiny-Instruct", model_files)
        data_sha = hub.add("dataset", "lab/chats", {"data/train.jsonl": b"".join(rows)})
        hub.add("dataset", "lab/chats", {"data/train.jsonl": b'{"messages": []}\n'})
        recipe = [
            *("model.name=lab/Tiny-Instruct", "data.source=lab/chats", f"data.revision={data_sha}"),
            *("layers=[1]", "architectures=[jumprelu]", "output.folder=out"),
            *("training.tokens=16384", "training.batch_size=512", "training.buffer_tokens=4096"),
            *("evaluation.dialogues=10", "data.shuffle_rows=32"),
        ]

        def run(*command: str) -> str:
            done = subprocess.run(
                [sys.executable, *command],
                cwd=tmp_path,
                env=hub.env(tmp_path / "home", PYTHONPATH=str(ROOT)),
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        run(str(SCRIPT), *recipe)
        # The held-out dialogues are those of that commit, which is not the newest; so is the model.
        template = {"chat_template.jinja": b"{{ messages[0]['content'] }}"}
        hub.add("model", "lab/Tiny-Instruct", model_files | template)
        sae = "out/tiny-L1-8x-jumprelu"
        again = run("-m", "fastzoo.cli.main", "eval", sae, "--dialogues", "1000", "--json")
        assert not hub.foreign
    figures = json.loads((tmp_path / "out" / "tiny-L1-8x-jumprelu" / "metrics.json").read_text())
    assert json.loads(again)["split"] == figures["split"]
    record = json.loads((tmp_path / "out" / "tiny-L1-8x-jumprelu" / "config.json").read_text())
    assert record["base_model"]["name"] == "lab/Tiny-Instruct"
    assert record["base_model"]["sha"] == model_sha
    assert record["base_model"]["weights"] == weights_digest(tiny.MODEL)
    assert record["training_data"]["revision"] == data_sha
    assert record["training_data"]["kind"] == "hub"
    assert record["evaluation_data"]["used"] == 10
    assert sum(record["training_data"]["skipped"].values()) >= 1
    card = (tmp_path / "out" / "tiny-L1-8x-jumprelu" / "README.md").read_text()
    assert "base_model: lab/Tiny-Instruct" in card and "- lab/chats" in card


TWICE = """
import contextlib, runpy, sys
train = runpy.run_path(sys.argv[1], run_name="recipe")["main"]
for name in ("undisturbed", "dropped"):
    with contextlib.redirect_stdout(sys.stderr):
        train([*sys.argv[2:], f"output.folder={name}"])
    print(name, flush=True)
    sys.stdin.readline()
"""


def test_dropped_connections_change_no_weight(tmp_path: Path) -> None:
    """Every file fails for longer than one piece of it is asked for again."""
    rows = tiny.DIALOGUES.read_bytes().splitlines(keepends=True)[:150]
    with LoopbackHub() as hub, (tmp_path / "stderr").open("w+") as stderr:
        files = {f"data/train-{i}.jsonl": b"".join(rows[i::3]) for i in range(3)}
        hub.add("dataset", "lab/chats", files)
        recipe = [
            *("data.source=lab/chats", "layers=[1]", "architectures=[jumprelu]"),
            *("training.tokens=16384", "training.batch_size=512", "training.buffer_tokens=4096"),
            *("evaluation.dialogues=60", "data.shuffle_rows=32"),
        ]
        with subprocess.Popen(
            [sys.executable, "-c", TWICE, str(SCRIPT), *recipe],
            cwd=tmp_path,
            env=hub.env(tmp_path / "home", PYTHONPATH=str(ROOT), FASTZOO_RETRY_SECONDS="0.01"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process:
            assert process.stdout and process.stdout.readline() == "undisturbed\n"
            met = [
                *(hub.fail(f"train-{i}", hub.cut, after=1, times=2 + i) for i in range(2)),
                hub.fail("train-2", hang_up, times=4),
            ]
            process.communicate("go on\n\n", timeout=300)
        said = (tmp_path / "stderr").read_text()
        assert process.returncode == 0, said
    undisturbed, dropped = (
        next((tmp_path / name).glob("*/*/sae_weights.safetensors")).read_bytes()
        for name in ("undisturbed", "dropped")
    )
    assert [len(requests) for requests in met] == [2, 3, 4]
    assert said.count("trying again in") == 9
    assert undisturbed == dropped


# Runs the recipes given as lines one after the other, each as its own process would.
RECIPES = """
import runpy, sys
from fastzoo.core.exit import report_failures
train = runpy.run_path(sys.argv[1], run_name="recipe")["main"]
for recipe in sys.argv[2:]:
    try:
        report_failures(lambda: train(recipe.split()))
    except SystemExit as left:
        print(f"left with {left.code}", file=sys.stderr)
"""


def test_what_is_not_on_the_hub_is_one_line(tmp_path: Path) -> None:
    cases = {
        "model.name=lab/gone data.source=lab/chats": "lab/gone",
        "data.source=lab/gone": "lab/gone",
        "data.source=lab/chats data.split=test": "test",
        "data.source=lab/chats": "no usable row",
    }
    with LoopbackHub() as hub:
        hub.add("dataset", "lab/chats", {"data/train.jsonl": b'{"messages": []}\n'})
        result = subprocess.run(
            [sys.executable, "-c", RECIPES, str(SCRIPT), *cases],
            cwd=tmp_path,
            env=hub.env(tmp_path / "home", PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    parts = re.findall(r"(.*?)^left with (\d+)$", result.stderr, re.MULTILINE | re.DOTALL)
    for said, (stderr, code) in zip(cases.values(), parts, strict=True):
        errors = [x for x in stderr.splitlines() if x.startswith("error: ")]
        assert int(code) in (3, 4, 8), result.stderr
        assert len(errors) == 1 and said in errors[0], result.stderr
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_load_sae_and_info_take_hub_references(tmp_path: Path) -> None:
    import torch

    from fastzoo.saes.formats import save_sae
    from fastzoo.saes.jumprelu import JumpReLUSAE

    sae = JumpReLUSAE(4, 8)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.uniform_(0.1, 1.0)
    expected = sae.W_dec.detach().double().sum().item()
    save_sae(sae, tmp_path / "blocks.3.hook_resid_post", layer=3)
    files = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code = (
        "import fastzoo, torch\n"
        "sae = fastzoo.load_sae('hf:lab/model-L3-2x-jumprelu')\n"
        "print(sae.architecture, float(sae.W_dec.double().sum()))"
    )
    with LoopbackHub() as hub:
        hub.add("model", "lab/model-L3-2x-jumprelu", files)
        environment = hub.env(tmp_path / "home", PYTHONPATH=str(ROOT))
        for command in (
            ["-c", code],
            ["-m", "fastzoo.cli.main", "info", "hf:lab/model-L3-2x-jumprelu", "--json"],
        ):
            result = subprocess.run(
                [sys.executable, *command],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=200,
            )
            assert result.returncode == 0, result.stderr
            if command[0] == "-c":
                kind, total = result.stdout.split()
                assert kind == "jumprelu"
                assert abs(float(total) - expected) < 1e-6
            else:
                assert json.loads(result.stdout)["layer"] == 3
        assert not hub.foreign
