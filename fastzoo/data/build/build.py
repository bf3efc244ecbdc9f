"""From a configuration to a data set: its steps in order, each of which is found done when it is run again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from fastzoo.config.data_build import DataBuild, SourceSection
from fastzoo.config.recipe import DataSection
from fastzoo.core.errors import DataError, FastzooError, HubError, OutputError
from fastzoo.core.files import REFUSALS, put_in_place, read_json, refused, write_json, write_text
from fastzoo.core.lock import INSIDE, folder_lock
from fastzoo.core.progress import Progress
from fastzoo.core.text import one_line
from fastzoo.core.threads import run_daemons
from fastzoo.core.version import __version__
from fastzoo.data.build.adapters import adapter_of
from fastzoo.data.build.manifest import FORMAT, MANIFEST, BuiltSet, is_built, open_built, total_hash
from fastzoo.data.build.read import Facts, Unit, read_unit
from fastzoo.data.build.select import Selection, parts_of, select
from fastzoo.data.build.write import Written, write_splits
from fastzoo.data.sources import Source, open_source

SETTINGS = "settings.json"
READ = "read"
RESULT = "result"


@dataclass(frozen=True)
class Opened:
    """A source that can be read."""

    number: int
    """Its place in the configuration."""
    section: SourceSection
    source: Source

    @property
    def label(self) -> str:
        """What the column ``source`` says: the dataset, and its subset if it has several."""
        subset = f":{self.section.subset}" if self.section.subset else ""
        return f"{self.source.info.name}{subset}"


def build_data(
    build: DataBuild,
    card: Callable[[dict[str, Any]], str],
    say: Callable[[str], None],
    *,
    workers: int = 1,
    skip_unavailable: bool = False,
    fresh: bool = False,
    memory: int | None = None,
) -> BuiltSet:
    """Build a data set, or go on with it; the result appears whole.

    Args:
        card: the README.md that goes with a manifest.
        say: told in one line each what is done and what was found.
        workers: processes that read sources; the result is the same with any number.
        skip_unavailable: leave out sources that cannot be reached or are gated, and say so.
        fresh: move an older result aside, and forget what an unfinished build has.
        memory: bytes that deduplication may take; None: what is free.

    Raises DataError, HubError: a source cannot be read; OutputError: the folder holds something else, or there is not
    enough memory or disk.
    """
    folder = build.output
    for section in build.sources:
        adapter_of(section)  # raises where there is no such adapter
    try:
        with folder_lock(folder, say, "another build; give another folder, or let it end"):
            return _build(build, card, say, workers, skip_unavailable, fresh, memory)
    except REFUSALS as error:
        raise refused(folder, error) from None


def _build(
    build: DataBuild,
    card: Callable[[dict[str, Any]], str],
    say: Callable[[str], None],
    workers: int,
    skip_unavailable: bool,
    fresh: bool,
    memory: int | None,
) -> BuiltSet:
    folder = build.output
    work = folder.with_name(f".{folder.name}.building")
    if fresh:
        shutil.rmtree(work, ignore_errors=True)
        _set_aside(folder, say)
    opened, unavailable = _open(build, skip_unavailable, say)
    settings = _settings(build, opened, unavailable)
    if set(os.listdir(folder)) - {INSIDE}:
        return _built_before(folder, settings)
    _begin(work, settings)
    units = _units(build, opened)
    facts = _read(build, opened, units, work, workers, say)
    if not any(f.usable for f in facts):
        raise _nothing_usable(opened, facts)
    if any(f.files for f in facts):
        _say_cost(build, facts, work, say)
    read = list(zip(units, facts, strict=True))
    rows = sum(f.usable for f in facts)
    with Progress("selecting", rows * (1 + 3 * bool(build.deduplication or build.splits))) as bar:
        selection = select(build, parts_of(read, work / READ), memory, bar.advance)
    result = work / RESULT
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir()
    labels = {o.number: o.label for o in opened}
    with Progress("writing", 2 * rows) as bar:
        named = [labels.get(n, "") for n in range(len(build.sources))]
        written = write_splits(build, selection, named, result, bar.advance)
    manifest = _manifest(build, opened, unavailable, read, selection, written)
    write_json(result / MANIFEST, manifest)
    write_text(result / "README.md", card(manifest))
    put_in_place(result, folder)
    shutil.rmtree(work, ignore_errors=True)
    return open_built(folder)


def _set_aside(folder: Path, say: Callable[[str], None]) -> None:
    if not is_built(folder):
        return
    aside = next(p for n in count(1) if not (p := folder.with_name(f"{folder.name}.old-{n}")).exists())
    folder.rename(aside)
    folder.mkdir()
    say(f"the data set that was in {folder} is now in {aside}")


def source_section(section: SourceSection) -> DataSection:
    """How rows of a source are read."""
    shared = {name: getattr(section, name) for name in ("source", "revision", "subset", "split", "column")}
    return DataSection(**shared, shuffle=False)


def _open(
    build: DataBuild, skip_unavailable: bool, say: Callable[[str], None]
) -> tuple[list[Opened], list[dict[str, str]]]:
    opened: list[Opened] = []
    unavailable: list[dict[str, str]] = []
    for number, section in enumerate(build.sources):
        try:
            opened.append(Opened(number, section, open_source(source_section(section))))
        except HubError as error:
            if not skip_unavailable:
                more = "; --skip-unavailable builds without it" if len(build.sources) > 1 else ""
                raise type(error)(f"{error}{more}") from None
            unavailable.append({"source": section.source, "why": one_line(error, 200)})
            say(f"left out: {error}")
    if not opened:
        raise DataError("none of the sources is available")
    return opened, unavailable


def _settings(build: DataBuild, opened: list[Opened], unavailable: list[dict[str, str]]) -> dict[str, Any]:
    """What a build must have in common with the one that it goes on with."""
    revisions = {str(o.number): o.source.info.revision for o in opened}
    left_out = [item["source"] for item in unavailable]
    return {"config": _public(build), "revisions": revisions, "unavailable": left_out}


def _public(build: DataBuild) -> dict[str, Any]:
    """The configuration without paths of this machine."""
    values = build.model_dump(exclude={"folder"})
    for section in values["sources"]:
        if os.path.exists(section["source"]) or os.path.isabs(section["source"]):
            section["source"] = Path(section["source"]).name
    return values


def _built_before(folder: Path, settings: dict[str, Any]) -> BuiltSet:
    """The result of this build, if that is what the folder holds. Raises OutputError."""
    if not is_built(folder):
        raise OutputError(f"folder: '{folder}' already holds other files; give another with folder=...")
    built = open_built(folder)
    found = [(s["source"], s["revision"]) for s in built.manifest["sources"]]
    wanted = [
        revision for _, revision in sorted(settings["revisions"].items(), key=lambda item: int(item[0]))
    ]
    if built.manifest.get("config") != settings["config"] or [revision for _, revision in found] != wanted:
        raise OutputError(
            f"folder: '{folder}' holds a data set of another configuration, or of sources that have changed; give "
            "another with folder=..., or --fresh, which moves it aside"
        )
    return built


def _begin(work: Path, settings: dict[str, Any]) -> None:
    """Make the folder of an unfinished build, or go on in it. Raises OutputError: it is of another one."""
    if (work / SETTINGS).exists() and read_json(work / SETTINGS) != settings:
        raise OutputError(
            f"'{work}' is an unfinished build of another configuration, or its sources have changed; go on with that, "
            "give another folder with folder=..., or --fresh, which removes it"
        )
    (work / READ).mkdir(parents=True, exist_ok=True)
    for path in (work / READ).glob(".*.partial"):
        shutil.rmtree(path, ignore_errors=True)
    write_text(work / SETTINGS, _json(settings))


def _json(value: Any) -> str:
    import json

    return json.dumps(value, indent=2, ensure_ascii=False)


def _units(build: DataBuild, opened: list[Opened]) -> list[Unit]:
    """What is read at once, in order: where only first rows are wanted, a source's parts one after the other."""
    if build.limit:
        return [Unit(o.number, None) for o in opened]
    return [Unit(o.number, part) for o in opened for part in range(len(o.source.parts))]


