"""Publish SAEs: a repository each, then their collection, the results dataset and a Space.

Everything can be run again: what is on the Hub already is found there and left alone, so a push that
was killed or refused goes on, and one of the same bytes makes no commit.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from fastzoo.config.recipe import PushSection
from fastzoo.core.errors import (
    AccessError,
    FastzooError,
    InputError,
    IntegrityError,
    NotFoundError,
    OutputError,
)
from fastzoo.core.lock import folder_lock
from fastzoo.core.progress import Progress
from fastzoo.core.text import one_line
from fastzoo.hub.client import hub_errors, state_folder
from fastzoo.hub.files import HubFile
from fastzoo.hub.registry import Published, Registry, forget_age
from fastzoo.hub.retries import TRIES_OF_LISTS, rate_limited, with_retries
from fastzoo.publish.candidates import Candidate, candidates, check, read_card, readable
from fastzoo.publish.journal import Journal
from fastzoo.publish.namespace import make_all_public, update_namespace
from fastzoo.publish.report import PushOptions, PushReport, say
from fastzoo.publish.upload import Content, Remote, look_or_make, make_repo, put, read_text
from fastzoo.results.card import render_card
from fastzoo.results.card_merge import merge_cards, was_edited
from fastzoo.results.licences import notice
from fastzoo.results.table import result_row
from fastzoo.saes.references import is_namespace


def push(saes: Sequence[Candidate], options: PushOptions) -> PushReport:
    """Publish SAEs and what belongs to them.

    If one SAE fails, that is reported and the others go on. If the Hub or this machine's disk refuses, all
    ends. In both cases the same call goes on later; the report's ``first_error`` says whether all was done.
    """
    from huggingface_hub import get_token

    namespace = options.namespace
    report = PushReport(namespace, {str(sae.name): {"status": "not reached"} for sae in saes})
    if not is_namespace(namespace):
        raise InputError(f"'{one_line(namespace, 60)}' is not the name of a user or organisation")
    if get_token() is None:
        raise AccessError("no token to publish with; log in with 'hf auth login'")
    try:
        with _lock(namespace), rate_limited(), _quiet(len(saes) > 1):
            _push(saes, options, Journal(namespace), report)
    except FastzooError as error:
        report.first_error = report.first_error or error
    finally:
        forget_age(namespace)
    return report


def _lock(namespace: str) -> ExitStack:
    """Keep other pushes of this machine out of a namespace. Raises OutputError."""
    folder = state_folder(namespace)
    try:
        return folder_lock(folder, say, f"another push into {namespace}; let it end")
    except OSError as error:
        raise OutputError(
            f"'{folder}' cannot be written ({one_line(error.strerror or error)}), and the journal "
            "of what is published belongs there; set HF_HOME to a folder that can be written"
        ) from None


def _push(saes: Sequence[Candidate], options: PushOptions, journal: Journal, report: PushReport) -> None:
    listed = _listed(options.namespace)
    known = journal.known.saes.items()
    there = {name: sae for name, sae in known if sae.sha == listed.get(sae.repo_id, Remote()).sha}
    with Progress("publishing", len(saes), shown=len(saes) > 1) as bar:
        for sae in saes:
            entry = report.saes[str(sae.name)]
            try:
                published, commits = publish(sae, options, journal, listed)
            except (InputError, IntegrityError, NotFoundError) as error:
                entry |= {"status": "failed", "error": str(error)}
                report.first_error = report.first_error or error
                if len(saes) > 1:  # the command itself says it of a single one
                    say(f"error: {error}")
            else:
                there[sae.name] = published
                report.commits += commits
                entry |= {"repo_id": published.repo_id, "sha": published.sha}
                entry["status"] = "published" if commits else "unchanged"
            bar.advance(note=str(sae.name))
    if options.collection and there:
        update_namespace(options, Registry(options.namespace, saes=there), journal, report)
    if options.public_at_end and report.first_error is None:
        there_now = _listed(options.namespace)
        ids = [f"{options.namespace}/{sae.name}" for sae in saes]
        # A repository that the listing lacks was made a moment ago.
        make_all_public([x for x in ids if x not in there_now or there_now[x].private], report)


def push_run(folder: Path, section: PushSection) -> None:
    """Publish a finished run; whatever fails is said, with the command that goes on."""
    assert section.namespace is not None
    switches = {"--private": section.private, "--public-at-end": section.public_at_end}
    switches["--no-collection"] = not section.collection
    command = ["fastzoo", "push", str(folder), "--namespace", section.namespace]
    command += [switch for switch, given in switches.items() if given]
    try:
        report = push(candidates([str(folder)]), PushOptions(**section.model_dump()))
        if report.first_error is not None:
            raise report.first_error
    except Exception as error:  # the training is done, and stays done
        what = str(error) if isinstance(error, FastzooError) else repr(error)
        say(f"the SAEs are complete but not all published: {what}; finish it with: {shlex.join(command)}")
    else:
        say(f"published: {report.summary()}")


def publish(
    sae: Candidate, options: PushOptions, journal: Journal, listed: Mapping[str, Remote]
) -> tuple[Published, int]:
    """Send one SAE to the Hub, and read back that the Hub holds it.

    ``listed`` has the commit of each repository of the namespace. Returns what is published, and how many
    commits that took.

    Raises InputError: weights that are not finite or do not fit their configuration, a card that is refused,
    files that changed meanwhile. Also IntegrityError, AccessError, HubError.
    """
    from fastzoo.loading import open_sae

    sae = check(sae.folder)  # which may have changed since the push began
    repo_id = f"{options.namespace}/{sae.name}"
    generated = render_card(sae.record, sae.figures, repo_id)
    contents = _contents(sae, generated)
    known, remote = journal.known.saes.get(sae.name), listed.get(repo_id)
    if (
        known
        and remote
        and (known.repo_id, known.sha, known.files) == (repo_id, remote.sha, _as_files(contents))
    ):
        return known, 0
    open_sae(sae.folder)  # raises where weights are not what they should be
    if remote is None and make_repo("model", repo_id, private=options.starts_private):
        remote = Remote()
    else:
        remote = look_or_make("model", repo_id, private=options.starts_private)

    def wanted(remote: Remote) -> Mapping[str, Content]:
        there = remote.files.get("README.md")
        if options.overwrite_cards or there is None or there.holds(contents["README.md"]):
            return contents
        # People read and write the Hub's card; the one here may be an old copy of it.
        on_hub = read_text(repo_id, "README.md", "model", remote.sha)
        return {**contents, "README.md": Content(merge_cards(on_hub, generated).encode())}

    end, files = put("model", repo_id, wanted, remote, f"Publish {sae.name} with fastzoo")
    assert end.sha is not None
    if not options.overwrite_cards and was_edited(bytes(files["README.md"]).decode()):
        say(
            f"{repo_id}: the generated part of its card was edited, so it was kept as it is; "
            f"--overwrite-cards sends the card of '{sae.folder}' instead"
        )
    published = Published(sae.name, repo_id, end.sha, _as_files(files), result_row(sae.record, sae.figures))
    journal.note(Registry(options.namespace, saes={sae.name: published}))
    return published, int(end.sha != remote.sha)


def _contents(sae: Candidate, generated: str) -> dict[str, Content]:
    """The files of an SAE as they are to be published."""
    with readable(sae.folder):
        contents = {path: Content(sae.folder / path) for path in sae.paths()}
        contents["README.md"] = Content(merge_cards(read_card(sae.folder), generated).encode())
        if (text := notice(sae.record["base_model"]["name"])) is not None:
            contents["NOTICE"] = Content(text.encode())
        _as_files(contents)  # which reads the files
    return contents


def _as_files(contents: Mapping[str, Content]) -> dict[str, HubFile]:
    return {path: content.at(path) for path, content in contents.items()}


def _listed(namespace: str) -> dict[str, Remote]:
    """The model repositories of a namespace, without their files, in one request per thousand."""
    from huggingface_hub import HfApi

    models = partial(HfApi().list_models, author=namespace, expand=["sha", "private"])
    with hub_errors("namespace", namespace):
        found = with_retries(lambda: list(models()), f"models of {namespace}", TRIES_OF_LISTS)
    return {model.id: Remote(model.sha, private=bool(model.private)) for model in found}


@contextmanager
def _quiet(many: bool) -> Iterator[None]:
    """One bar for many SAEs instead of huggingface_hub's own for each file."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    with ExitStack() as after:
        if many and not are_progress_bars_disabled():
            disable_progress_bars()
            after.callback(enable_progress_bars)
        yield
