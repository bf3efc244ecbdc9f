"""What must hold for any input: a usable result, or one line that says what is wrong.

Each property takes a generated case and an empty folder, gives the case to the real code and returns
True where it was accepted. Anything that breaks an expectation raises: that is a crash.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import shutil
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from typer.main import get_command

# Beside this folder's parent, wherever this is started.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))

from chat_templates import TEMPLATES

from fastzoo import tiny
from fastzoo.cli import main as cli
from fastzoo.config.data_build import DataBuild
from fastzoo.config.reading import load_recipe, make_section, preset_values, resolve
from fastzoo.config.recipe import PRESETS, DataSection
from fastzoo.config.recipe_checks import check_against_model
from fastzoo.core.errors import FastzooError
from fastzoo.core.exit import report_failures
from fastzoo.core.files import resource
from fastzoo.core.strict_yaml import read_yaml
from fastzoo.data.build.normalise import normalise
from fastzoo.data.files import read_rows
from fastzoo.data.rows import open_rows
from fastzoo.data.sequences import Counts, TokenSequence
from fastzoo.data.sources import open_source
from fastzoo.data.split import open_data
from fastzoo.data.streams import TokenStream
from fastzoo.data.tokenizer import ChatTokenizer
from fastzoo.hub.find import find_local
from fastzoo.loading import load_sae
from fastzoo.results.data_set import build_data
from fastzoo.saes.formats import keys
from fastzoo.saes.names import SAEName, model_part, parse_name
from fastzoo.saes.references import parse_reference

LONGEST_MESSAGE = 1000
PEAK_BYTES = 96 << 20
"""Resident memory that one small case may need beyond what the process has."""
VIRTUAL_BYTES = 1 << 30
"""Address space likewise: memory that is asked for, though never touched."""
SECONDS = 10.0

# --- what is expected of every case -------------------------------------------------------------


def assert_one_line(message: str) -> None:
    """No line break, control character or lone surrogate, and short enough to be read."""
    assert message, "an empty message"
    assert message.isprintable(), f"not one printable line: {message!r}"
    assert len(message) <= LONGEST_MESSAGE, f"{len(message)} characters: {message!r}"


@contextlib.contextmanager
def bounded(place: Path) -> Iterator[None]:
    """Inside, a case is handled: in time and memory, and without a trace on the disk.

    The current folder is one below ``place``, so that relative paths lead into ``place`` too.
    """
    (place / "here").mkdir()
    before, cwd = tree(place), Path.cwd()
    resident, virtual = _memory(reset=True)
    started = time.perf_counter()
    os.chdir(place / "here")
    try:
        yield
    finally:
        os.chdir(cwd)
    seconds = time.perf_counter() - started
    peak, most = _memory()
    assert tree(place) == before, f"files left: {sorted(set(tree(place)) ^ set(before))}"
    assert seconds < SECONDS, f"took {seconds:.1f} s"
    assert peak - resident < PEAK_BYTES, f"needed {(peak - resident) >> 20} MiB"
    assert most - virtual < VIRTUAL_BYTES, f"asked for {(most - virtual) >> 20} MiB"


def tree(place: Path) -> dict[str, int]:
    """Every path below, with its size."""
    found = {}
    for folder, folders, names in os.walk(place):
        for name in (*folders, *names):
            path = os.path.join(folder, name)
            found[os.path.relpath(path, place)] = os.lstat(path).st_size if name in names else -1
    return found


def _memory(*, reset: bool = False) -> tuple[int, int]:
    """Peaks of resident memory (since the last reset) and address space; 0 where they are unknown."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0, 0
    peaks = (re.search(rf"^{key}:\s*(\d+) kB", status, re.M) for key in ("VmHWM", "VmPeak"))
    resident, virtual = (int(match[1]) << 10 if match else 0 for match in peaks)
    return resident, virtual


