"""A chat template in which no clock runs: ``strftime_now`` writes the date of ``data.date``, on every day, in every
time zone and locale.

transformers hands a template only plain data, so its ``strftime_now`` cannot be replaced by another function. A macro
of that name before the template takes its place, whatever the template does with it: a format of its own, another
name, a call in a macro.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from functools import lru_cache

MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

FLAGS = {
    "": lambda text: text,
    "-": lambda text: text.lstrip("0 ") or "0" if text.strip().isdigit() else text,
    "_": lambda text: str(int(text)).rjust(len(text)) if text.strip().isdigit() else text,
    "0": lambda text: text.replace(" ", "0") if text.strip().isdigit() else text,
    "^": str.upper,
    "#": lambda text: text.lstrip("0 ") or "0" if text.strip().isdigit() else text.upper(),
    "E": lambda text: text,
    "O": lambda text: text,
}
"""What stands between % and the letter, and what it does to the text of the letter."""

MACRO = (
    "{%% macro strftime_now(format) %%}{%% set written %%}"
    "{%% for part in format.replace('%%%%', '\\x00').split('%%') %%}{%% if loop.first %%}{{ part }}{%% else %%}"
    "{%% set size = 2 if part[:1] in '%s' else 1 %%}{{ %s.get(part[:size], '%%' ~ part[:size]) }}{{ part[size:] }}"
    "{%% endif %%}{%% endfor %%}{%% endset %%}{{ written.replace('\\x00', '%%') }}{%% endmacro %%}\n"
)
"""Takes the place of ``strftime_now``. Jinja drops the line break after it."""

CLOCK = "strftime_now"


@lru_cache(maxsize=16)
def with_fixed_date(template: str, date: str) -> str:
    """A chat template in which ``strftime_now`` writes ``date``, at midnight: in the format that is asked for if it is
    written like "26 Jul 2024", else as it is. A line stands before it if it asks for the date at all."""
    if CLOCK not in template:
        return template
    day = _day(date)
    if day is None:
        return "{% macro strftime_now(format) %}{{ " + repr(date) + " }}{% endmacro %}\n" + template
    letters = _letters(day)
    table = {
        flag + letter: change(text) for flag, change in FLAGS.items() for letter, text in letters.items()
    }
    return MACRO % ("".join(FLAGS), repr(table)) + template


def _day(date: str) -> datetime | None:
    """The day that is written like "26 Jul 2024"."""
    match = re.fullmatch(r"(\d{1,2}) ([A-Z][a-z]{2}) (\d{4})", date.strip(), re.ASCII)
    months = [name[:3] for name in MONTHS]
    try:
        return datetime(int(match[3]), months.index(match[2]) + 1, int(match[1])) if match else None
    except ValueError:
        return None


def _letters(day: datetime) -> dict[str, str]:
    """What each letter of a format stands for, as C writes it in English; ``datetime`` asks the locale and the zone."""
    year, week, weekday = day.isocalendar()
    name, month, number = DAYS[weekday - 1], MONTHS[day.month - 1], day.timetuple().tm_yday
    date, clock = f"{day.month:02}/{day.day:02}/{day.year % 100:02}", "00:00:00"
    weeks = {"U": (number + 6 - weekday % 7) // 7, "W": (number + 7 - weekday) // 7, "V": week}
    numbers = {"d": day.day, "m": day.month, "y": day.year % 100, "C": day.year // 100, "g": year % 100}
    twos = {letter: f"{value:02}" for letter, value in (weeks | numbers).items()}
    return twos | {
        "a": name[:3],
        "A": name,
        "b": month[:3],
        "h": month[:3],
        "B": month,
        "p": "AM",
        "P": "am",
        "e": f"{day.day:2}",
        "j": f"{number:03}",
        "Y": str(day.year),
        "G": str(year),
        "u": str(weekday),
        "w": str(weekday % 7),
        "H": "00",
        "I": "12",
        "k": " 0",
        "l": "12",
        "M": "00",
        "S": "00",
        "f": "000000",
        "z": "",
        "Z": "",
        "n": "\n",
        "t": "\t",
        "D": date,
        "x": date,
        "T": clock,
        "X": clock,
        "R": "00:00",
        "r": "12:00:00 AM",
        "F": f"{day.year:04}-{day.month:02}-{day.day:02}",
        "c": f"{name[:3]} {month[:3]} {day.day:2} {clock} {day.year}",
        "s": str(int(day.replace(tzinfo=timezone.utc).timestamp())),
    }
