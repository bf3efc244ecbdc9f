"""Which SAE and which latent: one choice for all tabs, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import gradio as gr
import markup
from engine import Engine

from fastzoo.core.errors import FastzooError

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

CLICK = """
const tell = (event) => {
    const place = event.target.closest('[data-latent], [data-position]');
    if (!place) return;
    event.preventDefault();
    trigger('click', {latent: Number(place.dataset.latent ?? -1), position: Number(place.dataset.position ?? -1)});
};
element.addEventListener('click', tell);
element.addEventListener('keydown', (event) => {
    if ((event.key === 'Enter' || event.key === ' ') && !event.target.matches('button')) tell(event);
});
"""
"""Tells Python which latent or token was chosen, by mouse or keyboard."""

ADDRESS = """(...values) => {
    const names = %s, all = new URLSearchParams(location.search);
    for (const name of ["tab", "sae", "latent", "alpha", "q", "text"]) all.delete(name);
    names.forEach((name, i) => { if (values[i] !== null && values[i] !== "") all.set(name, values[i]); });
    all.set("tab", "%s");
    history.replaceState(null, "", location.pathname + "?" + all.toString() + location.hash);
    if (window.parent !== window)
        window.parent.postMessage({queryString: all.toString()}, "https://huggingface.co");
}"""


def address(tab: str, names: Sequence[str]) -> str:
    """JavaScript that puts values, and the tab, into the page's address."""
    return ADDRESS % (list(names), tab)


def html(**how: Any) -> Any:
    """A place whose tokens and latents can be chosen."""
    return gr.HTML(js_on_load=CLICK, **how)


def told(count: int) -> Callable[[Any], Any]:
    """For a generator of ``count`` outputs, the last of which is the note: an error is said there, in one line."""

    def decorate(function: Any) -> Any:
        @wraps(function)
        def generator(*arguments: Any) -> Iterator[Any]:
            try:
                yield from function(*arguments)
            except FastzooError as error:
                yield (*(gr.skip() for _ in range(count - 1)), markup.problem(error))

        return generator

    return decorate


