"""``fastzoo train``."""

from __future__ import annotations

from typing import Annotated

import typer


def train(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="[RECIPE.yaml] [key=value ...] [--fresh]", show_default=False)
    ] = None,
) -> None:
    """Run a recipe in this process, or go on with it.

    For several processes: accelerate launch recipes/train.py.
    """
    import runpy

    from fastzoo.core.files import resource

    script = runpy.run_path(str(resource("recipes") / "train.py"), run_name="fastzoo_recipe")
    script["main"](arguments or [])
