"""A run is gone on with only by what it depends on: every file of its model and data, by content."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_jsonl
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastzoo import tiny
from fastzoo.config.reading import load_recipe
from fastzoo.core.errors import OutputError
from fastzoo.core.files import read_json, sha256_of, write_json
from fastzoo.core.signals import Stopped
from fastzoo.lm.identity import (
    config_digest,
    special_tokens_digest,
    template_digest,
    tokenizer_digest,
    weights_digest,
)
from fastzoo.training.checkpoints import checkpoint_bytes
from fastzoo.training.trainer import Trainer

SCRIPT = Path(__file__).parents[2] / "recipes" / "train.py"
train: Callable[[list[str]], None] = runpy.run_path(str(SCRIPT), run_name="recipe")["main"]

RECIPE = [
    *("model.name=model", "data.source=rows.jsonl", "evaluation.source=held.jsonl", "output.folder=out"),
    *("layers=[1]", "expansions=[2]", "architectures=[standard]", "training.tokens=8192"),
    *("training.batch_size=512", "training.buffer_tokens=2048", "evaluation.dialogues=8", "threads=2"),
]
SHARD = "model-00002-of-00002.safetensors"

pytestmark = pytest.mark.usefixtures("two_threads")


def stopped_run(place: Path, *overrides: str) -> None:
    """A run of a model in two shards, stopped after its third step."""
    shutil.copytree(tiny.MODEL, place / "model")
    AutoModelForCausalLM.from_pretrained(tiny.MODEL).save_pretrained(place / "model", max_shard_size="1MB")
    (place / "model" / "model.safetensors").unlink()
    assert (place / "model" / SHARD).exists()
    for name, path in (("rows", tiny.DIALOGUES), ("held", tiny.HELDOUT), ("text", tiny.TEXTS)):
        write_jsonl(place / f"{name}.jsonl", map(json.loads, path.read_text().splitlines()[:200]))
    step = Trainer.step

    def stopping(self: Trainer, batch: Any) -> bool:
        if self.step_number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(Trainer, "step", stopping)
        with pytest.raises(Stopped):
            train([*RECIPE, *overrides])


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fast")
    stopped_run(place)
    return place


@pytest.fixture
def place(fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run, its model and its data, in the working directory."""
    shutil.copytree(fast, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit_json(path: str, **changes: Any) -> None:
    write_json(Path(path), read_json(Path(path)) | changes)


def another_template() -> None:
    path = Path("model/chat_template.jinja")
    said = "<|im_start|>' ~ message['role']"
    assert said in path.read_text()
    path.write_text(path.read_text().replace(said, said.replace("~", "~ 'The ' ~")))


def template_in_the_configuration() -> None:
    """The same text in the other place that transformers looks in."""
    path = Path("model/chat_template.jinja")
    edit_json("model/tokenizer_config.json", chat_template=path.read_text())
    path.unlink()


def another_template_in_the_configuration() -> None:
    another_template()
    template_in_the_configuration()


def swapped_tokens() -> None:
    """Two words of the vocabulary have each other's ids."""
    tokenizer = read_json(Path("model/tokenizer.json"))
    vocabulary = tokenizer["model"]["vocab"]
    one, other = [token for token, i in vocabulary.items() if i in (200, 201)]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    write_json(Path("model/tokenizer.json"), tokenizer)


def an_added_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained("model")
    tokenizer.add_tokens(["hello"])
    tokenizer.save_pretrained("model")


def a_word_that_is_special() -> None:
    extra = read_json(Path("model/tokenizer_config.json"))["extra_special_tokens"]
    edit_json("model/tokenizer_config.json", extra_special_tokens=[*extra, "<tool>"])


def names_of_special_tokens() -> None:
    """The same tokens are special, but a template that writes ``eos_token`` ends turns with another."""
    config = read_json(Path("model/tokenizer_config.json"))
    edit_json("model/tokenizer_config.json", eos_token=config["pad_token"], pad_token=config["eos_token"])


def the_second_shard() -> None:
    tensors = load_file(f"model/{SHARD}")
    save_file({name: 1.01 * tensor for name, tensor in tensors.items()}, f"model/{SHARD}", {"format": "pt"})


def one_file_of_weights_before_the_shards() -> None:
    shutil.copy(tiny.MODEL / "model.safetensors", "model")


def another_rope() -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    edit_json("model/config.json", rope_parameters=rope)


def another_line(path: str) -> Callable[[], None]:
    def change() -> None:
        lines = Path(path).read_text().splitlines(keepends=True)
        Path(path).write_text("".join([*lines[1:], lines[0]]))

    return change


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (another_template, "model.chat_template"),
        (another_template_in_the_configuration, "model.chat_template"),
        (swapped_tokens, "model.tokenizer"),
        (an_added_token, "model.tokenizer"),
        (a_word_that_is_special, "model.tokenizer"),
        (names_of_special_tokens, "model.special_tokens"),
        (the_second_shard, "model.revision"),
        (one_file_of_weights_before_the_shards, "model.revision"),
        (another_rope, "model.config"),
        (another_line("rows.jsonl"), "data.revision"),
        (another_line("held.jsonl"), "evaluation.revision"),
    ],
)
def test_whatever_the_result_depends_on_is_refused_when_it_changed(
    place: Path, change: Callable[[], None], key: str
) -> None:
    change()
    with pytest.raises(OutputError) as caught:
        train(RECIPE)
    line = str(caught.value)
    assert f"holds another run ({key}: " in line and "--fresh" in line and line.isprintable()


