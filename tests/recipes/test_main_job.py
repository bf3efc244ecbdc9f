"""The main job as its users run it: recipes/train.py on the embedded default and on their own files."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TOYS_FILES, largest_file

from fastzoo import load_sae, tiny
from fastzoo.core.errors import (
    DataError,
    FastzooError,
    InputError,
    ModelError,
    NotFoundError,
    OutputError,
    TrainingError,
)
from fastzoo.core.exit import report_failures
from fastzoo.loading import open_sae

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "train.py"
SMALL = [
    "training.tokens=16384",
    "training.batch_size=512",
    "training.buffer_tokens=4096",
    "evaluation.dialogues=12",
    "output.log_every=4",
    "threads=2",
]


@pytest.fixture
def train() -> Any:
    """The recipe's main, in this process."""
    import runpy

    return runpy.run_path(str(SCRIPT), run_name="recipe")["main"]


pytestmark = pytest.mark.usefixtures("two_threads")


def run_script(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def launch(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The script through `accelerate launch`, as the README has it; fails if that fails."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--quiet"),
            *(str(SCRIPT), *SMALL, *arguments),
        ],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr
    return result


def one_error_line(said: str) -> str:
    """The single line of a failed command's error; fails if there is a traceback."""
    assert "Traceback" not in said, said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small run, by `accelerate launch` as in the README."""
    folder = tmp_path_factory.mktemp("a run with späces")
    out = folder / "out"
    result = launch(f"output.folder={out}", cwd=folder)
    header, *rows = [line for line in result.stdout.splitlines() if line.strip()]
    for column in ("L0", "MSE", "MSE special", "FVU", "FVU with sinks", "CE recovered"):
        assert column in header
    for column in ("Delta Loss", "dead", "tokens/s"):
        assert column in header
    assert [row.split()[0] for row in rows] == NAMES
    return out


NAMES = [f"tiny-chat-L{layer}-8x-{a}" for layer in (1, 2) for a in ("jumprelu", "standard")]


def test_every_sae_has_a_complete_folder(finished: Path) -> None:
    assert {p.name for p in finished.iterdir()} == {*NAMES, "recipe.yaml"}
    for name in NAMES:
        files = {str(p.relative_to(finished / name)) for p in (finished / name).rglob("*") if p.is_file()}
        hook = f"blocks.{name[11]}.hook_resid_post"
        assert files == {
            *("README.md", "config.json", "metrics.json", "training_log.csv", "training.png"),
            *(f"{hook}/{f}" for f in ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors")),
        }
        assert (finished / name / "training.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_training_went_down_and_the_log_says_so(finished: Path) -> None:
    for name in NAMES:
        rows = list(csv.DictReader((finished / name / "training_log.csv").open()))
        assert [int(r["step"]) for r in rows] == [3, 7, 11, 15, 19, 23, 27, 31]
        assert [int(r["tokens"]) for r in rows] == [512 * (int(r["step"]) + 1) for r in rows]
        assert float(rows[-1]["fvu"]) < 0.9 * float(rows[0]["fvu"])


def test_resolved_recipe_runs_again_to_the_same_bytes(finished: Path, tmp_path: Path, train: Any) -> None:
    saved = yaml.safe_load((finished / "recipe.yaml").read_text())
    assert saved["training"]["tokens"] == 16384 and saved["preset"] == "quick"
    train([str(finished / "recipe.yaml"), f"output.folder={tmp_path / 'again'}"])
    for name in NAMES:
        for path in (finished / name).glob("blocks*/*"):
            again = tmp_path / "again" / path.relative_to(finished)
            assert again.read_bytes() == path.read_bytes(), path
        assert (tmp_path / "again" / name / "metrics.json").read_text() == (
            finished / name / "metrics.json"
        ).read_text()


def test_records_hold_what_the_run_knows_and_no_path_of_the_machine(finished: Path) -> None:
    for name in NAMES:
        record = json.loads((finished / name / "config.json").read_text())
        assert record["base_model"]["sha"].startswith("sha256:")
        assert record["training_data"]["revision"] and record["training_data"]["used"] > 0
        assert record["special_tokens"].keys() and record["versions"]["torch"]
        for path in (finished / name).rglob("*"):
            if path.suffix in (".json", ".md", ".csv"):
                assert str(finished.parent) not in path.read_text()


def test_decoder_rows_have_unit_norm_and_the_scale_is_folded(finished: Path) -> None:
    loaded = open_sae(finished / NAMES[0])
    assert loaded.layer == 1 and loaded.record["sae"]["activation_scale"] != 1
    torch.testing.assert_close(loaded.sae.W_dec.norm(dim=1), torch.ones(1024), rtol=0, atol=1e-5)


def test_card_parses_on_the_hub_side_and_its_snippets_run(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import ModelCard

    folder = finished / NAMES[0]
    card = ModelCard.load(folder / "README.md")
    assert card.data.eval_results and card.data.library_name == "saelens"
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    l0 = card.data.eval_results[0]
    assert l0.metric_type == "l0_without_sinks"
    assert l0.metric_value == metrics["l0"]["without_sinks"]["value"]
    snippets = re.findall(r"```python\n(.*?)```", card.content, re.S)
    assert len(snippets) == 4
    monkeypatch.chdir(finished)
    exec("\n".join(snippets), {})
    assert "'<|im_start|>'" in capsys.readouterr().out


def test_load_by_name_from_the_runs_folder(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one").symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    assert load_sae("tiny-chat-L1-8x-jumprelu").d_sae == 1024
    with pytest.raises(NotFoundError, match="not on this machine"):
        load_sae("tiny-chat-L3-8x-jumprelu")


@pytest.mark.parametrize("method", ["bt-f", "bt-p"])
def test_block_training_does_the_same(method: str, tmp_path: Path, train: Any) -> None:
    out = tmp_path / "out"
    train([*SMALL, f"method={method}", "layers=[1]", "architectures=[jumprelu]", f"output.folder={out}"])
    record = json.loads((out / f"tiny-chat-L1-8x-jumprelu-{method}" / "config.json").read_text())
    assert record["sae"]["method"] == method
    source = "texts" if method == "bt-p" else "dialogues"
    assert record["training_data"]["name"] == f"embedded:{source}.jsonl"
    assert record["evaluation_data"]["name"] == "embedded:heldout.jsonl"


def own_rows(count: int = 120) -> list[dict[str, Any]]:
    return [json.loads(line) for line in tiny.DIALOGUES.read_text().splitlines()[:count]]


@pytest.mark.parametrize("convention", ["messages", "conversations"])
def test_own_dialogues_in_both_conventions(convention: str, tmp_path: Path, train: Any) -> None:
    rows = own_rows()
    if convention == "conversations":
        names = {"user": "human", "assistant": "gpt", "system": "system"}
        rows = [
            {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in r["messages"]]}
            for r in rows
        ]
    bad = [{"messages": []}, {"text": "x"}, {"messages": [{"role": "alien", "content": "hi"}]}]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, *bad]))
    train([*SMALL, f"data.source={path}", "layers=[1]", f"output.folder={tmp_path / 'out'}"])
    record = json.loads((tmp_path / "out" / NAMES[0] / "config.json").read_text())
    training, held = record["training_data"], record["evaluation_data"]
    assert training["name"] == "mine.jsonl" and training["epochs"] >= 1
    assert held["used"] == 12
    reasons = set(training["skipped"]) | set(held["skipped"])
    assert {"empty", "unknown role"} <= reasons
    card = (tmp_path / "out" / NAMES[0] / "README.md").read_text()
    assert all(f"{reason}: {n}" in card for reason, n in training["skipped"].items())


def test_paper_preset_learns_log_thresholds_in_raw_units(tmp_path: Path, train: Any) -> None:
    out = tmp_path / "out"
    train(
        [
            *("preset=paper", "layers=[1]", "architectures=[jumprelu]", f"output.folder={out}"),
            *("training.tokens=25600", "training.batch_size=128", "training.buffer_tokens=4096"),
            "evaluation.dialogues=12",
            *("training.lr=1e-3", "training.lr_warmup=20", "training.lr_decay=40"),
            "training.sparsity_warmup=50",
        ]
    )
    loaded = open_sae(out / "tiny-chat-L1-8x-jumprelu")
    assert loaded.record["sae"]["activation_scale"] == 1
    assert loaded.record["recipe"]["training"]["batch_size"] == 128
    threshold = loaded.sae.get_parameter("threshold")
    assert (threshold > 0).all() and threshold.std() > 0
    rows = list(csv.DictReader((out / "tiny-chat-L1-8x-jumprelu" / "training_log.csv").open()))
    assert float(rows[0]["sparsity_coefficient"]) == pytest.approx(0.01 * 9 / 50)
    assert float(rows[-1]["fvu"]) < float(rows[0]["fvu"])


# --- bad input -----------------------------------------------------------------------------------


def refused(train: Any, out: Path, *arguments: str) -> str:
    """The one-line message of a run that must be refused and leave nothing behind."""
    with pytest.raises(FastzooError) as caught:
        train([*SMALL, f"output.folder={out}", *arguments])
    assert not out.exists()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 900
    return message


def test_missing_file(train: Any, tmp_path: Path) -> None:
    message = refused(train, tmp_path / "out", "data.source=gone.jsonl")
    assert "gone.jsonl" in message and "not there" in message


def test_broken_line_in_the_middle(train: Any, tmp_path: Path) -> None:
    rows = [json.dumps(r) for r in own_rows(40)]
    rows[20] = rows[20][:-7]
    path = tmp_path / "broken.jsonl"
    path.write_text("\n".join(rows))
    message = refused(train, tmp_path / "out", f"data.source={path}")
    assert "broken.jsonl, line 21" in message


def test_no_usable_row(train: Any, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text('{"messages": []}\n{"prompt": "hi"}\n')
    message = refused(train, tmp_path / "out", f"data.source={path}")
    assert "row 0" in message or "row 1" in message


def test_model_without_chat_template(train: Any, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny.MODEL, tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    message = refused(train, tmp_path / "out", f"model.name={tmp_path / 'bare'}", *TOYS_FILES)
    assert "no chat template" in message


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("layers=[4]", "0 to 3"),
        ("model.name=nowhere", "nowhere"),
        ("training.buffer_tokens=600", "1024"),
        ("data.max_tokens=4096", "512"),
        ("metod=fast", "method"),
        ("training.lr=fast", "training.lr"),
    ],
)
def test_impossible_recipes(train: Any, tmp_path: Path, override: str, says: str) -> None:
    assert says in refused(train, tmp_path / "out", override)


def test_folder_that_holds_another_run(finished: Path, train: Any) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    with pytest.raises(OutputError, match=r"holds another run \(seed: 42 then, 43 now\)"):
        train([*SMALL, f"output.folder={finished}", "seed=43"])
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_a_complete_run_is_shown_again(
    finished: Path, train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    train([*SMALL, f"output.folder={finished}"])
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before
    shown = capsys.readouterr()
    assert "is complete" in shown.err
    assert [line.split()[0] for line in shown.out.splitlines()[1:]] == NAMES


def test_folder_that_holds_something_else(tmp_path: Path, train: Any) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for more in ([], ["--fresh"]):
        with pytest.raises(OutputError, match="already holds other files"):
            train([*SMALL, f"output.folder={tmp_path}", *more])
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_weights_of_a_pickle_are_not_loaded(train: Any, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny.MODEL, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").rename(tmp_path / "bare" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        train([*SMALL, f"output.folder={tmp_path / 'out'}", f"model.name={tmp_path / 'bare'}", *TOYS_FILES])
    assert not (tmp_path / "out").exists()


def poisoned_model(folder: Path) -> Path:
    """The tiny model with an embedding that turns to NaN: one rare token's row."""
    import shutil

    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    shutil.copytree(tiny.MODEL, folder)
    weights = load_file(folder / "model.safetensors")
    token = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("Z")
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_nan_activations_name_layer_and_step_and_keep_the_last_good_state(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = own_rows(300)
    clean = [r for r in rows if "Z" not in json.dumps(r)]
    path = tmp_path / "mine.jsonl"
    poison = {"messages": [{"role": "user", "content": "ZZZ"}, {"role": "assistant", "content": "Z"}]}
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps(r) + "\n" for r in clean[:20]))
    path.write_text("".join(json.dumps(r) + "\n" for r in [*clean[20:], poison]))
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match=r"step [1-9]\d*: layer 1: .*NaN"):
        train(
            [
                *SMALL,
                f"model.name={poisoned_model(tmp_path / 'tiny-chat-nan')}",
                f"data.source={path}",
                f"evaluation.source={held}",
                "data.shuffle=false",
                "layers=[1]",
                f"output.folder={out}",
                "training.tokens=200000",
            ]
        )
    assert {p.name for p in out.iterdir()} - {"checkpoints"} == {"recipe.yaml", "interrupted"}
    kept = out / "interrupted" / "tiny-chat-nan-L1-8x-jumprelu"
    sae = load_sae(kept)
    assert torch.isfinite(sae.W_dec).all() and len((kept / "training_log.csv").read_text()) > 200
    assert "kept the state of 2 SAEs" in capsys.readouterr().err


