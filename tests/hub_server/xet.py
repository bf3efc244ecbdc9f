"""Endpoints of the loopback Hub: the Xet store, as hf_xet 1.8 speaks to it.

A file is cut into chunks; chunks are bundled into xorbs, which are sent first. A shard, sent last,
says of which chunks of which xorbs each file consists, and its sha256. That sha256 is how a commit
names the file, so a shard is all that is needed to serve the file both by Xet and as plain bytes.
The formats are those of the Xet protocol's specification.
"""

from __future__ import annotations

import struct
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import numpy as np

from hub_server.core import API, LoopbackHub, route
from hub_server.data import sha256
from hub_server.messages import Refusal, Request, Response, as_json, error
from hub_server.reading import byte_range, granted, ranged

TOKEN_SECONDS = 3600
SHARD_TAG = b"HFRepoMetaData\0"
SHARD_HEADER, ENTRY = 48, struct.Struct("<32s4I")
BOOKEND = b"\xff" * 32
VERIFIED, WITH_SHA256 = 1 << 31, 1 << 30  # flags of a file in a shard
CHUNK_HEADER = 8
XORB_FOOTER = b"XETBLOB"
HASH = r"(?P<hash>[0-9a-f]{64})"


def hash_text(raw: bytes) -> str:
    """A Xet hash as text: each of its four numbers, which lie there with the low byte first."""
    return "".join(raw[i : i + 8][::-1].hex() for i in range(0, 32, 8))


@dataclass
class Xorb:
    """A bundle of chunks; chunk i lies in bytes ``starts[i]`` to ``starts[i + 1]``."""

    data: bytes
    starts: list[int]
    sizes: list[int]  # of the chunks, unpacked

    @classmethod
    def read(cls, data: bytes) -> Xorb:
        """Raises Refusal (400) if these are no chunks."""
        starts: list[int] = [0]
        sizes: list[int] = []
        while (at := starts[-1]) < len(data):
            header = data[at : at + CHUNK_HEADER]
            if header.startswith(XORB_FOOTER):
                break
            if len(header) < CHUNK_HEADER or header[0] != 0:
                raise Refusal(error(400, "BadRequest", "this is no xorb"))
            sizes.append(int.from_bytes(header[5:8], "little"))
            starts.append(at + CHUNK_HEADER + int.from_bytes(header[1:4], "little"))
        if starts[-1] > len(data):
            raise Refusal(error(400, "BadRequest", "this xorb ends in the middle of a chunk"))
        return cls(data, starts, sizes)

    def chunk(self, i: int) -> bytes:
        """Chunk i, unpacked."""
        import pyarrow

        packing = self.data[self.starts[i] + 4]
        packed = self.data[self.starts[i] + CHUNK_HEADER : self.starts[i + 1]]
        if packing == 0:
            return packed
        flat = pyarrow.decompress(packed, self.sizes[i], codec="lz4", asbytes=True)
        if packing == 1:
            return flat
        # The bytes at 0, 4, 8, ..., then those at 1, 5, 9, ..., and so on.
        whole, source = np.empty(len(flat), np.uint8), np.frombuffer(flat, np.uint8)
        begin = 0
        for byte in range(4):
            part = whole[byte::4]
            part[:] = source[begin : begin + len(part)]
            begin += len(part)
        return whole.tobytes()


Term = tuple[str, int, int]
"""Hash of a xorb, first chunk, chunk after the last: a piece of a file."""


def take_from_xet(hub: LoopbackHub, oid: str) -> bytes:
    """The bytes of the file of this sha256; raises Refusal (400) if they are others."""
    terms = hub.xet_files[hub.xet_hashes[oid]]
    chunks = (hub.xet_xorbs[xorb].chunk(i) for xorb, *ends in terms for i in range(*ends))
    data = b"".join(chunks)
    if sha256(data) != oid:
        raise Refusal(error(400, "BadDigest", f"the file sent as {oid} has another sha256"))
    return data


# --- tokens ------------------------------------------------------------------------------------


