"""Endpoints of the loopback Hub: collections."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from hub_server.core import LoopbackHub, route
from hub_server.messages import Refusal, Request, Response, as_json, error

MOST_TITLE, MOST_DESCRIPTION, MOST_NOTE = 60, 150, 500  # characters
LISTED_ITEMS = 4
"""Of each collection in a listing, as on the real Hub."""
DATE = "2025-01-01T00:00:00.000Z"
ONE = r"/api/collections/(?P<owner>[^/]+)/(?P<slug>[^/]+-)?(?P<id>[0-9a-f]{24})"


@dataclass
class Item:
    object_id: str
    type: str
    id: str
    note: str | None = None


@dataclass
class Collection:
    id: str
    owner: str
    title: str
    description: str | None = None
    private: bool = False
    theme: str = "orange"
    items: list[Item] = field(default_factory=list)

    @property
    def slug(self) -> str:
        words = re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")
        return f"{self.owner}/{words}-{self.id}".replace("/-", "/")


def new_id(hub: LoopbackHub) -> str:
    """24 hex digits that no other collection or item of ``hub`` has."""
    hub.collections_made += 1
    return hashlib.sha256(b"collection %d" % hub.collections_made).hexdigest()[:24]


def _shown(hub: LoopbackHub, collection: Collection, most: int | None = None) -> dict[str, Any]:
    items: list[dict[str, Any]] = []
    for position, item in enumerate(collection.items[:most]):
        items.append({"_id": item.object_id, "id": item.id, "type": item.type})
        items[-1]["position"] = position
        if item.note is not None:
            items[-1]["note"] = {"html": item.note, "text": item.note}
        if item.type == "collection" and item.id in hub.collections:
            items[-1]["slug"] = hub.collections[item.id].slug
    kind = "user" if collection.owner == hub.namespaces[0] else "org"
    return {
        "slug": collection.slug,
        "title": collection.title,
        "description": collection.description,
        "owner": {"name": collection.owner, "fullname": collection.owner, "type": kind},
        "items": items,
        "lastUpdated": DATE,
        "private": collection.private,
        "theme": collection.theme,
        "upvotes": 0,
    }


def _whole(hub: LoopbackHub, collection: Collection) -> dict[str, Any]:
    """A collection outside of a listing, where it has a position."""
    return {**_shown(hub, collection), "position": list(hub.collections).index(collection.id)}


def _visible(hub: LoopbackHub, request: Request, collection: Collection) -> bool:
    return not collection.private or hub.role(request) is not None


def _one(hub: LoopbackHub, request: Request, groups: dict[str, str], write: bool = False) -> Collection:
    """The collection of a request; its trailing id alone decides, as a title may change."""
    found = hub.collections.get(groups["id"])
    if found is None or found.owner != groups["owner"] or not _visible(hub, request, found):
        raise Refusal(error(404, "CollectionNotFound", "Collection not found"))
    if write:
        hub.writer(request, found.owner)
    return found


def _text(asked: dict[str, Any], name: str, most: int, least: int = 0) -> str | None:
    value = asked.get(name)
    if value is not None and not (isinstance(value, str) and least <= len(value) <= most):
        message = f'"{name}" must be a text of at most {most} characters'
        raise Refusal(error(400, "BadRequest", message))
    return value


# --- collections -------------------------------------------------------------------------------


@route("GET", r"/api/collections")
def listing(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    owners, wanted = request.query.get("owner", []), request.query.get("item", [])
    found = []
    for collection in hub.collections.values():
        names = {f"{item.type}s/{item.id}" for item in collection.items}
        asked = not owners or collection.owner in owners
        if asked and (not wanted or names & set(wanted)) and _visible(hub, request, collection):
            found.append(_shown(hub, collection, LISTED_ITEMS))
    return hub.page(request, found)


@route("POST", r"/api/collections")
def create(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    asked = request.json()
    owner = str(asked.get("namespace"))
    hub.writer(request, owner)
    title = _text(asked, "title", MOST_TITLE, least=1)
    description = _text(asked, "description", MOST_DESCRIPTION)
    if title is None:
        return error(400, "BadRequest", '"title" is required')
    for known in hub.collections.values():
        if hub.unique_titles and (known.owner, known.title) == (owner, title):
            return error(409, "Conflict", "Collection already exists", slug=known.slug)
    made = Collection(new_id(hub), owner, title, description, bool(asked.get("private")))
    hub.collections[made.id] = made
    return as_json(_whole(hub, made))


@route("GET", ONE)
def get(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    return as_json(_whole(hub, _one(hub, request, groups)))


@route("PATCH", ONE)
def update(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    collection, asked = _one(hub, request, groups, write=True), request.json()
    title = _text(asked, "title", MOST_TITLE, least=1)
    description = _text(asked, "description", MOST_DESCRIPTION)
    collection.title = title or collection.title
    collection.description = collection.description if description is None else description
    collection.private = bool(asked.get("private", collection.private))
    collection.theme = asked.get("theme", collection.theme)
    if "position" in asked:
        others = [c for c in hub.collections.values() if c is not collection]
        others.insert(int(asked["position"]), collection)
        hub.collections = {c.id: c for c in others}
    return as_json({"success": True, "data": _whole(hub, collection)})


@route("DELETE", ONE)
def delete(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    del hub.collections[_one(hub, request, groups, write=True).id]
    return as_json({"success": True})


# --- items -------------------------------------------------------------------------------------


@route("POST", rf"{ONE}/items?")
def add_item(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    collection, asked = _one(hub, request, groups, write=True), request.json()
    item, note = asked.get("item", {}), _text(asked, "note", MOST_NOTE)
    kind, name = str(item.get("type")), _item_id(hub, request, item)
    if any((known.type, known.id) == (kind, name) for known in collection.items):
        return error(409, "Conflict", f"{kind} {name} is already in the collection")
    if hub.most_items is not None and len(collection.items) >= hub.most_items:
        message = f"A collection cannot have more than {hub.most_items} items"
        return error(400, "BadRequest", message)
    collection.items.append(Item(new_id(hub), kind, name, note))
    return as_json(_whole(hub, collection))


def _item_id(hub: LoopbackHub, request: Request, item: dict[str, Any]) -> str:
    """Id of a thing that may be put into a collection; raises Refusal (404) if there is none."""
    kind, name = item.get("type"), str(item.get("id"))
    if kind == "paper":
        there = re.fullmatch(r"\d{4}\.\d{4,5}", name) is not None
    elif kind == "collection":
        owner, _, slug = name.partition("/")
        name = slug[-24:]
        there = name in hub.collections and hub.collections[name].owner == owner
        there = there and _visible(hub, request, hub.collections[name])
    elif kind in ("model", "dataset", "space"):
        there = (kind, name) in hub.repos
    else:
        raise Refusal(error(400, "BadRequest", f"no {kind} can be in a collection"))
    if not there:
        raise Refusal(error(404, "ItemNotFound", f"there is no {kind} {item.get('id')}"))
    return name


@route("PATCH", rf"{ONE}/items/(?P<item>[0-9a-f]{{24}})")
def update_item(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    collection, asked = _one(hub, request, groups, write=True), request.json()
    item, note = _item(collection, groups["item"]), _text(asked, "note", MOST_NOTE)
    item.note = item.note if note is None else note
    if "position" in asked:
        collection.items.remove(item)
        collection.items.insert(int(asked["position"]), item)
    return as_json({"success": True})


@route("DELETE", rf"{ONE}/items/(?P<item>[0-9a-f]{{24}})")
def delete_item(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    collection = _one(hub, request, groups, write=True)
    collection.items.remove(_item(collection, groups["item"]))
    return as_json({"success": True})


def _item(collection: Collection, object_id: str) -> Item:
    for item in collection.items:
        if item.object_id == object_id:
            return item
    raise Refusal(error(404, "ItemNotFound", "this collection has no such item"))
