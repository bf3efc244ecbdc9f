"""Publish a data set that ``fastzoo data build`` made: one dataset repository, in commits that end with all of it there."""

from __future__ import annotations

from pathlib import Path

from fastzoo.core.errors import AccessError, InputError
from fastzoo.core.text import one_line
from fastzoo.data.build.manifest import MANIFEST, BuiltSet
from fastzoo.hub.retries import rate_limited
from fastzoo.publish.upload import Content, Remote, look_or_make, put, read_text
from fastzoo.results.card_merge import merge_cards
from fastzoo.results.data_card import render_data_card
from fastzoo.saes.references import REPO, is_namespace


def push_data(built: BuiltSet, namespace: str, *, private: bool) -> tuple[str, Remote, bool]:
    """Make ``<namespace>/<name>`` hold a data set. The same call goes on where one was interrupted.

    Every file is compared with the manifest before anything is sent. What people wrote into the Hub's card stays.

    Returns the repository's id, what it holds, and whether that took a commit.

    Raises DataError: a file is not what the manifest says. InputError: a bad name, the Hub refuses a file. AccessError,
    HubError, IntegrityError.
    """
    from huggingface_hub import get_token

    if not is_namespace(namespace):
        raise InputError(f"'{one_line(namespace, 60)}' is not the name of a user or organisation")
    repo_id = f"{namespace}/{built.name}"
    if not REPO.fullmatch(repo_id):
        raise InputError(f"'{one_line(repo_id, 120)}' is not a name that the Hub takes")
    if get_token() is None:
        raise AccessError("no token to publish with; log in with 'hf auth login'")
    generated = render_data_card(built.manifest, repo_id)
    contents = {MANIFEST: Content(built.folder / MANIFEST)}
    for split in built.splits():
        built.check(split)
        contents |= {_path(built, path): Content(path) for path in built.files(split)}

    def wanted(remote: Remote) -> dict[str, Content]:
        there = remote.files.get("README.md")
        if there is None or there.holds(Content(generated.encode())):
            return {**contents, "README.md": Content(generated.encode())}
        on_hub = read_text(repo_id, "README.md", "dataset", remote.sha)
        return {**contents, "README.md": Content(merge_cards(on_hub, generated).encode())}

    with rate_limited():
        remote = look_or_make("dataset", repo_id, private=private)
        _refuse_others(repo_id, remote, contents)
        end, _ = put("dataset", repo_id, wanted, remote, f"Publish {built.name} with fastzoo")
    return repo_id, end, end.sha != remote.sha


def _path(built: BuiltSet, path: Path) -> str:
    return path.relative_to(built.folder).as_posix()


def _refuse_others(repo_id: str, remote: Remote, contents: dict[str, Content]) -> None:
    """Files of another build would be read with this one's: a name is for one build. Raises InputError."""
    others = [path for path in remote.files if path.startswith("data/") and path not in contents]
    if others:
        raise InputError(
            f"{repo_id}: holds files of another data set ({one_line(', '.join(sorted(others)), 120)}), which would be "
            "read with these; build with another name, or remove them on the Hub"
        )
