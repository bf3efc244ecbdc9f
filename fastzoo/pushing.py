"""Publish SAEs: a repository each, then their collection, the results dataset and a Space.

Everything can be run again: what is on the Hub already is found there and left alone, so a push that
was killed or refused goes on, and one of the same bytes makes no commit.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastzoo.card import render_card
from fastzoo.card_merge import merge_cards
from fastzoo.collection import TITLE, Item, arrange, find_or_create, make_public
from fastzoo.config import PushSection
from fastzoo.errors import (
    AccessError,
    FastzooError,
    HubError,
    InputError,
    IntegrityError,
    NotFoundError,
    one_line,
)
from fastzoo.files import claim, release_claims
from fastzoo.hub import REPO, hub_errors
from fastzoo.ledger import Ledger
from fastzoo.licences import notice
from fastzoo.pacing import paced
from fastzoo.progress import Progress
from fastzoo.publishable import Candidate, candidates
from fastzoo.registry import (
    DATASET,
    FILE,
    Published,
    Registry,
    forget_age,
    parse_registry,
)
from fastzoo.results_dataset import dataset_files, result_row, with_grid
from fastzoo.retries import patiently
from fastzoo.uploads import Content, Remote, look, make_repo, put

PAPER = "2506.07691"
SPACE = "fastzoo"
"""Name of the Space's repository."""


@dataclass(frozen=True)
class Options:
    """What is asked of a push besides its SAEs."""

    namespace: str
    private: bool = False
    public_at_end: bool = False
    """Make the repositories private, and all of them public once everything is there."""
    collection: bool = True
    """Bring the collection, the results dataset and the Space up to date, too."""
    space: Path | None = None
    """A Space's folder."""
    overwrite_cards: bool = False
    """Send cards as they are here, whatever was written into them on the Hub."""


@dataclass
class Report:
    """What a push did."""

    namespace: str
    saes: dict[str, dict[str, Any]]
    """Name to repo_id, sha and status: published, unchanged, failed or not reached."""
    commits: int = 0
    collection: str | None = None
    dataset: str | None = None
    space: str | None = None
    first_error: FastzooError | None = None

    def summary(self) -> str:
        """In one line."""
        count = Counter(entry["status"] for entry in self.saes.values())
        done = ", ".join(f"{n} {status}" for status, n in sorted(count.items()))
        place = f"; collection {self.collection}" if self.collection else ""
        return f"{done} ({self.commits} commits) under {self.namespace}{place}"

    def to_value(self) -> dict[str, Any]:
        value = dict(vars(self))
        del value["first_error"]
        return value


def push(saes: Sequence[Candidate], options: Options) -> Report:
    """Publish SAEs and what belongs to them.

    A failure of one SAE is reported and the others go on; one of the Hub or of access ends it all. In
    both cases the same call goes on later.

    Returns:
        What was done; ``first_error`` says whether all was.
    """
    report = Report(options.namespace, {str(sae.name): {"status": "not reached"} for sae in saes})
    _check_access(options.namespace)

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    ledger = Ledger(options.namespace)
    claim(ledger.folder, say)
    try:
        with paced(), _quiet(len(saes) > 1):
            _push(saes, options, ledger, report, say)
    except FastzooError as error:
        report.first_error = report.first_error or error
    finally:
        release_claims()
        forget_age(options.namespace)
    return report


def _push(
    saes: Sequence[Candidate],
    options: Options,
    ledger: Ledger,
    report: Report,
    say: Callable[[str], None],
) -> None:
    private = options.private or options.public_at_end
    listed = _listed(options.namespace)
    there = {
        name: sae
        for name, sae in ledger.known.saes.items()
        if sae.repo_id in listed and sae.sha == listed[sae.repo_id].sha
    }
    with Progress("publishing", len(saes), shown=len(saes) > 1) as bar:
        for sae in saes:
            entry = report.saes[str(sae.name)]
            try:
                published, commits = publish(sae, options, ledger, listed, private=private)
            except (InputError, IntegrityError) as error:
                entry |= {"status": "failed", "error": str(error)}
                report.first_error = report.first_error or error
                say(f"error: {error}")
            else:
                there[sae.name] = published
                report.commits += commits
                entry |= {"repo_id": published.repo_id, "sha": published.sha}
                entry["status"] = "published" if commits else "unchanged"
            bar.advance(note=str(sae.name))
    if options.collection and there:
        ours = Registry(options.namespace, saes=there)
        _publish_around(options, ours, ledger, report, say, private=private)
    if options.public_at_end and report.first_error is None:
        _make_public(saes, report)


