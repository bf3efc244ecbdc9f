"""Renewing a card while keeping what people wrote into it.

Everything generated in the body is one block between two comments; people write above or below it:

    <!-- fastzoo:card 3fa2b1c49d: ... -->
    ...
    <!-- /fastzoo:card library_name=a941a3b84c tags=a7069aeb23,7784b60c69 -->

The first comment holds a hash of the block's text, which shows whether someone edited the block. The
last holds a hash of every generated metadata entry, which shows what people added or removed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import yaml

CARD, FALLBACK = "card", "fallback"
"""Kinds of blocks: from the template, and for a card whose template could not be rendered."""

NOTE = "fastzoo renews this block, unless it was edited; write above or below it"

_BLOCK = re.compile(
    rf"^(?P<start><!-- fastzoo:(?P<kind>{CARD}|{FALLBACK}) (?P<hash>[0-9a-f]{{10}})\b[^\n]*-->[ \t]*\n)"
    r"(?P<text>.*?)^<!-- /fastzoo:(?P=kind)(?P<record>[^\n]*)-->[ \t]*(?:\n|\Z)",
    re.MULTILINE | re.DOTALL,
)

# What earlier versions wrote instead of one block: a pair of comments for each section, and a comment
# at the end that lists the sections and the hashes of the metadata.
_SECTION = re.compile(
    r"^<!-- fastzoo:([a-z-]+)(?: ([0-9a-f]{10}))? -->[ \t]*\n(.*?)^<!-- /fastzoo:\1 -->[ \t]*\n*",
    re.MULTILINE | re.DOTALL,
)
_SECTIONS_RECORD = re.compile(
    r"^<!-- fastzoo:card[ \t]*\nfastzoo renews [^\n]* stays\.[ \t]*\nsections: ([a-z -]+)\n"
    r"metadata: ((?:[\w-]+=[0-9a-f,]*[ \t]*)+)\n-->[ \t]*\n*",
    re.MULTILINE,
)

# The Hub's idea of a header, and blanks after its first line, which the Hub would not take.
_HEADER = re.compile(r"(\s*---[ \t]*\n)([\s\S]*?)(\n---[ \t]*(?:\n|$))")

_LONGEST_HEADER = 1 << 18  # characters; PyYAML is slow


def mark_card(metadata: Mapping[str, Any], body: str, kind: str = CARD) -> str:
    """A generated card: header, and ``body`` as a block of this kind."""
    record = " ".join(
        f"{key}={','.join(_hash_entry(x) for x in _entries(value))}" for key, value in metadata.items()
    )
    block = _block(kind, f"{body.strip()}\n\n", record)
    return f"---\n{_dump(metadata)}---\n\n{block}"


def merge_cards(existing: str, generated: str) -> str:
    """``existing`` with its generated parts as they are in ``generated``, and people's as they are.

    - The block is replaced, unless it was edited (see ``was_edited``). Text outside of it stays.
    - Metadata that people added, changed or removed stays so, entry by entry in lists; the
      model-index is always renewed. A header that changes is written anew, below people's comments.
    - A card without a block keeps its body, and gets the metadata it lacks.

    Merging the same again changes nothing. Line ends become those of ``existing``'s first line.
    """
    line_end = "\r\n" if re.match(r"[^\n]*\r\n", existing) else "\n"
    header, theirs, body = _read_header(_plain(existing))
    _, ours, new_body = _read_header(_plain(generated))
    body = _upgraded(body)
    new, old = _BLOCK.search(new_body), _BLOCK.search(body)
    assert new is not None
    if new["kind"] == FALLBACK and body.strip():
        return existing  # the template failed this time; what is there says more
    if header is None:
        header = _dump(ours)
    else:
        merged = _merge_metadata(theirs, ours, old and _read_record(old["record"]))
        if merged and merged != theirs:  # a card without any metadata is no better
            header = _comments(header) + _dump(merged)
    if not body.strip():
        body = new_body
    body = _BLOCK.sub(lambda block: _renewed(block, new), body)
    return f"---\n{header}---\n{body}".replace("\n", line_end)


def was_edited(card: str) -> bool:
    """Whether someone changed the text of a card's generated block, which is then kept."""
    return any(block["hash"] != _hash(block["text"]) for block in _BLOCK.finditer(_plain(card)))


def _block(kind: str, text: str, record: str, digest: str | None = None) -> str:
    start = f"<!-- fastzoo:{kind} {digest or _hash(text)}: {NOTE} -->\n"
    return f"{start}{text}<!-- /fastzoo:{kind} {record.strip()} -->\n"


