"""The collection of a namespace's SAEs: found or made, and brought in order with few requests.

What it should hold is compared with what it holds, so that a run that was interrupted, or an SAE
that joins later, changes only what differs. Items that people added by hand stay.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fastzoo.core.errors import HubError, NotFoundError
from fastzoo.core.progress import Progress
from fastzoo.hub.client import hub_errors
from fastzoo.hub.retries import TRIES, TRIES_OF_LISTS, is_transient, wait, with_retries

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TITLE = "fastzoo: SAEs of instruct models"

DESCRIPTION = (
    "Sparse autoencoders trained on whole dialogues by FAST (arXiv 2506.07691), and its baselines, "
    "with what they measure."
)
"""At most 150 characters."""

LONGEST_TITLE = 60
"""Characters."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Item:
    """An item that a collection should have."""

    kind: str
    """model, dataset, space, paper or collection."""
    id: str
    note: str | None = None
    group: str | None = None
    """The base model of an SAE: its child collection, where one collection is too small for all."""

    @property
    def key(self) -> tuple[str, str]:
        """What the Hub finds it by. A collection's slug changes with its title, but not the end of
        it; names of repositories are found in upper or lower case."""
        return self.kind, self.id[-24:] if self.kind == "collection" else self.id.lower()


class Full(Exception):
    """A collection takes no more items."""


def find_or_create(namespace: str, title: str, stored: Sequence[str], *, private: bool) -> str:
    """The slug of a collection: the first of ``stored`` that exists, else one of this title, else
    a new one.

    Raises:
        AccessError, HubError.
    """
    from huggingface_hub import HfApi

    for slug in stored:
        if _is_of(slug, namespace):
            with suppress(NotFoundError):
                return str(_get(slug).slug)
    failed = 0
    with hub_errors("collection", title):
        while True:
            # Looked for before each try: a request whose answer was lost may have made it.
            if (found := _owned(namespace).get(title)) is not None:
                return found
            try:
                made = HfApi().create_collection(
                    title, namespace=namespace, description=DESCRIPTION, private=private, exists_ok=True
                )
                return _first_made(str(made.slug), namespace, title)
            except Exception as error:
                failed += 1
                if failed == TRIES or not is_transient(error):
                    raise
                wait(error, f"collection {title}", failed)


def _first_made(slug: str, namespace: str, title: str) -> str:
    """The collection just made, or another machine's if that made one in the same moment."""
    first = _owned(namespace).get(title, slug)
    if first[-24:] < slug[-24:]:
        _ask(slug, lambda api: api.delete_collection(slug, missing_ok=True))
        return first
    return slug


def arrange(slug: str, wanted: Sequence[Item], title: str, *, private: bool, bar: Progress) -> list[str]:
    """Give a collection these items in this order, and their notes.

    Where the Hub takes no more of them, the SAEs of each model go into a child collection, and the
    children into the collection itself.

    Args:
        bar: counts the items that are there.

    Returns:
        The slugs of the child collections, if there are any.

    Raises:
        NotFoundError, AccessError, HubError.
    """
    namespace = slug.partition("/")[0]
    held = _get(slug)
    groups = dict.fromkeys(item.group for item in wanted if item.group)
    titles = {group: f"{title}: {group}"[:LONGEST_TITLE] for group in groups}
    children: dict[str, str] = {}
    if any(item.item_type == "collection" for item in held.items):
        inside, owned = {_key(item) for item in held.items}, _owned(namespace)
        children = {
            group: child
            for group, name in titles.items()
            if (child := owned.get(name)) and Item("collection", child).key in inside
        }
    if not children:
        with suppress(Full):
            _fill(slug, wanted, held, bar)
            return []
    bar.begin_at(0)
    for group, name in titles.items():
        members = [item for item in wanted if item.group == group]
        stored = [children[group]] if group in children else []
        children[group] = child = find_or_create(namespace, name, stored, private=private)
        _fill_all(child, members, bar)
        # An SAE leaves the parent only once it is in the child.
        keys = {item.key for item in members}
        for item in _get(slug).items:
            if _key(item) in keys:
                _delete(slug, item)
    own = [item for item in wanted if item.group is None]
    _fill_all(slug, [*own, *(Item("collection", children[group]) for group in titles)], bar)
    return [children[group] for group in titles]


def make_public(slug: str) -> None:
    """Let everybody see a collection."""
    _ask(slug, lambda api: api.update_collection_metadata(slug, private=False))


