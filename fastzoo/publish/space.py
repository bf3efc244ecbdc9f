"""Spaces: the folders in ``spaces/``, and sending one to the Hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastzoo.core.errors import InputError, NotFoundError
from fastzoo.core.files import resource
from fastzoo.core.paths import path_of
from fastzoo.core.text import did_you_mean, one_line
from fastzoo.publish.upload import Content, Remote, look_or_make, put
from fastzoo.saes.names import parse_name
from fastzoo.saes.references import parse_reference

NAME = "fastzoo"
"""Of a namespace's Space."""

SAES = "saes.txt"
"""What a pushed Space offers, one reference a line; empty: what its namespace has published."""


def push_space(repo_id: str, folder: Path, *, private: bool, saes: Sequence[str] = ()) -> tuple[Remote, bool]:
    """Make a Space hold a folder. Returns it, and whether that took a commit.

    Args:
        saes: what it offers, as ``hf:org/repo`` or names of the zoo.

    Raises InputError: an SAE that is neither. AccessError, HubError.
    """
    for sae in saes:  # a folder of this machine is nothing that a Space could fetch
        _ = parse_reference(sae) if sae.startswith("hf:") else parse_name(sae)
    contents = {
        path.relative_to(folder).as_posix(): Content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    }
    contents[SAES] = Content("".join(f"{sae}\n" for sae in saes).encode())
    remote = look_or_make("space", repo_id, private=private, sdk="gradio")
    end, _ = put("space", repo_id, lambda _: contents, remote, "Update the Space")
    return end, end.sha != remote.sha


def find_space(text: str) -> Path:
    """The folder of a Space given by fastzoo's name for it or, with a slash in it, by its own path.

    Raises NotFoundError: fastzoo has no Space of this name. InputError: no Space in that folder.
    """
    if "/" in text or "\\" in text:
        folder = path_of(text, "--space")
        if not os.path.isfile(folder / "README.md"):
            raise InputError(f"'{one_line(text)}' is not a folder with a Space's README.md")
        return folder
    spaces = resource("spaces")
    names = sorted(path.parent.name for path in spaces.glob("*/app.py"))
    if text not in names:
        raise NotFoundError(f"fastzoo has no Space '{one_line(text, 100)}'.{did_you_mean(text, names)}")
    return spaces / text
