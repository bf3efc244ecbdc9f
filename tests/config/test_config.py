"""Recipes: what is accepted, and what is refused in one line that says how to put it right."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fastzoo.config.reading import load_recipe, preset_values, resolve
from fastzoo.config.recipe import PRESETS, Recipe, TrainingSection
from fastzoo.config.recipe_checks import check_against_model, check_sizes, doubts
from fastzoo.core.errors import InputError
from fastzoo.core.files import resource
from fastzoo.core.strict_yaml import LONGEST, read_yaml
from fastzoo.saes.names import zoo_names

SMALL = "layers: [1]\nexpansions: [8]\narchitectures: [standard]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def load(folder: Path, text: str = SMALL, *overrides: str) -> Recipe:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def refused(call: Any, *mentions: str) -> str:
    """The message: one printable line that has all of ``mentions``."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable(), message
    for mention in mentions:
        assert mention in message, message
    return message


# --- what is accepted ---------------------------------------------------------------------------


def test_without_a_file_the_embedded_recipe_runs() -> None:
    run = load_recipe(None)
    assert run.model.name == "tiny-chat"
    assert run.data.source == "embedded"
    assert load_recipe(resource("recipes") / "tiny.yaml") == run


@pytest.mark.parametrize("path", [None, resource("recipes") / "tiny.yaml"])
def test_of_the_embedded_recipe_another_model_takes_what_fits_any(path: Path | None) -> None:
    toy, quick = load_recipe(path), preset_values("quick")
    given = ("model.name=org/Model", "data.source=a/b", "training.tokens=5e6")
    run = load_recipe(path, given)
    assert (run.layers, run.expansions, run.architectures) == (toy.layers, toy.expansions, toy.architectures)
    assert (run.data.max_tokens, run.data.block_tokens) == (None, None)
    assert toy.data.block_tokens == 256 and toy.training.batch_size == 1024
    assert run.training.batch_size == quick["batch_size"] and run.training.tokens == 5_000_000
    assert run.training.dead_window == quick["dead_window"] and run.evaluation.dialogues == 200
    assert load_recipe(path, ["model.name=tiny-chat"]) == toy


def test_a_recipe_of_ones_own_keeps_all_for_another_model(folder: Path) -> None:
    text = SMALL + "data: {max_tokens: 100}\ntraining: {batch_size: 64}\n"
    run = load(folder, text, "model.name=org/Model", "data.source=a/b")
    assert run.data.max_tokens == 100 and run.training.batch_size == 64


def test_defaults_preset_file_and_overrides_in_this_order(folder: Path) -> None:
    quick, paper = preset_values("quick"), preset_values("paper")
    assert load(folder).training.lr == quick["lr"] != paper["lr"]
    text = SMALL + "preset: paper\n"
    assert load(folder, text).training.lr == paper["lr"]
    text += "training: {lr: 0.5, sparsity_coefficient: {jumprelu: 7}}\n"
    run = load(folder, text)
    assert run.training.lr == 0.5
    assert run.training.batch_size == paper["batch_size"]
    # A part of a nested section changes that part only.
    assert run.training.sparsity_coefficient["jumprelu"] == 7
    assert run.training.sparsity_coefficient["standard"] == paper["sparsity_coefficient"]["standard"]
    run = load(folder, text, "training.lr=0.25", "training.sparsity_coefficient.standard=2")
    assert run.training.lr == 0.25
    assert run.training.sparsity_coefficient["standard"] == 2
    assert run.training.sparsity_coefficient["jumprelu"] == 7
    assert load(folder, text, "preset=quick").training.batch_size == quick["batch_size"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_data_that_sets_every_training_value(name: str) -> None:
    values = preset_values(name)
    assert set(values) == set(TrainingSection.model_fields)
    assert TrainingSection.model_validate(values).model_dump() == values
    path = Path(__file__).parents[2] / "fastzoo" / "config" / "presets" / f"{name}.yaml"
    assert yaml.safe_load(path.read_text(encoding="utf-8")).keys() == values.keys()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("1e6", 10**6),
        ("1E6", 10**6),
        ("4.5e6", 4_500_000),
        ("4.5e+6", 4_500_000),
        ("1_000_000", 10**6),
        ("1000000", 10**6),
    ],
)
def test_integers_with_an_exponent(folder: Path, text: str, tokens: int) -> None:
    for run in (
        load(folder, SMALL + f"training: {{tokens: {text}}}\n"),
        load(folder, SMALL, f"training.tokens={text}"),
    ):
        assert run.training.tokens == tokens
        assert isinstance(run.training.tokens, int)


