"""The reports of ``fastzoo features`` on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

from fastzoo.core.tables import fits, print_table
from fastzoo.data.special_tokens import with_role_word
from fastzoo.results.figures import show

Section = tuple[list[str], list[list[list[str]]]]
"""Headings, and for each token its lines, the highest rank first."""

Part = TypeVar("Part")


def print_tokens(report: Mapping[str, Any]) -> None:
    """``by_token.of_special_tokens`` and ``of_token``; on a narrow terminal one section below another."""
    for name, found in _saes(report):
        print(f"{name}: latents with the largest mean maximum, {_used(report)}")
        entries = found["tokens"]
        sections = [_latents("", entries)]
        if any(entry["with_sinks"] for entry in entries):
            sections.append(_latents("with sinks: ", [e["with_sinks"] for e in entries]))
        if paper := any(entry.get("paper") for entry in entries):
            theirs = [
                [[str(x["latent"]), show(x["mean_max"])] for x in entry.get("paper") or ()]
                for entry in entries
            ]
            sections.append((["paper: latent", "mean max"], theirs))
        together = _table(entries, sections)
        tables = [together] if fits(*together) else [_table(entries, [section]) for section in sections]
        for table in _apart(tables):
            print_table(*table)
        if paper:
            said = (
                "is arXiv 2506.07691, Appendix F.3; its latent numbers are those of the paper's own weights"
            )
            print(f"'paper:' {said}", file=sys.stderr)


def _latents(prefix: str, found: Sequence[Mapping[str, Any] | None]) -> Section:
    """For each token the latents found for it, if it was looked for."""
    return [f"{prefix}latent", "mean max", "fired in"], [_ranked(x) if x else [] for x in found]


def _ranked(counted: Mapping[str, Any]) -> list[list[str]]:
    of = f"of {counted['dialogues']}"
    latents = [[str(x["latent"]), show(x["mean_max"]), f"{x['dialogues']} {of}"] for x in counted["latents"]]
    return latents or [["none", "", f"0 {of}"]]


def _table(
    entries: Sequence[Mapping[str, Any]], sections: Sequence[Section]
) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of sections side by side."""
    headings = ["token", "rank", *(heading for own, _ in sections for heading in own)]
    lines = []
    for i, entry in enumerate(entries):
        ranks = zip_longest(*(lines_of[i] for _, lines_of in sections))
        for rank, cells in enumerate(ranks, start=1):
            line = [shown_token(with_role_word(entry)) if rank == 1 else "", str(rank)]
            for (own, _), cell in zip(sections, cells, strict=True):
                line += cell or [""] * len(own)
            lines.append(line)
    return headings, lines


def print_text(report: Mapping[str, Any]) -> None:
    """``by_token.of_text``."""
    for name, found in _saes(report):
        print(f"{name}: latents by activation")
        lines = [
            [
                shown_token(entry["token"]),
                str(entry["position"]),
                entry["role"] or "",
                str(entry["firing"]),
                "  ".join(f"{x['latent']}[{show(x['activation'])}]" for x in entry["latents"])
                or ("attention sink, skipped" if entry["skipped"] else ""),
            ]
            for entry in found["tokens"]
        ]
        headings = ["token", "position", "turn", "firing", "strongest[activation]"]
        print_table(headings, lines, left=(0, 2, 4), wrapped=True)


def print_latents(report: Mapping[str, Any]) -> None:
    """``by_latent.of_latents``."""
    for name, found in _saes(report):
        for entry in _apart(found["latents"]):
            print(f"{name}, latent {entry['latent']}: {_used(report)}")
            print(
                f"fires on {entry['frequency']:.2%} of tokens, in {entry['dialogue_frequency']:.1%} of dialogues; mean "
                f"maximum {show(entry['mean_max'])}, highest {show(entry['highest'])} (mean residual norm "
                f"{show(found['residual_norm'])}); on {entry['sinks']['fired']} of {entry['sinks']['tokens']} sinks"
            )
            for end, what in (("top", "raises"), ("bottom", "lowers")):
                print(f"{what}: {_quoted(entry['writes'][end])}")
            if not entry["contexts"]:
                continue
            print()
            lines = [
                [
                    shown_token(x["token"]),
                    f"{x['fired']} of {x['occurrences']}",
                    show(x["mean"]),
                    f"{x['share']:.0%}",
                ]
                for x in entry["tokens"]
            ]
            print_table(["token", "fires on", "mean", "share of all"], lines)
            print()
            for context in entry["contexts"]:
                where = f"row {context['row']}, {context['role'] or 'no turn'}"
                print(f"{show(context['activation'])}  ({where})  {_context(context)}")


def _context(context: Mapping[str, Any]) -> str:
    """The text around a maximum, which is in guillemets; activations stand behind their tokens."""
    parts = []
    for i, entry in enumerate(context["tokens"]):
        text = visible(entry["token"])
        if i == context["token"]:
            text = f"«{text}»"
        parts.append(f"{text}[{entry['activation']:.2g}]" if entry["activation"] > 0 else text)
    return "".join(parts)


def print_ranking(report: Mapping[str, Any]) -> None:
    """``by_latent.rank_by_activation`` and ``rank_by_output``."""
    output = report["rank"] == "output"
    for name, found in _saes(report):
        what = "latents by mean maximum activation"
        if output:
            strength = f"alpha {report['alpha']:g} x mean residual norm {show(found['residual_norm'])}"
            what = f"{found['candidates']} latents by output score at {strength}, {report['prompts']} prompts"
        print(f"{name}: {what}, {_used(report)}")
        keys = [*(["output_score"] if output else []), "mean_max", "highest"]
        lines = [
            [
                str(x["latent"]),
                *(show(x[key]) for key in keys),
                f"{x['frequency']:.2%}",
                _quoted(x["writes"]["top"][:6]),
            ]
            for x in found["latents"]
        ]
        headings = ["latent", *(key.replace("_", " ") for key in keys), "tokens", "raises"]
        print_table(headings, lines, left=(0, len(headings) - 1), wrapped=True)


def _quoted(entries: Sequence[Mapping[str, Any]]) -> str:
    return "  ".join(f"'{visible(x['token'])}'" for x in entries)


def _apart(parts: Iterable[Part]) -> Iterator[Part]:
    """The parts of what is printed; an empty line is printed between them."""
    for i, part in enumerate(parts):
        if i:
            print()
        yield part


def _saes(report: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return _apart(report["saes"].items())


def _used(report: Mapping[str, Any]) -> str:
    used = report["split"]["used"]
    return f"{used} dialogue{'s' if used != 1 else ''}"


def visible(text: str) -> str:
    """A token's text with its line breaks and control characters written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown_token(text: str) -> str:
    """A token's text in a cell of its own; quoted if it is only spaces."""
    return f"'{text}'" if text.isspace() and text.isprintable() else visible(text)