def _renewed(old: re.Match[str], new: re.Match[str]) -> str:
    if old["hash"] == _hash(old["text"]):
        return new[0]
    # The metadata beside an edited block is renewed all the same, and so is the record of it.
    return f"{old['start']}{old['text']}<!-- /fastzoo:{old['kind']}{new['record']}-->\n"


def _upgraded(body: str) -> str:
    """A body with marked sections as one with a block: what people wrote between the sections goes
    below the block. If sections were edited, moved or removed, all of it is one edited block."""
    sections, listed = list(_SECTION.finditer(body)), _SECTIONS_RECORD.search(body)
    if not sections or _BLOCK.search(body):
        return body
    start, record = sections[0].start(), listed[2].rstrip() if listed else ""
    untouched = all(section[2] == _hash(section[3]) for section in sections)
    if listed and untouched and listed[1].split() == [section[1] for section in sections]:
        between = _SECTIONS_RECORD.sub("", _SECTION.sub("", body[start:]))
        block = _block(CARD, "".join(section[3] for section in sections), record)
        return f"{body[:start]}{block}\n{between}" if between.strip() else body[:start] + block
    end = max(found.end() for found in [*sections, listed] if found)
    text = body[start:end] if body[:end].endswith("\n") else f"{body[start:end]}\n"
    return body[:start] + _block(CARD, text, record, "0" * 10) + body[end:]


def _hash(text: str) -> str:
    """Ten hex digits; blanks at the ends of lines and of the text make no difference."""
    plain = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()[:10]


def _plain(text: str) -> str:
    """``text`` without byte order mark and with plain line ends."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _read_header(text: str) -> tuple[str | None, dict[str, Any], str]:
    """A card's header, its values, and the body. A header that cannot be read belongs to the body."""
    found = _HEADER.match(text)
    if found is None or len(found[2]) > _LONGEST_HEADER:
        return None, {}, text
    header = f"{found[2]}\n"
    with suppress(Exception):  # PyYAML raises many kinds; any of them says the same
        # A few aliases could make a text of any size.
        events = yaml.parse(header, yaml.SafeLoader)
        if not any(isinstance(event, yaml.AliasEvent) for event in events):
            values, node = yaml.safe_load(header), yaml.compose(header, yaml.SafeLoader)
            # Keys that stand twice or are not words are not metadata.
            if values and node and [key.value for key, _ in node.value] == list(values):
                return header, values, text[found.end() :]
    return None, {}, text


def _merge_metadata(
    theirs: dict[str, Any], ours: dict[str, Any], record: dict[str, set[str]] | None
) -> dict[str, Any]:
    """The values of a merged card; ``record`` has the hashes of the entries that were generated last time, by
    key, and is None for a card without a block."""
    merged, generated = dict(theirs), record or {}
    for key in {**ours, **generated}:
        if key == "model-index":  # figures, which programs write in several forms
            if key in ours and (record is not None or key not in theirs):
                merged[key] = ours[key]
            continue
        there, new = _entries(theirs.get(key)), _entries(ours.get(key))
        known = generated.get(key, set())
        kept = [x for x in there if x in new or _hash_entry(x) not in known]
        # One that fastzoo wrote before and is not there was removed by hand.
        added = [x for x in new if x not in there and _hash_entry(x) not in known]
        is_list = isinstance(ours.get(key, theirs.get(key)), list)
        entries = kept + added if is_list else kept or added
        if entries and entries != there:
            merged[key] = entries if is_list or len(entries) > 1 else entries[0]
        elif not entries and there:
            del merged[key]
    return merged


def _entries(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def _hash_entry(entry: Any) -> str:
    return _hash(json.dumps(str(entry)))


def _read_record(record: str) -> dict[str, set[str]]:
    """Key to hashes, of ``key=hash,hash key=hash``."""
    return {key: set(hashes.split(",")) for key, hashes in re.findall(r"([\w-]+)=([0-9a-f,]*)", record)}


def _dump(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def _comments(header: str) -> str:
    """The YAML comments of a header, each on a line of its own."""
    tokens = [x for x in yaml.scan(header, yaml.SafeLoader) if isinstance(x, yaml.ScalarToken)]
    scalars = [range(x.start_mark.index, x.end_mark.index) for x in tokens]
    found = re.finditer(r"(?m)(?:^|(?<=[ \t]))#[^\n]*", header)
    comments = [x for x in found if not any(x.start() in scalar for scalar in scalars)]
    return "".join(f"{comment[0].rstrip()}\n" for comment in comments)
