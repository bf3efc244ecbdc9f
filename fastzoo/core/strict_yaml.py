"""YAML without surprises: 1e6 is a number, and what a writer may not have meant is refused."""

from __future__ import annotations

import re
from typing import Any

import yaml

from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line

LONGEST = 1 << 16
"""Characters of a document. Recipes have a few thousand; the parser takes minutes for a million."""


def _refusal(node: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e6 as a number and refuses duplicate keys, tags, anchors and aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.events.AliasEvent):
            raise _refusal(event, "aliases are not allowed")
        if event.anchor is not None:
            raise _refusal(event, f"anchors (&{event.anchor}) are not allowed")
        if event.tag is not None:
            raise _refusal(event, f"tags ({event.tag}) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refusal(key_node, f"the key {key!r} is not a word")
            if key in seen:
                raise _refusal(key_node, f"the key '{key}' stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _integer(loader: Any, node: Any) -> int:
    """A decimal integer of 64 bits. In YAML 010 is 8 and 1:30 is 90, which nobody means."""
    shown = one_line(node.value, 40)
    if not re.fullmatch(r"[-+]?(0|[1-9][\d_]*)", node.value):
        raise _refusal(node, f"{shown} is not a decimal number; quote it if it is a text")
    if len(node.value) > 40 or not -(2**63) <= (value := int(node.value)) < 2**63:
        raise _refusal(node, f"{shown} is too large a number")
    return value


def _float(loader: Any, node: Any) -> int | float:
    """A float; an integral one with an exponent (4e6) counts as an integer."""
    if ":" in node.value:  # base 60
        return _integer(loader, node)
    value = loader.construct_yaml_float(node)
    whole = "e" in node.value.lower() and value.is_integer() and abs(value) < 2**63
    return int(value) if whole else value


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes texts which ``_Loader`` would read as numbers."""


_EXPONENT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("!exponent", _EXPONENT, list("-+.0123456789"))
_Loader.add_constructor("!exponent", _float)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML that is plain data.

    Raises InputError, with line and column: not YAML, or tags, anchors, aliases or duplicate keys.
    """
    where = one_line(where, 200)
    if len(text) > LONGEST:
        raise InputError(f"{where}: longer than {LONGEST} characters, so no recipe")
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{where}{at}: {one_line(error.problem)}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{where}: not YAML: {one_line(error)}") from None


def dump_yaml(value: Any) -> str:
    """Plain data as YAML that ``read_yaml`` reads back to the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
