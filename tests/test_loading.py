"""SAEs find their model and their own held-out dialogues again, or ask for them in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl
from typer.testing import CliRunner
from zoo_folders import train_small

from fastzoo import tiny
from fastzoo.cli.main import app
from fastzoo.core.errors import DataError, InputError, ModelError
from fastzoo.core.files import read_json
from fastzoo.loading import Assembly, assemble
from fastzoo.results.evaluate import evaluate_together

NAME = "other-L1-2x-jumprelu"
TOY = "tiny-chat-L1-2x-jumprelu"
ROWS = [json.loads(line) for line in tiny.DIALOGUES.read_text().splitlines()[:60]]


def train(place: Path, folder: str, *overrides: str) -> Path:
    """A run of the model ``models/other`` that was started in ``place``; its SAE's folder."""
    before = Path.cwd()
    os.chdir(place)
    try:
        return place / train_small(Path(folder), "model.name=models/other", *overrides) / NAME
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where SAEs of another model than the toy were trained, all paths relative: on a file that also holds
    their evaluation dialogues (``runs/own``), and on one with others beside it (``runs/apart``)."""
    place = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny.MODEL, place / "models" / "other")
    write_jsonl(place / "rows.jsonl", ROWS)
    write_jsonl(place / "held.jsonl", ROWS[:20])
    train(place, "runs/own", "data.source=rows.jsonl", "data.max_tokens=40", "seed=7")
    train(place, "runs/apart", "data.source=./rows.jsonl", "evaluation.source=held.jsonl")
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that, to be changed; commands are given somewhere else."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return shutil.copytree(made, tmp_path / "place")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small(tmp_path_factory.mktemp("toys") / "run")


def split_of(sae: Path) -> Any:
    return read_json(sae / "metrics.json")["split"]


def loss_dialogues_of(sae: Path) -> Any:
    return read_json(sae / "config.json")["recipe"]["evaluation"]["loss_dialogues"]


def rows_of(assembly: Assembly, count: int) -> list[int]:
    sequences, _ = assembly.dialogues(count)
    return [int(s.dialogue[0]) for s in sequences]


def line_of(*arguments: str, code: int) -> str:
    """The one line of a command that fails."""
    failed = CliRunner().invoke(app, arguments)
    assert failed.exception is not None and getattr(failed.exception, "exit_code", None) == code, failed
    line = str(failed.exception)
    assert line.isprintable()
    return line


# --- the held-out dialogues ---------------------------------------------------------------------


def test_the_toys_figures_come_out_again(toys: Path) -> None:
    report = evaluate_together(assemble([toys / TOY]), 8, loss_dialogues_of(toys / TOY))
    written = read_json(toys / TOY / "metrics.json")
    assert report["split"] == written["split"]
    assert report["metrics"][TOY] == written["metrics"]


def renamed(toys: Path, folder: Path, **about: Any) -> Path:
    """The toy's SAE with these keys in the metadata of its file, and no record beside it."""
    (source,) = (toys / TOY).glob("blocks.*")
    shutil.copytree(source, folder)
    config = read_json(folder / "cfg.json")
    config["metadata"] = {"model_name": "tiny-chat", "sinks": config["metadata"]["sinks"], **about}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def test_the_stream_before_a_layer_is_that_after_the_one_before(toys: Path, tmp_path: Path) -> None:
    reports = []
    for hook in ("blocks.1.hook_resid_post", "blocks.2.hook_resid_pre", "model.layers.2.input"):
        together = assemble([renamed(toys, tmp_path / hook, hook_name=hook)])
        assert together.saes[hook][0] == 1
        reports.append(evaluate_together(together, 8, loss_dialogues_of(toys / TOY))["metrics"][hook])
    assert reports[0] == reports[1] == reports[2]
    assert reports[0]["fvu"] == read_json(toys / TOY / "metrics.json")["metrics"]["fvu"]


