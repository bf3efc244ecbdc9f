"""What stands in the page's address: every view can be shared by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

OURS = (
    *("tab", "sae", "latent", "alpha", "q", "mode", "positions", "temperature", "seed", "tokens"),
    *("questions", "strengths", "text", "assistant", "system"),
    *("model", "architecture", "method", "expansion", "published", "sort", "descending", "zoo", "plot"),
)
"""All keys; what else stands there (a theme, a signature) stays, and is not passed on."""

USUAL = {
    "mode": "add",
    "positions": "all",
    "temperature": "0",
    "seed": "0",
    "published": "false",
    "sort": "as listed",
    "descending": "false",
    "plot": "fvu",
    **dict.fromkeys(("model", "architecture", "method", "expansion"), "all"),
}
"""Values that need not be said."""

JAVASCRIPT = """(...values) => {
    const names = %s, known = %s, usual = %s;
    const all = new URLSearchParams(location.search), ours = new URLSearchParams();
    known.forEach((name) => all.delete(name));
    ["tab", ...names].forEach((name, i) => {
        const value = i === 0 ? "%s" : values[i - 1];
        if (value === null || value === undefined || value === "" || String(value) === usual[name]) return;
        const text = value === true ? "1" : String(value);
        all.set(name, text);
        ours.set(name, text);
    });
    history.replaceState(null, "", location.pathname + "?" + all.toString() + location.hash);
    if (window.parent !== window)
        window.parent.postMessage({queryString: ours.toString()}, "https://huggingface.co");
}"""


def address(tab: str, names: Sequence[str]) -> str:
    """JavaScript that puts a tab and values, called ``names``, into the address."""
    return JAVASCRIPT % (list(names), list(OURS), dict(USUAL), tab)


LOADED = "() => { window.zooLoaded = true; }"
"""To be run once the address was read."""


def once_loaded(address: str) -> str:
    """The same, but not while the page is being built: that selects a tab, too, before the address was read."""
    return f"(...values) => {{ if (window.zooLoaded) ({address})(...values); }}"


def text_in(asked: Mapping[str, str], key: str, longest: int = 2000) -> str:
    """A text of an address; empty without one."""
    return (asked.get(key) or "")[:longest]


def number_in(asked: Mapping[str, str], key: str, usual: float, low: float, high: float) -> float:
    """A number of an address, if it is within bounds."""
    try:
        value = float(text_in(asked, key, 40))
    except ValueError:
        return usual
    return value if low <= value <= high else usual


def one_of(asked: Mapping[str, str], key: str, choices: Sequence[str]) -> str:
    """A choice of an address, else the first one."""
    value = asked.get(key)
    return value if value in choices else choices[0]
