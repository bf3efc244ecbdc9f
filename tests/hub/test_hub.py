"""The Hub as its real clients see it, and our own reading of it, against the loopback Hub."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import ROOT, TOKEN, LoopbackHub, Response, error, run, sha256

from fastzoo.core.errors import InputError
from fastzoo.saes.layouts import sae_folders
from fastzoo.saes.references import Reference, parse_reference

HOOK = "blocks.18.hook_resid_post"
NAME = "org/qwen2.5-7b-L18-8x-jumprelu"
OURS = {
    "README.md": b"---\ntags: [sae]\n---\n# An SAE\n",
    "config.json": b'{"library": "fastzoo"}',
    "metrics.json": b"{}",
    "training_log.csv": b"step\n",
    "training.png": b"not fetched",
    f"{HOOK}/cfg.json": b'{"architecture": "jumprelu"}',
    f"{HOOK}/sae_weights.safetensors": b"weights of ours",
    f"{HOOK}/sparsity.safetensors": b"sparsity of ours",
}

FETCH = """
from fastzoo.core.errors import FastzooError
from fastzoo.hub.pull import fetch_to_load
for text in sys.argv[1:]:
    try:
        print(json.dumps(str(fetch_to_load(text))))
    except FastzooError as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
        assert hub.foreign == []


def fetch(hub: LoopbackHub, home: Path, *references: str, **env: str) -> list[str]:
    """``fetch_to_load`` of each reference: the folder, or the error's class and message."""
    return run(hub, home, FETCH, *references, **{"FASTZOO_RETRY_SECONDS": "0.01", **env})


def files_in(folder: str | Path) -> set[str]:
    root = Path(folder)
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