@pytest.mark.parametrize(
    ("about", "says"),
    [
        (
            {"hook_name": "blocks.1.hook_mlp_out"},
            "hook_name 'blocks.1.hook_mlp_out' is not the residual stream",
        ),
        ({"hook_name": "blocks.0.hook_resid_pre"}, "before the first layer"),
        (
            {"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": "blocks.1.hook_mlp_out"},
            "transcoder",
        ),
        ({"hook_name": "blocks.1.hook_resid_post", "hook_head_index": 0}, "one attention head"),
        (
            {
                "hook_name": "blocks.1.hook_resid_post",
                "model_from_pretrained_kwargs": {"checkpoint_index": 7},
            },
            "checkpoint_index is 7",
        ),
    ],
)
def test_an_sae_of_another_place_is_refused_in_one_line(
    toys: Path, tmp_path: Path, about: dict[str, Any], says: str
) -> None:
    folder = str(renamed(toys, tmp_path / "x", **about))
    for command in (("eval", folder), ("features", folder), ("info", folder)):
        assert says in line_of(*command, code=2)


def test_the_revision_of_the_model_is_the_one_that_the_files_name(toys: Path, tmp_path: Path) -> None:
    def folder(name: str, **arguments: str) -> Path:
        about = {"hook_name": "model.layers.1", "model_from_pretrained_kwargs": arguments}
        return renamed(toys, tmp_path / name, **about)

    old, new, none = folder("old", revision="v1"), folder("new", revision="v2"), folder("none")
    assert assemble([old]).section.revision == "v1"
    assert assemble([old], revision="v3").section.revision == "v3"
    assert assemble([none]).section.revision is None
    with pytest.raises(InputError, match="name v1, v2 as their model's revision; choose it with --revision"):
        assemble([old, new])


def test_the_files_say_in_which_type_the_model_ran(toys: Path) -> None:
    (folder,) = (toys / TOY).glob("blocks.*")
    dtype = read_json(toys / TOY / "config.json")["base_model"]["dtype"]
    assert read_json(folder / "cfg.json")["metadata"]["model_from_pretrained_kwargs"] == {"dtype": dtype}


@pytest.mark.parametrize("run", ["own", "apart"])
def test_another_models_figures_come_out_again(place: Path, run: str) -> None:
    """From another folder than the run was started in, by its recipe's relative paths."""
    together = assemble([place / "runs" / run / NAME])
    sae = place / "runs" / run / NAME
    report = evaluate_together(together, 8, loss_dialogues_of(sae))
    written = read_json(sae / "metrics.json")
    assert report["split"] == written["split"] and written["split"]["kind"] == "file"
    assert report["metrics"][NAME] == written["metrics"]
    assert report["base_model"]["name"] == "other"
    assert together.chat.data.max_tokens == (40 if run == "own" else 512)


def test_rows_that_were_trained_on_are_never_used(place: Path) -> None:
    """A tenth of the 60 rows was held out, in the order of the run's seed."""
    own = rows_of(assemble([place / "runs" / "own" / NAME]), 1000)
    assert len(own) == split_of(place / "runs" / "own" / NAME)["rows"] == 6
    assert own != list(range(6))
    assert len(rows_of(assemble([place / "runs" / "apart" / NAME]), 1000)) == 20


def test_blocks_of_text_leave_all_dialogues_held_out(place: Path) -> None:
    texts = write_jsonl(place / "texts.jsonl", [{"text": row["messages"][0]["content"]} for row in ROWS])
    bt_p = ("method=bt-p", f"text.source={texts}", "data.source=rows.jsonl", "data.block_tokens=32")
    train(place, "runs/text", *bt_p)
    assert len(rows_of(assemble([place / "runs" / "text" / f"{NAME}-bt-p"]), 1000)) == 60


def test_given_dialogues_and_lengths_win(place: Path) -> None:
    sae = place / "runs" / "own" / NAME
    given = assemble([sae], data=str(place / "held.jsonl"))
    assert rows_of(given, 5) == [0, 1, 2, 3, 4] and given.chat.data.max_tokens == 512
    shorter = assemble([sae], max_tokens=30)
    assert shorter.chat.data.max_tokens == 30 and len(rows_of(shorter, 1000)) == 6


