"""First step of a pull: what its sources mean, that is which files of which repositories.

A source is a zoo name, a wildcard over the published names, ``hf:org/repo[/folder][@revision]`` with
wildcards in the folder, or a collection. Nothing is fetched by pattern: a listing only tells which of
the file names known here a repository has.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeVar

from fastzoo.core.errors import FastzooError, HubError, InputError, NotFoundError
from fastzoo.core.text import did_you_mean, one_line
from fastzoo.hub.client import hub_errors
from fastzoo.hub.registry import NEEDED, Published, Registry, known_files, last_seen, read_registry
from fastzoo.hub.repo_files import TRIES_OF_DOWNLOADS, Listing, read_listing
from fastzoo.hub.retries import with_retries
from fastzoo.hub.verified_files import SAEFiles
from fastzoo.saes.layouts import LAYOUTS, PICKLES, sae_folders
from fastzoo.saes.names import SAEName, parse_name, zoo_names
from fastzoo.saes.places import layer_named
from fastzoo.saes.references import COLLECTION, FORM, Reference, collection_slug, is_pattern, parse_reference

_HOOK_FOLDER = re.compile(r"blocks\.\d{1,4}\.hook_resid_post", re.ASCII)

Item = TypeVar("Item")


@dataclass
class Sources:
    """Finds out what sources mean; asks for each registry once."""

    namespace: str
    revision: str | None
    failures: list[FastzooError] = field(default_factory=list)
    """Of single SAEs of a source of several."""
    _registries: dict[tuple[str, bool], Registry | HubError] = field(default_factory=dict)
    """What reading a namespace's registry gave, and whether that was the newest."""

    def read(self, sources: Iterable[str]) -> list[SAEFiles]:
        """The files that sources mean; ``failures`` has the errors of those that could not be read.

        Raises InputError: what one of them names is not a source.
        """
        saes: dict[tuple[str, str, str], SAEFiles] = {}
        for source in sources:
            try:
                for sae in self._meaning(source):
                    saes.setdefault((sae.repo_id, sae.sha, sae.folder), sae)
            except HubError as error:
                self.failures.append(error)
        return list(saes.values())

    def one(self, source: str) -> SAEFiles:
        """The files of a single SAE, given by name or ``hf:`` reference.

        Raises InputError: not one SAE; NotFoundError, AccessError, HubError.
        """
        if collection_slug(source) is not None:
            how = "'fastzoo pull' fetches all of its SAEs, and each is given by its name"
            raise InputError(f"{one_line(source, 100)} is a collection; {how}")
        if source.startswith("hf:"):
            return self._referred(parse_reference(source))[0]
        return self._named(parse_name(source))

    def _meaning(self, source: str) -> list[SAEFiles]:
        if (slug := collection_slug(source)) is not None:
            return self._in_collection(slug)
        if source.startswith("hf:"):
            path, at, revision = source.partition("@")
            parts = path.split("/", 2)
            if len(parts) == 3 and is_pattern(parts[2]):
                return self._referred(parse_reference("/".join(parts[:2]) + at + revision), parts[2])
            return self._referred(parse_reference(source))
        if "/" in source or "\\" in source:
            hint = f"give its name, or write it as {FORM}"
            raise InputError(f"'{one_line(source, 100)}' does not name an SAE on the Hub; {hint}")
        if is_pattern(source):
            return self._matching(source)
        return [self._named(parse_name(source))]

    def _registry(self, namespace: str, newest: bool = False) -> Registry:
        if (namespace, newest) not in self._registries:
            # Where nothing is known the Hub is asked, even if it has just refused: to another token.
            newest = newest or last_seen(namespace) is None
            try:
                found: Registry | HubError = read_registry(namespace, newest=newest)
            except HubError as error:
                found = error
            self._registries |= {(namespace, False): found, (namespace, newest): found}
        found = self._registries[namespace, newest]
        if isinstance(found, HubError):
            raise found
        return found

    def _named(self, name: SAEName) -> SAEFiles:
        for newest in (False, True):
            saes = self._registry(self.namespace, newest).saes
            if name in saes:
                return self._at_revision(saes[name])
        if name in zoo_names():
            why = f"is only in the paper's table: {self.namespace} has not published it"
            raise NotFoundError(f"{name} {why}; 'fastzoo list' shows what there is")
        how = "'fastzoo list' shows what is, and --namespace or FASTZOO_NAMESPACE says by whom"
        hint = did_you_mean(str(name), map(str, saes))
        raise NotFoundError(f"{name} is not published by {self.namespace}; {how}.{hint}")

    def _matching(self, pattern: str) -> list[SAEFiles]:
        def matches(name: SAEName) -> bool:
            return fnmatchcase(str(name).lower(), pattern.lower())

        for newest in (False, True):
            saes = self._registry(self.namespace, newest).saes
            if found := [saes[name] for name in sorted(saes) if matches(name)]:
                return self._each(found, self._at_revision)
        grid = sum(map(matches, zoo_names()))
        raise NotFoundError(
            f"none of the {len(saes)} SAEs that {self.namespace} has published matches "
            f"'{one_line(pattern, 60)}'; {grid} of the {len(zoo_names())} of the paper's grid do"
        )

    def _at_revision(self, published: Published) -> SAEFiles:
        """The files of a published SAE, at another revision if one was asked for."""
        if self.revision is None:
            return from_registry(published)
        listing = read_listing(published.repo_id, self.revision)
        known = known_files(published.name)
        if missing := [path for path in known[:NEEDED] if path not in listing.files]:
            what = f"{published.repo_id} at {one_line(self.revision, 60)}"
            raise NotFoundError(f"{what} is not a published {published.name}: it lacks {missing[0]}")
        return _sae_files(str(published.name), listing, known)

    def renewed(self, sae: SAEFiles) -> SAEFiles | None:
        """What the Hub's registry names by now for an SAE whose commit is gone."""
        if self.revision is not None:
            return None
        for (namespace, _), registry in list(self._registries.items()):
            for name, published in registry.saes.items() if isinstance(registry, Registry) else ():
                if (published.repo_id, published.sha) == (sae.repo_id, sae.sha):
                    with suppress(HubError):
                        newest = self._registry(namespace, newest=True).saes.get(name)
                        if newest is not None and newest != published:
                            return from_registry(newest)
        return None

    def _referred(self, ref: Reference, pattern: str | None = None) -> list[SAEFiles]:
        if ref.revision and self.revision and ref.revision != self.revision:
            raise InputError(f"{ref} and --revision name different revisions; give one of them")
        return _in_repository(ref, pattern, read_listing(ref.repo_id, ref.revision or self.revision))

    def _in_collection(self, slug: str) -> list[SAEFiles]:
        """The SAEs of a collection, and of collections in it."""
        items = _collection_items(slug)
        for kind, nested in list(items):
            if kind == "collection" and COLLECTION.fullmatch(nested):
                items += _collection_items(nested)
        repos = list(dict.fromkeys(item for kind, item in items if kind == "model"))
        if not repos:
            raise NotFoundError(f"collection {slug} holds no model repository")
        failed = len(self.failures)
        found = self._each(repos, self._of_collection)
        if not found and len(self.failures) == failed:
            raise NotFoundError(f"collection {slug} holds no SAE")
        return found

    def _of_collection(self, repo_id: str) -> SAEFiles | None:
        """What the registry names, which costs no request; else what the repository has, if that is an SAE."""
        reference = parse_reference(f"hf:{repo_id}")
        owner, _, name = reference.repo_id.partition("/")
        published = None
        with suppress(InputError, NotFoundError):
            published = self._registry(owner).saes.get(parse_name(name))
        if published is not None and published.repo_id == repo_id:
            return self._at_revision(published)
        listing = read_listing(repo_id, self.revision)
        try:
            return _in_repository(reference, None, listing)[0]
        except (InputError, NotFoundError) as error:
            if sae_folders(listing.files):
                raise
            print(f"note: left out: {error}", file=sys.stderr)
            return None

    def _each(self, items: Iterable[Item], meaning: Callable[[Item], SAEFiles | None]) -> list[SAEFiles]:
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


