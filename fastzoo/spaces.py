"""The Spaces that fastzoo can put on the Hub."""

from __future__ import annotations

from pathlib import Path

from fastzoo.errors import InputError, NotFoundError, did_you_mean, one_line


def space_folder(name: str) -> Path:
    """Where a Space is: inside an installed wheel, or beside the package in a checkout.

    Raises:
        NotFoundError: fastzoo has no Space of this name.
    """
    packaged = Path(__file__).parent / "spaces"
    spaces = packaged if packaged.is_dir() else Path(__file__).parent.parent / "spaces"
    names = sorted(path.parent.name for path in spaces.glob("*/app.py"))
    if name not in names:
        hint = did_you_mean(name, names)
        raise NotFoundError(f"fastzoo has no Space '{one_line(name, 100)}'.{hint}")
    return spaces / name


def find_space(text: str) -> Path:
    """The folder of a Space given by fastzoo's name for it or, with a slash in it, by its own path.

    Raises:
        NotFoundError: no such name.
        InputError: no Space in that folder.
    """
    if "/" not in text and "\\" not in text:
        return space_folder(text)
    if not (Path(text) / "README.md").is_file():
        raise InputError(f"'{one_line(text)}' is no folder with a Space's README.md")
    return Path(text)
