"""Generated sections of a card, marked so that they can be renewed and what people wrote stays.

A section of the body stands between two comments, the first of which carries a hash of the text
between them:

    <!-- fastzoo:figures 3fa2b1c49d -->
    ...
    <!-- /fastzoo:figures -->

A section whose text still has its hash was edited by nobody and may be replaced. The comment
``fastzoo:card`` at the end names the sections and holds the hashes of the metadata, so that what was
removed by hand is not added again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

PLAIN = "plain"
"""The one section of a card that could not be rendered from its template."""

LISTS = ("tags", "datasets")
"""Metadata whose entries have hashes of their own: people add to them."""

NOTE = (
    "fastzoo renews the text between two of its comments, and the metadata, where nobody edited them; "
    "what people wrote stays."
)

# The Hub's idea of a header, and blanks after its first line, which the Hub would not take.
_HEADER = re.compile(r"(\s*---[ \t]*\n)([\s\S]*?)(\n---[ \t]*(?:\n|$))")

_SECTION = re.compile(r" {0,3}<!-- fastzoo:([a-z-]+)(?: ([0-9a-f]{10}))? -->[ \t]*\n")

_END_MARK = re.compile(
    r" {0,3}<!-- fastzoo:card[ \t]*\n((?:(?![^\n]*(?:<!--|-->))[^\n]*\n)*) {0,3}-->[ \t]*(?:\n|$)"
)

_NAME = re.compile("[a-z-]+")

_ENTRY = re.compile("([A-Za-z_-]+)=((?:[0-9a-f]{10}(?:,[0-9a-f]{10})*)?)")

_LONGEST_HEADER = 1 << 18  # characters; PyYAML is slow

_LINES = re.compile(r"[^\n]*\n|[^\n]+")

_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")


@dataclass
class Known:
    """What was generated at one time or another: names of sections, hashes of metadata by key."""

    sections: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    """Lines that someone wrote into the comment."""

    def __str__(self) -> str:
        keys = " ".join(f"{key}={hashes}" for key, hashes in self.metadata.items())
        lines = [NOTE, f"sections: {' '.join(self.sections)}", f"metadata: {keys}", *self.others]
        return "<!-- fastzoo:card\n" + "".join(f"{line}\n" for line in lines) + "-->\n"


@dataclass
class Piece:
    """A part of a body: text as it stands, and what it is."""

    text: str
    section: str | None = None
    edited: bool = False
    end: bool = False
    """Whether it is the comment at the end."""


def mark_card(metadata: Mapping[str, Any], body: str) -> str:
    """A generated card: header, and body with its sections' comments completed by hashes.

    ``body`` holds the comments without hashes.
    """
    pieces = _split(body)
    known = Known([p.section for p in pieces if p.section])
    known.metadata = {key: _hashes(key, value) for key, value in metadata.items()}
    text = "".join(_marked(p.text) if p.section else p.text for p in pieces)
    return f"---\n{_dump(metadata)}---\n\n{text.rstrip()}\n\n{known}"


def merge_cards(existing: str, generated: str) -> str:
    """``existing`` with whatever nobody edited in it replaced by what ``generated`` has.

    - Sections and metadata that were edited, added or removed by hand stay as they are; so does all
      text outside of the sections, where it stands. Entries that people added to the tags and data
      sets are kept beside those generated.
    - A card of which nothing was generated keeps its body, and gets the metadata it lacks.

    Merging the same again changes nothing. Line ends become those of ``existing``'s first line.
    """
    line_end = "\r\n" if re.match(r"[^\n]*\r\n", existing) else "\n"
    old, new = _lines(existing), _lines(generated)
    header, metadata, body = _read_header(old)
    _, values, new_body = _read_header(new)
    theirs, ours = _split(body), _split(new_body)
    before = _known(theirs)
    generated_now = [p.section for p in ours if p.section]
    marked = any(p.section or p.end for p in theirs)
    if generated_now == [PLAIN] and body.strip():
        return existing  # the template failed this time; what is there says more
    header = _merge_metadata(header, metadata, values, before)
    if not body.strip():
        body = new_body
    elif marked:
        body = _merge_body(theirs, ours, before)
    return f"---\n{header}---\n{body}".replace("\n", line_end)


# --- body --------------------------------------------------------------------------------------


def _split(body: str) -> list[Piece]:
    """A body as sections and what stands between them; the texts together are the body."""
    lines = _LINES.findall(body)
    pieces: list[Piece] = []
    i = offset = 0

    def find(close: str, otherwise: int) -> int:
        pattern = re.compile(rf" {{0,3}}{close}[ \t]*\n?")
        return next((j for j in range(i + 1, len(lines)) if pattern.fullmatch(lines[j])), otherwise)

    while i < len(lines):
        piece, stop = Piece(""), i
        if end := _END_MARK.match(body, offset):
            piece.end = True
            stop = i + len(_LINES.findall(end[0])) - 1
        elif found := _SECTION.fullmatch(lines[i]):
            stop = find(f"<!-- /fastzoo:{found[1]} -->", i)
            if stop > i:
                piece.section = found[1]
                piece.edited = found[2] != _hash("".join(lines[i + 1 : stop]))
        elif fence := _FENCE.match(lines[i].rstrip("\n")):
            # What stands in a block of code is shown, and no comment of ours.
            stop = find(f"{fence[1][0]}{{{len(fence[1])},}}", i)
        piece.text = "".join(lines[i : stop + 1])
        i, offset = stop + 1, offset + len(piece.text)
        if pieces and _is_text(pieces[-1]) and _is_text(piece):
            pieces[-1].text += piece.text
        else:
            pieces.append(piece)
    for piece in [p for p in pieces if p.end][:-1]:
        piece.end = False
    return pieces


def _is_text(piece: Piece) -> bool:
    return piece.section is None and not piece.end


def _known(pieces: Iterable[Piece]) -> Known:
    """What the comment at the end says."""
    for piece in pieces:
        if not piece.end:
            continue
        known = Known()
        for line in piece.text.split("\n")[1:]:
            word, _, rest = line.strip().partition(":")
            other: list[str] = []
            if word == "sections":
                for name in rest.split():
                    (known.sections if _NAME.fullmatch(name) else other).append(name)
            elif word == "metadata":
                for entry in rest.split():
                    if found := _ENTRY.fullmatch(entry):
                        known.metadata[found[1]] = found[2]
                    else:
                        other.append(entry)
            elif line.strip() and line.strip() not in ("-->", NOTE):
                known.others.append(line.rstrip())
            if other:
                known.others.append(f"also: {' '.join(other)}")
        return known
    return Known()


def _merge_body(theirs: list[Piece], ours: Sequence[Piece], before: Known) -> str:
    new = {p.section: p for p in ours if p.section}
    order = list(new)
    there = {p.section for p in theirs if p.section}
    has_end = any(p.end for p in theirs)
    merged: list[Piece] = []
    for piece in theirs:
        if piece.text and not piece.text.endswith("\n"):
            piece.text += "\n"
        if piece.section is None or piece.edited:
            merged.append(piece)
        elif piece.section in new:
            merged.append(new[piece.section])
        elif merged and not merged[-1].section and not merged[-1].text.strip():
            merged.pop()  # the blank line before it
    # Without the comment at the end nobody knows what was removed by hand.
    for name in (n for n in order if has_end and n not in there and n not in before.sections):
        place = _place(name, order, merged)
        blank = Piece("\n")
        after = place > 0 and merged[place - 1].section is not None
        merged[place:place] = [blank, new[name]] if after else [new[name], blank]
    kept = {p.section for p in merged if p.section}
    dropped = there - kept
    sections = [*order, *(n for n in before.sections if n not in order and n not in dropped)]
    known = Known(list(dict.fromkeys(sections)), before.metadata, before.others)
    for piece in merged:
        if piece.end:
            piece.text = str(known)
    if not has_end:
        merged.append(Piece(f"\n{known}"))
    return "".join(p.text for p in merged)


def _place(name: str, order: Sequence[str], pieces: Sequence[Piece]) -> int:
    """Where among ``pieces`` a section belongs: before the next one that is there, else after the
    nearest one before it, else before the comment at the end."""
    at = {p.section: i for i, p in reversed(list(enumerate(pieces))) if p.section}
    number = order.index(name)
    for later in order[number + 1 :]:
        if later in at:
            return at[later]
    for earlier in reversed(order[:number]):
        if earlier in at:
            return at[earlier] + 1
    return next(i for i, p in enumerate(pieces) if p.end)


def _marked(section: str) -> str:
    """A section with its hash in the comment before it."""
    first, *text, last = _LINES.findall(section)
    return "".join([first.replace(" -->", f" {_hash(''.join(text))} -->"), *text, last])


def _hash(text: str) -> str:
    """Ten hex digits; blanks at the ends of lines and of the text make no difference."""
    plain = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()[:10]


def _lines(text: str) -> str:
    """``text`` without byte order mark and with plain line ends."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


