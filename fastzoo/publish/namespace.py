"""What a namespace has besides its SAEs: the results dataset, the collection, a Space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fastzoo.core.errors import HubError, InputError, IntegrityError
from fastzoo.core.progress import Progress
from fastzoo.hub.client import hub_errors
from fastzoo.hub.registry import DATASET, FILE, Registry, parse_registry
from fastzoo.hub.retries import with_retries
from fastzoo.publish.collection import TITLE, Item, arrange, ask, find_or_create
from fastzoo.publish.journal import Journal
from fastzoo.publish.report import PushOptions, PushReport, say
from fastzoo.publish.results_dataset import dataset_files
from fastzoo.publish.space import NAME, push_space
from fastzoo.publish.upload import Content, Remote, look_or_make, put, read_text
from fastzoo.results.figures import column_shown, is_older, show, shown
from fastzoo.results.table import with_grid


def update_namespace(options: PushOptions, ours: Registry, journal: Journal, report: PushReport) -> None:
    """Bring the results dataset, the Space and the collection up to date.

    ``ours`` are the SAEs that are known to be on the Hub, as they are there; ``report`` is told what was done.
    """
    namespace = options.namespace
    repo_id = f"{namespace}/{DATASET}"
    remote = look_or_make("dataset", repo_id, private=options.starts_private)
    on_hub = _registry(repo_id, namespace, remote)
    # What all machines see comes first, so that they agree on one collection.
    stored = [slug for slug in (on_hub.collection, journal.known.collection) if slug]
    slug = find_or_create(namespace, TITLE, stored, private=options.starts_private)
    report.collection = slug
    ours = replace(ours, collection=slug)
    journal.note(Registry(namespace, slug))

    def wanted(now: Remote) -> Mapping[str, Content]:
        # Somebody else may publish into the same namespace meanwhile.
        held = on_hub if now.sha == remote.sha else _registry(repo_id, namespace, now)
        files = dataset_files(held.updated(ours))
        return {path: Content(data) for path, data in files.items()}

    end, files = put("dataset", repo_id, wanted, remote, "Update the results")
    report.commits += int(end.sha != remote.sha)
    report.dataset = repo_id
    if options.space is not None:
        report.space = _publish_space(options.space, options, report)
    items = _items(parse_registry(bytes(files[FILE]), FILE), repo_id, report.space)
    with Progress("collecting", len(items), shown=len(items) > 10) as bar:
        report.children = arrange(slug, items, TITLE, private=options.starts_private, bar=bar)
    if report.children:
        say(f"the collection is full: it holds {len(report.children)} collections, one per model")


def _items(registry: Registry, dataset: str, space: str | None) -> list[Item]:
    """What the collection should hold, in its order."""
    return [
        *([Item("space", space, "Look through the SAEs and their figures.")] if space else []),
        Item("dataset", dataset, "Every figure of every SAE as a table, with the paper's beside."),
        Item("paper", "2506.07691", "The method."),
        *(
            Item("model", sae.repo_id, headline(sae.figures), sae.name.model)
            for name in with_grid(registry.saes)
            if (sae := registry.saes.get(name))
        ),
    ]


def headline(figures: Mapping[str, Any]) -> str:
    """The note of an SAE's item: its main figures."""
    cells = [
        (figure.heading(subset), figures.get(column_shown(figures, figure.column(subset))))
        for figure, subset in shown("listed")
    ]
    parts = [f"{name} {show(value)}" for name, value in cells if value is not None]
    if parts:
        parts.append("attention sinks included" if is_older(figures) else "without attention sinks")
    return " · ".join(parts)


def _publish_space(folder: Path, options: PushOptions, report: PushReport) -> str | None:
    """The Space's repository; None where the Hub refuses one, as it does to some accounts."""
    repo_id = f"{options.namespace}/{NAME}"
    try:
        _, changed = push_space(repo_id, folder, private=options.starts_private)
    except (HubError, InputError) as error:
        say(f"the Space is left out: {error}")
        return None
    report.commits += int(changed)
    return repo_id


def make_all_public(models: Sequence[str], report: PushReport) -> None:
    """Let everybody see what a push made private: these models, and what ``report`` names."""
    from huggingface_hub import update_repo_settings

    others = (("dataset", report.dataset), ("space", report.space))
    repos = [("model", model) for model in models] + [(kind, repo_id) for kind, repo_id in others if repo_id]
    with Progress("making public", len(repos), shown=len(repos) > 10) as bar:
        for kind, repo_id in repos:
            open_up = partial(update_repo_settings, repo_id, repo_type=kind, private=False)
            with hub_errors(kind, repo_id):
                with_retries(open_up, f"{kind} {repo_id}")
            bar.advance(note=repo_id)
    for slug in filter(None, (*report.children, report.collection)):
        ask("update_collection_metadata", slug, private=False)


def _registry(repo_id: str, namespace: str, remote: Remote) -> Registry:
    """What the results dataset says is published; nothing where it has no registry yet."""
    if FILE not in remote.files:
        return Registry(namespace)
    try:
        found = parse_registry(read_text(repo_id, FILE, "dataset", remote.sha), f"{repo_id}/{FILE}")
    except IntegrityError as error:
        raise IntegrityError(
            f"{error}; restore an older version of it on the Hub (or update fastzoo, if a newer one "
            "wrote it), or delete it there and push every SAE again"
        ) from None
    return replace(found, namespace=namespace)
