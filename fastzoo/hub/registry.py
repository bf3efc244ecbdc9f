"""Which SAEs are published, where, at which commit, with which bytes and figures.

The registry is ``registry.json`` of a namespace's results dataset. Reading it is one request; the
answer is kept for an hour in the Hub's cache folder, and the wheel carries a snapshot, so that names
and ``fastzoo list`` need no network.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic import ValidationInfo as Info

from fastzoo.core.errors import AccessError, HubError, InputError, IntegrityError, NotFoundError
from fastzoo.core.files import MAX_JSON_BYTES
from fastzoo.core.text import one_line
from fastzoo.hub.client import OFFLINE, read_file, state_folder, write_cached
from fastzoo.hub.files import HubFile
from fastzoo.saes.names import SAEName, parse_name
from fastzoo.saes.references import NAME, REPO, is_namespace

FORMAT: Literal[1] = 1

DATASET = "fastzoo-results"
"""Name of the dataset repository in each namespace."""

FILE = "registry.json"

LONGEST_NAME = 96
"""Characters of a repository's name on the Hub."""

SECONDS_KEPT = 3600.0
"""How long a cached registry counts as new."""

SECONDS_AFTER_FAILURE = 600.0
"""How long a Hub that failed is not asked again."""

TIMEOUT = 10.0
"""Seconds that the Hub may be silent, and that its whole answer may take."""


def default_namespace() -> str:
    """The user or organisation whose SAEs a bare name means: ``FASTZOO_NAMESPACE``, else fastzoo."""
    return os.environ.get("FASTZOO_NAMESPACE") or "fastzoo"


NEEDED = 5


def known_files(sae: SAEName | str) -> tuple[str, ...]:
    """Every file that a published SAE (or one whose SAELens files lie in this folder) can have; the first
    ``NEEDED`` it always has."""
    folder = sae if isinstance(sae, str) else sae.hook_folder
    return (
        *("README.md", "config.json", "metrics.json"),
        *(f"{folder}/cfg.json", f"{folder}/sae_weights.safetensors"),
        *(f"{folder}/sparsity.safetensors", "training_log.csv", "training.png", "steering.json", "NOTICE"),
    )


@dataclass(frozen=True)
class Published:
    """One published SAE."""

    name: SAEName
    repo_id: str
    sha: str
    """The commit that ``files`` are of."""
    files: Mapping[str, HubFile]
    figures: Mapping[str, Any]
    """Its cells of the results table that were measured (see ``fastzoo.publish.results_dataset``)."""

    @property
    def weights_sha256(self) -> str:
        return self.files[f"{self.name.hook_folder}/sae_weights.safetensors"].digest


@dataclass(frozen=True)
class Registry:
    """What a namespace has published."""

    namespace: str
    collection: str | None = None
    """``namespace/slug`` of the collection; its last 24 characters never change."""
    saes: Mapping[SAEName, Published] = field(default_factory=dict)

    def to_text(self, indent: int | None = 1) -> str:
        """As JSON, in one line without ``indent``: the same registry always gives the same bytes."""
        saes = {}
        for name, sae in sorted(self.saes.items()):
            files = {
                path: {"size": file.size, "sha256": file.digest} for path, file in sorted(sae.files.items())
            }
            saes[str(name)] = {
                "repo_id": sae.repo_id,
                "sha": sae.sha,
                "files": files,
                "figures": dict(sae.figures),
            }
        value = {"format": FORMAT, "namespace": self.namespace, "collection": self.collection, "saes": saes}
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"

    def updated(self, other: Registry) -> Registry:
        """With what a newer one of the same namespace says."""
        return Registry(self.namespace, other.collection or self.collection, {**self.saes, **other.saes})


def _only_known_files(files: Any, info: Info) -> Any:
    known = known_files(info.context or "")
    paths = set(files) if isinstance(files, dict) else set()
    if unknown := paths.difference(known):
        raise ValueError(f"the file {min(unknown)}")
    if missing := set(known[:NEEDED]) - paths:
        raise ValueError(f"the file {min(missing)} is missing")
    return files


def _only_cells(figures: dict[str, Any]) -> dict[str, Any]:
    """Values that can be shown and kept: no NaN, no control characters."""
    for key, value in figures.items():
        match value:
            case str():
                fits = value.isprintable() and len(value) <= 1000
            case int():
                fits = type(value) is int and -(1 << 63) <= value < 1 << 63  # True is an int, too
            case _:
                fits = value is None or (type(value) is float and math.isfinite(value))
        if not fits:
            raise ValueError(f"the value of {key}")
    return figures


class _Strict(BaseModel):
    """What ``registry.json`` may hold. It comes from anybody, so nothing is taken as given."""

    model_config = ConfigDict(strict=True)


