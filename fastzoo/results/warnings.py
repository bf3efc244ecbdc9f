"""What the figures of an SAE warn of: it learned only the attention sinks, or nothing at all, or missed the wanted L0.
Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastzoo.results.figures import count, flat, leading_subset, show

LEAST_FVU, TIMES = 0.1, 3.0
"""FVU without sinks above the first, and above so many times that with sinks, is another figure altogether."""

L0_ERROR = 0.1
"""By what share L0 may miss what was asked for."""

NOTHING_EXPLAINED = 1.0
"""FVU of an SAE that gives the mean activation for every token."""


def warnings_of(
    metrics: Mapping[str, Any], *, skips_sinks: bool, wanted_l0: float | None = None
) -> list[str]:
    """What to say of an SAE with these ``metrics`` of a ``metrics.json``; nothing of most.

    Where it passes sinks through, figures with them are good by themselves and say nothing. ``wanted_l0`` is
    the ``training.l0`` that it was trained for.
    """
    row = flat(metrics)
    lead = leading_subset(row)
    without, with_sinks = row["fvu_without_sinks"], row["fvu"]
    fvu = with_sinks if lead == "all" else without
    found = []
    if None not in (without, with_sinks) and not skips_sinks and without > max(LEAST_FVU, TIMES * with_sinks):
        found.append(
            f"FVU is {show(with_sinks)} with attention sinks and {show(without)} without: it reconstructs "
            "little but the sinks; training.sinks=skip leaves them out"
        )
    elif fvu is not None and fvu >= NOTHING_EXPLAINED:
        found.append(f"FVU is {show(fvu)}: the SAE has collapsed and explains nothing of the activations")
    l0 = row["l0"] if lead == "all" else row["l0_without_sinks"]
    if wanted_l0 is not None and l0 is not None and abs(l0 / wanted_l0 - 1) > L0_ERROR:
        found.append(f"L0 is {show(l0)}, not {show(wanted_l0)} as training.l0 asked for")
    dead = metrics.get("dead_latents", {}).get(lead, {})
    if dead.get("share") == 1:
        found.append(f"all {count(dead['value'])} latents are dead: the SAE has collapsed")
    return found
