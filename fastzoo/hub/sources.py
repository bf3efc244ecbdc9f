"""What the sources that ``fastzoo pull`` takes mean: which files of which repositories.

A source is a zoo name, a wildcard over the published names, ``hf:org/repo[/folder][@revision]`` with
wildcards in the folder, or a collection. Nothing is fetched by pattern: a listing only tells which of
the file names known here a repository has. Importing this module does not load huggingface_hub.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TypeVar

from fastzoo.core.errors import FastzooError, HubError, InputError, IntegrityError, NotFoundError
from fastzoo.core.text import did_you_mean, one_line
from fastzoo.hub.client import hub_errors
from fastzoo.hub.listing import TRIES, RemoteFile, read_listing
from fastzoo.hub.registry import (
    NEEDED,
    Published,
    Registry,
    known_files,
    known_files_with,
    last_seen,
    read_registry,
)
from fastzoo.hub.retries import patiently
from fastzoo.hub.sae_files import SAEFiles
from fastzoo.saes.layouts import LAYOUTS, PICKLES, sae_folders
from fastzoo.saes.names import SAEName, parse_name, zoo_names
from fastzoo.saes.references import (
    _COLLECTION,
    Reference,
    _is_pattern,
    collection_slug,
    parse_reference,
)

_HOOK_FOLDER = re.compile(r"blocks\.\d{1,4}\.hook_resid_post", re.ASCII)

Item = TypeVar("Item")


@dataclass
class Planner:
    """Finds out what sources mean; asks for each registry once."""

    namespace: str
    revision: str | None
    failures: list[FastzooError] = field(default_factory=list)
    """Of single SAEs of a source of several."""
    registries: dict[str, Registry] = field(default_factory=dict)
    newest: set[str] = field(default_factory=set)
    """Namespaces whose registry the Hub was asked for."""
    without: dict[str, HubError] = field(default_factory=dict)
    """Namespaces of which there is no registry to be had, and why."""

    def plan(self, sources: Iterable[str]) -> list[SAEFiles]:
        """The files that sources mean; ``failures`` has what befell those of which that cannot be told.

        Raises:
            InputError: a source that is none.
        """
        saes: dict[tuple[str, str, str], SAEFiles] = {}
        for source in sources:
            try:
                found = self.expand(source)
            except HubError as error:
                self.failures.append(error)
                continue
            for sae in found:
                saes.setdefault((sae.repo_id, sae.sha, sae.folder), sae)
        return list(saes.values())

    def expand(self, source: str) -> list[SAEFiles]:
        slug = collection_slug(source)
        if slug is not None:
            return self.from_collection(slug)
        if source.startswith("hf:"):
            path, at, revision = source.partition("@")
            parts = path.split("/", 2)
            pattern = parts[2] if len(parts) == 3 and _is_pattern(parts[2]) else None
            reference = parse_reference("/".join(parts[:2]) + at + revision if pattern else source)
            return self.from_reference(reference, pattern)
        if "/" in source or "\\" in source:
            raise InputError(
                f"'{one_line(source, 100)}' is no SAE on the Hub, which is given by its name, or as "
                "hf:org/repo[/folder][@revision]"
            )
        if _is_pattern(source):
            return self.matching(source)
        return [self.named(parse_name(source))]

    # --- names ---------------------------------------------------------------------------------

    def registry(self, namespace: str, newest: bool = False) -> Registry:
        if namespace in self.without:
            raise self.without[namespace]
        if namespace not in self.registries or (newest and namespace not in self.newest):
            # Where nothing is known the Hub is asked, even if it has just refused: to another token.
            newest = newest or last_seen(namespace) is None
            try:
                self.registries[namespace] = read_registry(namespace, newest=newest)
            except HubError as error:
                self.without[namespace] = error
                raise
            if newest:
                self.newest.add(namespace)
        return self.registries[namespace]

    def named(self, name: SAEName) -> SAEFiles:
        published = self.registry(self.namespace).saes.get(name)
        published = published or self.registry(self.namespace, newest=True).saes.get(name)
        if published is not None:
            return self.at_revision(published)
        if name in zoo_names():
            raise NotFoundError(
                f"{name} is only in the paper's table: {self.namespace} has not published it; "
                "'fastzoo list' shows what there is"
            )
        hint = did_you_mean(str(name), map(str, self.registry(self.namespace).saes))
        raise NotFoundError(
            f"{name} is not published by {self.namespace}; 'fastzoo list' shows what is, and "
            f"--namespace or FASTZOO_NAMESPACE says by whom.{hint}"
        )

    def renewed(self, sae: SAEFiles) -> SAEFiles | None:
        """What the Hub's registry pins for an SAE of which the one kept here pins what is gone."""
        if self.revision is not None:
            return None
        for namespace, registry in list(self.registries.items()):
            for name, published in registry.saes.items():
                if (published.repo_id, published.sha) == (sae.repo_id, sae.sha):
                    with suppress(HubError):
                        newest = self.registry(namespace, newest=True).saes.get(name)
                        if newest is not None and newest != published:
                            return from_registry(newest)
        return None

    def matching(self, pattern: str) -> list[SAEFiles]:
        def matches(name: SAEName) -> bool:
            return fnmatchcase(str(name).lower(), pattern.lower())

        for newest in (False, True):
            saes = self.registry(self.namespace, newest).saes
            found = [published for name, published in sorted(saes.items()) if matches(name)]
            if found:
                break
        else:
            grid = sum(map(matches, zoo_names()))
            raise NotFoundError(
                f"none of the {len(saes)} SAEs that {self.namespace} has published matches "
                f"'{one_line(pattern, 60)}'; {grid} of the {len(zoo_names())} of the paper's grid do"
            )
        return self.each(found, self.at_revision)

    def at_revision(self, published: Published) -> SAEFiles:
        """The files of a published SAE, at another revision if one was asked for."""
        if self.revision is None:
            return from_registry(published)
        sha, listing = read_listing(published.repo_id, self.revision)
        known = known_files(published.name)
        if not set(known[:NEEDED]) <= set(listing):
            raise NotFoundError(
                f"{published.repo_id} at {one_line(self.revision, 60)} is not a published "
                f"{published.name}: it lacks {next(p for p in known if p not in listing)}"
            )
        return _of_listing(str(published.name), published.repo_id, sha, "", known, listing)

    # --- repositories --------------------------------------------------------------------------

    def from_reference(self, ref: Reference, pattern: str | None = None) -> list[SAEFiles]:
        if ref.revision and self.revision and ref.revision != self.revision:
            raise InputError(f"{ref} and --revision name different revisions; give one of them")
        sha, listing = read_listing(ref.repo_id, ref.revision or self.revision)
        return _of_repository(ref, pattern, sha, listing)

    # --- collections ---------------------------------------------------------------------------

    def from_collection(self, slug: str) -> list[SAEFiles]:
        """The SAEs of a collection, and of collections in it."""
        items = _collection_items(slug)
        for kind, nested in list(items):
            if kind == "collection" and _COLLECTION.fullmatch(nested):
                items += _collection_items(nested)
        repos = list(dict.fromkeys(item for kind, item in items if kind == "model"))
        if not repos:
            raise NotFoundError(f"collection {slug} holds no model repository")
        failed = len(self.failures)
        found = self.each(repos, self.of_collection)
        if not found and len(self.failures) == failed:
            raise NotFoundError(f"collection {slug} holds no SAE")
        return found

    def of_collection(self, repo_id: str) -> SAEFiles | None:
        """What the registry pins, which costs no request; else what the repository has, if that is an
        SAE."""
        reference = parse_reference(f"hf:{repo_id}")
        owner, _, name = reference.repo_id.partition("/")
        try:
            published = self.registry(owner).saes.get(parse_name(name))
        except (InputError, NotFoundError):
            published = None
        if published is not None and published.repo_id == repo_id:
            return self.at_revision(published)
        sha, listing = read_listing(repo_id, self.revision)
        try:
            (sae,) = _of_repository(reference, None, sha, listing)
        except (InputError, NotFoundError) as error:
            if sae_folders(listing):
                raise
            print(f"note: left out: {error}", file=sys.stderr)
            return None
        return sae

    def each(
        self, items: Iterable[Item], meaning: Callable[[Item], SAEFiles | None]
    ) -> list[SAEFiles]:
        found = []
        for item in items:
            try:
                if (sae := meaning(item)) is not None:
                    found.append(sae)
            except FastzooError as error:
                if type(error) is HubError:  # no connection: nor will there be for the others
                    raise
                self.failures.append(error)
        return found


