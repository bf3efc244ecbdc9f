"""``python -m fastzoo.data.build.worker BUILD.yaml SOURCE PART``: read one unit of a build in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from fastzoo.config.data_build import load_build
from fastzoo.core.exit import report_failures
from fastzoo.data.build.build import READ, source_section
from fastzoo.data.build.read import Unit, read_unit
from fastzoo.data.sources import open_source


def main() -> None:
    """Raises what ``read_unit`` and ``open_source`` raise; the process ends with that error's exit code."""
    config, number, part = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    build = load_build(config)
    unit = Unit(number, None if part == "all" else int(part))
    read_unit(build, unit, open_source(source_section(build.sources[number])), config.parent / READ)


if __name__ == "__main__":
    report_failures(main)
