"""Governance for MCP servers as composable ASGI middleware."""

from .affinity import SessionAffinityMiddleware
from .audit import AuditLogMiddleware, JSONLinesSink, SQLiteSink
from .authorization import Authorizer, Policy, ToolAuthorizationMiddleware
from .errors import ConfigurationError
from .lifespan import lifespan_of
from .member import Bounds, Member
from .ratelimit import Rate, RateLimitMiddleware
from .resource_server import Issuer, OAuthResourceServerMiddleware, ProtectedResource, metadata_routes
from .storage import MemoryStorage
from .tracing import TraceContextMiddleware
from .types import Decision, Principal

__all__ = [
    "AuditLogMiddleware",
    "Authorizer",
    "Bounds",
    "ConfigurationError",
    "Decision",
    "Issuer",
    "JSONLinesSink",
    "Member",
    "MemoryStorage",
    "OAuthResourceServerMiddleware",
    "Policy",
    "Principal",
    "ProtectedResource",
    "Rate",
    "RateLimitMiddleware",
    "SQLiteSink",
    "SessionAffinityMiddleware",
    "ToolAuthorizationMiddleware",
    "TraceContextMiddleware",
    "lifespan_of",
    "metadata_routes",
]