class _File(_Strict):
    size: int = Field(ge=0, lt=1 << 63)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class _SAE(_Strict):
    """Validated with the SAE's name as context."""

    repo_id: str = Field(pattern=f"^{REPO.pattern}$")
    sha: str = Field(pattern="^[0-9a-f]{40}$")
    files: Annotated[dict[str, _File], BeforeValidator(_only_known_files)]
    figures: Annotated[dict[str, Any], AfterValidator(_only_cells)]


class _Registry(_Strict):
    format: Literal[1]
    namespace: str = Field(pattern=f"^{NAME}$")
    collection: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    saes: dict[str, Any]
    """Validated one by one: the first fault of a hostile registry ends it, not a list of millions."""


def parse_registry(text: str | bytes, where: str) -> Registry:
    """Read a registry. Raises IntegrityError, which says what is wrong ``where``."""
    key, saes = "", {}
    try:
        found = _Registry.model_validate_json(text)
        for key, entry in found.saes.items():
            name = parse_name(key)
            if len(key) > LONGEST_NAME:
                raise InputError(f"the name {key} is too long")
            sae = _SAE.model_validate(entry, context=name)
            files = {path: HubFile(path, f.size, f.sha256) for path, f in sae.files.items()}
            saes[name] = Published(name, sae.repo_id, sae.sha, files, sae.figures)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        message = fault["msg"].removeprefix("Value error, ")
        said = ": ".join([*filter(None, (key, *map(str, fault["loc"]))), message])
    except InputError as error:
        said = str(error)
    else:
        return Registry(found.namespace, found.collection, saes)
    raise IntegrityError(f"{where} is no registry of fastzoo's: {one_line(said, 200)}")


def snapshot() -> Registry:
    """The registry of the time when this version of fastzoo was made."""
    text = files("fastzoo.hub").joinpath(FILE).read_text(encoding="utf-8")
    return parse_registry(text, f"fastzoo/{FILE}")


def read_registry(
    namespace: str | None = None, *, newest: bool = False, say: Callable[[str], None] = lambda line: None
) -> Registry:
    """The registry of a namespace, from the Hub if it can be asked, else as it was last seen.

    Args:
        newest: ask the Hub even where the cached one is new.
        say: told in one line if the Hub could not be asked, and what is returned instead.

    Raises NotFoundError, AccessError, HubError, IntegrityError: it was never seen, and the Hub has none, or cannot
    be asked, or what it has is no registry. The default namespace always has the snapshot.
    """
    from huggingface_hub import constants

    namespace = _checked(namespace)
    cached = state_folder(namespace) / FILE
    asked = cached.with_name("asked")
    known = last_seen(namespace)
    failure: HubError | None = None
    if constants.HF_HUB_OFFLINE:
        pass
    elif not newest and _age(asked) < SECONDS_AFTER_FAILURE:
        failure = _kept_failure(asked)
    elif newest or known is None or _age(cached) > SECONDS_KEPT:
        try:
            text = read_file("dataset", f"{namespace}/{DATASET}", FILE, seconds=TIMEOUT)
            registry = parse_registry(text, f"{DATASET} of {namespace}")
        except HubError as error:
            failure = error
            if isinstance(error, NotFoundError):
                failure = NotFoundError(f"{namespace} publishes no SAEs: {error}")
            write_cached(asked, f"{failure.exit_code} {failure}")
        else:
            write_cached(cached, text.decode())
            _make_old(asked)
            return registry
    if known is None:
        raise failure or HubError(f"what {namespace} publishes is not known here, and {OFFLINE}")
    # Where nothing was published and nothing is known, nobody needs to be told.
    if failure and (known.saes or not isinstance(failure, NotFoundError)):
        age = _age(cached)
        when = f" {age / 3600:.0f} hours ago" if 5400 < age < math.inf else ""
        say(f"{failure}; what {namespace} publishes is shown as last seen{when}")
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
    if not is_namespace(namespace):
        raise InputError(f"'{one_line(namespace, 60)}' is not the name of a user or organisation")
    return namespace


def _kept_failure(asked: Path) -> HubError:
    """What the Hub failed with when it was last asked."""
    kinds = {str(kind.exit_code): kind for kind in (NotFoundError, AccessError, IntegrityError)}
    code, message = "", "the Hub failed"
    with suppress(OSError, ValueError):
        code, _, message = asked.read_text(encoding="utf-8")[:2000].partition(" ")
    again = "asked within the last ten minutes; --refresh asks again"
    return kinds.get(code, HubError)(f"{message} ({again})")


def forget_age(namespace: str) -> None:
    """Have the next reader ask the Hub, since something was published."""
    for name in (FILE, "asked"):
        _make_old(state_folder(namespace) / name)


def _make_old(path: Path) -> None:
    with suppress(OSError):
        os.utime(path, (0, 0))


def _age(path: Path) -> float:
    """Seconds since a file was written; infinite if it is not there, or comes from the future."""
    with suppress(OSError):
        if (age := time.time() - path.stat().st_mtime) > -60:
            return age
    return math.inf
