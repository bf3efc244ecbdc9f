"""What names of things on the Hub look like: ``hf:org/repo[/folder][@revision]`` and collections."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line

FORM = "hf:org/repo[/folder][@revision]"
NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
REPO = re.compile(rf"{NAME}/{NAME}")
COLLECTION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_-][\w.-]{0,95}/[\w.-]{1,200}", re.ASCII)
# What git allows in the name of a ref, less '@', which separates it here.
_REVISION = re.compile(r"(?![-/.])[^\s@\\:?*~^\[\x00-\x1f\x7f]{1,200}(?<![/.])")


def is_namespace(text: str) -> bool:
    """Whether a user or organisation of the Hub can have this name."""
    return REPO.fullmatch(f"{text}/x") is not None


@dataclass(frozen=True)
class Reference:
    """One SAE on the Hub. ``str()`` gives the ``hf:`` form back."""

    repo_id: str
    folder: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        folder = f"/{self.folder}" if self.folder else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo_id}{folder}{revision}"


def parse_reference(text: str) -> Reference:
    """Parse ``hf:org/repo[/folder...][@revision]``. Raises InputError, which says which part is wrong."""

    def wrong(reason: str) -> InputError:
        return InputError(f"'{one_line(text, 100)}': {reason}; a Hub reference reads {FORM}")

    if not text.startswith("hf:"):
        raise wrong("it does not start with hf:")
    path, at, revision = text[len("hf:") :].partition("@")
    org, _, rest = path.partition("/")
    name, slash, folder = rest.partition("/")
    repo_id = f"{org}/{name}"
    if not REPO.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id:
        raise wrong(f"'{one_line(repo_id, 60)}' is not a repository's name")
    if slash and not is_plain(folder):
        raise wrong(f"'{one_line(folder, 60)}' is not a folder inside a repository")
    ref = revision.isprintable() and _REVISION.fullmatch(revision)
    if at and (not ref or ".." in revision or "//" in revision):
        raise wrong(f"'{one_line(revision, 60)}' is not a branch, tag or commit sha")
    return Reference(repo_id, folder or None, revision or None)


def is_plain(path: str) -> bool:
    """Whether every part of a path is an ordinary name of at most 200 characters: no '..', no hidden
    file, no character that means something in a reference, in a pattern or to some file system."""
    bad = set('\\:*?"<>|@')
    return path.isprintable() and all(
        part and part == part.strip(". ") and len(part) <= 200 and not bad & set(part)
        for part in path.split("/")
    )


def is_pattern(text: str) -> bool:
    """Whether a name holds wildcards."""
    return any(sign in text for sign in "*?[")


def collection_slug(source: str) -> str | None:
    """``namespace/slug`` of a collection's reference or address; None for any other source.

    Raises InputError: it refers to a collection, but not in the right form.
    """
    slug = source.removeprefix("hf:collections/")
    if source.startswith(("https://", "http://")):
        from huggingface_hub import constants

        for hub in ("https://huggingface.co", "https://hf.co", constants.ENDPOINT.rstrip("/")):
            slug = slug.removeprefix(f"{hub}/collections/")
        slug = slug.partition("?")[0].rstrip("/")
        if slug.startswith("http"):
            reason = "is not the address of a collection; write a repository as hf:org/repo"
            raise InputError(f"'{one_line(source, 100)}' {reason}")
    elif slug == source:
        return None
    if not COLLECTION.fullmatch(slug):
        raise InputError(f"'{one_line(source, 100)}': a collection reads hf:collections/<namespace>/<slug>")
    return slug
