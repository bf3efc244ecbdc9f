"""Publishing, by the real command and client, on the loopback Hub."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import READ_TOKEN, ROOT, hang_up, run
from publisher import NAMES, Person
from zoo_folders import make_zoo

from fastzoo.hub.registry import DATASET
from fastzoo.publish.collection import TITLE, moves
from fastzoo.saes.names import SAEName, parse_name

LLAMA = parse_name("llama-3.2-1b-L9-8x-jumprelu")


def models(*names: SAEName) -> list[tuple[str, str]]:
    return [("model", f"org/{name}") for name in names]


def test_a_push_is_complete_and_a_second_one_does_nothing(person: Person, model_run: Path) -> None:
    make_zoo(person.where / "more", [LLAMA], model_run)
    report = person.push("zoo", "more")
    assert {entry["status"] for entry in report["saes"].values()} == {"published"}
    assert report["commits"] == person.commits() == len(NAMES) + 2
    for name in NAMES:
        folder = person.where / "zoo" / str(name)
        local = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        held = person.held("model", str(name))
        assert set(held) - {".gitattributes"} == set(local)
        assert all(held[path] == data for path, data in local.items() if path != "README.md")
        assert f"hf:org/{name}" in held["README.md"].decode()
    assert b"Llama" in person.held("model", str(LLAMA))["NOTICE"]
    others = [("dataset", f"org/{DATASET}"), ("paper", "2506.07691")]
    # The grid's order: Llama first, then Qwen by layer, standard before jumprelu.
    assert person.items() == others + models(LLAMA, *NAMES)
    (collection,) = person.hub.collections.values()
    assert report["collection"] == collection.slug
    assert "log2 MSE" in str(collection.items[2].note)
    registry = json.loads(person.held("dataset", DATASET)["registry.json"])
    assert registry["collection"] == collection.slug
    assert set(registry["saes"]) == set(map(str, (LLAMA, *NAMES)))

    before, asked = person.commits(), len(person.hub.requests)
    report = person.push("zoo", "more")
    assert {entry["status"] for entry in report["saes"].values()} == {"unchanged"}
    assert report["commits"] == 0 and person.commits() == before
    # One listing of the models, two looks at the dataset, two at the collection.
    assert len(person.hub.requests) - asked <= 6
    # From another machine, which remembers nothing: one look more for each SAE.
    person.home, asked = "another", len(person.hub.requests)
    assert person.push("zoo", "more")["commits"] == 0 and person.commits() == before
    assert len(person.hub.requests) - asked <= 6 + 5
    assert len(person.hub.collections) == 1


@pytest.mark.parametrize("xet", [False, True])
def test_at_most_eight_requests_for_an_sae(person: Person, xet: bool) -> None:
    person.push("zoo", HF_HUB_DISABLE_XET=str(int(not xet)))
    api = [str(request) for request in person.hub.requests if not request.is_storage]
    for name in NAMES:
        own = [text for text in api if str(name) in text]
        # create, validate and item name it in their bodies only: one of each.
        assert len(own) + 3 <= 8, own
    shared = 4 * 3  # what is asked for each without its name in the address
    assert len(api) - shared - sum(any(str(n) in text for n in NAMES) for text in api) <= 16


def measure_anew(person: Person, name: SAEName, l0: float) -> None:
    path = person.where / "zoo" / str(name) / "metrics.json"
    figures = json.loads(path.read_text())
    for subset in ("without_sinks", "all"):
        figures["metrics"]["l0"][subset]["value"] = l0
    path.write_text(json.dumps(figures))


def test_a_card_edited_on_the_hub_keeps_what_people_wrote(person: Person) -> None:
    name = NAMES[0]
    person.push(f"zoo/{name}")
    notes = "## Our own notes\n\nLatent 3 likes dots.\n\n"
    person.edit(name, "<!-- fastzoo:card", f"{notes}<!-- fastzoo:card")
    person.edit(name, "- fastzoo\n", "- fastzoo\n- ours\n")
    person.push(f"zoo/{name}")
    assert person.commits("model") == 1, "there was nothing new to publish"
    # A new figure renews the table below it.
    measure_anew(person, name, 1234.5)
    before = person.commits("model")
    report = person.push(f"zoo/{name}")
    assert person.commits("model") == before + 1 and report["saes"][str(name)]["status"] == "published"
    card = person.held("model", str(name))["README.md"].decode()
    front, body = card.split("---\n", 2)[1:]
    assert body.startswith(f"\n{notes}<!-- fastzoo:card") and "- ours\n" in front
    assert "1234.5" in front and re.search(r"\| L0 \| 123[45] \|", body)
    assert b"1234.5" in person.held("model", str(name))["metrics.json"]
    assert "edited" not in person.stderr
    person.push(f"zoo/{name}", "--overwrite-cards")
    assert b"likes dots" not in person.held("model", str(name))["README.md"]


def test_a_card_edited_in_its_generated_part_is_kept_and_that_is_said(person: Person) -> None:
    name = NAMES[0]
    person.push(f"zoo/{name}")
    person.edit(name, "## Limitations", "## Our own notes\n\nLikes dots.\n\n## Limitations")
    measure_anew(person, name, 1234.5)
    report = person.push(f"zoo/{name}")
    assert report["saes"][str(name)]["status"] == "published"
    front, body = person.held("model", str(name))["README.md"].decode().split("---\n", 2)[1:]
    assert "Likes dots." in body and not re.search(r"123[45]", body) and "1234.5" in front
    said = [line for line in person.stderr.splitlines() if "edited" in line]
    assert len(said) == 1 and f"org/{name}" in said[0] and "--overwrite-cards" in said[0]
    person.push(f"zoo/{name}", "--overwrite-cards")
    card = person.held("model", str(name))["README.md"].decode()
    assert "Likes dots." not in card and re.search(r"\| L0 \| 123[45] \|", card)
    assert "edited" not in person.stderr


def test_the_collection_is_found_kept_and_put_in_order(person: Person, model_run: Path) -> None:
    first, *others = NAMES
    person.push(*(f"zoo/{name}" for name in others))
    (collection,) = person.hub.collections.values()
    # People rename it, add to it and shuffle it.
    collection.title = "Our SAEs"
    person.hub.add("model", "org/by-hand", {"README.md": b"x"})
    item = type(collection.items[0])("f" * 24, "model", "org/by-hand", "see this, too")
    collection.items[:] = [item, *reversed(collection.items)]
    person.push("zoo")
    assert len(person.hub.collections) == 1
    others_by_hand = [key for key in person.items("Our SAEs") if key != ("model", "org/by-hand")]
    expected = [("dataset", f"org/{DATASET}"), ("paper", "2506.07691"), *models(*NAMES)]
    assert others_by_hand == expected
    assert collection.items[0].note == "see this, too" or "see this, too" in [
        item.note for item in collection.items
    ]
    assert len({item.id for item in collection.items}) == len(collection.items)
    # From a machine that knows nothing it is found by the id that the dataset holds.
    person.home = "another"
    person.push(f"zoo/{first}")
    assert len(person.hub.collections) == 1


def test_a_full_collection_gets_children(person: Person, model_run: Path) -> None:
    make_zoo(person.where / "zoo", [LLAMA], model_run)
    person.hub.most_items = 5
    report = person.push("zoo", "--public-at-end")
    assert len(person.hub.collections) == 3
    assert not any(collection.private for collection in person.hub.collections.values())
    assert person.items(f"{TITLE}: qwen2.5-0.5b") == models(*NAMES)
    assert person.items(f"{TITLE}: llama-3.2-1b") == models(LLAMA)
    kinds = [kind for kind, _ in person.items()]
    assert kinds == ["dataset", "paper", "collection", "collection"]
    assert report["collection"].startswith("org/")
    before = len(person.hub.requests)
    person.push("zoo")
    assert len(person.hub.collections) == 3
    writes = [r for r in person.hub.requests[before:] if r.method not in ("GET", "HEAD")]
    assert writes == []


def test_private_until_all_is_there(person: Person) -> None:
    watched = person.hub.fail("/commit/", hang_up, after=2, method="POST")
    person.push("zoo", "--public-at-end", code=5)
    assert len(watched) == 12 and len(person.hub.repos) == 3
    assert all(repo.private for repo in person.hub.repos.values())
    person.hub.faults.clear()
    person.push("zoo", "--public-at-end")
    assert not any(repo.private for repo in person.hub.repos.values())
    assert not any(collection.private for collection in person.hub.collections.values())


def test_what_is_refused_before_anything_is_sent(person: Person) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    name = NAMES[1]
    folder = person.where / "zoo" / str(name)
    metrics, card = (folder / "metrics.json").read_text(), (folder / "README.md").read_text()

    def refused(*says: str, code: int = 2, **env: str) -> None:
        person.push(f"zoo/{name}", code=code, **env)
        assert person.stderr.count("\n") == 1 and all(part in person.stderr for part in says)
        assert "hf_" not in person.stderr

    (folder / "metrics.json").unlink()
    refused("metrics.json")
    broken = json.loads(metrics)
    broken["metrics"]["mse"]["all"]["value"] = None
    (folder / "metrics.json").write_text(json.dumps(broken))
    refused("no MSE")
    (folder / "metrics.json").write_text(metrics)
    (folder / "README.md").write_text(card + "\nmy token is hf_" + "abcdefghijklmnopqrstuvwxyzABCDEFGH\n")
    refused("README.md", "token")
    (folder / "README.md").write_text(card)
    refused("log in", code=4, HF_TOKEN="", HF_TOKEN_PATH=str(person.where / "none"))
    assert not [r for r in person.hub.requests if r.method != "GET"]
    refused("token", code=4, HF_TOKEN=READ_TOKEN)
    refused("token", code=4, HF_TOKEN="hf_wrong")
    person.push(f"zoo/{name}", "--namespace", "somebody-else", code=4)
    assert person.hub.repos == {}

    # Weights are looked at when it is their turn; the others are published.
    weights = folder / name.hook_folder / "sae_weights.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "b_dec": torch.full_like(tensors["b_dec"], float("nan"))}, weights)
    report = person.push("zoo", code=2)
    assert report["saes"][str(name)]["status"] == "failed"
    assert "NaN" in person.stderr and ("model", f"org/{name}") not in person.hub.repos
    assert sum(entry["status"] == "published" for entry in report["saes"].values()) == 3


def test_the_hubs_pace_is_kept(person: Person) -> None:
    person.hub.limit(20, 1)
    report = person.push("zoo")
    assert {entry["status"] for entry in report["saes"].values()} == {"published"}
    refused = [request for request in person.hub.requests if request.status == 429]
    assert refused == [] and "waiting 1 s" in person.stderr


def test_two_machines_publish_into_one_namespace(person: Person) -> None:
    half = [f"zoo/{name}" for name in NAMES[:2]]
    rest = [f"zoo/{name}" for name in NAMES[2:]]
    person.push(*half)
    person.home = "another"
    person.push(*rest)
    registry = json.loads(person.held("dataset", DATASET)["registry.json"])
    assert set(registry["saes"]) == set(map(str, NAMES))
    # The first machine's journal is old by now and must not bring back what it remembers.
    newer = registry["saes"][str(NAMES[2])]["sha"]
    person.home = "home"
    person.push(*half)
    registry = json.loads(person.held("dataset", DATASET)["registry.json"])
    assert registry["saes"][str(NAMES[2])]["sha"] == newer


def test_sae_lens_and_fastzoo_load_what_was_pushed(person: Person, tmp_path: Path) -> None:
    person.push("zoo")
    code = """
    import torch, fastzoo
    from sae_lens import SAE
    name, hook = sys.argv[1:]
    theirs = SAE.from_pretrained(f"org/{name}", hook)
    ours = fastzoo.load_sae(f"hf:org/{name}")
    x = torch.randn(5, ours.d_in)
    same = torch.equal(theirs.encode(x), ours.encode(x))
    close = torch.allclose(theirs.decode(theirs.encode(x)), ours.decode(ours.encode(x)), atol=1e-6)
    print(json.dumps([same, close, type(theirs).__name__]))
    """
    for name in NAMES[:2]:
        (found,) = run(person.hub, tmp_path, code, str(name), name.hook_folder)
        assert found[:2] == [True, True], found


def test_a_run_publishes_itself_and_a_failing_hub_does_not_harm_it(person: Person, tmp_path: Path) -> None:
    from zoo_folders import SMALL

    def train(out: str, **env: str) -> str:
        done = subprocess.run(
            [
                *(sys.executable, str(ROOT / "recipes" / "train.py"), *SMALL),
                *("push.namespace=org", f"output.folder={out}"),
            ],
            cwd=tmp_path,
            env=person.hub.env(tmp_path / "home", PYTHONPATH=str(ROOT), FASTZOO_RETRY_SECONDS="0.001", **env),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    name = "tiny-chat-L1-2x-jumprelu"
    person.hub.fail("/api/repos/create", hang_up, method="POST")
    said = train("runs/one")
    last = said.splitlines()[-1]
    assert "finish it with: fastzoo push runs/one --namespace org" in last, said
    assert (tmp_path / "runs" / "one" / name / "README.md").is_file()
    person.hub.faults.clear()
    # The same command again finds the run complete, and publishes it.
    said = train("runs/one")
    assert "published: 1 published" in said and ("model", f"org/{name}") in person.hub.repos
    assert person.items()[-1] == ("model", f"org/{name}")


def test_moves_are_few_and_right() -> None:
    import random

    draw = random.Random(0)
    for _ in range(2000):
        wanted = list(range(draw.randint(0, 7)))
        others = [f"other {i}" for i in range(draw.randint(0, 3))]
        order = draw.sample([*wanted, *others], len(wanted) + len(others))
        made = list(order)
        found = moves(order, wanted)
        for key, place in found:
            made.remove(key)
            made.insert(place, key)
        assert [key for key in made if key in wanted] == wanted
        assert [key for key in made if key in others] == [key for key in order if key in others]
        assert len(found) < max(len(wanted), 1)
