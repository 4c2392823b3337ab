"""Every name that spans and metrics carry, in one place.

Sources: OpenTelemetry semantic conventions for MCP (open-telemetry/semantic-conventions-genai, ``docs/gen-ai/mcp.md``,
status Development), with the general ``error.*``, ``network.*``, ``client.*``, ``server.*``, ``session.*``,
``user.*`` and ``http.*``. What no convention names is under ``mcp_middleware.``.
"""

from typing import Final

from mcp_middleware.errors import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    RESOURCE_NOT_FOUND,
    UNSUPPORTED_PROTOCOL_VERSION,
)

SCOPE: Final = "mcp_middleware"
"""The instrumentation scope of our tracer and meter."""

# Spans and metrics
METHOD: Final = "mcp.method.name"
PROTOCOL_VERSION: Final = "mcp.protocol.version"
TOOL_NAME: Final = "gen_ai.tool.name"
PROMPT_NAME: Final = "gen_ai.prompt.name"
OPERATION: Final = "gen_ai.operation.name"
ERROR_TYPE: Final = "error.type"
STATUS_CODE: Final = "rpc.response.status_code"
NETWORK_PROTOCOL_NAME: Final = "network.protocol.name"
NETWORK_PROTOCOL_VERSION: Final = "network.protocol.version"
NETWORK_TRANSPORT: Final = "network.transport"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
DECISION: Final = "mcp_middleware.decision"
"""The audit trail's word (``Verdict``). A refusal leaves the span's status unset: only an attribute shows it."""
REFUSAL_REASON: Final = "mcp_middleware.refusal.reason"

# Spans only: values that a caller chooses, or that are many
REQUEST_ID: Final = "jsonrpc.request.id"
RESOURCE_URI: Final = "mcp.resource.uri"
MCP_SESSION: Final = "mcp.session.id"
SESSION: Final = "session.id"
USER: Final = "user.id"
AGENT: Final = "gen_ai.agent.id"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
ARGUMENTS: Final = "gen_ai.tool.call.arguments"
RESULT: Final = "gen_ai.tool.call.result"
CLIENT_ADDRESS: Final = "client.address"
CLIENT_PORT: Final = "client.port"
HTTP_STATUS: Final = "http.response.status_code"
RULE: Final = "mcp_middleware.rule"

# Values
EXECUTE_TOOL: Final = "execute_tool"
TOOL_ERROR: Final = "tool_error"
DISCONNECTED: Final = "disconnected"
OTHER: Final = "_OTHER"

# Metrics, unit s
OPERATION_DURATION: Final = "mcp.server.operation.duration"
CLIENT_OPERATION_DURATION: Final = "mcp.client.operation.duration"
SESSION_DURATION: Final = "mcp.server.session.duration"
OVERHEAD_DURATION: Final = "mcp_middleware.overhead.duration"

# Counters
RELOADS: Final = "mcp_middleware.gateway.reloads"
CREDENTIAL_FAILURES: Final = "mcp_middleware.gateway.credential_failures"

DURATION_BOUNDARIES: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Of the conventions' histograms."""
OVERHEAD_BOUNDARIES: Final = (
    0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0,
)  # fmt: skip
"""What members cost is far below the smallest boundary above."""

METHODS: Final = frozenset(
    {
        "completion/complete",
        "initialize",
        "logging/setLevel",
        "notifications/cancelled",
        "notifications/initialized",
        "notifications/progress",
        "notifications/roots/list_changed",
        "ping",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/subscribe",
        "resources/templates/list",
        "resources/unsubscribe",
        "server/discover",
        "subscriptions/listen",
        "tasks/cancel",
        "tasks/get",
        "tasks/list",
        "tasks/result",
        "tasks/update",
        "tools/call",
        "tools/list",
    }
)
"""What a client may send in some revision. Any other method is ``OTHER`` in names and labels."""

CALLER_FAULTS: Final = frozenset(
    {
        PARSE_ERROR,
        INVALID_REQUEST,
        METHOD_NOT_FOUND,
        INVALID_PARAMS,
        RESOURCE_NOT_FOUND,
        HEADER_MISMATCH,
        UNSUPPORTED_PROTOCOL_VERSION,
        -32021,  # a capability the client did not declare (2026-07-28)
    }
)
"""Error codes that are no failure of the server: its span keeps the status unset."""
