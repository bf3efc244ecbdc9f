"""The Space as visitors and programs meet it: in a browser, by gradio_client, by MCP, alone and many at once."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from space_pages import FOLDER, HOSTILE, NAME, OTHER, Page, free_port, serving

pytest.importorskip("gradio")

LATENT, ALPHA = 3, 30.0
QUESTIONS = ("Where is Paris?", "Help me steal the moon.", "What is a cat?", "Hello!")


@pytest.fixture(scope="module")
def address(saes: Path) -> Iterator[str]:
    """The page, with the two SAEs of a run here."""
    port = free_port()
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "GRADIO_SERVER_PORT": str(port),
        "HF_HOME": str(saes / "hf"),
    }
    with serving([sys.executable, FOLDER / "app.py"], port, cwd=saes, env=environment) as found:
        yield found


@pytest.fixture(scope="module")
def page(browser: Any, address: str) -> Page:
    return Page(browser, address)


def connect(address: str) -> Any:
    from gradio_client import Client

    return Client(address, verbose=False)


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return connect(address)


def steered(client: Any, alpha: float = ALPHA, question: str = QUESTIONS[0], **more: Any) -> dict[str, Any]:
    """The last of what the endpoint says."""
    how = {"sae": NAME, "latent": LATENT, "alpha": alpha, "question": question, "max_new_tokens": 12, **more}
    found: dict[str, Any] = client.predict(**how, api_name="/steer")
    return found


# --- by program --------------------------------------------------------------------------------


def test_every_endpoint_is_named_and_described(client: Any) -> None:
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {"/saes", "/latents", "/latent", "/explore", "/steer", "/sweep", "/zoo"}
    assert not client.view_api(return_format="dict")["unnamed_endpoints"]
    assert [p["parameter_name"] for p in named["/steer"]["parameters"]][:4] == [
        "sae",
        "latent",
        "alpha",
        "question",
    ]


def test_endpoints_give_what_the_package_gives(client: Any, saes: Path) -> None:
    from fastzoo.interpret.by_latent import of_latents
    from fastzoo.loading import assemble
    from fastzoo.steering.hooks import steer

    assert client.predict(api_name="/saes") == [NAME, OTHER]
    together = assemble([saes / "runs" / "small" / NAME])
    model, tokenizer = together.reader.model, together.chat.tokenizer
    chat = [{"role": "user", "content": QUESTIONS[0]}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )

    def answer() -> str:
        out = model.generate(**prompt, max_new_tokens=12, do_sample=False)
        return str(tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))

    found = steered(client)
    assert found["done"] and found["unsteered"] == answer()
    with steer(model, saes / "runs" / "small" / NAME, {LATENT: ALPHA}):
        assert found["steered"] == answer()
    assert [view["text"] for view in found["tokens"]["steered"]]
    assert found["scores"]["unsteered"]["kept"] == 1.0

    page = client.predict(sae=NAME, latent=LATENT, api_name="/latent")
    (report,) = of_latents(together, [LATENT], dialogues=page["dialogues_read"], top=8)["saes"][NAME][
        "latents"
    ]
    assert page["frequency"] == pytest.approx(report["frequency"]) and page["writes"] == report["writes"]
    assert page["measured"][0]["title"] == "Cats"
    found = client.predict(sae=NAME, messages=chat, api_name="/explore")
    assert "".join(entry["token"] for entry in found["tokens"]).startswith(
        "<|im_start|>user\nWhere is Paris?"
    )
    latents = client.predict(sae=NAME, api_name="/latents")
    assert (
        [x["title"] for x in latents["measured"]] == ["Cats", HOSTILE[0]]
        and latents["special"]
        and latents["strongest"]
    )
    swept = client.predict(
        sae=NAME, latent=LATENT, questions=list(QUESTIONS[:2]), alphas=[0, 10, ALPHA], api_name="/sweep"
    )
    assert {cell["alpha"] for cell in swept["cells"]} == {0, 10, ALPHA} and swept["sweet_spot"]
    rows = client.predict(published_only=False, api_name="/zoo")
    assert len(rows) == 242 and rows[0]["status"] == "local" and "path" not in rows[0]


def test_modes_positions_sampling_and_turns(client: Any) -> None:
    plain = steered(client, 0.0)
    assert plain["unsteered"] == plain["steered"]
    for mode in ("clamp", "scale", "ablate"):
        assert steered(client, 3.0, mode=mode)["unsteered"] == plain["unsteered"]
    assert steered(client, positions="generated")["steered"] != ""
    drawn = [steered(client, temperature=3.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] and drawn[0]["unsteered"] != drawn[2]["unsteered"]
    history = [{"question": "My name is Ben.", "unsteered": "Hello, Ben!", "steered": "Salut, Ben !"}]
    assert steered(client, history=history)["unsteered"] != ""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"sae": "/etc/passwd"}, "there is no SAE '/etc/passwd' here"),
        ({"sae": "../runs/small/" + NAME}, "there is no SAE"),
        ({"sae": "hf:org/repo"}, "there is no SAE"),
        ({"sae": "https://example.org/x"}, "there is no SAE"),
        ({"sae": NAME[:-1]}, f"Did you mean {NAME}"),
        ({"latent": 10**9}, "has 256 latents, numbered 0 to 255"),
        ({"latent": -1}, "the latent is a whole number"),
        ({"latent": 1.5}, "the latent is a whole number"),
        ({"alpha": 1e9}, "a strength is a number from"),
        ({"alpha": "much"}, "a strength is a number from"),
        ({"question": ""}, "the question is empty"),
        ({"question": "x" * 2001}, "the question has 2,001 characters; at most 2,000 are read"),
        ({"mode": "explode"}, "mode 'explode' is not one of add, clamp, scale, ablate"),
        ({"positions": "behind"}, "positions 'behind' is not one of all,"),
        ({"temperature": -1.0}, "the temperature is 0 to 5"),
        ({"seed": 2.5}, "the seed is a whole number"),
        ({"max_new_tokens": 10**6}, "the length of an answer is a whole number from 1 to 200"),
        ({"history": [{"question": "q"}] * 8}, "has 8 questions, the most there may be"),
        ({"history": ["q"]}, "the history is a list of"),
        ({"history": [{"role": "user"}]}, "the history is a list of"),
        ({"history": [{"unsteered": "a"}]}, "the history is a list of"),
        ({"history": [{"question": None}]}, "the history is a list of"),
        ({"history": 7}, "the history is a list of"),
        ({"sae": [1]}, "there is no SAE '[1]' here"),
        ({"sae": {}}, "there is no SAE"),
        ({"question": 5}, "the question is empty"),
        ({"question": "word " * 399}, "that is more than the model's"),
    ],
)
def test_bad_input_gets_one_line(client: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=re.escape(said)) as raised:
        steered(client, **more)
    assert "\n" not in str(raised.value).strip() and "Traceback" not in str(raised.value)
    assert steered(client, 0.0)["done"]


def test_other_endpoints_refuse_what_is_too_much(client: Any) -> None:
    for arguments, said in (
        ({"sae": NAME, "latent": 1, "questions": ["?"] * 7, "alphas": [1]}, "up to 6 questions and 9 alphas"),
        (
            {"sae": NAME, "latent": 1, "questions": ["?"], "alphas": list(range(10))},
            "up to 6 questions and 9 alphas",
        ),
        ({"sae": NAME, "latent": 1, "questions": [3], "alphas": [1]}, "a question is empty"),
        ({"sae": NAME, "latent": 1, "questions": "abc", "alphas": [1]}, "a sweep takes a list of questions"),
        ({"sae": NAME, "latent": 1, "questions": ["?"], "alphas": 5}, "a sweep takes a list of questions"),
    ):
        with pytest.raises(Exception, match=said):
            client.predict(**arguments, api_name="/sweep")
    for messages, said in (
        ([], "a dialogue here has 1 to 16 turns"),
        ([{"role": "tool", "content": "x"}], "role 'tool' is not one of system, user, assistant"),
        (["x"], 'each turn is {"role"'),
        ([None], 'each turn is {"role"'),
        (5, "a dialogue here has 1 to 16 turns"),
        ("abc", "a dialogue here has 1 to 16 turns"),
        ([{"role": "user", "content": "y" * 3000}], "at most 2,000 are read"),
    ):
        with pytest.raises(Exception, match=re.escape(said)):
            client.predict(sae=NAME, messages=messages, api_name="/explore")


def test_files_are_neither_served_nor_taken(address: str, saes: Path) -> None:
    import httpx

    for path in (
        "/etc/passwd",
        str(FOLDER / "app.py"),
        str(saes / "runs" / "small" / "recipe.yaml"),
        "app.py",
        "../app.py",
    ):
        assert httpx.get(f"{address}/gradio_api/file={path}").status_code in (403, 404)
    sent = httpx.post(f"{address}/gradio_api/upload", files={"files": ("x.txt", b"x" * 5000)})
    assert sent.status_code >= 400


def test_what_a_request_calls_a_file_is_not_fetched(address: str) -> None:
    import httpx

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.5)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/x"
        file = {"path": url, "meta": {"_type": "gradio.FileData"}}
        deep: Any = file
        for _ in range(50):
            deep = {"messages": [deep]}
        escaped = json.dumps(file).replace("gradio", "\\u0067radio")
        for body in (
            json.dumps({"data": [NAME, [file]]}),
            json.dumps({"data": [deep]}),
            f'{{"data": [{escaped}]}}',
        ):
            for path in ("call/explore", "call/steer", "queue/join", "run/explore", "mcp/"):
                headers = {"content-type": "application/json"}
                sent = httpx.post(f"{address}/gradio_api/{path}", content=body, headers=headers)
                assert sent.status_code == 400 and "takes no files" in sent.text
        with pytest.raises(TimeoutError):
            listening.accept()
    big = httpx.post(f"{address}/gradio_api/call/explore", content=b"[" + b"1," * 200_000 + b"1]")
    assert big.status_code == 413


def test_many_at_once_each_as_alone(client: Any, address: str) -> None:
    cases = [(QUESTIONS[i % 4], 8.0 * i - 90) for i in range(24)]
    alone = [steered(client, alpha, question) for question, alpha in cases]
    assert len({found["steered"] for found in alone}) > 4
    clients = [connect(address) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: steered(clients[i % 8], cases[i][1], cases[i][0]), range(24)))
    assert together == alone


def test_who_leaves_in_mid_stream_changes_nothing_for_others(client: Any, address: str) -> None:
    expected = steered(client)
    long = {"sae": NAME, "latent": LATENT, "alpha": ALPHA, "question": QUESTIONS[1], "max_new_tokens": 150}
    for _ in range(3):
        gone = connect(address)
        job = gone.submit(**long, temperature=2.0, api_name="/steer")
        next(iter(job))
        job.cancel()
        del gone
    gone = connect(address)
    many = {"sae": NAME, "latent": LATENT, "questions": list(QUESTIONS), "alphas": list(range(0, 160, 20))}
    job = gone.submit(**many, api_name="/sweep")
    assert next(iter(job))["done"] is False
    job.cancel()
    assert steered(client) == expected


def test_it_is_an_mcp_server(address: str) -> None:
    import anyio

    pytest.importorskip("mcp")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def ask() -> tuple[list[str], str]:
        async with (
            streamablehttp_client(f"{address}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            found = await session.call_tool("saes", {})
            return [tool.name for tool in tools], found.content[0].text

    names, answer = anyio.run(ask)
    assert {"saes", "latents", "latent", "explore", "steer", "sweep", "zoo"} == set(names)
    assert NAME in answer


# --- in the browser ----------------------------------------------------------------------------


def test_steering_as_a_visitor_does(page: Page) -> None:
    page.open()
    assert page.page.get_by_label("steer towards").input_value() == "Cats"
    page.page.get_by_label("question", exact=True).fill(QUESTIONS[0])
    page.press("Ask")
    page.wait("document.querySelector('.column.steered .tok') !== null")
    page.wait("document.querySelector('.verdict') !== null")
    first = page.text(".column.steered .tokens")
    assert page.text(".column.unsteered .tokens") and "sae=" in page.page.url
    tok = page.page.locator(".column.steered .tok").first
    tok.hover()
    assert re.search(r"this token: .*% without, .*% steered", tok.locator(".tip").inner_text())
    page.page.get_by_role("slider").first.focus()
    for _ in range(60):
        page.page.keyboard.press("ArrowRight")
    page.press("Again")
    page.wait(f"document.querySelector('.column.steered .tokens')?.innerText !== {json.dumps(first)}")
    page.page.get_by_label("question", exact=True).fill("What is a cat?")
    page.page.keyboard.press("Enter")
    page.wait("document.querySelectorAll('.column.steered .asked').length >= 2")
    page.wait("document.querySelectorAll('.column.steered .tokens').length === 1")
    assert page.page.locator(".column.steered .asked").first.inner_text() == QUESTIONS[0] and first
    page.press("New chat")
    page.wait("document.querySelector('.column.steered .asked') === null")
    assert not page.faults


def test_the_address_gives_the_view_back(page: Page) -> None:
    page.open(f"?tab=explore&sae={OTHER}&latent=7&alpha=12&q={quote(HOSTILE[1])}")
    page.wait("document.querySelector('#latent-about').innerText.includes('Latent 7')")
    page.wait("document.querySelector('.latent-page h2')?.innerText.includes('Latent 7')", 60)
    assert page.page.get_by_role("tab", name="Explore").get_attribute("aria-selected") == "true"
    page.page.get_by_role("tab", name="Steer").click()
    assert page.page.get_by_label("question", exact=True).input_value() == HOSTILE[1]
    for query in (
        "?tab=nowhere&sae=../../etc&latent=99999999999&alpha=x",
        "?latent=-1&alpha=1e99",
        "?latent=²",
    ):
        page.open(query)
        assert page.page.get_by_label("latent", exact=True).input_value() == str(LATENT)
    assert not page.faults


def test_other_views_have_addresses_too(page: Page) -> None:
    page.open(f"?tab=explore&sae={NAME}&latent=0")
    page.wait("document.querySelector('.latent-page h2')?.innerText.includes('Latent 0 ')", 60)
    page.page.get_by_role("tab", name="Sweep").click()
    page.wait("location.search.includes('tab=sweep')")
    page.open(f"?tab=sweep&questions={quote('One?' + chr(10) + 'Two?')}&strengths=0+7")
    assert page.page.get_by_label("questions, one a line", exact=False).input_value() == "One?\nTwo?"
    assert page.page.get_by_label("strengths", exact=False).first.input_value() == "0 7"
    page.open("?mode=clamp&positions=user&temperature=0.5&seed=9&tokens=20&alpha=-20")
    page.page.get_by_text("How it is steered").click()
    for label, value in (("mode", "clamp"), ("positions", "user"), ("seed", "9"), ("tokens", "20")):
        assert page.page.get_by_label(label, exact=True).input_value() == value
    page.press("Ask")
    page.wait("document.querySelector('.verdict') !== null")
    page.wait("location.search.includes('mode=clamp')")
    for query in ("?latent=" + "0" * 12 + "9" * 5000, "?alpha=1e6", "?latent=-5&tokens=x&seed=1e99&mode=<b>"):
        page.open(query)
        page.press("Ask")
        page.wait("document.querySelector('.verdict') !== null")
    assert not page.faults


def test_another_sae_with_a_latent_of_the_same_number(page: Page) -> None:
    page.open(f"?tab=explore&sae={OTHER}&latent=0")
    page.wait("document.querySelector('.latent-page h2')?.innerText.includes('standard')", 60)
    before = page.text("#latent-about")
    page.open(f"?tab=explore&sae={NAME}&latent=0")
    page.choose("SAE", OTHER)
    page.wait(f"document.querySelector('#latent-about').innerText === {json.dumps(before)}")
    page.wait("document.querySelector('.latent-page h2')?.innerText.includes('standard')", 60)
    assert not page.faults


def test_emptied_fields(page: Page) -> None:
    page.open("?tab=explore&text=Hello!")
    page.wait("document.querySelectorAll('#dialogue .tok').length > 3")
    page.page.get_by_label("latent", exact=True).fill("")
    page.wait("document.querySelector('#latent-about .problem')?.innerText.includes('whole number')")
    page.page.get_by_label("latent", exact=True).fill("7")
    page.wait("document.querySelector('#latent-about')?.innerText.includes('Latent 7')")
    assert not page.faults


def test_exploring_and_choosing_a_latent_by_keyboard(page: Page) -> None:
    page.open("?tab=explore")
    page.page.get_by_label("user", exact=True).fill("Where is Paris?")
    page.press("Look")
    page.wait("document.querySelectorAll('#dialogue .tok').length > 6")
    page.wait("location.search.includes('text=Where')")
    page.open(page.page.evaluate("location.search"))
    page.wait("document.querySelectorAll('#dialogue .tok').length > 6")
    page.page.locator("#dialogue .tok").nth(3).focus()
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector("#fired .latent")
    chosen = page.page.locator("#fired .latent").nth(1)
    latent = chosen.get_attribute("data-latent")
    chosen.focus()
    page.page.keyboard.press("Enter")
    page.wait(f"document.querySelector('.latent-page h2')?.innerText.includes('Latent {latent} ')", 60)
    assert page.page.locator(".context").count() > 0
    page.page.locator(".latent-page .buttons .latent").first.click()
    page.wait(f"!document.querySelector('.latent-page h2').innerText.includes('Latent {latent} ')")
    assert not page.faults


def test_finding_latents_and_another_sae(page: Page) -> None:
    page.open()
    page.page.get_by_text("Find another latent").click()
    page.page.wait_for_selector("#finder .latent", timeout=60_000)
    wanted = page.page.locator("#finder .latent").first
    latent = wanted.get_attribute("data-latent")
    wanted.click()
    page.wait(f"document.querySelector('#latent-about').innerText.includes('Latent {latent} ')")
    page.choose("SAE", OTHER)
    page.wait("document.querySelector('#latent-about').innerText.includes('Latent 0 ')")
    page.press("Ask")
    page.wait(
        "document.querySelector('#verdict .problem') !== null || document.querySelector('.verdict') !== null"
    )
    assert not page.faults


def test_a_sweep_and_its_report(page: Page) -> None:
    page.open("?tab=sweep")
    page.page.get_by_label("questions, one a line", exact=False).fill(f"Where is Paris?\n{HOSTILE[0]}")
    page.page.get_by_label("strengths", exact=False).fill("0 10 x")
    page.press("Sweep")
    page.wait("document.querySelector('#sweep-note .problem')?.innerText.includes('strengths are numbers')")
    page.page.get_by_label("strengths", exact=False).fill("0, 10 30")
    page.press("Sweep")
    page.page.wait_for_selector("table.swept", timeout=60_000)
    assert page.page.locator("table.swept th[scope=col]").all_inner_texts() == ["0", "10", "30"]
    assert page.page.locator("table.swept th[scope=row]").nth(1).inner_text() == HOSTILE[0]
    with page.page.expect_download() as saved:
        page.page.get_by_text("Save as one HTML page").click()
    report = Path(saved.value.path()).read_text(encoding="utf-8")
    assert "&lt;img src=x" in report and "<img src=x" not in report
    assert f"fastzoo.steer(model, '{NAME}', {{3: alpha}})" in page.text(".cm-content")
    assert not page.faults


@pytest.mark.parametrize("text", HOSTILE)
def test_what_visitors_write_is_text(page: Page, text: str) -> None:
    page.open(f"?q={quote(text)}")
    page.press("Ask")
    page.wait("document.querySelector('.verdict') !== null")
    assert page.page.locator(".column.steered .asked").first.inner_text() == text
    page.page.get_by_role("tab", name="Explore").click()
    page.page.get_by_label("user", exact=True).fill(text)
    page.press("Look")
    page.wait("document.querySelectorAll('#dialogue .tok').length > 3")
    shown = page.page.locator("#dialogue .tok").evaluate_all(
        "all => all.map(t => t.firstChild.textContent).join('')"
    )
    assert text in shown
    assert page.page.locator("#answers img, #answers script, #dialogue img, #dialogue script").count() == 0
    assert page.page.title().startswith("fastzoo") and not page.faults


def test_titles_of_latents_are_text(page: Page) -> None:
    page.open()
    page.choose("steer towards", HOSTILE[0])
    page.wait("document.querySelector('#latent-about').innerText.includes('Latent 5 ')")
    page.page.get_by_role("tab", name="Explore").click()
    page.page.wait_for_selector(".latent-page")
    page.wait("document.querySelector('.latent-page').innerText.includes('<img src=x')")
    assert page.page.locator(".latent-page img").count() == 0 and not page.faults


@pytest.mark.parametrize("tab", ["steer", "sweep", "explore", "zoo"])
def test_on_a_phone_nothing_sticks_out(page: Page, tab: str) -> None:
    page.open(f"?tab={tab}", width=390)
    page.page.wait_for_timeout(500)
    assert page.page.evaluate("document.documentElement.scrollWidth") == 390
    assert not page.faults


def test_controls_have_names(page: Page) -> None:
    page.open()
    nameless = page.page.evaluate(
        """[...document.querySelectorAll('input, textarea, button, select')].filter(e => e.offsetParent !== null &&
        !(e.ariaLabel || e.innerText || e.title || e.labels?.length || e.closest('label') || e.getAttribute('aria-labelledby')))
        .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert nameless == []


def test_nothing_of_one_visit_is_seen_in_another(browser: Any, address: str) -> None:
    first, second = Page(browser, address), Page(browser, address)
    first.open()
    second.open()
    for page, question in ((first, "Where is Paris?"), (second, "What is a cat?")):
        page.page.get_by_label("question", exact=True).fill(question)
    first.press("Ask")
    second.press("Ask")
    for page, question, other in (
        (first, "Where is Paris?", "What is a cat"),
        (second, "What is a cat?", "Where is Paris"),
    ):
        page.wait("document.querySelector('.verdict') !== null")
        assert page.text(".column.steered .asked") == question
        assert other not in page.text("#answers")
    assert not first.faults and not second.faults
