"""What the figures of an SAE warn of."""

from __future__ import annotations

import re
from typing import Any

import pytest
from examples import example, older

from fastzoo.results.summary import print_results
from fastzoo.results.warnings import warnings_of


def metrics(without: float | None, all_tokens: float, dead: float = 0.1) -> dict[str, Any]:
    found: dict[str, Any] = example()[1]["metrics"]
    found["fvu"]["without_sinks"]["value"], found["fvu"]["all"]["value"] = without, all_tokens
    found["dead_latents"]["without_sinks"] |= {"value": int(dead * 1024), "share": dead}
    return found


SINKS = [
    "FVU is 0.0029 with attention sinks and 0.46 without: it reconstructs little but the sinks; "
    "training.sinks=skip leaves them out"
]


@pytest.mark.parametrize(
    ("figures", "skips_sinks", "said"),
    [
        (metrics(0.46, 0.0029), False, SINKS),
        (metrics(0.46, 0.0029), True, []),
        (metrics(1.2, 0.0029), False, [SINKS[0].replace("0.46", "1.2")]),
        (metrics(0.46, 0.2), False, []),
        (metrics(0.09, 0.0001), False, []),
        (metrics(None, 0.5), False, []),
        (
            metrics(1.25, 0.3),
            True,
            ["FVU is 1.25: the SAE has collapsed and explains nothing of the activations"],
        ),
        (metrics(0.2, 0.2, dead=1), False, ["all 1,024 latents are dead: the SAE has collapsed"]),
        (older(*example())[1]["metrics"], False, []),
        ({}, False, []),
    ],
)
def test_what_is_warned_of(figures: dict[str, Any], skips_sinks: bool, said: list[str]) -> None:
    assert warnings_of(figures, skips_sinks=skips_sinks) == said


@pytest.mark.parametrize(
    ("wanted", "missed"), [(None, False), (18.0, True), (19.0, False), (21.9, False), (23.0, True)]
)
def test_an_l0_that_was_missed_is_told(wanted: float | None, missed: bool) -> None:
    for figures in (metrics(0.2, 0.2), older(*example())[1]["metrics"]):
        l0 = figures["l0"]
        l0[max(l0, key=lambda subset: subset == "without_sinks")]["value"] = 20.0
        said = [f"L0 is 20, not {wanted:g} as training.l0 asked for"] if missed else []
        assert warnings_of(figures, skips_sinks=True, wanted_l0=wanted) == said


def test_the_table_of_figures_is_followed_by_its_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    old = older(*example())[1]["metrics"]
    print_results([("a", metrics(0.46, 0.0029), None, False), ("b", metrics(0.2, 0.2), None, False)])
    out, err = capsys.readouterr()
    assert re.split(r"\s{2,}", out.splitlines()[0])[4:6] == ["FVU", "FVU with sinks"]
    assert [line.split()[4:6] for line in out.splitlines()[1:]] == [["0.46", "0.0029"], ["0.2", "0.2"]]
    assert err == f"warning: a: {SINKS[0]}\n"
    print_results([("a", old, None, False)])
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split()[:6] == ["a", "0.25*", "0.25*", "0.25*", "0.25*", "0.25"]
    assert err == "* with attention sinks: measured by an older version of fastzoo\n"
