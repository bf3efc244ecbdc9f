"""fastzoo's Space: steer a chat model with a latent, sweep over strengths, look into dialogues, browse the zoo.

``python app.py [SAE ...]`` with SAEs by name, folder or ``hf:org/repo`` (or in FASTZOO_SAES); without any, those found here.
"""

from __future__ import annotations

import os

# Read when gradio and huggingface_hub are imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import sys
import threading
from pathlib import Path
from typing import Any

import endpoints
import gpu
import gradio as gr
import results
import zoo
from addresses import once_loaded
from chooser import QUIET, Chooser
from engine import Engine
from explore import ExploreTab
from guard import Guard
from sources import find_saes
from starlette.middleware import Middleware
from steer import SteerTab
from sweep import SweepTab

from fastzoo.core.errors import FastzooError, InputError
from fastzoo.core.exit import report_failures

TABS = ("steer", "sweep", "explore", "zoo")

INTRODUCTION = (
    "<h1>fastzoo</h1><p>A language model computes with directions. A <b>sparse autoencoder</b> (SAE) finds thousands of "
    "them, called <b>latents</b>, that stand for something: a topic, a language, a manner. Push one while the model "
    "writes, and its answers turn that way; push too hard, and they break.</p>"
)

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

LOOKS: dict[str, Any] = {
    "theme": gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO),
    "css_paths": Path(__file__).parent / "style.css",
    "footer_links": ["api"],
    "ssr_mode": False,
}

QUEUE: dict[str, Any] = {"max_size": 100, "default_concurrency_limit": 4}
"""Visitors who wait, at most. The model itself answers one at a time (``gpu.MODEL``)."""


def build(engine: Engine, source: results.Results) -> gr.Blocks:
    """The page."""
    gpu.show(engine)
    with gr.Blocks(title="fastzoo: steering and SAEs of instruct models", analytics_enabled=False) as page:
        gr.HTML(INTRODUCTION)
        chooser = Chooser(engine)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Steer", id="steer") as steer_tab:
                steering = SteerTab(chooser)
            with gr.Tab("Sweep", id="sweep") as sweep_tab:
                sweeping = SweepTab(engine, chooser)
            with gr.Tab("Explore", id="explore") as explore_tab:
                exploring = ExploreTab(engine, chooser)
            with gr.Tab("Zoo", id="zoo") as zoo_tab:
                kept = zoo.build(page, source)
        chooser.connect(page, steering, sweeping, exploring)
        for tab, part in ((steer_tab, steering), (sweep_tab, sweeping), (explore_tab, exploring)):
            tab.select(None, part.kept, None, js=once_loaded(part.address))
        zoo_tab.select(None, kept, None, js=once_loaded(zoo.ADDRESS))
        endpoints.add(engine, source)

        def chosen_tab(request: gr.Request) -> Any:
            wanted = request.query_params.get("tab")
            return gr.Tabs(selected=wanted if wanted in TABS else "steer")

        page.load(chosen_tab, None, tabs, **QUIET)
    page.queue(**QUEUE)
    return page


def warm(engine: Engine) -> None:
    """Read the dialogues that latents are looked up in, beside the first visitors."""

    def work() -> None:
        try:
            engine.pages(engine.names[0])
        except FastzooError as error:
            print(f"{engine.names[0]}: {error}", file=sys.stderr)

    threading.Thread(target=work, daemon=True).start()


def start(saes: list[str], **launch: Any) -> None:
    """Serve the page until it is interrupted. Raises FastzooError: an SAE cannot be used."""
    engine = Engine(find_saes(saes))
    engine.open(engine.names[0])
    page = build(engine, results.Results())
    warm(engine)
    print(f"{len(engine.names)} SAEs; the first is {engine.names[0]}", file=sys.stderr)
    try:
        page.launch(
            **LOOKS,
            mcp_server=endpoints.has_mcp(),
            app_kwargs={"middleware": [Middleware(Guard)]},
            max_file_size=1,
            **launch,
        )
    except OSError as error:
        if "port" not in str(error):
            raise
        raise InputError(f"--port: {error}") from None


if __name__ == "__main__":
    report_failures(lambda: start(sys.argv[1:] or os.environ.get("FASTZOO_SAES", "").split()))
