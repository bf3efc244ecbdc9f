"""From names to things loaded: an SAE, or SAEs with their language model, chat template and dialogues."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fastzoo.config.reading import make_section
from fastzoo.config.recipe import EMBEDDED_DATA, EMBEDDED_MODEL, DataSection, ModelSection
from fastzoo.config.run_recipe import remembered_path
from fastzoo.core.errors import InputError, ModelError
from fastzoo.core.files import read_json
from fastzoo.core.text import one_line
from fastzoo.core.values import text_at, value_at
from fastzoo.data.recorded import HeldOut, recorded_held_out, shared_held_out
from fastzoo.data.rows import Rows
from fastzoo.data.sequences import TokenSequence, described
from fastzoo.data.special_tokens import TurnTexts
from fastzoo.data.streams import held_out_sequences
from fastzoo.data.tokenizer import ChatTokenizer
from fastzoo.hub.find import locate
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.fitness import check_model
from fastzoo.lm.load import ModelSource, find_model, load_model, load_tokenizer, refuse_unfit
from fastzoo.saes.base import SAE
from fastzoo.saes.formats import LoadedSAE, read_sae


@dataclass
class Assembly:
    """SAEs (layer and SAE by name) of one language model, with that model, loaded when first needed."""

    saes: dict[str, tuple[int, SAE]]
    source: ModelSource
    section: ModelSection
    chat: ChatTokenizer
    held_out: HeldOut | InputError
    """The dialogues; where they cannot be had, the error to raise once they are needed."""

    @property
    def base_model(self) -> dict[str, Any]:
        """Name and sha, as records have it."""
        return {"name": self.source.public_name, "sha": self.source.sha}

    @property
    def vocabulary(self) -> int:
        """How many ids stand for a token; the model may have embeddings for more."""
        tokens = len(self.chat.tokenizer)
        return min(tokens, self.source.embeddings or tokens)

    @cached_property
    def texts(self) -> TurnTexts:
        """What the model's tokens say."""
        return TurnTexts(self.chat)

    @cached_property
    def reader(self) -> ResidualReader:
        """Reads the model's activations, on a GPU if there is one. Raises ModelError."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        reader = ResidualReader(load_model(self.source, self.section, device))
        check_model(reader)
        return reader

    @cached_property
    def rows(self) -> Rows:
        """Raises InputError, DataError, HubError: there are no dialogues; the line asks for ``--data``."""
        if isinstance(self.held_out, InputError):
            raise self.held_out
        return self.held_out.open()

    def dialogues(
        self, count: int, purpose: str = "reconstruction"
    ) -> tuple[list[TokenSequence], dict[str, Any]]:
        """The first ``count`` usable dialogues for a purpose (``HELD_OUT``), and what became of the rows, as plain data.

        Prints to stderr what was skipped or truncated. Raises as ``rows``, and DataError: none is usable.
        """
        rows, limit = self.rows, self.chat.data.max_tokens
        most_rows = self.held_out.rows if isinstance(self.held_out, HeldOut) else None
        sequences, counts = held_out_sequences(self.chat, rows, count, most_rows, purpose)
        changed = []
        if counts.skipped:
            changed.append(f"{counts.skipped.total()} of {counts.rows} rows skipped ({counts.reasons()})")
        if counts.truncated:
            changed.append(f"{counts.truncated} of {counts.used} dialogues truncated to {limit} tokens")
        if changed:
            print(f"{rows.info.name}: {'; '.join(changed)}", file=sys.stderr)
        return sequences, described(rows.info, counts)


def assemble(
    sources: Sequence[str | Path],
    *,
    model_name: str | None = None,
    revision: str | None = None,
    data: str | None = None,
    max_tokens: int | None = None,
) -> Assembly:
    """Open SAEs of one model, and find that model.

    Args:
        sources: as ``load_sae`` takes them.
        model_name: the language model, if the SAEs do not name it or are to be tried on another one.
        revision: of the model.
        data: dialogues: ``embedded``, a file, or a Hub dataset id; by default those that the SAEs' records say
            were held out from training.
        max_tokens: dialogues are truncated to this; by default as in the record, else to 8,192 or the model's
            context.

    Raises:
        InputError: SAEs of different models, or whose files name no model or layer.
        HubError: something is not on the Hub, or the Hub cannot be reached.
        ModelError: the model cannot be used, an SAE does not fit it, or its folder, which is not given, holds
            another one than the SAE was trained on.
    """
    given = [str(source) for source in sources]
    loaded = [open_sae(source) for source in given]
    names = [name_of(x) for x in loaded]
    if len(set(names)) < len(names):
        names = given  # their own names do not tell them apart
    if len(set(names)) < len(names):
        raise InputError("the same SAE is given twice")
    named = dict(zip(names, loaded, strict=True))
    source, section = _find_model(named, model_name, revision)
    saes = {name: (_checked_layer(name, x, source), x.sae) for name, x in named.items()}
    longest = source.max_positions
    if max_tokens and longest and max_tokens > longest:
        excess = f"{max_tokens} is more than the {longest} positions of {source.name}; at most {longest}"
        raise InputError(f"--max-tokens: {excess}")
    held_out: HeldOut | InputError = (
        _recorded_data(named, source, max_tokens) if data is None else _given_data(data, source, max_tokens)
    )
    dialogues = held_out.section if isinstance(held_out, HeldOut) else DataSection(max_tokens=max_tokens)
    dialogues = dialogues.fitted(longest)
    if longest and dialogues.max_tokens > longest:  # recorded with another model
        dialogues = dialogues.model_copy(update={"max_tokens": longest})
    chat = ChatTokenizer(load_tokenizer(source), dialogues, source.name, source.embeddings)
    assembly = Assembly(saes, source, section, chat, held_out)
    for name, x in named.items():
        _tell_another_model(name, x, assembly, given=model_name is not None)
    return assembly


def _find_model(
    loaded: dict[str, LoadedSAE], model_name: str | None, revision: str | None
) -> tuple[ModelSource, ModelSection]:
    """The model that is given, or else the one that the SAEs name, of the revision that they name."""
    said = set() if model_name else {_model_of(name, x) for name, x in loaded.items()} - {""}
    if not model_name and len(said) != 1:
        listed = ", ".join(sorted(said)) or "no model"
        raise InputError(f"these SAEs name {listed} as theirs; choose the model with --model")
    if not model_name and not revision:
        revisions = {x.model_revision for x in loaded.values()}
        if len(revisions) > 1:
            listed = ", ".join(sorted(map(str, revisions)))
            raise InputError(f"these SAEs name {listed} as their model's revision; choose it with --revision")
        revision = revisions.pop()
    model_name = model_name or next(iter(said))
    if said and revision is None:  # the commit that they were trained on, whatever is newest
        commits = {text_at(x.record, "base_model", "sha") or "" for x in loaded.values()}
        revision = next(
            (sha for sha in commits if len(commits) == 1 and re.fullmatch("[0-9a-f]{40}", sha)), None
        )
    section = make_section(ModelSection, "the model", name=model_name, revision=revision)
    try:
        return find_model(section), section
    except ModelError as error:
        if section.name in said:
            raise ModelError(f"{error}; give the SAE's model with --model") from None
        raise


def _model_of(name: str, loaded: LoadedSAE) -> str:
    """The Hub id or folder of the model that an SAE was trained on, or ''. Raises ModelError: the folder is gone."""
    public = value_at(loaded.record, "base_model", "name")
    public = public if isinstance(public, str) else loaded.model_name or ""
    path = remembered_path(run_folder_of(loaded), public, "model", "name")
    if path is None:
        return one_line(public)
    if not path.is_dir():
        raise ModelError(f"{name}: its model, the folder '{path}', is no longer there; give it with --model")
    return os.path.abspath(path)


def _given_data(data: str, source: ModelSource, max_tokens: int | None) -> HeldOut:
    """Dialogues that are asked for. Raises InputError."""
    values = {"source": data, "max_tokens": max_tokens, "shuffle": False}
    held_out = HeldOut(make_section(DataSection, "the dialogues", **values))
    if reason := _unfit_data(held_out, source):
        raise InputError(f"--data: {reason}; give a .jsonl or .parquet file, or a Hub dataset id")
    return held_out


def _recorded_data(
    loaded: dict[str, LoadedSAE], source: ModelSource, max_tokens: int | None
) -> HeldOut | InputError:
    """Dialogues that the SAEs' figures were measured on; where they cannot be had, the error that says why."""
    if source.name == EMBEDDED_MODEL and not any(x.record for x in loaded.values()):
        return HeldOut(DataSection(max_tokens=max_tokens, shuffle=False))
    found = {n: recorded_held_out(x.record, run_folder_of(x), max_tokens) for n, x in loaded.items()}
    try:
        held_out = shared_held_out(found)
    except InputError as error:
        return error
    of_toy = any(text_at(x.record, "base_model", "name") == EMBEDDED_MODEL for x in loaded.values())
    reason = _unfit_data(held_out, source) if of_toy else None
    return InputError(f"{next(iter(loaded))}: {reason}; give dialogues with --data") if reason else held_out


