"""Names: the one key of everything."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastzoo
from fastzoo.core.errors import InputError
from fastzoo.saes import ARCHITECTURES
from fastzoo.saes.names import GRID, METHODS, SAEName, grid_row, model_part, parse_name, zoo_names
from fastzoo.saes.paper import paper_figures, paper_special_latents

PARTS = {
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "meta-llama/Llama-3.2-3B-Instruct": "llama-3.2-3b",
    "meta-llama/Llama-3.2-1B-Instruct": "llama-3.2-1b",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "Qwen/Qwen2.5-3B-Instruct": "qwen2.5-3b",
    "Qwen/Qwen2.5-1.5B-Instruct": "qwen2.5-1.5b",
    "Qwen/Qwen2.5-0.5B-Instruct": "qwen2.5-0.5b",
}


def paper_rows(file: str = "mse.csv") -> list[dict[str, str]]:
    """A packaged transcription, by default of the paper's Appendix D."""
    path = Path(fastzoo.__file__).parent / "saes" / f"paper_{file}"
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def spelled(row: dict[str, str]) -> str:
    """A row's name, written out by hand."""
    method = "" if row["method"] == "fast" else "-" + row["method"]
    where = f"L{row['layer']}-{row['expansion']}x"
    return f"{PARTS[row['base_model']]}-{where}-{row['architecture']}{method}"


def test_the_grid_is_exactly_the_paper_s_240() -> None:
    rows = paper_rows()
    assert len(rows) == 240
    names = [str(name) for name in zoo_names()]
    assert len(names) == 240
    assert set(names) == {spelled(row) for row in rows}
    assert {row.base_model for row in GRID} == set(PARTS)
    streams = {(row["base_model"], row["method"]) for row in rows}
    assert len({(n.model, n.method) for n in zoo_names()}) == len(streams) == 21


def test_widths_of_the_base_models() -> None:
    widths = [4096, 3072, 2048, 3584, 2048, 1536, 896]
    assert {row.base_model: row.d_model for row in GRID} == dict(zip(PARTS, widths, strict=True))


def test_paper_figures_are_those_of_the_table() -> None:
    figures = paper_figures()
    assert len(figures) == 240
    for row in paper_rows():
        found = figures[parse_name(spelled(row))]
        assert found.log2_mse == float(row["log2_mse"])
        assert found.log2_mse_special == float(row["log2_mse_special"])
    # The paper's own headline figure.
    assert figures[parse_name("qwen2.5-7b-L18-8x-standard")].log2_mse_special == 0.6468


def test_paper_special_latents_are_those_of_the_table() -> None:
    found = paper_special_latents()
    rows = paper_rows("special_token_features.csv")
    assert len(rows) == sum(map(len, found.values())) == 795
    assert len(found) == 36 and set(found) <= set(zoo_names())
    told = {(str(n), x.token_id, x.rank): x for n, latents in found.items() for x in latents}
    for row in rows:
        x = told.pop((spelled(row), int(row["token_id"]), int(row["rank"])))
        assert (x.token, x.latent) == (row["token"], int(row["latent"]))
        assert x.mean_max_activation == float(row["mean_max_activation"])
    assert not told
    for latents in found.values():
        ranks = [x.rank for x in latents]
        assert ranks == [1, 2, 3, 4, 5] * (len(latents) // 5)
    # The latent that the paper steers with.
    first = found[parse_name("qwen2.5-7b-L18-8x-jumprelu")][0]
    assert (first.token, first.latent) == ("user", 13794)


def test_every_zoo_name_parses_to_itself_and_has_its_row() -> None:
    for name in zoo_names():
        assert parse_name(str(name)) == name
        row = grid_row(name)
        assert row is not None
        assert name.layer in row.layers
        assert PARTS[row.base_model] == name.model
    assert grid_row(parse_name("tiny-chat-L1-8x-standard")) is None


@given(
    st.builds(
        SAEName,
        model=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,30}", fullmatch=True).map(lambda text: text.strip("\n")),
        layer=st.integers(0, 9999),
        expansion=st.integers(1, 9999),
        architecture=st.sampled_from(sorted(ARCHITECTURES)),
        method=st.sampled_from(METHODS),
    )
)
def test_parsing_undoes_formatting(name: SAEName) -> None:
    assert parse_name(str(name)) == name
    assert parse_name(str(name).upper()) == name
    assert "/" not in str(name)


