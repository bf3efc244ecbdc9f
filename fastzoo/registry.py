"""Which SAEs are published, where, at which commit, with which bytes and figures.

The registry is ``registry.json`` of a namespace's results dataset. Reading it is one request; the
answer is kept for an hour in the Hub's cache folder, and the wheel carries a snapshot, so that names
and ``fastzoo list`` need no network. Importing this module loads no other package than fastzoo.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastzoo.errors import HubError, InputError, IntegrityError, NotFoundError, one_line
from fastzoo.files import MAX_JSON_BYTES, write_text
from fastzoo.hub import REPO, hub_errors
from fastzoo.names import SAEName, parse_name

FORMAT = 1
DATASET = "fastzoo-results"
"""Name of the dataset repository in each namespace."""
FILE = "registry.json"

SECONDS_KEPT = 3600.0
SECONDS_AFTER_FAILURE = 600.0
"""How long a cached registry counts as new, and how long a Hub that failed is not asked again."""
TIMEOUT = 10.0


def default_namespace() -> str:
    """The user or organisation whose SAEs a bare name means: ``FASTZOO_NAMESPACE``, else fastzoo."""
    return os.environ.get("FASTZOO_NAMESPACE") or "fastzoo"


NEEDED = 5


def known_files(name: SAEName) -> tuple[str, ...]:
    """Every file that a published SAE can have; the first ``NEEDED`` it always has."""
    return known_files_with(name.hook_folder)


def known_files_with(folder: str) -> tuple[str, ...]:
    """As ``known_files``, for an SAE whose SAELens files are in ``folder``."""
    return (
        *("README.md", "config.json", "metrics.json"),
        *(f"{folder}/cfg.json", f"{folder}/sae_weights.safetensors"),
        *(f"{folder}/sparsity.safetensors", "training_log.csv", "training.png", "NOTICE"),
    )


@dataclass(frozen=True)
class FileFacts:
    """A published file. ``size`` in bytes."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Published:
    """One published SAE."""

    name: SAEName
    repo_id: str
    sha: str
    """The commit that ``files`` are of."""
    files: Mapping[str, FileFacts]
    figures: Mapping[str, Any]
    """Its cells of the results table that were measured (see ``fastzoo.results_dataset``)."""


