"""Pulling SAEs from the Hub, in three steps: ``sources`` tells which files are meant, ``download``
fetches them, ``verified_files`` verifies them and puts them in place.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastzoo.core.errors import FastzooError, NotFoundError
from fastzoo.core.paths import path_of
from fastzoo.hub.download import fetch
from fastzoo.hub.registry import default_namespace, last_seen
from fastzoo.hub.sources import Sources, from_registry
from fastzoo.hub.verified_files import Fetched, SAEFiles, find
from fastzoo.saes.names import SAEName

NOT_LOADED = ("README.md", "training_log.csv", "training.png", "NOTICE")
"""Files for people: pulled, but not fetched only to load an SAE."""


def pull(
    source: str | Sequence[str],
    *,
    local_dir: str | Path | None = None,
    revision: str | None = None,
    namespace: str | None = None,
) -> list[Path]:
    """Fetch SAEs from the Hub and verify every file; those already here cost no request.

    Args:
        source: a zoo name (``qwen2.5-7b-L18-8x-jumprelu``), a wildcard over the published ones,
            ``hf:org/repo[/folder][@revision]``, ``hf:collections/<namespace>/<slug>``, or several.
        local_dir: put them there as ``<local_dir>/<name>/``, instead of into the Hub's cache.
        revision: a branch, tag or commit sha, instead of what the registry or the source names.
        namespace: whose SAEs a name means (default: ``FASTZOO_NAMESPACE``, else fastzoo).

    Returns the folder of each SAE.

    Raises:
        InputError: a source is not valid; nothing was fetched.
        NotFoundError, AccessError, IntegrityError, HubError, OutputError: the first SAE that could
            not be fetched, after all others were.
    """
    sources, folder = (
        [source] if isinstance(source, str) else source,
        path_of(local_dir, "local_dir") if local_dir else None,
    )
    done, failures = pull_all(sources, local_dir=folder, revision=revision, namespace=namespace)
    for failure in failures[1:]:
        print(f"also: {failure}", file=sys.stderr)
    if failures:
        raise failures[0]
    return [fetched.path for fetched in done]


def pull_all(
    sources: Sequence[str],
    *,
    local_dir: Path | None,
    revision: str | None,
    namespace: str | None,
    shown: bool = True,
) -> tuple[list[Fetched], list[FastzooError]]:
    """As ``pull``: what was fetched, and the errors of the others."""
    meant = Sources(namespace or default_namespace(), revision)
    results = _fetch(meant, meant.read(sources), local_dir, shown)
    done = [result for result in results if isinstance(result, Fetched)]
    return done, [*meant.failures, *(r for r in results if isinstance(r, FastzooError))]


def _fetch(
    sources: Sources,
    saes: list[SAEFiles],
    folder: Path | None = None,
    shown: bool = True,
    skip: Sequence[str] = (),
) -> list[Fetched | FastzooError]:
    """As ``fetch``, but for the files ``skip``; what is gone since the registry was last read is fetched as it is
    published now."""
    results = fetch([sae.without(skip) for sae in saes], local_dir=folder, shown=shown)
    gone = [i for i, result in enumerate(results) if type(result) is NotFoundError]
    renewed = {i: now.without(skip) for i in gone if (now := sources.renewed(saes[i]))}
    again = fetch(list(renewed.values()), local_dir=folder, shown=shown)
    for i, result in zip(renewed, again, strict=True):
        results[i] = result
    return results


def dry_run(
    sources: Sequence[str], *, local_dir: Path | None, revision: str | None, namespace: str | None
) -> tuple[list[dict[str, Any]], list[FastzooError]]:
    """What ``pull_all`` would fetch, with what is ``here`` already, and the errors known before."""
    meant = Sources(namespace or default_namespace(), revision)
    rows = []
    for sae in meant.read(sources):
        missing = {file for file in sae.files if find(sae, file, local_dir) is None}
        facts = {f.path: {"sha256": f.sha256, "here": f not in missing} for f in sae.files}
        rows.append(sae.report(facts) | {"download_bytes": sum(file.size for file in missing)})
    return rows, meant.failures


def fetch_to_load(source: str) -> Path:
    """The folder of an SAE given by name or ``hf:`` reference, with all that loading it needs.

    Raises InputError: it names no SAE, or several, or one that has only pickles; IntegrityError, NotFoundError,
    AccessError, HubError.
    """
    sources = Sources(default_namespace(), None)
    return _only_path(_fetch(sources, [sources.one(source)], skip=NOT_LOADED))


def find_pulled(name: SAEName) -> Path | None:
    """The folder of an SAE that was pulled into the cache, verified; None where it was not. No request is made.

    Raises IntegrityError: it was damaged since.
    """
    registry = last_seen()
    published = registry.saes.get(name) if registry else None
    if published is None:
        return None
    sae = from_registry(published).without(NOT_LOADED)
    if any(find(sae, file, None) is None for file in sae.files):
        return None
    return _only_path(fetch([sae], shown=False))


def _only_path(results: Sequence[Fetched | FastzooError]) -> Path:
    (result,) = results
    if isinstance(result, FastzooError):
        raise result
    return result.path
