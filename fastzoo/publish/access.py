"""Whether a token may publish into a namespace, asked before a run whose end needs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastzoo.core.errors import AccessError, HubError
from fastzoo.core.text import one_line
from fastzoo.core.values import text_at, value_at
from fastzoo.hub.client import LOGIN, hub_errors
from fastzoo.hub.retries import with_retries
from fastzoo.publish.report import say

WRITERS = ("admin", "write", "contributor")
"""Roles in an organisation whose members may make repositories; the others are read and no_access."""


def check_token(namespace: str, repositories: Iterable[str]) -> None:
    """Look whether the token of this machine may publish these ``repositories`` of ``namespace``.

    Says so where there is no token yet, or the Hub cannot be asked now: both can be mended until the end.
    Raises AccessError: the token is not valid, may only read, or not write there.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        say(f"push.namespace: there is no token to publish with yet; {LOGIN} before the run ends")
        return
    try:
        with hub_errors("namespace", namespace):
            who = with_retries(HfApi().whoami, "the token", tries=2)
    except AccessError:
        raise
    except HubError as error:
        say(f"push.namespace: whether the token may publish there is not known: {error}")
        return
    if problem := _problem(who, namespace, {f"{namespace}/{name}".lower() for name in repositories}):
        raise AccessError(f"push.namespace: {problem}; {LOGIN}, with a token that may write there")


def _problem(who: Mapping[str, Any], namespace: str, repositories: set[str]) -> str | None:
    """Why a token whose owner the Hub describes so cannot write there; None if it can, or nobody knows."""
    name, token = text_at(who, "name") or "", value_at(who, "auth", "accessToken")
    role = text_at(token, "role")
    if not name:
        return None
    if role == "read":
        return f"the token of {name} may only read"
    listed = value_at(who, "orgs")
    orgs = {text_at(org, "name") or "": text_at(org, "roleInOrg") for org in listed or ()}
    in_org = next((role for org, role in orgs.items() if _is_in(namespace, [org])), None)
    if in_org is not None and in_org not in WRITERS:
        return f"{name} may not write in '{namespace}', whose role there is {one_line(in_org, 20)}"
    if role == "fineGrained":
        scopes = value_at(token, "fineGrained", "scoped")
        written = {_written(scope) for scope in scopes} if isinstance(scopes, list) else {namespace.lower()}
        if namespace.lower() not in written and not repositories <= written:
            return f"the fine-grained token of {name} may not write to all repositories of {namespace}"
        return None
    if not _is_in(namespace, (name, *orgs)):
        theirs = one_line(", ".join(filter(None, (name, *orgs))), 200)
        return f"{name} does not belong to '{namespace}'; the token may write to {theirs}"
    return None


def _written(scope: Any) -> str | None:
    """The user, organisation or repository that a scope of a fine-grained token allows writing to."""
    permissions = value_at(scope, "permissions")
    may = isinstance(permissions, list) and "repo.write" in permissions
    return (text_at(scope, "entity", "name") or "").lower() if may else None


def _is_in(namespace: str, names: Any) -> bool:
    """Upper and lower case make no difference to the Hub."""
    return namespace.lower() in {name.lower() for name in names}
