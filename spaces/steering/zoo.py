"""The tab of the zoo's SAEs: filters, a table, a plot, and what is known of a chosen one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
import pandas as pd
import results as zoo
from addresses import address
from huggingface_hub import constants

ENDPOINT = constants.ENDPOINT
COLOURS = {"fast": "#3b82c4", "bt-f": "#d0782a", "bt-p": "#7d8a97", "other": "#b0b0b0"}
ALL = "all"
UNSORTED = "as listed"
SORTS = [(UNSORTED, UNSORTED), *((heading, column) for column, heading in zoo.HEADINGS.items())]

ADDRESS = address("zoo", [*zoo.FILTERS, "published", "sort", "descending", "zoo", "plot"])
"""Of the filters, the order, the chosen SAE and the plot."""


def table(rows: list[zoo.Row]) -> dict[str, Any]:
    """Value of the table: numbers to sort by, and how they are shown."""
    columns = zoo.shown_columns(rows)
    return {
        "headers": [zoo.HEADINGS[column] for column in columns],
        "data": [[zoo.figure_of(row, column) for column in columns] for row in rows],
        "metadata": {"display_value": [[zoo.text_of(row, c) for c in columns] for row in rows]},
    }


def scatter(rows: list[zoo.Row], figure: str) -> tuple[Any, Any]:
    """The plot, hidden where it has no points, and the choice of its figure, hidden where it has none."""
    plot = zoo.plot(rows, figure)
    choice = gr.Radio(value=figure, visible=plot.measured)
    if not plot.points:
        return gr.ScatterPlot(None, visible=False), choice
    frame = pd.DataFrame(plot.points, columns=["SAE", "method", "x", "y"])
    shown = gr.ScatterPlot(
        frame,
        x_title=plot.x,
        y_title=plot.y,
        x_lim=zoo.limits(frame["x"]),
        y_lim=zoo.limits(frame["y"]),
        visible=True,
    )
    return shown, choice


class Answers:
    """What the page shows for the values of its controls."""

    def __init__(self, source: zoo.Results) -> None:
        self.source = source

    def view(self, *values: Any) -> tuple[Any, ...]:
        """Table, note and plot for the filters, the order and the figure of the plot."""
        *filters, only, sort, descending, figure = values
        rows, problem = self.source.get()
        wanted = {k: "" if v == ALL else v for k, v in zip(zoo.FILTERS, filters, strict=True)}
        fitting = zoo.ordered(zoo.select(rows, wanted, only), sort, descending)
        count = f"{len(fitting):,} of {len(rows):,} SAEs, {sum(map(zoo.published, fitting)):,} published"
        note = f"<p class='problem'>{zoo.escape(problem)}</p>" if problem else ""
        if rows:
            legend = zoo.legend(fitting)
            note += f"<p>{count}.{f' {legend}.' if legend else ''}</p>"
        return (gr.update(value=table(fitting), visible=bool(fitting)), note, *scatter(fitting, figure))

    def chosen(self, name: str | None) -> tuple[Any, ...]:
        """What is known of one SAE, and how to get it."""
        rows, _ = self.source.get()
        row = next((row for row in rows if row["name"] == name), None)
        if row is None:
            text = f"There is no SAE named {zoo.escape(name)}." if name else "Choose one."
            return f"<p>{text}</p>", gr.Code(visible=False), gr.Code(visible=False)
        snippets = (gr.Code(text, visible=bool(text)) for text in zoo.snippets(row))
        return zoo.details(row, ENDPOINT), *snippets

    def from_table(self, event: gr.SelectData) -> tuple[Any, ...]:
        name = str(event.row_value[0])
        return name, *self.chosen(name)

    def from_address(self, request: gr.Request) -> tuple[Any, ...]:
        """The whole page as the address asks for it; what it does not name is as at the start."""
        asked: Mapping[str, str] = dict(request.query_params)
        rows, _ = self.source.get()
        known = {key: zoo.choices(rows, key) for key in zoo.FILTERS}
        filters = {k: asked[k] if asked.get(k) in values else ALL for k, values in known.items()}
        only, descending = (asked.get(key) == "1" for key in ("published", "descending"))
        sort = asked["sort"] if asked.get("sort") in zoo.HEADINGS else UNSORTED
        figure = asked["plot"] if asked.get("plot") in zoo.PLOTS else "fvu"
        name = asked.get("zoo")
        return (
            *(gr.Dropdown([ALL, *known[key]], value=value) for key, value in filters.items()),
            *(only, sort, descending),
            gr.Dropdown([str(row["name"]) for row in rows], value=name),
            *self.view(*filters.values(), only, sort, descending, figure),
            *self.chosen(name),
        )


def build(page: gr.Blocks, source: zoo.Results) -> list[Any]:
    """The tab, in a page that is being built; what the address keeps, as ``ADDRESS`` takes it."""
    gr.HTML(INTRODUCTION)
    with gr.Row(elem_id="filters"):
        filters = [gr.Dropdown([ALL], value=ALL, label=key, min_width=120) for key in zoo.FILTERS]
        sort = gr.Dropdown(SORTS, value=UNSORTED, label="sort by", min_width=120)
        descending = gr.Checkbox(label="largest first", min_width=120, elem_classes="tick")
        only = gr.Checkbox(label="published only", min_width=120, elem_classes="tick")
    note = gr.HTML(elem_id="note")
    results = gr.Dataframe(
        headers=list(zoo.HEADINGS.values()), datatype=["str", *["number"] * (len(zoo.HEADINGS) - 1)], **TABLE
    )
    with gr.Row():
        with gr.Column(min_width=320):
            label = "SAE (or click a row of the table)"
            sae = gr.Dropdown([], value=None, label=label, allow_custom_value=True)
            about = gr.HTML(elem_id="about")
            pull = gr.Code(language="shell", label="pull it", **PLAIN_CODE)
            python = gr.Code(language="python", label="load it", **PLAIN_CODE)
        with gr.Column(min_width=320):
            plots = [(label, key) for key, label in zoo.PLOTS.items()]
            figure = gr.Radio(plots, value="fvu", label="L0 of the published ones against")
            plot = gr.ScatterPlot(**PLOT)
    controls = [*filters, only, sort, descending]
    shown, details = [results, note, plot, figure], [about, pull, python]
    return connect(page, Answers(source), controls, sae, shown, details)


def connect(
    page: gr.Blocks,
    answers: Answers,
    controls: list[Any],
    sae: gr.Dropdown,
    shown: list[Any],
    details: list[Any],
) -> list[Any]:
    """Let the page answer its visitors, and the address follow the controls, which are returned."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    results, *_, figure = shown
    kept = [*controls, sae, figure]
    page.load(answers.from_address, None, [*controls, sae, *shown, *details], **quiet)
    events = [
        *(c.input(answers.view, [*controls, figure], shown, **quiet) for c in (*controls, figure)),
        sae.input(answers.chosen, sae, details, **quiet),
        results.select(answers.from_table, None, [sae, *details], **quiet),
    ]
    for event in events:
        event.then(None, kept, None, js=ADDRESS)
    return kept


INTRODUCTION = (
    "<p>Sparse autoencoders of instruct language models, with what was "
    "measured of each. Columns that begin with <b>paper</b> are what "
    '<a href="https://arxiv.org/abs/2506.07691" target="_blank" rel="noopener">Li et al. '
    "2025</a> report, on their own data and without an L0; all others are ours. The "
    "paper's figures are base-2 logarithms of an MSE: one less is half the error. <b>Special</b> "
    "is over special tokens only. Ours leave out attention sinks, the few tokens whose huge "
    "activations would hide all others, unless a heading says <b>with sinks</b>.</p>"
)

TABLE: dict[str, Any] = {
    "interactive": False,
    "show_label": False,
    "max_height": 420,
    "buttons": [],
    "max_chars": 64,
    "elem_id": "table",
}
PLOT: dict[str, Any] = {
    "x": "x",
    "y": "y",
    "color": "method",
    "color_map": COLOURS,
    "tooltip": ["SAE"],
    "height": 360,
    "visible": False,
    "buttons": [],
}
PLAIN_CODE: dict[str, Any] = {
    "interactive": False,
    "show_line_numbers": False,
    "wrap_lines": True,
    "buttons": ["copy"],
    "lines": 1,
    "visible": False,
}
