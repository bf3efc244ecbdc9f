"""The reports of ``fastzoo features`` on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from fastzoo.core.tables import fits, print_table
from fastzoo.results.figures import show

Section = tuple[list[str], list[list[list[str]]]]
"""Headings, and for each token its lines, the highest rank first."""


def print_tokens(report: Mapping[str, Any]) -> None:
    """``by_token.of_special_tokens`` and ``of_token``; on a narrow terminal one section below another."""
    for name, found in _saes(report):
        _title(name, f"latents with the largest mean maximum, {_used(report)}")
        entries = found["tokens"]
        sections = [_latents("", entries)]
        if any(entry["with_position_0"] for entry in entries):
            sections.append(_latents("with pos. 0: ", [e["with_position_0"] for e in entries]))
        paper = any(entry.get("paper") for entry in entries)
        if paper:
            theirs = [[[str(x["latent"]), show(x["mean_max"])] for x in entry.get("paper") or ()] for entry in entries]
            sections.append((["paper: latent", "mean max"], theirs))
        together = _table(entries, sections)
        if fits(*together):
            print_table(*together)
        else:
            for i, section in enumerate(sections):
                if i:
                    print()
                print_table(*_table(entries, [section]))
        if paper:
            print(
                "'paper:' is arXiv 2506.07691, Appendix F.3; its latent numbers are those of the paper's own weights",
                file=sys.stderr,
            )


def _latents(prefix: str, found: Sequence[Mapping[str, Any] | None]) -> Section:
    """For each token the latents found for it, if it was looked for."""
    headings = [f"{prefix}latent", "mean max", "fired in"]
    return headings, [_ranked(counted) if counted else [] for counted in found]


def _ranked(counted: Mapping[str, Any]) -> list[list[str]]:
    dialogues = counted["dialogues"]
    return [
        [str(x["latent"]), show(x["mean_max"]), f"{x['dialogues']} of {dialogues}"] for x in counted["latents"]
    ] or [["none", "", f"0 of {dialogues}"]]


def _table(entries: Sequence[Mapping[str, Any]], sections: Sequence[Section]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of sections side by side."""
    headings = ["token", "rank", *(heading for own, _ in sections for heading in own)]
    lines = []
    for i, entry in enumerate(entries):
        ranks = zip_longest(*(lines_of[i] for _, lines_of in sections))
        for rank, cells in enumerate(ranks, start=1):
            line = [shown_token(entry["token"]) if rank == 1 else "", str(rank)]
            for (own, _), cell in zip(sections, cells, strict=True):
                line += cell or [""] * len(own)
            lines.append(line)
    return headings, lines


def print_text(report: Mapping[str, Any]) -> None:
    """``by_token.of_text``."""
    for name, found in _saes(report):
        _title(name, "latents by activation")
        lines = [
            [
                shown_token(entry["token"]),
                str(entry["position"]),
                entry["role"] or "",
                str(entry["firing"]),
                "  ".join(f"{x['latent']}[{show(x['activation'])}]" for x in entry["latents"]),
            ]
            for entry in found["tokens"]
        ]
        headings = ["token", "position", "turn", "firing", "strongest[activation]"]
        print_table(headings, lines, left=(0, 2, 4), wrapped=True)


def print_latents(report: Mapping[str, Any]) -> None:
    """``by_latent.of_latents``."""
    for name, found in _saes(report):
        for i, entry in enumerate(found["latents"]):
            if i:
                print()
            _title(f"{name}, latent {entry['latent']}", _used(report))
            print(
                f"fires on {entry['frequency']:.2%} of tokens, in {entry['dialogue_frequency']:.1%} of "
                f"dialogues; mean maximum {show(entry['mean_max'])}, highest {show(entry['highest'])} "
                f"(mean residual norm {show(found['residual_norm'])}); at position 0 in "
                f"{entry['position_0']['dialogues']} dialogues"
            )
            for end, what in (("top", "raises"), ("bottom", "lowers")):
                print(f"{what}: {_quoted(entry['writes'][end])}")
            if not entry["contexts"]:
                continue
            print()
            lines = [
                [shown_token(x["token"]), f"{x['fired']} of {x['occurrences']}", show(x["mean"]), f"{x['share']:.0%}"]
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
            what = (
                f"{found['candidates']} latents by output score at alpha {report['alpha']:g} x mean "
                f"residual norm {show(found['residual_norm'])}, {report['prompts']} prompts"
            )
        _title(name, f"{what}, {_used(report)}")
        headings = ["latent", *(["output score"] if output else []), "mean max", "highest"]
        lines = [
            [
                str(x["latent"]),
                *([show(x["output_score"])] if output else []),
                show(x["mean_max"]),
                show(x["highest"]),
                f"{x['frequency']:.2%}",
                _quoted(x["writes"]["top"][:6]),
            ]
            for x in found["latents"]
        ]
        headings += ["tokens", "raises"]
        last = len(headings) - 1
        print_table(headings, lines, left=(0, last), wrapped=True)


def _quoted(entries: Sequence[Mapping[str, Any]]) -> str:
    return "  ".join(f"'{visible(x['token'])}'" for x in entries)


def _saes(report: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """One SAE after the other, with an empty line in between."""
    for i, (name, found) in enumerate(report["saes"].items()):
        if i:
            print()
        yield name, found


def _title(name: str, what: str) -> None:
    print(f"{name}: {what}")


def _used(report: Mapping[str, Any]) -> str:
    used = report["split"]["used"]
    return f"{used} dialogue{'s' if used != 1 else ''}"


def visible(text: str) -> str:
    """A token's text with its line breaks and control characters written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown_token(text: str) -> str:
    """A token's text in a cell of its own; quoted if it is only spaces."""
    return f"'{text}'" if text.isspace() and text.isprintable() else visible(text)
