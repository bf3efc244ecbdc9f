"""The Space under load: seconds to the first steered token in a browser, 50 sessions at once, memory over 500 requests.

    python tests/long/space.py --folder FOLDER [--json]

FOLDER is where ``fastzoo space`` would be started: it has ``runs/`` with SAEs in it. Every tab is opened in a headless
Chromium, light, dark and at a phone's width; ``--pictures`` keeps what it looks like. The exit code is 1 where an answer
differs from that of the same call alone, or the browser complains or asks another host.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

from run import machine  # noqa: E402
from space_pages import FOLDER, Page, free_port, serving  # noqa: E402

QUESTIONS = ("Where is Paris?", "Tell me a story about a horse.", "How do I make tea?", "Who are you?")
CLICKS, CLIENTS, WARM = 5, 10, 50


def main() -> None:
    parser = argparse.ArgumentParser(description="The Space under load.")
    parser.add_argument("--folder", type=Path, required=True, help="with runs/ in it")
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of every tab")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    port = free_port()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "GRADIO_SERVER_PORT": str(port)}
    with serving(
        [sys.executable, FOLDER / "app.py"], port, cwd=options.folder.resolve(), env=environment
    ) as address:
        found: dict[str, Any] = {"machine": machine(), **in_browser(address, options.pictures)}
        found |= at_once(address, options.sessions, options.tokens)
        found |= memory(address, pid_at(port), options.requests, options.tokens)
    print(json.dumps(found, indent=1) if options.json else "\n".join(f"{k}: {v}" for k, v in found.items()))
    sys.exit(bool(found["unequal"] or found["faults"]))


def in_browser(address: str, pictures: Path | None) -> dict[str, Any]:
    """Seconds from the click to the first steered token, median of some, and what the browser complained of."""
    import shutil

    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = Page(browser, address)
        page.open()
        seconds = []
        for place in range(CLICKS):
            page.press("New chat")
            page.wait("document.querySelector('.column.steered .asked') === null")
            page.page.get_by_label("question", exact=True).fill(QUESTIONS[place % len(QUESTIONS)])
            began = time.perf_counter()
            page.press("Ask")
            shown = (
                "(document.querySelector('.column.steered .said, .column.steered .tokens')?.innerText ?? '…')"
            )
            page.wait(f"!['', '…'].includes({shown}.trim())", 120)
            seconds.append(time.perf_counter() - began)
            page.wait("document.querySelector('.verdict') !== null", 300)
        faults = list(page.faults)
        for scheme, width in (("light", 1280), ("dark", 1280), ("light", 390)):
            faults += looked_at(browser, address, scheme, width, pictures)
        browser.close()
    return {
        "first_token_seconds": round(statistics.median(seconds), 2),
        "first_token_slowest": round(max(seconds), 2),
        "faults": faults,
    }


def looked_at(browser: Any, address: str, scheme: str, width: int, pictures: Path | None) -> list[str]:
    """What the browser complains of while each tab is used once."""
    page = Page(browser, address, color_scheme=scheme)
    for tab in ("steer", "sweep", "explore", "zoo"):
        page.open(f"?tab={tab}", width)
        if tab == "steer":
            page.press("Ask")
            page.wait("document.querySelector('.verdict') !== null", 300)
        elif tab == "sweep":
            page.page.get_by_label("questions, one a line", exact=False).fill("\n".join(QUESTIONS[:2]))
            page.press("Sweep")
            page.page.wait_for_selector("table.swept", timeout=600_000)
        elif tab == "explore":
            page.page.get_by_label("user", exact=True).fill(QUESTIONS[0])
            page.press("Look")
            page.page.wait_for_selector("#dialogue .tok", timeout=120_000)
            page.page.locator("#dialogue .tok").nth(3).click()
            page.page.wait_for_selector("#fired .latent")
            page.page.locator("#fired .latent").first.click()
            page.page.wait_for_selector(".latent-page", timeout=300_000)
        page.page.wait_for_timeout(800)
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            page.page.screenshot(path=pictures / f"{tab}-{scheme}-{width}.png", full_page=True)
    page.page.close()
    return page.faults


def at_once(address: str, sessions: int, tokens: int) -> dict[str, Any]:
    """Sessions that steer at different strengths at the same time, beside the same calls alone."""
    clients = [connect(address) for _ in range(sessions)]
    sae, reach = known(clients[0])
    cases = [(QUESTIONS[i % len(QUESTIONS)], round(reach * i / sessions, 3)) for i in range(sessions)]
    alone = [ask(clients[0], sae, alpha, question, tokens) for question, alpha in cases]
    began = time.perf_counter()
    with ThreadPoolExecutor(sessions) as pool:
        together = list(
            pool.map(lambda i: ask(clients[i], sae, cases[i][1], cases[i][0], tokens), range(sessions))
        )
    seconds = time.perf_counter() - began
    unequal = sum(one != other for one, other in zip(alone, together, strict=True))
    different = len({found["steered"] for found in alone})
    return {
        "sessions": sessions,
        "unequal": unequal,
        "different": different,
        "sessions_seconds": round(seconds, 1),
    }


def memory(address: str, pid: int, requests: int, tokens: int) -> dict[str, Any]:
    """Resident memory over requests, every tenth of which is left in mid-stream."""
    clients = [connect(address) for _ in range(CLIENTS)]
    sae, reach = known(clients[0])
    marks = {}
    for number in range(requests):
        client, question = clients[number % CLIENTS], QUESTIONS[number % len(QUESTIONS)]
        if number % 10 == 9:
            job = client.submit(**how(sae, reach / 2, question, 150), api_name="/steer")
            next(iter(job))
            job.cancel()
        else:
            ask(client, sae, reach * (number % 7) / 7, question, tokens)
        if number + 1 in (WARM, requests // 2, requests):
            marks[number + 1] = resident_mb(pid)
    growth = marks[requests] - marks[min(WARM, requests)]
    return {"requests": requests, "memory_mb": marks, "memory_growth_mb": round(growth, 1)}


def connect(address: str) -> Any:
    from gradio_client import Client

    return Client(address, verbose=False)


def known(client: Any) -> tuple[tuple[str, int], float]:
    """The default SAE with its first measured latent, and the largest strength that was tried there."""
    sae = client.predict(api_name="/saes")[0]
    measured = client.predict(sae=sae, api_name="/latents")["measured"]
    return ((sae, measured[0]["latent"]), measured[0]["alphas"][-1]) if measured else ((sae, 0), 100.0)


def how(sae: tuple[str, int], alpha: float, question: str, tokens: int) -> dict[str, Any]:
    return {"sae": sae[0], "latent": sae[1], "alpha": alpha, "question": question, "max_new_tokens": tokens}


def ask(client: Any, sae: tuple[str, int], alpha: float, question: str, tokens: int) -> Any:
    return client.predict(**how(sae, alpha, question, tokens), api_name="/steer")


def pid_at(port: int) -> int:
    """The process that serves a port: this one's only child."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return next(
        int(pid)
        for pid in children
        if f"GRADIO_SERVER_PORT={port}" in Path(f"/proc/{pid}/environ").read_text()
    )


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
