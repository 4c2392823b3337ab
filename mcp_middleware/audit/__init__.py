"""The audit log: who called what, what was decided, and how it ended."""

from .jsonl import JSONLinesSink
from .middleware import AuditLogMiddleware
from .query import AuditFilter, AuditTrail, TrailError
from .record import AuditOutcome, AuditRecord
from .report import CostReport, CostRow
from .sinks import AuditSink, DurableSink, QueuedSink, Store
from .sqlite import SQLiteSink

__all__ = [
    "AuditFilter",
    "AuditLogMiddleware",
    "AuditOutcome",
    "AuditRecord",
    "AuditSink",
    "AuditTrail",
    "CostReport",
    "CostRow",
    "DurableSink",
    "JSONLinesSink",
    "QueuedSink",
    "SQLiteSink",
    "Store",
    "TrailError",
]
