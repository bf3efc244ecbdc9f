"""A data set built with its card: ``fastzoo.build_data``."""

from __future__ import annotations

import sys
from collections.abc import Callable

from fastzoo.config.data_build import DataBuild
from fastzoo.data.build import build as steps
from fastzoo.data.build.manifest import BuiltSet
from fastzoo.results.data_card import render_data_card


def build_data(
    build: DataBuild,
    *,
    workers: int = 1,
    skip_unavailable: bool = False,
    fresh: bool = False,
    memory: int | None = None,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> BuiltSet:
    """Build a data set, or go on with it; see ``fastzoo.data.build.build.build_data``."""
    return steps.build_data(
        build,
        render_data_card,
        say,
        workers=workers,
        skip_unavailable=skip_unavailable,
        fresh=fresh,
        memory=memory,
    )
