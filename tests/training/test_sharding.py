"""Several processes: who owns what, the shared forward, and how they end together."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import opened
from hypothesis import given
from hypothesis import strategies as st

from fastzoo import load_sae
from fastzoo.config.reading import load_recipe
from fastzoo.core.errors import InputError
from fastzoo.core.files import resource
from fastzoo.lm.devices import check_gpus
from fastzoo.lm.load import find_model
from fastzoo.saes.names import SAEName
from fastzoo.training.run_record import run_settings
from fastzoo.training.sharding import assign, check_same_run

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "train.py"
CONFIG = ROOT / "recipes" / "accelerate" / "cpu.yaml"
NAMES = [f"tiny-chat-L{layer}-8x-{a}" for layer in (1, 2) for a in ("jumprelu", "standard")]
SMALL = [
    "training.tokens=16384",
    "training.batch_size=512",
    "training.buffer_tokens=4096",
    "evaluation.dialogues=12",
    "output.log_every=4",
    "threads=1",
]

# --- who owns what -------------------------------------------------------------------------------


def grid(
    layers: Sequence[int], expansions: Sequence[int], kinds: Sequence[str] = ("standard",)
) -> list[SAEName]:
    return [SAEName("m", *row) for row in product(layers, expansions, kinds)]


def layers_of(names: Sequence[SAEName]) -> set[int]:
    return {name.layer for name in names}


some_names = st.lists(
    st.builds(
        SAEName,
        st.just("m"),
        st.integers(0, 5),
        st.sampled_from([1, 2, 8, 16, 32]),
        st.sampled_from(["standard", "jumprelu"]),
    ),
    min_size=1,
    max_size=24,
    unique=True,
)


@given(some_names, st.integers(1, 9))
def test_every_sae_has_one_owner_and_no_rank_much_more_to_do(names: list[SAEName], processes: int) -> None:
    owners = assign(names, 64, processes)
    assert len(owners) == processes and assign(names, 64, processes) == owners
    assert sorted(name for own in owners for name in own) == sorted(names)
    for own in owners:
        assert own == [name for name in names if name in own]
    load = [sum(name.expansion for name in own) for own in owners]
    assert max(load) - min(load) <= max(name.expansion for name in names)
    assert sum(map(bool, owners)) == min(processes, len(names))


@given(some_names, st.integers(1, 5), st.randoms())
def test_the_balance_does_not_depend_on_the_order(
    names: list[SAEName], processes: int, random: object
) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (
        sorted(sum(name.expansion for name in own) for own in assign(order, 64, processes))
        for order in (names, shuffled)
    )
    assert first == second


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_saes_of_one_layer_stay_together(processes: int) -> None:
    owners = assign(grid([4, 12, 20], [8, 16], ["standard", "jumprelu"]), 896, processes)
    load = [sum(name.expansion for name in own) for own in owners]
    # (six 16x and six 8x: 144 in units of d_in squared)
    assert set(load) == {144 // processes}
    # Layers x ranks that receive them: three, plus one where two ranks must share the middle one.
    assert sum(len(layers_of(own)) for own in owners) <= {1: 3, 2: 4, 3: 3, 6: 12}[processes]


def test_two_ranks_have_one_layer_each() -> None:
    owners = assign(grid([1, 2], [8], ["standard", "jumprelu"]), 128, 2)
    assert [layers_of(own) for own in owners] == [{1}, {2}]


def test_ranks_with_another_recipe_are_named() -> None:
    same = {"seed": 42, "threads": None}
    check_same_run([same, same, same])
    with pytest.raises(InputError, match=r"rank 1, 3 differs from rank 0 \(seed\)"):
        check_same_run([same, {**same, "seed": 43}, same, {**same, "threads": 2}])


def test_settings_tell_runs_apart_and_not_where_they_write(tokenizer: object) -> None:
    found = []
    for override in ("output.folder=elsewhere", "threads=1", "checkpoint.minutes=3", "seed=43"):
        recipe = load_recipe(None, [override])
        source = find_model(recipe.model)
        found.append(run_settings(opened(recipe, tokenizer), recipe, source, torch.device("cpu")))
    assert found[0] == found[1] == found[2] != found[3]
    assert found[0]["model.revision"].startswith("sha256:") and len(found[0]["data.revision"]) == 64


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus in (0, 4, 8):
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=gpus: n)
        check_gpus(gpus or 4)
    with pytest.raises(InputError, match="--num_processes 8"):
        check_gpus(9)


# --- real processes ------------------------------------------------------------------------------


def start(
    script: Path, *arguments: str, cwd: Path, processes: int, **environment: str
) -> subprocess.Popen[str]:
    """`accelerate launch` with the shipped configuration, in a session of its own."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)),
            *("--num_processes", str(processes), str(script), *arguments),
        ],
        cwd=cwd,
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_WAIT_POLICY": "passive"}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def launch(
    script: Path, *arguments: str, cwd: Path, processes: int, **environment: str
) -> subprocess.CompletedProcess[str]:
    process = start(script, *arguments, cwd=cwd, processes=processes, **environment)
    try:
        out, err = process.communicate(timeout=200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def forwarded(result: subprocess.CompletedProcess[str]) -> list[int]:
    """How many tokens each rank says it sent through the model."""
    found = re.search(r"tokens through the language model, by rank: \[([\d, ]+)\]", result.stderr)
    assert found, result.stderr
    return [int(n) for n in found[1].split(",")]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in a single process: this one."""
    out = tmp_path_factory.mktemp("one") / "out"
    before = torch.get_num_threads()
    try:
        runpy.run_path(str(SCRIPT), run_name="recipe")["main"]([*SMALL, f"output.folder={out}"])
    finally:
        torch.set_num_threads(before)
    return out


def same_results(one: Path, several: Path, names: Sequence[str]) -> None:
    assert {p.name for p in several.iterdir()} == {*names, "recipe.yaml"}
    for name in names:
        for path in (one / name).glob("blocks*/*"):
            assert (several / path.relative_to(one)).read_bytes() == path.read_bytes(), path
        metrics = [json.loads((run / name / "metrics.json").read_text()) for run in (one, several)]
        assert metrics[0] == metrics[1]
        # The counts of rows and tokens, neither doubled nor divided.
        data = [
            json.loads((run / name / "config.json").read_text())["training_data"] for run in (one, several)
        ]
        assert data[0] == data[1] and data[0]["tokens"] >= 16384


def test_two_processes_share_the_forward_and_change_nothing(one: Path, tmp_path: Path) -> None:
    result = launch(SCRIPT, *SMALL, "output.folder=out", cwd=tmp_path, processes=2)
    assert result.returncode == 0, result.stderr
    assert [r.split()[0] for r in result.stdout.splitlines() if r.startswith("tiny-chat")] == NAMES
    same_results(one, tmp_path / "out", NAMES)
    shares = forwarded(result)
    # The whole budget and at most the rest of its last pack, half of it each, up to a pack.
    assert 16384 <= sum(shares) < 16384 + 2048
    assert abs(shares[0] - shares[1]) <= 2048
    assert result.stderr.count("held out:") == result.stderr.count("rows read:") == 1


COLUMNS = '''
"""The shared forward beside the forward of one process, on every rank; then the recipe's script."""
import runpy
import sys

import torch
from accelerate import Accelerator
from conftest import random_dialogues, small_model

from fastzoo.lm.activations import ResidualReader
from fastzoo.saes.names import SAEName
from fastzoo.training.sharding import SharedForward
from fastzoo.lm.packing import packs

state = Accelerator(cpu=True)
rank = state.process_index
torch.set_num_threads(1)
lengths = [3, 20, 20, 7, 1, 20, 13, 28, 5, 9, 60, 2, 20, 20, 4]
groups = list(packs(random_dialogues(lengths), 40))
owners = [[SAEName("m", 0, 8, "standard"), SAEName("m", 2, 8, "standard")], [], [SAEName("m", 2, 8, "standard")]]
for dtype in (torch.float32, torch.bfloat16):
    for count in (len(groups), 4, 1):
        for alone in (None, 1):
            reader = ResidualReader(small_model("qwen2").to(dtype), pack_tokens=40)
            expected = [list(reader.columns([g], [0, 2])) for g in groups[:count]]
            if rank == alone:
                reader.alone = "this rank only"  # as if the check had failed here and nowhere else
            shared = SharedForward(reader, owners, rank)
            found = list(shared.columns(iter(groups[:count])))
            assert len(found) == count
            assert shared.tokens == sum(sum(map(len, g)) for g in groups[rank:count:3])
            for (wanted,), columns in zip(expected, found):
                layers = [f"L{i}" for i in shared.layers[rank]]
                assert list(columns) == [*layers, "position", "special"]
                for name, column in columns.items():
                    assert column.dtype == wanted[name].dtype
                    if alone is None:
                        assert torch.equal(column, wanted[name]), name
                    elif dtype == torch.float32:
                        torch.testing.assert_close(column, wanted[name], rtol=1e-4, atol=1e-4)
print(f"rank {rank} fine", flush=True)
runpy.run_path(sys.argv[1], run_name="recipe")["main"](sys.argv[2:])
'''


def test_three_processes_one_of_them_without_saes(one: Path, tmp_path: Path) -> None:
    """Columns are those of one process: also of the last, incomplete round, in bfloat16, and where
    one rank has to forward sequence by sequence. And then a whole run."""
    script = tmp_path / "columns.py"
    script.write_text(COLUMNS)
    arguments = (*SMALL, "architectures=[jumprelu]", "output.folder=out")
    result = launch(script, str(SCRIPT), *arguments, cwd=tmp_path, processes=3)
    assert result.returncode == 0, result.stderr
    # Anywhere in a line: the ranks write into the same pipe.
    assert sorted(re.findall(r"rank (\d) fine", result.stdout)) == ["0", "1", "2"]
    same_results(one, tmp_path / "out", [n for n in NAMES if "jumprelu" in n])
    shares = forwarded(result)
    assert 16384 <= sum(shares) < 16384 + 2048 and max(shares) - min(shares) <= 2048


# --- how they end --------------------------------------------------------------------------------

FAULTY = '''
"""The recipe's script, with rank 1 failing in one way or another at its 30th step."""
import os
import runpy
import signal
import sys

from fastzoo.lm import activations; from fastzoo.training import trainer

unharmed_step, unharmed_read = trainer.Trainer.step, activations.ResidualReader._read


def step(self, batch):
    if os.environ["RANK"] == "1" and self.step_number == 30:
        if os.environ["FAULT"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ["FAULT"] == "raise":
            raise MemoryError("all of it is taken")
        if os.environ["FAULT"] == "nan":
            activations.ResidualReader._read = poisoned
    return unharmed_step(self, batch)


def poisoned(self, pack, layers):
    return {i: acts * float("nan") for i, acts in unharmed_read(self, pack, layers).items()}


trainer.Trainer.step = step
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
'''


def failing_run(tmp_path: Path, fault: str) -> tuple[str, set[str]]:
    """What a run with a failing rank 1 says, and which SAEs it keeps; fails if it hangs."""
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY)
    small = [*SMALL, "training.tokens=4e6", "architectures=[standard]", "output.folder=out"]
    started = time.monotonic()
    result = launch(script, str(SCRIPT), *small, cwd=tmp_path, processes=2, FAULT=fault)
    assert time.monotonic() - started < 60
    assert result.returncode != 0, result.stderr
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} - {"checkpoints"} == {"recipe.yaml", "interrupted"}
    kept = set()
    for folder in (out / "interrupted").iterdir():
        assert torch.isfinite(load_sae(folder).W_dec).all()
        rows = list(csv.DictReader((folder / "training_log.csv").open()))
        assert int(rows[-1]["step"]) >= 19
        kept.add(folder.name)
    return result.stderr, kept


BOTH = {"tiny-chat-L1-8x-standard", "tiny-chat-L2-8x-standard"}


def test_a_killed_process_ends_the_run_and_the_others_keep_their_state(tmp_path: Path) -> None:
    stderr, kept = failing_run(tmp_path, "kill")
    assert kept == {"tiny-chat-L1-8x-standard"}
    (line,) = re.findall(r"^rank 0: .*", stderr, re.MULTILINE)
    assert "another process" in line and "rank 1: " not in stderr
    # The launcher names the rank that was killed, not the one that ended after it.
    cause = stderr.split("Root Cause")[1]
    assert re.search(r"rank +: 1 ", cause) and "SIGKILL" in cause
    assert stderr.count("Traceback") == 1  # the launcher's own


def test_an_unexpected_error_is_shown_with_rank_and_traceback(tmp_path: Path) -> None:
    stderr, kept = failing_run(tmp_path, "raise")
    assert kept == BOTH
    assert re.search(
        r"^error: rank 1: unexpected MemoryError\nTraceback .*\n(  .*\n)+MemoryError: all of it",
        stderr,
        re.MULTILINE,
    )
    (line,) = re.findall(r"^rank 0: .*", stderr, re.MULTILINE)
    assert "another process" in line
    assert stderr.count("Traceback") == 2  # rank 1's and the launcher's
    assert re.search(r"rank +: 1 ", stderr.split("Root Cause")[1])


def test_nan_activations_name_the_rank_that_computed_them(tmp_path: Path) -> None:
    stderr, kept = failing_run(tmp_path, "nan")
    assert kept == BOTH
    (line,) = re.findall(r"^error: .*", stderr, re.MULTILINE)
    assert re.fullmatch(r"error: rank 1: step \d+: layer 1: .* NaN or infinity", line)
    assert stderr.count("Traceback") == 1
    assert re.search(r"exitcode +: 7 ", stderr.split("Root Cause")[1])


# --- what ships ----------------------------------------------------------------------------------


def test_launch_configurations_are_no_recipes() -> None:
    assert {p.name for p in CONFIG.parent.iterdir()} == {"cpu.yaml", "gpus.yaml"}
    with pytest.raises(InputError) as caught:
        load_recipe(Path("cpu.yaml"))
    known = str(caught.value).split("Recipes that come")[1]
    assert "tiny.yaml" in known and "cpu" not in known
    assert not [p for p in resource("recipes").glob("*.yaml") if "pu" in p.stem]


@pytest.mark.parametrize(("name", "processes"), [("cpu", 2), ("gpus", 8)])
def test_launch_configurations_start_that_many_processes(name: str, processes: int) -> None:
    """accelerate itself reads them and picks torch.distributed.run."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    arguments = ["--config_file", str(CONFIG.with_name(f"{name}.yaml")), "train.py"]
    read, *_ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert read.multi_gpu and not read.cpu
    assert (read.num_processes, read.num_machines, read.mixed_precision) == (processes, 1, "no")
    arguments[:0] = ["--num_processes", "3"]
    read, *_ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert read.num_processes == 3
