"""Asking the Hub: what a repository and revision resolve to, and its errors in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from fastzoo.core.errors import AccessError, HubError, InputError, NotFoundError
from fastzoo.core.files import write_text
from fastzoo.core.text import one_line


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


def offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def state_folder(namespace: str) -> Path:
    """Where what is known of a namespace is kept: beside the other Hub caches, per endpoint."""
    from huggingface_hub import constants

    host = re.sub(r"[^A-Za-z0-9.-]", "_", urlsplit(constants.ENDPOINT).netloc)
    return Path(constants.HF_HOME) / "fastzoo" / host / namespace


def keep(path: Path, text: str) -> None:
    """Write a file of ``state_folder``."""
    with suppress(OSError):  # a cache that cannot be written is none
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
