"""Which SAEs are published, where, at which commit, with which bytes and figures.

The registry is ``registry.json`` of a namespace's results dataset. Reading it is one request; the
answer is kept for an hour in the Hub's cache folder, and the wheel carries a snapshot, so that names
and ``fastzoo list`` need no network. Importing this module loads no other package than fastzoo.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastzoo.core.errors import AccessError, HubError, InputError, IntegrityError, NotFoundError
from fastzoo.core.files import MAX_JSON_BYTES
from fastzoo.core.text import one_line
from fastzoo.core.version import __version__
from fastzoo.hub.client import hub_errors, keep, offline, state_folder
from fastzoo.saes.names import SAEName, parse_name
from fastzoo.saes.references import REPO

FORMAT = 1

DATASET = "fastzoo-results"
"""Name of the dataset repository in each namespace."""

FILE = "registry.json"

LONGEST_NAME = 96
"""Characters of a repository's name on the Hub."""

SECONDS_KEPT = 3600.0

SECONDS_AFTER_FAILURE = 600.0
"""How long a cached registry counts as new, and how long a Hub that failed is not asked again."""

TIMEOUT = 10.0
"""Seconds that the Hub may be silent, and that the whole answer may take."""


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
    """Its cells of the results table that were measured (see ``fastzoo.publish.results_dataset``)."""

    @property
    def weights_sha256(self) -> str:
        return self.files[f"{self.name.hook_folder}/sae_weights.safetensors"].sha256


@dataclass(frozen=True)
class Registry:
    """What a namespace has published."""

    namespace: str
    collection: str | None = None
    """``namespace/slug`` of the collection; its last 24 characters never change."""
    saes: Mapping[SAEName, Published] = field(default_factory=dict)

    def to_text(self, indent: int | None = 1) -> str:
        """The registry as JSON, in one line without ``indent``: the same one, always the same bytes."""
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
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"

    def updated(self, other: Registry) -> Registry:
        """With what another one says of the same namespace, which is newer."""
        saes = {**self.saes, **other.saes}
        return Registry(self.namespace, other.collection or self.collection, saes)


def parse_registry(text: str | bytes, where: str) -> Registry:
    """Read a registry, believing nothing: only names and files that there can be.

    Raises:
        IntegrityError: it is not one; says where.
    """

    def need(condition: object, what: str) -> None:
        if not condition:
            raise IntegrityError(f"{where} is no registry of fastzoo's: {one_line(what, 200)}")

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
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
        need(len(text_name) <= LONGEST_NAME, f"the name {text_name}")
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
            need(type(size) is int and 0 <= size < 1 << 63, f"{text_name}: size of {path}")
            need(
                isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest),
                f"{text_name}: sha256 of {path}",
            )
            found[path] = FileFacts(size, digest)
        need(not set(known_files(name)[:NEEDED]) - set(found), f"{text_name}: files are missing")
        figures = entry.get("figures")
        need(
            isinstance(figures, dict) and all(_is_cell(v) for v in figures.values()),
            f"{text_name}: figures",
        )
        saes[name] = Published(name, repo_id, sha, found, figures)
    return Registry(namespace, collection, saes)


def _is_cell(value: Any) -> bool:
    """Whether a value of the results table can be shown and kept: no NaN, no control characters."""
    if isinstance(value, str):
        return value.isprintable() and len(value) <= 1000
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 63
    return value is None or (isinstance(value, float) and math.isfinite(value))


def snapshot() -> Registry:
    """The registry of the time when this version of fastzoo was made."""
    text = files("fastzoo.hub").joinpath(FILE).read_text(encoding="utf-8")
    return parse_registry(text, f"fastzoo/{FILE}")