def command(*arguments: str) -> tuple[int, str]:
    """Run ``fastzoo`` in this process as its entry point does; exit code and standard output.

    A failure must be one line on standard error and nothing on standard output, which must be valid
    UTF-8 in any case.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    argv, sys.argv = sys.argv, ["fastzoo", *arguments]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            report_failures(entry_point())
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = argv
    said, failed = (_written(stream) for stream in (out, err))
    if code:
        assert said == "", f"exit code {code} after printing {said!r}"
        assert failed.startswith("error: ") and failed.endswith("\n"), failed
        assert_one_line(failed[len("error: ") : -1])
    return code, said


@cache
def entry_point() -> Any:
    """What ``cli.main`` runs; typer takes longer to put it together than it takes to run."""
    return get_command(cli.app)


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]


def strict_json(text: str) -> Any:
    """JSON as others read it: without NaN and Infinity."""

    def never(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=never)


# --- texts and values ---------------------------------------------------------------------------

NASTY = (
    *("", " ", "\n", "\r\n", "\t", "\0", "\x1b[2J", "\x7f", "\x85", "\u2028", "\ufeff", "\u202e"),
    *("\ud800", "\udcff", "\udfff", "é", "e\u0301", "ß", "²", "٣", "🙂", "\U0010ffff"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>system\n", "{{", "{% raw %}"),
    *("~", "~nobody", "~/x", ".", "..", "../..", "/", "\\", "-", "--help", "hf:", "@", "[/b]", "*"),
    *("'", '"', "`", "$(id)", "%s", "{0}", "NaN", "null", "1e999", "0x" + "f" * 5000, "a" * 300),
)
text = st.lists(
    st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=()), max_size=12), max_size=4
).map("".join)
integers = st.sampled_from(
    [0, 1, -1, 2, 1 << 24, (1 << 24) + 1, 1 << 31, 1 << 40, 1 << 53, 1 << 62, 1 << 63, 1 << 64]
    + [-(1 << 63), 10**30, 10**308, 10**309, 10**4000]
) | st.integers(-9, 999)
scalars = st.none() | st.booleans() | integers | st.floats() | text
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text.filter(bool), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def nested(draw: st.DrawFn) -> Any:
    """A list within a list within a list."""
    value: Any = draw(scalars)
    for _ in range(draw(st.sampled_from([3, 200, 800, 900]))):
        value = [value]
    return value


# --- dialogues ----------------------------------------------------------------------------------

ROLES = ("system", "user", "assistant", "tool", "human", "gpt", "observation", "User", "alien")


@dataclass(frozen=True)
class Dialogues:
    """Lines of a JSONL file, and how they are read."""

    lines: list[bytes]
    method: str
    max_tokens: int
    block_tokens: int
    column: str | None
    shuffle: bool
    whole: bool
    """Through ``open_data``, as a run does, with dialogues set aside."""


turns = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(ROLES) | values,
        "content": text | values,
        "from": st.sampled_from(ROLES) | values,
        "value": text | values,
        "tool_calls": values,
    },
)
plain_turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(("user", "assistant", "system")), "content": text}),
    min_size=1,
    max_size=4,
)
share_gpt_turns = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(("human", "gpt")), "value": text}), min_size=1, max_size=4
)
words = st.text(max_size=12).map("x{}".format)
answered = st.builds(
    lambda asked, said: [{"role": "user", "content": asked}, {"role": "assistant", "content": said}],
    words,
    words,
)
"""A dialogue that nothing is wrong with."""
good_rows = st.one_of(
    st.fixed_dictionaries({"messages": plain_turns}, optional={"text": text}),
    st.fixed_dictionaries({"conversations": share_gpt_turns}, optional={"text": text}),
    st.fixed_dictionaries({"messages": plain_turns, "text": text | values}),
)
rows = st.one_of(
    good_rows,
    st.fixed_dictionaries(
        {},
        optional={
            "messages": st.lists(turns | values, max_size=3) | values,
            "conversations": st.lists(turns | values, max_size=3) | values,
            "text": text | values,
        },
    ),
    nested(),
    values,
)


def _line(row: Any, escaped: bool) -> bytes:
    return json.dumps(row, ensure_ascii=escaped).encode("utf-8", "surrogatepass")


lines = st.one_of(
    st.builds(_line, rows, st.just(True)),
    st.builds(_line, rows, st.booleans()),
    st.builds(_line, rows, st.just(True)),
    st.sampled_from([b"", b" ", b"\xef\xbb\xbf{}", b"{", b"[" * 9000, b'{"a":1}{', b"\xff\xfe"]),
    st.binary(max_size=12),
)
dialogues = st.builds(
    Dialogues,
    lines=st.lists(st.builds(_line, good_rows, st.just(True)), min_size=1, max_size=4)
    | st.lists(st.builds(_line, rows, st.just(True)), max_size=6)
    | st.lists(lines, min_size=1, max_size=6),
    method=st.sampled_from(("fast", "bt-f", "bt-p")),
    max_tokens=st.integers(2, 40),
    block_tokens=st.integers(2, 12),
    column=st.sampled_from((None, None, None, "messages", "text", "none")),
    shuffle=st.booleans(),
    whole=st.booleans(),
)


@cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.MODEL)


def check_dialogues(case: Dialogues, place: Path) -> bool:
    """A file of any rows: sequences that are what they should be, or one line."""
    path = place / "rows.jsonl"
    path.write_bytes(b"\n".join(case.lines))
    data = {"source": str(path), "max_tokens": case.max_tokens, "block_tokens": case.block_tokens}
    run = resolve(
        {
            "layers": [1],
            "expansions": [2],
            "architectures": ["standard"],
            "method": case.method,
            "data": data | {"column": case.column, "shuffle": case.shuffle},
            "text": {"source": str(path), "shuffle": case.shuffle},
            "evaluation": {"dialogues": 1},
        },
        "case",
    )
    tokenizer()  # loaded once, at nobody's expense
    with bounded(place):
        try:
            chat = ChatTokenizer(tokenizer(), run.data, "tiny-chat")
            if case.whole:
                opened = open_data(chat, run.method, run.text, run.evaluation, run.seed)
                stream = opened.stream
                for sequence in opened.held_out:
                    _check_sequence(sequence, case.max_tokens, whole=True)
                for line in (*opened.summary(), opened.after_training()):
                    assert_one_line(line)
            else:
                section = run.text if case.method == "bt-p" else run.data
                shape = {"block_tokens": run.data.block_tokens, "column": run.text.column}
                stream = TokenStream(chat, open_rows(section, run.seed), run.method, **shape)
            found = list(islice(stream, 20))
        except FastzooError as error:
            assert_one_line(str(error))
            return False
    for sequence in found:
        if case.method == "fast":
            _check_sequence(sequence, case.max_tokens, whole=True)
        else:
            assert len(sequence) == case.block_tokens
            _check_sequence(sequence, case.block_tokens, whole=False)
    counts = stream.counts
    assert len(found) == 20 and counts.tokens == sum(map(len, found))
    assert counts.rows == counts.used + sum(counts.skipped.values())
    json.dumps(counts.as_dict(), allow_nan=False).encode()
    for reason in counts.skipped:
        assert_one_line(reason)
    return True


def _check_sequence(sequence: TokenSequence, longest: int, *, whole: bool) -> None:
    """Lengths, types, positions, ids and special flags of a sequence."""
    length = len(sequence)
    assert 0 < length <= longest
    columns = (sequence.ids, sequence.position, sequence.dialogue, sequence.special)
    assert [len(c) for c in columns] == [length] * 4
    assert [c.dtype for c in columns] == [np.int64, np.int32, np.int64, np.bool_]
    assert sequence.ids.min() >= 0 and sequence.ids.max() < len(tokenizer())
    assert (sequence.dialogue >= 0).all()
    if whole:
        assert (sequence.position == np.arange(length)).all()
        assert len(set(sequence.dialogue.tolist())) == 1
    else:
        # Within a dialogue positions count up; a new one starts at 0.
        goes_on = sequence.position[1:] == sequence.position[:-1] + 1
        assert (goes_on | (sequence.position[1:] == 0)).all()
    special = np.isin(sequence.ids, tokenizer().all_special_ids)
    assert (sequence.special == special).all()


# --- templates ----------------------------------------------------------------------------------

WRITTEN = (
    *("{{ m.content }}", "{{ m['content'] + '' }}", "{{ m.content | trim }}", "{{ m.content[0].text }}"),
    *(
        "{% for p in m.content %}{{ p.text }}{% endfor %}",
        "{{ m.reasoning_content }}",
        "{{ m.tool_calls | tojson }}",
    ),
    *(
        "{{ m.tool_calls[0].function.name }}",
        "{{ m | tojson }}",
        "{{ m.name ~ m.tool_call_id }}",
        "{{ m.role }}",
    ),
    *("<|im_start|>", "<|im_end|>", "<|", "|>", "### ", "\n", "{{ tools | tojson(ensure_ascii=true) }}"),
    *(
        "{{ documents }}",
        "{{ enable_thinking }}",
        "{{ strftime_now('%A %-d %s') }}",
        "{{ strftime_now(m.content) }}",
    ),
    *(
        "{{ date_string }}",
        "{{ eos_token }}",
        "{{ raise_exception(m.content) }}",
        "{{ m.content | random }}",
        "{% if",
    ),
    *(
        "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0]['text'] }}{% endif %}",
        "{{ 1 // 0 }}",
    ),
)


@dataclass(frozen=True)
class TemplateCase:
    """A chat template, and a row that it is given."""

    template: str
    row: Any
    special_text: str


fields = st.fixed_dictionaries(
    {"role": st.sampled_from(("system", "developer", "user", "assistant", "tool"))},
    optional={
        "content": text
        | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": text}), max_size=2)
        | values,
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {"function": st.fixed_dictionaries({"name": text, "arguments": text | values}) | values}
            ),
            max_size=2,
        )
        | values,
        "reasoning_content": text | values,
        "thinking": text | values,
        "name": text | values,
        "tool_call_id": text | values,
    },
)
template_rows = st.fixed_dictionaries(
    {
        "messages": st.lists(plain_turns | st.lists(fields, max_size=3), max_size=2).map(
            lambda x: [*chain(*x)]
        )
    },
    optional={
        "tools": st.lists(st.dictionaries(text, values, max_size=2), max_size=2) | text | values,
        "documents": values,
        "enable_thinking": values,
        "chat_template_kwargs": st.dictionaries(
            text | st.sampled_from(("tools", "tokenize")), values, max_size=2
        )
        | values,
    },
)
templates = st.builds(
    TemplateCase,
    template=st.sampled_from([template for template, _ in TEMPLATES.values()])
    | st.lists(st.sampled_from(WRITTEN), min_size=1, max_size=6).map(
        lambda parts: "{% for m in messages %}" + "".join(parts) + "{% endfor %}"
    ),
    row=st.fixed_dictionaries({"messages": answered}) | template_rows,
    special_text=st.sampled_from(("literal", "literal", "drop", "allow")),
)


def check_template(case: TemplateCase, place: Path) -> bool:
    """Any template and any fields: a sequence, in which no field forges a special token, or one line."""
    model = copy.deepcopy(tokenizer())
    model.chat_template = case.template
    row = json.loads(json.dumps(case.row))
    with bounded(place):
        try:
            chat = ChatTokenizer(model, DataSection(max_tokens=4096, special_text=case.special_text), "case")
        except FastzooError as error:
            assert_one_line(str(error))
            return False
        counts = Counts()
        found = list(chat.dialogues([(0, row)], counts))
        ids, header = chat.template.ends()
        assert ids <= set(range(len(model))) and header != ""
        again = list(chat.dialogues([(0, row)], Counts()))
        assert [s.ids.tolist() for s in found] == [s.ids.tolist() for s in again]
    assert counts.rows == 1 == len(found) + counts.skipped.total()
    json.dumps(counts.as_dict(), allow_nan=False).encode()
    for reason in counts.skipped:
        assert_one_line(reason)
    for sequence in found:
        _check_sequence(sequence, 4096, whole=True)
    if case.special_text == "drop":
        assert not (found and counts.special_text)
    return bool(found)


# --- recipes ------------------------------------------------------------------------------------

BASE = "layers: [1]\nexpansions: [2]\narchitectures: [standard]\n"
PIECES = (
    *("layers: [1000000000]\n", "layers: [-1]\n", "layers: [true]\n", "expansions: [1e9]\n"),
    *("expansions: [99999999999999999999]\n", "layers: {}\n", "training: null\n", "model: []\n"),
    *("a: &x 1\n", "b: *x\n", "<<: {layers: [2]}\n", "&a ", "*a", "!!python/name:os.system ", "!x "),
    *("!!int ''", "!!float x", "!!set {a}", "!!binary é", "!!timestamp x", "!!bool x", "!!null 1"),
    *("? ", "- ", "--- ", "...", "%YAML 9.9\n", "%TAG ! x\n", "|\n", ">-\n", "# ", "\t", "  ", "\r"),
    *("[", "]", "{", "}", ":", ",", "'", '"', '"\\ud800"', '"\\0"', '"\\x1b[2J"', '"a\\nb"', "\ufeff"),
    *(".nan", "-.inf", "1e400", "-1e400", "0x" + "f" * 5000, "1" * 5000, "0b1", "010", "1:30:00"),
    *("1:" * 300 + "1.0", "2024-99-99", "2024-01-01", "yes", "on", "~", "1_0e1_0", "[" * 2000),
    *("{a: " * 400, "[[]]", "[1,2],", "layers: [1, 1]\n", "\0", "\x85", "\u2028", "a" * 5000),
    "layers: [" + "1, " * 3000 + "1]\n",
)
KEYS = (
    *("layers", "expansions", "architectures", "method", "preset", "seed", "threads", "nonsense"),
    *("model.name", "model.revision", "model.dtype", "model.pack_tokens", "data.source", "data.date"),
    *("data.max_tokens", "data.shuffle", "data", "training", "training.lr", "training.tokens"),
    *("training.lr_warmup", "training.lr_decay", "training.sparsity_warmup", "training.adam_betas"),
    *("training.sparsity_coefficient", "training.sparsity_coefficient.standard", "output.folder"),
    *("training.batch_size", "training.buffer_tokens", "training.sparsity_width", "output.trackers"),
    *("evaluation.dialogues", "evaluation.source", "push.namespace", "compute.step", "method.x"),
)
FITTING = (
    *("layers=[1, 2]", "layers=[9999]", "expansions=[8]", "expansions=[1024]", "method=bt-p"),
    *("architectures=[jumprelu, standard]", "preset=paper", "preset=quick", "seed=7", "seed=0"),
    *("training.lr=1e-22", "training.lr=1e22", "training.lr=3.5e-300", "training.lr=1e308"),
    *("training.tokens=1e15", "training.tokens=9e18", "training.lr_warmup=0.5", "training.lr_decay=1"),
    *("training.sparsity_coefficient.standard=7", "training.adam_betas=[0.9, 0.99]", "threads=null"),
    *("model.name='1e6'", 'model.name="a\\nb"', "model.name=~x", "model.name=é/..", "model.name=/"),
    *("model.name=" + "a" * 400, "data.source=' x '", "data.revision='0123'", "data.date=null"),
    *("data.date='2024-01-01'", "data.column='on'", "data.subset='1:30'", "data.split='='"),
    *("output.folder=~", "output.folder=''", 'output.folder="\\x1b[2J"', "output.trackers=[wandb]"),
    *("training.batch_size=4e18", "training.buffer_tokens=9e18", "evaluation.source='<<'"),
)


@dataclass(frozen=True)
class RecipeCase:
    """Bytes of a recipe file and overrides."""

    file: bytes
    overrides: list[str]


@cache
def base_recipes() -> list[str]:
    """Recipes that are in use, and one with every key written out."""
    resolved = [resolve({**read_yaml(BASE, "base"), "preset": p}, "base").to_yaml() for p in PRESETS]
    shipped = [p.read_text(encoding="utf-8") for p in sorted(resource("recipes").glob("*.yaml"))]
    return [BASE, *resolved, *shipped]


@st.composite
def mutated_recipes(draw: st.DrawFn) -> str:
    """A recipe in use after a few cuts, insertions and changed values."""
    recipe = draw(st.sampled_from(base_recipes()))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(recipe)))
        piece = draw(st.sampled_from(PIECES) | text)
        kind = draw(st.sampled_from(("insert", "cut", "line", "value", "twice")))
        if kind == "insert":
            recipe = recipe[:at] + piece + recipe[at:]
        elif kind == "cut":
            recipe = recipe[:at] + recipe[at + draw(st.integers(1, 30)) :]
        elif kind == "twice":
            recipe = recipe[:at] + recipe[max(0, at - 40) :]
        else:
            found = recipe.splitlines(keepends=True)
            index = at % max(1, len(found))
            if kind == "line":
                found.insert(index, piece if piece.endswith("\n") else piece + "\n")
            elif found:
                found[index] = found[index].partition(":")[0] + ": " + piece + "\n"
            recipe = "".join(found)
    return recipe


@st.composite
def structured_recipes(draw: st.DrawFn) -> str:
    """The real keys with values of any kind."""
    recipe: dict[str, Any] = {"layers": [1], "expansions": [2], "architectures": ["standard"]}
    for key in draw(st.lists(st.sampled_from(KEYS) | text, max_size=3)):
        *sections, last = key.split(".")
        section = recipe
        for name in sections:
            inner = section.get(name)
            section[name] = inner if isinstance(inner, dict) else {}
            section = section[name]
        section[last] = draw(values)
    return str(yaml.dump(recipe, allow_unicode=draw(st.booleans()), sort_keys=False))


overrides = st.lists(
    st.one_of(
        st.sampled_from(FITTING),
        st.sampled_from(FITTING),
        st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(PIECES) | text),
        text,
    ),
    max_size=2,
)


def _bytes(recipe: str, encoding: str) -> bytes:
    return recipe.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


recipes = st.builds(
    RecipeCase,
    file=st.builds(_bytes, st.sampled_from(base_recipes()), st.just("utf-8")),
    overrides=st.lists(st.sampled_from(FITTING), max_size=3),
) | st.builds(
    RecipeCase,
    file=st.one_of(
        st.builds(_bytes, st.sampled_from(base_recipes()), st.just("utf-8")),
        st.builds(_bytes, mutated_recipes(), st.just("utf-8")),
        st.builds(_bytes, mutated_recipes() | text, st.sampled_from(("utf-8", "utf-16", "latin-1"))),
        st.builds(_bytes, structured_recipes(), st.just("utf-8")),
        st.builds(
            lambda parts: "".join(parts).encode("utf-8", "surrogatepass"),
            st.lists(st.sampled_from(PIECES) | text, max_size=8),
        ),
        st.binary(max_size=40),
    ),
    overrides=overrides,
)


def check_recipe(case: RecipeCase, place: Path) -> bool:
    """A recipe file and overrides: a recipe that reads back as itself, or one line."""
    path = place / "mine.yaml"
    path.write_bytes(case.file)
    with bounded(place):
        try:
            recipe = load_recipe(path, case.overrides)
        except FastzooError as error:
            assert_one_line(str(error))
            return False
        with contextlib.suppress(FastzooError):
            check_against_model(recipe, 4, 512)
    assert "\0" not in str(recipe.folder)
    assert all(len(str(name).encode()) < 100 for name in recipe.names())
    saved = recipe.to_yaml()
    again = resolve(read_yaml(saved, "again"), "again")
    assert again == recipe and again.to_yaml() == saved
    (place / "saved.yaml").write_text(saved, encoding="utf-8")
    assert load_recipe(place / "saved.yaml") == recipe
    return True


# --- names --------------------------------------------------------------------------------------

NAME_PARTS = (
    *("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", "tiny-chat", "-L18", "-L99999", "-8x", "-0x"),
    *("-jumprelu", "-standard", "-topk", "-fast", "-bt-p", "hf:", "org/repo", "/", "@main", "@", "//"),
    *("[!", "]", "*", "?", "[a-", "[]", "a" * 60, "runs/", "./"),
)


@dataclass(frozen=True)
class Name:
    """A text that somebody gives as a name, reference, folder, pattern or model."""

    text: str


names = st.builds(
    Name,
    st.builds(
        "{}-L{}-{}x-{}{}".format,
        st.sampled_from(("tiny-chat", "Qwen2.5-7B", "a", "a" * 300, "..", "é")),
        st.integers(0, 20000),
        st.integers(0, 20000),
        st.sampled_from(("standard", "JumpReLU", "topk", "gated")),
        st.sampled_from(("", "-fast", "-bt-f", "-BT-P", "-x", "\n")),
    )
    | st.builds(
        "hf:{}{}{}".format,
        st.sampled_from(("org/repo", "o.r/g_1", "org/--", "org", "a/b/c")),
        st.sampled_from(("", "/x/y", "/..", "/é/²", "/.git", "//", "/a b")) | text,
        st.sampled_from(("", "@main", "@refs/pr/1", "@é", "@-x", "@a..b", "@a//b")) | text,
    )
    | st.builds(
        "hf:org/repo{}{}".format,
        st.builds("/x{}".format, text) | st.just(""),
        st.builds("@r{}".format, st.sampled_from(NASTY) | text),
    )
    | st.lists(st.sampled_from(NAME_PARTS) | text, max_size=5).map("".join)
    | text,
)


def check_name(case: Name, place: Path) -> bool:
    """A text as SAE name, Hub reference, model, local folder and pattern."""
    said, accepted = case.text, False
    with bounded(place):
        for read in (parse_name, parse_reference):
            try:
                found = read(said)
            except FastzooError as error:
                assert_one_line(str(error))
                continue
            accepted = True
            assert str(found).isprintable() and read(str(found)) == found
        # Any model must lead to names that can be folders, Hub repositories and arguments.
        name = SAEName(model_part(said), 9999, 1024, "jumprelu", "bt-f")
        assert parse_name(str(name)) == name and len(str(name)) <= 96
        if not said.startswith("hf:"):
            try:
                find_local(said)
            except FastzooError as error:
                assert_one_line(str(error))
        if "\0" not in said:  # no argument can hold one
            code, out = command("list", "--json", "--folder", "runs", "--", said)
            assert code == 0 and isinstance(strict_json(out), list)
    return accepted


# --- SAE files ----------------------------------------------------------------------------------

D, F = 4, 6
SHAPES = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,), "threshold": (F,)}
LAYOUTS = ("saelens", "saelens-topk", "saelens-flat", "sparsify", "gemma-scope")
WEIGHTS_FILE = {"sparsify": "sae.safetensors", "gemma-scope": "params.npz"}
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I8": "|i1",
    "BOOL": "|b1",
    "F8_E4M3": "|u1",
    "C64": "<c8",
    "U16": "<u2",
    "X": "<f4",
}
NPY_DTYPES = ("<f4", "<f8", "<f2", ">f4", "<i4", "|O", "<c8", "<f16", "|S3", "|V4", "<U2", "<M8[s]")


@dataclass(frozen=True)
class Array:
    """An array of a file: what its header says, how it is filled, and how many bytes it has too many."""

    dtype: str
    shape: tuple[int, ...]
    fill: float | None = None
    """None: small random numbers."""
    surplus: int = 0

    def data(self) -> bytes:
        kind = np.dtype(DTYPES.get(self.dtype, self.dtype) if self.dtype != "|O" else "<f4")
        size = int(np.prod(self.shape, dtype=object)) if self.shape else 1
        values = np.random.default_rng(0).standard_normal(min(max(size, 0), 4096)) * 0.3
        if self.fill is not None:
            values[:1] = self.fill
        with np.errstate(all="ignore"):
            made = values.astype(kind) if kind.kind in "fiubc" else np.zeros(len(values), kind)
        raw = made.tobytes()
        return raw[: len(raw) + self.surplus] if self.surplus < 0 else raw + bytes(self.surplus)


@dataclass(frozen=True)
class SAEFolder:
    """Changes to a valid folder of one layout."""

    layout: str
    config: dict[str, Any]
    """cfg.json; {} for none."""
    raw: dict[str, bytes]
    """JSON files replaced altogether."""
    arrays: dict[str, Array | None]
    header: dict[str, Any]
    """Keys of the safetensors header that are changed, per array; of the npz, ``descr`` texts."""
    damage: list[tuple[str, int, int]]
    """To the bytes of the weights: what, where, how much."""
    record: dict[str, Any] | None
    figures: Any
    packed: bool
    """An npz: compressed."""


CONFIGS: dict[str, dict[str, Any]] = {
    "saelens": {
        "architecture": "jumprelu",
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {
            "model_name": "tiny-chat",
            "hook_name": "model.layers.1",
            "hook_layer": 1,
            "model_from_pretrained_kwargs": {"dtype": "float32"},
        },
    },
    "saelens-topk": {
        "architecture": "topk",
        "d_in": D,
        "d_sae": F,
        "k": 2,
        "metadata": {},
        "rescale_acts_by_decoder_norm": True,
    },
    "saelens-flat": {
        "d_in": D,
        "d_sae": F,
        "hook_point": "blocks.3.hook_resid_post",
        "model_name": "gpt2",
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {"k": 2},
        "finetuning_scaling_factor": False,
    },
    "sparsify": {
        "activation": "topk",
        "expansion_factor": 32,
        "num_latents": F,
        "k": 4,
        "d_in": D,
        "skip_connection": False,
        "transcode": False,
    },
    "gemma-scope": {},
}
RECORD: dict[str, Any] = {
    "library": "fastzoo",
    "format": 1,
    "name": "tiny-chat-L1-8x-jumprelu",
    "sae": {"method": "fast", "layer": 1},
    "base_model": {"name": "tiny-chat", "sha": "sha256:0"},
    "training_data": {"name": "embedded:dialogues.jsonl"},
    "recipe": {"preset": "quick", "training": {"tokens": 5, "sparsity_coefficient": {"jumprelu": 1.0}}},
}
FIGURES: dict[str, Any] = {
    "metrics": {
        **{m: {"all": {"value": 1.5}, "special": {"value": 2}} for m in ("l0", "log2_mse")},
        "kl": {"all": {"value": None}},
    },
    "paper": {"log2_mse": -3.0, "log2_mse_special": 0.5},
}
TABLES = (keys.SAELENS, keys.SPARSIFY, keys.MODEL_ARGUMENTS, keys.ACTIVATION_ARGUMENTS)
CONFIG_KEYS = sorted(
    {key for config in CONFIGS.values() for key in config}
    | {name for table in TABLES for row in table for name in row.names}
    | {"scaling_factor", "hook_side", "signed_k", ""}
)
ARRAY_NAMES = (*SHAPES, "encoder.weight", "encoder.bias", "scaling_factor", "../x", "a\nb")

sizes = st.sampled_from([0, 1, D, F, D + 1, 1 << 20, 1 << 24, 1 << 31, 1 << 40, 1 << 62, -1])
shapes = st.lists(sizes, max_size=3).map(tuple) | st.sampled_from(list(SHAPES.values()))
arrays = st.builds(
    Array,
    dtype=st.sampled_from((*DTYPES, "F32", "F32", *NPY_DTYPES)),
    shape=shapes,
    fill=st.none() | st.floats() | st.sampled_from((float("nan"), float("inf"), 1e38, -3e38)),
    surplus=st.sampled_from((0, 0, 0, 0, 1, -1, 64)),
)
fitting_arrays = st.builds(
    Array,
    dtype=st.sampled_from(("F32", "F64", "F16", "BF16", "<f8", "<f2")),
    shape=st.sampled_from(list(SHAPES.values())),
    fill=st.none() | st.floats(),
)
foreign_values = st.one_of(
    values,
    nested(),
    st.sampled_from(["blocks.²", "9" * 5000, "layer_٣", "blocks.18.hook", "relu", "topk", "gated"]),
    st.sampled_from(
        ["blocks.2.hook_resid_pre", "model.layers.1", "h.0.input", "transformer/h/3", "layer_norm"]
    ),
    st.sampled_from([True, -1, 10**4000, float("nan"), float("inf"), "\ud800", "\x1b]0;x\x07", "a\nb"]),
)


@st.composite
def changed(draw: st.DrawFn, base: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with up to two values, at any depth, changed or taken away."""
    value = json.loads(json.dumps(base))
    for _ in range(draw(st.integers(0, 2))):
        inner = value
        while inner:
            key = draw(st.sampled_from(sorted(inner)))
            if isinstance(inner[key], dict) and draw(st.integers(0, 2)):
                inner = inner[key]
                continue
            if draw(st.booleans()):
                del inner[key]
            else:
                inner[key] = draw(foreign_values)
            break
    return value