def _in_repository(ref: Reference, pattern: str | None, listing: Listing) -> list[SAEFiles]:
    saes = sae_folders(listing.files)
    if pattern is None:
        folders = [_choose(ref, saes, listing.files)]
    else:
        folders = [f for f in saes if f == pattern or fnmatchcase(f, pattern)]
        if not folders:
            where = f"is in a folder that matches '{one_line(pattern, 60)}'"
            raise NotFoundError(f"none of the {len(saes)} SAEs in {ref.repo_id} {where}")
    repo = ref.repo_id.partition("/")[2]
    found = []
    for folder in _of_residual_streams(repo, folders, saes):
        ours = known_files(folder)
        alone = list(saes) == [folder] and _HOOK_FOLDER.fullmatch(folder)
        if alone and listing.files.keys() >= set(ours[:NEEDED]):
            found.append(_sae_files(repo, listing, ours))  # laid out as ours are
        else:
            found.append(_sae_files(f"{repo}/{folder}".rstrip("/"), listing, saes[folder], folder))
    return found


def _of_residual_streams(repo: str, folders: list[str], saes: Mapping[str, list[str]]) -> list[str]:
    """Those of the SAE ``folders`` whose names say no other place. Raises InputError: all of them do."""
    kept: list[str] = []
    refusals: list[InputError] = []
    for folder in folders:
        try:
            for path in saes[folder]:
                layer_named(f"{repo}/{path}")
            kept.append(folder)
        except InputError as error:
            refusals.append(error)
    if not kept:
        raise refusals[0]
    for refusal in refusals:
        print(f"note: left out: {refusal}", file=sys.stderr)
    return kept


