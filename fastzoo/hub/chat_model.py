"""A chat model that is asked many things at once: on a server with the OpenAI protocol, or on the Hub.

Asked through ``huggingface_hub.InferenceClient``. Replies are kept in a JSONL file, so that nothing is
asked twice, even by another process.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from fastzoo.core.errors import AccessError, HubError, InputError, OutputError
from fastzoo.core.progress import Progress
from fastzoo.core.text import one_line
from fastzoo.core.threads import run_daemons
from fastzoo.hub.client import LOGIN, OFFLINE, refusal, status_of
from fastzoo.hub.retries import is_transient, reason, wait

KEY_VARIABLE = "FASTZOO_JUDGE_KEY"
"""Environment variable with the server's API key. Without it the Hub's own token is used, and that only
for the Hub's own servers."""

HUB_DOMAIN = "huggingface.co"
"""Inference endpoints (huggingface.cloud) and Spaces are not the Hub's own: anyone can run one."""

TRIES_OF_REPLIES = 6

TRIES_OF_CHECKS = 3

TIMEOUT_SECONDS = 180.0


class ChatModel:
    """A chat model that is asked for one kind of thing: subclasses say what.

    Args:
        model: its name on the Hub, or at the server.
        base_url: a server that speaks the OpenAI chat protocol, such as http://127.0.0.1:8000/v1; None
            asks the Hub's inference providers.
        cache: a JSONL file of earlier replies, made if it is not there.
        workers: requests at a time.

    Raises InputError: neither model nor server is named, the server's address is not valid, or the cache is a file
    of something else. OutputError: the cache cannot be read.
    """

    role: ClassVar[str]
    """What messages call it, such as "the judge"."""
    option: ClassVar[str]
    """The command line option that names its model."""
    system: ClassVar[str]
    """The system prompt."""
    reply_tokens: ClassVar[int]
    """The longest reply."""

    def __init__(
        self,
        model: str | None = None,
        base_url: str | None = None,
        cache: Path | None = None,
        workers: int = 4,
    ) -> None:
        if not model and not base_url:
            raise InputError(f"{self.role}: name a model, or the address of a server")
        if base_url is not None and not _is_address(base_url):
            said = f"'{one_line(base_url, 100)}' is not the address of a server"
            raise InputError(f"{self.role}: {said}; write it like http://127.0.0.1:8000/v1")
        parts = urlsplit(base_url or "")
        # Without user, password and query, any of which may hold a key.
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
        self.name = " at ".join(filter(None, (model, shown)))
        self._of_hub = base_url is None or (
            parts.scheme == "https" and f".{parts.hostname}".endswith(f".{HUB_DOMAIN}")
        )
        self._model, self._url, self._cache, self._workers = model, base_url, cache, workers
        self._title = f"{self.role} ({one_line(self.name, 120)})"
        self._lock = threading.Lock()
        self._recovering = threading.Lock()
        self._stopped = threading.Event()
        self._replies = _read_cache(cache, self.role) if cache else {}
        self.asked = 0
        """Requests that were answered; replies from the cache do not count."""

    def check(self) -> None:
        """Ask for one token, which finds a wrong address, model or key before any long work.

        Raises HubError, AccessError, NotFoundError, InputError.
        """
        self._stopped.clear()
        self._ask("Are you there?", tokens=1, tries=TRIES_OF_CHECKS)

    def ask(self, prompts: Iterable[str], title: str) -> None:
        """Ask what was not asked before, with a progress bar; then ``reply`` has the replies.

        Raises HubError, AccessError, NotFoundError, InputError: it goes on failing, or refuses; replies until then
        are not lost. OutputError: the cache cannot be written.
        """
        todo = list(dict.fromkeys(prompts))
        self._stopped.clear()
        with Progress(title, len(todo)) as bar:

            def advance(_: None) -> None:
                bar.advance(1, f"{bar.done + 1} of {len(todo)} replies")

            run_daemons(todo, self._find_reply, advance, workers=self._workers, stop=self._stopped)

    def reply(self, prompt: str) -> str | None:
        """The reply to a prompt, empty if it had no text; None if there is none so far."""
        return self._replies.get(self._key_of(prompt))

    def _key_of(self, prompt: str) -> str:
        return hashlib.sha256(json.dumps([self.name, self.system, prompt]).encode()).hexdigest()

    def _find_reply(self, prompt: str) -> None:
        key = self._key_of(prompt)
        if key in self._replies:
            return
        reply = self._ask(prompt, self.reply_tokens, TRIES_OF_REPLIES)
        with self._lock:
            self.asked += 1
            self._replies[key] = reply
            if self._cache:
                _append(self._cache, {"key": key, "reply": reply})

    def _ask(self, prompt: str, tokens: int, tries: int) -> str:
        """The reply's text, empty if it has none."""
        from huggingface_hub import InferenceClient, errors, get_token

        name = self._title
        # Without a key huggingface_hub sends the saved token, to any server.
        key = os.environ.get(KEY_VARIABLE, "").strip() or (None if self._of_hub else "none")
        if key is None and get_token() is None:
            raise AccessError(f"{name} needs a token: {LOGIN}, or give its key in {KEY_VARIABLE}")
        client = InferenceClient(model=self._url or self._model, api_key=key, timeout=TIMEOUT_SECONDS)
        messages: list[Any] = [
            {"role": "system", "content": self.system},
            {"role": "user", "content": prompt},
        ]

        def ask() -> Any:
            return client.chat_completion(messages, model=self._model, max_tokens=tokens, temperature=0.0)

        try:
            content = self._retry(ask, tries).choices[0].message.content
        except errors.OfflineModeIsEnabled:
            raise HubError(f"{name} cannot be asked: {OFFLINE}") from None
        except errors.HfHubHTTPError as error:
            said = error.response.text.replace(key, "***") if key else error.response.text
            unnamed = self._model is None and 400 <= (status_of(error) or 0) < 500
            hint = f"; name its model ({self.option})" if unnamed else ""
            login = f"give its key in {KEY_VARIABLE}, or {LOGIN} for the Hub's"
            raise refusal(error, name, "", one_line(said, 200) + hint, login) from None
        except errors.HTTPError as error:
            raise HubError(f"{name} cannot be reached ({reason(error)})") from None
        except (ValueError, AttributeError, TypeError, KeyError, IndexError) as error:
            if self._url is None and type(error) is ValueError:  # no such model, or another key
                raise InputError(f"{name} cannot be asked: {one_line(error, 200)}") from None
            said = f"did not answer as the OpenAI chat protocol has it ({one_line(error, 150)})"
            raise HubError(f"{name} {said}") from None
        return content if isinstance(content, str) else ""

    def _retry(self, ask: Callable[[], Any], tries: int) -> Any:
        """As ``with_retries``, but one request at a time tries again and says so: the others wait, and end with it."""
        failed = 0
        with ExitStack() as recovering:
            while True:
                try:
                    return ask()
                except Exception as error:
                    transient, failed = is_transient(error), failed + 1
                    if failed == 1 and transient:
                        recovering.enter_context(self._recovering)
                    if failed == tries or not transient or self._stopped.is_set():
                        self._stopped.set()
                        raise
                    wait(error, self._title, failed, tries)


def _is_address(url: str) -> bool:
    with suppress(ValueError):
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError if it is not a number
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and url.isprintable()
            and " " not in url
        )
    return False


def _read_cache(path: Path, role: str) -> dict[str, str]:
    """Earlier replies by key. A line that was cut off (a process was killed writing it) is left out."""
    found: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return found
    except OSError as error:
        raise OutputError(f"'{path}' cannot be read: {one_line(error.strerror)}") from None
    for line in lines:
        with suppress(ValueError, RecursionError):
            match json.loads(line):
                case {"key": str(key), "reply": str(reply)}:
                    found[key] = reply
    if not found and lines[0] and not lines[0].startswith('{"key": '):
        raise InputError(f"'{path}' does not hold replies of {role}; give another file")
    return found


def _append(path: Path, row: dict[str, str]) -> None:
    line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            # A line break first where the last line was cut off: this one must not join it.
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = b"\n" + line
            file.write(line)
    except OSError as error:
        raise OutputError(f"'{path}' cannot be written: {one_line(error.strerror)}") from None