@st.composite
def folders(draw: st.DrawFn) -> SAEFolder:
    """A valid folder with a few things wrong, or none."""
    layout = draw(st.sampled_from(LAYOUTS))
    config = draw(changed(CONFIGS[layout]))
    if draw(st.integers(0, 3)) == 0:
        config |= draw(st.dictionaries(st.sampled_from(CONFIG_KEYS), foreign_values | sizes, max_size=2))
    return draw(st.builds(SAEFolder, layout=st.just(layout), config=st.just(config), **REST))


REST: dict[str, st.SearchStrategy[Any]] = {
    "raw": st.just({})
    | st.dictionaries(
        st.sampled_from(("cfg.json", "../config.json", "../metrics.json")),
        st.binary(max_size=20)
        | st.sampled_from((b"", b"{", b"[" * 5000, b"\xef\xbb\xbf{}", b"NaN", b'{"a": ' * 2000)),
        max_size=1,
    ),
    "arrays": st.just({})
    | st.dictionaries(st.sampled_from(ARRAY_NAMES) | text, fitting_arrays | arrays | st.none(), max_size=2),
    "header": st.just({})
    | st.dictionaries(
        st.sampled_from((*ARRAY_NAMES, "__metadata__")) | text,
        st.one_of(
            values,
            st.fixed_dictionaries(
                {},
                optional={
                    "dtype": st.sampled_from((*DTYPES, *NPY_DTYPES)) | values,
                    "shape": st.lists(sizes, max_size=3) | values,
                    "data_offsets": st.lists(sizes, max_size=3) | values,
                },
            ),
            nested(),
        ),
        max_size=1,
    ),
    "damage": st.just([])
    | st.lists(
        st.tuples(
            st.sampled_from(("flip", "cut", "insert", "length", "zero")),
            st.integers(0, 2000),
            st.integers(0, 255) | integers,
        ),
        max_size=2,
    ),
    "record": st.none() | changed(RECORD),
    "figures": changed(FIGURES) | values,
    "packed": st.booleans(),
}


