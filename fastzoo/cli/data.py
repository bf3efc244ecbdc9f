"""``fastzoo data``, and ``fastzoo data show``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastzoo.cli.app import Json, print_json
from fastzoo.core.errors import DataError, InputError

if TYPE_CHECKING:
    from fastzoo.data.shown import Shown

data = typer.Typer(help="Data sets of dialogues: look at them.", no_args_is_help=True)


@data.command("show")
def show(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="'embedded', a file or several (a pattern with *), or a Hub dataset id."
        ),
    ],
    row: Annotated[
        int | None, typer.Option(min=0, help="This row alone and in full, by its number (from 0).")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many usable rows are printed.")] = 3,
    limit: Annotated[int, typer.Option(min=1, help="How many rows are read and counted.")] = 1000,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Whose tokenizer and chat template: a folder or Hub id (default: the embedded toy's).",
        ),
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Of a Hub dataset.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a Hub dataset (default: train).")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a Hub dataset.")] = None,
    column: Annotated[
        str | None, typer.Option(help="Where rows have their turns or, with --text, their text.")
    ] = None,
    date: Annotated[str | None, typer.Option(help="For chat templates that print today's date.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Rows are plain text, as bt-p trains on it.")] = False,
    as_json: Json = False,
) -> None:
    """Rows as a model will see them: through its chat template, each token in the colour of whose it is.

    First what the rows are: how many can be used and why not the others, how long they are, and whose their tokens are.
    """
    from fastzoo.cli import data_tables as tables
    from fastzoo.core.progress import Progress

    values = {"subset": subset, "split": split, "revision": revision, "column": column, "date": date}
    given = {key: value for key, value in values.items() if value is not None}
    if text and date is not None:
        raise InputError("--date goes with dialogues; --text has no chat template")
    shown, seen_by = _open(source, model, text, given)
    if row is not None:
        report = {**seen_by, "row": shown.row(row)}
        (print_json if as_json else tables.print_row)(report)
        if reason := report["row"].get("unusable"):
            raise DataError(f"row {row} of {source} cannot be used: {reason}")
        return
    with Progress("reading rows", min(limit, shown.known_rows or limit)) as bar:
        report = {**seen_by, **shown.survey(limit, rows, tables.LIST_TOKENS, bar.advance)}
    (print_json if as_json else tables.print_survey)(report)


def _open(source: str, model: str | None, text: bool, given: dict[str, str]) -> tuple[Shown, dict[str, Any]]:
    """The source as a model sees it; and that model, as plain data. Of the model only the tokenizer and the
    configuration are read. Raises InputError, ModelError, DataError, HubError."""
    from fastzoo.config.reading import make_section
    from fastzoo.config.recipe import DataSection, ModelSection, TextSection
    from fastzoo.data.rows import open_rows
    from fastzoo.data.shown import MOST_TOKENS, Shown
    from fastzoo.data.tokenizer import ChatTokenizer
    from fastzoo.lm.load import find_model, load_tokenizer

    values = {"source": source, "shuffle": False, **given}
    section: DataSection | TextSection
    if text:
        section = make_section(TextSection, "the rows", **values)
    else:
        section = make_section(DataSection, "the rows", **values)
    named = make_section(ModelSection, "the model", **({} if model is None else {"name": model}))
    found = find_model(named)
    dialogues = section if isinstance(section, DataSection) else DataSection()
    # Plain text is cut into blocks, of which there are as many as it has tokens for.
    limit = None if text else dialogues.fitted(found.max_positions).max_tokens
    counted = dialogues.model_copy(update={"max_tokens": MOST_TOKENS})
    chat = ChatTokenizer(load_tokenizer(found), counted, found.name, found.embeddings)
    column = section.column if isinstance(section, TextSection) else None
    shown = Shown(open_rows(section, seed=0), chat, limit, column)
    about = {
        "name": found.public_name,
        "sha": found.revision,
        "max_tokens": limit,
        "given": model is not None,
    }
    return shown, {"model": about}