@pytest.mark.parametrize("model", ["a-l4-8x-standard", "m-l1-2x-topk", "x-fast", "x-bt-p", "9", "a.b_c-"])
def test_models_that_look_like_names_stay_apart(model: str) -> None:
    for method in METHODS:
        name = SAEName(model, 3, 4, "jumprelu", method)
        assert parse_name(str(name)) == name


@pytest.mark.parametrize(
    "text",
    ["QWEN2.5-7B-l18-8X-JumpReLU", "qwen2.5-7b-L18-8x-jumprelu-fast", "Qwen2.5-7B-L18-8x-jumprelu-FAST"],
)
def test_upper_and_lower_case_are_the_same(text: str) -> None:
    assert parse_name(text) == SAEName("qwen2.5-7b", 18, 8, "jumprelu", "fast")
    assert str(parse_name(text)) == "qwen2.5-7b-L18-8x-jumprelu"


def test_canonical_form_and_hook_folder() -> None:
    name = SAEName("llama-3.2-1b", 9, 16, "standard", "bt-p")
    assert str(name) == "llama-3.2-1b-L9-16x-standard-bt-p"
    assert name.hook_folder == "blocks.9.hook_resid_post"


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [
        ("qwen2.5-7b-L18-8x-jumprely", "qwen2.5-7b-L18-8x-jumprelu"),
        ("qwen2.5-7b-18-8x-jumprelu", "qwen2.5-7b-L18-8x-jumprelu"),
        ("llama-3.2-1b-L9-16-standard", "llama-3.2-1b-L9-16x-standard"),
        ("llama-3.2-1b-L9-16x-standard-btp", "llama-3.2-1b-L9-16x-standard-bt-p"),
    ],
)
def test_an_unknown_name_answers_with_the_nearest(typo: str, nearest: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_name(typo)
    message = str(caught.value)
    assert f"'{typo}'" in message
    assert "Did you mean" in message
    assert nearest in message.split("Did you mean")[1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "jumprelu",
        "-L18-8x-jumprelu",
        "a/b-L1-8x-standard",
        "../x-L1-8x-standard",
        "x-L1-0x-standard",
        "x-L-1-8x-standard",
        "x-L1-8x-gated",
        "x-L1-8x-standard-bt",
        "x-L1-8x-standard\n",
        " x-L1-8x-standard",
        "x-L\u0661-8x-standard",
        "\u017fmall-L1-8x-standard",
        "x\u001b[31m-L1-8x-standard",
    ],
)
def test_what_is_no_name_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_name(text)
    assert str(caught.value).isprintable()
    assert "<model>-L<layer>-<expansion>x-<architecture>" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "part"),
    [
        *PARTS.items(),
        ("tiny-chat", "tiny-chat"),
        ("org/Model-Instruct", "model"),
        ("Model", "model"),
        ("./models/My Model (v2)-Instruct/", "my-model-v2"),
        ("C:\\models\\Foo-Instruct", "foo"),
        ("org/a..b", "a-b"),
        ("org/Instruct", "instruct"),
        ("org/Instruct-7B", "instruct-7b"),
        ("/", "model"),
        ("org/\u6a21\u578b", "model"),
    ],
)
def test_model_part(model: str, part: str) -> None:
    assert model_part(model) == part


def test_a_long_model_still_makes_a_name_that_the_hub_and_the_disk_take() -> None:
    name = SAEName(model_part("org/" + "a" * 63 + "-" + "b" * 200), 9999, 1024, "jumprelu", "bt-f")
    assert name.model == "a" * 63 and len(str(name)) <= 96


@given(st.text(max_size=40))
def test_every_model_part_makes_a_valid_name(model: str) -> None:
    name = SAEName(model_part(model), 0, 8, "standard")
    assert parse_name(str(name)) == name
    assert ".." not in str(name)
    assert not str(name).startswith(("-", "."))
