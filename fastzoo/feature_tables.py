"""The reports of ``fastzoo features`` on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from fastzoo.card import show
from fastzoo.results import print_table

Report = Mapping[str, Any]


def print_tokens(report: Report) -> None:
    """``of_special_tokens`` and ``of_token``."""
    for name, found in _saes(report):
        _title(name, f"latents with the largest mean maximum, {_used(report)}")
        headings = ["token", "dialogues", "rank", "latent", "mean max", "fired in"]
        headings += ["with pos. 0: latent", "mean max", "fired in"]
        paper = any(entry.get("paper") for entry in found["tokens"])
        if paper:
            headings += ["paper: latent", "mean max"]
        lines = []
        for entry in found["tokens"]:
            first = entry["with_position_0"] or {}
            columns = (entry["latents"], first.get("latents") or [], entry.get("paper") or [])
            for rank, (ours, with_first, theirs) in enumerate(zip_longest(*columns), start=1):
                start = (
                    [visible(entry["token"]), str(entry["dialogues"])] if rank == 1 else ["", ""]
                )
                line = [*start, str(rank), *_latent(ours), *_latent(with_first)]
                if paper:
                    line += (
                        [str(theirs["latent"]), show(theirs["mean_max"])] if theirs else ["", ""]
                    )
                lines.append(line)
        print_table(headings, lines)
        if paper:
            print(
                "'paper:' is arXiv 2506.07691, Appendix F.3; its numbers of latents are those of its "
                "own weights",
                file=sys.stderr,
            )


def _latent(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    return [str(found["latent"]), show(found["mean_max"]), str(found["dialogues"])]


def print_text(report: Report) -> None:
    """``of_text``."""
    for name, found in _saes(report):
        _title(name, "latents by activation")
        lines = [
            [
                visible(entry["token"]),
                str(entry["position"]),
                entry["role"] or "",
                str(entry["firing"]),
                "  ".join(f"{x['latent']} {show(x['activation'])}" for x in entry["latents"]),
            ]
            for entry in found["tokens"]
        ]
        print_table(["token", "position", "turn", "firing", "strongest"], lines, left=(0, 2, 4))


def print_latents(report: Report) -> None:
    """``of_latents``."""
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
                [
                    visible(x["token"]),
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
    """The text around a maximum, which is in guillemets; activations behind their tokens."""
    parts = []
    for i, entry in enumerate(context["tokens"]):
        text = visible(entry["token"])
        if i == context["token"]:
            text = f"«{text}»"
        parts.append(f"{text}[{entry['activation']:.2g}]" if entry["activation"] > 0 else text)
    return "".join(parts)


def print_ranking(report: Report) -> None:
    """``ranking``."""
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
        print_table(headings, lines, left=(0, len(headings) - 1))


def _quoted(entries: Sequence[Mapping[str, Any]]) -> str:
    return "  ".join(f"'{visible(x['token'])}'" for x in entries)


def _saes(report: Report) -> Iterator[tuple[str, Any]]:
    """One SAE after the other, an empty line between them."""
    for i, (name, found) in enumerate(report["saes"].items()):
        if i:
            print()
        yield name, found


def _title(name: str, what: str) -> None:
    print(f"{name}: {what}")


def _used(report: Report) -> str:
    return f"{report['split']['used']} dialogues"


def visible(text: str) -> str:
    """A token's text with its line breaks and control characters written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