def from_registry(published: Published) -> SAEFiles:
    """The files of a published SAE."""
    return _sae_files(str(published.name), published, known_files(published.name))


def _sae_files(name: str, listing: Listing | Published, known: Sequence[str], folder: str = "") -> SAEFiles:
    """Of the files that an SAE in ``folder`` can have, those it has."""
    files = tuple(listing.files[path] for path in known if path in listing.files)
    gone = tuple(path for path in known if path not in listing.files)
    return SAEFiles(name, listing.repo_id, listing.sha, folder, files, gone)


def _collection_items(slug: str) -> list[tuple[str, str]]:
    """Kind and id of each item."""
    from huggingface_hub import HfApi

    with hub_errors("collection", slug):
        held = with_retries(lambda: HfApi().get_collection(slug), f"collection {slug}", TRIES_OF_DOWNLOADS)
    return [(str(item.item_type), str(item.item_id)) for item in held.items]


def _choose(ref: Reference, saes: Mapping[str, list[str]], paths: Iterable[str]) -> str:
    """The SAE folder that ``ref`` names, else the only one. Raises InputError, NotFoundError."""
    folder = ref.folder or ""
    if folder in saes:
        return folder
    inside, place = f"{folder}/".lstrip("/"), f"{ref.repo_id}/{folder}".rstrip("/")
    within = [path for path in saes if path.startswith(inside)]
    if len(within) == 1:
        return within[0]
    if within:
        some = ", ".join(within[:5]) + (", …" if len(within) > 5 else "")
        example = one_line(Reference(ref.repo_id, within[0], ref.revision))
        raise InputError(f"{place} holds {len(within)} SAEs ({some}): name one, as in {example}")
    if pickles := sorted(path for path in paths if path.startswith(inside) and path.endswith(PICKLES)):
        raise InputError(
            f"{place} has its weights only as {one_line(pickles[0], 80)}, a pickle, which can run code "
            "when loaded and is never read; safetensors and params.npz can be read"
        )
    if folder and saes:
        hint = did_you_mean(folder, saes) or f" There is {next(iter(saes))}."
        raise NotFoundError(f"no SAE in {place}.{hint}")
    known = " or ".join(f"{' and '.join((*x.config, x.weights))} ({x.library})" for x in LAYOUTS)
    raise NotFoundError(f"no SAE in {place}: there is no folder with {known}")
