"""The Space as a process, with SAEs of the embedded model."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from zoo_folders import train_small

from fastzoo.publish.space import find_space
from fastzoo.steering.measured import keep_latent, open_to_keep
from fastzoo.steering.run import run_steer
from fastzoo.steering.settings import SteerSettings

FOLDER = find_space("steering")

NAME, OTHER = "tiny-chat-L1-2x-jumprelu", "tiny-chat-L1-2x-standard"

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "<script>document.title='taken'</script>",
    "${document.title='taken'}",
    "{{constructor.constructor('alert(1)')()}}`${alert(1)}`",
    "[x](javascript:alert(1)) $(touch x); 'y' \"z\"",
)


@pytest.fixture(scope="session")
def saes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``runs`` in it: a jumprelu SAE with two measured latents, one of a hostile title, and a standard
    one."""
    where = tmp_path_factory.mktemp("space")
    run = train_small(where / "runs" / "small", "architectures=[jumprelu, standard]")
    how: dict[str, Any] = {"units": "norm", "alphas": [0.0, 0.4, 0.8], "control": False, "max_new_tokens": 12}
    how |= {
        "questions": ["Where is Paris?", "Hello!", "What is a cat?"],
        "dialogues": 20,
        "source": str(run / NAME),
    }
    for title, latent in (("Cats", 3), (HOSTILE[0], 5)):
        loaded = open_to_keep(str(run / NAME), title)
        keep_latent(loaded, title, run_steer(SteerSettings(latents=[latent], **how)))
    return where


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(command: list[Any], port: int, **how: Any) -> Iterator[str]:
    """A process that serves a page; its address."""
    process = subprocess.Popen(list(map(str, command)), **how)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(480):
            assert process.poll() is None, "the page did not start"
            try:
                urlopen(address).close()
                break
            except OSError:
                time.sleep(0.25)
        yield address
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


class Page:
    """A page open in a browser; what it asked of other hosts or complained of is in ``faults``."""

    def __init__(self, browser: Any, address: str, **how: Any) -> None:
        self.address = address
        self.faults: list[str] = []
        self._leaving = False  # a page that is left complains of answers that it was waiting for
        self.page = browser.new_page(viewport={"width": 1280, "height": 900}, **how)
        self.page.on("pageerror", lambda error: self._leaving or self.faults.append(str(error)))
        self.page.on("dialog", lambda box: (self.faults.append(box.message), box.dismiss()))
        self.page.on("console", self._console)
        self.page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type == "error" and not self._leaving:
            self.faults.append(message.text)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.faults.append(request.url)

    def open(self, query: str = "", width: int = 1280, ready: str = "#latent-about p") -> None:
        self.page.set_viewport_size({"width": width, "height": 900})
        self._leaving = True
        self.page.goto("about:blank")
        self._leaving = False
        self.page.goto(f"{self.address}/{query}")
        self.page.wait_for_selector(ready, timeout=60_000)

    def wait(self, script: str, seconds: float = 30) -> None:
        self.page.wait_for_function(script, timeout=seconds * 1000)

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.inner_text())

    def choose(self, label: str, value: str) -> None:
        self.page.get_by_label(label, exact=True).first.click()
        self.page.get_by_role("option", name=value, exact=True).first.click()

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).click()