def _safetensors(case: SAEFolder, made: dict[str, Array]) -> bytes:
    header: dict[str, Any] = {}
    data = b""
    for name, array in made.items():
        raw = array.data()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": array.dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    for name, change in case.header.items():
        entry = header.get(name)
        both = isinstance(entry, dict) and isinstance(change, dict)
        header[name] = {**entry, **change} if both else change
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _npz(case: SAEFolder, made: dict[str, Array]) -> bytes:
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if case.packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in made.items():
            says = {"descr": array.dtype, "fortran_order": False, "shape": array.shape}
            change = case.header.get(name)
            if isinstance(change, dict):
                shape = change.get("shape", array.shape)
                says["shape"] = tuple(shape) if isinstance(shape, list) else shape
                says["descr"] = change.get("dtype", array.dtype)
            text = repr(says).encode("utf-8", "replace")[:60_000] + b"\n"
            head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
            # A NUL ends a name in a ZIP file, and a lone surrogate cannot be in one.
            entry = name.partition("\0")[0].encode("utf-8", "replace").decode()
            archive.writestr(f"{entry}.npy", head + array.data())
    return file.getvalue()


def _damaged(raw: bytes, damage: list[tuple[str, int, int]]) -> bytes:
    for kind, where, much in damage:
        changed = bytearray(raw)
        at = where % (len(raw) + 1)
        if kind == "flip" and at < len(raw):
            changed[at] ^= 1 << (much % 8)
        elif kind == "cut":
            del changed[at : at + 1 + much % 4096]
        elif kind == "insert":
            changed[at:at] = bytes([much % 256])
        elif kind == "length":
            changed[:8] = struct.pack("<Q", much % (1 << 64))
        elif kind == "zero":
            changed[at : at + 64] = bytes(len(changed[at : at + 64]))
        raw = bytes(changed)
    return raw