@pytest.mark.parametrize("text", ["3e-4", "3.0e-4", "0.0003", "3E-4", ".3e-3"])
def test_floats_with_an_exponent(folder: Path, text: str) -> None:
    assert load(folder, SMALL, f"training.lr={text}").training.lr == pytest.approx(3e-4)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("layers=[1, 2]", lambda r: r.layers == [1, 2]),
        ("architectures=[standard,jumprelu]", lambda r: r.architectures[1] == "jumprelu"),
        ("method=bt-f", lambda r: r.method == "bt-f"),
        ("data.shuffle=false", lambda r: r.data.shuffle is False),
        ("data.source=a=b.jsonl", lambda r: r.data.source == "a=b.jsonl"),
        ("data.revision='1234567'", lambda r: r.data.revision == "1234567"),
        ("model.revision=null", lambda r: r.model.revision is None),
        ("seed=0", lambda r: r.seed == 0),
        ("training.lr_warmup=100", lambda r: r.training.in_steps(r.training.lr_warmup) == 100),
    ],
)
def test_overrides(folder: Path, override: str, value: Any) -> None:
    assert value(load(folder, SMALL, override))


def test_names_and_folder_of_a_run(folder: Path) -> None:
    text = "model: {name: Qwen/Qwen2.5-0.5B-Instruct}\nlayers: [4, 12]\nexpansions: [8, 16]\n"
    text += "data: {source: a/b}\ntext: {source: a/c}\n"
    run = load(folder, text + "architectures: [standard, jumprelu]\nmethod: bt-p\n")
    names = [str(name) for name in run.names()]
    assert len(names) == len(set(names)) == 8
    assert names[0] == "qwen2.5-0.5b-L4-8x-standard-bt-p"
    assert names[-1] == "qwen2.5-0.5b-L12-16x-jumprelu-bt-p"
    assert run.folder == Path("runs/qwen2.5-0.5b-bt-p")
    assert load(folder, SMALL, "output.folder=there").folder == Path("there")
    assert load(folder, SMALL, "output.folder=~/there").folder == Path.home() / "there"
    assert load(folder, SMALL, "output.folder=~nobody-here").folder == Path("~nobody-here")


# --- round trip ---------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_a_resolved_recipe_reads_back_as_itself(folder: Path, preset: str) -> None:
    run = load(folder, SMALL, f"preset={preset}", "training.lr=1.5e-02", "seed=9")
    again = load(folder, run.to_yaml())
    assert again == run
    assert again.to_yaml() == run.to_yaml()


@pytest.mark.parametrize(
    "text", ["1e6", "1234e56", "007", "1.5", "true", "null", "~", "a: b", "yes", "2024-01-01", "é"]
)
def test_texts_that_look_like_something_else_read_back_as_texts(folder: Path, text: str) -> None:
    values = {"layers": [1], "expansions": [8], "architectures": ["standard"]}
    values |= {"data": {"source": "d.jsonl", "revision": text, "subset": text}}
    run = resolve(values, "test")
    assert load(folder, run.to_yaml()) == run


