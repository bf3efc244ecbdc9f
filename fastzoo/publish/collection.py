"""The collection of a namespace's SAEs: found or made, and brought in order with few requests.

What it should hold is compared with what it holds, so that a run that was interrupted, or an SAE
that joins later, changes only what differs. Items that people added by hand stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastzoo.core.errors import HubError, NotFoundError
from fastzoo.core.progress import Progress
from fastzoo.hub.client import hub_errors, status_of
from fastzoo.hub.retries import TRIES_OF_LISTS, with_retries
from fastzoo.publish.report import say

TITLE = "fastzoo: SAEs of instruct models"

DESCRIPTION = (
    "Sparse autoencoders trained on whole dialogues by FAST (arXiv 2506.07691), and its baselines, "
    "with what they measure."
)  # at most 150 characters

LONGEST_TITLE = 60  # characters


@dataclass(frozen=True)
class Item:
    """An item that a collection should have."""

    kind: str  # model, dataset, space, paper or collection
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
    """The slug of a collection: the first of ``stored`` that exists, else one of this title, else a new one.

    Raises AccessError, HubError.
    """
    from huggingface_hub import HfApi

    def find_or_make() -> str:
        # Looked for before each try: a request whose answer was lost may have made it.
        if (found := _owned(namespace).get(title)) is not None:
            return found
        made = HfApi().create_collection(
            title, namespace=namespace, description=DESCRIPTION, private=private, exists_ok=True
        )
        # Another machine may have made one in the same moment: the first counts.
        first = _owned(namespace).get(title, made.slug)
        if first[-24:] < made.slug[-24:]:
            ask("delete_collection", made.slug, missing_ok=True)
            return first
        return made.slug

    for slug in stored:
        if _is_of(slug, namespace):
            with suppress(NotFoundError):
                return str(ask("get_collection", slug).slug)
    with hub_errors("collection", title):
        return with_retries(find_or_make, f"collection {title}")


def arrange(slug: str, wanted: Sequence[Item], title: str, *, private: bool, bar: Progress) -> list[str]:
    """Give a collection these items in this order, and their notes.

    Where the Hub takes no more of them, the SAEs of each model go into a child collection, and the
    children into the collection itself; their slugs are returned. ``bar`` counts the items that are there.

    Raises NotFoundError, AccessError, HubError.
    """
    namespace = slug.partition("/")[0]
    groups = dict.fromkeys(item.group for item in wanted if item.group)
    titles = {group: f"{title}: {group}"[:LONGEST_TITLE] for group in groups}
    held = ask("get_collection", slug)
    inside = {_key(item) for item in held.items}
    divided = False
    if any(kind == "collection" for kind, _ in inside):
        with hub_errors("collection", namespace):
            owned = with_retries(lambda: _owned(namespace), f"collections of {namespace}", TRIES_OF_LISTS)
        divided = any(
            Item("collection", owned[name]).key in inside for name in titles.values() if name in owned
        )
    if not divided:
        with suppress(Full):
            _fill(slug, wanted, held, bar)
            return []
    bar.begin_at(0)
    children = []
    try:
        for group, name in titles.items():
            members = [item for item in wanted if item.group == group]
            child = find_or_create(namespace, name, (), private=private)
            _fill(child, members, ask("get_collection", child), bar)
            children.append(child)
            # An SAE leaves the parent only once it is in the child.
            keys = {item.key for item in members}
            for item in ask("get_collection", slug).items:
                if _key(item) in keys:
                    _delete(slug, item)
        own = [item for item in wanted if item.group is None]
        own += [Item("collection", child) for child in children]
        _fill(slug, own, ask("get_collection", slug), bar)
    except Full:
        raise HubError(f"collection {slug} takes only a part of its items") from None
    return children


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
                say(f"{item.kind} {item.id} is not on the Hub under this name; left out of the collection")
                continue
            order.append(item.key)
        found.append(item)
        bar.advance(note="items of the collection")
    for item in found:
        if item.note not in (None, there[item.key].note):
            ask("update_collection_item", slug, there[item.key].item_object_id, note=item.note)
    for key, place in moves(order, [item.key for item in found]):
        ask("update_collection_item", slug, there[key].item_object_id, position=place)


def moves(order: Sequence[Any], wanted: Sequence[Any]) -> list[tuple[Any, int]]:
    """The fewest moves (which, to what place) that bring ``wanted`` into its order.

    Others keep their order among themselves. Each place is counted after the moves before it, without
    the one that moves.
    """
    order = list(order)
    rank = {key: i for i, key in enumerate(wanted)}
    # The longest run of those that are in the right order already stays.
    runs: list[list[int]] = [[]]
    for value in (rank[key] for key in order if key in rank):
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
        # The first goes before all others that are wanted.
        first = next((j for j, other in enumerate(order) if other in rank), len(order))
        place = order.index(wanted[i - 1]) + 1 if i else first
        order.insert(place, key)
        found.append((key, place))
    return found


def _add(slug: str, item: Item, held: int) -> Any:
    """Add one item; the collection with it. Raises Full."""
    try:
        return ask("add_collection_item", slug, item.id, item.kind, note=item.note, exists_ok=True)
    except HubError as error:
        # The Hub does not document with which status, and at how many items, it refuses.
        if held and status_of(error.__context__) in (400, 403, 413, 422):
            raise Full from error
        raise


def _delete(slug: str, item: Any) -> None:
    ask("delete_collection_item", slug, item.item_object_id, missing_ok=True)


def ask(method: str, slug: str, *values: Any, **options: Any) -> Any:
    """Call a method of HfApi on a collection, again after failures that pass by themselves."""
    from huggingface_hub import HfApi

    with hub_errors("collection", slug):
        return with_retries(lambda: getattr(HfApi(), method)(slug, *values, **options), f"collection {slug}")


def _owned(namespace: str) -> dict[str, str]:
    """Title to slug of a namespace's collections; of equal titles the first that was made."""
    from huggingface_hub import HfApi

    listed = (x for x in HfApi().list_collections(owner=namespace) if _is_of(x.slug, namespace))
    # The ids begin with the time.
    return {x.title: str(x.slug) for x in sorted(listed, key=lambda x: x.slug[-24:], reverse=True)}


def _is_of(slug: str, namespace: str) -> bool:
    return slug.partition("/")[0].lower() == namespace.lower()


def _key(item: Any) -> tuple[str, str]:
    return Item(item.item_type, item.item_id).key