def read_registry(
    namespace: str | None = None,
    *,
    newest: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Registry:
    """The registry of a namespace, from the Hub if it can be asked, else as it was last seen.

    Args:
        newest: ask the Hub even where the cached one is new.
        say: told in one line if the Hub was to be asked in vain, and what is returned instead.

    Raises:
        NotFoundError, AccessError, HubError: it was never seen, and the Hub has none or cannot be
            asked. The default namespace always has the snapshot.
        IntegrityError: the same for what is no registry.
    """
    namespace = _checked(namespace)
    cached = state_folder(namespace) / FILE
    asked = cached.with_name("asked")
    known = last_seen(namespace)
    failure: HubError | None = None
    if offline():
        pass
    elif not newest and _age(asked) < SECONDS_AFTER_FAILURE:
        failure = _kept_failure(asked)
    elif newest or known is None or _age(cached) > SECONDS_KEPT:
        try:
            text = _download(f"{namespace}/{DATASET}")
            registry = parse_registry(text, f"{DATASET} of {namespace}")
        except HubError as error:
            failure = error
            if isinstance(error, NotFoundError):
                failure = NotFoundError(f"{namespace} publishes no SAEs: {error}")
            keep(asked, f"{failure.exit_code} {failure}")
        else:
            keep(cached, text)
            with suppress(OSError):
                asked.unlink()
            return registry
    if known is None:
        raise failure or HubError(
            f"what {namespace} publishes is not known on this machine, and offline mode is on; unset "
            "HF_HUB_OFFLINE"
        )
    nothing_new = isinstance(failure, NotFoundError) and not known.saes
    if failure and not nothing_new:
        say(f"{failure}; what {namespace} publishes is shown as last seen{_when(cached)}")
    return known


def last_seen(namespace: str | None = None) -> Registry | None:
    """The cached registry of a namespace, else the snapshot if it is of this one; asks nobody."""
    namespace = _checked(namespace)
    cached = state_folder(namespace) / FILE
    with suppress(OSError, IntegrityError):
        if cached.stat().st_size <= MAX_JSON_BYTES:
            return parse_registry(cached.read_bytes(), str(cached))
    shipped = snapshot()
    return shipped if shipped.namespace == namespace else None


def _checked(namespace: str | None) -> str:
    namespace = namespace or default_namespace()
    if not REPO.fullmatch(f"{namespace}/x"):
        raise InputError(f"'{one_line(namespace, 60)}' is not the name of a user or organisation")
    return namespace


def _kept_failure(asked: Path) -> HubError:
    """What the Hub failed with when it was last asked, as ``read_registry`` keeps it."""
    kinds = {kind.exit_code: kind for kind in (NotFoundError, AccessError, IntegrityError)}
    try:
        code, _, message = asked.read_text(encoding="utf-8")[:2000].partition(" ")
        return kinds.get(int(code), HubError)(
            f"{message} (asked within the last ten minutes; --refresh asks again)"
        )
    except (OSError, ValueError):
        return HubError("the Hub failed within the last ten minutes; ask again with --refresh")


def _when(path: Path) -> str:
    age = _age(path)
    return f" {age / 3600:.0f} hours ago" if math.isfinite(age) and age > 5400 else ""


def forget_age(namespace: str) -> None:
    """Have the next reader ask the Hub, since it has been written to."""
    folder = state_folder(namespace)
    with suppress(OSError):
        os.utime(folder / FILE, (0, 0))
    with suppress(OSError):
        (folder / "asked").unlink()


def _age(path: Path) -> float:
    """Seconds since a file was written; endless for one that is not there, or of the future."""
    with suppress(OSError):
        if (age := time.time() - path.stat().st_mtime) > -60:
            return age
    return float("inf")


def _download(repo_id: str) -> str:
    """The registry's text, in one request."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    content = bytearray()
    until = time.monotonic() + TIMEOUT
    with (
        hub_errors("dataset", repo_id),
        get_session().stream(
            "GET",
            hf_hub_url(repo_id, FILE, repo_type="dataset"),
            headers=build_hf_headers(library_name="fastzoo", library_version=__version__),
            timeout=TIMEOUT,
            follow_redirects=True,
        ) as response,
    ):
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        for piece in response.iter_bytes(1 << 16):
            content += piece
            if len(content) > MAX_JSON_BYTES:
                raise IntegrityError(f"{repo_id}: {FILE} has more than {MAX_JSON_BYTES} bytes")
            if time.monotonic() > until:
                raise HubError(f"{repo_id}: {FILE} took more than {TIMEOUT:.0f} s to come")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise IntegrityError(f"{repo_id}: {FILE} is not text in UTF-8") from None