@given(
    revision=st.text(st.characters(codec="utf-8"), min_size=1, max_size=12),
    lr=st.floats(1e-12, 1e3),
    tokens=st.integers(10**6, 10**15),
    warmup=st.floats(0, 0.5) | st.integers(1, 20),
    layers=st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
)
def test_any_resolved_recipe_reads_back_as_itself(
    revision: str, lr: float, tokens: int, warmup: float, layers: list[int]
) -> None:
    values: dict[str, Any] = {"layers": layers, "expansions": [8], "architectures": ["standard"]}
    values["data"] = {"revision": revision}
    values["training"] = {"lr": lr, "lr_end": 0.0, "tokens": tokens, "lr_warmup": warmup}
    run = resolve(values, "test")
    assert resolve(read_yaml(run.to_yaml(), "again"), "again") == run


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "mentions"),
    [
        ("layer: 3", ["unknown key 'layer'", "3", "Did you mean layers"]),
        ("trainig: {lr: 1}", ["unknown key 'trainig'", "Did you mean training"]),
        ("training: {lrr: 7}", ["'training.lrr'", "value 7", "Did you mean lr"]),
        ("data: {sorce: x.jsonl}", ["'data.sorce'", "x.jsonl", "Did you mean source"]),
        (
            "training: {sparsity_coefficient: {jumprelo: 3}}",
            ["'training.sparsity_coefficient.jumprelo'", "Did you mean jumprelu"],
        ),
        ("methud: fast", ["'methud'", "Did you mean method"]),
        ("method: fst", ["method", "'fst'", "fast, bt-f, bt-p", "Did you mean fast"]),
        ("preset: papr", ["preset", "'papr'", "Did you mean paper"]),
        ("model: {dtype: float16}", ["model.dtype", "'float16'", "float32"]),
        ("seed: soon", ["seed", "'soon'", "integer"]),
        ("seed: 1.5", ["seed", "1.5", "integer"]),
        ("seed: true", ["seed", "True", "integer"]),
        ("seed: -1", ["seed", "-1", "greater than or equal to 0"]),
        ("layers: 4", ["layers", "4", "list", "layers=[4]"]),
        ("layers: []", ["layers", "[]"]),
        ("layers: [1, two]", ["layers", "'two'", "integer"]),
        ("data: embedded", ["data", "'embedded'"]),
        ("training: {lr: fast}", ["training.lr", "'fast'", "number"]),
        ("training: {lr: .inf}", ["training.lr", "inf", "finite"]),
        ("training: {lr: .nan}", ["training.lr", "nan", "finite"]),
        ("training: {lr: 1e999}", ["training.lr", "inf", "finite"]),
        ("training: {lr: 0}", ["training.lr", "0", "greater than 0"]),
        ("training: {tokens: 1.5e0}", ["training.tokens", "1.5", "integer"]),
        ("training: {adam_betas: [0.9]}", ["training.adam_betas", "[0.9]"]),
        ("training: {adam_betas: [0.9, 1.0]}", ["training.adam_betas", "[0.9, 1.0]"]),
        ("training: 5", ["training", "5"]),
        ("data: {shuffle: 1}", ["data.shuffle", "1", "boolean"]),
        ("output: {trackers: [tensorbord]}", ["output.trackers", "Did you mean tensorboard"]),
    ],
)
def test_wrong_keys_types_and_values(folder: Path, line: str, mentions: list[str]) -> None:
    key = line.split(":")[0]
    kept = "".join(f"{x}\n" for x in SMALL.splitlines() if not x.startswith(key + ":"))
    message = refused(lambda: load(folder, kept + line + "\n"), *mentions)
    assert "mine.yaml" in message or line.startswith("training")


def test_a_missing_key_is_named(folder: Path) -> None:
    refused(lambda: load(folder, "layers: [1]\nexpansions: [8]\n"), "architectures", "missing")


def test_more_than_one_problem_is_said(folder: Path) -> None:
    refused(lambda: load(folder, SMALL + "aa: 1\nbb: 2\n"), "'aa'", "(and 1 more)")