# --- references --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("hf:org/name", Reference("org/name")),
        ("hf:org/name@main", Reference("org/name", None, "main")),
        ("hf:org/name/layers.18", Reference("org/name", "layers.18")),
        (
            "hf:google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71@refs/pr/1",
            Reference("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", "refs/pr/1"),
        ),
    ],
)
def test_reference_reads_and_writes(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert str(reference) == text


@pytest.mark.parametrize(
    "text",
    """org/name hf: hf:name hf:/name hf:org/ hf:org/name/ hf:org/name@ hf:org/name//x
    hf:org/name/../x hf:org/name/.git hf:org/name/a\\b hf:org/name/C:x hf:../name hf:org/..
    hf:org/na--me hf:org/name@a@b hf:org/name@../x hf:org/name@-x hf:org/name@/x hf:org/name@a..b
    hf:org/name@v1. HF:org/name https://huggingface.co/org/name""".split()
    + ["", "hf:org/name/a\nb", "hf:org/name@a b", "hf:org/na me", "hf:org/name\n"]
    + ["hf:org/name@\ud800", "hf:org/name@\u202emain", "hf:org/name@\ufeffmain"],
)
def test_malformed_reference_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_reference(text)
    assert "hf:org/repo[/folder][@revision]" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_are_recognised_by_exact_names() -> None:
    paths = ["a/cfg.json", "a/sae.safetensors", "b/cfg.json", "c/params.npz", "d/sae.safetensors"]
    paths += ["cfg.json", "sae_weights.safetensors", "e/ae.pt", "sparsity.safetensors"]
    assert sae_folders(paths) == {
        "": ["cfg.json", "sae_weights.safetensors", "sparsity.safetensors"],
        "a": ["a/cfg.json", "a/sae.safetensors"],
        "c": ["c/params.npz"],
    }


def test_importing_hub_is_cheap() -> None:
    code = "import sys, fastzoo.saes.references; print([m for m in sys.modules if m in {0}])"
    heavy = "('torch', 'transformers', 'huggingface_hub', 'httpx2')"
    done = subprocess.run(
        [sys.executable, "-c", code.format(heavy)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


# --- one SAE -----------------------------------------------------------------------------------


def test_fetch_ours_pinned_exact_files_and_cache(hub: LoopbackHub, tmp_path: Path) -> None:
    old = hub.add("model", NAME, OURS, tag="v1")
    new = hub.add("model", NAME, {**OURS, "metrics.json": b'{"new": 1}', "evil.pkl": b"x"})

    by_name, by_folder, by_tag, by_sha = fetch(
        hub, tmp_path, f"hf:{NAME}", f"hf:{NAME}/{HOOK}", f"hf:{NAME}@v1", f"hf:{NAME}@{old}"
    )
    assert by_name == by_folder and by_tag == by_sha
    assert Path(by_name).name == new and Path(by_tag).name == old
    wanted = {"config.json", "metrics.json", f"{HOOK}/cfg.json"}
    wanted |= {f"{HOOK}/sae_weights.safetensors", f"{HOOK}/sparsity.safetensors"}
    assert files_in(by_name) == files_in(by_tag) == wanted
    assert (Path(by_tag) / "metrics.json").read_bytes() == b"{}"
    assert (Path(by_tag) / HOOK / "sae_weights.safetensors").read_bytes() == b"weights of ours"

    # Every file was asked for by commit, not by a name that can move; large ones once in all.
    resolved = hub.asked("/resolve/")
    assert resolved and all(f"/resolve/{old}/" in r or f"/resolve/{new}/" in r for r in resolved)
    assert len(hub.asked("GET /objects/")) == 2
    # The token goes to the Hub and not to the host that large files come from.
    for request in hub.requests:
        sent = request.headers.get("authorization")
        assert sent == (None if request.path.startswith("/objects/") else f"Bearer {TOKEN}")


def test_fetch_other_layouts(hub: LoopbackHub, tmp_path: Path) -> None:
    sparsify = {"layers.3/cfg.json": b"{}", "layers.3/sae.safetensors": b"s3"}
    saelens = {"cfg.json": b"{}", "sae_weights.safetensors": b"w", "sparsity.safetensors": b"p"}
    hub.add("model", "org/sparsify", {"config.json": b"[not ours]", **sparsify})
    hub.add("model", "org/root", {"config.json": b'{"library": "other"}', **saelens})
    hub.add("model", "org/scope", {"l/w/a/params.npz": b"a", "l/v/b/params.npz": b"b"})
    found = fetch(hub, tmp_path, "hf:org/sparsify", "hf:org/root", "hf:org/scope/l/w", "hf:org/scope/l/v/b")
    assert [Path(folder).name for folder in found[::2]] == ["layers.3", "a"]
    assert files_in(found[0]) == {"cfg.json", "sae.safetensors"}
    assert files_in(found[1]) == set(saelens)
    assert files_in(found[2]) == files_in(found[3]) == {"params.npz"}
    assert (Path(found[3]) / "params.npz").read_bytes() == b"b"


def test_saes_of_other_places_are_refused_before_a_download(hub: LoopbackHub, tmp_path: Path) -> None:
    """Gemma Scope's files do not say where they belong; its repositories' names do, and sparsify's folders."""
    scope = {"layer_3/width_16k/average_l0_71/params.npz": b"p"}
    for name in ("res", "mlp", "att", "transcoders"):
        hub.add("model", f"org/gemma-scope-2b-pt-{name}", scope)
    names = ("layers.3", "layers.3.mlp", "embed_tokens")
    files = {f"{n}/{file}": b"{}" for n in names for file in ("cfg.json", "sae.safetensors")}
    hub.add("model", "org/sparsify", files)
    refused = [f"hf:org/gemma-scope-2b-pt-{name}" for name in ("mlp", "att", "transcoders")]
    refused += [f"hf:org/sparsify/{name}" for name in names[1:]]
    for source, message in zip(refused, fetch(hub, tmp_path, *refused), strict=True):
        assert message.startswith("InputError: ") and "residual" in message and "\n" not in message, source
    assert hub.asked("/resolve/") == []
    read = fetch(hub, tmp_path, "hf:org/gemma-scope-2b-pt-res", "hf:org/sparsify/layers.3")
    assert [files_in(path) for path in read] == [{"params.npz"}, {"cfg.json", "sae.safetensors"}]


def test_fetch_refuses_in_one_line(hub: LoopbackHub, tmp_path: Path) -> None:
    def several(count: int) -> dict[str, bytes]:
        names = ("cfg.json", "sae.safetensors")
        return {f"layers.{i}/{name}": b"{}" for i in range(count) for name in names}

    hub.add("model", NAME, OURS)
    hub.add("model", "org/several", several(12))
    hub.add("model", "org/pickles", {"layer_1/ae.pt": b"x", "layer_1/config.json": b"{}"})
    hub.add("model", "org/none", {"config.json": b"{}", "model.safetensors": b"x"})
    hub.add("model", "org/gated", several(1))
    hub.repos["model", "org/gated"].gated = True
    hub.add("model", "org/huge", {**several(1), "layers.0/cfg.json": b" " * (2**24 + 1)})
    cases = {
        "hf:org/missing": [
            "NotFoundError: ",
            "no model repository org/missing",
            hub.endpoint,
            "check the spelling",
        ],
        f"hf:{NAME}@v9": ["NotFoundError: ", "has no revision 'v9'", "branch, a tag or a full commit sha"],
        "hf:org/several": [
            "InputError: ",
            "holds 12 SAEs",
            "layers.10, ",
            "…",
            "as in hf:org/several/layers.0",
        ],
        "hf:org/several/layer.3": [
            "NotFoundError: ",
            "no SAE in org/several/layer.3",
            "Did you mean layers.3",
        ],
        "hf:org/pickles": ["InputError: ", "layer_1/ae.pt", "a pickle"],
        "hf:org/pickles/layer_1": ["InputError: ", "layer_1/ae.pt", "a pickle"],
        "hf:org/none": ["NotFoundError: ", "no SAE in org/none", "sae_weights.safetensors", "params.npz"],
        "hf:org/gated": ["AccessError: ", "gated", f"{hub.endpoint}/org/gated", "hf auth login"],
        "hf:org/huge": ["HubError: ", "layers.0/cfg.json has 16777217 bytes"],
    }
    for (text, expected), message in zip(cases.items(), fetch(hub, tmp_path, *cases), strict=True):
        assert message.startswith(expected[0]), (text, message)
        assert all(part in message for part in expected), (text, message)
        assert "\n" not in message and len(message) < 420
    assert hub.asked("ae.pt") == []


def test_wrong_bytes_are_found_on_download_and_in_the_cache(hub: LoopbackHub, tmp_path: Path) -> None:
    sha = hub.add("model", NAME, OURS)
    weights = OURS[f"{HOOK}/sae_weights.safetensors"]
    hub.objects[sha256(weights)] = weights[::-1]  # the same size, so the client takes it
    (message,) = fetch(hub, tmp_path, f"hf:{NAME}")
    assert message.startswith("IntegrityError: ") and f"{HOOK}/sae_weights.safetensors" in message

    hub.objects[sha256(weights)] = weights
    (folder,) = fetch(hub, tmp_path, f"hf:{NAME}")
    for name in (f"{HOOK}/sparsity.safetensors", "metrics.json"):  # large, and kept in git
        cached = Path(folder, name).resolve()
        cached.write_bytes(cached.read_bytes()[::-1])
        damaged, repaired = fetch(hub, tmp_path, f"hf:{NAME}", f"hf:{NAME}@{sha}")
        assert damaged.startswith("IntegrityError: ") and f"{name} is not the file" in damaged
        assert repaired == folder
        assert Path(folder, name).read_bytes() == OURS[name]


def test_hostile_listing_writes_nothing_outside(hub: LoopbackHub, tmp_path: Path) -> None:
    for folder in ("../../../../out", ".git/hooks", "a/../../b", "/abs", "C:\\x"):
        files = {f"{folder}/cfg.json": b"{}", f"{folder}/sae.safetensors": b"x"}
        hub.add("model", "org/hostile", files)
        (message,) = fetch(hub, tmp_path, "hf:org/hostile")
        assert "no SAE in org/hostile" in message
    assert hub.asked("/resolve/") == []


def test_no_network_rate_limit_and_outage(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("model", NAME, OURS)
    closed = "http://127.0.0.1:9"
    (message,) = fetch(hub, tmp_path, f"hf:{NAME}", HF_ENDPOINT=closed)
    assert f"cannot reach {closed}" in message and "local folder" in message
    (message,) = fetch(hub, tmp_path, f"hf:{NAME}", HF_HUB_OFFLINE="1")
    assert "offline mode is on" in message
    hub.faults.append(lambda request: Response(429))
    (message,) = fetch(hub, tmp_path, f"hf:{NAME}")
    assert "rate limiting" in message
    hub.faults[:] = [lambda request: error(418, "Teapot", "I am\na teapot")]
    (message,) = fetch(hub, tmp_path, f"hf:{NAME}")
    assert "answered 418" in message and "\n" not in message


def test_resolve_datasets_and_models(hub: LoopbackHub, tmp_path: Path) -> None:
    old = hub.add("dataset", "org/data", {"a.txt": b"1"}, tag="v1")
    new = hub.add("dataset", "org/data", {"a.txt": b"2"})
    side = hub.add("dataset", "org/data", {"a.txt": b"3"}, branch="refs/pr/1")
    model = hub.add("model", "org/data", {"a.txt": b"4"})
    code = """
    from fastzoo.core.errors import FastzooError
    from fastzoo.hub.client import commit_of
    for revision in (None, "main", "v1", sys.argv[1], "refs/pr/1"):
        print(json.dumps(commit_of("dataset", "org/data", revision)))
    print(json.dumps(commit_of("model", "org/data", None)))
    for ask in ("org/nothing", "org/data", "not a name"):
        try:
            commit_of("dataset", ask, "v2")
        except FastzooError as error:
            print(json.dumps(str(error)))
    """
    *shas, repo, revision, name = run(hub, tmp_path, code, old)
    assert shas == [new, new, old, old, side, model]
    assert "no dataset repository org/nothing" in repo
    assert "org/data has no revision 'v2'" in revision
    assert "'not a name' is not a valid repository name" in name


# --- the other clients -------------------------------------------------------------------------


def test_huggingface_hub_reads_everything_else(hub: LoopbackHub, tmp_path: Path) -> None:
    files = {"README.md": b"---\ntags: [sae]\n---\n", "a/b/c.txt": b"text", "a/d.bin": b"0123456789"}
    sha = hub.add("space", "org/space", files, tag="v1")
    hub.add("model", "org/private", files)
    hub.repos["model", "org/private"].private = True
    code = """
    from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
    api, kind = HfApi(), {"repo_type": "space"}
    show = lambda value: print(json.dumps(value))
    info = api.space_info("org/space", files_metadata=True)
    show([info.sha, info.tags, {s.rfilename: s.size for s in info.siblings}])
    show([info.siblings[-1].lfs.sha256, info.card_data.tags])
    tags = api.list_repo_refs("org/space", **kind).tags
    show([api.whoami()["name"], *(tag.name for tag in tags)])
    show([item.path for item in api.list_repo_tree("org/space", **kind)])
    show([item.path for item in api.list_repo_tree("org/space", "a", recursive=True, **kind)])
    paths = api.get_paths_info("org/space", ["a/d.bin", "a", "none"], **kind)
    show([[item.path, type(item).__name__] for item in paths])
    show([api.file_exists("org/space", name, **kind) for name in ("a/d.bin", "a/x.bin")])
    show([api.repo_exists("org/private", token=token) for token in (None, False)])
    with HfFileSystem().open("spaces/org/space@v1/a/d.bin", block_size=4) as file:
        file.seek(5)
        show(file.read(3).decode())
    show(open(hf_hub_download("org/space", "a/b/c.txt", revision="v1", **kind)).read())
    """
    sizes = {name: len(data) for name, data in files.items()}
    assert run(hub, tmp_path, code) == [
        [sha, ["sae"], sizes],
        [sha256(files["a/d.bin"]), ["sae"]],
        ["user", "v1"],
        ["README.md", "a"],
        ["a/b", "a/b/c.txt", "a/d.bin"],
        [["a/d.bin", "RepoFile"], ["a", "RepoFolder"]],
        [True, False],
        [True, False],
        "567",
        "text",
    ]
    assert any(r.headers.get("range") for r in hub.requests if r.path.startswith("/objects/"))


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def test_datasets_streams_jsonl_and_parquet(hub: LoopbackHub, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "é"}]}
        for i in range(5)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    jsonl = hub.add("dataset", "org/jsonl", {"data/train.jsonl": lines})
    hub.add("dataset", "org/jsonl", {"data/train.jsonl": lines.replace(b"Hi", b"Ho")})
    table = hub.add("dataset", "org/parquet", {"data/train-00000-of-00001.parquet": parquet(rows)})
    # Threads of pyarrow sometimes outlive the stream and abort the interpreter's own exit.
    code = """
    import os
    from datasets import load_dataset
    for name, sha in zip(("org/jsonl", "org/parquet"), sys.argv[1:]):
        stream = load_dataset(name, revision=sha, split="train", streaming=True)
        print(json.dumps(list(stream)), flush=True)
    os._exit(0)
    """
    assert run(hub, tmp_path, code, jsonl, table) == [rows, rows]


def tiny_qwen2(folder: Path) -> dict[str, bytes]:
    """The files of a random two-layer Qwen2 with a byte-level BPE of its own."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["user assistant hello world"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_transformers_loads_model_and_tokenizer(hub: LoopbackHub, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sha = hub.add("model", "org/tiny-instruct", tiny_qwen2(tmp_path / "model"))
    hub.add("model", "org/tiny-instruct", {"README.md": b"the model is gone from main\n"})
    code = """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    name, sha = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(name, revision=sha)
    model = AutoModelForCausalLM.from_pretrained(name, revision=sha)
    turns = [{"role": "user", "content": "hello world"}]
    ids = tokenizer.apply_chat_template(turns, return_dict=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        print(json.dumps([ids.tolist(), float(model(ids).logits.double().sum())]))
    """
    ((ids, total),) = run(hub, tmp_path, code, "org/tiny-instruct", sha)

    local = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "<|im_start|>user\nhello world<|im_end|>\n"
    assert ids == [tokenizer(text)["input_ids"]]
    with torch.no_grad():
        assert total == pytest.approx(float(local(torch.tensor(ids)).logits.double().sum()))


def test_foreign_hosts_are_refused_and_logged(tmp_path: Path) -> None:
    code = """
    from huggingface_hub.utils import get_session
    for url in ("http://example.com/x", "https://example.com/y"):
        try:
            print(json.dumps(get_session().get(url).status_code))
        except Exception as error:
            print(json.dumps(type(error).__name__))
    """
    with LoopbackHub() as hub:
        assert run(hub, tmp_path, code) == [502, "ProxyError"]
        assert hub.foreign == ["GET http://example.com/x", "CONNECT example.com:443"]
        assert hub.requests == []
