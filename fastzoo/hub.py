"""Reading from the Hugging Face Hub: references, pinned revisions, one SAE's files, verified.

Nothing is fetched by pattern: a repository's listing only tells which of the file names known here
it has. Every file's hash is compared with the listing's, also when it came from the cache, since
huggingface_hub itself compares sizes only. Importing this module does not load huggingface_hub.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastzoo.errors import (
    AccessError,
    HubError,
    InputError,
    IntegrityError,
    NotFoundError,
    did_you_mean,
    one_line,
)
from fastzoo.files import MAX_JSON_BYTES, read_json

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

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
    if slash and not _is_plain(folder):
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


def fetch_sae(ref: Reference) -> Path:
    """Download one SAE's files into the Hub cache, or find them there, and verify each of them.

    Returns:
        The folder to load: of a repository of ours the snapshot's root, where config.json is; of
        any other the folder with the weights.

    Raises:
        InputError: several SAEs and none named, or only pickles.
        IntegrityError: wrong bytes.
        NotFoundError, AccessError, HubError: nothing there, no access, no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    repo_id = ref.repo_id
    sha = resolve_model(repo_id, ref.revision)
    with hub_errors("model", repo_id, ref.revision):
        entries = HfApi().list_repo_tree(repo_id, recursive=True, revision=sha)
        listing = {e.path: e for e in entries if isinstance(e, RepoFile) and _is_plain(e.path)}
    saes = sae_folders(listing)

    folder = _choose(ref, saes, listing)
    files = [_fetch(repo_id, sha, listing[name]) for name in saes[folder]]
    if "config.json" in listing:
        config = _fetch(repo_id, sha, listing["config.json"])
        # One repository of ours is one SAE, laid out as its local folder is.
        if _is_ours(config) and len(saes) == 1 and folder and "/" not in folder:
            if "metrics.json" in listing:
                _fetch(repo_id, sha, listing["metrics.json"])
            return config.parent
    return files[0].parent


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


def _choose(ref: Reference, saes: Mapping[str, list[str]], paths: Iterable[str]) -> str:
    """The SAE folder ``ref`` means: the one named, else the only one. Raises InputError, NotFoundError."""
    if (ref.folder or "") in saes:
        return ref.folder or ""
    inside = f"{ref.folder}/" if ref.folder else ""
    within = [folder for folder in saes if folder.startswith(inside)]
    if len(within) == 1:
        return within[0]
    place = f"{ref.repo_id}/{ref.folder}" if ref.folder else ref.repo_id
    if within:
        some = ", ".join(within[:5]) + (", …" if len(within) > 5 else "")
        example = Reference(ref.repo_id, within[0], ref.revision)
        raise InputError(
            f"{place} holds {len(within)} SAEs ({some}): name one, as in {one_line(example)}"
        )
    pickles = [path for path in paths if path.startswith(inside) and path.endswith(PICKLES)]
    if pickles:
        raise InputError(
            f"{place} has its weights only as {one_line(sorted(pickles)[0], 80)}, a pickle, which "
            "can run code when loaded and is never read; safetensors or a params.npz can be"
        )
    if ref.folder and saes:
        hint = did_you_mean(ref.folder, saes) or f" There is {next(iter(saes))}."
        raise NotFoundError(f"no SAE in {place}.{hint}")
    raise NotFoundError(
        f"no SAE in {place}: there is no folder with cfg.json and sae_weights.safetensors (SAELens)"
        " or sae.safetensors (sparsify), or with params.npz (Gemma Scope)"
    )


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


def _fetch(repo_id: str, sha: str, entry: RepoFile) -> Path:
    """Path of a file in the cache's snapshot of ``sha``, its bytes being those of the listing."""
    from huggingface_hub import hf_hub_download

    if entry.path.endswith(".json") and entry.size > MAX_JSON_BYTES:
        raise HubError(
            f"{repo_id}: {entry.path} has {entry.size} bytes; such files have at most "
            f"{MAX_JSON_BYTES}, so it is not fetched"
        )
    with hub_errors("model", repo_id, sha):
        local = Path(hf_hub_download(repo_id, entry.path, revision=sha))
        matches = _matches(local, entry)
    if not matches:
        # Left in place it would be served again for ever: the client trusts what it has.
        with suppress(OSError):
            blob = local.resolve()
            local.unlink()
            blob.unlink(missing_ok=True)
        raise IntegrityError(
            f"{repo_id}@{sha[:12]}: {entry.path} is not the file the Hub lists (its hash differs), "
            "so it was damaged or replaced; the bad copy was deleted, run again to fetch it anew"
        )
    return local


def _matches(local: Path, entry: RepoFile) -> bool:
    """Whether a local file has the size and hash of its listing."""
    # Large files are listed by their sha256; for the others all the Hub has is git's own blob id.
    size = local.stat().st_size
    if entry.lfs is not None:
        expected, digest = entry.lfs.sha256, hashlib.sha256()
    else:
        expected, digest = entry.blob_id, hashlib.sha1(usedforsecurity=False)
        digest.update(b"blob %d\0" % size)
    if size != entry.size:
        return False
    with local.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest() == expected


def _is_ours(config: Path) -> bool:
    """Whether a config.json is fastzoo's record of an SAE; many repositories have one of theirs."""
    try:
        return read_json(config).get("library") == "fastzoo"
    except InputError:
        return False


def _is_plain(path: str) -> bool:
    """Whether every part of a path is an ordinary name: no '..', no drive, no dot file."""
    bad = set('\\:*?"<>|@')
    return path.isprintable() and all(
        part and not part.startswith(".") and not bad & set(part) for part in path.split("/")
    )


@contextmanager
def hub_errors(kind: str, repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line of ours.

    Args:
        kind: model, dataset, space or collection.
    """
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    noun = kind if kind == "collection" else f"{kind} repository"
    what = f"{noun} {one_line(repo_id, 100)}"

    def unreachable(error: Exception) -> HubError:
        reason = one_line(error.__cause__ or error, 100)
        return HubError(
            f"cannot reach {hub} for {what} ({reason}); check the network, or name a local folder "
            "instead"
        )

    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise HubError(
            f"{what} is needed from {hub}, but offline mode is on; unset HF_HUB_OFFLINE, or name a "
            "local folder instead"
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