def test_a_file_that_is_gone_or_another_is_told(place: Path) -> None:
    sae = place / "runs" / "own" / NAME
    write_jsonl(place / "rows.jsonl", ROWS[:-1])
    with pytest.raises(
        DataError, match=r"rows.jsonl' .*holds something else now .*give dialogues with --data"
    ):
        assemble([sae]).dialogues(3)
    (place / "rows.jsonl").unlink()
    together = assemble([sae])  # what needs no dialogues can go on
    with pytest.raises(DataError, match=r"rows.jsonl' .*not on this machine; give dialogues with --data"):
        together.dialogues(3)
    assert "give dialogues with --data" in line_of("eval", str(sae), code=DataError.exit_code)
    assert "rows.jsonl" in line_of("features", str(sae), "--latent", "1", code=DataError.exit_code)
    steer = ("steer", str(sae), "Hi", "--latent", "1", "--units", "norm", "--alpha", "1")
    assert "rows.jsonl" in line_of(*steer, code=DataError.exit_code)
    shown = CliRunner().invoke(app, ["features", str(sae), "--text", "Where is Paris?", "--json"])
    assert shown.exit_code == 0 and json.loads(shown.stdout)["base_model"]["name"] == "other"


def test_a_file_of_that_name_and_content_will_do(place: Path) -> None:
    """As after a pull: only the SAE's folder is here, which has no paths."""
    shutil.move(place / "runs" / "own" / NAME, place / NAME)
    model = str(place / "models" / "other")
    with pytest.raises(DataError, match=r"'rows.jsonl' .*not on this machine"):
        assemble([place / NAME], model_name=model).dialogues(3)
    shutil.copy(place / "rows.jsonl", Path.cwd())
    assert len(rows_of(assemble([place / NAME], model_name=model), 1000)) == 6


def test_the_toys_dialogues_are_for_the_toy(place: Path, toys: Path) -> None:
    assert assemble([toys / TOY], data="embedded").dialogues(3)[1]["name"] == "embedded:heldout.jsonl"
    with pytest.raises(InputError, match=r"--data: 'embedded' is the data of tiny-chat, .* for other; give"):
        assemble([place / "runs" / "own" / NAME], data="embedded")
    # A toy's SAE on another model: its own dialogues are no more fit for that.
    other = assemble([toys / TOY], model_name=str(place / "models" / "other"))
    with pytest.raises(InputError, match="means nothing for other; give dialogues with --data"):
        other.dialogues(3)
    # But what another model's SAE was trained and measured on stays its own.
    record = place / "runs" / "own" / NAME / "config.json"
    written = json.loads(record.read_text(encoding="utf-8"))
    toys_own = json.loads((toys / TOY / "config.json").read_text(encoding="utf-8"))
    written["evaluation_data"] = toys_own["evaluation_data"]
    written["recipe"]["data"], written["recipe"]["evaluation"] = (
        toys_own["recipe"][section] for section in ("data", "evaluation")
    )
    record.write_text(json.dumps(written), encoding="utf-8")
    own = assemble([record.parent]).dialogues(3)[1]
    assert own["name"] == "embedded:heldout.jsonl"


def test_an_sae_without_a_record_asks(place: Path, toys: Path) -> None:
    for sae in (place / "runs" / "own" / NAME, shutil.copytree(toys / TOY, place / TOY)):
        (sae / "config.json").unlink()
    with pytest.raises(InputError, match=r"do not say which dialogues .*; give dialogues with --data"):
        assemble([place / "runs" / "own" / NAME]).dialogues(3)
    assert assemble([place / TOY]).dialogues(3)[1]["kind"] == "embedded"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *(("recipe", "data", value) for value in (None, 7, {"source": ""}, {"new": 1})),
        *(("recipe", "seed", value) for value in (None, "7", -1)),
        *(("evaluation_data", "kind", value) for value in (None, "pickle")),
        *(("evaluation_data", "rows", value) for value in (None, 0, "6")),
        ("evaluation_data", "revision", None),
    ],
)
def test_records_of_any_shape(place: Path, section: str, key: str, value: Any) -> None:
    sae = place / "runs" / "own" / NAME
    record = read_json(sae / "config.json")
    record[section][key] = value
    (sae / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="do not say which dialogues"):
        assemble([sae]).dialogues(3)