def test_an_edited_evaluation_section_is_refused(place: Path) -> None:
    with pytest.raises(OutputError, match=r"evaluation\.loss_dialogues: 50 then, 3 now"):
        train([*RECIPE, "evaluation.loss_dialogues=3"])


def test_another_type_of_numbers_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``model.dtype=auto`` means another one on another device."""
    monkeypatch.setattr("fastzoo.training.run_record.dtype_on", lambda *_: "bfloat16")
    with pytest.raises(OutputError, match=r'model\.computed_in: "float32" then, "bfloat16" now'):
        train(RECIPE)


def test_what_has_no_effect_may_change(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the complete run then refuses what an unfinished one does: its records have the digests."""
    Path("model/README.md").write_text("A model.")
    edit_json("model/tokenizer_config.json", padding_side="left", model_max_length=7)
    edit_json("model/config.json", use_cache=False, transformers_version="4.0.0")
    edit_json("model/generation_config.json", max_new_tokens=5)
    text = Path("model/chat_template.jinja").read_text()
    template_in_the_configuration()
    train(RECIPE)
    assert "going on after step 3 of 16" in capsys.readouterr().err
    folder = place / "out" / "model-L1-2x-standard"
    base = read_json(folder / "config.json")["base_model"]
    tokenizer = AutoTokenizer.from_pretrained("model")
    assert base["weights"] == base["sha"] == weights_digest(place / "model")
    assert base["chat_template"] == f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    assert base["tokenizer"] == tokenizer_digest(tokenizer)
    assert base["special_tokens"] == special_tokens_digest(tokenizer)
    card = (folder / "README.md").read_text()
    shown = ("weights", "tokenizer", "chat_template", "special_tokens")
    assert all(base[key].removeprefix("sha256:") in card for key in shown)
    train(RECIPE)
    assert "is complete" in capsys.readouterr().err
    edit_json("model/tokenizer_config.json", chat_template=text.replace("~ message['role']", "~ 'a'"))
    with pytest.raises(OutputError, match=r"model\.chat_template: "):
        train(RECIPE)


def test_a_changed_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ("method=bt-p", "text.source=text.jsonl", "data.block_tokens=64")
    stopped_run(tmp_path, *recipe)
    monkeypatch.chdir(tmp_path)
    another_line("text.jsonl")()
    with pytest.raises(OutputError, match=r"data\.revision: "):
        train([*RECIPE, *recipe])


def test_a_checkpoint_is_as_large_as_was_reckoned(fast: Path) -> None:
    """By which a run is refused for lack of room."""
    folder = max((fast / "out" / "checkpoints").iterdir())
    recipe = load_recipe(fast / "out" / "recipe.yaml")
    rows = recipe.training.buffer_tokens
    least, most = (checkpoint_bytes(recipe.names(), 128, n, 4) for n in (rows // 2, rows))
    found = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert least < found < 1.15 * most  # one after a signal can have more of the buffer than its half


# --- the digests ---------------------------------------------------------------------------------


def test_one_file_has_its_own_sha256_and_a_cached_one_its_name(tmp_path: Path) -> None:
    weights = tiny.MODEL / "model.safetensors"
    assert weights_digest(tiny.MODEL) == f"sha256:{sha256_of(weights)}"
    assert weights_digest(tmp_path) is None
    blob = tmp_path / "blobs" / ("a" * 64)  # nothing there to be read
    snapshot = tmp_path / "snapshots" / ("b" * 40)
    snapshot.mkdir(parents=True)
    blob.parent.mkdir()
    blob.touch()
    (snapshot / "model.safetensors").symlink_to(blob)
    shutil.copy(tiny.MODEL / "config.json", snapshot)
    assert weights_digest(snapshot) == f"sha256:{'a' * 64}"


def test_weights_of_another_name(tmp_path: Path) -> None:
    """A configuration may name the file that is loaded."""
    shutil.copytree(tiny.MODEL, tmp_path, dirs_exist_ok=True)
    before = weights_digest(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert weights_digest(tmp_path) == before
    write_json(
        tmp_path / "config.json",
        read_json(tmp_path / "config.json") | {"transformers_weights": "other.safetensors"},
    )
    assert weights_digest(tmp_path) == f"sha256:{sha256_of(tmp_path / 'other.safetensors')}"


def test_a_tokenizer_is_the_same_after_use() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL)
    before = tokenizer_digest(tokenizer), template_digest(tokenizer)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert (tokenizer_digest(tokenizer), template_digest(tokenizer)) == before
    assert tokenizer_digest(AutoTokenizer.from_pretrained(tiny.MODEL)) == before[0]
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ tools }}"}
    assert template_digest(tokenizer) != before[1]


def test_nested_configurations_lose_what_has_no_effect(tmp_path: Path) -> None:
    def digest(**text: Any) -> str | None:
        write_json(tmp_path / "config.json", {"model_type": "x", "text_config": {"hidden_size": 8, **text}})
        return config_digest(tmp_path)

    assert digest() == digest(dtype="bfloat16", use_cache=True) != digest(rope_theta=1e6)
