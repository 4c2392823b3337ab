"""Records to write and sinks to write them to."""

from typing import Any

from mcp_middleware.audit import AuditRecord


def record(**values: Any) -> AuditRecord:
    """A plain record of one tool call, with ``values`` laid over it."""
    plain: dict[str, Any] = {
        "time": "2026-07-28T10:00:00.000Z",
        "method": "tools/call",
        "target_kind": "tool",
        "target": "echo",
        "agent": "ci-bot",
        "issuer": "https://login.example.com",
        "subject": "alice",
        "decision": "allowed",
        "outcome": "ok",
        "status": 200,
        "tool_error": False,
        "duration_ms": 1.5,
        "request_id": 1,
        "request_bytes": 100,
        "response_bytes": 200,
        "era": "modern",
        "version": "2026-07-28",
        "http_method": "POST",
        "client_address": "192.0.2.1",
    }
    return AuditRecord(**{**plain, **values})


class ListSink:
    """A sink of a user's own: what the protocol asks for, in memory."""

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []
        self.accepting = True
        self.closed = False

    def write(self, record: AuditRecord) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.closed = True

    @property
    def only(self) -> AuditRecord:
        """The one record there is."""
        (found,) = self.records
        return found