def test_diverging_training_stops_with_a_name(train: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step \d+: the gradient of tiny-chat-L1-8x-standard"):
        train(
            [
                *SMALL,
                "layers=[1]",
                "architectures=[standard]",
                "training.lr=1e30",
                "training.lr_end=0.0",
                "training.lr_warmup=0",
                f"output.folder={tmp_path / 'out'}",
            ]
        )


def failed(train: Any, *arguments: str) -> int:
    """The exit code of a run that must fail, as the script has it."""
    with pytest.raises(SystemExit) as left:
        report_failures(lambda: train([*SMALL, *arguments]))
    return left.value.code


def test_full_disk_is_one_line_and_keeps_what_was_complete(
    train: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A limit on file sizes makes the kernel refuse the weights: 0.6 MB and no more."""
    with largest_file(600_000):
        code = failed(train, "layers=[1]", f"output.folder={tmp_path / 'out'}")
    assert code == OutputError.exit_code
    assert "cannot be written" in one_error_line(capfd.readouterr().err)
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"recipe.yaml"}


def test_script_exit_codes_and_one_line_errors(
    train: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run_script("layers=[7]", cwd=tmp_path)
    assert result.returncode == InputError.exit_code
    assert "0 to 3" in one_error_line(result.stderr)
    gone = (f"data.source={tmp_path / 'gone.jsonl'}", f"output.folder={tmp_path / 'out'}")
    assert failed(train, *gone) == DataError.exit_code
    one_error_line(capfd.readouterr().err)
    assert list(tmp_path.iterdir()) == []
