"""The tab that looks into dialogues and latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gpu
import gradio as gr
import markup
from addresses import address, text_in
from chooser import QUIET, Chooser, html, told
from engine import Engine

from fastzoo.core.errors import FastzooError

LOOK: dict[str, Any] = {"concurrency_id": "look", **QUIET}

HERE = "(...values) => { if (new URLSearchParams(location.search).get('tab') === 'explore') ("
"""Another tab's address stays as it is."""


class ExploreTab:
    """A dialogue of the visitor's, token by token, and the page of the chosen latent."""

    def __init__(self, engine: Engine, chooser: Chooser) -> None:
        self.engine, self.chooser = engine, chooser
        self.read_dialogue = gr.State(None, time_to_live=3600)
        gr.HTML(
            "<p class='hint'>Which latents fire on a dialogue? It goes through the model's own chat template.</p>"
        )
        with gr.Row():
            self.user = gr.Textbox(label="user", lines=2, max_lines=8, max_length=2000, min_width=220)
            self.assistant = gr.Textbox(
                label="assistant (may be empty)", lines=2, max_lines=8, max_length=2000, min_width=220
            )
            self.system = gr.Textbox(
                label="system (may be empty)", lines=2, max_lines=8, max_length=2000, min_width=220
            )
        self.read = gr.Button("Look", variant="primary", min_width=80)
        self.tokens, self.fired = html(elem_id="dialogue"), html(elem_id="fired")
        self.note = gr.HTML()
        self.page = html(elem_id="latent-page")
        self.texts = [self.system, self.user, self.assistant]
        self.shown = [self.read_dialogue, self.tokens, self.fired, self.page]
        self.looked = [self.read_dialogue, self.tokens, self.fired, self.note]

    def connect(self) -> None:
        sae, latent = self.chooser.sae, self.chooser.latent
        look = self.read.click(self._look, [sae, *self.texts], self.looked, **QUIET, **gpu.MODEL)
        look.then(None, self.kept, None, js=self.address)
        marked: dict[str, Any] = {"trigger_mode": "always_last", **QUIET, **gpu.MODEL}
        latent.change(self._marked, [sae, latent, self.read_dialogue], self.tokens, **marked)
        self.tokens.click(self._token, [sae, self.read_dialogue], self.fired, **QUIET)
        for place in (self.fired, self.page):
            place.click(self.chooser.from_click, None, latent, **QUIET)
        shown = latent.change(self._page, [sae, latent], self.page, trigger_mode="always_last", **LOOK)
        shown.then(None, self.kept, None, js=HERE + self.address + ")(...values) }")

    @property
    def kept(self) -> list[Any]:
        """What the address keeps, as ``address`` takes it."""
        return [self.chooser.sae, self.chooser.latent, self.user, self.assistant, self.system]

    address = address("explore", ["sae", "latent", "text", "assistant", "system"])

    def from_address(self, asked: Mapping[str, str]) -> dict[Any, Any]:
        """The dialogue of an address."""
        texts = (text_in(asked, key) for key in ("system", "text", "assistant"))
        return dict(zip(self.texts, texts, strict=True))

    def page_after(self, event: Any) -> None:
        """Show the page of the latent that an event chose, whose number may be the one before."""
        event.then(self._page, [self.chooser.sae, self.chooser.latent], self.page, **LOOK)

    def after(self, loaded: Any) -> None:
        """Look at the dialogue that the page's address holds, and at the latent."""
        self.page_after(loaded)
        loaded.then(self._look_if_given, [self.chooser.sae, *self.texts], self.looked, **QUIET, **gpu.MODEL)

    def _look_if_given(self, name: str, system: str, user: str, assistant: str) -> Iterator[Any]:
        if (user or "").strip():
            yield from looked(name, system, user, assistant)
        else:
            yield tuple(gr.skip() for _ in self.looked)

    def _look(self, *values: Any) -> Iterator[Any]:
        yield from looked(*values)

    def _token(self, name: str, found: dict[str, Any] | None, event: gr.EventData) -> Any:
        place = event._data.get("position")
        known = found is not None and found["sae"] == name and isinstance(place, int)
        if not known or not 0 <= place < len(found["tokens"]):
            return gr.skip()
        entry = found["tokens"][place]
        try:
            writes = {x["latent"]: self.engine.writes(name, x["latent"]) for x in entry["latents"]}
        except FastzooError as error:
            return markup.problem(error)
        return markup.token_latents(entry, writes)

    def _marked(self, name: str, latent: Any, found: dict[str, Any] | None) -> Any:
        """The dialogue that was read, marked by the chosen latent."""
        if found is None or found["sae"] != name:
            return gr.skip()
        try:
            latent = self.engine.latent_of(name, latent)
            return markup.dialogue_tokens(gpu.read_dialogue(name, found["turns"], latent), latent)
        except FastzooError as error:
            return markup.problem(error)

    def _page(self, name: str, latent: Any) -> Iterator[str]:
        try:
            if self.engine.open(name).pages is None:
                yield "<p class='hint'>Reading dialogues, which takes up to a minute the first time…</p>"
            yield markup.latent_page(self.engine.latent_page(name, latent))
        except FastzooError as error:
            yield markup.problem(error)


@told(4)
def looked(name: str, system: str, user: str, assistant: str) -> Iterator[Any]:
    """The dialogue that was read, its tokens, an empty place for a token's latents, and a note."""
    texts = {"system": system, "user": user, "assistant": assistant}
    turns = [
        {"role": role, "content": text}
        for role, text in texts.items()
        if (text or "").strip() or role == "user"
    ]
    found = gpu.read_dialogue(name, turns)
    yield found, markup.dialogue_tokens(found), "<p class='hint'>Choose a token.</p>", ""
