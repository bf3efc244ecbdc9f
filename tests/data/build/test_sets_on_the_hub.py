"""Data sets from the Hub and to it: gated sources, the paper's schemas, pushing, and training from there."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from forked import run_python
from hub_server import ROOT, LoopbackHub

from fastzoo.core.files import resource
from fastzoo.data.build.manifest import open_built

RUN = "from fastzoo.cli.main import main; main()"


def turns(number: int, asked: str, said: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"{asked} {number}?"},
        {"role": "assistant", "content": f"{said} {number}."},
    ]


def wild(n: int) -> dict[str, Any]:
    more = {"country": None, "hashed_ip": "x", "header": {"accept-language": None}, "language": "English"}
    said = [
        turn | more | {"redacted": False, "toxic": n == 0, "turn_identifier": n}
        for turn in turns(n, "wild", "yes")
    ]
    moderation = [{"categories": {"hate": False, "self-harm": False}, "flagged": False}]
    about = {
        "conversation_hash": f"h{n}",
        "model": "gpt-4",
        "timestamp": None,
        "turn": 1,
        "language": "English",
    }
    return about | {"conversation": said, "openai_moderation": moderation, "toxic": n == 0, "redacted": False}


def infinity(n: int) -> dict[str, Any]:
    said = [{"from": "human", "value": f"infinite {n}?"}, {"from": "gpt", "value": f"no {n}."}]
    label = {"ability_en": ["math"], "cate_ability_en": None}
    return {"id": n, "conversations": said, "label": label, "langdetect": "en", "source": "x"}


SOURCES: dict[str, tuple[str, Any]] = {
    "allenai/WildChat-1M-Full": ("data/train-{}.parquet", wild),
    "BAAI/Infinity-Instruct": ("7M/train-{}.parquet", infinity),
    "allenai/tulu-3-sft-mixture": (
        "data/train-{}.parquet",
        lambda n: {"id": f"t{n}", "messages": turns(n, "tulu", "so"), "source": "ai2/x"},
    ),
    "mlabonne/orca-agentinstruct-1M-v1-cleaned": (
        "data/train-{}.parquet",
        lambda n: {
            "messages": [{"role": "system", "content": f"Be {n}."}, *turns(n, "orca", "oh")],
            "split": "rag",
        },
    ),
    "lmsys/lmsys-chat-1m": (
        "data/train-{}.parquet",
        lambda n: {
            "conversation_id": f"c{n}",
            "model": "vicuna",
            "conversation": turns(n, "arena", "ah"),
            "turn": 1,
            "language": "German",
            "openai_moderation": [{"flagged": False}],
            "redacted": False,
        },
    ),
}


def parquet(rows: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def publish_sources(hub: LoopbackHub) -> None:
    """The five sets with their real columns, small; each of two files."""
    for name, (path, make) in SOURCES.items():
        files = {path.format(k): parquet([make(10 * k + n) for n in range(10)]) for k in range(2)}
        configs = [{"config_name": "7M", "data_files": [{"split": "train", "path": "7M/train-*"}]}]
        if name.startswith("BAAI"):
            files["README.md"] = f"---\n{yaml.safe_dump({'configs': configs})}---\n".encode()
        hub.add("dataset", name, files)


def fastzoo(hub: LoopbackHub, where: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    more = {"PYTHONPATH": str(ROOT), "FASTZOO_RETRY_SECONDS": "0.01", "HF_HUB_DOWNLOAD_TIMEOUT": "2", **env}
    done = run_python(RUN, *arguments, env=hub.env(where / "home", **more), cwd=where)
    assert "Traceback" not in done.stderr, done.stderr
    assert not hub.foreign
    return done


def rows_of(folder: Path) -> list[dict[str, Any]]:
    built = open_built(folder)
    return [
        row
        for split in built.splits()
        for path in built.files(split)
        for row in pq.read_table(path).to_pylist()
    ]


def test_the_papers_data(tmp_path: Path) -> None:
    config = str(resource("recipes") / "data" / "fast.yaml")
    with LoopbackHub() as hub:
        publish_sources(hub)
        hub.repos["dataset", "lmsys/lmsys-chat-1m"].gated = "manual"
        done = fastzoo(hub, tmp_path, "data", "build", config)
        assert done.returncode == 4 and "lmsys/lmsys-chat-1m" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1 and "--skip-unavailable" in done.stderr
        assert "/datasets/lmsys/lmsys-chat-1m" in done.stderr  # where its terms are
        assert not (tmp_path / "data").exists()
        done = fastzoo(hub, tmp_path, "data", "build", config, "--skip-unavailable", "--workers", "2")
        assert done.returncode == 0, done.stderr
        manifest = open_built(tmp_path / "data" / "fast-chats").manifest
        assert [item["source"] for item in manifest["unavailable"]] == ["lmsys/lmsys-chat-1m"]
        hub.repos["dataset", "lmsys/lmsys-chat-1m"].gated = False
        done = fastzoo(hub, tmp_path, "data", "build", config, "folder=all")
        assert done.returncode == 0, done.stderr
    manifest = open_built(tmp_path / "all").manifest
    assert [(s["source"], s["rows"], s["kept"], s["licence"]) for s in manifest["sources"]] == [
        ("allenai/WildChat-1M-Full", 20, 20, "odc-by"),
        ("BAAI/Infinity-Instruct", 20, 20, "cc-by-sa-4.0"),
        ("allenai/tulu-3-sft-mixture", 20, 20, "odc-by"),
        ("mlabonne/orca-agentinstruct-1M-v1-cleaned", 20, 20, "cdla-permissive-2.0"),
        ("lmsys/lmsys-chat-1m", 20, 20, "lmsys-chat-1m"),
    ]
    assert all(
        len(s["revision"]) == 40 and not s["skipped"] and not s["repaired"] for s in manifest["sources"]
    )
    assert manifest["languages"] == {"unknown": 40, "English": 20, "en": 20, "German": 20}
    rows = {(row["source"], row["row"]): row for row in rows_of(tmp_path / "all")}
    assert len(rows) == 100
    said = {key: [(m["role"], m["content"]) for m in row["messages"]] for key, row in rows.items()}
    assert said["allenai/WildChat-1M-Full", "h13"] == [("user", "wild 13?"), ("assistant", "yes 13.")]
    assert said["BAAI/Infinity-Instruct:7M", "7"] == [("user", "infinite 7?"), ("assistant", "no 7.")]
    assert said["allenai/tulu-3-sft-mixture", "t0"] == [("user", "tulu 0?"), ("assistant", "so 0.")]
    orca = ("mlabonne/orca-agentinstruct-1M-v1-cleaned", str(10**9 + 9))
    assert said[orca] == [("system", "Be 19."), ("user", "orca 19?"), ("assistant", "oh 19.")]
    assert said["lmsys/lmsys-chat-1m", "c19"] == [("user", "arena 19?"), ("assistant", "ah 19.")]
    assert set(rows["lmsys/lmsys-chat-1m", "c19"]["messages"][0]) == {"role", "content"}


@pytest.fixture
def built(tmp_path: Path) -> Path:
    rows = [{"messages": turns(n, "What is the number", "It is the number")} for n in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text("sources: [{source: a.jsonl}]\n")
    command = [sys.executable, "-m", "fastzoo.cli.main", "data", "build", "mine.yaml"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "data" / "mine"


def test_push_and_train_from_there(tmp_path: Path, built: Path) -> None:
    with LoopbackHub() as hub:
        done = fastzoo(hub, tmp_path, "data", "push", "data/mine", "--namespace", "org")
        assert done.returncode == 0, done.stderr
        commits = len(hub.commits("dataset", "org/mine"))
        again = fastzoo(hub, tmp_path, "data", "push", "data/mine", "--namespace", "org")
        assert again.stdout.strip() == done.stdout.strip() + " (unchanged)"
        assert len(hub.commits("dataset", "org/mine")) == commits
        repo = hub.repos["dataset", "org/mine"]
        held = repo.commits[repo.branches["main"]]
        for path in built.rglob("*"):
            if path.is_file() and path.name != "README.md":
                assert held[path.relative_to(built).as_posix()] == path.read_bytes()
        assert b"data.source=org/mine" in held["README.md"]
        # What people write into the card stays; another data set of this name is refused.
        hub.add("dataset", "org/mine", {**held, "README.md": held["README.md"] + b"\nMine!\n"})
        assert fastzoo(hub, tmp_path, "data", "push", "data/mine", "--namespace", "org").returncode == 0
        assert repo.commits[repo.branches["main"]]["README.md"].rstrip().endswith(b"Mine!")
        hub.add("dataset", "org/mine", {**held, "data/train-00009-of-00010.parquet": b"x"})
        other = fastzoo(hub, tmp_path, "data", "push", "data/mine", "--namespace", "org")
        assert other.returncode == 2 and "holds files of another data set" in other.stderr
        hub.add("dataset", "org/mine", held)

        run = ["data.max_tokens=512", "training.tokens=3000", "evaluation.dialogues=2", "layers=[1]"]
        run += ["architectures=[standard]", "training.buffer_tokens=1000", "training.batch_size=128"]
        folder = fastzoo(hub, tmp_path, "train", *run, "data.source=data/mine", "output.folder=runs/folder")
        assert folder.returncode == 0, folder.stderr
        online = fastzoo(hub, tmp_path, "train", *run, "data.source=org/mine", "output.folder=runs/hub")
        assert online.returncode == 0, online.stderr
    manifest = open_built(built).manifest
    for name in ("folder", "hub"):
        (record,) = (json.loads(p.read_text()) for p in (tmp_path / "runs" / name).glob("*/config.json"))
        (card,) = (p.read_text() for p in (tmp_path / "runs" / name).glob("*/README.md"))
        assert record["training_data"]["data_set"] == manifest["hash"]
        assert record["training_data"]["source_rows"] == manifest["splits"]["train"]["rows"]
        assert (
            record["evaluation_data"]["rows"] == 1 and "n: 20" in card and "was not deduplicated" not in card
        )
        assert manifest["hash"] in card.replace("\\", "")


def test_a_training_row_that_is_held_out_stops_the_run(tmp_path: Path, built: Path) -> None:
    """Someone wrote a held-out dialogue into the training file, and the manifest to match."""
    manifest = json.loads((built / "manifest.json").read_text())
    (file,) = manifest["splits"]["train"]["files"]
    held = pq.read_table(built / manifest["splits"]["reconstruction"]["files"][0]["path"])
    pq.write_table(pa.concat_tables([pq.read_table(built / file["path"]), held]), built / file["path"])
    data = (built / file["path"]).read_bytes()
    import hashlib

    file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (built / "manifest.json").write_text(json.dumps(manifest))
    run = ["train", "data.source=data/mine", "training.tokens=30000", "data.max_tokens=512", "layers=[1]"]
    done = subprocess.run(
        [sys.executable, "-m", "fastzoo.cli.main", *run], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 8 and "is a held-out dialogue" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
