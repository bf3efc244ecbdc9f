"""The tab in which questions are asked over many strengths at once."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import gpu
import gradio as gr
import markup
from addresses import address, text_in
from chooser import QUIET, Chooser, told
from engine import MOST_ALPHAS, MOST_QUESTIONS, Engine, Push

from fastzoo.cli.steer_tables import summary
from fastzoo.core.errors import InputError
from fastzoo.steering.outcome import Outcome
from fastzoo.steering.report import answers, draw_curves, render_report
from fastzoo.steering.sweep_rows import LATENT

STEPS = 7
"""Strengths that are proposed."""

CODE: dict[str, Any] = {
    "interactive": False,
    "show_line_numbers": False,
    "buttons": ["copy"],
    "lines": 1,
    "visible": False,
}


class SweepTab:
    """Questions, strengths, and a table of answers with curves."""

    def __init__(self, engine: Engine, chooser: Chooser) -> None:
        self.engine, self.chooser = engine, chooser
        with gr.Row():
            label = f"questions, one a line (up to {MOST_QUESTIONS}; from 2 on a window is looked for)"
            self.questions = gr.Textbox(label=label, lines=2, max_lines=6, max_length=4000, scale=3)
            with gr.Column(scale=2, min_width=240):
                label = f"strengths (up to {MOST_ALPHAS}; empty: over the slider's range)"
                self.alphas = gr.Textbox(label=label, max_length=200)
                with gr.Row():
                    self.run = gr.Button("Sweep", variant="primary", min_width=80)
                    self.stop = gr.Button("Stop", size="sm", min_width=60)
        self.note = gr.HTML(elem_id="sweep-note")
        self.curves, self.table = gr.HTML(elem_id="curves"), gr.HTML()
        self.export = gr.HTML()
        self.snippet = gr.Code(language="python", label="the same in Python", **CODE)

    def connect(self) -> None:
        inputs = [self.chooser.sae, self.chooser.latent, self.questions, self.alphas]
        outputs = [self.curves, self.table, self.export, self.snippet, self.note]
        running: dict[str, Any] = {**QUIET, **gpu.MODEL}
        event = self.run.click(self._run, inputs, outputs, **running)
        self.stop.click(None, None, None, cancels=[event], **QUIET)
        event.then(None, self.kept, None, js=self.address)

    @property
    def kept(self) -> list[Any]:
        """What the address keeps, as ``address`` takes it."""
        return [self.chooser.sae, self.chooser.latent, self.questions, self.alphas]

    address = address("sweep", ["sae", "latent", "questions", "strengths"])

    def from_address(self, asked: Mapping[str, str]) -> dict[Any, Any]:
        """Questions and strengths of an address."""
        return {
            self.questions: text_in(asked, "questions", 4000),
            self.alphas: text_in(asked, "strengths", 200),
        }

    def _run(self, *values: Any) -> Iterator[Any]:
        yield from swept(self.engine, *values)


@told(5)
def swept(engine: Engine, sae: str, latent: Any, text: str, strengths: str) -> Iterator[Any]:
    """Curves, table, export, snippet and note."""
    questions = [line.strip() for line in (text or "").splitlines() if line.strip()]
    push = Push(sae, latent, 0.0)
    alphas = read_alphas(strengths) or proposed(engine, sae, latent)
    outcome, blank = None, ("", "", "", gr.Code(visible=False))
    for written, outcome in gpu.sweep(push, questions, alphas):
        if outcome is None and written % 8 == 0:
            yield *blank, f"<p class='hint'>{written} tokens written…</p>"
    assert outcome is not None
    known = engine.reach(sae, latent)
    curves = draw_curves(outcome, known["window"])
    picture = base64.b64encode(curves.encode()).decode()
    image = f"<img class='paper' alt='effect and quality over strength' src='data:image/svg+xml;base64,{picture}'>"
    page = base64.b64encode(render_report(outcome).encode()).decode()
    export = f"<a class='download' download='steering.html' href='data:text/html;base64,{page}'>Save as one HTML page</a>"
    table = markup.sweep_table([q.text for q in outcome.questions], answers(outcome, LATENT))
    said = f"<p>{markup.escape(summary(outcome))}</p>"
    yield image if curves else "", table, export, gr.Code(snippet(outcome), visible=True), said


def read_alphas(text: str | None) -> list[float]:
    """Numbers between blanks or commas. Raises InputError."""
    try:
        return [float(word) for word in (text or "").replace(",", " ").split()]
    except ValueError:
        raise InputError("strengths are numbers, such as 0 10 20 40") from None


def proposed(engine: Engine, sae: str, latent: Any) -> list[float]:
    """Strengths over the slider's range; those that were measured where that was done."""
    known = engine.reach(sae, latent)
    if known["measured"]:
        alphas: list[float] = known["measured"]["alphas"]
        return alphas[:MOST_ALPHAS]
    return [round(known["end"] * step / (STEPS - 1), 2) for step in range(STEPS)]


def snippet(outcome: Outcome) -> str:
    """Python that gives the same answers."""
    about, first = outcome.about, outcome.questions[0].text
    (latent,), alphas = about["latents"], [float(f"{alpha:.6g}") for alpha in about["alphas"]]
    return f"""import fastzoo

together = fastzoo.assemble([{about["sae"]!r}])  # the SAE, its model and chat template
model, tokenizer = together.reader.model, together.chat.tokenizer
chat = [{{"role": "user", "content": {first!r}}}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
for alpha in {alphas}:
    with fastzoo.steer(model, {about["sae"]!r}, {{{latent}: alpha}}):
        answer = model.generate(**prompt, max_new_tokens={about["settings"]["max_new_tokens"]}, do_sample=False)
    print(alpha, tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
"""