def test_no_message_repeats_a_huge_or_many_lined_value(folder: Path) -> None:
    text = SMALL + "method: |\n" + "".join(f"  line {i}\n" for i in range(500))
    assert len(refused(lambda: load(folder, text), "method", "line 0")) < 800


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("a: 1\na: 2\n", ["line 2", "'a' stands twice"]),
        ("data: {source: x, source: y}\n", ["'source' stands twice"]),
        ("a: &x [1]\nb: *x\n", ["line 1", "anchors (&x)"]),
        ("a: *x\n", ["line 1, column 4", "aliases"]),
        ("a: {<<: {b: 1}}\n", ["line 1"]),
        ("a: !!python/object/apply:os.getcwd []\n", ["line 1", "python/object"]),
        ("a: !!python/name:os.system\n", ["python/name"]),
        ("a: !mine 1\n", ["!mine"]),
        ("a: ! 1\n", ["tags (!)"]),
        ("a: !!timestamp x\n", ["line 1", "timestamp"]),
        ("a: !!bool x\n", ["line 1", "bool"]),
        ("a: !!int ''\n", ["line 1", "int"]),
        ("a: !!str 1\n", ["line 1", "str"]),
        ("&x {a: 1}\n", ["line 1, column 1", "anchors"]),
        ("a: 010\n", ["line 1", "010 is not a decimal number"]),
        ("a: 0x1F\n", ["0x1F is not a decimal number"]),
        ("a: 1:30\n", ["1:30 is not a decimal number"]),
        ("a: 1:30.5\n", ["1:30.5 is not a decimal number"]),
        (f"a: {10**19}\n", ["line 1", "too large"]),
        (f"a: -{'9' * 5000}\n", ["line 1", "too large"]),
        (f"a: 0x{'f' * 5000}\n", ["not a decimal number"]),
        ("a: [1\n", ["line 2"]),
        ("a: b: c\n", ["line 1", "column"]),
        ("1: x\n", ["key 1"]),
        ("on: x\n", ["True"]),
        ("? [a]\n: x\n", ["line 1"]),
        ("a: \x00\n", ["not YAML"]),
        ("--- 1\n--- 2\n", ["line 2"]),
        ("[" * 5000, ["not YAML"]),
    ],
)
def test_yaml_beyond_plain_data_is_refused(folder: Path, text: str, mentions: list[str]) -> None:
    refused(lambda: load(folder, text), "mine.yaml", *mentions)


@pytest.mark.parametrize("text", ["", "- a\n", "7\n", "just text\n"])
def test_a_recipe_is_a_mapping(folder: Path, text: str) -> None:
    refused(lambda: load(folder, text), "mine.yaml", "mapping")


def test_a_missing_recipe_answers_with_those_there_are(folder: Path) -> None:
    message = refused(lambda: load_recipe(folder / "tny.yaml"), "tny.yaml", "tiny.yaml")
    assert "Did you mean tiny.yaml" in message
    refused(lambda: load_recipe(folder), "cannot be read")
    (folder / "latin.yaml").write_bytes(b"a: \xff\n")
    refused(lambda: load_recipe(folder / "latin.yaml"), "latin.yaml", "cannot be read")


@pytest.mark.parametrize(
    "name", ["a\0b", "a\nb.yaml", "x" * 300, "y/" * 3000, "\udcff.yaml", "~nobody/x", "/dev/null/x"]
)
def test_paths_that_cannot_be_are_refused_in_one_line(folder: Path, name: str) -> None:
    assert len(refused(lambda: load_recipe(folder / name))) < 1000


def test_a_pipe_a_device_and_a_huge_file_are_not_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe.yaml")
    for path in (folder / "pipe.yaml", Path("/dev/zero"), Path("/dev/stdin")):
        if path.exists() and not path.is_file():
            refused(lambda path=path: load_recipe(path), "cannot be read", "regular file")
    with (folder / "huge.yaml").open("wb") as file:
        file.truncate(1 << 30)
    refused(lambda: load_recipe(folder / "huge.yaml"), "huge.yaml", str(LONGEST))
    million = "layers: [" + "1, " * 10**6 + "1]\n"
    started = time.monotonic()
    refused(lambda: load(folder, million), str(LONGEST))
    refused(lambda: load(folder, SMALL, million.replace(": ", "=", 1)), "override layers")
    assert time.monotonic() - started < 2


def test_many_values_are_named_shortly(folder: Path) -> None:
    many = "[" + "1, " * 5000 + "1]"
    assert len(refused(lambda: load(folder, SMALL, f"layers={many}"), "layers", "twice")) < 200


def test_byte_order_marks_and_windows_line_ends(folder: Path) -> None:
    (folder / "windows.yaml").write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert load_recipe(folder / "windows.yaml") == load(folder)


@pytest.mark.parametrize(
    ("override", "mentions"),
    [
        ("lr", ["'lr'", "key=value"]),
        ("=3", ["'=3'", "key=value"]),
        ("training.=3", ["key=value"]),
        ("training..lr=3", ["key=value"]),
        ("method.x=3", ["method.x=3", "'method' is a value"]),
        ("training.learning_rate=3", ["'training.learning_rate'", "3"]),
        ("seed=[", ["override seed"]),
        ("seed=*a", ["override seed", "aliases"]),
        ("seed=!!python/name:os.system", ["override seed"]),
        ("seed=", ["seed", "None"]),
        ("layers=18", ["layers=[18]"]),
        ("method.x=a\nb", ["method.x=a b", "'method' is a value"]),
        ("output.folder=/x/\udcff", ["override output.folder"]),
        ('output.folder="a\\0b"', ["output.folder", "NUL"]),
        ('model.name="\\ud800"', ["model.name", "valid string"]),
        ("layers=[true]", ["layers", "True", "integer"]),
        ("threads=1e6", ["threads", "1000000", "1024"]),
        ("training.tokens=1e30", ["training.tokens", "integer"]),
    ],
)
def test_wrong_overrides(folder: Path, override: str, mentions: list[str]) -> None:
    refused(lambda: load(folder, SMALL + "method: fast\n", override), *mentions)


