"""``fastzoo steer``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fastzoo.cli.app import (
    Json,
    ModelName,
    Revision,
    Source,
    print_json,
)
from fastzoo.core.errors import InputError


def _text(parameter: typer.CallbackParam, value: str | None) -> str | None:
    """An option's text. An empty one, as of a shell's variable that is not set, is a mistake."""
    if value is None:
        return None
    if not value.strip(" ,"):
        raise InputError(f"{parameter.opts[0]}: nothing is given")
    return value.encode("utf-8", "replace").decode()  # bytes that are not UTF-8 become "?"


def steer_sae(
    source: Source,
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="QUESTION", help="By default fastzoo's own.")
    ] = None,
    latent: Annotated[
        list[int] | None, typer.Option(metavar="K", help="Latents to steer with, all at once.")
    ] = None,
    alpha: Annotated[
        list[float] | None,
        typer.Option(
            metavar="A",
            help="Strengths, several after one --alpha; by default the paper's for its models, 0 to 1.2 "
            "norms for others.",
        ),
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Find the latent (of those given, or of all) and window.")
    ] = False,
    special: Annotated[
        bool, typer.Option("--special", help="--auto among the latents of special tokens.")
    ] = False,
    candidates: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many latents --auto tries at first.")
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(
            metavar="UNITS",
            callback=_text,
            help="Of alpha: raw; max (the latent's mean maximum); norm (the residual stream's).",
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            metavar="MODE",
            help="What alpha is: add (times the latent's direction), clamp (the latent's activation), "
            "scale (its factor), ablate (it is taken away; needs no alpha).",
        ),
    ] = "add",
    positions: Annotated[
        str,
        typer.Option(
            metavar="WHERE", help="all, prompt or generated; or the turns of user or assistant."
        ),
    ] = "all",
    file: Annotated[
        Path | None,
        typer.Option("--questions", metavar="FILE", help="Questions from .txt, .jsonl or .yaml."),
    ] = None,
    concept: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            callback=_text,
            help="Words that the answer should turn to, by commas.",
        ),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(
            metavar="CODE",
            callback=_text,
            help="Or a language: en, fr, de, es, it, pt or nl.",
        ),
    ] = None,
    wish: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            callback=_text,
            help="The same as a system prompt, which is tried beside it; by default the language, the "
            "concept's words or the latent's.",
        ),
    ] = None,
    control: Annotated[bool, typer.Option(help="Sweep a random direction beside it.")] = True,
    model: ModelName = None,
    revision: Revision = None,
    data: Annotated[
        str, typer.Option(metavar="SOURCE", help="Dialogues that latents are measured on.")
    ] = "embedded",
    dialogues: Annotated[int, typer.Option(metavar="N", min=1, help="How many of them.")] = 200,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Of each answer.")] = 200,
    temperature: Annotated[
        float, typer.Option(metavar="T", min=0, max=100, help="0: greedy.")
    ] = 0.0,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=2**63 - 1, help="Of sampling and the random direction."
        ),
    ] = 0,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            callback=_text,
            help="A chat model that rates the answers: on the Hub, or of --judge-url.",
        ),
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            callback=_text,
            help="Its server, as http://127.0.0.1:8000/v1; a key is read from FASTZOO_JUDGE_KEY.",
        ),
    ] = None,
    judge_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keeps the judge's replies: what was rated is not asked again."
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a report as one HTML file.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all answers and scores as JSON.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Steer the SAE's language model with latents, and find the alphas that change answers without degrading them."""
    from fastzoo.cli.steer_tables import LiveAnswers, print_outcome
    from fastzoo.core.files import refuse_unwritable, refused, write_text
    from fastzoo.steering.ask import Ask
    from fastzoo.steering.report import render_report
    from fastzoo.steering.run import steer_sae as run
    from fastzoo.steering.search import CANDIDATES
    from fastzoo.steering.sweep import Settings

    outputs = [path for path in (save, html) if path is not None]
    kept = [*outputs, judge_cache] if judge_cache is not None else outputs
    for path in kept:
        refuse_unwritable(path)
    if len({path.resolve() for path in kept}) < len(kept):
        raise InputError("two of --html, --save and --judge-cache name the same file")
    ask = Ask(
        source,
        questions=questions or (),
        file=file,
        latents=latent or (),
        auto=auto,
        special=special,
        candidates=candidates or CANDIDATES,
        alphas=alpha or (),
        units=units,
        mode=mode,
        positions=positions,
        concept=[word.strip() for word in (concept or "").split(",") if word.strip()],
        language=language,
        wish=wish,
        control=control,
        model=model,
        revision=revision,
        data=data,
        dialogues=dialogues,
        judge=judge,
        judge_url=judge_url,
        judge_cache=judge_cache,
        settings=Settings(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed),
    )
    outcome = run(ask, LiveAnswers)
    failures: list[BaseException] = []
    for path in outputs:
        text = (
            json.dumps(outcome.to_value(), ensure_ascii=False, allow_nan=False)
            if path is save
            else render_report(outcome)
        )
        try:
            write_text(path, text)
            print(f"wrote {path}", file=sys.stderr)
        except OSError as error:
            failures.append(refused(path, error))
    if as_json:
        print_json(outcome.to_value())
    else:
        print_outcome(outcome)
    # Only now, so that neither a judge nor a full disk costs the answers.
    if outcome.judge_failure is not None:
        print("the judge did not rate all answers; all else is there", file=sys.stderr)
        failures.append(outcome.judge_failure)
    for failure in failures:
        raise failure
