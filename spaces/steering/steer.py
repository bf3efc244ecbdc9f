"""The tab in which a visitor asks, pushes a latent, and sees both answers being written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import gpu
import gradio as gr
import markup
from addresses import address, number_in, one_of
from chooser import QUIET, Chooser, told
from engine import MOST_TOKENS, POSITIONS, USUAL_TOKENS, Push, Turn

from fastzoo.steering.edits import MODES

SHOWN_EVERY = 0.06
"""Seconds between two pictures of answers that are being written."""


class SteerTab:
    """Question, strength, and two answers side by side."""

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self.history = gr.State([], time_to_live=3600)
        with gr.Row(elem_id="ask"):
            self.question = gr.Textbox(label="question", lines=1, max_lines=4, max_length=2000, scale=4)
            with gr.Column(scale=1, min_width=180):
                self.ask = gr.Button("Ask", variant="primary")
                with gr.Row():
                    self.again = gr.Button("Again", size="sm", min_width=60)
                    self.stop = gr.Button("Stop", size="sm", min_width=60)
                    self.anew = gr.Button("New chat", size="sm", min_width=60)
        self.alpha = gr.Slider(
            0,
            100,
            value=0,
            label="strength: let go, and the last question is answered again",
            elem_id="alpha",
        )
        self.window = gr.HTML(elem_id="window")
        with gr.Accordion("How it is steered", open=False), gr.Row():
            self.mode = gr.Dropdown(list(MODES), value="add", label="mode", min_width=110)
            self.positions = gr.Dropdown(list(POSITIONS), value="all", label="positions", min_width=110)
            self.temperature = gr.Number(
                0, label="temperature (0: greedy)", minimum=0, maximum=5, step=0.1, min_width=110
            )
            self.seed = gr.Number(0, label="seed", precision=0, minimum=0, min_width=80)
            self.length = gr.Number(
                USUAL_TOKENS, label="tokens", precision=0, minimum=1, maximum=MOST_TOKENS, min_width=80
            )
        self.how = [self.mode, self.positions, self.temperature, self.seed, self.length]
        with gr.Row(elem_id="answers"):
            self.unsteered = gr.HTML(markup.conversation([], "unsteered"))
            self.steered = gr.HTML(markup.conversation([], "steered"))
        self.verdict = gr.HTML(elem_id="verdict")
        gr.HTML(
            "<p class='hint'>Darker tokens: the latent fires there, before it is pushed. Hover over a token, or move to it by "
            "Tab, for its activation and what the model thought likely, without and with steering.</p>"
        )

    def connect(self) -> None:
        """Let the tab answer."""
        inputs = [self.chooser.sae, self.chooser.latent, self.alpha, *self.how, self.question, self.history]
        outputs = [self.history, self.unsteered, self.steered, self.verdict]
        running: dict[str, Any] = {**QUIET, **gpu.MODEL}
        events = [
            event(function, inputs, outputs, **running)
            for event, function in (
                (self.ask.click, self._ask),
                (self.question.submit, self._ask),
                (self.again.click, self._again),
                (self.alpha.release, self._again),
            )
        ]
        self.stop.click(None, None, None, cancels=events, **QUIET)
        self.anew.click(self._anew, None, outputs, cancels=events, **QUIET)
        for event in events:
            event.then(None, self.kept, None, js=self.address)

    @property
    def kept(self) -> list[Any]:
        """What the address keeps, as ``address`` takes it."""
        return [self.chooser.sae, self.chooser.latent, self.alpha, self.question, *self.how]

    address = address(
        "steer", ["sae", "latent", "alpha", "q", "mode", "positions", "temperature", "seed", "tokens"]
    )

    def from_address(self, asked: Mapping[str, str]) -> dict[Any, Any]:
        """How to steer, as an address says."""
        return {
            self.mode: one_of(asked, "mode", list(MODES)),
            self.positions: one_of(asked, "positions", POSITIONS),
            self.temperature: number_in(asked, "temperature", 0, 0, 5),
            self.seed: int(number_in(asked, "seed", 0, 0, 2**31)),
            self.length: int(number_in(asked, "tokens", USUAL_TOKENS, 1, MOST_TOKENS)),
        }

    @staticmethod
    def _anew() -> tuple[Any, ...]:
        return [], markup.conversation([], "unsteered"), markup.conversation([], "steered"), ""

    def _ask(self, *values: Any) -> Iterator[Any]:
        yield from self._answer(*values)

    def _again(self, *values: Any) -> Iterator[Any]:
        """The last question once more, as the slider has it now."""
        *how, _, history = values
        if history:
            yield from self._answer(*how, history[-1].question, history[:-1])
        else:
            yield tuple(gr.skip() for _ in range(4))

    def _answer(self, *values: Any) -> Iterator[Any]:
        yield from answer(*values)


@told(4)
def answer(*values: Any) -> Iterator[Any]:
    """History, both columns and the verdict, while the answers are written."""
    *how, question, history = values
    sae, latent, alpha, mode, positions, temperature, seed, length = how
    push = Push(sae, latent, alpha, mode, positions, temperature, seed, length)
    before: list[Turn] = list(history or [])
    shown = 0.0
    for found in gpu.answers(push, before, question):
        if not found["done"] and time.monotonic() - shown < SHOWN_EVERY:
            continue
        shown = time.monotonic()
        turns = [*before, Turn(question, found["unsteered"], found["steered"])]
        last = dict.fromkeys(markup.SIDES, None) if not found["done"] else _tokens(found["tokens"])
        columns = (
            markup.conversation([(t.question, getattr(t, side)) for t in turns], side, last[side])
            for side in markup.SIDES
        )
        yield turns, *columns, markup.verdict(found) if found["done"] else "<p class='hint'>writing…</p>"


def _tokens(tokens: dict[str, Any]) -> dict[str, Any]:
    """Both last answers as HTML, on one scale."""
    largest = max((view["activation"] for side in tokens.values() for view in side), default=0.0)
    return {side: markup.answer_tokens(views, largest) for side, views in tokens.items()}
