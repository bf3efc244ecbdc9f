"""What people write into a card stays; what nobody edited is renewed."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastzoo.results.card_merge import FALLBACK, mark_card, merge_cards, was_edited

OF_BEFORE = Path(__file__).with_name("card_of_before.md").read_text(encoding="utf-8")
"""``generated(1)`` as earlier versions wrote it: each section between comments of its own."""


def generated(version: int = 1, **metadata: Any) -> str:
    """A card as a run of this version makes it."""
    values = {
        "library_name": "saelens",
        "tags": ["sae", f"v{version}"],
        "license": "apache-2.0",
        "model-index": [{"name": "n", "value": version / 4}],
    }
    body = f"""
# name

about v{version}

## Figures

| L0 | {version}.5 |
|---|---|

## Training

```python
# code v{version}
```
"""
    return mark_card(values | metadata, body)


def front(card: str) -> Any:
    found = REGEX_YAML_BLOCK.search(card)
    return yaml.safe_load(found[2]) if found else None


def body_of(card: str) -> str:
    return card.split("---\n", 2)[2]


def test_an_untouched_card_is_renewed_and_the_same_one_stays_as_it_is() -> None:
    old, new = generated(1), generated(2)
    assert merge_cards(old, new) == new
    assert merge_cards(new, new) == new
    assert merge_cards("", new) == merge_cards("\n \n", new) == new
    assert not was_edited(new)


def test_text_above_and_below_the_block_stays_where_it_is() -> None:
    card = generated(1).replace("<!-- fastzoo:card", "## Ours\n\nby hand\n\n<!-- fastzoo:card")
    card += "\nThe last word."
    merged = merge_cards(card, generated(2))
    assert merged == generated(2).replace("<!-- fastzoo:card", "## Ours\n\nby hand\n\n<!-- fastzoo:card") + (
        "\nThe last word."
    )
    assert not was_edited(merged)
    # A block that someone removed stays away.
    removed = re.sub("<!-- fastzoo:card.*/fastzoo:card.*?\n", "", card, flags=re.S)
    assert body_of(merge_cards(removed, generated(2))) == body_of(removed)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("about v1", "about v1, as we like it"),
        ("## Training", "## Our notes\n\nby hand\n\n## Training"),
        ("| L0 | 1.5 |\n", ""),
    ],
    ids=["changed", "added", "removed"],
)
def test_an_edited_block_is_kept_and_only_the_metadata_is_renewed(old: str, new: str) -> None:
    card = generated(1).replace(old, new)
    assert was_edited(card)
    merged = merge_cards(card, generated(2))
    assert was_edited(merged) and front(merged) == front(generated(2))
    text = body_of(card).partition("<!-- /fastzoo")[0]
    assert body_of(merged).startswith(text)
    # It stays so with whatever comes next, and is renewed again once the edit is undone.
    again = merge_cards(merged, generated(3))
    assert body_of(again).startswith(text) and front(again) == front(generated(3))
    undone = again.replace(new, old, 1) if new else generated(1)
    assert merge_cards(undone, generated(4)) == generated(4)


def test_metadata() -> None:
    card = generated(1, base_model="org/model", datasets=["org/a"])
    card = card.replace("license: apache-2.0", "license: mit  # ours\n# a remark\nlanguage: en")
    card = card.replace("- v1\n", "- v1\n- mine  # my tag\n").replace("- org/a", "- org/a\n- my/b")
    card = card.replace("library_name: saelens\n", "")
    merged = merge_cards(card, generated(2, datasets=["org/c"]))
    assert front(merged) == {
        "tags": ["sae", "mine", "v2"],
        "license": "mit",
        "language": "en",
        "model-index": [{"name": "n", "value": 0.5}],
        "datasets": ["my/b", "org/c"],
    }
    assert merged.startswith("---\n# my tag\n# ours\n# a remark\n")
    assert merge_cards(merged, generated(2, datasets=["org/c"])) == merged
    # An entry of ours that someone removed stays away; data sets that are all stale go.
    fewer = generated(1, datasets=["org/a"]).replace("- sae\n", "")
    assert front(merge_cards(fewer, generated(2)))["tags"] == ["v2"]
    assert "datasets" not in front(merge_cards(fewer, generated(2)))
    none = re.sub(r"tags:\n- sae\n- v1\n", "tags: []\n", generated(1))
    assert front(merge_cards(none, generated(1)))["tags"] == []
    one = re.sub(r"tags:\n- sae\n- v1\n", "tags: mine\n", generated(1))
    assert front(merge_cards(one, generated(2)))["tags"] == ["mine", "v2"]
    # What fastzoo did not know and people do stays; what fastzoo knows now replaces its own.
    unknown = generated(1).replace("license: apache-2.0\n", "license: [mit, gpl]\n")
    assert front(merge_cards(unknown, generated(2)))["license"] == ["mit", "gpl"]
    assert front(merge_cards(generated(1), generated(2, license="other")))["license"] == "other"


def test_a_card_of_the_version_before_gets_a_block() -> None:
    assert body_of(merge_cards(OF_BEFORE, generated(2))) == body_of(generated(2))
    assert front(merge_cards(OF_BEFORE, generated(2))) == front(generated(2))
    # What people wrote between its sections stays, below the block; so does what is around them.
    notes = OF_BEFORE.replace("<!-- fastzoo:figures", "## Our notes\n\nby hand\n\n<!-- fastzoo:figures")
    notes = notes.replace("<!-- fastzoo:about", "On top.\n\n<!-- fastzoo:about") + "\nThe last word."
    merged = merge_cards(notes, generated(2))
    below = "\n## Our notes\n\nby hand\n\nThe last word."
    expected = body_of(generated(2)).replace("<!-- fastzoo:card", "On top.\n\n<!-- fastzoo:card")
    assert body_of(merged) == expected + below and not was_edited(merged)
    assert merge_cards(merged, generated(2)) == merged
    # Metadata that people changed, added and removed.
    changed = OF_BEFORE.replace("apache-2.0", "mit").replace("- sae\n", "- mine\n")
    assert front(merge_cards(changed, generated(2)))["tags"] == ["mine", "v2"]
    assert front(merge_cards(changed, generated(2)))["license"] == "mit"


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card.replace("about v1", "about v1, as we like it"),
        lambda card: re.sub("<!-- fastzoo:training.*/fastzoo:training -->\n\n", "", card, flags=re.S),
        lambda card: re.sub("<!-- fastzoo:card.*", "", card, flags=re.S),
        lambda card: re.sub(r"(fastzoo:figures) \w+", r"\1", card),
    ],
    ids=["edited", "removed", "no record", "no hash"],
)
def test_a_card_of_the_version_before_that_was_edited_is_kept(change: Any) -> None:
    card = change(OF_BEFORE)
    merged = merge_cards(card, generated(2))
    assert was_edited(merged) and merge_cards(merged, generated(2)) == merged
    for line in body_of(card).partition("<!-- fastzoo:card")[0].splitlines():
        assert line in merged
    assert "v2" not in body_of(merged)


def test_a_header_that_another_program_wrote_anew_is_still_ours() -> None:
    card = generated(4)
    values = front(card) | {"model-index": [{"value": 1, "name": "n"}]}  # 1 for 1.0
    for flow in (True, False):
        header = yaml.safe_dump(values, default_flow_style=flow)
        merged = merge_cards(f"---\n{header}---\n{body_of(card).lstrip()}", generated(5))
        assert front(merged) == front(generated(5))
        assert merge_cards(merged, generated(5)) == merged


HAND = "# My SAE\n\nAll of it by hand.  \n\n```\n<!-- fastzoo:card 0123456789 -->\n```\nend"


@pytest.mark.parametrize(
    "header, body",
    [
        ("", HAND),
        ("---\nlicense: mit # so\ntags: [mine]\n---\n", HAND),
        ("---\nlicense: [broken\n---\n", HAND),
        ("---\njust words\n---\n", HAND),
        ("---\na: &x [1]\nb: *x\n---\n", HAND),
        ("---\ntags: [a]\ntags: [b]\n---\n", HAND),
        ("---\nwhen: 2001-99-99\n---\n", HAND),
        ("---\n---\n", HAND),
    ],
)
def test_a_card_that_is_all_hand_written_only_gets_the_metadata_it_lacks(header: str, body: str) -> None:
    card = header + body
    merged = merge_cards(card, generated())
    readable = "license: mit" in header
    assert merged.endswith(body if readable else card)
    assert set(front(merged)) == set(front(generated()))
    if readable:
        assert front(merged)["tags"] == ["mine", "sae", "v1"] and "# so\nlicense: mit\n" in merged
    assert merge_cards(merged, generated()) == merged and not was_edited(merged)


@pytest.mark.parametrize("card", [generated(1), OF_BEFORE], ids=["block", "sections"])
@pytest.mark.parametrize(
    "change",
    [
        lambda card: card.replace("\n", "\r\n"),
        lambda card: "\ufeff" + card,
        lambda card: card.rstrip("\n"),
        lambda card: re.sub(r"(?m)(?<=.)$", "  ", card),
    ],
    ids=["crlf", "bom", "no final newline", "blanks"],
)
def test_line_ends_blanks_and_byte_order_mark_are_no_edits(change: Any, card: str) -> None:
    merged = merge_cards(change(card), generated(2))
    assert ("\r\n" in merged) == ("\r\n" in change(card))
    assert [x.rstrip() for x in merged.splitlines()] == generated(2).splitlines()
    assert merge_cards(merged, generated(2)) == merged


def test_comments_that_are_not_whole_are_text_or_an_edit() -> None:
    card = generated(1)
    nested = card.replace("about v1", "<!-- fastzoo:card 0123456789 -->\nabout v1")
    before = card.replace("<!-- fastzoo", "<!-- fastzoo:card 0123456789 -->\n<!-- fastzoo", 1)
    lost_end = re.sub("<!-- /fastzoo:card.*\n", "", card)
    no_hash = re.sub(r"(fastzoo:card) \w+", r"\1", card)
    for old in (nested, before, lost_end, no_hash):
        merged = merge_cards(old, generated(2))
        assert merge_cards(merged, generated(2)) == merged
        assert "about v1" in merged and "| L0 | 1.5 |" in merged
        assert was_edited(merged) == (old in (nested, before))
    doubled = card + body_of(card)
    assert merge_cards(doubled, generated(2)) == generated(2) + body_of(generated(2))


def test_a_card_that_could_not_be_rendered_replaces_nothing() -> None:
    plain = mark_card({"tags": ["sae"]}, "# name\n", FALLBACK)
    assert merge_cards(generated(1), plain) == generated(1)
    assert merge_cards(plain, plain) == plain
    assert body_of(merge_cards(plain, generated(1))) == body_of(generated(1))
    assert front(merge_cards(plain, generated(1))) == front(generated(1))


WORDS = st.integers(0, 9999).map("w{}x".format)
LINES = st.one_of(
    WORDS,
    st.integers(0, 999).map("k{0}: w{0}x  # w{0}1x".format),
    st.sampled_from(["- w5x # w51x", "# w6x", "  # w7x", "license: w8x", "    w9x", "k: |", "datasets: w2x"]),
    st.sampled_from(
        [
            *("", "```", "~~~~", "---", "<!--", "-->", "tags:", "- sae", "# ", "|", "&a", "{", "\x0c"),
            *("<!-- fastzoo:card 0123456789 -->", "<!-- /fastzoo:card -->", "\u2028", "\x85"),
            *("<!-- fastzoo:card", "sections: about w0x", "<!-- fastzoo:about -->", "key: 'w1x", "* a"),
        ]
    ),
    st.text(max_size=6).map(lambda s: s.encode("utf-8", "ignore").decode()),
)


@st.composite
def edited_cards(draw: st.DrawFn) -> tuple[str, set[str]]:
    """A card after some lines of it were removed, doubled or written, and the words written."""
    lines = draw(st.sampled_from([generated(1, datasets=["org/a"]), OF_BEFORE])).split("\n")
    if draw(st.integers(0, 9)) == 0:
        lines = []
    for _ in range(draw(st.integers(0, 6))):
        at, n = draw(st.integers(0, len(lines))), draw(st.integers(1, 6))
        if draw(st.booleans()):
            at = min(at, draw(st.integers(1, 12)))  # in the header
        what = draw(st.sampled_from(["write", "write", "append", "remove", "double"]))
        if what == "write":
            lines[at:at] = draw(st.lists(LINES, min_size=1, max_size=3))
        elif what == "append" and at < len(lines):
            lines[at] += draw(st.sampled_from([" ", "# ", ""])) + draw(WORDS)
        elif what == "remove":
            del lines[at : at + n]
        elif what == "double":
            lines[at:at] = lines[at : at + n]
    text = draw(st.sampled_from(["\n", "\n", "\r\n"])).join(lines)
    return draw(st.sampled_from(["", "", "\ufeff"])) + text, set(re.findall(r"w\d+x", text))


def words_of_index(card: str) -> set[str]:
    with suppress(yaml.YAMLError, ValueError):
        values = front(card.removeprefix("\ufeff").replace("\r\n", "\n"))
        if isinstance(values, dict):
            return set(re.findall(r"w\d+x", str(values.get("model-index"))))
    return set()


@settings(max_examples=150)
@given(edited_cards(), st.sampled_from([generated(1), generated(2), generated(2, tags=["sae"])]))
@example((generated(1).replace("tags:", "? tags\n:"), set()), generated(2))
@example((generated(1).replace("tags:", '"tags":'), set()), generated(2))
def test_no_word_is_lost_and_merging_again_changes_nothing(edited: tuple[str, set[str]], new: str) -> None:
    card, words = edited
    merged = merge_cards(card, new)
    # Figures are what was measured, whoever wrote others there.
    assert words - words_of_index(card) <= set(re.findall(r"w\d+x", merged))
    assert merge_cards(merged, new) == merged
    assert isinstance(front(merged), dict)