def make_folder(case: SAEFolder, place: Path) -> Path:
    """Write a case's files; the folder of the SAE."""
    root = place / "runs" / "tiny-chat-L1-8x-jumprelu"
    folder = root / ("layer_20" if case.layout == "gemma-scope" else "blocks.1.hook_resid_post")
    folder.mkdir(parents=True)
    kept = dict(SHAPES)
    if case.layout != "saelens" and case.layout != "gemma-scope":
        del kept["threshold"]
    if case.layout == "sparsify":
        kept |= {"encoder.weight": (F, D), "encoder.bias": (F,)}
        del kept["W_enc"], kept["b_enc"]
    npz = case.layout == "gemma-scope"
    made = {name: Array("<f4" if npz else "F32", shape) for name, shape in kept.items()}
    for name, array in case.arrays.items():
        if array is None:
            made.pop(name, None)
        elif (array.dtype in DTYPES) != npz:
            made[name] = array
    raw = (_npz if npz else _safetensors)(case, made)
    name = WEIGHTS_FILE.get(case.layout, "sae_weights.safetensors")
    (folder / name).write_bytes(_damaged(raw, case.damage))
    if case.config:
        (folder / "cfg.json").write_text(json.dumps(case.config))
    if case.record is not None:
        (root / "config.json").write_text(json.dumps(case.record))
    (root / "metrics.json").write_text(json.dumps(case.figures))
    for name, content in case.raw.items():
        (folder / name).write_bytes(content)
    return root