def _unfit_data(held_out: HeldOut, source: ModelSource) -> str | None:
    """Why not these dialogues: figures on the toy's few patterns would look like any others."""
    if held_out.section.source != EMBEDDED_DATA or source.name == EMBEDDED_MODEL:
        return None
    return f"'{EMBEDDED_DATA}' is the data of {EMBEDDED_MODEL}, and means nothing for {source.public_name}"


def run_folder_of(loaded: LoadedSAE) -> Path:
    """Where the run that trained an SAE left it, and its recipe, if it is still there."""
    return loaded.folder.resolve().parent.parent


def _checked_layer(name: str, loaded: LoadedSAE, source: ModelSource) -> int:
    """The layer of an SAE that fits the model."""
    if loaded.layer is None:
        raise InputError(f"{name}: its files do not say which layer it is for")
    refuse_unfit(source.config, name, loaded.layer, loaded.sae.d_in)
    loaded.refuse_centred(source.config)
    return loaded.layer


def _tell_another_model(name: str, loaded: LoadedSAE, assembly: Assembly, given: bool) -> None:
    """Say where an SAE was trained on another model, by content, than it is now tried on.

    Raises ModelError: its own model's folder, which was not ``given``, holds something else now.
    """
    source, recorded = assembly.source, value_at(loaded.record, "base_model")
    now = {"weights": source.sha, **source.contents(assembly.chat.tokenizer)}
    then = {key: text_at(recorded, "sha" if key == "weights" else key) for key in now}
    if then["weights"] not in (None, source.sha) and (weights := text_at(recorded, "weights")) is not None:
        # The same whether from the Hub or from a folder, and at whichever commit.
        then["weights"], now["weights"] = weights, source.weights
    changed = [
        f"{key.replace('_', ' ')} ({was[:19]}... then, {is_now[:19]}... now)"
        for key, was in then.items()
        if was and (is_now := now[key]) and was != is_now
    ]
    if not changed:
        return
    said = f"{name} was trained on another model than {source.public_name} is now: {', '.join(changed)}"
    if not given and source.revision is None and source.name != EMBEDDED_MODEL:
        raise ModelError(f"{said}; to try it on this one all the same, give it with --model")
    print(f"warning: {said}", file=sys.stderr)


