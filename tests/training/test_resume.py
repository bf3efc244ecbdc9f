"""Runs that were killed or stopped go on, and end as an undisturbed one does: byte for byte."""

from __future__ import annotations

import json
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import largest_file, own_disk, write_jsonl
from long.kill_resume import CONFIG, ROOT, SCRIPT, Span, contents, differences, disturbed

from fastzoo import tiny
from fastzoo.core import lock
from fastzoo.core.errors import OutputError
from fastzoo.core.exit import report_failures
from fastzoo.core.signals import Stopped
from fastzoo.lm.load import load_model
from fastzoo.training.checkpoint_schedule import CheckpointSchedule
from fastzoo.training.checkpoints import FORMAT, digest_of, find_checkpoint, open_checkpoint, set_aside_newer
from fastzoo.training.trainer import Trainer

SMALL = [
    "training.tokens=16384",
    "training.batch_size=512",
    "training.buffer_tokens=4096",
    "evaluation.dialogues=12",
    "output.log_every=5",
    "output.folder=out",
    "checkpoint.minutes=0",
    "layers=[1]",
    "threads=2",
]
"""32 steps; a refill after every fourth."""

pytestmark = pytest.mark.usefixtures("two_threads")

train: Callable[[list[str]], None] = runpy.run_path(str(SCRIPT), run_name="recipe")["main"]


@contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """With ``folder`` as the working directory; gives the run's folder in it. Afterwards torch has
    the threads that it had."""
    before, threads = Path.cwd(), torch.get_num_threads()
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    try:
        yield folder / "out"
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


@contextmanager
def at_step(number: int, do: Callable[[], Any]) -> Iterator[None]:
    """Within, ``do`` is called in the midst of a training step: the one after ``number`` steps."""
    step = Trainer.step

    def disturbed_step(self: Trainer, batch: Any) -> bool:
        if self.step_number == number:
            do()
        return step(self, batch)

    Trainer.step = disturbed_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.step = step  # type: ignore[method-assign]


def ask_to_stop(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def stop_in_step(step: int, arguments: list[str], number: int = signal.SIGTERM) -> None:
    """Train; in the midst of step ``step`` (counted from 1) comes the signal."""
    with at_step(step - 1, lambda: ask_to_stop(number)), pytest.raises(Stopped) as stopped:
        train(arguments)
    assert stopped.value.exit_code == 128 + number
    assert f"by {signal.Signals(number).name} after step {step};" in str(stopped.value)


def newest(out: Path) -> Path:
    return max((out / "checkpoints").glob("step-*"))


def manifest_of(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "manifest.json").read_text())


def start_script(
    *arguments: str, cwd: Path, processes: int = 1, script: Path = SCRIPT
) -> subprocess.Popen[str]:
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
    launcher += ["--num_processes", str(processes)]
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), str(script), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what it said."""
    try:
        _, said = process.communicate(timeout=200)
    finally:
        if process.poll() is None:
            process.kill()
    return process.returncode, said


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, ended(process)
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small run that nobody disturbed."""
    with inside(tmp_path_factory.mktemp("undisturbed")) as out:
        train(SMALL)
    return out


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small run, stopped after step 18: checkpoints of the steps 16 and 18."""
    with inside(tmp_path_factory.mktemp("interrupted")) as out:
        stop_in_step(18, SMALL)
    return out


@pytest.fixture
def stopped(interrupted: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of that folder, in the working directory."""
    shutil.copytree(interrupted, tmp_path / "out")
    with inside(tmp_path) as out:
        yield out


# --- killed --------------------------------------------------------------------------------------


def test_killed_four_times_and_nothing_shows(undisturbed: Path, tmp_path: Path) -> None:
    """The long form: `python tests/long/kill_resume.py`."""
    span = Span(start=4.0, training=2.0, rest=1.0)
    outcome = disturbed(tmp_path, SMALL, 4, random.Random(0), undisturbed, span)
    assert len(outcome.kills) == 4
    assert {"checkpoint", "result"} <= {kill.after for kill in outcome.kills}
    assert not any(outcome.differences.values()), outcome.differences


# --- stopped -------------------------------------------------------------------------------------


SLOW = '''
"""The recipe's script, with a disk that takes long for a checkpoint."""
import pathlib
import runpy
import sys
import time

from fastzoo.core.signals import signals
from fastzoo.training import checkpoints

save = checkpoints.save_file


def slowly(tensors, path):
    save(tensors, path)
    pathlib.Path("saving").touch()
    while signals().number is None:
        time.sleep(0.01)
    pathlib.Path("signalled").touch()
    time.sleep(600)


checkpoints.save_file = slowly
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
'''


