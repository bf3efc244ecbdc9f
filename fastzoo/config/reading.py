"""Recipes read from YAML: presets, ``key=value`` overrides, errors in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from fastzoo.config.recipe import EMBEDDED_MODEL, PRESETS, Recipe, Section, TrainingSection, training_options
from fastzoo.config.recipe_checks import check_recipe
from fastzoo.core.errors import InputError
from fastzoo.core.files import resource
from fastzoo.core.strict_yaml import LONGEST, read_yaml
from fastzoo.core.text import did_you_mean, one_line
from fastzoo.core.values import value_at
from fastzoo.saes import trainable

FOR_ANY_MODEL = ("layers", "expansions", "architectures", "method", "preset")
"""Keys of the embedded recipe that hold for any model; the others suit the toy model and its little data."""


def preset_values(name: str) -> dict[str, Any]:
    text = files("fastzoo.config").joinpath(f"presets/{name}.yaml").read_text(encoding="utf-8")
    return read_yaml(text, f"preset {name}")


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file (by default the embedded one), apply preset and overrides, and check it.

    Args:
        overrides: ``key=value`` with dotted keys; values are YAML (``layers=[1,2]``).

    Raises InputError: anything that cannot work, in one line.
    """
    embedded = resource("recipes") / "tiny.yaml"
    path = path or embedded
    raw, where = read_mapping(path)
    given: dict[str, Any] = {}
    for text in overrides:
        override(given, text)
    if value_at(given, "model", "name") not in (None, EMBEDDED_MODEL) and path.samefile(embedded):
        raw = {key: value for key, value in raw.items() if key in FOR_ANY_MODEL}
    own, preset = raw.get("training"), raw.get("preset")
    another = given.get("preset", preset) != preset or value_at(given, "training", "sparsity_coefficient")
    if isinstance(own, dict) and another:
        own.pop(
            "l0", None
        )  # another preset, and whoever gives coefficients, has a way to sparsity of its own
    for text in overrides:
        override(raw, text)
    return resolve(raw, where)


def read_mapping(path: Path, folder: str = "") -> tuple[dict[str, Any], str]:
    """What a YAML file of settings holds, and how errors name the file.

    ``folder`` is that of the recipes that come with fastzoo, below ``recipes``. Raises InputError.
    """
    where = one_line(path, 200)
    try:
        if path.exists() and not path.is_file():  # a pipe or device could be endless
            raise InputError(f"recipe '{where}' cannot be read: it is not a regular file")
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
    except FileNotFoundError:
        known = sorted(p.name for p in (resource("recipes") / folder).glob("*.yaml"))
        there = f"Recipes that come with fastzoo: {', '.join(known)} in {Path('recipes', folder)}/."
        raise InputError(f"no recipe file '{where}'.{did_you_mean(path.name, known)} {there}") from None
    except (OSError, ValueError) as error:  # not UTF-8; a NUL in the path
        reason = one_line(getattr(error, "strerror", None) or error)
        raise InputError(f"recipe '{where}' cannot be read: {reason}") from None
    raw = read_yaml(text, where)
    if not isinstance(raw, dict):
        raise InputError(f"{where}: a recipe is a mapping of keys to values")
    return raw, where


def resolve(raw: Mapping[str, Any], where: str) -> Recipe:
    """Fill in the preset and validate. Raises InputError."""
    values = dict(raw)
    preset = values.get("preset", "quick")
    if preset in PRESETS and isinstance(values.get("training", {}), dict):
        base, own = preset_values(preset), values.get("training", {})
        names = values.get("architectures")
        options = training_options(names if isinstance(names, list) else ())
        merged = {**base, **{key: option.default for key, option in options.items()}, **own}
        coefficients = own.get("sparsity_coefficient")
        if isinstance(coefficients, dict):
            merged["sparsity_coefficient"] = {**base["sparsity_coefficient"], **coefficients}
            merged["l0"] = own.get("l0")  # who gives coefficients wants these
        values["training"] = merged
    recipe = make_section(Recipe, where, **values)
    check_recipe(recipe)
    return recipe


AnySection = TypeVar("AnySection", bound=Section)


def make_section(kind: type[AnySection], where: str, /, **values: Any) -> AnySection:
    """One section by itself, from a user's values. Raises InputError."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(error, where, kind)) from None


def override(raw: dict[str, Any], text: str) -> None:
    """Set what ``key=value`` says, with a dotted key and a value in YAML. Raises InputError."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key):
        raise InputError(f"'{one_line(text, 100)}' is not an override; one reads key=value")
    target = raw
    *parents, last = key.split(".")
    for parent in parents:
        inner = target.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise InputError(f"{one_line(text, 100)}: '{parent}' is a value, not a section")
        target = inner
    target[last] = read_yaml(value, f"override {key}")


def _explain(error: ValidationError, where: str, kind_of: type[Section]) -> str:
    """The first problem in one line; how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    # Dotted key; positions in lists and pydantic's names of union members are left out.
    path = [part for part in first["loc"] if isinstance(part, str)]
    key = ".".join(path)
    value = one_line(repr(first["input"]), 80)
    kind = first["type"]
    if kind == "extra_forbidden":
        fields = _fields_at(path[:-1], kind_of)
        section = f" of '{'.'.join(path[:-1])}'" if len(path) > 1 else ""
        text = f"unknown key '{key}' (value {value}).{did_you_mean(path[-1], fields)} Keys{section}: {', '.join(fields)}."
    elif kind == "missing":
        text = f"the key '{key}' is missing"
    elif kind == "literal_error":
        choices = re.findall("'(.*?)'", first["ctx"]["expected"])
        text = (
            f"{key}: {value} is not one of {', '.join(choices)}.{did_you_mean(str(first['input']), choices)}"
        )
    elif kind in ("model_type", "dict_type"):
        text = f"{key}: got {value}; it is a section with keys {', '.join(_fields_at(path, kind_of))}"
    else:
        text = f"{key}: got {value}; {first['msg'][0].lower()}{first['msg'][1:]}"
        if kind == "list_type":
            text += f", as in {key}=[{one_line(first['input'], 40)}]"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {one_line(text, 600)}{more}"


def _fields_at(path: Sequence[str], section: Any) -> list[str]:
    """Names of the keys of the section that ``path`` leads to."""
    for part in path:
        section = section.model_fields[part].annotation
        inner = [kind for kind in (section, *get_args(section)) if hasattr(kind, "model_fields")]
        if not inner:  # the mapping of sparsity coefficients
            return list(trainable())
        section = inner[0]
    own = training_options() if section is TrainingSection else {}
    return [*section.model_fields, *own]