def check_sae(case: SAEFolder, place: Path) -> bool:
    """A folder of files: a finite SAE or one line; ``info`` and ``list`` never crash."""
    root = make_folder(case, place)
    accepted = True
    with bounded(place):
        try:
            sae = load_sae(root)
        except FastzooError as error:
            assert_one_line(str(error))
            accepted = False
        else:
            for name, parameter in sae.named_parameters():
                assert torch.isfinite(parameter).all(), name
            assert sae.W_enc.shape == (sae.d_in, sae.d_sae)
            assert sae(torch.ones(1, sae.d_in)).shape == (1, sae.d_in)
        for more in ((), ("--json",)):
            code, out = command("info", str(root), *more)
            assert (code == 0) is accepted
            if accepted:
                layer = strict_json(out)["layer"] if more else None
                assert layer is None or (type(layer) is int and 0 <= layer < 10_000)
                assert more or all(line.isprintable() for line in out.split("\n"))
            code, out = command("list", "--local", "--folder", str(root.parent), *more)
            assert code == 0
            found = strict_json(out) if more else out.splitlines()[1:]
            assert len(found) == 1 and "tiny-chat-L1-8x-jumprelu" in str(found[0])
    return accepted


# --- files of rows --------------------------------------------------------------------------------

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
COLUMNS = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "chosen",
    "text",
    "instruction",
    "output",
    "input",
)


