"""A token that cannot publish is refused before a run begins; what can still be mended is only said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import run_python
from hub_server import READ_TOKEN, ROOT, LoopbackHub, as_json, failing

from fastzoo.core.errors import AccessError

ASK = """
import sys
from fastzoo.core.exit import report_failures
from fastzoo.publish.access import check_token
report_failures(lambda: check_token(sys.argv[1], ["one", "other"]))
"""
TRAIN = f"""
import sys, runpy
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path({str(ROOT / "recipes" / "train.py")!r}, run_name="__main__")
"""


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
        assert hub.foreign == []


def check(
    hub: LoopbackHub, place: Path, *arguments: str, code: str = ASK, **env: str
) -> tuple[int, list[str]]:
    """Exit code, and the lines that were said."""
    more = {"PYTHONPATH": str(ROOT), "FASTZOO_RETRY_SECONDS": "0.01", **env}
    done = run_python(code, *arguments, env=hub.env(place, **more), cwd=place)
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("namespace", ["user", "org", "Org"])
def test_a_token_that_may_write_is_not_spoken_of(hub: LoopbackHub, tmp_path: Path, namespace: str) -> None:
    assert check(hub, tmp_path, namespace) == (0, [])
    assert hub.asked("whoami") == ["GET /api/whoami-v2"]


@pytest.mark.parametrize(
    ("namespace", "token", "says"),
    [
        ("org", READ_TOKEN, "the token of user may only read"),
        ("elsewhere", "", "user does not belong to 'elsewhere'; the token may write to user, org"),
        ("org", "hf_no_such_token", "refused access for namespace org (401)"),
    ],
)
def test_a_token_that_may_not_is_refused_before_anything_is_loaded(
    hub: LoopbackHub, tmp_path: Path, namespace: str, token: str, says: str
) -> None:
    recipe = (
        f"push.namespace={namespace}",
        "output.folder=out",
        "model.name=./nothing",
        "data.source=x.jsonl",
    )
    code, (line,) = check(hub, tmp_path, *recipe, code=TRAIN, **({"HF_TOKEN": token} if token else {}))
    assert code == AccessError.exit_code and says in line and "hf auth login" in line
    assert line.startswith("error: ") and not (tmp_path / "out").exists()


def scope(kind: str, name: str, *permissions: str) -> dict[str, Any]:
    return {"entity": {"_id": "1", "type": kind, "name": name}, "permissions": list(permissions)}


@pytest.mark.parametrize(
    ("scopes", "may"),
    [
        ([scope("user", "user", "repo.content.read", "repo.write")], False),
        ([scope("org", "org", "repo.content.read")], False),
        ([], False),
        ([scope("user", "user"), scope("org", "org", "repo.write")], True),
        ([scope("org", "Org", "repo.write")], True),
        ([scope("model", "org/qwen2.5-0.5b-L4-8x-topk", "repo.write")], False),
        ([scope("model", "org/one", "repo.write")], False),
        ([scope("model", "org/one", "repo.write"), scope("model", "org/other")], False),
        ([scope("model", "org/one", "repo.write"), scope("model", "Org/other", "repo.write")], True),
        ([scope("model", "user/one", "repo.write"), scope("model", "user/other", "repo.write")], False),
        (["no scope", {"entity": None, "permissions": ["repo.write"]}], False),
        (None, True),
    ],
)
def test_fine_grained_tokens(hub: LoopbackHub, tmp_path: Path, scopes: Any, may: bool) -> None:
    token = {"role": "fineGrained", **({} if scopes is None else {"fineGrained": {"scoped": scopes}})}
    who = {"type": "user", "name": "user", "orgs": [], "auth": {"accessToken": token}}
    hub.fail("whoami", lambda request: as_json(who))
    code, lines = check(hub, tmp_path, "org")
    assert code == (0 if may else AccessError.exit_code)
    assert len(lines) == (0 if may else 1) and all("repositories of org" in line for line in lines)


@pytest.mark.parametrize("token", ["write", "fineGrained"])
@pytest.mark.parametrize(
    ("role", "may"),
    [
        *((role, True) for role in ("admin", "write", "contributor", None)),
        *((role, False) for role in ("read", "no_access", "guest")),
    ],
)
def test_roles_in_an_organisation(
    hub: LoopbackHub, tmp_path: Path, role: str | None, may: bool, token: str
) -> None:
    """Whatever the token may; where no role is said, nobody knows."""
    scopes = {"fineGrained": {"scoped": [scope("org", "org", "repo.write")]}}
    orgs = [{"name": "org", **({"roleInOrg": role} if role else {})}]
    who = {"name": "user", "orgs": orgs, "auth": {"accessToken": {"role": token, **scopes}}}
    hub.fail("whoami", lambda request: as_json(who))
    code, lines = check(hub, tmp_path, "Org")
    assert code == (0 if may else AccessError.exit_code) and len(lines) == (not may)
    assert all(f"user may not write in 'Org', whose role there is {role}" in line for line in lines)


@pytest.mark.parametrize(("collection", "may"), [(True, False), (False, True)])
def test_the_repositories_of_a_run(hub: LoopbackHub, tmp_path: Path, collection: bool, may: bool) -> None:
    """Its SAEs, and the results dataset if that is brought up to date. Next, the model is not there."""
    scopes = [scope("model", f"org/nothing-L{layer}-2x-jumprelu", "repo.write") for layer in (0, 1)]
    token = {"role": "fineGrained", "fineGrained": {"scoped": scopes}}
    who = {"name": "user", "orgs": [], "auth": {"accessToken": token}}
    hub.fail("whoami", lambda request: as_json(who))
    run = ("model.name=./nothing", "data.source=x.jsonl", "layers=[0,1]", "expansions=[2]")
    options = ("architectures=[jumprelu]", f"push.collection={collection}", "output.folder=out")
    code, lines = check(hub, tmp_path, *run, *options, "push.namespace=org", code=TRAIN)
    assert code != 0 and ("fine-grained" not in lines[-1]) == may
    assert (code == AccessError.exit_code) != may


def test_what_can_be_mended_until_the_end_is_said(hub: LoopbackHub, tmp_path: Path) -> None:
    code, (line,) = check(hub, tmp_path, "org", HF_TOKEN="")
    assert code == 0 and "there is no token to publish with yet" in line
    code, (line,) = check(hub, tmp_path, "org", HF_HUB_OFFLINE="1")
    assert code == 0 and "is not known" in line and "offline mode is on" in line
    hub.fail("whoami", failing(503))
    code, lines = check(hub, tmp_path, "org")
    assert code == 0 and "whether the token may publish there is not known" in lines[-1]
    hub.faults[:] = []
    hub.fail("whoami", lambda request: as_json(["not", "a", "user"]))
    assert check(hub, tmp_path, "org")[0] == 0