@pytest.mark.parametrize(
    ("overrides", "mentions"),
    [
        (["training.buffer_tokens=2047"], ["training.buffer_tokens", "2047", "two batches", "2048"]),
        (
            ["training.tokens=8e5", "training.batch_size=1000", "training.lr_warmup=700"]
            + ["training.lr_decay=101"],
            ["training.lr_warmup", "training.lr_decay", "700 + 101", "800 steps"],
        ),
        (["training.lr_warmup=0.6", "training.lr_decay=0.5"], ["do not fit"]),
        (["training.sparsity_warmup=1e6"], ["training.sparsity_warmup", "1000000", "steps"]),
        (["preset=paper", "training.tokens=1e6"], ["16000 + 64000", "7812 steps"]),
        (["training.tokens=100"], ["training.tokens", "100", "1024"]),
        (["training.lr_end=1"], ["training.lr_end", "1", "0.003"]),
        (["architectures=[topk]"], ["'topk'", "can be loaded but not trained", "standard"]),
        (["architectures=[jumprely]"], ["'jumprely'", "unknown", "Did you mean jumprelu"]),
        (["architectures=[standard, standard]"], ["architectures", "twice"]),
        (["layers=[3, 1, 3]"], ["layers", "[3, 1, 3]", "twice"]),
        (["layers=[-1]"], ["layers", "-1"]),
        (["expansions=[0]"], ["expansions", "0", "1024"]),
        (["expansions=[2000]"], ["expansions", "2000", "1024"]),
        (
            ["training.sparsity_coefficient.standard=null"],
            ["training.sparsity_coefficient.standard", "missing"],
        ),
        (["data.source=' '"], ["data.source", "empty"]),
    ],
)
def test_impossible_combinations(folder: Path, overrides: list[str], mentions: list[str]) -> None:
    refused(lambda: load(folder, SMALL, *overrides), *mentions)


def test_the_smallest_possible_combinations_are_accepted(folder: Path) -> None:
    run = load(
        folder,
        SMALL,
        "training.buffer_tokens=2048",
        "training.tokens=1024",
        "training.lr_warmup=0",
        "training.lr_decay=1",
        "training.sparsity_warmup=1",
        "training.lr_end=0.003",
    )
    assert run.training.steps == 1
    # A coefficient is needed only for what is trained.
    assert load(folder, SMALL, "training.sparsity_coefficient.jumprelu=null")


@pytest.mark.parametrize(
    ("overrides", "context", "lengths"),
    [
        ([], 512, (512, 512)),
        ([], 4096, (4096, 2048)),
        ([], 131_072, (8192, 2048)),
        ([], None, (8192, 2048)),
        ([], -1, (8192, 2048)),
        (["data.max_tokens=100", "data.block_tokens=30"], 512, (100, 30)),
        (["data.max_tokens=20000"], 131_072, (20_000, 2048)),
        (["data.max_tokens=513"], 512, (513, 512)),  # refused by check_against_model
    ],
)
def test_lengths_are_the_models(
    folder: Path, overrides: list[str], context: int | None, lengths: tuple[int, int]
) -> None:
    run = load(folder, SMALL, *overrides).fitted(context)
    assert (run.data.max_tokens, run.data.block_tokens) == lengths
    assert run.fitted(2) == run  # what is a number stays
    assert load(folder, run.to_yaml()).model_dump() == run.model_dump()


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([], "data"),
        (["data.source=a/b", "evaluation.source=embedded"], "evaluation"),
        (["data.source=a/b", "method=bt-p"], "text"),
    ],
)
def test_the_toys_data_are_told_of_with_other_models(folder: Path, overrides: list[str], key: str) -> None:
    assert not list(doubts(load(folder, SMALL)))
    said = list(doubts(load(folder, SMALL, "model.name=org/Model", *overrides)))
    assert f"{key}.source: 'embedded'" in said[-1] and "org/Model" in said[-1] and ".jsonl" in said[-1]


