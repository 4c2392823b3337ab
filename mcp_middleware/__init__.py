"""Governance for MCP servers as composable ASGI middleware.

A name is imported from its home when it is first asked for, so that each member costs an application its own imports
only: one without sealed sessions loads no cryptography for them, one without a policy no YAML.
"""

from typing import TYPE_CHECKING

from .exports import lazy_exports

if TYPE_CHECKING:
    from .affinity import SessionAffinityMiddleware
    from .audit import AuditLogMiddleware, JSONLinesSink, SQLiteSink
    from .authorization import Authorizer, Policy, ToolAuthorizationMiddleware
    from .credentials import Caller, CallerSigner, ClientCredentials, TokenExchange
    from .errors import ConfigurationError
    from .lifespan import lifespan_of
    from .member import Bounds, Member
    from .ratelimit import (
        AgentLimits,
        Budget,
        EstimatingCounter,
        ExactCounter,
        Forecast,
        GuardStorage,
        PartLimits,
        Price,
        Prices,
        Rate,
        RateLimitMiddleware,
        RequestGuardMiddleware,
        TokenCounter,
    )
    from .resource_server import (
        Claims,
        ClientSecret,
        Introspection,
        IntrospectionVerifier,
        Issuer,
        IssuersVerifier,
        IssuerUnavailableError,
        JWTVerifier,
        OAuthResourceServerMiddleware,
        PrivateKeyJWT,
        ProtectedResource,
        metadata_routes,
    )
    from .storage import MemorySessions, MemoryStorage, RedisConnection, RedisSessions, RedisStorage
    from .tracing import TraceContextMiddleware
    from .types import Decision, Principal

__all__ = [
    "AgentLimits",
    "AuditLogMiddleware",
    "Authorizer",
    "Bounds",
    "Budget",
    "Caller",
    "CallerSigner",
    "Claims",
    "ClientCredentials",
    "ClientSecret",
    "ConfigurationError",
    "Decision",
    "EstimatingCounter",
    "ExactCounter",
    "Forecast",
    "GuardStorage",
    "Introspection",
    "IntrospectionVerifier",
    "Issuer",
    "IssuerUnavailableError",
    "IssuersVerifier",
    "JSONLinesSink",
    "JWTVerifier",
    "Member",
    "MemorySessions",
    "MemoryStorage",
    "OAuthResourceServerMiddleware",
    "PartLimits",
    "Policy",
    "Price",
    "Prices",
    "Principal",
    "PrivateKeyJWT",
    "ProtectedResource",
    "Rate",
    "RateLimitMiddleware",
    "RedisConnection",
    "RedisSessions",
    "RedisStorage",
    "RequestGuardMiddleware",
    "SQLiteSink",
    "SessionAffinityMiddleware",
    "TokenCounter",
    "TokenExchange",
    "ToolAuthorizationMiddleware",
    "TraceContextMiddleware",
    "lifespan_of",
    "metadata_routes",
]

_HOMES = {
    "affinity": ("SessionAffinityMiddleware",),
    "audit": ("AuditLogMiddleware", "JSONLinesSink", "SQLiteSink"),
    "authorization": ("Authorizer", "Policy", "ToolAuthorizationMiddleware"),
    "credentials": ("Caller", "CallerSigner", "ClientCredentials", "TokenExchange"),
    "errors": ("ConfigurationError",),
    "lifespan": ("lifespan_of",),
    "member": ("Bounds", "Member"),
    "ratelimit": (
        "AgentLimits",
        "Budget",
        "EstimatingCounter",
        "ExactCounter",
        "Forecast",
        "GuardStorage",
        "PartLimits",
        "Price",
        "Prices",
        "Rate",
        "RateLimitMiddleware",
        "RequestGuardMiddleware",
        "TokenCounter",
    ),
    "resource_server": (
        "Claims",
        "ClientSecret",
        "Introspection",
        "IntrospectionVerifier",
        "Issuer",
        "IssuerUnavailableError",
        "IssuersVerifier",
        "JWTVerifier",
        "OAuthResourceServerMiddleware",
        "PrivateKeyJWT",
        "ProtectedResource",
        "metadata_routes",
    ),
    "storage": ("MemorySessions", "MemoryStorage", "RedisConnection", "RedisSessions", "RedisStorage"),
    "tracing": ("TraceContextMiddleware",),
    "types": ("Decision", "Principal"),
}


if not TYPE_CHECKING:  # a type checker would take every name for one of ours
    __getattr__ = lazy_exports(__name__, _HOMES)
