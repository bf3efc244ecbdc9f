"""``fastzoo eval``."""

from __future__ import annotations

from typing import Annotated

import typer

from fastzoo.cli.app import Data, Json, MaxTokens, ModelName, Revision, Sources, print_json


def evaluate_saes(
    sources: Sources,
    data: Data = None,
    dialogues: Annotated[int, typer.Option(min=1, help="How many dialogues.")] = 200,
    loss_dialogues: Annotated[
        int,
        typer.Option(min=1, help="In how many of them to measure cross-entropies and KL, which take long."),
    ] = 50,
    model: ModelName = None,
    revision: Revision = None,
    max_tokens: MaxTokens = None,
    as_json: Json = False,
) -> None:
    """Measure SAEs of one language model, all in one pass."""
    from fastzoo.loading import assemble
    from fastzoo.results.evaluate import evaluate_together
    from fastzoo.results.summary import print_results, print_warnings

    together = assemble(sources, model_name=model, revision=revision, data=data, max_tokens=max_tokens)
    report = evaluate_together(together, dialogues, loss_dialogues)
    rows = [(k, figures, None, together.saes[k][1].skips_sinks) for k, figures in report["metrics"].items()]
    if as_json:
        print_json(report)
        print_warnings(rows)
    else:
        print_results(rows)
