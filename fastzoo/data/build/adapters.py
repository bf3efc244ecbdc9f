"""What the columns of known chat sets hold, and under which licence they are."""

from __future__ import annotations

from dataclasses import dataclass

from fastzoo.config.data_build import SourceSection
from fastzoo.core.errors import InputError
from fastzoo.core.text import did_you_mean


@dataclass(frozen=True)
class Adapter:
    """Columns of a source's rows; None: the shape of a row says where its turns are, or there is no such column."""

    column: str | None = None
    row_id: str | None = None
    language: str | None = None
    licence: str | None = None


ADAPTERS = {
    "auto": Adapter(),
    "wildchat": Adapter("conversation", "conversation_hash", "language", "odc-by"),
    "infinity-instruct": Adapter("conversations", "id", "langdetect", "cc-by-sa-4.0"),
    "tulu-3": Adapter("messages", "id", None, "odc-by"),
    "orca-agentinstruct": Adapter("messages", None, None, "cdla-permissive-2.0"),
    "lmsys-chat-1m": Adapter("conversation", "conversation_id", "language", "lmsys-chat-1m"),
    "pile": Adapter("text", None, None, "other"),
}
"""By name; licences are the identifiers of the data sets' cards, read in November 2026."""

KNOWN = {
    "allenai/WildChat-1M-Full": "wildchat",
    "allenai/WildChat-1M": "wildchat",
    "allenai/WildChat": "wildchat",
    "BAAI/Infinity-Instruct": "infinity-instruct",
    "allenai/tulu-3-sft-mixture": "tulu-3",
    "mlabonne/orca-agentinstruct-1M-v1-cleaned": "orca-agentinstruct",
    "lmsys/lmsys-chat-1m": "lmsys-chat-1m",
    "monology/pile-uncopyrighted": "pile",
}
"""The adapter of a Hub dataset whose section names none."""


def adapter_of(section: SourceSection) -> Adapter:
    """The adapter that a section names or its dataset has, with what the section says instead.

    Raises InputError: no adapter has this name.
    """
    name = section.adapter or KNOWN.get(section.source, "auto")
    if name not in ADAPTERS:
        raise InputError(
            f"adapter: '{name}' is none of {', '.join(ADAPTERS)}.{did_you_mean(name, ADAPTERS)} Columns of other data "
            "are given with column, row_id and language"
        )
    known = ADAPTERS[name]
    # WildChat's first version names its rows differently.
    row_id = "conversation_id" if section.source == "allenai/WildChat" else known.row_id
    return Adapter(
        section.column or known.column,
        section.row_id or row_id,
        section.language or known.language,
        section.licence or known.licence,
    )
