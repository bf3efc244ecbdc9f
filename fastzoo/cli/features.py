"""``fastzoo features``."""

from __future__ import annotations

from typing import Annotated

import typer

from fastzoo.cli.app import Data, Json, MaxTokens, ModelName, Revision, Sources, print_json
from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line


def find_features(
    sources: Sources,
    text: Annotated[str | None, typer.Option(help="What fires on each token of this user message.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="--text as it is, without the chat template.")] = False,
    token: Annotated[
        str | None, typer.Option(help="What fires most on this token: its text, or its id (any number).")
    ] = None,
    latent: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Where this latent fires, and what it writes; can be repeated."),
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
        typer.Option(min=1, help="For --rank output: how many, by activation, are tried (default: 256)."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="For --rank output: steering strength, in mean residual norms (default: 1)."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many are shown.")] = 5,
    data: Data = None,
    dialogues: Annotated[int, typer.Option(min=1, help="How many dialogues, at most.")] = 1000,
    model: ModelName = None,
    revision: Revision = None,
    max_tokens: MaxTokens = None,
    as_json: Json = False,
) -> None:
    """Latents of SAEs of one language model: those of special tokens (by default), or what you ask for.

    For each special token the latents with the highest per-sample maximum, averaged over dialogues,
    as in arXiv 2506.07691, Appendix F.3.
    """
    given = {"--text": text is not None, "--token": token is not None, "--rank": rank is not None}
    given["--latent"] = bool(latent) and rank is None
    asked = [option for option, is_given in given.items() if is_given]
    if len(asked) > 1:
        raise InputError(f"{' and '.join(asked)} do not go together")
    if raw and text is None:
        raise InputError("--raw goes with --text")
    if rank not in (None, "activation", "output"):
        raise InputError(f"--rank: '{one_line(rank, 40)}' is not one of activation, output")
    for option, value in (("--candidates", candidates), ("--alpha", alpha)):
        if value is not None and rank != "output":
            raise InputError(f"{option} goes with --rank output")
    from fastzoo.cli import feature_tables as tables
    from fastzoo.interpret import by_latent, by_token
    from fastzoo.loading import assemble

    saes = assemble(sources, model_name=model, revision=revision, data=data, max_tokens=max_tokens)
    show, latents, how = tables.print_tokens, latent or (), {"dialogues": dialogues, "top": top}
    if text is not None:
        report, show = by_token.of_text(saes, text, raw=raw, top=top), tables.print_text
    elif token is not None:
        report = by_token.of_token(saes, token, **how)
    elif rank == "activation":
        report, show = by_latent.rank_by_activation(saes, latents=latents, **how), tables.print_ranking
    elif rank == "output":
        strength = 1.0 if alpha is None else alpha
        report = by_latent.rank_by_output(
            saes, latents=latents, candidates=candidates or 256, alpha=strength, **how
        )
        show = tables.print_ranking
    elif latents:
        report, show = by_latent.of_latents(saes, latents, **how), tables.print_latents
    else:
        report = by_token.of_special_tokens(saes, **how)
    (print_json if as_json else show)(report)
