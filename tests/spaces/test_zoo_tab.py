"""The Space's tab of the zoo: its folder, what it says of the rows, and the tab in a browser."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import pytest
import space_pages
import yaml
from hub_server import LoopbackHub, hang_up
from space_pages import FOLDER, Page, free_port, serving

from fastzoo.core.errors import NotFoundError
from fastzoo.core.version import __version__
from fastzoo.publish.space import find_space
from fastzoo.saes.paper import paper_figures

ROOT = Path(__file__).parents[2]
HOSTILE = (*space_pages.HOSTILE, "x" * 300)


@pytest.fixture(scope="module")
def zoo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("space_zoo_results", FOLDER / "results.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def row(name: str, **values: Any) -> dict[str, Any]:
    return {"name": name, "status": "paper", **values}


def published(number: int, name: str, **values: Any) -> dict[str, Any]:
    ours = {"l0": 20 + number, "mse": 0.5, "log2_mse": -1, "fvu": 0.1 + number / 1000, "dead_latents": number}
    figures = {**ours, **{f"{key}_without_sinks": value for key, value in ours.items()}, "fvu": 0.003}
    identity = {"status": "published", "repo_id": f"org/{name}", "revision": "a" * 40}
    return {**row(name), **identity, **figures, **values}


def older(number: int, name: str, **values: Any) -> dict[str, Any]:
    """As a version published it that did not tell attention sinks apart."""
    made = published(number, name, **values)
    return {key: value for key, value in made.items() if not key.endswith("_without_sinks")}


def grid() -> list[dict[str, Any]]:
    """The paper's 240 rows, of which those of one model are published."""
    rows = []
    for number, (name, paper) in enumerate(paper_figures().items()):
        made = published(number, str(name)) if name.model == "qwen2.5-7b" else row(str(name))
        made |= {"paper_log2_mse": paper.log2_mse, "paper_log2_mse_special": paper.log2_mse_special}
        rows.append({**made, **vars(name)})
    return rows


def hostile() -> list[dict[str, Any]]:
    texts = ("repo_id", "model", "architecture", "method", "base_model", "revision")
    rows = [published(i, text, **dict.fromkeys(texts, text)) for i, text in enumerate(HOSTILE)]
    return [*rows, row("nothing-known"), row("numbers", l0="NaN", mse="inf", fvu="<b>", layer="x")]


