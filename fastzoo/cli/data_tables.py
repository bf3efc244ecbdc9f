"""``fastzoo data show`` on the terminal: counts, histograms, and rows with each token in the colour of its role.

Whatever data or a tokenizer says is escaped here: it moves no cursor, turns no text around, and passes for no special
token. What the colours say is also said without them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from fastzoo.cli.app import print_hints
from fastzoo.cli.feature_tables import visible
from fastzoo.core.tables import NARROWEST, terminal_width
from fastzoo.core.text import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

LIST_TOKENS = 160
"""Of a row in the list; ``--row`` has all."""

STYLES = {
    "system": "magenta",
    "user": "cyan",
    "assistant": "green",
    "tool": "yellow",
    "template": "dim",
    "untold": "default",
    "text": "default",
}
"""Colours by role; each stands on dark and on light ground."""

SPECIAL = "bold red"

GUTTER = 11
"""Characters before a row's text, in which the role stands."""

LABEL = 13

BAR = 30

JOINERS = "\u200c\u200d"

LEGEND = (
    "⟦…⟧ is a special token, or a character that is not shown as it is; ↵ a line break, ⇥ a tab, · one of several "
    "blanks, or one at the end of a line"
)


def print_survey(report: Mapping[str, Any]) -> None:
    """``Shown.survey`` with the model."""
    console = _console()
    _print_source(console, report)
    _print_counts(console, report)
    if report["lengths"]:
        _print_lengths(console, report["lengths"])
        _print_shares(console, report["token_shares"])
    for row in report["shown"]:
        console.print()
        _print_tokens(console, row)
    hints = [LEGEND] if report["shown"] else []
    if not report["used"]:
        hints.append(
            "no row can be used; --column says where rows have their turns, --text that they are plain text"
        )
    print_hints([*hints, *_about_model(report["model"])])


def print_row(report: Mapping[str, Any]) -> None:
    """``Shown.row`` with the model."""
    console, row = _console(), report["row"]
    _fact("source", one_line(row["name"], 200))
    if "unusable" in row:
        print(f"row {row['row']}, as it is:")
        print(visible(row["raw"]))
        return
    _print_model(report["model"])
    _print_tokens(console, row)
    print_hints([LEGEND, *_about_model(report["model"])])


def _about_model(model: Mapping[str, Any]) -> list[str]:
    if model["given"]:
        return []
    return [
        f"seen with the toy's ({model['name']}) tokenizer and chat template; --model NAME is for another model's"
    ]


