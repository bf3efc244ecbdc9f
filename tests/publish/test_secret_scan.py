"""Secrets are found before they are published, and nothing that only looks random is taken for one."""

from __future__ import annotations

import random
import string

import pytest

from fastzoo.publish.candidates import find_secret
from fastzoo.results.card import render_card

LETTERS = string.ascii_letters + string.digits


def drawn(n: int, alphabet: str = LETTERS, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(alphabet, k=n))


# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "hf" + "_" + drawn(34): "a Hugging Face token",
    "AKIA" + drawn(16, string.ascii_uppercase): "an AWS access key",
    "aws_secret" + "_access_key = " + drawn(40): "an AWS secret key",
    "ghp" + "_" + drawn(36): "a GitHub token",
    "github" + "_pat_" + drawn(82): "a GitHub token",
    "sk-" + drawn(48): "an API key (sk-...)",
    "sk-proj-" + drawn(60): "an API key (sk-...)",
    "sk-ant-" + "api03-" + drawn(80): "an API key (sk-...)",
    "sk-or-" + "v1-" + drawn(64, "0123456789abcdef"): "an API key (sk-...)",
    "sk-" + drawn(32, "0123456789abcdef"): "an API key (sk-...)",
    "xoxb-" + "123456789012-" + drawn(24): "a Slack token",
    "https://hooks.slack.com" + "/services/T0000/B0000/" + drawn(24): "a Slack webhook",
    "-----BEGIN " + "RSA PRIVATE KEY-----": "a private key",
    "-----BEGIN " + "OPENSSH PRIVATE KEY-----": "a private key",
    "-----BEGIN " + "PGP PRIVATE KEY BLOCK-----": "a private key",
}


@pytest.mark.parametrize("secret, kind", SECRETS.items(), ids=range(len(SECRETS)))
def test_secrets_are_found_and_not_told(secret: str, kind: str) -> None:
    for text in (secret, f"token: {secret}\nmore", f'{{"key": "{secret}"}}', f"see ({secret})."):
        assert find_secret(text) == kind
    assert secret not in kind


def test_the_users_own_token_is_found_whatever_its_form() -> None:
    assert find_secret("a card with odd-token in it", "odd-token") == "your Hugging Face token"
    assert find_secret("a card without", "odd-token") is None
    assert find_secret("a card", "") is None and find_secret("a card", " \n") is None


def test_no_false_alarm() -> None:
    from examples import example

    record, figures = example()
    harmless = [
        *(drawn(64, "0123456789abcdef", seed) for seed in range(200)),
        *(drawn(40, "0123456789abcdef", seed) for seed in range(200)),
        render_card(record, figures, "org/model-L3-8x-jumprelu"),
        "hf_hub_download hf_transfer HF_TOKEN=... hf_xxx disk-1234567890123456789012345",
        "task-specific-dialogues-of-2024-and-more sk-learn-2024-11-compatible-estimators ghp_ AKIA xoxb-",
        "-----BEGIN CERTIFICATE-----\n-----BEGIN PUBLIC KEY-----",
        "sha256:" + drawn(64, "0123456789abcdef"),
    ]
    for text in harmless:
        assert find_secret(text) is None, text
