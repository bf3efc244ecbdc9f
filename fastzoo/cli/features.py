"""``fastzoo features``."""

from __future__ import annotations

from typing import Annotated

import typer

from fastzoo.cli.app import (
    SOURCE_HELP,
    Json,
    ModelName,
    Revision,
    complete_names,
    print_json,
)
from fastzoo.core.errors import InputError


def find_features(
    sources: Annotated[list[str], typer.Argument(help=SOURCE_HELP, autocompletion=complete_names)],
    text: Annotated[
        str | None, typer.Option(help="What fires on each token of this user message.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="--text as it is, without the chat template.")
    ] = False,
    token: Annotated[
        str | None,
        typer.Option(help="What fires most on this token: its text, or its id (any number)."),
    ] = None,
    latent: Annotated[
        list[int] | None,
        typer.Option(
            min=0, help="Where this latent fires, and what it writes; more than once: each."
        ),
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="activation|output",
            help="The latents that fire most strongly, or that steering brings out most.",
        ),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(
            min=1, help="For --rank output: how many, by activation, are tried (default: 256)."
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="For --rank output: steering strength, in mean residual norms (default: 1)."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many are shown.")] = 5,
    data: Annotated[
        str, typer.Option(help="Dialogues: 'embedded', a file, or a Hub dataset id.")
    ] = "embedded",
    dialogues: Annotated[int, typer.Option(min=1, help="How many dialogues, at most.")] = 1000,
    model: ModelName = None,
    revision: Revision = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Truncate dialogues (default: 8192 or the context).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Latents of SAEs of one language model: of special tokens (by default), or what is asked.

    For each special token the latents with the highest per-sample maximum, averaged over dialogues,
    as in arXiv 2506.07691, Appendix F.3.
    """
    asked = {"--text": text is not None, "--token": token is not None, "--rank": rank is not None}
    asked["--latent"] = bool(latent) and rank is None
    if sum(asked.values()) > 1:
        raise InputError(f"{' and '.join(k for k, v in asked.items() if v)} do not go together")
    if raw and text is None:
        raise InputError("--raw goes with --text")
    for option, value in (("--candidates", candidates), ("--alpha", alpha)):
        if value is not None and rank != "output":
            raise InputError(f"{option} goes with --rank output")
    from fastzoo.cli import feature_tables as tables
    from fastzoo.interpret import by_latent as latent_reports
    from fastzoo.interpret import by_token as features
    from fastzoo.loading import assemble

    saes = assemble(sources, model_name=model, revision=revision, data=data, max_tokens=max_tokens)
    if text is not None:
        report = features.of_text(saes, text, raw=raw, top=top)
        show = tables.print_text
    elif token is not None:
        report = features.of_token(saes, token, dialogues=dialogues, top=top)
        show = tables.print_tokens
    elif rank is not None:
        report = latent_reports.ranking(
            saes,
            rank,
            latents=latent or [],
            candidates=256 if candidates is None else candidates,
            alpha=1.0 if alpha is None else alpha,
            dialogues=dialogues,
            top=top,
        )
        show = tables.print_ranking
    elif latent:
        report = latent_reports.of_latents(saes, latent, dialogues=dialogues, top=top)
        show = tables.print_latents
    else:
        report = features.of_special_tokens(saes, dialogues=dialogues, top=top)
        show = tables.print_tokens
    if as_json:
        print_json(report)
    else:
        show(report)
