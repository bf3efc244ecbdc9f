"""``fastzoo space``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from fastzoo.core.errors import InputError

SPACE = "steering"

space = typer.Typer(
    help="The page for steering and looking, here or on the Hub.", invoke_without_command=True
)

SAEs = Annotated[
    list[str] | None,
    typer.Option(
        "--sae",
        metavar="SOURCE",
        help="What it offers; can be repeated (default: what is here, else what is published).",
    ),
]


@space.callback()
def run_space(
    context: typer.Context,
    saes: SAEs = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Of this machine (default: the first free one from 7860)."),
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open it in the browser.")] = True,
    share: Annotated[
        bool, typer.Option("--share", help="Also under a public address, through Gradio's servers.")
    ] = False,
) -> None:
    """Steer a chat model in the browser, sweep, and look at latents.

    Runs on this machine until Ctrl-C, and without a network. Without any SAE here, one of the embedded toy model is
    trained first.
    """
    if context.invoked_subcommand is not None:
        if saes or port or share or not browser:
            raise InputError(f"options of {context.invoked_subcommand} come after it")
        return
    from fastzoo.publish.space import find_space

    if port is None and not os.environ.get("GRADIO_SERVER_PORT", "7860").isdecimal():
        raise InputError("GRADIO_SERVER_PORT is not a port's number")
    sys.path.insert(0, str(find_space(SPACE)))
    try:
        import app  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("gradio", "pandas"):
            raise
        raise InputError(
            f"the page needs {error.name}; install it with: pip install 'fastzoo[space]'"
        ) from None
    app.start(saes or [], inbrowser=browser, share=share, server_port=port)


@space.command("push")
def push_the_space(
    namespace: Annotated[str, typer.Option(metavar="NAME", help="Hub user or organisation.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the Space.")] = "fastzoo",
    saes: SAEs = None,
    private: Annotated[bool, typer.Option("--private", help="If it is made now, make it private.")] = False,
) -> None:
    """Create the Space on the Hub, or bring it up to date. It offers what its namespace has published, or --sae."""
    from fastzoo.core.signals import obeying_signals
    from fastzoo.hub.client import hub_errors
    from fastzoo.publish.space import find_space, push_space
    from fastzoo.saes.references import REPO

    repo_id = f"{namespace}/{name}"
    if not REPO.fullmatch(repo_id):
        raise InputError(f"'{repo_id}' is not a name that the Hub takes")
    with obeying_signals(), hub_errors("space", repo_id):
        remote, changed = push_space(repo_id, find_space(SPACE), private=private, saes=saes or [])
    print(f"{repo_id}@{remote.sha}" if changed else f"{repo_id}@{remote.sha} (unchanged)")
