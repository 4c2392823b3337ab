"""The members that a configuration asks for, around the forwarder to one server. What each member is told of the
configuration is said here and nowhere else."""

from collections.abc import Sequence
from functools import cache
from typing import Final
from urllib.parse import urlsplit

from mcp_middleware.affinity import SessionAffinityMiddleware
from mcp_middleware.audit import AuditLogMiddleware
from mcp_middleware.authorization import ToolAuthorizationMiddleware
from mcp_middleware.member import ASGIApp
from mcp_middleware.oauth import OAuthHTTPClient
from mcp_middleware.oauth.urls import is_loopback
from mcp_middleware.ratelimit import (
    EstimatingCounter,
    ExactCounter,
    RateLimitMiddleware,
    RequestGuardMiddleware,
    TokenCounter,
)
from mcp_middleware.resource_server import Issuer, IssuersVerifier, OAuthResourceServerMiddleware
from mcp_middleware.resource_server.origins import AllowedOrigins
from mcp_middleware.tracing import TraceContextMiddleware

from .admission import Admission
from .config import Config
from .credentials import ServerCredentials
from .edge import Edge
from .forwarder import Forwarder
from .sections.credentials import GrantConfig
from .sections.limits import Counting, LimitsConfig
from .sections.servers import ServerConfig
from .sections.tracing import TracingConfig
from .shared import Shared
from .telemetry import Telemetry
from .upstream import Upstream

__all__ = ["credentials", "forwarder", "stack", "verifier"]

_RELAYED: Final = TracingConfig(otlp="")
"""The options of trace context where nothing is sent anywhere: contexts pass, spans go to the process's provider."""
_PORTS: Final = {"http": 80, "https": 443}


def forwarder(config: Config, upstream: Upstream, shared: Shared, credentials: ServerCredentials | None) -> Forwarder:
    """What sends requests to the instances of ``upstream``."""
    return Forwarder(
        upstream,
        shared.client,
        credentials=credentials,
        spans=shared.telemetry.spans,
        draining=shared.draining,
        bounds=config.bounds,
    )


def stack(
    forwarder: Forwarder,
    config: Config,
    name: str,
    upstream: Upstream,
    shared: Shared,
    verifier: IssuersVerifier | None,
) -> ASGIApp:
    """The application that serves the server ``name``, from the forwarder outwards. Raises ConfigurationError."""
    bounds, policy, audit = config.bounds, config.policies[name], config.audit
    sessions, tracing, telemetry = config.sessions, config.tracing or _RELAYED, shared.telemetry
    app: ASGIApp = forwarder
    if policy is not None:
        app = ToolAuthorizationMiddleware(app, policy=policy, bounds=bounds)
    app = SessionAffinityMiddleware(
        app,
        keys=sessions.keys or shared.session_keys,
        idle=sessions.idle,
        lifetime=sessions.lifetime,
        per_agent=sessions.per_agent,
        instances=upstream,
        store=shared.sessions,
        bounds=bounds,
    )
    app = _limited(app, config, name, shared)
    app = Admission(
        app,
        under_way=shared.under_way,
        most_open=config.connections_per_agent,
        body_memory=config.body_memory,
        bounds=bounds,
    )
    app = _authenticated(app, config, name, verifier)
    app = _guarded(app, config, name, shared)
    app = Edge(
        app,
        server=name,
        hosts=_hosts(config),
        origins=AllowedOrigins(config.public_url, config.origins),
        access_log=shared.access_log,
        bounds=bounds,
    )
    app = TraceContextMiddleware(
        app,
        baggage=tracing.baggage,
        trust=tracing.trust,
        capture_content=tracing.capture_content,
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        bounds=bounds,
    )
    if audit is not None:
        app = AuditLogMiddleware(app, sinks=shared.sinks, server=name, on_failure=audit.on_failure, bounds=bounds)
    return app


