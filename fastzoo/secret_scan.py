"""Secrets in text that is about to be published: which kind, never which one."""

from __future__ import annotations

import re

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

    Args:
        token: the user's current Hugging Face token, looked for whatever its form.
    """
    if token and token.strip() and token.strip() in text:
        return "your Hugging Face token"
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(text)), None)
