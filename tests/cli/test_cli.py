"""The command line as its users type it, on a small run made here."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from fastzoo.cli.arguments import debug_first
from fastzoo.cli.main import app, main
from fastzoo.core.errors import EXIT_CODES, FastzooError, InputError, ModelError
from fastzoo.core.exit import report_failures
from fastzoo.core.text import without_secrets

ROOT = Path(__file__).parents[2]


def fastzoo(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastzoo.cli.main", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `fastzoo train` ran once."""
    folder = tmp_path_factory.mktemp("workplace")
    result = fastzoo(
        *("train", "layers=[1]", "architectures=[jumprelu]", "training.tokens=16384"),
        *("training.batch_size=512", "training.buffer_tokens=4096", "evaluation.dialogues=12"),
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    return folder


RUN = "from fastzoo.cli.main import app; app({}, standalone_mode=False)"
HEAVY = "{'torch', 'transformers', 'datasets', 'pyarrow', 'accelerate', 'matplotlib'}"
CLIENT = "| {'huggingface_hub', 'httpx2', 'rich', 'pydantic', 'jinja2'}"


@pytest.mark.parametrize(
    ("code", "more"),
    [
        ("import fastzoo", CLIENT),
        ("import fastzoo.cli.main", CLIENT),
        (RUN.format(["--help"]), CLIENT),
        (RUN.format(["list", "qwen*"]), "| {'httpx2'}"),
        (RUN.format(["info", "qwen2.5-7b-L18-8x-jumprelu"]), "| {'httpx2'}"),
        ("from fastzoo.cli.app import complete_names; complete_names('qwen')", "| {'httpx2'}"),
    ],
)
def test_nothing_heavy_is_imported(code: str, more: str, tmp_path: Path) -> None:
    heavy = f"({HEAVY} {more})"
    check = f"{code}\nimport sys; print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-c", check],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1] == "[]"


def test_list_shows_local_saes_and_the_grid(workplace: Path) -> None:
    rows = json.loads(fastzoo("list", "--json", cwd=workplace).stdout)
    assert len(rows) == 241
    assert rows[0]["name"] == "tiny-chat-L1-8x-jumprelu" and rows[0]["status"] == "local"
    assert rows[0]["l0"] > 0 and rows[0]["paper_log2_mse"] is None
    picked = json.loads(fastzoo("list", "qwen2.5-7b-L18-*-jumprelu", "--json", cwd=workplace).stdout)
    assert [r["name"] for r in picked] == ["qwen2.5-7b-L18-8x-jumprelu"]
    assert picked[0]["paper_log2_mse"] == -9.1659 and picked[0]["log2_mse"] is None
    text = fastzoo("list", "--local", cwd=workplace).stdout.splitlines()
    assert len(text) == 2 and "local" in text[1]


def test_info_of_a_local_sae_and_of_a_grid_cell(workplace: Path) -> None:
    local = json.loads(fastzoo("info", "tiny-chat-L1-8x-jumprelu", "--json", cwd=workplace).stdout)
    assert local["d_sae"] == 1024 and local["base_model"] == "tiny-chat" and local["l0"] > 0
    grid = json.loads(fastzoo("info", "llama-3.2-1b-L9-16x-standard-bt-p", "--json", cwd=workplace).stdout)
    assert grid["d_sae"] == 2048 * 16 and grid["base_model"] == "meta-llama/Llama-3.2-1B-Instruct"


def test_eval_gives_the_figures_of_the_run(workplace: Path) -> None:
    result = fastzoo("eval", "tiny-chat-L1-8x-jumprelu", "--dialogues", "12", "--json", cwd=workplace)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    saved = json.loads((workplace / "runs/tiny-chat-fast/tiny-chat-L1-8x-jumprelu/metrics.json").read_text())
    for metric in ("mse", "l0", "fvu", "ce_recovered", "delta_loss", "kl", "dead_latents"):
        for subset, figure in saved["metrics"][metric].items():
            got = found["metrics"]["tiny-chat-L1-8x-jumprelu"][metric][subset]
            assert got["value"] == pytest.approx(figure["value"], rel=1e-5), (metric, subset)
            assert got["tokens"] == figure["tokens"]
    special = found["special_latents"]["tiny-chat-L1-8x-jumprelu"]
    assert special["definition"] == saved["special_latents"]["definition"]
    tokens = saved["special_latents"]["tokens"]
    assert {t["token"] for t in tokens} == {"<|im_start|>", "<|im_end|>", "user", "assistant"}
    for token, got in zip(tokens, special["tokens"], strict=True):
        assert (got["token_id"], got["dialogues"]) == (token["token_id"], token["dialogues"])
        best, same = token["latents"][0], got["latents"][0]
        assert same["latent"] == best["latent"]
        assert same["mean_max"] == pytest.approx(best["mean_max"], rel=1e-4) and best["mean_max"]


