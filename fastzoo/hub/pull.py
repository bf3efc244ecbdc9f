"""Pulling SAEs from the Hub: ``plan`` tells which files a source means, ``fetch`` fetches them.

Importing this module does not load huggingface_hub.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastzoo.core.errors import FastzooError, InputError, NotFoundError
from fastzoo.core.text import one_line
from fastzoo.hub.download import fetch
from fastzoo.hub.registry import default_namespace, last_seen
from fastzoo.hub.sae_files import Fetched, SAEFiles, here
from fastzoo.hub.sources import Planner, from_registry
from fastzoo.saes.names import SAEName, parse_name
from fastzoo.saes.references import collection_slug, parse_reference

NOT_LOADED = ("README.md", "training_log.csv", "training.png", "NOTICE")
"""What is for people: pulled, but not fetched only to load an SAE."""


def pull(
    source: str | Sequence[str],
    *,
    local_dir: str | Path | None = None,
    revision: str | None = None,
    namespace: str | None = None,
) -> list[Path]:
    """Fetch SAEs from the Hub and verify every file of them; what is here already costs no request.

    Args:
        source: a zoo name (``qwen2.5-7b-L18-8x-jumprelu``), a wildcard over the published ones,
            ``hf:org/repo[/folder][@revision]``, ``hf:collections/<namespace>/<slug>``, or several.
        local_dir: put them there as ``<local_dir>/<name>/``, instead of into the Hub's cache.
        revision: a branch, tag or commit sha, instead of what the registry or the source names.
        namespace: whose SAEs a name means (default: ``FASTZOO_NAMESPACE``, else fastzoo).

    Returns:
        The folder of each SAE.

    Raises:
        InputError: a source that is none; nothing was fetched.
        NotFoundError, AccessError, IntegrityError, HubError, OutputError: what befell the first SAE
            that could not be fetched, after the others were.
    """
    sources = [source] if isinstance(source, str) else source
    done, failures = pull_all(sources, revision=revision, namespace=namespace, local_dir=local_dir)
    for failure in failures[1:]:
        print(f"also: {failure}", file=sys.stderr)
    if failures:
        raise failures[0]
    return [fetched.path for fetched in done]


def pull_all(
    sources: Sequence[str],
    *,
    local_dir: str | Path | None = None,
    revision: str | None = None,
    namespace: str | None = None,
    shown: bool = True,
) -> tuple[list[Fetched], list[FastzooError]]:
    """As ``pull``: what was fetched, and what befell the others."""
    planner = Planner(namespace or default_namespace(), revision)
    saes = planner.plan(sources)
    results = _fetch(planner, saes, Path(local_dir).expanduser() if local_dir else None, shown)
    done = [result for result in results if isinstance(result, Fetched)]
    return done, [*planner.failures, *(r for r in results if isinstance(r, FastzooError))]


def _fetch(
    planner: Planner,
    saes: Sequence[SAEFiles],
    folder: Path | None = None,
    shown: bool = True,
    part: Callable[[SAEFiles], SAEFiles] = lambda sae: sae,
) -> list[Fetched | FastzooError]:
    """As ``fetch``; what is gone since the registry was last read is fetched as it is published now.

    Args:
        part: what of an SAE is to be fetched.
    """
    results = fetch([part(sae) for sae in saes], local_dir=folder, shown=shown)
    renewed = {
        i: now
        for i, (sae, result) in enumerate(zip(saes, results, strict=True))
        if type(result) is NotFoundError and (now := planner.renewed(sae))
    }
    if renewed:
        again = fetch([part(sae) for sae in renewed.values()], local_dir=folder, shown=shown)
        for i, result in zip(renewed, again, strict=True):
            results[i] = result
    return results


def dry_run(
    sources: Sequence[str],
    *,
    local_dir: str | Path | None = None,
    revision: str | None = None,
    namespace: str | None = None,
) -> tuple[list[dict[str, Any]], list[FastzooError]]:
    """What ``pull_all`` would fetch, with what is ``here`` already, and what it would fail for."""
    planner = Planner(namespace or default_namespace(), revision)
    folder = Path(local_dir).expanduser() if local_dir else None
    rows = []
    for sae in planner.plan(sources):
        present = {file: here(sae, file, folder) is not None for file in sae.files}
        rows.append(
            {
                "name": sae.name,
                "repo": sae.repo_id,
                "revision": sae.sha,
                "files": [
                    {
                        "path": sae.inside(file.path),
                        "size": file.size,
                        "sha256": file.digest if len(file.digest) == 64 else None,
                        "here": present[file],
                    }
                    for file in sae.files
                ],
                "bytes": sae.size,
                "download_bytes": sum(file.size for file in sae.files if not present[file]),
            }
        )
    return rows, planner.failures


def fetch_to_load(source: str) -> Path:
    """The folder of an SAE given by name or ``hf:`` reference, with all that loading it needs.

    Raises:
        InputError: several SAEs and none named, only pickles, or no name.
        IntegrityError, NotFoundError, AccessError, HubError.
    """
    planner = Planner(default_namespace(), None)
    if collection_slug(source) is not None:
        raise InputError(
            f"{one_line(source, 100)} is a collection; 'fastzoo pull' fetches all of its SAEs, and "
            "each is given by its name"
        )
    if source.startswith("hf:"):
        (sae,) = planner.from_reference(parse_reference(source))
    else:
        sae = planner.named(parse_name(source))
    (result,) = _fetch(planner, [sae], part=_to_load)
    if isinstance(result, FastzooError):
        raise result
    return result.path


def find_pulled(name: SAEName) -> Path | None:
    """The folder of an SAE that was pulled into the cache, verified; None where it was not.

    No request is made.

    Raises:
        IntegrityError: it was damaged since.
    """
    registry = last_seen()
    published = registry.saes.get(name) if registry else None
    if published is None:
        return None
    sae = _to_load(from_registry(published))
    if any(here(sae, file, None) is None for file in sae.files):
        return None
    (result,) = fetch([sae], shown=False)
    if isinstance(result, FastzooError):
        raise result
    return result.path


def _to_load(sae: SAEFiles) -> SAEFiles:
    return replace(sae, files=tuple(f for f in sae.files if f.path not in NOT_LOADED))