def push_run(folder: Path, section: PushSection) -> None:
    """Publish a finished run; whatever fails is said, with the command that goes on."""
    assert section.namespace is not None
    switches = {"--private": section.private, "--public-at-end": section.public_at_end}
    switches["--no-collection"] = not section.collection
    command = ["fastzoo", "push", str(folder), "--namespace", section.namespace]
    command += [switch for switch, given in switches.items() if given]
    try:
        report = push(candidates([str(folder)]), Options(**section.model_dump()))
        if report.first_error is not None:
            raise report.first_error
    except Exception as error:  # the training is done, and stays done
        what = str(error) if isinstance(error, FastzooError) else repr(error)
        print(
            f"the SAEs are complete but not all published: {what}; finish it with: "
            f"{shlex.join(command)}",
            file=sys.stderr,
        )
    else:
        print(f"published: {report.summary()}", file=sys.stderr)


def warn_without_token() -> None:
    """Say at the start of a run that its end will need a token."""
    from huggingface_hub import get_token

    if get_token() is None:
        print(
            "push.namespace: there is no token to publish with yet; log in with 'hf auth login' before "
            "the run ends",
            file=sys.stderr,
        )


def publish(
    sae: Candidate,
    options: Options,
    ledger: Ledger,
    listed: Mapping[str, Remote],
    *,
    private: bool,
) -> tuple[Published, int]:
    """Have the Hub hold one SAE, and read back that it does.

    Args:
        listed: commit of each repository of the namespace, as ``Remote`` without files.

    Returns:
        What is published, and how many commits that took.

    Raises:
        InputError: weights that are not finite or do not fit their configuration; a card refused.
        IntegrityError, AccessError, HubError.
    """
    from fastzoo.formats import open_sae

    repo_id = f"{options.namespace}/{sae.name}"
    contents = {path: Content(sae.folder / path) for path in sae.paths()}
    generated = render_card(sae.record, sae.figures, repo_id)
    card = merge_cards((sae.folder / "README.md").read_text(encoding="utf-8"), generated)
    contents["README.md"] = Content(card.encode())
    if (text := notice(sae.record["base_model"]["name"])) is not None:
        contents["NOTICE"] = Content(text.encode())
    facts = {path: content.facts for path, content in contents.items()}

    known, remote = ledger.known.saes.get(sae.name), listed.get(repo_id)
    if known and remote:
        as_left = (known.repo_id, known.sha) == (repo_id, remote.sha)
        if as_left and known.files == facts:
            return known, 0
    open_sae(sae.folder)  # raises where weights are not what they should be
    if remote is None and make_repo("model", repo_id, private=private):
        remote = Remote()
    else:
        remote = look("model", repo_id)

    def wanted(remote: Remote) -> Mapping[str, Content]:
        there = remote.files.get("README.md")
        if options.overwrite_cards or there is None or there.holds(contents["README.md"]):
            return contents
        # The Hub's card is the one that people read and write; this one may be an old copy of it.
        on_hub = _text(repo_id, "README.md", "model", remote.sha)
        return {**contents, "README.md": Content(merge_cards(on_hub, generated).encode())}

    end, files = put("model", repo_id, wanted, remote, f"Publish {sae.name} with fastzoo")
    assert end.sha is not None
    published = Published(
        sae.name,
        repo_id,
        end.sha,
        {path: content.facts for path, content in files.items()},
        result_row(sae.record, sae.figures),
    )
    ledger.published(published)
    return published, int(end.sha != remote.sha)