@route("GET", rf"{API}/xet-(?P<may>read|write)-token/(?P<revision>[^/]+)")
def tokens(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    repo = hub.repo(request, groups, write=groups["may"] == "write")
    hub.files(repo, groups["revision"])
    granted(hub, request, repo)
    token, expires = f"xet-{groups['may']}", int(time.time()) + TOKEN_SECONDS
    store = f"{hub.endpoint}/cas"
    answer = as_json({"accessToken": token, "exp": expires, "casUrl": store})
    answer.headers |= {
        "X-Xet-Access-Token": token,
        "X-Xet-Token-Expiration": str(expires),
        "X-Xet-Cas-Url": store,
    }
    return answer


def _may(request: Request, *roles: str) -> None:
    if (request.token or "").removeprefix("xet-") not in roles:
        raise Refusal(error(401, "Unauthorized", "the Xet store wants a token of the Hub"))


# --- sending -----------------------------------------------------------------------------------


@route("POST", rf"/cas/v1/xorbs/default/{HASH}")
def put_xorb(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    _may(request, "write")
    known = groups["hash"] in hub.xet_xorbs
    if not known:
        hub.xet_xorbs[groups["hash"]] = Xorb.read(request.body)
    return as_json({"was_inserted": not known})


@route("POST", r"/cas/v2/shards")
def put_shard(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    _may(request, "write")
    if not request.body.startswith(SHARD_TAG):
        return error(400, "BadRequest", "this is no shard")
    files = list(_files(request.body))
    for _, oid, terms in files:
        for xorb, _, stop in terms:
            if xorb not in hub.xet_xorbs or stop > len(hub.xet_xorbs[xorb].sizes):
                return error(400, "BadRequest", f"{oid} needs chunks of {xorb} that were not sent")
    for name, oid, terms in files:
        hub.xet_files[name] = terms
        hub.xet_hashes[oid] = name
    return Response(200, b'{"type": "result"}\n', {"Content-Type": "application/x-ndjson"})


def _files(shard: bytes) -> Iterator[tuple[str, str, list[Term]]]:
    """Xet hash, sha256 and pieces of the files in a shard; raises Refusal (400)."""
    whole = len(shard) // ENTRY.size * ENTRY.size
    entries = ENTRY.iter_unpack(shard[SHARD_HEADER:whole])
    try:
        while (header := next(entries))[0] != BOOKEND:
            name, flags, count, _, _ = header
            terms = [(hash_text(raw), start, stop) for raw, _, _, start, stop in islice(entries, count)]
            if flags & VERIFIED:
                list(islice(entries, count))
            if flags & WITH_SHA256:
                yield hash_text(name), hash_text(next(entries)[0]), terms
    except StopIteration:
        raise Refusal(error(400, "BadRequest", "this shard ends too early")) from None


@route("GET", r"/cas/v1/chunks/default[^/]*/[0-9a-f]{64}")
def known_chunk(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    return error(404, "NotFound", "no other file is known to have this chunk")


@route("POST", r"/cas/v1/telemetry")
def telemetry(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    return as_json({})


# --- receiving ---------------------------------------------------------------------------------


@route("GET", rf"/cas/v2/reconstructions/{HASH}")
def reconstruction(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    """Where the pieces lie that hold the bytes of a file that a Range header asks for."""
    _may(request, "read", "write")
    terms = hub.xet_files.get(groups["hash"])
    if terms is None:
        return error(404, "EntryNotFound", "no such file")
    chunks = [(xorb, i) for xorb, start, stop in terms for i in range(start, stop)]
    ends = list(accumulate(hub.xet_xorbs[xorb].sizes[i] for xorb, i in chunks))
    first, last = byte_range(request, ends[-1] if ends else 0)
    if first >= last:
        return Response(416)
    # Whole chunks, from the one with the first byte to the one with the last.
    begin, end = bisect_right(ends, first), bisect_right(ends, last - 1) + 1
    pieces: list[Term] = []
    for name, i in chunks[begin:end]:
        if pieces and pieces[-1][0] == name and pieces[-1][2] == i:
            pieces[-1] = (name, pieces[-1][1], i + 1)
        else:
            pieces.append((name, i, i + 1))
    answer: dict[str, Any] = {"terms": [], "xorbs": {}}
    answer["offset_into_first_range"] = first - (ends[begin - 1] if begin else 0)
    for name, start, stop in pieces:
        xorb = hub.xet_xorbs[name]
        inside = {"start": start, "end": stop}
        size = sum(xorb.sizes[start:stop])
        answer["terms"].append({"hash": name, "unpacked_length": size, "range": inside})
        where = {"start": xorb.starts[start], "end": xorb.starts[stop] - 1}
        link = {
            "url": f"{hub.download_host}/cas/xorbs/{name}",
            "ranges": [{"chunks": inside, "bytes": where}],
        }
        links = answer["xorbs"].setdefault(name, [])
        if link not in links:
            links.append(link)
    return as_json(answer)


@route("GET", rf"/cas/xorbs/{HASH}")
def get_xorb(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    if groups["hash"] not in hub.xet_xorbs:
        return error(404, "EntryNotFound", "no such xorb")
    return ranged(request, hub.xet_xorbs[groups["hash"]].data, {})
