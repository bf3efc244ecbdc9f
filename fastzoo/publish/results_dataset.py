"""The files of a namespace's results dataset: the results table as Parquet and CSV, the registry that it
is made from, and the card.
"""

from __future__ import annotations

import csv
import io

from fastzoo.hub.registry import DATASET, FILE, Registry
from fastzoo.results.table import COLUMNS, IDENTITY, MEASURED, PAPER, ResultRow, result_rows
from fastzoo.saes.names import zoo_names


def dataset_files(registry: Registry) -> dict[str, bytes]:
    """The files of ``<namespace>/fastzoo-results``: the same registry always gives the same bytes."""
    rows = result_rows(registry)
    return {
        "README.md": _card(registry).encode(),
        "results.csv": _csv(rows),
        "results.parquet": _parquet(rows),
        FILE: registry.to_text().encode(),
    }


def _csv(rows: list[ResultRow]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, [c.name for c in COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: list[ResultRow]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    schema = pyarrow.schema([(c.name, types[c.kind]) for c in COLUMNS])
    table = pyarrow.Table.from_pylist(rows, schema)
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, version="2.6", compression="snappy")
    return file.getvalue()


def _card(registry: Registry) -> str:
    import yaml

    from fastzoo.results.card import template

    front = {
        "pretty_name": "fastzoo results",
        "license": "apache-2.0",
        "language": ["en"],
        "tags": ["sparse-autoencoder", "sae", "interpretability", "evaluation", "fastzoo"],
        "size_categories": ["n<1K"],
        "configs": [{"config_name": "default", "data_files": "results.parquet"}],
    }
    body = template("results.md.j2").render(
        registry=registry,
        repo_id=f"{registry.namespace}/{DATASET}",
        grid=len(zoo_names()),
        identity=IDENTITY,
        measured=MEASURED,
        paper=PAPER,
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n{body}"