def _limited(app: ASGIApp, config: Config, name: str, shared: Shared) -> ASGIApp:
    """``app`` with a limiter around it, where anything is limited or has a price."""
    limits = config.limits or LimitsConfig()
    if limits.mode == "off" or not (limits.hold_for(name) or config.prices is not None):
        return app
    return RateLimitMiddleware(
        app,
        requests=limits.requests,
        tokens=limits.tokens,
        concurrency=limits.concurrency,
        agents=limits.agents,
        tools=limits.of_tools(name),
        server=name,
        server_limits=limits.of_server(name),
        prices=config.prices,
        budgets=config.budgets or None,
        storage=shared.storage,
        forecast=shared.forecasts[name],
        counter=_counter(limits.counter),
        initial_output_tokens=limits.initial_output_tokens,
        image_tokens=limits.image_tokens,
        audio_tokens=limits.audio_tokens,
        mode=limits.mode,
        refuse_with=limits.refuse_with,
        cut_streams=limits.cut_streams,
        meter_provider=shared.telemetry.meter_provider,
        bounds=config.bounds,
    )


def _authenticated(app: ASGIApp, config: Config, name: str, verifier: IssuersVerifier | None) -> ASGIApp:
    """``app`` for callers with a token, where tokens are asked for."""
    if config.auth is None or verifier is None:
        return app
    resource = config.resource(name)
    return OAuthResourceServerMiddleware(
        app,
        resource=resource,
        verifier=verifier.for_resource(resource),
        scopes=config.auth.scopes,
        implied_scopes=config.auth.implied_scopes,
        legacy_metadata=config.auth.legacy_metadata,
        allowed_origins=config.origins,
        tell_server=False,
        bounds=config.bounds,
    )


def _guarded(app: ASGIApp, config: Config, name: str, shared: Shared) -> ASGIApp:
    """``app`` with a guard before it, where there is one."""
    guard = config.guard
    if guard is None:
        return app
    return RequestGuardMiddleware(
        app,
        addresses=guard.addresses,
        tools=guard.tools,
        trusted_proxies=guard.trusted_proxies,
        server=name,
        storage=shared.guarded,
        bounds=config.bounds,
    )


@cache
def _counter(counting: Counting) -> TokenCounter:
    """One of each kind, since a vocabulary takes memory and time."""
    return EstimatingCounter() if counting == "estimate" else ExactCounter(counting)


def verifier(config: Config, issuers: Sequence[Issuer]) -> IssuersVerifier:
    """Who verifies tokens of ``issuers`` for one of the servers; by its ``for_resource`` also those for the others."""
    return IssuersVerifier(resource=config.resource(next(iter(config.servers))), issuers=issuers)


def credentials(
    config: Config, server: ServerConfig, http: OAuthHTTPClient, *, telemetry: Telemetry | None = None
) -> ServerCredentials | None:
    """What ``server`` is to know the gateway by, if that has to be made for a request. Raises ConfigurationError."""
    if not isinstance(server.credentials, GrantConfig) and server.caller is None:
        return None
    return ServerCredentials(
        server,
        http,
        issuer=config.public_url,
        audience=config.resource(server.name),
        count=None if telemetry is None else telemetry.count_credential_failure,
    )


def _hosts(config: Config) -> set[str]:
    """Every ``Host`` a client may name: the public one, where we listen if that is this machine, and those added."""
    public = urlsplit(config.public_url)
    hosts = {_with_port(public.hostname or "", public.port, public.scheme), *(host.lower() for host in config.hosts)}
    if is_loopback(config.host):
        scheme = "http" if config.tls is None else "https"
        hosts |= {_with_port(name, config.port, scheme) for name in ("localhost", "127.0.0.1", "::1", config.host)}
    return hosts


def _with_port(host: str, port: int | None, scheme: str) -> str:
    """As ``Host`` has it (RFC 9110 section 7.2)."""
    name = f"[{host}]" if ":" in host else host.lower()
    return name if port in (None, _PORTS[scheme]) else f"{name}:{port}"
