"""What the Hub is known to check in a card's metadata."""

from __future__ import annotations

import re
from typing import Any

RELATIONS = ("adapter", "merge", "quantized", "finetune")
LICENSES = frozenset(
    """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
    c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
    ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
    lgpl-2.1 lgpl-3.0 isc intel-research h-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0
    odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2
    llama3.3 llama4 grok2-community gemma unknown other""".split()
)
ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?")


def check_card(content: str, kind: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about the metadata of a card of a ``kind`` of repository."""
    import yaml

    lines = content.replace("\r\n", "\n")
    match = re.match(r"---[ \t]*\n(.*?)^---[ \t]*$", lines, re.DOTALL | re.MULTILINE)
    if match is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        card = yaml.safe_load(match[1])
    except yaml.YAMLError as problem:
        return [f"bad YAML: {' '.join(str(problem).split())}"], []
    if card is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(card, dict):
        return ["the metadata must be a YAML mapping"], []
    errors = _licence(card) + _names(card) + _index(card.get("model-index"))
    if kind == "model":
        errors += _base_model(card)
    if kind == "dataset":
        errors += _configs(card.get("configs"))
    return errors, []


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _licence(card: dict[str, Any]) -> list[str]:
    value = card.get("license")
    names = value if isinstance(value, list) else [value]
    if value is None:
        return []
    errors = [f'"license" must be one of the known ids, not {n!r}' for n in names if n not in LICENSES]
    if "other" in names and not isinstance(card.get("license_name"), str):
        errors.append('"license_name" is required with "license: other"')
    return errors


def _names(card: dict[str, Any]) -> list[str]:
    errors = []
    for key in ("tags", "datasets", "metrics"):
        if card.get(key) is not None and not _strings(card[key]):
            errors.append(f'"{key}" must be an array of strings')
    for key in ("library_name", "pipeline_tag", "license_name", "license_link", "pretty_name"):
        if card.get(key) is not None and not isinstance(card[key], str):
            errors.append(f'"{key}" must be a string')
    language = card.get("language")
    if language is not None and not (isinstance(language, str) or _strings(language)):
        errors.append('"language" must be a string or an array of strings')
    if _strings(card.get("datasets")):
        errors += [f'"datasets": {n!r} is no id' for n in card["datasets"] if not ID.fullmatch(n)]
    return errors


def _base_model(card: dict[str, Any]) -> list[str]:
    errors = []
    value = card.get("base_model")
    names: Any = [value] if isinstance(value, str) else value
    if value is not None and not (_strings(names) and all(map(ID.fullmatch, names))):
        errors.append('"base_model" must be the id of a model or an array of ids')
    if card.get("base_model_relation", "adapter") not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {", ".join(RELATIONS)}')
    return errors


def _index(index: Any) -> list[str]:
    if index is None:
        return []
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        where = f'"model-index[{i}]'
        if not (isinstance(model, dict) and isinstance(model.get("name"), str)):
            errors.append(f'{where}.name" must be a string')
            continue
        results = model.get("results")
        if not isinstance(results, list):
            errors.append(f'{where}.results" must be an array')
            continue
        for j, result in enumerate(results):
            errors += _result(f"{where}.results[{j}]", result)
    return errors


def _result(where: str, result: Any) -> list[str]:
    if not isinstance(result, dict):
        return [f'{where}" must be an object']
    errors = []
    for key, needed in (("task", ("type",)), ("dataset", ("type", "name"))):
        part = result.get(key)
        if key == "dataset" and part is None:
            continue
        for name in needed:
            if not (isinstance(part, dict) and isinstance(part.get(name), str)):
                errors.append(f'{where}.{key}.{name}" must be a string')
    metrics = result.get("metrics")
    if not isinstance(metrics, list):
        return [*errors, f'{where}.metrics" must be an array']
    for k, metric in enumerate(metrics):
        if not (isinstance(metric, dict) and isinstance(metric.get("type"), str)):
            errors.append(f'{where}.metrics[{k}].type" must be a string')
        elif metric.get("value") is None:
            errors.append(f'{where}.metrics[{k}].value" is required')
    return errors


def _configs(configs: Any) -> list[str]:
    if configs is None:
        return []
    if not isinstance(configs, list):
        return ['"configs" must be an array']
    errors = []
    for i, config in enumerate(configs):
        if not (isinstance(config, dict) and isinstance(config.get("config_name"), str)):
            errors.append(f'"configs[{i}].config_name" must be a string')
        elif not _data_files(config.get("data_files")):
            errors.append(f'"configs[{i}].data_files" must be paths, or splits with their paths')
    return errors


def _data_files(value: Any) -> bool:
    if isinstance(value, str) or _strings(value):
        return True
    return isinstance(value, list) and all(
        isinstance(item, dict)
        and isinstance(item.get("split"), str)
        and (isinstance(item.get("path"), str) or _strings(item.get("path")))
        for item in value
    )
