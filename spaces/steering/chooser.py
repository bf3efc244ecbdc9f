"""Which SAE and which latent: one choice for all tabs, and what they share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import gradio as gr
import markup
from addresses import LOADED, number_in, text_in
from engine import LARGEST_ALPHA, Engine

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
            self.note = gr.HTML("<p class='hint'>Reading dialogues…</p>")
            self.special, self.strong = html(), html()

    def connect(self, page: gr.Blocks, steering: Any, sweeping: Any, exploring: Any) -> None:
        """Let every tab follow the choice."""
        self.steering, self.sweeping, self.exploring = steering, sweeping, exploring
        both = [self.sae, self.latent]
        told = [self.featured, self.about, steering.alpha, steering.window]
        self.featured.input(
            self._pick_featured,
            [self.sae, self.featured],
            [self.latent, steering.alpha, steering.question],
            **QUIET,
        )
        found = [self.special, self.strong, self.note]
        start = [*both, self.featured, self.about, steering.alpha, steering.window, steering.question]
        event = self.sae.input(self._pick_sae, self.sae, [*start, *found, *exploring.shown], **QUIET)
        # The same number is another latent now.
        exploring.page_after(event)
        for place in (self.special, self.strong):
            place.click(self.from_click, None, self.latent, **QUIET)
        self.latent.change(self._about, both, told, **QUIET)
        self.finder.expand(self._find, self.sae, found, concurrency_id="look", **QUIET)
        settings = [*steering.how, sweeping.questions, sweeping.alphas, *exploring.texts]
        loaded = page.load(self._from_address, None, [*start, *settings], **QUIET)
        loaded.then(None, None, None, js=LOADED)
        exploring.after(loaded)
        for tab in (steering, sweeping, exploring):
            tab.connect()

    @staticmethod
    def from_click(event: gr.EventData) -> Any:
        """The latent of a button."""
        latent = event._data.get("latent")
        return latent if isinstance(latent, int) and latent >= 0 else gr.skip()

    def _start(self, name: str, latent: int | None = None, alpha: float | None = None) -> dict[Any, Any]:
        """The page for an SAE: at its first measured latent, unless another one is asked for. Raises FastzooError."""
        engine = self.engine
        measured = engine.open(name).measured
        if latent is None:
            latent = measured[0].latent if measured else 0
        reach = engine.reach(name, latent)
        known = reach["measured"]
        titles = [found.title for found in measured]
        question = known["question"] if known else engine.first_question(name)
        return {
            self.sae: name,
            self.latent: latent,
            self.featured: gr.Dropdown(titles, value=known and known["title"], visible=bool(titles)),
            self.about: self._line(latent, engine.writes(name, latent)),
            self.steering.alpha: slider(reach, alpha),
            self.steering.window: markup.window(reach),
            self.steering.question: question,
        }

    def _pick_featured(self, name: str, title: str) -> Any:
        try:
            for known in self.engine.open(name).measured:
                if known.title == title:
                    found = self._start(name, known.latent)
                    steering = self.steering
                    return {key: found[key] for key in (self.latent, steering.alpha, steering.question)}
        except FastzooError as error:  # it was there a moment ago
            print(f"{name}: {error}", file=sys.stderr)
        return {self.latent: gr.skip()}

    def _pick_sae(self, name: str) -> Iterator[dict[Any, Any]]:
        yield {self.about: f"<p class='hint'>Fetching {markup.escape(name)}…</p>"}
        try:
            found = self._start(name)
        except FastzooError as error:
            yield {self.about: markup.problem(error)}
            return
        hint = "<p class='hint'>Close and open this to look at its latents.</p>"
        empty = dict.fromkeys((self.special, self.strong, *self.exploring.shown), "")
        yield found | empty | {self.note: hint, self.exploring.read_dialogue: None}

    def _about(self, name: str, latent: Any) -> dict[Any, Any]:
        """The latent in a line, and the slider's range and window."""
        try:
            found = self._start(name, self.engine.latent_of(name, latent))
        except FastzooError as error:
            return {self.about: markup.problem(error)}
        reach = self.engine.reach(name, latent)
        return {
            self.featured: found[self.featured],
            self.about: found[self.about],
            self.steering.alpha: gr.Slider(0, reach["end"], step=step_of(reach)),
            self.steering.window: found[self.steering.window],
        }

    @staticmethod
    def _line(latent: int, words: Sequence[str]) -> str:
        said = " ".join(map(markup.word, words))
        return f"<p class='hint'>Latent {latent} makes likelier: {said}</p>"

    def _find(self, name: str) -> Iterator[dict[Any, Any]]:
        yield {self.note: "<p class='hint'>Reading dialogues, which takes up to a minute the first time…</p>"}
        try:
            yield {
                self.special: markup.special_latents(self.engine.special_latents(name)),
                self.strong: markup.strongest_latents(self.engine.strongest_latents(name)),
                self.note: "",
            }
        except FastzooError as error:
            yield {self.special: "", self.strong: "", self.note: markup.problem(error)}

    def _from_address(self, request: gr.Request) -> dict[Any, Any]:
        """The view that the address names; what is not in it is as at the start."""
        asked = dict(request.query_params)
        name = asked["sae"] if asked.get("sae") in self.engine.sources else self.engine.names[0]
        try:
            latent = self.engine.latent_of(name, int(number_in(asked, "latent", -1, 0, 1e12)))
        except FastzooError:
            latent = None
        try:
            alpha = number_in(asked, "alpha", -1, 0, LARGEST_ALPHA)
            found = self._start(name, latent, None if alpha < 0 else alpha)
        except FastzooError as error:
            return {self.about: markup.problem(error)}
        if question := text_in(asked, "q"):
            found[self.steering.question] = question
        return (
            found
            | self.steering.from_address(asked)
            | self.sweeping.from_address(asked)
            | self.exploring.from_address(asked)
        )


def slider(reach: dict[str, Any], alpha: float | None = None) -> Any:
    """The slider over a latent's range, at a strength that is asked for, else at the best one or in the middle."""
    end = reach["end"]
    if alpha is None:
        alpha = reach["best"] if reach["best"] is not None else end / 2
    return gr.Slider(0, end, value=float(f"{min(max(alpha, 0.0), end):.4g}"), step=step_of(reach))


def step_of(reach: dict[str, Any]) -> float:
    return float(f"{reach['end'] / 200:.2g}")
