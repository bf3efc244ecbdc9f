"""SAE folders that can be published: complete, measured, and without a secret in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastzoo.core.errors import InputError
from fastzoo.core.files import MAX_JSON_BYTES, read_json
from fastzoo.core.text import one_line
from fastzoo.core.values import text_at
from fastzoo.hub.find import find_local, local_results
from fastzoo.hub.registry import NEEDED, known_files
from fastzoo.results.table import result_row, with_grid
from fastzoo.saes.names import SAEName, parse_name


@dataclass(frozen=True)
class Candidate:
    """An SAE's folder that looks complete."""

    name: SAEName
    folder: Path
    record: Mapping[str, Any]
    figures: Mapping[str, Any]

    def paths(self) -> list[str]:
        """The files that can be published, relative to the folder."""
        return [path for path in known_files(self.name) if (self.folder / path).is_file()]

    def facts(self) -> dict[str, Any]:
        """What would be published, for people to read; sizes in bytes."""
        sizes = {path: (self.folder / path).stat().st_size for path in self.paths()}
        return {
            "name": str(self.name),
            "folder": str(self.folder),
            "files": sizes,
            "bytes": sum(sizes.values()),
        }


def candidates(sources: Sequence[str]) -> list[Candidate]:
    """The SAEs in folders, in runs' folders or of names, in the order of the paper's grid.

    Raises InputError: nothing there, two of one name, or one that cannot be published.
    """
    found: dict[SAEName, Candidate] = {}
    for source in sources:
        if source.startswith("hf:"):
            raise InputError(f"{source} is on the Hub; give a folder")
        folder = find_local(source)
        if folder is None:
            raise InputError(f"{source} is not on this machine (looked in . and runs/*/)")
        inside = [path for _, path in local_results(folder)]
        if not inside:
            raise InputError(f"'{folder}' holds no complete SAE: a folder named like one, with metrics.json")
        for path in inside:
            candidate = check(path)
            other = found.setdefault(candidate.name, candidate)
            if other.folder.resolve() != path.resolve():
                raise InputError(
                    f"{candidate.name} is given twice: '{other.folder}' and '{path}'; name one of them"
                )
    return [found[name] for name in with_grid(found) if name in found]


def check(folder: Path) -> Candidate:
    """An SAE's folder as it can be published; its weights are not read.

    Raises InputError: a file or figure is missing, config.json is another SAE's, or a text holds a secret.
    """
    from huggingface_hub import get_token

    name = parse_name(folder.resolve().name)
    paths = known_files(name)
    for path in paths[:NEEDED]:
        if not (folder / path).is_file():
            raise _refusal(folder, f"{path} is missing")
    record, figures = read_json(folder / "config.json"), read_json(folder / "metrics.json")
    if record.get("library") != "fastzoo" or record.get("name") != str(name):
        raise _refusal(folder, f"config.json is not the record of {name}")
    if text_at(record, "base_model", "name") is None:
        raise _refusal(folder, "config.json names no base model")
    for path, value in (("config.json", record), ("metrics.json", figures)):
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise _refusal(folder, f"{path} holds NaN or infinity, which JSON lacks") from None
    row = result_row(record, figures)
    if row["mse"] is None or row["l0"] is None:
        raise _refusal(folder, "metrics.json has no MSE or no L0")
    read_card(folder)
    for path in paths:
        if path.endswith((".safetensors", ".png")) or not (folder / path).is_file():
            continue
        with readable(folder):
            secret = find_secret((folder / path).read_text("utf-8", "replace"), get_token())
        if secret is not None:
            raise _refusal(folder, f"{path} holds {secret}; remove it, and revoke it if others have seen it")
    return Candidate(name, folder, record, figures)


def read_card(folder: Path) -> str:
    """The text of an SAE's card. Raises InputError: it is too long, not text in UTF-8, or cannot be read."""
    path = folder / "README.md"
    with readable(folder):
        if path.stat().st_size > MAX_JSON_BYTES:
            raise _refusal(folder, f"README.md has more than {MAX_JSON_BYTES} bytes, too many for a card")
        try:
            return path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            raise _refusal(folder, "README.md is not text in UTF-8") from None


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Raise InputError where the system refuses to read from ``folder``."""
    try:
        yield
    except OSError as error:
        raise _refusal(folder, one_line(error, 200)) from None


def _refusal(folder: Path, reason: str) -> InputError:
    return InputError(f"'{folder}' cannot be published: {reason}")


_KINDS = {
    "a Hugging Face token": r"hf_[A-Za-z0-9]{30,}|api_org_[A-Za-z0-9]{30,}",
    "an AWS access key": r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Z0-9])",
    "an AWS secret key": r"(?i:aws_?secret(?:_?access)?_?key)[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
    "a GitHub token": r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,}",
    # A long run of letters and digits, or all kinds mixed: sk-learn-2024-compatible is a name.
    "an API key (sk-...)": r"sk-(?:[a-z0-9]+-){0,3}(?:(?=[A-Za-z]*[0-9])[A-Za-z0-9]{24,}"
    r"|(?=[a-z0-9_-]*[A-Z])(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{32,})",
    "a Slack token": r"xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[0-9]-[A-Za-z0-9-]{10,}",
    "a Slack webhook": r"https://hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/]{20,}",
    "a private key": r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----",
}

_PATTERNS = {
    # Not in the middle of a word, where random letters can spell anything; a key block may be.
    kind: re.compile(pattern if pattern.startswith("-") else rf"(?<![A-Za-z0-9])(?:{pattern})")
    for kind, pattern in _KINDS.items()
}


def find_secret(text: str, token: str | None = None) -> str | None:
    """The kind of the first secret found in ``text``, or None. The secret itself is never told.

    The user's own ``token`` is looked for whatever its form.
    """
    if token and token.strip() and token.strip() in text:
        return "your Hugging Face token"
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(text)), None)