def test_eval_on_an_own_file(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.jsonl"
    chat = [{"from": "human", "value": "Where is Paris?"}, {"from": "gpt", "value": "In France."}]
    path.write_text(json.dumps({"conversations": chat}) + "\n" + json.dumps({"x": 1}) + "\n")
    monkeypatch.chdir(workplace)
    command = ["eval", "tiny-chat-L1-8x-jumprelu", "--data", str(path), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["split"]["used"] == 1


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_eval_warns_of_an_sae_that_collapsed(tmp_path: Path, more: list[str]) -> None:
    from fastzoo.saes.formats import save_sae
    from fastzoo.saes.jumprelu import JumpReLUSAE

    folder = tmp_path / "blocks.1.hook_resid_post"
    save_sae(JumpReLUSAE(128, 8), folder, layer=1, metadata={"model_name": "tiny-chat"})
    result = CliRunner().invoke(app, ["eval", str(folder), "--dialogues", "2", *more])
    assert result.exit_code == 0
    warned = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 2 and all("the SAE has collapsed" in line for line in warned)
    assert "FVU is " in warned[0] and "all 8 latents are dead" in warned[1]
    if more:
        assert json.loads(result.stdout)["metrics"]
    else:
        assert "FVU with sinks" in result.stdout


def test_eval_measures_losses_on_some_of_the_dialogues(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    command = ["eval", NAME, "--dialogues", "6", "--loss-dialogues", "2", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["metrics"][NAME]
    assert (found["mse"]["all"]["dialogues"], found["kl"]["all"]["dialogues"]) == (6, 2)
    low, high = found["kl"]["all"]["interval"]
    assert low <= found["kl"]["all"]["value"] <= high


NAME = "tiny-chat-L1-8x-jumprelu"


def changed(value: Any, key: str, new: Any) -> Any:
    """JSON with the value at a dotted key replaced, or taken away (...)."""
    first, _, rest = key.partition(".")
    inner = changed(value[first], rest, new) if rest else new
    return {k: v for k, v in value.items() if k != first} | ({} if inner is ... else {first: inner})


@pytest.mark.parametrize(
    ("file", "key", "new"),
    [
        *(("config.json", key, ...) for key in ("sae", "recipe", "base_model", "training_data")),
        *(("config.json", key, None) for key in ("recipe.training", "base_model.name", "name")),
        ("config.json", "recipe.training.sparsity_coefficient", {}),
        ("config.json", "base_model", "text"),
        ("config.json", "base_model.name", "a\ud800\x1b[2J\nb"),
        *(("metrics.json", key, ...) for key in ("metrics", "paper", "metrics.l0.all.value")),
        *(("metrics.json", "metrics", value) for value in ([], "text", {"l0": []})),
        *(
            ("metrics.json", "metrics.l0.all.value", value)
            for value in (float("nan"), float("inf"), 10**400, True, "x", [1], {})
        ),
        ("metrics.json", "paper", [1]),
    ],
)
def test_records_of_any_shape_are_listed_and_described(
    workplace: Path, tmp_path: Path, file: str, key: str, new: Any
) -> None:
    folder = tmp_path / "runs" / NAME
    shutil.copytree(workplace / "runs" / "tiny-chat-fast" / NAME, folder)
    record = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(changed(record, key, new)))
    for arguments in (("list", "--local", "--folder", str(folder.parent)), ("info", str(folder))):
        plain = CliRunner().invoke(app, arguments)
        assert plain.exit_code == 0, plain.output
        assert all(line.isprintable() for line in plain.stdout.splitlines())
        found = CliRunner().invoke(app, [*arguments, "--json"])
        assert found.exit_code == 0, found.output
        assert "NaN" not in found.stdout and "Infinity" not in found.stdout
        assert json.loads(found.stdout)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--data", ""), "source"),
        (("--max-tokens", "513"), "at most 512"),
        (("--model", "x" * 300), "neither"),
        (("--model", "~nobody-here"), "neither"),
    ],
)
def test_options_of_eval_that_cannot_be(workplace: Path, options: tuple[str, ...], says: str) -> None:
    folder = workplace / "runs" / "tiny-chat-fast" / NAME
    failed = CliRunner().invoke(app, ["eval", str(folder), *options])
    assert isinstance(failed.exception, InputError | ModelError), failed.output
    assert says in str(failed.exception)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("info", "qwen2.5-7b-L18-8x-jumprelo"), 2, "qwen2.5-7b-L18-8x-jumprelu"),
        (("info", "qwen2.5-7b-L19-8x-jumprelu"), 2, "neither"),
        (("info", "hf:nonsense"), 2, "hf:"),
        (("eval", "no/such/folder"), 2, "no folder"),
        (("eval", "tiny-chat-L1-8x-jumprelu", "--data", "gone.jsonl"), 8, "gone.jsonl"),
        (("eval", "tiny-chat-L1-8x-jumprelu", "--model", "nowhere"), 9, "nowhere"),
        (("list", "--sort", "lg2_mse"), 2, "log2_mse"),
        (("list", "--model", "qwen2.5-7"), 2, "qwen2.5-7b"),
        (("train", "layers=[9]"), 2, "0 to 3"),
        (("train", "no-such.yaml"), 2, "no-such.yaml"),
    ],
)
def test_errors_are_one_line(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    """As the command's entry point has it; of one that loads torch, as a process has it too."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "argv", ["fastzoo", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capfd.readouterr()
    shown = [(left.value.code, out, err)]
    if "gone.jsonl" in arguments:
        result = fastzoo(*arguments, cwd=workplace)
        shown.append((result.returncode, result.stdout, result.stderr))
    for found, out, err in shown:
        assert (found, out) == (code, ""), err
        lines = err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]


def test_json_is_json_in_any_encoding(workplace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "é😀" / NAME
    shutil.copytree(workplace / "runs" / "tiny-chat-fast" / NAME, folder)
    command = ("list", "--local", "--json", "--folder", "é😀")
    result = fastzoo(*command, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert [row["path"] for row in json.loads(result.stdout)] == [f"é😀/{NAME}"]


def test_a_pipe_that_closes_early_is_no_error(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fastzoo.cli.main", "list", "--json"],  # more than a pipe holds
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    assert process.stdout.readline() == "[\n"
    process.stdout.close()
    said = process.stderr.read()
    assert (process.wait(timeout=60), said) == (0, "")


@pytest.mark.parametrize("place", ["first", "last", "environment"])
def test_debug_shows_the_traceback_too(tmp_path: Path, place: str) -> None:
    line = ["info", "hf:nonsense"]
    if place == "environment":
        result = fastzoo(*line, cwd=tmp_path, FASTZOO_DEBUG="1")
    else:
        line.insert(0 if place == "first" else 2, "--debug")
        result = fastzoo(*line, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("Traceback")
    assert result.stderr.splitlines()[-1].startswith("error: 'hf:nonsense'")


def test_after_two_hyphens_debug_is_an_argument() -> None:
    assert debug_first(["list", "--debug", "x"]) == ["--debug", "list", "x"]
    assert debug_first(["list", "--", "--debug"]) == ["list", "--", "--debug"]
    assert debug_first(["list"]) == ["list"]


def test_commands_and_options_are_suggested() -> None:
    for arguments, said in ((["lst"], "'list'"), (["list", "--sortt", "x"], "--sort")):
        failed = CliRunner().invoke(app, arguments)
        assert failed.exit_code == 2 and failed.stdout == "" and said in failed.stderr


def test_exit_codes_are_all_told() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    for code, what in EXIT_CODES.items():
        assert f"{code:>5}  {what}\n" in shown
    stack = [FastzooError]
    while stack:
        kind = stack.pop()
        assert kind.exit_code in EXIT_CODES
        stack += kind.__subclasses__()


def test_tokens_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    token = "hf_" + "aB3" * 11
    said = str(InputError(f"Illegal header value b'Bearer {token}\\x00', {token}"))
    assert "aB3" not in said and said.startswith("Illegal header value b'Bearer ***'")
    monkeypatch.setenv("HF_TOKEN", "a token of another form")
    assert str(InputError("x a token of another form y")) == "x *** y"
    for text in ("hf_hub_download()", "hf_raise_for_status", "hf:org/name", "Bearer of news?"):
        assert without_secrets(text).startswith(text[:7])
    assert without_secrets("hf_hub_download hf_xet") == "hf_hub_download hf_xet"


def test_a_fault_of_our_own_shows_its_traceback_and_no_token(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ValueError("of the header " + "authorization: Bearer " + "secret" * 3)

    with pytest.raises(SystemExit) as left:
        report_failures(fail)
    said = capsys.readouterr().err
    assert left.value.code == 1 and said.startswith("Traceback")
    assert said.endswith("ValueError: of the header authorization: Bearer ***\n")


# --- completion --------------------------------------------------------------------------------


def completed(line: str, shell: str, cwd: Path) -> list[str]:
    """What a shell is offered for the last word of a line."""
    words = line.split(" ")
    asked = {
        "_FASTZOO_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    result = fastzoo(cwd=cwd, **asked)
    assert result.returncode == 0 and result.stderr == ""
    return result.stdout.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_offered_names(tmp_path: Path, shell: str) -> None:
    here = tmp_path / "runs" / "mine" / NAME
    here.mkdir(parents=True)
    (here / "metrics.json").write_text("{}")
    offered = " ".join(completed("fastzoo info tiny", shell, tmp_path))
    assert NAME in offered and "qwen" not in offered
    offered = " ".join(completed("fastzoo pull qwen2.5-7b-L18-8x-j", shell, tmp_path))
    assert offered.count("qwen2.5-7b-L18-8x-jumprelu") == 3
    assert "list" in " ".join(completed("fastzoo li", shell, tmp_path))


def test_values_of_options_are_offered(tmp_path: Path) -> None:
    for line, offered in {
        "fastzoo list --method b": ["bt-f", "bt-p"],
        "fastzoo list --model qwen2.5-1": ["qwen2.5-1.5b"],
        "fastzoo list --sort paper": ["paper_log2_mse", "paper_log2_mse_special"],
        "fastzoo list --desc": ["--descending"],
    }.items():
        assert completed(line, "bash", tmp_path) == offered


BASH = r"""
fastzoo --install-completion > /dev/null && . ~/.bash_completions/fastzoo.sh || exit 1
complete -p fastzoo
COMP_WORDS=(fastzoo info qwen2.5-7b-L25-8x-s) COMP_CWORD=2
_fastzoo_completion fastzoo && printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_installed_into_bash(tmp_path: Path) -> None:
    command = tmp_path / "bin" / "fastzoo"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m fastzoo.cli.main \"$@\"\n")
    command.chmod(0o755)
    (tmp_path / "complete.sh").write_text(BASH)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "--norc", "complete.sh"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    function, *offered = result.stdout.splitlines()
    assert "_fastzoo_completion" in function
    stem = "qwen2.5-7b-L25-8x-standard"
    assert offered == [stem, f"{stem}-bt-f", f"{stem}-bt-p"]