def test_layers_are_checked_against_the_model(folder: Path) -> None:
    run = load(folder, SMALL, "layers=[1, 4]", "data.max_tokens=512", "data.block_tokens=512")
    check_against_model(run, 5, 512)
    check_against_model(run, 5, None)
    refused(lambda: check_against_model(run, 4, 512), "layers: 4", "tiny-chat", "0 to 3")
    far = load(folder, SMALL, "layers=[1000000000]")
    refused(lambda: check_against_model(far, 4, 512), "layers: 1000000000", "0 to 3")


@pytest.mark.parametrize(
    ("method", "override", "key"),
    [
        ("fast", "data.max_tokens=513", "data.max_tokens"),
        ("bt-f", "data.block_tokens=513", "data.block_tokens"),
        ("bt-p", "data.block_tokens=513", "data.block_tokens"),
        ("bt-p", "data.max_tokens=513", "data.max_tokens"),
    ],
)
def test_lengths_are_checked_against_the_model(folder: Path, method: str, override: str, key: str) -> None:
    lengths = ("data.max_tokens=512", "data.block_tokens=512")
    run = load(folder, SMALL, f"method={method}", *lengths, override)
    refused(lambda: check_against_model(run, 9, 512), key, "513", "512")


def test_sizes_are_checked_against_the_model_and_the_memory(folder: Path) -> None:
    run = load(folder, SMALL, "expansions=[8, 1024]", "training.buffer_tokens=1e9")
    check_sizes(run, 3584, 1 << 43)  # the widest expansion of a wide model is legal
    refused(lambda: check_sizes(run, 20_000, 1 << 46), "expansions: 1024", "20000", "at most 838")
    message = refused(lambda: check_sizes(run, 3584, 1 << 36), "training.buffer_tokens: 1000000000")
    assert "6675 GiB" in message and "64 GiB" in message and "less than 9586980" in message


def test_block_length_does_not_matter_for_fast(folder: Path) -> None:
    run = load(folder, SMALL, "data.max_tokens=512", "data.block_tokens=2048")
    check_against_model(run, 9, 512)


def test_a_recipe_cannot_be_changed_once_checked(folder: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(folder).seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted(resource("recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.names() and recipe.training.steps > 0


def test_the_grid_recipe_is_the_papers_row() -> None:
    recipe = load_recipe(resource("recipes") / "qwen2.5-0.5b.yaml")
    row = [n for n in zoo_names() if n.model == "qwen2.5-0.5b" and n.method == "fast"]
    assert sorted(recipe.names()) == sorted(row)
    assert (
        recipe.training.model_dump()
        == resolve(
            {"layers": [0], "expansions": [8], "architectures": ["standard"], "preset": "paper"}, "x"
        ).training.model_dump()
    )


@pytest.mark.parametrize(
    ("overrides", "l0"),
    [
        ([], 24),
        (["preset=quick"], 24),
        (["preset=paper", "training.tokens=4e7"], None),
        (["training.sparsity_coefficient.standard=0.5"], None),
        (["training.sparsity_coefficient.standard=0.5", "training.l0=7"], 7),
        (["training.l0=null"], None),
    ],
)
def test_the_embedded_recipes_l0_gives_way_to_another_way_to_sparsity(
    overrides: list[str], l0: float | None
) -> None:
    assert load_recipe(None, overrides).training.l0 == l0


@pytest.mark.parametrize(
    ("overrides", "mentions"),
    [
        (["training.sparsity_coefficient.jumprelu=0", "training.l0=7"], ["jumprelu", "training.l0"]),
        (["training.l0=0"], ["training.l0", "greater than 0"]),
        (["training.sinks=drop"], ["training.sinks", "train, skip"]),
        (["training.sink_factor=1"], ["training.sink_factor", "greater than 1"]),
    ],
)
def test_impossible_ways_to_sparsity(overrides: list[str], mentions: list[str]) -> None:
    refused(lambda: load_recipe(None, overrides), *mentions)
