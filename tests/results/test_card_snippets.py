"""The code in cards does what it says: both architectures, from a folder and from the Hub, with and without
attention sinks that are skipped."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from conftest import randomise
from examples import example
from hub_server import LoopbackHub

from fastzoo import tiny
from fastzoo.results.card import render_card
from fastzoo.saes import architecture
from fastzoo.saes.base import Sinks
from fastzoo.saes.formats import save_sae

ROOT = Path(__file__).parents[2]
LAYER, WIDTH, LATENTS = 1, 128, 256
HOOK = f"blocks.{LAYER}.hook_resid_post"

# Runs the snippets of each card one by one, each in a namespace of its own, and compares.
RUN = """
import json, sys
import torch
torch.set_num_threads(1)
for case in json.load(open(sys.argv[1])):
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    x[2] *= 50
    found = []
    rebuilt = []
    shared = {}
    for code in case["snippets"]:
        space = dict(shared)
        exec(compile(code, case["name"], "exec"), space)
        shared.setdefault("sae", space.get("sae"))  # the second snippet goes on with the first's
        if "latents" in space:
            assert space["latents"].shape[1] == 256
            sinks = space["states"][0][0].norm(dim=1) > case["norm"]
            assert sinks.any() and (space["latents"][~sinks] > 0).any()
            assert (space["latents"][sinks] == 0).all() == case["skips"]
            continue
        sae = space.get("sae") or type("", (), {k: staticmethod(space[k]) for k in ("encode", "decode")})
        if case["skips"]:
            if "fastzoo" in code:
                latents = sae.encode(x, skip_sinks=True)
            else:
                assert "is_sink" in space or "SAELens does not know" in code
                latents = space["encode"](x)
            assert (latents[2] == 0).all() and (latents[[0, 1, 3, 4]] > 0).any(1).all()
            rebuilt.append(space.get("reconstruct", sae)(x))
        else:
            latents = sae.encode(x)
            assert "reconstruct" not in space and "sink" not in code
        found.append((latents, sae.decode(latents)))
    assert len(found) == 3, len(found)
    for other in rebuilt:
        assert torch.equal(other[2], x[2]) and not torch.isclose(other[0], x[0], rtol=1e-3).all()
        torch.testing.assert_close(other, rebuilt[0], rtol=1e-5, atol=1e-5)
    (latents, decoded), *others = found
    assert (latents > 0).any() and (latents == 0).any()
    for other in others:
        torch.testing.assert_close(other, (latents, decoded), rtol=1e-6, atol=1e-6)
    print("ran", case["name"], float(latents.double().sum()))
"""


def median_norm() -> float:
    """Of the tokens of a chat: some of those in the card's own will be sinks."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny.MODEL),
        AutoTokenizer.from_pretrained(tiny.MODEL),
    )
    turns = [{"role": "user", "content": "Hello!"}]
    chat = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        states_TD = model(**chat, output_hidden_states=True).hidden_states[LAYER + 1][0]
    return states_TD.norm(dim=1).median().item()


def test_snippets_of_local_and_published_cards(tmp_path: Path) -> None:
    cases, expected = [], []
    tiny_files = {p.name: p.read_bytes() for p in tiny.MODEL.iterdir()}
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))
    x[2] *= 50
    norm = median_norm()
    assert x[[0, 1, 3, 4]].norm(dim=1).max() < norm < x[2].norm()
    with LoopbackHub() as hub:
        sha = hub.add("model", "lab/Tiny-Instruct", tiny_files)
        for kind, skipped in (("standard", False), ("jumprelu", False), ("jumprelu", True)):
            sinks = Sinks(norm, norm / 10, skipped)
            name = f"tiny-L{LAYER}-{2 + skipped}x-{kind}"
            record, figures = example("lab/Tiny-Instruct")
            record["name"] = name
            record["base_model"]["sha"] = sha
            record["sae"] |= {"architecture": kind, "layer": LAYER, "hook_folder": HOOK}
            record["sae"] |= {"d_in": WIDTH, "d_sae": LATENTS, "sinks": vars(sinks)}
            sae = randomise(architecture(kind)(WIDTH, LATENTS))
            sae.sinks = sinks
            save_sae(sae, tmp_path / name / HOOK, layer=LAYER, metadata={"model_name": "lab/x"})
            (tmp_path / name / "config.json").write_text(json.dumps(record))
            files = {
                p.relative_to(tmp_path / name).as_posix(): p.read_bytes()
                for p in (tmp_path / name).rglob("*")
                if p.is_file()
            }
            for repo_id in (None, f"org/{name}"):
                card = render_card(copy.deepcopy(record), figures, repo_id)
                if repo_id:
                    hub.add("model", repo_id, {**files, "README.md": card.encode()})
                snippets = re.findall(r"```python\n(.*?)```", card, re.S)
                assert len(snippets) == 4 and all(name in snippets[i] for i in (0, 2, 3))
                assert "fastzoo" not in "".join(snippets[1:]) and "sae_lens" not in snippets[3]
                cases.append(
                    {"name": f"{kind} {repo_id}", "snippets": snippets, "skips": skipped, "norm": norm}
                )
                expected.append(sae.encode(x, skip_sinks=True).double().sum().item())
        (tmp_path / "cases.json").write_text(json.dumps(cases))
        result = subprocess.run(
            [sys.executable, "-c", RUN, "cases.json"],
            cwd=tmp_path,
            env=hub.env(tmp_path / "home", PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        assert not hub.foreign
        assert hub.asked(rf"lab/Tiny-Instruct/resolve/{sha}/") and hub.asked("org/tiny-.*safetensors")
    ran = [line.split() for line in result.stdout.splitlines() if line.startswith("ran ")]
    assert [" ".join(words[1:3]) for words in ran] == [case["name"] for case in cases]
    for words, total in zip(ran, expected, strict=True):
        assert abs(float(words[3]) - total) < 1e-4 * total
    assert "'<|im_start|>'" in result.stdout
