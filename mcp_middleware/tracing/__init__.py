"""Spans, metrics and W3C trace context for MCP messages."""

from .middleware import TraceContextMiddleware, Trust

__all__ = ["TraceContextMiddleware", "Trust"]