@dataclass(frozen=True)
class DataFile:
    """Rows, written into a file of some kind, and what was done to its bytes."""

    rows: list[Any]
    ending: str
    packed: str
    damage: list[tuple[str, int, int]]
    kind: str
    column: str | None


any_rows = st.one_of(
    good_rows,
    rows,
    st.dictionaries(st.sampled_from(COLUMNS) | text, plain_turns | turns | text | values, max_size=4),
    st.fixed_dictionaries({"prompt": text, "completion": text}),
    plain_turns,
)
usual_rows = st.one_of(
    st.fixed_dictionaries({"messages": answered}),
    st.fixed_dictionaries({"prompt": words, "completion": words}, optional={"text": text}),
    st.fixed_dictionaries({"chosen": answered, "rejected": answered}),
)
data_files = st.builds(
    DataFile,
    rows=st.lists(usual_rows, min_size=1, max_size=5),
    ending=st.sampled_from(ENDINGS),
    packed=st.sampled_from(("", ".gz", ".zst")),
    damage=st.just([]),
    kind=st.just("dialogues"),
    column=st.none(),
) | st.builds(
    DataFile,
    rows=st.lists(any_rows, max_size=5),
    ending=st.sampled_from(ENDINGS),
    packed=st.sampled_from(("", "", ".gz", ".zst")),
    damage=st.one_of(
        st.just([]),
        st.lists(
            st.tuples(
                st.sampled_from(("cut", "flip", "insert", "zero")),
                st.integers(0, 1 << 20),
                st.integers(0, 255),
            ),
            max_size=2,
        ),
    ),
    kind=st.sampled_from(("dialogues", "dialogues", "text")),
    column=st.sampled_from((None, None, None, *COLUMNS)),
)


