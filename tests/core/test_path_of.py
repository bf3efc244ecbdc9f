"""A user's text becomes a path, or is refused in one line: in any locale, with and without a home folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import recipe

from fastzoo import load_sae, pull
from fastzoo.config.recipe import ModelSection, TextSection
from fastzoo.core.errors import FastzooError, InputError
from fastzoo.core.paths import path_of
from fastzoo.data.rows import open_rows
from fastzoo.hub.find import find_local
from fastzoo.lm.load import find_model
from fastzoo.publish.candidates import candidates
from fastzoo.publish.space import find_space

ROOT = Path(__file__).parents[2]
IMPOSSIBLE = ["~\ud800", "\ud800", "a/\udfff/b", "~\0", "a\0b", "~nobody\0/x"]
LONG = ["x" * 300, "~" + "x" * 5000, "./" + "y/" * 3000]


@pytest.mark.parametrize("text", [*IMPOSSIBLE, ""])
def test_what_no_path_can_be(text: str) -> None:
    with pytest.raises(InputError, match=r"^an option: '.*' cannot be a path: it (holds|is empty)") as caught:
        path_of(text, "an option")
    assert str(caught.value).isprintable()


def test_what_a_path_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of mine")
    for text in ("a", "\udcff", "x" * 300, "~nobody-of-this-name/x", "ä\n"):
        assert path_of(text, "") == path_of(Path(text), "") == Path(text)
    assert path_of("~/x", "") == Path("/home/of mine/x")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("text", IMPOSSIBLE + LONG)
def test_whoever_takes_one_says_so_in_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    model, rows = ModelSection.model_construct(name=text, revision=None), {"source": text, "revision": None}
    for take in (
        lambda: find_local(text),
        lambda: load_sae(text),
        lambda: candidates([text]),
        lambda: pull("tiny-chat-L1-2x-topk", local_dir=text),
        lambda: find_space(f"{text}/x"),
        lambda: find_model(model),
        lambda: open_rows(TextSection.model_construct(**rows), 0),
        lambda: recipe(model={"name": text}),
        lambda: recipe(evaluation={"source": text}),
        lambda: recipe(output={"folder": text}),
    ):
        try:
            take()
        except FastzooError as error:
            assert str(error).isprintable()
        else:
            assert text in LONG  # a recipe whose folder nobody has looked at yet


EACH = """
import json, sys
from pathlib import Path
from fastzoo.core.errors import FastzooError
from fastzoo.hub.find import find_local
for text in json.loads(sys.argv[1]):
    try:
        assert find_local(text) in (None, Path.home())
    except FastzooError as error:
        assert str(error).isprintable()
print("done")
"""


@pytest.mark.parametrize(
    "env",
    [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONUTF8": "1"}],
)
def test_locales_without_utf8_and_no_home(tmp_path: Path, env: dict[str, str]) -> None:
    texts = [*IMPOSSIBLE, *LONG, "~", "~/ü", "é", "~é/x", "tiny-chat-L1-2x-topk", "hf:ü/\ud800", ""]
    here = {key: value for key, value in os.environ.items() if key not in ("HOME", "LANG", "LC_CTYPE")}
    done = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps(texts)],
        cwd=tmp_path,
        env=here | env | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr


def test_a_text_of_other_letters_in_a_locale_without_them(tmp_path: Path) -> None:
    code = "from fastzoo.core.paths import path_of; print(path_of('~\\xe9', 'it'))"
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | env, capture_output=True, text=True
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fastzoo.core.errors.InputError: it: ") and last.endswith("in this locale")
