"""``fastzoo steer``: its options are the fields of ``SteerSettings``."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from fastzoo.cli.app import Json, ModelName, Revision, Source, path_option, print_json
from fastzoo.core.errors import InputError
from fastzoo.steering.settings import SteerSettings

SHARED: dict[str, Any] = {
    "source": Source,
    "questions": Annotated[
        list[str] | None, typer.Argument(metavar="QUESTION", help="By default fastzoo's own.")
    ],
    "model": ModelName,
    "revision": Revision,
}
"""Settings that are arguments, or that other commands have, too."""


def _text(parameter: typer.CallbackParam, value: str | None) -> str | None:
    """An option's text. An empty one, as from an unset shell variable, is a mistake."""
    if value is None:
        return None
    if not value.strip(" ,"):
        raise InputError(f"{parameter.opts[0]}: nothing is given")
    return value.encode("utf-8", "replace").decode()  # bytes that are not UTF-8 become "?"


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each setting, which its ``**settings`` receive."""
    hints = get_type_hints(SteerSettings)
    parameters = []
    for setting in fields(SteerSettings):
        hint, default, how = hints[setting.name], setting.default, dict(setting.metadata)
        if setting.default_factory is not MISSING:  # typer reads a list without values as None
            hint, default = hint | None, None
        if how:
            names = how.pop("names")
            if hint == (Path | None):
                made = path_option(*names or [f"--{setting.name.replace('_', '-')}"], **how)
            else:
                made = typer.Option(*names, callback=_text if hint == (str | None) else None, **how)
            hint = Annotated[hint, made]
        hint = SHARED.get(setting.name, hint)
        default = Parameter.empty if default is MISSING else default
        parameters.append(Parameter(setting.name, Parameter.KEYWORD_ONLY, default=default, annotation=hint))
    own = list(inspect.signature(command, eval_str=True).parameters.values())[:-1]
    command.__signature__ = inspect.Signature([*parameters, *own])  # type: ignore[attr-defined]
    return command


@_with_settings
def steer_sae(
    *,
    html: Annotated[Path | None, path_option("--html", "Write a report as one HTML file.")] = None,
    save: Annotated[Path | None, path_option("--save", "Write all answers and scores as JSON.")] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="TITLE", callback=_text, help="Keep latent and window beside the SAE, for the Space."
        ),
    ] = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Steer the SAE's language model with latents, and find the alphas that change answers without degrading them."""
    from fastzoo.cli.steer_tables import LiveAnswers, print_outcome
    from fastzoo.core.files import refuse_unwritable, refused, write_text
    from fastzoo.steering.measured import keep_latent, open_to_keep
    from fastzoo.steering.report import render_report
    from fastzoo.steering.run import run_steer

    chosen = SteerSettings(**{k: value for k, value in settings.items() if value is not None})
    written = [path for path in (save, html, chosen.judge_cache) if path is not None]
    for path in written:
        refuse_unwritable(path)
    if len({path.resolve() for path in written}) < len(written):
        raise InputError("two of --html, --save and --judge-cache name the same file")
    kept_beside = None if keep is None else open_to_keep(chosen.source, keep)
    outcome = run_steer(chosen, LiveAnswers)
    failures: list[BaseException] = []
    if keep is not None and kept_beside is not None:
        try:
            print(f"wrote {keep_latent(kept_beside, keep, outcome)}", file=sys.stderr)
        except (OSError, InputError) as error:
            failures.append(
                refused(kept_beside.folder.parent, error) if isinstance(error, OSError) else error
            )
    for file, render in ((save, _as_json), (html, render_report)):
        if file is not None:
            try:
                write_text(file, render(outcome))
                print(f"wrote {file}", file=sys.stderr)
            except OSError as error:
                failures.append(refused(file, error))
    if as_json:
        print_json(outcome.to_value())
    else:
        print_outcome(outcome)
    # Only now, so that neither a judge nor a full disk costs the answers.
    if outcome.judge_failure is not None:
        print("the judge did not rate all answers; everything else is complete", file=sys.stderr)
        failures.append(outcome.judge_failure)
    for failure in failures:
        raise failure


def _as_json(outcome: Any) -> str:
    return json.dumps(outcome.to_value(), ensure_ascii=False, allow_nan=False)
