"""The Hugging Face Hub: references, the layouts of SAEs in repositories, pinned revisions, errors.

``fastzoo.plan`` tells what is fetched, ``fastzoo.fetch`` fetches it. Importing this module does not load
huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastzoo.errors import AccessError, HubError, InputError, NotFoundError, one_line

FORM = "hf:org/repo[/folder][@revision]"

LAYOUTS = (
    (("cfg.json", "sae_weights.safetensors"), ("sparsity.safetensors",)),  # SAELens
    (("cfg.json", "sae.safetensors"), ()),  # sparsify
    (("params.npz",), ()),  # Gemma Scope
)
"""Files that make a folder an SAE, and files that may come with them."""

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
"""Formats that can run code when loaded."""

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
REPO = re.compile(rf"{_NAME}/{_NAME}")
# What git allows in the name of a ref, less '@', which separates it here.
_REVISION = re.compile(r"(?![-/.])[^\s@\\:?*~^\[\x00-\x1f\x7f]{1,200}(?<![/.])")


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
    """Parse ``hf:org/repo[/folder...][@revision]``.

    Raises:
        InputError: ``text`` does not read like this; says which part is wrong.
    """

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
    ref = revision.isprintable() and _REVISION.fullmatch(revision)  # invisible ones are no name
    if at and (not ref or ".." in revision or "//" in revision):
        raise wrong(f"'{one_line(revision, 60)}' is not a branch, tag or commit sha")
    return Reference(repo_id, folder or None, revision or None)


def resolve_model(repo_id: str, revision: str | None = None) -> str:
    """Commit sha of a model repository's revision (by default its main branch).

    Raises:
        NotFoundError, AccessError, HubError: no such repository or revision, no access, no network.
    """
    return _resolve("model", repo_id, revision)


def resolve_dataset(repo_id: str, revision: str | None = None) -> str:
    """Commit sha of a dataset repository's revision (by default its main branch).

    Raises:
        NotFoundError, AccessError, HubError: no such repository or revision, no access, no network.
    """
    return _resolve("dataset", repo_id, revision)


def sae_folders(paths: Iterable[str]) -> dict[str, list[str]]:
    """The folders among ``paths`` that hold an SAE (the root is ''), each with its files."""
    names: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        names.setdefault(folder, set()).add(name)
    found = {}
    for folder, present in sorted(names.items()):
        for required, optional in LAYOUTS:
            if present.issuperset(required):
                chosen = [*required, *(name for name in optional if name in present)]
                found[folder] = [f"{folder}/{name}" if folder else name for name in chosen]
                break
    return found


def _resolve(kind: str, repo_id: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    with hub_errors(kind, repo_id, revision):
        # Only the sha: the whole answer lists every file, which is megabytes for some datasets.
        ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
        sha = ask(repo_id, revision=revision, timeout=30, expand=["sha"]).sha
    if not sha:
        raise NotFoundError(
            f"the Hub names no commit for {kind} repository {repo_id}; it may be empty"
        )
    return sha


def is_plain(path: str) -> bool:
    """Whether every part of a path is an ordinary name, that every system has for a file: no '..',
    no drive, no dot file, nothing endless."""
    bad = set('\\:*?"<>|@')
    return path.isprintable() and all(
        part and part == part.strip(". ") and len(part) <= 200 and not bad & set(part)
        for part in path.split("/")
    )


@contextmanager
def hub_errors(kind: str, repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line of ours.

    Args:
        kind: model, dataset, space, collection or namespace.
    """
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    noun = kind if kind in ("collection", "namespace") else f"{kind} repository"
    what = f"{noun} {one_line(repo_id, 100)}"
    instead = "" if kind == "namespace" else ", or name a local folder instead"

    def unreachable(error: Exception) -> HubError:
        reason = one_line(error.__cause__ or error, 100)
        return HubError(f"cannot reach {hub} for {what} ({reason}); check the network{instead}")

    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise HubError(
            f"{what} is needed from {hub}, but offline mode is on; unset HF_HUB_OFFLINE{instead}"
        ) from None
    except errors.GatedRepoError:
        page = f"{hub}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        raise AccessError(
            f"{what} is gated; accept its conditions at {page} and log in with 'hf auth login'"
        ) from None
    except errors.RepositoryNotFoundError:
        raise NotFoundError(
            f"no {what} on {hub}; check the spelling, or log in with 'hf auth login' if it is "
            "private"
        ) from None
    except errors.RevisionNotFoundError:
        raise NotFoundError(
            f"{what} has no revision '{one_line(revision, 60)}'; give a branch, a tag or a full "
            "commit sha"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise unreachable(error) from error
    except errors.HFValidationError:
        raise InputError(
            f"'{one_line(repo_id, 100)}' is no repository's name, as org/name is"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise AccessError(
                f"{hub} refused {what} to this token ({status}); log in with 'hf auth login', with a "
                "token that may do this"
            ) from None
        if status == 404:
            raise NotFoundError(f"no {what} on {hub}: {one_line(error, 150)}") from None
        if status == 429:
            raise HubError(f"{hub} is rate limiting; wait some minutes and run again") from error
        raise HubError(f"{hub} answered {status} for {what}: {one_line(error, 150)}") from error
    except errors.HTTPError as error:
        raise unreachable(error) from error
    except OSError as error:
        raise HubError(f"{what} could not be fetched: {one_line(error, 200)}") from error
    except UnicodeEncodeError:  # of a header
        raise AccessError(
            "the access token (HF_TOKEN, or the one that 'hf auth login' saved) is none: it holds "
            "characters that no token has; log in again with 'hf auth login'"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # huggingface_hub believes that every answer is the JSON that it should be.
        raise HubError(
            f"{hub} gave an answer for {what} that is no Hub's ({type(error).__name__}: "
            f"{one_line(error, 100)}); check HF_ENDPOINT, and whether a proxy answers in its place"
        ) from error
