"""The benchmark command runs and reports every key; no timing is asserted."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMAND = Path(__file__).parent / "benchmarks" / "run.py"
FORWARD = ("packed_over_alone_tiny", "packed_over_alone_ragged")
STEP = ("step_ratio_128", "step_ratio_4096", "step_ratio_tiny")
needs_sae_lens = pytest.mark.skipif(
    importlib.util.find_spec("sae_lens") is None, reason="sae-lens is not installed"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(COMMAND), *arguments], capture_output=True, text=True, timeout=300
    )


def positive(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    """What one run of all these benchmarks reports."""
    names = ("forward", "step", "many", "memory", "processes", "evaluate", "dedup")
    done = run("--quick", "--json", *(f"--only={name}" for name in names))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_forward_reports_every_figure(figures: dict[str, Any]) -> None:
    assert all(positive(figures[key]) for key in FORWARD)
    assert set(figures["packed_over_blocks"]) == {"tiny", "ragged"}
    assert all(map(positive, figures["packed_over_blocks"].values()))
    for key in ("tokens_per_second", "tokens_per_second_ragged"):
        assert set(figures[key]) == {"alone", "padded", "packed", "blocks"}
        assert all(map(positive, figures[key].values()))
    assert figures["padding"]["packed"] <= 0.05
    assert figures["padding_ragged"]["packed"] <= 0.05
    assert {"date", "cpu", "cores", "threads", "torch", "transformers"} <= set(figures["machine"])
    for key in FORWARD:
        spread = figures["rounds"][key]
        assert 0 < spread["min"] <= figures[key] <= spread["max"]


@needs_sae_lens
def test_step_reports_every_figure(figures: dict[str, Any]) -> None:
    for key in STEP:
        assert set(figures[key]) == {"standard", "jumprelu"}
        assert all(map(positive, figures[key].values()))
        floor = figures["step_over_floor"][key.removeprefix("step_ratio_")]
        assert set(floor) == set(figures[key]) and all(map(positive, floor.values()))


@needs_sae_lens
def test_twelve_saes_report_every_figure(figures: dict[str, Any]) -> None:
    assert positive(figures["twelve_saes_ratio"])
    assert positive(figures["twelve_saes_ratio_multi"])
    details = figures["twelve_saes"]
    assert details["tokens"] == 1024
    assert set(details["seconds"]) == {"fastzoo", "sae_lens", "sae_lens_multi"}
    assert all(map(positive, details["seconds"].values()))
    assert set(details["fastzoo_seconds"]) == {"activations", "starting_values", "steps"}
    assert all(map(positive, details["l0"].values()))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_adds_up(figures: dict[str, Any]) -> None:
    for key, parts_key in (
        ("memory_beyond_gb", "memory_parts_gb"),
        ("memory_beyond_gb_4096", "memory_4096_parts_gb"),
    ):
        parts = dict(figures[parts_key])
        assert all(map(positive, parts.values()))
        assert parts["beyond"] == pytest.approx(figures[key], abs=1e-3)
        assert parts.pop("peak") == pytest.approx(sum(parts.values()), abs=1e-3)


def test_evaluate_reports_its_figure(figures: dict[str, Any]) -> None:
    assert positive(figures["evaluate_over_floor"]) and positive(figures["evaluate_seconds"])


def test_processes_reports_its_figure(figures: dict[str, Any]) -> None:
    assert positive(figures["two_process_ratio"])
    assert set(figures["tokens_per_second_by_processes"]) == {"1", "2"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_dedup_reports_its_figures(figures: dict[str, Any]) -> None:
    assert all(positive(figures[key]) for key in ("dedup_ratio", "bytes_per_ngram", "scaling_exponent"))
    assert {"dialogues_per_second", "ngrams_per_second", "resident_gb"} <= set(figures["dedup"])


def test_the_table_is_markdown_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("OMP_WAIT_POLICY", "TQDM_DISABLE"):  # which the command sets if they are not
        monkeypatch.setenv(variable, os.environ.get(variable, "1"))
    monkeypatch.syspath_prepend(COMMAND.parent)
    monkeypatch.setattr(sys, "argv", [str(COMMAND), "--quick", "--only", "forward"])
    runpy.run_path(str(COMMAND), run_name="__main__")
    assert "| `packed_over_alone_tiny` | **" in capsys.readouterr().out


def test_a_partial_run_never_overwrites_the_readme() -> None:
    done = run("--quick", "--write")
    assert done.returncode == 2
    assert "--write takes a full run" in done.stderr
