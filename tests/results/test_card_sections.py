"""What people write into a card stays; what nobody edited is renewed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastzoo.results.card_sections import PLAIN, mark_card, merge_cards

NAMES = ("about", "figures", "training", "citation")


def generated(version: int = 1, names: tuple[str, ...] = NAMES, **metadata: Any) -> str:
    """A card as a run of this version makes it."""
    bodies = {
        "about": f"# name\n\nabout v{version}",
        "figures": f"## Figures\n\n| L0 | {version}.5 |\n|---|---|\n",
        "training": f"## Training\n\n```python\n# code v{version}\n```",
        "citation": "## Citation\n\n```bibtex\n@article{}\n```",
        "special": f"## Special\n\nspecial v{version}",
    }
    body = "".join(
        f"<!-- fastzoo:{name} -->\n\n{bodies[name]}\n\n<!-- /fastzoo:{name} -->\n\n"
        for name in names
    )
    return mark_card(
        {
            "library_name": "saelens",
            "tags": ["sae", f"v{version}"],
            "license": "apache-2.0",
            "model-index": [{"name": "n", "value": version / 4}],
        }
        | metadata,
        body,
    )


def front(card: str) -> Any:
    found = REGEX_YAML_BLOCK.search(card)
    return yaml.safe_load(found[2]) if found else None


def test_an_untouched_card_is_renewed_and_the_same_one_stays_as_it_is() -> None:
    old, new = generated(1), generated(2)
    assert merge_cards(old, new) == new
    assert merge_cards(new, new) == new
    assert merge_cards("", new) == merge_cards("\n \n", new) == new


def test_edited_and_removed_sections_and_text_between_stay() -> None:
    card = generated(1)
    card = card.replace("about v1", "about v1, as we like it")
    card = card.replace("<!-- fastzoo:figures", "## Our notes\n\nby hand\n\n<!-- fastzoo:figures")
    card = re.sub(r"<!-- fastzoo:training.*/fastzoo:training -->\n\n", "", card, flags=re.S)
    card += "\nThe last word."
    merged = merge_cards(card, generated(2))
    assert "about v1, as we like it" in merged and "about v2" not in merged
    assert "| L0 | 2.5 |" in merged and "1.5" not in merged
    assert "## Training" not in merged and merged.endswith("-->\n\nThe last word.\n")
    words = ["as we like it", "## Our notes\n\nby hand\n\n<!-- fastzoo:figures", "## Citation"]
    assert [merged.index(w) for w in words] == sorted(merged.index(w) for w in words)
    # It stays so with whatever comes next.
    again = merge_cards(merged, generated(3))
    assert "about v1, as we like it" in again and "## Training" not in again
    assert "| L0 | 3.5 |" in again and again.count("by hand") == 1


def test_a_section_that_the_card_never_had_comes_to_its_place() -> None:
    without, names = generated(1), ("about", "figures", "special", "training", "citation")
    merged = merge_cards(without, generated(1, names))
    assert merged == generated(1, names)
    last = ("about", "figures", "training", "citation", "special")
    assert merge_cards(without, generated(1, last)) == generated(1, last)
    # Generated no more: gone, and back when it is generated again.
    assert merge_cards(merged, without) == without
    assert merge_cards(merge_cards(merged, without), generated(2, names)) == generated(2, names)
    # Removed by hand: it stays away, also after a card that had none of it.
    removed = re.sub(r"<!-- fastzoo:special.*/fastzoo:special -->\n\n", "", merged, flags=re.S)
    kept = merge_cards(merge_cards(removed, generated(2)), generated(3, names))
    assert "## Special" not in kept and "about v3" in kept
    # Edited: it stays, generated or not.
    edited = merged.replace("special v1", "special, by hand")
    assert "special, by hand" in merge_cards(edited, generated(2))


def test_metadata() -> None:
    card = generated(1, base_model="org/model", datasets=["org/a"])
    card = card.replace("license: apache-2.0", "license: mit  # ours\n# a remark\nlanguage: en")
    card = card.replace("- v1\n", "- v1\n- mine  # my tag\n").replace("- org/a", "- org/a\n- my/b")
    card = card.replace("library_name: saelens\n", "")
    merged = merge_cards(card, generated(2, datasets=["org/c"]))
    assert front(merged) == {
        "tags": ["sae", "v2", "mine"],
        "license": "mit",
        "language": "en",
        "model-index": [{"name": "n", "value": 0.5}],
        "datasets": ["org/c", "my/b"],
    }
    assert "license: mit  # ours\n# a remark\nlanguage: en\n" in merged and "# my tag" in merged
    assert merge_cards(merged, generated(2, datasets=["org/c"])) == merged
    # An entry of ours that someone removed stays away; data sets that are all stale go.
    fewer = generated(1, datasets=["org/a"]).replace("- sae\n", "")
    assert front(merge_cards(fewer, generated(2)))["tags"] == ["v2"]
    assert "datasets" not in front(merge_cards(fewer, generated(2)))
    none = re.sub(r"tags:\n- sae\n- v1\n", "tags: []\n", generated(1))
    assert front(merge_cards(none, generated(1)))["tags"] == []
    one = re.sub(r"tags:\n- sae\n- v1\n", "tags: mine\n", generated(1))
    assert front(merge_cards(one, generated(2)))["tags"] == ["v2", "mine"]


def test_a_header_that_another_program_wrote_anew_is_still_ours() -> None:
    card = generated(4)
    values = front(card) | {"model-index": [{"value": 1, "name": "n"}]}  # 1 for 1.0
    for flow in (True, False):
        header = yaml.safe_dump(values, default_flow_style=flow)
        other = f"---\n{header}---\n{card.split('---', 2)[2].lstrip('-').lstrip()}"
        merged = merge_cards(other, generated(5))
        assert front(merged) == front(generated(5))
        assert merge_cards(merged, generated(5)) == merged


HAND = "# My SAE\n\nAll of it by hand.  \n\n```\n<!-- fastzoo:figures 0123456789 -->\n```\nend"


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
def test_a_card_that_is_all_hand_written_only_gets_the_metadata_it_lacks(
    header: str, body: str
) -> None:
    card = header + body
    merged = merge_cards(card, generated())
    readable = "license: mit" in header
    assert merged.endswith(body if readable else card)
    assert set(front(merged)) == set(front(generated()))
    if readable:
        assert front(merged)["tags"] == ["sae", "v1", "mine"] and "license: mit # so" in merged
    assert merge_cards(merged, generated()) == merged


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
def test_line_ends_blanks_and_byte_order_mark_are_no_edits(change: Any) -> None:
    merged = merge_cards(change(generated(1)), generated(2))
    assert ("\r\n" in merged) == ("\r\n" in change(generated(1)))
    assert [x.rstrip() for x in merged.splitlines()] == generated(2).splitlines()
    assert merge_cards(merged, generated(2)) == merged


def test_comments_that_are_not_whole_are_text() -> None:
    card = generated(1)
    nested = card.replace("about v1", "<!-- fastzoo:figures 0123456789 -->\nabout v1")
    lost_end = card.replace("<!-- /fastzoo:figures -->\n", "")
    doubled = card.replace(
        "<!-- fastzoo:card", card[card.index("<!-- fastzoo:figures") :] + "<!-- fastzoo:card", 1
    )
    no_marks = re.sub(r"<!-- fastzoo:card.*", "", card, flags=re.S)
    no_hash = re.sub(r"(fastzoo:figures) \w+", r"\1", card)
    noted = card.replace("sections:", "Remember the milk.\nsections:")
    noted = noted.replace("\n-->", " Buy two.\n-->")
    for old in (nested, lost_end, doubled, no_marks, no_hash, noted):
        merged = merge_cards(old, generated(2))
        assert merge_cards(merged, generated(2)) == merged
        if old is lost_end or old is no_hash:
            assert "| L0 | 1.5 |" in merged and "code v2" in merged
        if old is nested:
            assert "about v1" in merged and "| L0 | 2.5 |" in merged
        if old is doubled:
            assert merged.count("| L0 | 2.5 |") == 2
        if old is no_marks:
            assert "about v2" in merged and front(merged)["model-index"][0]["value"] == 0.25
        if old is noted:
            assert "\nRemember the milk.\nalso: Buy two.\n-->" in merged


def test_a_card_that_could_not_be_rendered_replaces_nothing() -> None:
    plain = mark_card(
        {"tags": ["sae"]}, f"<!-- fastzoo:{PLAIN} -->\n# name\n<!-- /fastzoo:{PLAIN} -->\n"
    )
    assert merge_cards(generated(1), plain) == generated(1)
    assert merge_cards(plain, plain) == plain
    body = merge_cards(plain, generated(1)).split("---\n", 2)[2]
    assert body.strip() == generated(1).split("---\n", 2)[2].strip()


WORDS = st.integers(0, 9999).map("w{}x".format)
LINES = st.one_of(
    WORDS,
    st.integers(0, 999).map("k{0}: w{0}x  # w{0}1x".format),
    st.sampled_from(
        ["- w5x # w51x", "# w6x", "  # w7x", "license: w8x", "    w9x", "k: |", "datasets: w2x"]
    ),
    st.sampled_from(
        [
            *(
                "",
                "```",
                "~~~~",
                "---",
                "<!--",
                "-->",
                "tags:",
                "- sae",
                "# ",
                "|",
                "&a",
                "{",
                "\x0c",
            ),
            *("<!-- fastzoo:figures 0123456789 -->", "<!-- /fastzoo:figures -->", "\u2028", "\x85"),
            *(
                "<!-- fastzoo:card",
                "sections: about w0x",
                "<!-- fastzoo:about -->",
                "key: 'w1x",
                "* a",
            ),
        ]
    ),
    st.text(max_size=6).map(lambda s: s.encode("utf-8", "ignore").decode()),
)


@st.composite
def edited_cards(draw: st.DrawFn) -> tuple[str, set[str]]:
    """A card after some lines of it were removed, doubled or written, and the words written."""
    lines = generated(1, datasets=["org/a"]).split("\n")
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


@settings(max_examples=150)
@given(edited_cards(), st.sampled_from([generated(1), generated(2), generated(2, NAMES[1:])]))
@example((generated(1).replace("tags:", "? tags\n:"), set()), generated(2))
@example((generated(1).replace("tags:", '"tags":'), set()), generated(2))
def test_no_word_is_lost_and_merging_again_changes_nothing(
    edited: tuple[str, set[str]], new: str
) -> None:
    card, words = edited
    merged = merge_cards(card, new)
    assert words <= set(re.findall(r"w\d+x", merged))
    assert merge_cards(merged, new) == merged
    assert isinstance(front(merged), dict)
