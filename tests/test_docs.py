"""The READMEs: their links, the paths they name, their Python, and the commands that CI and users copy."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastzoo.cli.main import app
from fastzoo.core.errors import EXIT_CODES

ROOT = Path(__file__).parent.parent

PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "cards/*.md",
        "fastzoo/**/*.md",
        "recipes/*.md",
        "spaces/**/*.md",
        "tests/**/*.md",
    )
    for path in ROOT.glob(pattern)
    if "tiny-chat" not in path.parts
)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text("utf-8"), re.M | re.S)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pages
def test_named_files_are_there(page: Path) -> None:
    for name in re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|yaml|j2))`", page.read_text("utf-8")):
        places = (ROOT, page.parent, ROOT / "fastzoo", page.parent.parent, ROOT / "tests")
        assert any((place / name).exists() for place in places), name


@pages
def test_python_compiles_and_commands_exist(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, str(page), "exec")
    known = {command.name for command in (*app.registered_commands, *app.registered_groups)}
    for line in "".join(blocks(page, "bash") + blocks(page, "console")).splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True) if "fastzoo " in line else []
        if words[:1] == ["fastzoo"] and not words[1].startswith("-"):
            assert words[1] in known, line
            groups = {group.name for group in app.registered_groups}
            part = (
                words[1:3]
                if words[1] in groups and not (words[2:] or ["-"])[0].startswith("-")
                else words[1:2]
            )
            helped = CliRunner().invoke(app, [*part, "--help"]).stdout
            for word in words[2:]:
                if word.startswith("--"):
                    assert word in helped, line


def test_each_exit_code_has_its_row() -> None:
    page = (ROOT / "recipes" / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| ([0-9, ]+) \|", page, re.M)
    assert [int(code) for row in rows for code in row.split(", ")] == list(EXIT_CODES)


def test_both_marked_commands_stand_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    found = dict(re.findall(r"<!-- command: (\w+) -->\n```bash\n(.*)\n```\n", text))
    assert set(found) == {"main", "tests"}
    assert found["main"].endswith("accelerate launch --quiet recipes/train.py")
    assert found["tests"].endswith("/pytest")