def _read(
    build: DataBuild,
    opened: list[Opened],
    units: list[Unit],
    work: Path,
    workers: int,
    say: Callable[[str], None],
) -> list[Facts]:
    sources = {o.number: o.source for o in opened}
    say(f"reading {len(units)} part{'s' * (len(units) != 1)} of {len(opened)} sources")
    if workers > 1 and len(units) > 1:
        _read_elsewhere(build, opened, units, work, workers)
    facts: list[Facts] = []
    with Progress("reading", len(units)) as bar:
        for unit in units:
            facts.append(read_unit(build, unit, sources[unit.source], work / READ))
            bar.advance(note=f"{sum(f.rows for f in facts)} rows")
    return facts


def _read_elsewhere(
    build: DataBuild, opened: list[Opened], units: list[Unit], work: Path, workers: int
) -> None:
    """Read units in other processes: each is a command that reads its configuration from a file."""
    from fastzoo.core.files import resource

    pinned = {o.number: o.source.info.revision for o in opened if o.source.info.kind == "hub"}
    sections = [
        section.model_copy(update={"revision": pinned.get(number, section.revision)})
        for number, section in enumerate(build.sources)
    ]
    config = work / "build.yaml"
    write_text(config, build.model_copy(update={"sources": sections}).to_yaml())
    stop = threading.Event()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(resource("fastzoo").parent), *sys.path])}

    def work_on(unit: Unit) -> None:
        part = "all" if unit.part is None else str(unit.part)
        command = [sys.executable, "-m", "fastzoo.data.build.worker", str(config), str(unit.source), part]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
            said = b""
            try:
                while process.poll() is None:
                    if stop.wait(0.05):
                        process.terminate()
                        break
            finally:
                assert process.stderr is not None
                said = process.stderr.read()
        if process.returncode and not stop.is_set():
            _raise(said.decode(errors="replace"), process.returncode)

    waiting = [unit for unit in units if not (work / READ / unit.name).exists()]
    with Progress("reading", len(waiting)) as bar:
        run_daemons(waiting, work_on, lambda _: bar.advance(), workers=workers, stop=stop, grace=5.0)