def _fill_all(slug: str, wanted: Sequence[Item], bar: Progress) -> None:
    try:
        _fill(slug, wanted, _get(slug), bar)
    except Full:
        raise HubError(f"collection {slug} takes only a part of its items") from None


def _fill(slug: str, wanted: Sequence[Item], held: Any, bar: Progress) -> None:
    """Add what is missing, then change notes and places that differ. Raises Full."""
    there = {_key(item): item for item in held.items}
    order = [_key(item) for item in held.items]
    # An item can stand twice if it was added by hand.
    for item in held.items:
        if there[_key(item)] is not item:
            _delete(slug, item)
            order.remove(_key(item))
    found = []
    for item in wanted:
        if item.key not in there:
            with suppress(NotFoundError):
                held = _add(slug, item, len(order))
            there = {_key(other): other for other in held.items}
            if item.key not in there:
                print(
                    f"{item.kind} {item.id} is not on the Hub under this name; left out of the collection",
                    file=sys.stderr,
                )
                continue
            order.append(item.key)
        found.append(item)
        bar.advance(note="items of the collection")
    for item in found:
        if item.note not in (None, there[item.key].note):
            _update(slug, there[item.key], note=item.note)
    for key, place in moves(order, [item.key for item in found]):
        _update(slug, there[key], position=place)


def moves(order: Sequence[Any], wanted: Sequence[Any]) -> list[tuple[Any, int]]:
    """The fewest moves (which, to what place) that bring ``wanted`` into its order.

    Others keep their order among themselves. Each place is counted after the moves before it, without
    the one that moves.
    """
    order = list(order)
    rank = {key: i for i, key in enumerate(wanted)}
    ranks = [rank[key] for key in order if key in rank]
    # The longest run of those that are in the right order already stays.
    runs: list[list[int]] = [[]]
    for value in ranks:
        before = [run for run in runs if not run or run[-1] < value]
        longest: list[int] = max(before, key=len)
        runs.append([*longest, value])
    longest = max(runs, key=len)
    staying = set(longest)
    found = []
    for i, key in enumerate(wanted):
        if i in staying:
            continue
        order.remove(key)
        place = order.index(wanted[i - 1]) + 1 if i else _first(order, rank)
        order.insert(place, key)
        found.append((key, place))
    return found


def _first(order: Sequence[Any], rank: dict[Any, int]) -> int:
    """The place of the first that is wanted."""
    return next((i for i, key in enumerate(order) if key in rank), len(order))


def _add(slug: str, item: Item, held: int) -> Any:
    """Add one item; the collection with it. Raises Full."""
    from huggingface_hub.errors import HfHubHTTPError

    def add(api: HfApi) -> Any:
        kind: Any = item.kind
        try:
            return api.add_collection_item(slug, item.id, kind, note=item.note, exists_ok=True)
        except HfHubHTTPError as error:
            # The Hub does not document with which status, and at how many items, it refuses.
            if held and error.response.status_code in (400, 403, 413, 422):
                raise Full from error
            raise

    return _ask(slug, add)


def _update(slug: str, item: Any, **changes: Any) -> None:
    _ask(slug, lambda api: api.update_collection_item(slug, item.item_object_id, **changes))


def _delete(slug: str, item: Any) -> None:
    _ask(slug, lambda api: api.delete_collection_item(slug, item.item_object_id, missing_ok=True))


def _get(slug: str) -> Any:
    return _ask(slug, lambda api: api.get_collection(slug))


def _ask(slug: str, request: Callable[[HfApi], Result]) -> Result:
    """Make a request about a collection, again after failures that pass by themselves."""
    from huggingface_hub import HfApi

    with hub_errors("collection", slug):
        return with_retries(lambda: request(HfApi()), f"collection {slug}")


def _owned(namespace: str) -> dict[str, str]:
    """Title to slug of a namespace's collections; of equal titles the first that was made."""
    from huggingface_hub import HfApi

    with hub_errors("collection", namespace):
        listed = with_retries(
            lambda: list(HfApi().list_collections(owner=namespace)), f"collections of {namespace}", TRIES_OF_LISTS
        )
    # The ids begin with the time.
    own = sorted((x for x in listed if _is_of(x.slug, namespace)), key=lambda x: x.slug[-24:])
    return {found.title: str(found.slug) for found in reversed(own)}


def _is_of(slug: str, namespace: str) -> bool:
    return slug.partition("/")[0].lower() == namespace.lower()


def _key(item: Any) -> tuple[str, str]:
    return Item(item.item_type, item.item_id).key