class Chooser:
    """The row above the tabs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        with gr.Row(elem_id="chooser"):
            self.featured = gr.Dropdown([], label="steer towards", min_width=160, visible=False)
            self.sae = gr.Dropdown(engine.names, value=engine.names[0], label="SAE", min_width=220)
            self.latent = gr.Number(0, label="latent", precision=0, minimum=0, min_width=100)
        self.about = gr.HTML(elem_id="latent-about")
        with gr.Accordion("Find another latent", open=False, elem_id="finder") as self.finder:
            self.finder_note = gr.HTML("<p class='hint'>Reading dialogues…</p>")
            self.special, self.strong = html(), html()

    def connect(self, page: gr.Blocks, tabs: Sequence[Any]) -> None:
        """Let every tab follow the choice."""
        steering, _, exploring = tabs
        chosen = [self.latent, steering.alpha, steering.question]
        self.featured.input(self._pick_featured, [self.sae, self.featured], chosen, **QUIET)
        self.sae.input(
            self._pick_sae,
            self.sae,
            [self.featured, *chosen, self.special, self.strong, self.finder_note],
            **QUIET,
        )
        for place in (self.special, self.strong):
            place.click(self.from_click, None, self.latent, **QUIET)
        self.latent.change(
            self._about,
            [self.sae, self.latent],
            [self.featured, self.about, steering.alpha, steering.window],
            **QUIET,
        )
        self.finder.expand(
            self._find,
            self.sae,
            [self.special, self.strong, self.finder_note],
            concurrency_id="look",
            **QUIET,
        )
        start = [self.sae, self.featured, *chosen, self.about, steering.window, exploring.user]
        exploring.after(page.load(self._from_address, None, start, **QUIET))
        for tab in tabs:
            tab.connect()

    @staticmethod
    def from_click(event: gr.EventData) -> Any:
        """The latent of a button."""
        latent = event._data.get("latent", -1)
        return int(latent) if latent >= 0 else gr.skip()

    def _first(self, name: str) -> tuple[Any, int, float, str]:
        """What an SAE begins with: its measured latents, and the first one with a strength and a question."""
        measured = self.engine.open(name).measured
        titles = gr.Dropdown(
            [m.title for m in measured], value=measured[0].title if measured else None, visible=bool(measured)
        )
        latent = measured[0].latent if measured else 0
        alpha, question = self._strength(name, latent)
        return titles, latent, alpha, question

    def _strength(self, name: str, latent: int) -> tuple[float, str]:
        reach = self.engine.reach(name, latent)
        known = reach["measured"]
        return reach["best"] or round(reach["end"] / 2, 2), known[
            "question"
        ] if known else self.engine.first_question(name)

    def _pick_featured(self, name: str, title: str) -> tuple[Any, ...]:
        for known in self.engine.open(name).measured:
            if known.title == title:
                alpha, question = self._strength(name, known.latent)
                return known.latent, self._slider(name, known.latent, alpha), question
        return gr.skip(), gr.skip(), gr.skip()

    def _pick_sae(self, name: str) -> Iterator[tuple[Any, ...]]:
        note = f"<p class='hint'>Fetching {markup.escape(name)}…</p>"
        yield (*(gr.skip() for _ in range(6)), note)
        try:
            titles, latent, alpha, question = self._first(name)
        except FastzooError as error:
            yield (*(gr.skip() for _ in range(6)), markup.problem(error))
            return
        hint = "<p class='hint'>Close and open this to look at its latents.</p>"
        yield titles, latent, self._slider(name, latent, alpha), question or gr.skip(), "", "", hint

    def _slider(self, name: str, latent: int, alpha: float) -> Any:
        end = self.engine.reach(name, latent)["end"]
        return gr.Slider(0, end, value=alpha, step=round(end / 200, 4))

    def _about(self, name: str, latent: float) -> tuple[Any, ...]:
        """The latent in a line, and the slider's range and window."""
        try:
            words = self.engine.writes(name, latent)
            reach = self.engine.reach(name, latent)
        except FastzooError as error:
            return gr.skip(), markup.problem(error), gr.skip(), gr.skip()
        known, step = reach["measured"], round(reach["end"] / 200, 4)
        slider = gr.Slider(0, reach["end"], step=step)
        return known and known["title"], self._line(latent, words), slider, markup.window(reach)

    @staticmethod
    def _line(latent: float, words: Sequence[str]) -> str:
        said = " ".join(map(markup.word, words))
        return f"<p class='hint'>Latent {int(latent)} makes likelier: {said}</p>"

    def _find(self, name: str) -> Iterator[tuple[Any, ...]]:
        yield (
            gr.skip(),
            gr.skip(),
            "<p class='hint'>Reading dialogues, which takes up to a minute the first time…</p>",
        )
        try:
            special = markup.special_latents(self.engine.special_latents(name))
            yield special, markup.strongest_latents(self.engine.strongest_latents(name)), ""
        except FastzooError as error:
            yield "", "", markup.problem(error)

    def _from_address(self, request: gr.Request) -> tuple[Any, ...]:
        """The choice that the address names; what is not in it is as at the start."""
        asked = request.query_params
        name = asked.get("sae") if asked.get("sae") in self.engine.sources else self.engine.names[0]
        try:
            titles, latent, alpha, question = self._first(name)
            wanted = asked.get("latent", "")
            if wanted.isascii() and wanted.isdigit() and int(wanted[:12]) < self.engine.open(name).sae.d_sae:
                latent = int(wanted)
                alpha, question = self._strength(name, latent)
            alpha = _number(asked.get("alpha"), alpha)
            words, reach = self.engine.writes(name, latent), self.engine.reach(name, latent)
        except FastzooError as error:
            return name, *(gr.skip() for _ in range(4)), markup.problem(error), "", ""
        question, text = asked.get("q", question)[:2000], asked.get("text", "")[:2000]
        slider, line = self._slider(name, latent, alpha), self._line(latent, words)
        return name, titles, latent, slider, question, line, markup.window(reach), text


def _number(text: str | None, usual: float) -> float:
    try:
        value = float(text or "")
    except ValueError:
        return usual
    return value if abs(value) <= 1e6 else usual
