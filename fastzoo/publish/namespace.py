"""What stands around published SAEs: the results dataset, the collection, a Space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastzoo.core.errors import HubError, InputError, IntegrityError, NotFoundError
from fastzoo.core.files import resource
from fastzoo.core.progress import Progress
from fastzoo.core.text import did_you_mean, one_line
from fastzoo.hub.client import hub_errors
from fastzoo.hub.registry import DATASET, FILE, Registry, parse_registry
from fastzoo.hub.retries import with_retries
from fastzoo.publish.collection import TITLE, Item, arrange, find_or_create, make_public
from fastzoo.publish.ledger import Ledger
from fastzoo.publish.report import Options, Report
from fastzoo.publish.results_dataset import dataset_files
from fastzoo.publish.upload import Content, Remote, look_or_make, put, read_text
from fastzoo.results.figures import show, shown
from fastzoo.results.table import with_grid

PAPER = "2506.07691"

SPACE = "fastzoo"
"""Name of the Space's repository."""


def publish_around(
    options: Options,
    ours: Registry,
    ledger: Ledger,
    report: Report,
    say: Callable[[str], None],
    *,
    private: bool,
) -> None:
    """The collection, the results dataset and the Space.

    Args:
        ours: SAEs that are known to be on the Hub as this says.
    """
    namespace = options.namespace
    repo_id = f"{namespace}/{DATASET}"
    remote = look_or_make("dataset", repo_id, private=private)
    on_hub = _registry(repo_id, namespace, remote)
    # What all machines see comes first, so that they agree on one.
    stored = [slug for slug in (on_hub.collection, ledger.known.collection) if slug]
    report.collection = find_or_create(namespace, TITLE, stored, private=private)
    ledger.collection(report.collection)

    ours = replace(ours, collection=report.collection)

    def wanted(now: Remote) -> Mapping[str, Content]:
        # Somebody else may publish into the same namespace meanwhile.
        held = on_hub if now.sha == remote.sha else _registry(repo_id, namespace, now)
        files = dataset_files(held.updated(ours))
        return {path: Content(data) for path, data in files.items()}

    end, files = put("dataset", repo_id, wanted, remote, "Update the results")
    report.commits += int(end.sha != remote.sha)
    report.dataset = repo_id
    registry = parse_registry(bytes(files[FILE]), FILE)

    items = [
        Item("dataset", repo_id, "Every figure of every SAE as a table, with the paper's beside.")
    ]
    if options.space is not None:
        report.space = _publish_space(options.space, options, report, say, private=private)
        if report.space:
            items.insert(0, Item("space", report.space, "Look through the SAEs and their figures."))
    items.append(Item("paper", PAPER, "The method."))
    items += [
        Item("model", sae.repo_id, headline(sae.figures), sae.name.model)
        for name in with_grid(registry.saes)
        if (sae := registry.saes.get(name))
    ]
    with Progress("collecting", len(items), shown=len(items) > 10) as bar:
        report.children = arrange(report.collection, items, TITLE, private=private, bar=bar)
    if report.children:
        say(f"the collection is full: {len(report.children)} collections, one per model, in it")


def headline(figures: Mapping[str, Any]) -> str:
    """The note of an SAE's item: its main figures."""
    parts = [
        f"{figure.name(subset)} {show(value)}"
        for figure, subset in shown("listed")
        if (value := figures.get(figure.column(subset))) is not None
    ]
    return " · ".join(parts)


def _publish_space(
    folder: Path, options: Options, report: Report, say: Callable[[str], None], *, private: bool
) -> str | None:
    """The Space's repository; None where the Hub refuses one, as it does to some accounts."""
    repo_id = f"{options.namespace}/{SPACE}"
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    contents = {
        path.relative_to(folder).as_posix(): Content(path)
        for path in paths
        if not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    }
    try:
        remote = look_or_make("space", repo_id, private=private, sdk="gradio")
        end, _ = put("space", repo_id, lambda _: contents, remote, "Update the Space")
    except (HubError, InputError) as error:
        say(f"the Space is left out: {error}")
        return None
    report.commits += int(end.sha != remote.sha)
    return repo_id


def show_all(repos: Sequence[tuple[str, str]], report: Report) -> None:
    """Let everybody see what a push made private.

    Args:
        repos: kind and id of those besides the ones that ``report`` names.
    """
    from huggingface_hub import update_repo_settings

    repos = list(repos)
    repos += [("dataset", report.dataset)] if report.dataset else []
    repos += [("space", report.space)] if report.space else []
    with Progress("making public", len(repos), shown=len(repos) > 10) as bar:
        for kind, repo_id in repos:
            with hub_errors(kind, repo_id):
                with_retries(
                    lambda kind=kind, repo_id=repo_id: update_repo_settings(  # type: ignore[misc]
                        repo_id, repo_type=kind, private=False
                    ),
                    f"{kind} {repo_id}",
                )
            bar.advance(note=repo_id)
    for slug in filter(None, (*report.children, report.collection)):
        make_public(slug)


def _registry(repo_id: str, namespace: str, remote: Remote) -> Registry:
    """What the results dataset says is published; nothing where it does not say."""
    if FILE not in remote.files:
        return Registry(namespace)
    try:
        found = parse_registry(read_text(repo_id, FILE, "dataset", remote.sha), f"{repo_id}/{FILE}")
    except IntegrityError as error:
        raise IntegrityError(
            f"{error}; bring back an older version of it on the Hub (or update fastzoo, if a newer one "
            "wrote it), or delete it there and push every SAE again"
        ) from None
    return replace(found, namespace=namespace)


def space_folder(name: str) -> Path:
    """Where a Space of fastzoo is.

    Raises:
        NotFoundError: fastzoo has no Space of this name.
    """
    spaces = resource("spaces")
    names = sorted(path.parent.name for path in spaces.glob("*/app.py"))
    if name not in names:
        hint = did_you_mean(name, names)
        raise NotFoundError(f"fastzoo has no Space '{one_line(name, 100)}'.{hint}")
    return spaces / name


def find_space(text: str) -> Path:
    """The folder of a Space given by fastzoo's name for it or, with a slash in it, by its own path.

    Raises:
        NotFoundError: no such name.
        InputError: no Space in that folder.
    """
    if "/" not in text and "\\" not in text:
        return space_folder(text)
    if not (Path(text) / "README.md").is_file():
        raise InputError(f"'{one_line(text)}' is no folder with a Space's README.md")
    return Path(text)
