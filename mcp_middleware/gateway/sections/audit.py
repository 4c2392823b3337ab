"""``audit``: where the audit trail goes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from mcp_middleware.gateway.scalars import File, OneOf
from mcp_middleware.gateway.shapes import Key, Section
from mcp_middleware.gateway.values import some_of

__all__ = ["AUDIT", "AuditConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """Where the audit trail goes: one file or both."""

    sqlite: Path | None = None
    jsonl: Path | None = None
    on_failure: Literal["refuse", "continue"] = "refuse"


AUDIT: Final = Section(
    "audit",
    (
        Key("sqlite", File(new=True), "A SQLite file for the records."),
        Key("jsonl", File(new=True), "A file for the records as JSON Lines. Both may be given."),
        Key(
            "on_failure",
            OneOf(("refuse", "continue")),
            "Calls while records cannot be kept: `refuse` answers them 503, `continue` serves them unrecorded.",
            "refuse",
        ),
    ),
    lambda values: AuditConfig(**values),
    lambda given: some_of(given, "sqlite", "jsonl"),
)