def _written_rows(case: DataFile) -> bytes:
    """The rows as a file of this kind has them; a kind that cannot hold them gets them as text."""
    import csv
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    if case.ending in (".csv", ".tsv"):
        out = io.StringIO()
        writer = csv.writer(out, delimiter="\t" if case.ending == ".tsv" else ",")
        tables = [row if isinstance(row, dict) else {"row": row} for row in case.rows]
        names = list(dict.fromkeys(name for row in tables for name in row)) or ["text"]
        writer.writerow(names)
        for row in tables:
            cells = [row.get(name, "") for name in names]
            writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in cells])
        data = out.getvalue().encode("utf-8", "surrogatepass")
    elif case.ending in (".parquet", ".arrow"):
        try:
            table = pa.Table.from_pylist([row for row in case.rows if isinstance(row, dict)])
        except Exception:  # rows that no table can hold
            table = pa.table({"text": ["a"]})
        sink = io.BytesIO()
        if case.ending == ".parquet":
            try:
                pq.write_table(table, sink)
            except Exception:  # a struct without a field
                pq.write_table(pa.table({"text": ["a"]}), sink := io.BytesIO())
        else:
            with pa.ipc.new_file(sink, table.schema) as writer_:
                writer_.write_table(table)
        data = sink.getvalue()
    elif case.ending == ".json":
        data = json.dumps(case.rows).encode()
    else:
        data = b"".join(json.dumps(row).encode() + b"\n" for row in case.rows)
    if case.packed == ".gz":
        data = gzip.compress(data)
    elif case.packed == ".zst":
        sink_ = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink_, "zstd") as compressed:
            compressed.write(data)
        data = sink_.getvalue().to_pybytes()
    return _damaged(data, case.damage)


def check_data_file(case: DataFile, place: Path) -> bool:
    """Built into a data set whose rows are whole, or refused in one line; streamed and by number the rows are the same."""
    path = place / f"rows{case.ending}{case.packed}"
    try:
        path.write_bytes(_written_rows(case))
    except (ValueError, RecursionError, OverflowError):  # what Python cannot write
        return False
    section = {"source": str(path), "column": case.column}
    config = {"name": "set", "folder": str(place / "out"), "kind": case.kind, "sources": [section]}
    config |= {"shard_rows": 2, "deduplication": {"n": 2, "short": "unique"}}
    data_library()  # loaded once, at nobody's expense
    with bounded(place):
        try:
            built = build_data(
                make_section(DataBuild, "case", **config), say=lambda line: assert_one_line(line)
            )
        except FastzooError as error:
            assert_one_line(str(error))
            assert not (place / "out").exists()
            shutil.rmtree(place / ".out.building", ignore_errors=True)
            return False
        finally:
            for left in place.glob(".out.*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        manifest = built.manifest
        (source,) = manifest["sources"]
        assert source["rows"] == source["usable"] + sum(source["skipped"].values())
        for reason in (*source["skipped"], *source["repaired"]):
            assert_one_line(reason)
        found = 0
        for split in built.splits():
            built.check(split)
            for file in built.files(split):
                for row in read_rows(file):
                    found += 1
                    if case.kind == "dialogues":
                        said = normalise(row)
                        assert not said.repaired
                    else:
                        assert row["text"].strip()
        assert found == sum(split["rows"] for split in manifest["splits"].values())
        numbered = open_rows(DataSection(source=str(path), shuffle=False), 0).held_out()
        streamed = open_source(DataSection(source=str(path))).read(0)
        assert repr(list(numbered)) == repr(list(streamed))
        shutil.rmtree(place / "out")
    return True


@cache
def data_library() -> None:
    """What a build loads and compiles when it is first used."""
    from fastzoo.data.dedup.greedy import Deduplicator
    from fastzoo.data.dedup.ngrams import TextBatch
    from fastzoo.data.hub_rows import datasets_library

    datasets_library()
    for _ in range(2):
        held = Deduplicator(2, short="unique")
        held.kept(TextBatch.of([["a b c"], ["d"]]))
        held.seen(TextBatch.of([["a b c"]]))


@dataclass(frozen=True)
class Property:
    """What must hold for every case of a strategy; ``share`` of all cases are its."""

    cases: st.SearchStrategy[Any]
    check: Callable[[Any, Path], bool]
    share: float


PROPERTIES = {
    "dialogues": Property(dialogues, check_dialogues, 0.3),
    "files": Property(data_files, check_data_file, 0.25),
    "templates": Property(templates, check_template, 0.2),
    "recipes": Property(recipes, check_recipe, 0.25),
    "names": Property(names, check_name, 0.1),
    "saes": Property(folders(), check_sae, 0.35),
}

assert set(preset_values("quick"))  # the presets are read once, before any case