@dataclass(frozen=True)
class Registry:
    """What a namespace has published."""

    namespace: str
    collection: str | None = None
    """``namespace/slug`` of the collection; its last 24 characters never change."""
    saes: Mapping[SAEName, Published] = field(default_factory=dict)

    def to_text(self) -> str:
        """The registry as JSON: the same registry always gives the same bytes."""
        value = {
            "format": FORMAT,
            "namespace": self.namespace,
            "collection": self.collection,
            "saes": {
                str(name): {
                    "repo_id": sae.repo_id,
                    "sha": sae.sha,
                    "files": {path: vars(facts) for path, facts in sorted(sae.files.items())},
                    "figures": dict(sae.figures),
                }
                for name, sae in sorted(self.saes.items())
            },
        }
        return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def parse_registry(text: str | bytes, where: str) -> Registry:
    """Read a registry, believing nothing: only names and files that there can be.

    Raises:
        IntegrityError: it is not one; says where.
    """

    def need(condition: object, what: str) -> None:
        if not condition:
            raise IntegrityError(f"{where} is no registry of fastzoo's: {one_line(what, 200)}")

    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{where} is no registry of fastzoo's: {one_line(error, 100)}"
        ) from None
    need(isinstance(value, dict), "not a JSON object")
    need(value.get("format") == FORMAT, f"format {value.get('format')}, and not {FORMAT}")
    namespace, collection = value.get("namespace"), value.get("collection")
    need(isinstance(namespace, str) and REPO.fullmatch(f"{namespace}/x"), "no namespace")
    need(
        collection is None
        or (isinstance(collection, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", collection)),
        f"collection {collection}",
    )
    listed = value.get("saes")
    need(isinstance(listed, dict), "no saes")
    saes = {}
    for text_name, entry in listed.items():
        try:
            name = parse_name(text_name)
        except InputError:
            need(False, f"the name {text_name}")
        need(isinstance(entry, dict), text_name)
        repo_id, sha, listing = (entry.get(key) for key in ("repo_id", "sha", "files"))
        need(isinstance(repo_id, str) and REPO.fullmatch(repo_id), f"{text_name}: repo_id")
        need(isinstance(sha, str) and re.fullmatch("[0-9a-f]{40}", sha), f"{text_name}: sha")
        need(isinstance(listing, dict), f"{text_name}: files")
        found = {}
        for path, facts in listing.items():
            need(path in known_files(name), f"{text_name}: the file {path}")
            need(isinstance(facts, dict), f"{text_name}: {path}")
            size, digest = facts.get("size"), facts.get("sha256")
            need(type(size) is int and size >= 0, f"{text_name}: size of {path}")
            need(
                isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest),
                f"{text_name}: sha256 of {path}",
            )
            found[path] = FileFacts(size, digest)
        need(not set(known_files(name)[:NEEDED]) - set(found), f"{text_name}: files are missing")
        figures = entry.get("figures")
        need(
            isinstance(figures, dict)
            and all(isinstance(v, str | int | float | None) for v in figures.values()),
            f"{text_name}: figures",
        )
        saes[name] = Published(name, repo_id, sha, found, figures)
    return Registry(namespace, collection, saes)


def snapshot() -> Registry:
    """The registry of the time when this version of fastzoo was made."""
    text = files("fastzoo").joinpath(FILE).read_text(encoding="utf-8")
    return parse_registry(text, f"fastzoo/{FILE}")


def read_registry(
    namespace: str | None = None, *, newest: bool = False, ask: bool = True
) -> Registry:
    """The registry of a namespace, from the Hub if it can be asked, else as it was last seen.

    Args:
        newest: ask the Hub even where the cached one is new.
        ask: False: make no request, however old the cached one is.

    Raises:
        NotFoundError, AccessError, HubError: it was never seen, and the Hub has none or cannot be
            asked. The default namespace always has the snapshot.
        IntegrityError: what the Hub has is no registry.
    """
    namespace = namespace or default_namespace()
    if not REPO.fullmatch(f"{namespace}/x"):
        raise InputError(f"'{one_line(namespace, 60)}' is not the name of a user or organisation")
    cached = state_folder(namespace) / FILE
    asked = cached.with_name("asked")
    old = min(_age(cached) - SECONDS_KEPT, _age(asked) - SECONDS_AFTER_FAILURE) > 0
    if ask and (newest or old):
        try:
            text = _download(f"{namespace}/{DATASET}")
            registry = parse_registry(text, f"{DATASET} of {namespace}")
            _keep(cached, text)
            return registry
        except HubError as error:
            failure: HubError | None = error
            _keep(asked, "")
    else:
        failure = None
    try:
        return parse_registry(cached.read_bytes(), str(cached))
    except (OSError, IntegrityError):
        shipped = snapshot()
        if shipped.namespace == namespace:
            return shipped
        raise failure or NotFoundError(
            f"namespace {namespace} has no dataset {DATASET}, so what it publishes is not known; "
            "name a repository as hf:org/repo"
        ) from None


def state_folder(namespace: str) -> Path:
    """Where what is known of a namespace is kept: beside the other Hub caches, per endpoint."""
    from huggingface_hub import constants

    host = re.sub(r"[^A-Za-z0-9.-]", "_", urlsplit(constants.ENDPOINT).netloc)
    return Path(constants.HF_HOME) / "fastzoo" / host / namespace


def forget_age(namespace: str) -> None:
    """Have the next reader ask the Hub, since it has been written to."""
    folder = state_folder(namespace)
    for name in (FILE, "asked"):
        with suppress(OSError):
            os.utime(folder / name, (0, 0))


def _age(path: Path) -> float:
    """Seconds since a file was written; endless for one that is not there."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


def _keep(path: Path, text: str) -> None:
    with suppress(OSError):  # a cache that cannot be written is none
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def _download(repo_id: str) -> str:
    """The registry's text, in one request."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    with hub_errors("dataset", repo_id):
        response = get_session().get(
            hf_hub_url(repo_id, FILE, repo_type="dataset"),
            headers=build_hf_headers(),
            timeout=TIMEOUT,
            follow_redirects=True,
        )
        hf_raise_for_status(response)
    if len(response.content) > MAX_JSON_BYTES:
        raise IntegrityError(f"{repo_id}: {FILE} has more than {MAX_JSON_BYTES} bytes")
    return response.text