def _of_repository(
    ref: Reference, pattern: str | None, sha: str, listing: Mapping[str, RemoteFile]
) -> list[SAEFiles]:
    saes = sae_folders(listing)
    if pattern is None:
        folders = [_choose(ref, saes, listing)]
    else:
        folders = [f for f in saes if f == pattern or fnmatchcase(f, pattern)]
        if not folders:
            raise NotFoundError(
                f"none of the {len(saes)} SAEs in {ref.repo_id} is in a folder that matches "
                f"'{one_line(pattern, 60)}'"
            )
    return [_in_folder(ref.repo_id, sha, folder, saes, listing) for folder in folders]


def from_registry(published: Published) -> SAEFiles:
    files = tuple(
        RemoteFile(path, facts.size, facts.sha256) for path, facts in published.files.items()
    )
    gone = tuple(path for path in known_files(published.name) if path not in published.files)
    return SAEFiles(str(published.name), published.repo_id, published.sha, "", files, gone)


def _in_folder(
    repo_id: str,
    sha: str,
    folder: str,
    saes: Mapping[str, Sequence[str]],
    listing: Mapping[str, RemoteFile],
) -> SAEFiles:
    """The SAE in a folder of a repository; one that is laid out as ours are has all files of ours."""
    repo_name = repo_id.partition("/")[2]
    ours = known_files_with(folder)
    alone = list(saes) == [folder] and _HOOK_FOLDER.fullmatch(folder)
    if alone and set(ours[:NEEDED]) <= set(listing):
        return _of_listing(repo_name, repo_id, sha, "", ours, listing)
    required = next(
        r for r, _ in LAYOUTS if {PurePosixPath(p).name for p in saes[folder]} >= set(r)
    )
    known = [name for r, optional in LAYOUTS if r == required for name in (*r, *optional)]
    paths = [f"{folder}/{name}" if folder else name for name in known]
    name = f"{repo_name}/{folder}" if folder else repo_name
    return _of_listing(name, repo_id, sha, folder, paths, listing)


def _of_listing(
    name: str,
    repo_id: str,
    sha: str,
    folder: str,
    known: Iterable[str],
    listing: Mapping[str, RemoteFile],
) -> SAEFiles:
    known = tuple(known)
    files = tuple(listing[path] for path in known if path in listing)
    gone = tuple(path for path in known if path not in listing)
    return SAEFiles(name, repo_id, sha, folder, files, gone)


def _collection_items(slug: str) -> list[tuple[str, str]]:
    """Kind and id of each item."""
    from huggingface_hub import HfApi

    def ask() -> list[tuple[str, str]]:
        with hub_errors("collection", slug):
            collection = HfApi().get_collection(slug)
        return [(str(item.item_type), str(item.item_id)) for item in collection.items]

    try:
        return patiently(ask, f"collection {slug}", TRIES)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(
            f"what the Hub answers for collection {slug} is none ({one_line(error, 100)})"
        ) from None


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
