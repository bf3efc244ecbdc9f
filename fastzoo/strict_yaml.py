"""YAML without its surprises: 1e6 is a number, and nothing is read that its writer did not mean."""

from __future__ import annotations

import re
from typing import Any

import yaml

from fastzoo.errors import InputError, one_line


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e6 as a number and refuses duplicate keys and aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases are not allowed", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is not a word", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key}' stands twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _number(loader: Any, node: Any) -> int | float:
    """A float; an integral one with an exponent (4e6) counts as an integer."""
    value = loader.construct_yaml_float(node)
    return int(value) if "e" in node.value.lower() and value.is_integer() else value


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes texts which ``_Loader`` would read as numbers."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "!exponent",
        re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )
for _tag in ("!exponent", "tag:yaml.org,2002:float"):
    _Loader.add_constructor(_tag, _number)


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML strictly.

    Raises:
        InputError: it is not YAML, or has tags of its own, aliases or duplicate keys; names line and
            column.
    """
    try:
        # Only plain scalars, lists and mappings can come out of a SafeLoader.
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