def as_csv(rows: list[dict[str, Any]], zoo: ModuleType) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, sorted(zoo.COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


# --- the folder --------------------------------------------------------------------------------


def test_folder_is_a_space_with_the_tested_versions() -> None:
    header = re.match(r"---\n(.*?)\n---\n", (FOLDER / "README.md").read_text(), re.DOTALL)
    assert header
    card = yaml.safe_load(header[1])
    assert card["sdk"] == "gradio" and card["license"] == "apache-2.0"
    assert card["title"] and card["emoji"] and len(card["short_description"]) <= 60
    assert (FOLDER / card["app_file"]).is_file()

    pins = set((ROOT / "constraints.txt").read_text().splitlines())
    tested = {pin.split(";")[0] for pin in pins}
    wanted = (FOLDER / "requirements.txt").read_text().split()
    assert set(wanted) - {f"fastzoo=={__version__}"} <= tested and len(wanted) == 5
    assert f"gradio=={card['sdk_version']}" in wanted
    for path in FOLDER.glob("*.py"):
        compile(path.read_text(), str(path), "exec")


def test_an_unknown_space() -> None:
    with pytest.raises(NotFoundError, match=r"no Space 'stering'\. Did you mean steering\?"):
        find_space("stering")


def test_it_reads_the_columns_of_the_dataset_and_loads_no_torch() -> None:
    dataset = pytest.importorskip("fastzoo.publish.results_dataset")
    read = "import results, sys; print('torch' in sys.modules, *results.COLUMNS)"
    done = subprocess.run([sys.executable, "-c", read], cwd=FOLDER, capture_output=True, text=True)
    assert done.stdout.split() == ["False", *(column.name for column in dataset.COLUMNS)]


# --- the rows ----------------------------------------------------------------------------------


def test_reading_and_choosing_rows(zoo: ModuleType) -> None:
    rows = zoo.read_rows(as_csv(grid(), zoo).decode())
    assert len(rows) == 240
    assert [zoo.published(r) for r in rows] == [True] * 30 + [False] * 210
    assert zoo.choices(rows, "method") == ["fast", "bt-f", "bt-p"]
    assert zoo.choices(rows, "expansion") == ["8", "16"]
    assert len(zoo.choices(rows, "model")) == 7

    some = zoo.select(rows, {"model": "llama-3.2-1b", "expansion": "16", "method": ""}, False)
    assert len(some) == 18 and {r["expansion"] for r in some} == {16.0}
    assert zoo.select(some, {}, True) == []

    up, down = (zoo.ordered(rows, "l0_without_sinks", descending) for descending in (False, True))
    assert [r["l0"] for r in up[:30]] == sorted(r["l0"] for r in rows[:30])
    assert up[29] == down[0] and up[30:] == down[30:] == rows[30:]  # none has an L0 there
    with pytest.raises(ValueError, match="no column 'name'"):
        zoo.read_rows("a,b\n1,2\n")


def test_headings_keep_the_papers_figures_and_logarithms_apart(zoo: ModuleType) -> None:
    for column, heading in zoo.HEADINGS.items():
        assert heading.startswith("paper: ") == column.startswith("paper_")
        assert ("log2 MSE" in heading) == ("log2" in column)
        assert ("special" in heading) == ("special" in column)
    rows = zoo.read_rows(as_csv(grid(), zoo).decode())
    assert zoo.shown_columns(rows[30:]) == ["name", "paper_log2_mse", "paper_log2_mse_special"]
    columns = zoo.shown_columns(rows)
    assert {"fvu", "fvu_without_sinks"} < set(columns)
    assert "mse_special_without_sinks" not in columns
    assert (zoo.HEADINGS["fvu_without_sinks"], zoo.HEADINGS["fvu"]) == ("FVU", "FVU with sinks")


def test_rows_of_older_versions_are_marked_where_others_leave_sinks_out(zoo: ModuleType) -> None:
    made = [published(0, "a-L1-8x-topk"), older(1, "b-L1-8x-topk")]
    new, old = zoo.read_rows(as_csv(made, zoo).decode())
    assert zoo.text_of(new, "fvu_without_sinks") == "0.1" and zoo.text_of(new, "fvu") == "0.003"
    assert zoo.text_of(old, "fvu_without_sinks") == "0.003*" and zoo.text_of(old, "fvu") == "0.003"
    assert zoo.legend([new]) == "" and zoo.legend([new, old]).startswith("* with attention sinks")
    assert [zoo.figure_of(r, "l0_without_sinks") for r in (new, old)] == [20, 21]
    assert [r["name"] for r in zoo.ordered([new, old], "fvu_without_sinks", False)] == [
        old["name"],
        new["name"],
    ]
    assert len(zoo.plot([new, old], "fvu").points) == 2
    assert "<th>without sinks</th>" in zoo.details(new, "") and "<th>all tokens</th>" in zoo.details(old, "")
    assert "without sinks" not in zoo.details(old, "")


def test_plot_is_of_ours_or_of_the_papers_never_of_both(zoo: ModuleType) -> None:
    rows = zoo.read_rows(as_csv(grid(), zoo).decode())
    ours = zoo.plot(rows, "log2_mse")
    assert len(ours.points) == 30 and (ours.x, ours.y) == ("L0", "log2 MSE")
    papers = zoo.plot(rows[30:], "log2_mse")
    assert len(papers.points) == 210 and not papers.measured
    assert (papers.x, papers.y) == ("paper: log2 MSE", "paper: log2 MSE special")
    low, high = zoo.limits([point[2] for point in ours.points])
    assert low < min(point[2] for point in ours.points) < max(p[2] for p in ours.points) < high
    assert zoo.limits([0.0]) == [-1, 1]


def test_figures_with_four_digits(zoo: ModuleType) -> None:
    numbers = (None, 0.0, 0.00012346, -5.50594, 1234.6, 28672.0, 3e12)
    assert [*map(zoo.show, numbers)] == [*("", "0", "0.0001235", "-5.506", "1,235", "28,672", "3.000e+12")]


def test_snippets(zoo: ModuleType) -> None:
    def of(**values: Any) -> tuple[str, str]:
        text = as_csv([published(0, "m-L3-8x-jumprelu", layer=3, **values)], zoo).decode()
        return zoo.snippets(zoo.read_rows(text)[0])

    pull, python = of()
    assert pull == "fastzoo pull m-L3-8x-jumprelu --namespace org"
    assert 'fastzoo.load_sae("hf:org/m-L3-8x-jumprelu")' in python
    assert 'SAE.from_pretrained("org/m-L3-8x-jumprelu", "blocks.3.hook_resid_post")' in python
    pull, python = of(repo_id="fastzoo/m-L3-8x-jumprelu")
    assert pull == "fastzoo pull m-L3-8x-jumprelu"
    assert 'fastzoo.load_sae("m-L3-8x-jumprelu")' in python
    assert of(repo_id="org/other")[0] == "fastzoo pull hf:org/other"
    assert of(status="paper") == of(repo_id="org/a b;c") == ("", "")


def test_hostile_rows_are_text(zoo: ModuleType) -> None:
    rows = zoo.read_rows(as_csv(hostile(), zoo).decode())
    assert len(rows) == len(HOSTILE) + 2
    ours = zoo.details(rows[0], "https://huggingface.co")
    allowed = set(re.findall(r"<[^>]*>", ours))
    for each in rows:
        shown = zoo.details(each, "https://huggingface.co")
        assert set(re.findall(r"<[^>]*>", shown)) <= allowed  # no tag of theirs, no attribute
        assert not re.search(r"[`${}]", shown) and "<a " not in shown
        assert zoo.snippets(each) == ("", "")
    assert rows[-1]["l0"] is rows[-1]["mse"] is rows[-1]["fvu"] is rows[-1]["layer"] is None
    assert {point[1] for point in zoo.plot(rows, "fvu").points} == {"other"}


# --- the Hub -----------------------------------------------------------------------------------

READ = """
import json, results
source = results.Results(retry=0)
said = []
def look():
    rows, problem = source.get()
    said.append([len(rows), problem])
    print(json.dumps(said[-1]), flush=True)
    input()
for _ in range(4): look()
source._due = 0
look()
"""


def test_reading_from_the_hub_at_most_every_ten_minutes(zoo: ModuleType, tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        environment = hub.env(tmp_path, FASTZOO_NAMESPACE="nobody", SPACE_AUTHOR_NAME="org")
        process = subprocess.Popen(
            [sys.executable, "-c", READ],
            cwd=FOLDER,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin and process.stdout

        def look() -> Any:
            return json.loads(process.stdout.readline())

        def go_on() -> None:
            process.stdin.write("\n")
            process.stdin.flush()

        cannot = "org/fastzoo-results cannot be read from the Hub: "
        # The paper's grid needs no Hub.
        assert look() == [240, cannot + "there is no such public dataset."]
        hub.add("dataset", "org/fastzoo-results", {"results.csv": b"nothing\n1\n"})
        go_on()
        assert look() == [240, cannot + "results.csv has no column 'name'."]
        hub.add("dataset", "org/fastzoo-results", {"results.csv": as_csv(grid(), zoo)})
        go_on()
        assert look() == [240, ""]
        before = len(hub.requests)
        hub.add("dataset", "org/fastzoo-results", {"README.md": b""})
        go_on()
        assert look() == [240, ""] and len(hub.requests) == before
        go_on()
        assert look() == [240, cannot + "it has no results.csv."]
        go_on()
        assert process.wait(30) == 0
        assert not hub.foreign
        assert not [r for r in hub.requests if r.token]


# --- the page ----------------------------------------------------------------------------------


class ZooPage(Page):
    """The zoo's tab by itself."""

    def open(self, query: str = "", width: int = 1280, ready: str = "#note p") -> None:
        super().open(query, width, ready)

    def note(self, text: str) -> None:
        self.wait(f"document.querySelector('#note').innerText.includes({json.dumps(text)})")

    def about(self, text: str) -> None:
        self.wait(f"document.querySelector('#about').innerText.includes({json.dumps(text)})")

    def column(self, number: int) -> list[str]:
        cells = f'#table .body-cell[data-col="{number}"]'
        self.page.wait_for_selector(cells)
        return self.page.locator(cells).all_inner_texts()


@pytest.fixture(scope="module")
def space(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, ZooPage]]:
    """The loopback Hub and the page; the Space asks the Hub whenever it is looked at."""
    port = free_port()
    run = (
        "import app, results, zoo\nimport gradio as gr\n"
        "with gr.Blocks(title='fastzoo: SAEs of instruct models', analytics_enabled=False) as page:\n"
        "    zoo.build(page, results.Results(max_age=0, retry=0))\n"
        f"page.launch(server_name='127.0.0.1', server_port={port}, **app.LOOKS)"
    )
    with LoopbackHub() as hub:
        home = tmp_path_factory.mktemp("space")
        path = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
        environment = hub.env(home, SPACE_AUTHOR_NAME="org", PYTHONPATH=path)
        with serving([sys.executable, "-c", run], port, cwd=FOLDER, env=environment) as address:
            yield hub, ZooPage(browser, address)
        assert not hub.foreign


def fill(hub: Any, rows: list[dict[str, Any]], zoo: ModuleType) -> None:
    hub.add("dataset", "org/fastzoo-results", {"results.csv": as_csv(rows, zoo)})


def test_page_filters_sorts_chooses_and_remembers(space: tuple[Any, ZooPage], zoo: ModuleType) -> None:
    hub, page = space
    page.open()
    page.note("org/fastzoo-results cannot be read from the Hub: there is no such public dataset.")
    page.note("240 of 240 SAEs, 0 published.")

    fill(hub, grid(), zoo)
    page.open()
    page.note("240 of 240 SAEs, 30 published.")
    page.choose("model", "qwen2.5-7b")
    page.note("30 of 240 SAEs, 30 published.")
    page.choose("sort by", "L0")
    page.page.get_by_label("largest first").click()
    page.wait("location.search.includes('descending=1')")
    most = max(r["l0"] for r in grid() if "l0" in r)
    page.wait(f"document.querySelector('#table .body-cell[data-col=\"1\"]').innerText === '{most}'")
    shown = [float(text) for text in page.column(1)]
    assert len(shown) > 5 and shown == sorted(shown, reverse=True)

    second = page.column(0)[1]
    page.page.locator('#table .body-cell[data-col="2"]').nth(1).click()
    page.about(second)
    address = page.page.locator("#about a").get_attribute("href")
    assert address == f"{hub.endpoint}/org/{second}"
    page.wait(f"document.body.innerText.includes('fastzoo pull {second} --namespace org')")
    page.wait("location.search.includes('zoo=')")
    query = page.page.evaluate("location.search")
    assert query == f"?tab=zoo&model=qwen2.5-7b&sort=l0_without_sinks&descending=1&zoo={second}"

    for width in (1280, 390):
        page.open(query, width)
        page.note("30 of 240 SAEs, 30 published.")
        page.about(second)
        assert page.column(0)[1] == second
        assert page.page.get_by_label("model", exact=True).first.input_value() == "qwen2.5-7b"
        page.page.wait_for_selector("svg.marks, canvas.marks")
        assert page.page.evaluate("document.documentElement.scrollWidth") == width
    assert not page.faults


def test_page_with_hostile_rows_many_rows_and_no_hub(space: tuple[Any, ZooPage], zoo: ModuleType) -> None:
    hub, page = space
    fill(hub, hostile(), zoo)
    for name in (*HOSTILE, "nothing-known", "<b>unknown</b>"):
        page.open(f"?zoo={quote(name)}&model={quote(name)}")
        page.about(name)
        assert page.page.locator("#about img, #about script, #about b, #table img").count() == 0
        assert page.page.title() == "fastzoo: SAEs of instruct models"
    page.open()
    assert page.column(0)[:3] == list(HOSTILE[:3])

    fill(hub, [{**r, "name": f"{r['name']}-{i}"} for i in range(42) for r in grid()], zoo)
    page.open()
    page.note("10,080 of 10,080 SAEs, 1,260 published.")
    page.page.get_by_label("published only").click()
    page.note("1,260 of 10,080 SAEs")

    hub.faults.append(hang_up)
    page.page.get_by_label("published only").click()
    page.note("10,080 of 10,080 SAEs")
    assert not page.faults
    hub.faults.clear()