def _console() -> Console:
    """Colours on a terminal unless NO_COLOR is set; lines are not broken by it."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def _print_source(console: Console, report: Mapping[str, Any]) -> None:
    from rich.text import Text

    kind, revision, rows = report["kind"], report["revision"], report["source_rows"]
    facts = [str(kind), *([f"revision {one_line(revision)[:12]}"] if revision else [])]
    facts.append(f"{rows:,} rows" if rows is not None else "streamed, number of rows not known")
    console.print(Text(one_line(report["name"], 200), "bold").append(f"  {', '.join(facts)}", "not bold"))
    _print_model(report["model"])


def _print_model(model: Mapping[str, Any]) -> None:
    sha = f"@{model['sha'][:12]}" if model["sha"] else ""
    limit = f", at most {model['max_tokens']:,} tokens" if model["max_tokens"] else ", as plain text"
    _fact("as seen by", f"{one_line(model['name'], 200)}{sha}{limit}")


def _fact(label: str, value: str) -> None:
    print(f"{label:<{LABEL}}{value}")


def _print_counts(console: Console, report: Mapping[str, Any]) -> None:
    total = report["source_rows"]
    read = report["rows"]
    _fact(
        "rows read", f"{read:,}" + (f" of {total:,}: --limit N reads more" if total and read < total else "")
    )
    _fact("usable", f"{report['used']:,}{_share(report['used'], read)}")
    skipped = sorted(report["skipped"].items(), key=lambda item: -item[1])
    _fact("skipped", f"{sum(report['skipped'].values()):,}")
    for reason, count in skipped:
        print(
            f"  {count:,} {one_line(reason, 200)}; the first: {one_line(report['first_skipped'].get(reason, ''))}"
        )
    if limit := report["model"]["max_tokens"]:
        _fact(
            "truncated",
            f"{report['truncated']:,}" + (f", to {limit:,} tokens" if report["truncated"] else ""),
        )
    if report["special_text"]:
        _fact(
            "special text", f"{report['special_text']:,} rows hold the text of a special token; it stays text"
        )
    for name, count in report["unshown"].items():
        _fact("not shown", f"{one_line(name, 80)} of {count:,} rows, which the chat template does not write")
    if report["turns"]:
        counts = report["turns"]
        shown = ", ".join(f"{turns}: {count:,}" for turns, count in list(counts.items())[:8])
        more = f", and up to {max(counts)}" if len(counts) > 8 else ""
        _fact("turns", f"{shown}{more} (turns: dialogues)")
        _fact(
            "roles",
            ", ".join(f"{one_line(role, 40)} {n:,}" for role, n in report["turn_roles"].items()) + " turns",
        )


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.1%})" if whole else ""


def _print_lengths(console: Console, lengths: Mapping[str, Any]) -> None:
    keys = ("least", "median", "mean", "most")
    print()
    print("tokens per row: " + ", ".join(f"{key} {lengths[key]:,.0f}" for key in keys))
    names = [f"{b['from']:,} to {b['to']:,}" for b in lengths["bins"]]
    if lengths["most"] == lengths["counted_to"]:
        names[-1] = f"{lengths['most']:,} or more"
    bars = [(name, b["dialogues"], "blue") for name, b in zip(names, lengths["bins"], strict=True)]
    _print_bars(console, bars)


def _print_shares(console: Console, shares: Mapping[str, int]) -> None:
    print()
    print("whose tokens they are (special tokens apart)")
    bars = [
        (role, count, SPECIAL if role == "special" else STYLES.get(role, "default"))
        for role, count in sorted(shares.items(), key=lambda item: -item[1])
        if count
    ]
    _print_bars(console, bars)


def _print_bars(console: Console, bars: Sequence[tuple[str, int, str]]) -> None:
    from rich.text import Text

    most, total = max(count for _, count, _ in bars), sum(count for _, count, _ in bars)
    wide = max(len(label) for label, _, _ in bars)
    numbers = max(len(f"{count:,}") for _, count, _ in bars)
    for label, count, style in bars:
        line = Text(f"  {label:>{wide}} {count:>{numbers},} {count / total:>6.1%}")
        console.print(line.append(f" {_bar(count / most)}", style) if count else line)


def _bar(share: float) -> str:
    """A bar in eighths of a character, or in whole ones where the output has no others."""
    eighths = round(share * BAR * 8)
    if not (sys.stdout.encoding or "").lower().startswith("utf"):
        return "#" * max(eighths // 8, share > 0)
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[max(eighths % 8, share > 0 and not eighths)]


def _print_tokens(console: Console, row: Mapping[str, Any]) -> None:
    from rich.text import Text

    turns = f", {len(row['turns'])} turns" if row["turns"] else ""
    console.print(Text(f"row {row['row']}, {_at_least(row['tokens'], row)} tokens{turns}", "bold"))
    notes = ["text of special tokens, which stays text"] if row["special_text"] else []
    if row["unshown"]:
        fields = ", ".join(one_line(name, 80) for name in row["unshown"])
        notes.append(f"fields that the chat template does not write ({fields})")
    if notes:
        print(f"has {' and '.join(notes)}")
    for role, pieces in groupby(row["pieces"], key=lambda piece: str(piece["role"])):
        style = STYLES.get(role, "default")
        for number, line in enumerate(_lines(console, _styled(list(pieces), style))):
            gutter = f"{one_line(role, GUTTER - 1) if number == 0 else '':<{GUTTER}}"
            console.print(Text().append(gutter, style).append(line))
    shown = sum(len(piece["ids"]) for piece in row["pieces"])
    if left := row["within"] - shown:
        print(f"… {left:,} more tokens: --row {row['row']}")
    if beyond := row["tokens"] - row["within"]:
        print(
            f"… {_at_least(beyond, row)} more tokens, which are cut off: at most {row['within']:,} go through the model"
        )


def _at_least(count: int, row: Mapping[str, Any]) -> str:
    return f"{'at least ' if row['longer'] else ''}{count:,}"


def _styled(pieces: Sequence[Mapping[str, Any]], style: str) -> Text:
    """Tokens of one role. Every other one is underlined, so that it is seen where they end."""
    from rich.text import Text

    shown = iter(shown_characters("".join(piece["text"] for piece in pieces)))
    text = Text()
    for number, piece in enumerate(pieces):
        own = "".join(next(shown) for _ in piece["text"])
        if piece["special"]:
            text.append(f"⟦{visible(piece['text'])}⟧", SPECIAL)
        else:
            text.append(own, f"{style} underline" if number % 2 else style)
    return text


def shown_characters(text: str) -> Iterator[str]:
    """What is printed for each character."""
    last = len(text) - 1
    for place, character in enumerate(text):
        after = text[place + 1] if place < last else "\n"
        if character == "\n":
            yield "↵\n"
        elif character == "\t":
            yield "⇥"
        elif character == " ":
            yield "·" if after in " \n" or (place and text[place - 1] == " ") else " "
        elif character in "⟦⟧":
            yield f"⟦\\u{ord(character):04x}⟧"
        else:
            # Persian and Hindi words, and emoji, are written with joiners.
            joins = character in JOINERS and not (text[max(place - 1, 0)] + after).isascii()
            yield character if joins or character.isprintable() else f"⟦{visible(character)}⟧"


def _lines(console: Console, text: Text) -> Iterator[Text]:
    """The lines of a row's text, as wide as the terminal has room beside the role."""
    width = terminal_width()
    for line in text.split("\n"):
        yield from (
            [line] if width is None else line.wrap(console, max(width - GUTTER, NARROWEST), overflow="fold")
        )
