"""What the page does as named endpoints for gradio_client, and as tools of an MCP server."""

from __future__ import annotations

import importlib.util
import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import gpu
import gradio as gr
import results
from engine import USUAL_TOKENS, Engine, Push, Turn

from fastzoo.core.errors import FastzooError, InputError


def has_mcp() -> bool:
    """Whether Gradio can serve MCP here."""
    return importlib.util.find_spec("mcp") is not None


def plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    """With the expected failures of fastzoo as errors of one line, which the caller is told."""

    @wraps(function)
    def answer(*arguments: Any, **named: Any) -> Any:
        with in_one_line():
            return function(*arguments, **named)

    return answer


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turns what is raised into an error that the caller is told: fastzoo's own words, or that something is wrong here."""
    try:
        yield
    except FastzooError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Exception as error:
        traceback.print_exc()
        raise gr.Error(f"a fault of the page's own: {type(error).__name__}", print_exception=False) from None


def add(engine: Engine, source: results.Results) -> None:
    """Add the endpoints to the page that is being built."""
    ours = Endpoints(engine, source)
    for function in (ours.saes, ours.latents, ours.latent, ours.zoo):
        gr.api(plainly(function), api_name=function.__name__)
    gr.api(plainly(ours.explore), api_name="explore", **gpu.MODEL)
    for streaming in (ours.steer, ours.sweep):
        gr.api(streaming, api_name=streaming.__name__, **gpu.MODEL)


class Endpoints:
    """One method each; programs read its signature and docstring."""

    def __init__(self, engine: Engine, source: results.Results) -> None:
        self._engine, self._source = engine, source

    def saes(self) -> list[str]:
        """Names of the SAEs that can be steered with here; the first is the default."""
        return self._engine.names

    def latents(self, sae: str) -> dict:
        """Latents of an SAE that are worth a try: 'measured' (with their window of strengths), those that fire most on
        'special' tokens, and the 'strongest' others, with the tokens that they make likelier.

        Args:
            sae: name of an SAE.
        """
        found = {"measured": [known.model_dump() for known in self._engine.open(sae).measured]}
        return found | {
            "special": self._engine.special_latents(sae),
            "strongest": self._engine.strongest_latents(sae),
        }

    def latent(self, sae: str, latent: int) -> dict:
        """All that is known of a latent: how often and where it fires, what it makes likelier, similar latents.

        Args:
            sae: name of an SAE.
            latent: number of the latent, from 0.
        """
        return self._engine.latent_page(sae, latent)

    def explore(self, sae: str, messages: list) -> dict:
        """The strongest latents on every token of a dialogue, after the model's chat template.

        Args:
            sae: name of an SAE.
            messages: turns as {"role": "user", "content": "..."}; roles are system, user and assistant.
        """
        return gpu.read_dialogue(sae, messages)

    def steer(
        self,
        sae: str,
        latent: int,
        alpha: float,
        question: str,
        mode: str = "add",
        positions: str = "all",
        temperature: float = 0.0,
        seed: int = 0,
        max_new_tokens: int = USUAL_TOKENS,
        history: list | None = None,
    ) -> Iterator[dict]:
        """A chat model's answer to a question without and with a latent pushed; grows until 'done'.

        Args:
            sae: name of an SAE.
            latent: number of the latent, from 0.
            alpha: how hard it is pushed, in raw multiples of its decoder row.
            question: what the user asks.
            mode: add, clamp, scale or ablate.
            positions: all, prompt, generated, user or assistant.
            temperature: 0 is greedy.
            seed: of sampling.
            max_new_tokens: length of each answer, at most.
            history: earlier turns as {"question": "...", "unsteered": "...", "steered": "..."}.
        """
        push = Push(sae, latent, alpha, mode, positions, temperature, seed, max_new_tokens)
        with in_one_line():
            yield from gpu.answers(push, _turns(history), question)

    def sweep(self, sae: str, latent: int, questions: list, alphas: list) -> Iterator[dict]:
        """Answers to questions over strengths of a latent, with scores and the window of strengths that change answers
        without spoiling them.

        Args:
            sae: name of an SAE.
            latent: number of the latent, from 0.
            questions: one or several texts.
            alphas: strengths, in raw multiples of the latent's decoder row.
        """
        with in_one_line():
            for written, outcome in gpu.sweep(Push(sae, latent, 0.0), questions, alphas):
                if outcome is not None:
                    yield {"done": True, **json.loads(json.dumps(outcome.to_value()))}
                elif written % 8 == 0:  # who no longer listens ends it here
                    yield {"done": False, "tokens_written": written}

    def zoo(self, published_only: bool = True) -> list:
        """The table of SAEs: what is published, and with published_only false also the paper's 240.

        Args:
            published_only: leave out what nobody has published.
        """
        rows, _ = self._source.get()
        return results.select(rows, {}, published_only)


def _turns(history: Any) -> list[Turn]:
    """Earlier turns as a program gives them. Raises InputError."""
    form = 'the history is a list of {"question": "...", "unsteered": "...", "steered": "..."}'
    if history is not None and not isinstance(history, list):
        raise InputError(form)
    for turn in history or []:
        keys = {"question", "unsteered", "steered"}
        texts = isinstance(turn, dict) and all(isinstance(value, str) for value in turn.values())
        if not texts or "question" not in turn or not set(turn) <= keys:
            raise InputError(form)
    return [Turn(**turn) for turn in history or []]