# --- paths ----------------------------------------------------------------------------------------

OUTPUTS = ("steer", "tiny-chat-L1-2x-jumprelu", "Hi", "--latent", "1")
PATHS = [
    ("list", "--folder"),
    ("pull", "tiny-chat-L1-2x-topk", "--dry-run", "--local-dir"),
    *((*OUTPUTS, option) for option in ("--html", "--save", "--questions", "--judge-cache")),
]


def test_every_path_is_tried_here() -> None:
    """Typer's own type for paths knows neither ``~`` nor what no path can be, so that no option has it."""
    found = set()
    for command in app.registered_commands:
        assert command.callback is not None
        for parameter in inspect.signature(command.callback, eval_str=True).parameters.values():
            kind, *made = get_args(parameter.annotation)
            if Path in (kind, *get_args(kind)):
                assert made[0].parser is not None, f"{command.name}: {parameter}"
                found.add((command.name, made[0].default))  # of an annotation the first name
    assert found == {(words[0], words[-1]) for words in PATHS}


@pytest.mark.parametrize("words", PATHS, ids=" ".join)
@pytest.mark.parametrize("text", ["", "\udcff\0x"])
def test_what_no_path_can_be(words: tuple[str, ...], text: str) -> None:
    failed = CliRunner().invoke(app, [*words, text])
    assert isinstance(failed.exception, InputError), failed.output
    assert str(failed.exception).startswith(f"{words[-1]}: '") and "cannot be a path" in str(failed.exception)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("words", PATHS, ids=" ".join)
def test_a_path_that_is_too_long(words: tuple[str, ...]) -> None:
    failed = CliRunner().invoke(app, [*words, "x" * 5000])
    assert failed.exception is None or isinstance(failed.exception, FastzooError | SystemExit), failed


def test_a_tilde_is_the_home_folder(workplace: Path, tmp_path: Path) -> None:
    """Also where no shell has put it there, as behind ``=``."""
    home = {"HOME": str(workplace)}
    listed = fastzoo("list", "--folder=~/runs", "--local", "--json", cwd=tmp_path, **home)
    assert [row["path"] for row in json.loads(listed.stdout)] == [str(*workplace.glob("runs/*/tiny-chat-*"))]
    (workplace / "recipe.yaml").write_text("layers: [9]")
    failed = fastzoo("train", "~/recipe.yaml", cwd=tmp_path, **home)
    assert "recipe.yaml" in failed.stderr and "no recipe file" not in failed.stderr, failed.stderr
    assert "recipe: '' cannot be a path" in fastzoo("train", "", cwd=tmp_path).stderr
