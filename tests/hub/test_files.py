"""A file as the Hub lists it, compared with bytes of this machine."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from fastzoo.core.errors import InputError
from fastzoo.hub.files import Content, HubFile
from fastzoo.saes.references import is_namespace


def test_bytes_and_files_hash_as_git_and_sha256sum_do(tmp_path: Path) -> None:
    data = b"weights\r\n" * 300_000
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    git = subprocess.run(
        ["git", "hash-object", "--no-filters", str(path)], capture_output=True, text=True, check=True
    ).stdout.strip()
    digest = hashlib.sha256(data).hexdigest()
    for content in (Content(path), Content(data)):
        assert (content.git_id, content.sha256, content.size) == (git, digest, len(data))
        assert bytes(content) == data
        assert content.at("x/a.bin") == HubFile("x/a.bin", len(data), digest)
        for listed in (git, digest):
            assert HubFile("a.bin", len(data), listed).holds(content)
            assert not HubFile("a.bin", len(data) + 1, listed).holds(content)
            assert not HubFile("a.bin", len(data), listed[::-1]).holds(content)
    assert HubFile("a.bin", 1, digest).sha256 == digest and HubFile("a", 1, git).sha256 is None


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    content = Content(path)
    content.check_unchanged()
    path.write_bytes(b"three")
    with pytest.raises(InputError, match="was changed"):
        content.check_unchanged()
    path.unlink()
    with pytest.raises(InputError, match="was changed"):
        content.check_unchanged()


@pytest.mark.parametrize(
    ("text", "valid"),
    [("org", True), ("my-Org_1.x", True), ("", False), ("a/b", False), ("../x", False), ("-a", False)]
    + [("a\n", False), ("a" * 97, False), ("é", False)],
)
def test_names_of_users_and_organisations(text: str, valid: bool) -> None:
    assert is_namespace(text) is valid