# --- metadata ----------------------------------------------------------------------------------


def _read_header(text: str) -> tuple[str | None, dict[str, Any], str]:
    """A card's header, its values, and the body. A header that cannot be read belongs to the body."""
    found = _HEADER.match(text)
    if found is None or len(found[2]) > _LONGEST_HEADER:
        return None, {}, text
    header = f"{found[2]}\n"
    try:
        # Of a few aliases a text of any size could be made.
        events = yaml.parse(header, yaml.SafeLoader)
        plain = not any(isinstance(event, yaml.AliasEvent) for event in events)
        values = yaml.safe_load(header) if plain else None
        # Not so if there are keys that stand twice, or are no words.
        if values and [key.value for key in _keys(header)] == list(values):
            _value_hash(values)
            return header, values, text[found.end() :]
    except Exception:  # noqa: S110  PyYAML raises many kinds; any of them says the same
        pass
    return None, {}, text


def _keys(header: str) -> list[Any]:
    """The nodes of the keys of a header that is a mapping."""
    node = yaml.compose(header, yaml.SafeLoader)
    return [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []


def _merge_metadata(
    header: str | None, theirs: dict[str, Any], ours: dict[str, Any], before: Known
) -> str:
    """The header of a merged card; what is known of its keys is brought up to date in ``before``."""
    if header is None:
        before.metadata = {key: _hashes(key, value) for key, value in ours.items()}
        return _dump(ours)
    merged, known = dict(theirs), dict(before.metadata)
    for key in dict.fromkeys([*ours, *before.metadata]):
        old = before.metadata.get(key)
        if key in LISTS and key in theirs and (key in ours or old is not None):
            entries = _merge_entries(theirs[key], ours.get(key, []), (old or "").split(","))
            if entries is not None:
                merged[key], known[key] = entries
                if not merged[key] and key not in ours:
                    del merged[key], known[key]
                continue
        there = key in theirs
        same = there and key in ours and _hashes(key, theirs[key]) == _hashes(key, ours[key])
        untouched = there and old == _hashes(key, theirs[key])
        if key in ours and (same or untouched or (not there and old is None)):
            merged[key], known[key] = ours[key], _hashes(key, ours[key])
        elif untouched:
            del merged[key], known[key]
    first = {key: known.pop(key) for key in ours if key in known}
    before.metadata = first | known
    return _rewritten(header, theirs, merged)


def _merge_entries(
    theirs: Any, ours: list[Any], before: Sequence[str]
) -> tuple[list[Any], str] | None:
    """A list with people's entries and ours, and the hashes of ours; None for what is no list."""
    if isinstance(theirs, str):
        theirs = [theirs]
    if not isinstance(theirs, list):
        return None
    there, new = {_value_hash(x): x for x in theirs}, {_value_hash(x): x for x in ours}
    removed = [h for h in before if h and h not in there]
    own = [x for h, x in new.items() if h not in removed]
    people = [x for h, x in there.items() if h not in before and h not in new]
    if [*own, *people] and set(there) == {*map(_value_hash, own), *map(_value_hash, people)}:
        own, people = list(there.values()), []  # nothing changes, not even the order
    return [*own, *people], ",".join([*new, *(h for h in removed if h not in new)])


def _hashes(key: str, value: Any) -> str:
    """What stands for a key's value in the comment: one hash, of a list one for each entry."""
    if key in LISTS and isinstance(value, list):
        return ",".join(map(_value_hash, value))
    return _value_hash(value)


def _value_hash(value: Any) -> str:
    return _hash(json.dumps(_plain(value), ensure_ascii=True))


def _plain(value: Any) -> Any:
    """A value so that it does not matter how YAML was written: order of keys, 3 or 3.0."""
    if isinstance(value, Mapping):
        return sorted(([_plain(k), _plain(v)] for k, v in value.items()), key=repr)
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return repr(int(value) if value == value // 1 and abs(value) < 1e15 else value)
    return repr(value)


def _dump(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def _rewritten(header: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    """``header`` with the values of ``after``; what did not change keeps its form and comments."""
    if not after:
        return header  # a card without any metadata is no better
    comments, keys = _comments(header), _keys(header)
    starts = [key.start_mark.index for key in keys]
    parts = [header[: starts[0]]]
    for key, start, end in zip(keys, starts, [*starts[1:], len(header)], strict=True):
        name = key.value
        if name in after and _value_hash(before[name]) == _value_hash(after[name]):
            parts.append(header[start:end])
            continue
        # What people noted beside the old value now stands above the new one.
        parts += [f"{text}\n" for at, text in comments if start <= at < end]
        if name in after:
            parts.append(_dump({name: after[name]}))
    added = {key: value for key, value in after.items() if key not in before}
    text = "".join(parts) + (_dump(added) if added else "")
    _, values, _ = _read_header(f"---\n{text}---\n")
    if _value_hash(values) == _value_hash(after):
        return text
    # Keys that do not each begin a line.
    return "".join(f"{text}\n" for _, text in comments) + _dump(after)


def _comments(header: str) -> list[tuple[int, str]]:
    """Place and text of each YAML comment."""
    scalars = [
        (token.start_mark.index, token.end_mark.index)
        for token in yaml.scan(header, yaml.SafeLoader)
        if isinstance(token, yaml.ScalarToken)
    ]
    return [
        (found.start(1), found[1].rstrip())
        for found in re.finditer(r"(?:^|(?<=[ \t]))(#[^\n]*)", header, re.MULTILINE)
        if not any(start <= found.start(1) < end for start, end in scalars)
    ]
