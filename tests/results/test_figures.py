"""The one table of figures: what each place shows of it."""

from __future__ import annotations

from fastzoo.cli.listing import KEYS, SHOWN
from fastzoo.publish.namespace import headline
from fastzoo.results.figures import DEFINITIONS, FIGURES, SUBSETS, shown
from fastzoo.results.table import COLUMNS, MEASURED


def test_places_show_what_is_measured_and_begin_with_l0() -> None:
    for place in ("run", "page", "listed", "subsets"):
        pairs = shown(place)
        names = [figure.column(subset) for figure, subset in pairs]
        assert names[0] == "l0_without_sinks" and len(set(names)) == len(names)
        assert all(subset in figure.subsets for figure, subset in pairs)
    assert list(DEFINITIONS) == [figure.key for figure in FIGURES]
    names = [figure.column(subset) for figure in FIGURES for subset in figure.subsets]
    assert len(FIGURES) == len(DEFINITIONS) and set(names) < {c.name for c in MEASURED}
    for headings in ([f.heading(s) for f, s in shown("subsets")], [c.name for c in COLUMNS]):
        assert len(set(headings)) == len(headings)
    assert {s for figure in FIGURES for s in figure.subsets} == set(SUBSETS)
    assert [figure.heading(s) for figure, s in shown("run")][-2:] == ["KL", "dead"]


def test_columns_of_the_list_have_ranks() -> None:
    ranks = [column.rank for column in SHOWN if column.rank != 0]
    assert None not in ranks
    assert {column.name for column in SHOWN} <= set(KEYS)
    assert [c.name for c in SHOWN if c.rank == 0] == ["name", "status"]
    assert [c.name for c in SHOWN][2:] == [
        *(figure.column(subset) for figure, subset in shown("listed")),
        *("paper_log2_mse", "paper_log2_mse_special", "path"),
    ]


def test_note_of_an_sae_in_the_collection() -> None:
    figures = {"fvu": 0.0625, "l0": 31.25, "log2_mse_special": -8.51234, "kl": 1.0}
    assert headline({f"{key}_without_sinks": value for key, value in figures.items()}) == (
        "L0 (without sinks) 31.25 · log2 MSE (special tokens without sinks) -8.512 · FVU (without sinks) 0.0625"
    )
    assert headline({"dead_latents_without_sinks": 12, "l0": None}) == "dead latents (without sinks) 12"
    assert headline({}) == ""
