"""Where a run is followed (``output.trackers``): looked at before it begins, then started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line

if TYPE_CHECKING:
    from accelerate import Accelerator

    from fastzoo.config.recipe import Recipe

TRACKERS = {
    "tensorboard": {"tensorboard": "torch.utils.tensorboard", "tensorboardX": "tensorboardX"},
    "trackio": {"trackio": "trackio"},
    "wandb": {"wandb": "wandb"},
}
"""What ``output.trackers`` can name: the packages that will do, each with what accelerate imports of it."""


def check_trackers(names: Sequence[str]) -> None:
    """Accelerate leaves out, with a warning, what it does not find. Raises InputError."""
    for name in names:
        installed = {package: module for package, module in TRACKERS[name].items() if _is_installed(package)}
        if not installed:
            raise InputError(f"output.trackers: {name} is not installed; pip install {name}")
        package, module = next(iter(installed.items()))
        try:
            tracker = import_module(module)
            _ = tracker.SummaryWriter if name == "tensorboard" else tracker.init
        except Exception as error:  # a broken package can raise anything
            said = f"{package} is installed, but not whole ({one_line(error, 160)})"
            raise InputError(f"output.trackers: {said}; pip install --force-reinstall {package}") from None
        if name == "wandb" and os.environ.get("RANK", "0") == "0":
            _log_in(tracker)


def _is_installed(package: str) -> bool:
    """As accelerate sees it: a mere folder of that name, such as wandb leaves behind, does not count."""
    try:
        return find_spec(package) is not None and bool(version(package))
    except (PackageNotFoundError, ValueError):
        return False


def _log_in(wandb: Any) -> None:
    """Check the key, or ask for it on a terminal; offline or disabled it does neither."""
    try:
        wandb.login()
    except Exception as error:
        said = f"wandb cannot log in ({one_line(error, 160)})"
        raise InputError(f"output.trackers: {said}; 'wandb login', or WANDB_MODE=offline") from None


def start_trackers(recipe: Recipe, accelerator: Accelerator) -> None:
    """Raises InputError: one cannot be started."""
    try:
        accelerator.init_trackers(recipe.output.project, config={"recipe": recipe.to_yaml()})
    except Exception as error:  # each has a server or a disk of its own to fail
        names = ", ".join(recipe.output.trackers)
        raise InputError(f"output.trackers: {names} cannot be started ({one_line(error)})") from None
