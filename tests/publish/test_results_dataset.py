"""The results dataset: made from records, the same bytes each time, read by its real clients."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import yaml
from examples import HOSTILE, NAME, OUTSIDE, published, registry
from examples import example as example_record
from hub_server import LoopbackHub, run

from fastzoo.hub.registry import parse_registry
from fastzoo.publish.results_dataset import dataset_files
from fastzoo.results.figures import FIGURES
from fastzoo.results.table import COLUMNS, MEASURED, PAPER, result_row
from fastzoo.saes.names import zoo_names
from fastzoo.saes.paper import paper_figures


def test_a_row_holds_what_the_record_and_figures_hold() -> None:
    record, figures = example_record()
    record["versions"]["fastzoo"] = "0.1.0"
    row = result_row(record, figures)
    assert list(row) == [column.name for column in MEASURED]
    assert None not in row.values()
    for figure in FIGURES:
        for subset in figure.subsets:
            value = row[figure.key if subset == "all" else f"{figure.key}_{subset}"]
            assert value == figures["metrics"][figure.key][subset]["value"]
    assert row["dead_latents_without_sinks"] == 4 and row["sinks"] == "skip"
    assert (row["d_in"], row["d_sae"], row["dead_latents"]) == (4, 32, 3)
    assert (row["evaluation_dialogues"], row["evaluation_tokens"]) == (7, 80)
    assert (row["training_tokens"], row["evaluation_tokens_special"]) == (50, 80)
    assert row["base_model"] == "org/Model-Instruct" and row["base_model_sha"] == "c" * 40
    assert row["training_data"] == "mine.jsonl" and row["preset"] == "quick"
    # Figures of the paper are never among ours.
    assert -1.5 not in row.values() and -2.5 not in row.values()


def test_a_record_of_any_shape_gives_a_row() -> None:
    for record, figures in (
        ({}, {}),
        ({"sae": [], "base_model": "x"}, {"metrics": {"l0": 3, "mse": {"all": {"value": "x"}}}}),
        ({"sae": {"d_in": 10**30}}, {"metrics": {"l0": {"all": {"value": float("nan")}}}}),
        ({"sae": {"d_in": 2.5, "d_sae": True}}, {"split": {"tokens": float("inf")}}),
    ):
        assert set(result_row(record, figures).values()) == {None}
    row = result_row({"base_model": {"name": "a\ud800\x1b[2J\nb"}, "sae": {"d_in": 4.0}}, {})
    assert str(row["base_model"]).isprintable() and row["d_in"] == 4
    assert type(row["d_in"]) is int


def test_the_same_registry_gives_the_same_bytes() -> None:
    record, figures = example_record()
    saes = [published(NAME, **result_row(record, figures)), published(OUTSIDE, l0=3)]
    first, second = (dataset_files(registry("org", *order)) for order in (saes, saes[::-1]))
    assert first == second
    assert set(first) == {"README.md", "results.csv", "results.parquet", "registry.json"}
    again = dataset_files(parse_registry(first["registry.json"], "here"))
    assert again == first


def test_the_card_says_what_every_column_is() -> None:
    sae = published(NAME, base_model="org/x", training_data=HOSTILE)
    card = dataset_files(registry("org", sae))["README.md"].decode()
    _, front, body = card.split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["configs"] == [{"config_name": "default", "data_files": "results.parquet"}]
    assert head["license"] == "apache-2.0" and "sparse-autoencoder" in head["tags"]
    for column in COLUMNS:
        assert body.count(f"| `{column.name}` | {column.kind.__name__} |") == 1
    assert "`log2_mse` is not `mse`" in body and "Published here: **1**" in body
    assert 'load_dataset("org/fastzoo-results"' in body and "2506.07691" in body


LOAD = """
from datasets import load_dataset
for options in ({}, {"data_files": "results.csv"}):
    table = load_dataset("org/fastzoo-results", split="train", **options)
    print(json.dumps([table.column_names, {k: v.dtype for k, v in table.features.items()}]))
    print(json.dumps(list(table)))
"""


def test_datasets_loads_it_from_the_hub(tmp_path: Path) -> None:
    record, figures = example_record()
    row = result_row(record, figures)
    content = registry("org", published(NAME, **row), published(OUTSIDE, **row))
    files = dataset_files(content)
    with LoopbackHub() as hub:
        hub.add("dataset", "org/fastzoo-results", files)
        (names, types), parquet, (csv_names, _), from_csv = run(hub, tmp_path, LOAD)
        # datasets would take sizes from the viewer's server, and does without.
        assert all("datasets-server." in request for request in hub.foreign)
    assert names == csv_names == [column.name for column in COLUMNS]
    kinds = {str: "string", int: "int64", float: "float64"}
    assert types == {column.name: kinds[column.kind] for column in COLUMNS}

    assert [r["name"] for r in parquet] == [*map(str, zoo_names()), OUTSIDE]
    paper = [(r["paper_log2_mse"], r["paper_log2_mse_special"]) for r in parquet]
    reported = paper_figures()
    assert paper[:-1] == [(reported[n].log2_mse, reported[n].log2_mse_special) for n in zoo_names()]
    assert paper[-1] == (None, None)
    for line in parquet:
        there = line["name"] in (NAME, OUTSIDE)
        assert line["status"] == ("published" if there else "paper")
        assert {c.name: line[c.name] for c in MEASURED} == (row if there else dict.fromkeys(row))
        assert line["repo_id"] == (f"org/{line['name']}" if there else None)
        assert line["revision"] == ("c" * 40 if there else None)
        assert line["weights_sha256"] == ("4a" * 32 if there else None)

    # The same table, as far as CSV has types.
    assert [r["name"] for r in from_csv] == [r["name"] for r in parquet]
    for a, b in zip(parquet, from_csv, strict=True):
        assert all(a[key] == b[key] for key in names if a[key] is not None), a["name"]
        assert all(b[key] is None for key in names if a[key] is None), a["name"]
    text = list(csv.DictReader(io.StringIO(files["results.csv"].decode())))
    wanted: list[dict[str, Any]] = [{k: "" if v is None else str(v) for k, v in r.items()} for r in parquet]
    assert text == wanted
    assert len(PAPER) == 2
