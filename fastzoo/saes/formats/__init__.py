"""SAE files: written in the SAELens v6 format, read in that and in the others' formats.

One file per library, and one entry in ``layouts.LAYOUTS``. Pickles are refused by name, and sizes checked against
the configuration before a weight is loaded.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line
from fastzoo.saes.formats.loaded import LoadedSAE
from fastzoo.saes.formats.saelens import save_sae
from fastzoo.saes.layouts import LAYOUTS, refuse_pickle

__all__ = ["LoadedSAE", "read_sae", "save_sae"]


def read_sae(root: Path) -> LoadedSAE:
    """The SAE in ``root`` itself if there is one, else in the one folder below that holds one.

    Raises InputError: no SAE, several, only pickles, or files that are not what they should be.
    """
    try:
        candidates = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
        found = [(f, x) for f in candidates for x in LAYOUTS if (f / x.weights).is_file()]
        if not found:
            for path in (p for f in candidates for p in sorted(f.iterdir())):
                refuse_pickle(path)
            raise InputError(f"{root}: no SAE here; looked for {', '.join(w.weights for w in LAYOUTS)}")
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({one_line(error.strerror)})") from None
    if len(found) > 1 and found[0][0] != root:
        names = ", ".join(str(f.relative_to(root)) for f, _ in found[:5])
        raise InputError(f"{root}: holds {len(found)} SAEs ({names}, ...); name one of these folders")
    folder, layout = found[0]
    loaded: LoadedSAE = import_module(f"fastzoo.saes.formats.{layout.module}").read(folder)
    return loaded