def _raise(said: str, code: int) -> None:
    """Raise what another process said of its failure."""
    last = one_line((said.strip().splitlines() or ["no word"])[-1], 600).removeprefix("error: ")
    kinds = {kind.exit_code: kind for kind in (*FastzooError.__subclasses__(), *HubError.__subclasses__())}
    raise kinds.get(code, FastzooError)(last)


def _nothing_usable(opened: list[Opened], facts: list[Facts]) -> DataError:
    skipped = _total(f.skipped for f in facts)
    first = next((f.first_skipped for f in facts if f.first_skipped), "")
    rows = sum(f.rows for f in facts)
    reasons = ", ".join(f"{reason}: {n}" for reason, n in skipped.most_common(5))
    names = ", ".join(o.label for o in opened)
    return DataError(f"{one_line(names, 200)}: no usable row among {rows} ({reasons}); the first: {first}")


def _say_cost(build: DataBuild, facts: list[Facts], work: Path, say: Callable[[str], None]) -> None:
    """What the rest will take. Raises OutputError: the disk is too small."""
    from fastzoo.data.dedup.greedy import memory_for

    rows, text = sum(f.usable for f in facts), sum(f.text_bytes for f in facts)
    free = shutil.disk_usage(work).free
    said = f"{rows} usable rows, {text / 1e9:.2f} GB of text"
    if build.deduplication:
        ngrams = sum(f.ngrams for f in facts)
        most = memory_for(ngrams, build.deduplication.bits)
        said += f"; {ngrams} {build.deduplication.n}-grams, a table of at most {most / 1e9:.2f} GB of memory"
    say(f"{said}; at most {2 * text / 1e9:.2f} GB more on disk ({free / 1e9:.0f} GB are free)")
    if 2 * text > free:
        raise OutputError(
            f"'{work}': the result may take {2 * text / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        )


def _manifest(
    build: DataBuild,
    opened: list[Opened],
    unavailable: list[dict[str, str]],
    read: list[tuple[Unit, Facts]],
    selection: Selection,
    written: Written,
) -> dict[str, Any]:
    sources = []
    for o in opened:
        facts = [f for unit, f in read if unit.source == o.number]
        counted = {"skipped": _total(f.skipped for f in facts), "repaired": _total(f.repaired for f in facts)}
        info = o.source.info
        sources.append(
            {
                "source": info.name,
                "kind": info.kind,
                "revision": info.revision,
                "subset": o.section.subset,
                "split": o.section.split if info.kind == "hub" else None,
                "licence": adapter_of(o.section).licence,
                "rows": sum(f.rows for f in facts),
                "usable": sum(f.usable for f in facts),
                "kept": selection.kept[o.number],
                **{name: dict(sorted(found.items())) for name, found in counted.items()},
            }
        )
    return {
        "format": FORMAT,
        "fastzoo": __version__,
        "name": build.name,
        "kind": build.kind,
        "hash": total_hash(written.splits),
        "seed": build.seed,
        "config": _public(build),
        "sources": sources,
        "unavailable": unavailable,
        "deduplication": selection.deduplication,
        "splits": written.splits,
        "kept_apart": selection.kept_apart,
        "languages": dict(written.languages.most_common()),
        "limits": {"limit": build.limit, "sample": build.sample},
    }


def _total(counters: Iterable[Counter[str]]) -> Counter[str]:
    """What all of them count together."""
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total