def test_saes_of_several_runs(place: Path, toys: Path) -> None:
    own, apart = (place / "runs" / run / NAME for run in ("own", "apart"))
    with pytest.raises(InputError, match=r"different dialogues .*held.jsonl, rows.jsonl.*choose with --data"):
        assemble([own, apart]).dialogues(3)
    assert rows_of(assemble([own, apart], data=str(place / "held.jsonl")), 3) == [0, 1, 2]
    # The same dialogues wherever they lie, and no more than both runs held out.
    shutil.copytree(place / "runs" / "own", place / "again")
    record = read_json(place / "again" / NAME / "config.json")
    record["evaluation_data"]["rows"] = 4
    (place / "again" / NAME / "config.json").write_text(json.dumps(record))
    model = str(place / "models" / "other")
    both = rows_of(assemble([own, place / "again" / NAME], model_name=model), 1000)
    assert both == rows_of(assemble([own]), 1000)[:4]


# --- the model ----------------------------------------------------------------------------------


def test_a_model_that_is_gone_is_told(place: Path) -> None:
    sae = place / "runs" / "own" / NAME
    shutil.move(place / "models", place / "moved")
    with pytest.raises(ModelError, match=rf"{NAME}: its model, the folder '.*models/other', .*--model"):
        assemble([sae])
    assert assemble([sae], model_name=str(place / "moved" / "other")).dialogues(3)[1]["used"] == 3


def other_weights(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors = {name: tensor + 1 for name, tensor in tensors.items()}
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def other_template(model: Path) -> None:
    path = model / "chat_template.jinja"
    path.write_text(path.read_text().replace("~ message['role']", "~ 'The ' ~ message['role']"))


def other_tokens(model: Path) -> None:
    config = read_json(model / "tokenizer_config.json")
    config["extra_special_tokens"].append("<tool>")
    (model / "tokenizer_config.json").write_text(json.dumps(config))


def other_names_of_special_tokens(model: Path) -> None:
    config = read_json(model / "tokenizer_config.json")
    config["eos_token"], config["pad_token"] = config["pad_token"], config["eos_token"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))


def other_rope(model: Path) -> None:
    config = read_json(model / "config.json")
    config["rope_parameters"]["rope_theta"] = 500.0
    (model / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (other_weights, "weights"),
        (other_template, "chat template"),
        (other_tokens, "tokenizer"),
        (other_names_of_special_tokens, "special tokens"),
        (other_rope, "config"),
    ],
)
def test_another_model_in_its_folder_is_refused_unless_it_is_given(
    place: Path, capsys: pytest.CaptureFixture[str], change: Any, what: str
) -> None:
    sae, model = place / "runs" / "own" / NAME, place / "models" / "other"
    assemble([sae])
    change(model)
    line = line_of("eval", str(sae), code=ModelError.exit_code)
    said = f"{NAME} was trained on another model than other is now: {what} (sha256:"
    assert line.startswith(said) and line.endswith("give it with --model")
    assert line_of("steer", str(sae), "--latent", "1", code=ModelError.exit_code) == line
    assert "warning" not in capsys.readouterr().err
    assemble([sae], model_name=str(model))
    assert f"warning: {said}" in capsys.readouterr().err


def test_the_same_weights_from_elsewhere_are_no_others(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on a Hub model, tried on a folder that holds it."""
    sae, model = place / "runs" / "own" / NAME, place / "models" / "other"
    record = read_json(sae / "config.json")
    record["base_model"] |= {"name": "org/other", "sha": "c" * 40}
    (sae / "config.json").write_text(json.dumps(record))
    assemble([sae], model_name=str(model))
    assert "warning" not in capsys.readouterr().err
    other_weights(model)
    assemble([sae], model_name=str(model))
    assert "is now: weights (sha256:" in capsys.readouterr().err


def test_an_older_record_says_nothing_of_the_template(place: Path) -> None:
    sae = place / "runs" / "own" / NAME
    record = read_json(sae / "config.json")
    for key in ("weights", "config", "tokenizer", "chat_template", "special_tokens"):
        del record["base_model"][key]
    (sae / "config.json").write_text(json.dumps(record))
    other_template(place / "models" / "other")
    other_names_of_special_tokens(place / "models" / "other")
    assert assemble([sae]).dialogues(3)[1]["used"] == 3


def test_what_is_published_holds_no_path(place: Path) -> None:
    from fastzoo.publish.candidates import candidates

    (found,) = candidates([str(place / "runs" / "own")])
    assert "recipe.yaml" not in found.paths()
    for path in found.paths():
        content = (found.folder / path).read_bytes()
        assert b"models/other" not in content and str(place.parent).encode() not in content