def load_sae(source: str | Path, *, dtype: torch.dtype = torch.float32) -> SAE:
    """Load an SAE, on the CPU and in evaluation mode.

    ``source`` is a zoo name (looked for in the current folder and in ``runs/``, then pulled), a local
    folder, or ``hf:org/repo[/folder][@revision]``.

    Raises:
        InputError: no such SAE, or broken files.
        HubError: not published, changed since it was published, or the Hub refuses or cannot be reached.
    """
    return open_sae(source, dtype=dtype).sae


def open_sae(source: str | Path, *, dtype: torch.dtype = torch.float32) -> LoadedSAE:
    """As ``load_sae``, with what else is known about the SAE."""
    loaded = read_sae(locate(str(source)))
    loaded.record = _record(loaded.folder)
    loaded.sae.to(dtype).eval().requires_grad_(False)
    # After the conversion, which can make numbers infinite too.
    if bad := [n for n, p in loaded.sae.named_parameters() if not torch.isfinite(p).all()]:
        kind = str(dtype).removeprefix("torch.")
        raise InputError(f"{loaded.folder}: {', '.join(bad)} hold NaN or infinity (as {kind})")
    return loaded


def _record(folder: Path) -> dict[str, Any]:
    """fastzoo's own config.json beside the weights' folder, or {}."""
    path = folder.parent / "config.json"
    try:
        record = read_json(path) if path.is_file() else {}
    except InputError:
        return {}  # a file of something else
    return record if record.get("library") == "fastzoo" else {}


def name_of(loaded: LoadedSAE) -> str:
    """The name in an SAE's record, or else its folder's."""
    return text_at(loaded.record, "name") or one_line(loaded.folder.name)
