"""What ``registry.json`` may hold, as pydantic models. It comes from anybody, so nothing is taken as given."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic import ValidationInfo as Info

from fastzoo.core.errors import InputError, IntegrityError
from fastzoo.core.text import one_line
from fastzoo.hub.files import HubFile
from fastzoo.hub.registry import LONGEST_NAME, NEEDED, Published, Registry, known_files
from fastzoo.saes.names import parse_name
from fastzoo.saes.references import NAME, REPO


def _only_known_files(files: Any, info: Info) -> Any:
    known = known_files(info.context or "")
    paths = set(files) if isinstance(files, dict) else set()
    if unknown := paths.difference(known):
        raise ValueError(f"the file {min(unknown)}")
    if missing := set(known[:NEEDED]) - paths:
        raise ValueError(f"the file {min(missing)} is missing")
    return files


def _only_cells(figures: dict[str, Any]) -> dict[str, Any]:
    """Values that can be shown and kept: no NaN, no control characters."""
    for key, value in figures.items():
        match value:
            case str():
                fits = value.isprintable() and len(value) <= 1000
            case int():
                fits = type(value) is int and -(1 << 63) <= value < 1 << 63  # True is an int, too
            case _:
                fits = value is None or (type(value) is float and math.isfinite(value))
        if not fits:
            raise ValueError(f"the value of {key}")
    return figures


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _File(_Strict):
    size: int = Field(ge=0, lt=1 << 63)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class _SAE(_Strict):
    """Validated with the SAE's name as context."""

    repo_id: str = Field(pattern=f"^{REPO.pattern}$")
    sha: str = Field(pattern="^[0-9a-f]{40}$")
    files: Annotated[dict[str, _File], BeforeValidator(_only_known_files)]
    figures: Annotated[dict[str, Any], AfterValidator(_only_cells)]


class _Registry(_Strict):
    format: Literal[1]
    namespace: str = Field(pattern=f"^{NAME}$")
    collection: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    saes: dict[str, Any]
    """Validated one by one: the first fault of a hostile registry ends it, not a list of millions."""


def parse(text: str | bytes, where: str) -> Registry:
    """Read a registry. Raises IntegrityError, which says what is wrong ``where``."""
    key, saes = "", {}
    try:
        found = _Registry.model_validate_json(text)
        for key, entry in found.saes.items():
            name = parse_name(key)
            if len(key) > LONGEST_NAME:
                raise InputError(f"the name {key} is too long")
            sae = _SAE.model_validate(entry, context=name)
            files = {path: HubFile(path, f.size, f.sha256) for path, f in sae.files.items()}
            saes[name] = Published(name, sae.repo_id, sae.sha, files, sae.figures)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        message = fault["msg"].removeprefix("Value error, ")
        said = ": ".join([*filter(None, (key, *map(str, fault["loc"]))), message])
    except InputError as error:
        said = str(error)
    else:
        return Registry(found.namespace, found.collection, saes)
    raise IntegrityError(f"{where} is no registry of fastzoo's: {one_line(said, 200)}")