def _publish_around(
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
    try:
        remote = look("dataset", repo_id)
    except NotFoundError:
        made = make_repo("dataset", repo_id, private=private)
        remote = Remote() if made else look("dataset", repo_id)
    on_hub = _registry(repo_id, namespace, remote)
    stored = ledger.known.collection or on_hub.collection
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
        children = arrange(report.collection, items, TITLE, private=private, bar=bar)
    if children:
        say(f"the collection is full: {len(children)} collections, one per model, in it")


def headline(figures: Mapping[str, Any]) -> str:
    """The note of an SAE's item: its main figures."""
    shown = {"L0": "l0", "FVU": "fvu", "log2 MSE": "log2_mse"}
    shown |= {"log2 MSE of special tokens": "log2_mse_special", "CE recovered": "ce_recovered"}
    parts = [
        f"{label} {value:.4g}"
        for label, key in shown.items()
        if (value := figures.get(key)) is not None
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
        try:
            remote = look("space", repo_id)
        except NotFoundError:
            made = make_repo("space", repo_id, private=private, sdk="gradio")
            remote = Remote() if made else look("space", repo_id)
        end, _ = put("space", repo_id, lambda _: contents, remote, "Update the Space")
    except HubError as error:
        say(f"the Space is left out: {error}")
        return None
    report.commits += int(end.sha != remote.sha)
    return repo_id


def _make_public(saes: Sequence[Candidate], report: Report) -> None:
    """Let everybody see what this push made private."""
    from huggingface_hub import update_repo_settings

    listed = _listed(report.namespace)
    repos = [("model", f"{report.namespace}/{sae.name}") for sae in saes]
    repos = [
        (kind, repo_id)
        for kind, repo_id in repos
        if listed.get(repo_id, Remote(private=True)).private
    ]
    repos += [("dataset", report.dataset)] if report.dataset else []
    repos += [("space", report.space)] if report.space else []
    with Progress("making public", len(repos), shown=len(repos) > 10) as bar:
        for kind, repo_id in repos:
            with hub_errors(kind, repo_id):
                patiently(
                    lambda kind=kind, repo_id=repo_id: update_repo_settings(  # type: ignore[misc]
                        repo_id, repo_type=kind, private=False
                    ),
                    f"{kind} {repo_id}",
                )
            bar.advance(note=repo_id)
    if report.collection:
        make_public(report.collection)


def _check_access(namespace: str) -> None:
    from huggingface_hub import get_token

    if not REPO.fullmatch(f"{namespace}/x"):
        raise InputError(f"'{one_line(namespace, 60)}' is not the name of a user or organisation")
    if get_token() is None:
        raise AccessError("no token to publish with; log in with 'hf auth login'")


def _listed(namespace: str) -> dict[str, Remote]:
    """The model repositories of a namespace, without their files, in one request per thousand."""
    from huggingface_hub import HfApi

    with hub_errors("namespace", namespace):
        found = patiently(
            lambda: list(HfApi().list_models(author=namespace, expand=["sha", "private"])),
            f"models of {namespace}",
        )
    return {model.id: Remote(model.sha, private=bool(model.private)) for model in found}


def _registry(repo_id: str, namespace: str, remote: Remote) -> Registry:
    """What the results dataset says is published; nothing where it does not say."""
    if FILE not in remote.files:
        return Registry(namespace)
    return parse_registry(_text(repo_id, FILE, "dataset", remote.sha), f"{repo_id}/{FILE}")


def _text(repo_id: str, path: str, kind: str, revision: str | None) -> str:
    """A small file of the Hub."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    def get() -> str:
        url = hf_hub_url(repo_id, path, repo_type=kind, revision=revision)
        response = get_session().get(url, headers=build_hf_headers(), timeout=60)
        hf_raise_for_status(response)
        return response.text

    with hub_errors(kind, repo_id, revision):
        return patiently(get, f"{kind} {repo_id}, {path}")


@contextmanager
def _quiet(many: bool) -> Iterator[None]:
    """One bar for many SAEs instead of huggingface_hub's own for each file."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if not many or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