def test_signals_end_the_script_and_the_same_command_goes_on(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM, then two of them within a checkpoint, then Ctrl-C."""
    script, out = tmp_path / "slow.py", tmp_path / "out"
    one = start_script(*SMALL, cwd=tmp_path)
    wait_until(lambda: any(out.glob("checkpoints/*4")), one)
    one.send_signal(signal.SIGTERM)
    code, said = ended(one)
    assert code == 143, said
    step = manifest_of(newest(out))["trainer"]["step"]
    (line,) = [x for x in said.splitlines() if "stopped" in x]
    assert line == f"stopped by SIGTERM after step {step}; the same command goes on"
    assert "Traceback" not in said and "error" not in said
    assert not list(out.rglob("*.partial"))

    script.write_text(SLOW)
    one = start_script(str(SCRIPT), *SMALL, cwd=tmp_path, script=script)
    wait_until((tmp_path / "saving").exists, one)
    assert list(out.glob("checkpoints/.step-*.partial/*/*"))
    one.send_signal(signal.SIGTERM)
    wait_until((tmp_path / "signalled").exists, one)  # two signals at once may arrive as one
    one.send_signal(signal.SIGTERM)
    code, said = ended(one)
    assert code == 143
    assert "error: ended at once by a second signal" in said and "Traceback" not in said
    script.unlink()

    with inside(tmp_path):
        with at_step(step + 4, lambda: ask_to_stop(signal.SIGINT)), pytest.raises(SystemExit) as left:
            report_failures(lambda: train(SMALL))
        assert left.value.code == 130
        said = capsys.readouterr().err
        assert f"going on after step {step} of 32\n" in said
        assert said.endswith(f"stopped by SIGINT after step {step + 5}; the same command goes on\n")
        train(SMALL)
    assert differences(undisturbed, out) == []


def test_stopped_before_the_first_step_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: Any) -> Any:
        ask_to_stop()
        return load_model(*arguments)

    monkeypatch.setattr("fastzoo.lm.load.load_model", load)
    with inside(tmp_path), pytest.raises(Stopped, match=r"stopped by SIGTERM; the same"):
        train(SMALL)
    assert list(tmp_path.iterdir()) == []


def test_stopped_in_the_first_refill_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle, calls = CheckpointSchedule.idle, iter(range(1000))

    def stop_here(self: CheckpointSchedule) -> None:
        if next(calls) == 2:
            ask_to_stop()
        idle(self)

    monkeypatch.setattr(CheckpointSchedule, "idle", stop_here)
    with inside(tmp_path), pytest.raises(Stopped):
        train(SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_midst_of_a_refill(
    number: int, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = CheckpointSchedule.idle
    since_step: list[int] = []

    def stop_here(self: CheckpointSchedule) -> None:
        if self._parts is not None and self.step == 12:
            since_step.append(self.parts.buffer._served)
            if len(since_step) == 2:  # a part of this refill is in the buffer
                ask_to_stop(number)
        idle(self)

    with monkeypatch.context() as patched, inside(tmp_path) as out:
        patched.setattr(CheckpointSchedule, "idle", stop_here)
        with pytest.raises(Stopped, match="after step 12"):
            train([*SMALL, "checkpoint.minutes=60"])
        assert since_step == [2048, 2048]
        manifest = manifest_of(newest(out))
        assert (manifest["trainer"]["step"], manifest["buffer"]["served"]) == (12, 2048)
        assert len(list((out / "checkpoints").iterdir())) == 1
    with inside(tmp_path):
        train([*SMALL, "checkpoint.minutes=60"])
    changed = set(differences(undisturbed, tmp_path / "out"))
    assert {Path(name).name for name in changed} <= {"recipe.yaml", "config.json"}
    assert contents(tmp_path / "out").keys() == contents(undisturbed).keys()


def test_stopped_after_training_evaluates_when_it_goes_on(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(*arguments: Any, **options: Any) -> Any:
        ask_to_stop()
        raise AssertionError("the signal did not interrupt it")

    with inside(tmp_path) as out, monkeypatch.context() as patched:
        patched.setattr("fastzoo.results.evaluate.evaluate", evaluate)
        with pytest.raises(Stopped):
            train(SMALL)
        assert newest(out).name == "step-00000032" and not (out / "interrupted").exists()
    with inside(tmp_path), at_step(32, ask_to_stop):  # which no step is
        train(SMALL)
    assert differences(undisturbed, tmp_path / "out") == []


def own_rows(count: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in tiny.DIALOGUES.read_text().splitlines()[:count]]


def small_file(folder: Path) -> list[str]:
    """Sixty rows, some of which cannot be used: several epochs of a run."""
    rows: list[Any] = own_rows(50)
    rows[10:10] = [{"messages": []}, {"text": "x"}, *rows[:4]]
    rows += [{"messages": [{"role": "alien", "content": "hi"}]}, *rows[5:8]]
    held = write_jsonl(folder / "held.jsonl", own_rows(50)[40:45])
    return [
        f"data.source={write_jsonl(folder / 'mine.jsonl', rows)}",
        f"evaluation.source={held}",
        "evaluation.dialogues=5",
    ]


@pytest.mark.parametrize(
    ("case", "steps"),
    [
        ("fast", (1, 16, 31, 32)),
        ("bt-f", (3, 13, 20)),
        ("bt-p", (4, 15, 30)),
        ("small file", (2, 9, 12, 23, 28)),
        ("paper", (3, 14, 27)),
    ],
)
def test_stopped_anywhere_it_ends_as_if_undisturbed(
    case: str, steps: tuple[int, ...], undisturbed: Path, tmp_path: Path
) -> None:
    more = {
        "fast": list,
        "bt-f": lambda: ["method=bt-f", "architectures=[standard]"],
        "bt-p": lambda: ["method=bt-p", "architectures=[jumprelu]"],
        "small file": lambda: ["architectures=[jumprelu]", *small_file(tmp_path)],
        "paper": lambda: [
            *("preset=paper", "architectures=[jumprelu]", "training.feature_sampling_window=12"),
            *("training.lr_warmup=5", "training.lr_decay=5", "training.sparsity_warmup=9"),
        ],
    }[case]()
    reference = undisturbed
    if more:
        with inside(tmp_path / "one") as reference:
            train([*SMALL, *more])
    epochs, offsets = [], []
    with inside(tmp_path / "other") as out:
        for step in steps:
            stop_in_step(step, [*SMALL, *more])
            position = manifest_of(newest(out))["buffer"]["position"]
            epochs.append(position["epoch"])
            offsets.append(position["offset"])
        train([*SMALL, *more])
    assert differences(reference, out) == []
    if case.startswith("bt"):
        assert any(offsets), "no place was in the midst of a dialogue"
    if case == "small file":
        assert len(set(epochs)) > 2
        (record,) = {p.read_text() for p in out.glob("*L1-8x-jumprelu/config.json")}
        data = json.loads(record)["training_data"]
        assert data["epochs"] >= 2
        assert set(data["skipped"]) >= {"empty", "unknown role", "identical to a held-out dialogue"}


# --- several processes ---------------------------------------------------------------------------

ALONE = [*SMALL[:-2], "threads=1"]
"""Both layers: both ranks have something to do."""


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with inside(tmp_path_factory.mktemp("one process")) as out:
        train(ALONE)
    return out


def test_begun_by_two_processes_and_finished_by_one_and_by_three(one_process: Path, tmp_path: Path) -> None:
    first = tmp_path / "one"
    first.mkdir()
    two = start_script(*ALONE, cwd=first, processes=2)
    wait_until(lambda: any((first / "out").glob("checkpoints/*08")), two)
    two.send_signal(signal.SIGTERM)  # to the launcher alone
    code, said = ended(two)
    assert code != 0
    step = manifest_of(newest(first / "out"))["trainer"]["step"]
    for rank in (0, 1):
        assert f"rank {rank}: stopped by SIGTERM after step {step};" in said
    assert 8 <= step < 32 and not list(first.rglob("*.partial"))
    shutil.copytree(first, tmp_path / "three")
    with inside(first):
        train(ALONE)
    assert differences(one_process, first / "out") == []
    code, said = ended(start_script(*ALONE, cwd=tmp_path / "three", processes=3))
    assert code == 0 and said.count(f"going on after step {step} of 32") == 1, said
    assert differences(one_process, tmp_path / "three" / "out") == []


# --- damaged checkpoints -------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    """One bit, in the midst."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


FILES = [
    "manifest.json",
    *(f"tiny-chat-L1-8x-jumprelu/{n}.safetensors" for n in ("weights", "exp_avg", "exp_avg_sq")),
    "tiny-chat-L1-8x-standard/counters.safetensors",
    "tiny-chat-L1-8x-standard/state.json",
    *(f"buffer/{n}.safetensors" for n in ("order", "L1-0", "L1-pending")),
    *(f"buffer/{n}.safetensors" for n in ("position-0", "special-0", "special-pending")),
]


@pytest.mark.parametrize("damage", [cut, empty, flip, lengthen, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_of_a_damaged_checkpoint_the_one_before_is_used(
    damage: Callable[[Path], None], name: str, stopped: Path
) -> None:
    damage(newest(stopped) / name)
    said: list[str] = []
    found = find_checkpoint(stopped, said.append)
    assert found is not None and found.step == 16
    (line,) = said
    assert line.startswith("step-00000018 is damaged (") and Path(name).name in line
    assert line.endswith("the one before is used: step-00000016") and "\n" not in line
    set_aside_newer(found)
    assert sorted(p.name for p in (stopped / "checkpoints").iterdir()) == [
        "damaged-step-00000018",
        "step-00000016",
    ]


def test_the_checkpoint_before_leads_to_the_same_end(
    undisturbed: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(newest(stopped) / "tiny-chat-L1-8x-standard" / "exp_avg.safetensors")
    train(SMALL)
    said = capsys.readouterr().err
    assert said.count("is damaged") == 1 and "going on after step 16 of 32" in said
    assert differences(undisturbed, stopped) == []


def refused(arguments: list[str], out: Path) -> str:
    """The one line of a run that must be refused and touch nothing."""

    def seen() -> dict[Path, tuple[int, int]]:
        found = {p: p.stat() for p in [out, *out.rglob("*")]}
        return {p: (s.st_mtime_ns, s.st_size) for p, s in found.items()}

    before = seen()
    with pytest.raises(OutputError) as caught:
        train(arguments)
    assert seen() == before
    message = str(caught.value)
    assert "\n" not in message and len(message) < 900 and "--fresh" in message
    return message


def test_without_a_sound_checkpoint_nothing_is_guessed(stopped: Path) -> None:
    for checkpoint, name in zip(sorted((stopped / "checkpoints").iterdir()), FILES, strict=False):
        cut(checkpoint / name)
    message = refused(SMALL, stopped)
    assert "no checkpoint that can be used: step-00000018 is damaged" in message
    assert "step-00000016 is damaged" in message


def test_a_checkpoint_of_another_format_is_left_alone(stopped: Path) -> None:
    manifest = manifest_of(newest(stopped))
    del manifest["sha256"]
    manifest["format"] = FORMAT + 1
    text = json.dumps({**manifest, "sha256": digest_of(manifest)})
    (newest(stopped) / "manifest.json").write_text(text)
    assert f"has format {FORMAT + 1}, this version of fastzoo has {FORMAT}" in refused(SMALL, stopped)


# --- another run ---------------------------------------------------------------------------------


def test_other_settings_are_refused_by_name(stopped: Path) -> None:
    message = refused([*SMALL, "training.lr=1e-3", "seed=7"], stopped)
    assert "training.lr: 0.003 then, 0.001 now" in message and "seed: 42 then, 7 now" in message
    message = refused([*SMALL, "method=bt-f", "training.tokens=20000", "layers=[2]"], stopped)
    assert "layers: [1] then, [2] now" in message and "method" in message
    assert "data.source" in refused([*SMALL, *small_file(stopped.parent)], stopped)


def test_a_damaged_checkpoint_stays_where_it_is_if_the_command_is_refused(stopped: Path) -> None:
    flip(newest(stopped) / FILES[1])
    assert "seed: 42 then, 7 now" in refused([*SMALL, "seed=7"], stopped)


def test_a_data_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    arguments = [*SMALL, *small_file(tmp_path)]
    with inside(tmp_path) as out:
        stop_in_step(2, arguments)
        rows = (tmp_path / "mine.jsonl").read_bytes()
        write_jsonl(tmp_path / "mine.jsonl", own_rows(70))
        assert "data.revision: " in refused(arguments, out)
        (tmp_path / "mine.jsonl").write_bytes(rows)
        train(arguments)
        write_jsonl(tmp_path / "mine.jsonl", own_rows(70))
        assert "data.revision: " in refused(arguments, out)


def test_what_changes_no_result_may_change(
    undisturbed: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Threads may, with a word of warning: they change how sums are grouped."""
    before = newest(stopped)
    stop_in_step(22, [*SMALL, "threads=1", "checkpoint.keep_last=1", "checkpoint.minutes=30"])
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "last bits" in x]
    assert line.endswith("may differ from an undisturbed run's: threads: 2 then, 1 now")
    assert [p.name for p in (stopped / "checkpoints").iterdir()] == ["step-00000022"]
    assert not before.exists()
    train(SMALL)
    capsys.readouterr()
    assert contents(stopped).keys() == contents(undisturbed).keys()


def test_fresh_moves_the_run_aside(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(stopped)
    for number in (1, 2):
        stop_in_step(number, [*SMALL, "--fresh"])
        assert f"is now in out.old-{number}" in capsys.readouterr().err
        assert newest(stopped).name == f"step-0000000{number}"
    assert contents(stopped.with_name("out.old-1")) == before
    assert newest(stopped.with_name("out.old-2")).name == "step-00000001"


# --- two at once ---------------------------------------------------------------------------------

HOLD = """
import pathlib, sys
from fastzoo.core.lock import folder_lock
folder = pathlib.Path(sys.argv[1])
with folder_lock(folder, print):
    print("locked", flush=True)
    sys.stdin.readline()
    if sys.argv[2:] == ["withdraw"]:
        folder.rmdir()
"""


@contextmanager
def held(folder: Path, *how: str) -> Iterator[subprocess.Popen[str]]:
    """Within, another process uses ``folder``; it ends once it gets a line."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *how],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout and holder.stdout.readline() == "locked\n"
        yield holder
        holder.kill()


def test_a_folder_in_use_is_waited_for_and_then_refused(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.5)
    with held(stopped), pytest.raises(OutputError, match="in use by another process; give"):
        train(SMALL)
    assert capsys.readouterr().err.count("which may be ending; waiting") == 1
    assert newest(stopped).name == "step-00000018"


@pytest.mark.parametrize("how", ["keep", "withdraw"])
def test_a_folder_that_becomes_free_is_used(how: str, tmp_path: Path) -> None:
    """Also where the other process failed before its first step, and took the folder with it."""
    with inside(tmp_path) as out, held(out, how) as holder:

        def end() -> None:
            assert holder.stdin
            holder.stdin.write("\n")
            holder.stdin.flush()

        threading.Timer(0.5, end).start()
        stop_in_step(1, SMALL)
        assert newest(out).name == "step-00000001"


# --- full disks ----------------------------------------------------------------------------------


def test_a_disk_that_refuses_a_checkpoint_keeps_the_one_before(undisturbed: Path, tmp_path: Path) -> None:
    with inside(tmp_path) as out:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        with (
            largest_file(hard),
            at_step(9, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))),
            pytest.raises(OutputError, match=r"step-00000012' cannot be written: .*too large") as caught,
        ):
            train(SMALL)
        assert caught.value.exit_code == OutputError.exit_code and "\n" not in str(caught.value)
        assert [p.name for p in out.iterdir() if p.name != "recipe.yaml"] == ["checkpoints"]
        assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]
        assert open_checkpoint(newest(out)).step == 8
        train(SMALL)
    assert differences(undisturbed, out) == []


FULL = '''
"""On a disk with room for little more than a checkpoint: a run that finds it full, and goes on."""
import os
import sys
from pathlib import Path

from long.kill_resume import SCRIPT
import runpy

from fastzoo.training.checkpoints import open_checkpoint
from fastzoo.core.errors import OutputError; from fastzoo.core.exit import report_failures

os.chdir(sys.argv[1])
train = runpy.run_path(str(SCRIPT), run_name="recipe")["main"]
stat = os.statvfs(".")
Path("ballast").write_bytes(bytes(stat.f_bavail * stat.f_frsize - int(sys.argv[2])))
try:
    train(sys.argv[3:])
except OutputError as error:
    print(error)
else:
    sys.exit("there was room enough")
found = sorted(Path("out/checkpoints").iterdir())
print([path.name for path in found], open_checkpoint(found[-1]).step)
Path("ballast").unlink()
train(sys.argv[3:])
'''


def test_a_full_disk(undisturbed: Path, tmp_path: Path) -> None:
    disk, script, kept = tmp_path / "disk", tmp_path / "full.py", tmp_path / "kept"
    disk.mkdir()
    script.write_text(FULL)
    room = 3 * sum(p.stat().st_size for p in undisturbed.rglob("*.safetensors")) * 3 // 2
    copied = ["sh", "-c", 'kept="$1" && shift && "$@" && cp -r out "$kept"', "sh", str(kept)]
    run = [sys.executable, str(script), str(disk), str(room), *SMALL]
    result = subprocess.run(
        [*own_disk("mount -t tmpfs -o size=256m none .", disk), *copied, *run],
        cwd=disk,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    refusal, found = result.stdout.splitlines()[:2]
    assert "cannot be written: " in refusal and "No space left on device" in refusal
    assert found == "['step-00000004'] 4"
    assert differences(undisturbed, kept) == []
