"""The server that the official conformance suite expects to find, on the SDK's low-level server.

The suite names the tools, prompts and resources and says what each must do. ``python -m tests.conformance.fixture``
serves it at http://127.0.0.1:8765/mcp, without any middleware around it.
"""

import asyncio
import base64
import json
import re
import struct
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import mcp_types as types
import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ServerEvent,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.applications import Starlette

Context: TypeAlias = ServerRequestContext[Any]
ToolAnswer: TypeAlias = types.CallToolResult | types.InputRequiredResult
ToolHandler: TypeAlias = Callable[[Context, types.CallToolRequestParams], Awaitable[ToolAnswer]]

NAME: Final = "conformance-fixture"
PATH: Final = "/mcp"
RETRY_MS: Final = 500
"""What the suite's polling scenario finds in the ``retry`` field."""
PAUSE: Final = 0.05
"""Seconds between the notifications of one call, as the suite asks."""
LOG_LEVEL_KEY: Final = "io.modelcontextprotocol/logLevel"
NO_ARGUMENTS: Final[dict[str, Any]] = {"type": "object", "properties": {}}

CONTACT_SCHEMA: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
"""The 2020-12 keywords whose survival the suite checks."""

REGION_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
    "required": ["region"],
}
"""One parameter that a modern client mirrors in ``Mcp-Param-Region`` (SEP-2243)."""

TOOLS: Final[dict[str, types.Tool]] = {}
HANDLERS: Final[dict[str, ToolHandler]] = {}
BUS: Final = InMemorySubscriptionBus()


def _png() -> str:
    """One red pixel, base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\x00\xff\x00\x00")
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return base64.b64encode(image).decode()


def _wav() -> str:
    """Eight silent samples, base64."""
    samples = b"\x80" * 8
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8)
    body = b"WAVE" + form + b"data" + struct.pack("<I", len(samples)) + samples
    return base64.b64encode(b"RIFF" + struct.pack("<I", len(body)) + body).decode()


PNG: Final = _png()
WAV: Final = _wav()


def _text(text: str) -> types.TextContent:
    return types.TextContent(type="text", text=text)


def _said(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[_text(text)])


def _embedded(uri: str, mime_type: str, text: str) -> types.EmbeddedResource:
    resource = types.TextResourceContents(uri=uri, mime_type=mime_type, text=text)
    return types.EmbeddedResource(type="resource", resource=resource)


def _image() -> types.ImageContent:
    return types.ImageContent(type="image", data=PNG, mime_type="image/png")


def tool(name: str, description: str, schema: dict[str, Any] = NO_ARGUMENTS) -> Callable[[ToolHandler], ToolHandler]:
    """Register a tool under the name the suite calls it by."""

    def register(handler: ToolHandler) -> ToolHandler:
        TOOLS[name] = types.Tool(name=name, description=description, input_schema=schema)
        HANDLERS[name] = handler
        return handler

    return register


# --- Tools that answer at once, or stream ---------------------------------------------------------------------------


@tool("test_simple_text", "Answers with one text.")
async def simple_text(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    return _said("This is a simple text response for testing.")


@tool("test_image_content", "Answers with a PNG.")
async def image_content(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    return types.CallToolResult(content=[_image()])


@tool("test_audio_content", "Answers with a WAV.")
async def audio_content(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    return types.CallToolResult(content=[types.AudioContent(type="audio", data=WAV, mime_type="audio/wav")])


@tool("test_embedded_resource", "Answers with an embedded resource.")
async def embedded_resource(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    resource = _embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")
    return types.CallToolResult(content=[resource])


@tool("test_multiple_content_types", "Answers with a text, an image and a resource.")
async def multiple_content_types(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    data = json.dumps({"test": "data", "value": 123})
    resource = _embedded("test://mixed-content-resource", "application/json", data)
    return types.CallToolResult(content=[_text("Multiple content types test:"), _image(), resource])


@tool("test_error_handling", "Always fails.")
async def error_handling(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    text = "This tool intentionally returns an error for testing"
    return types.CallToolResult(content=[_text(text)], is_error=True)


@tool("json_schema_2020_12_tool", "Takes a contact, described with JSON Schema 2020-12.", CONTACT_SCHEMA)
async def json_schema(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    return _said(json.dumps(params.arguments))


@tool("test_region_header", "Takes a region that modern clients mirror in a header.", REGION_SCHEMA)
async def region_header(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    return _said(json.dumps(params.arguments))


@tool("test_tool_with_progress", "Reports progress three times.")
async def tool_with_progress(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    for step in (0, 50, 100):
        await ctx.session.report_progress(step, 100)
        await asyncio.sleep(PAUSE)
    return _said("Progress reported.")


async def _log(ctx: Context, text: str) -> None:
    """Send a log message where the revision lets us: since 2026-07-28 only to a request that asked for it."""
    if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS and LOG_LEVEL_KEY not in (ctx.meta or {}):
        return
    params = types.LoggingMessageNotificationParams(level="info", data=text)
    await ctx.session.send_notification(types.LoggingMessageNotification(params=params), ctx.request_id)


@tool("test_tool_with_logging", "Logs three times while it runs.")
async def tool_with_logging(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await _log(ctx, text)
        await asyncio.sleep(PAUSE)
    return _said("Logged.")


@tool("test_logging_tool", "Logs once, to requests that want it.")
async def logging_tool(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    await _log(ctx, "Logged for a request that asked for it")
    return _said("Logged.")


@tool("test_reconnection", "Drops the event stream before it answers, so that the client must resume.")
async def reconnection(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    if ctx.close_sse_stream is not None:
        await ctx.close_sse_stream()
        await asyncio.sleep(2 * PAUSE)
    return _said("Answered after the reconnection.")


@tool("test_trigger_tool_change", "Announces that the list of tools changed.")
async def trigger_tool_change(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    return await _announce(ctx, ToolsListChanged(), types.ToolListChangedNotification())


@tool("test_trigger_prompt_change", "Announces that the list of prompts changed.")
async def trigger_prompt_change(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    return await _announce(ctx, PromptsListChanged(), types.PromptListChangedNotification())


async def _announce(ctx: Context, event: ServerEvent, notification: types.ServerNotification) -> ToolAnswer:
    await BUS.publish(event)
    if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        await ctx.session.send_notification(notification)
    return _said("Announced.")


# --- Tools that ask the client: by a request of their own (legacy) --------------------------------------------------


def _related(ctx: Context) -> ServerMessageMetadata:
    return ServerMessageMetadata(related_request_id=ctx.request_id)


def _sampling(prompt: str, max_tokens: int) -> types.CreateMessageRequest:
    asked = types.SamplingMessage(role="user", content=_text(prompt))
    return types.CreateMessageRequest(params=types.CreateMessageRequestParams(messages=[asked], max_tokens=max_tokens))


def _form(text: str, properties: Mapping[str, Any], *, required: tuple[str, ...] = ()) -> types.ElicitRequest:
    schema: dict[str, Any] = {"type": "object", "properties": dict(properties)}
    if required:
        schema["required"] = list(required)
    return types.ElicitRequest(params=types.ElicitRequestFormParams(message=text, requested_schema=schema))


async def _elicit(ctx: Context, form: types.ElicitRequest, opening: str) -> ToolAnswer:
    result = await ctx.session.send_request(form, types.ElicitResult, metadata=_related(ctx))
    return _said(f"{opening}: action={result.action}, content={json.dumps(result.content)}")


@tool(
    "test_sampling",
    "Asks the client's model.",
    {"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]},
)
async def sampling(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    request = _sampling(str((params.arguments or {})["prompt"]), 100)
    result = await ctx.session.send_request(request, types.CreateMessageResult, metadata=_related(ctx))
    return _said(f"LLM response: {getattr(result.content, 'text', '')}")


@tool(
    "test_elicitation",
    "Asks the client's user.",
    {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]},
)
async def elicitation(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    fields = {
        "username": {"type": "string", "description": "User's response"},
        "email": {"type": "string", "description": "User's email address"},
    }
    form = _form(str((params.arguments or {})["message"]), fields, required=("username", "email"))
    return await _elicit(ctx, form, "User response")


@tool("test_elicitation_sep1034_defaults", "Asks with a default for every primitive type.")
async def elicitation_defaults(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    fields = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    }
    return await _elicit(ctx, _form("Please review the defaults", fields), "Elicitation completed")


@tool("test_elicitation_sep1330_enums", "Asks with each of the five kinds of enumeration.")
async def elicitation_enums(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    options = ["option1", "option2", "option3"]
    titled = [
        {"const": "value1", "title": "First"},
        {"const": "value2", "title": "Second"},
        {"const": "value3", "title": "Third"},
    ]
    fields = {
        "untitledSingle": {"type": "string", "enum": options},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": options}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
    }
    return await _elicit(ctx, _form("Please choose", fields), "Elicitation completed")


# --- Tools that ask the client: by an input_required result (2026-07-28, SEP-2322) ----------------------------------

NAME_FORM: Final = _form("What is your name?", {"name": {"type": "string"}}, required=("name",))
COLOR_FORM: Final = _form("What is your favorite color?", {"color": {"type": "string"}}, required=("color",))
CONFIRM_FORM: Final = _form("Please confirm", {"ok": {"type": "boolean"}}, required=("ok",))
CONTEXT_FORM: Final = _form("What context should the prompt use?", {"context": {"type": "string"}})


def _ask(state: str | None = None, /, **requests: types.InputRequest) -> types.InputRequiredResult:
    return types.InputRequiredResult(input_requests=requests, request_state=state)


def _given(params: types.InputResponseRequestParams, *keys: str) -> bool:
    return set(keys) <= (params.input_responses or {}).keys()


def _answered(params: types.InputResponseRequestParams, key: str) -> Any:
    return (params.input_responses or {})[key]


@tool("test_input_required_result_elicitation", "Asks for a name, then greets.")
async def ask_elicitation(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    if not _given(params, "user_name"):
        return _ask(user_name=NAME_FORM)
    return _said(f"Hello, {(_answered(params, 'user_name').content or {}).get('name')}!")


@tool("test_input_required_result_sampling", "Asks the client's model, then repeats it.")
async def ask_sampling(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    if not _given(params, "capital_question"):
        return _ask(capital_question=_sampling("What is the capital of France?", 100))
    return _said(str(_answered(params, "capital_question").content.text))


@tool("test_input_required_result_list_roots", "Asks for the client's roots, then names them.")
async def ask_list_roots(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    if not _given(params, "client_roots"):
        return _ask(client_roots=types.ListRootsRequest())
    return _said(", ".join(str(root.uri) for root in _answered(params, "client_roots").roots))


@tool("test_input_required_result_request_state", "Keeps its state with the client.")
async def ask_request_state(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    if params.request_state != "confirming" or not _given(params, "confirm"):
        return _ask("confirming", confirm=CONFIRM_FORM)
    return _said("state-ok")


@tool("test_input_required_result_tampered_state", "Keeps state that the client must not change.")
async def ask_tampered_state(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    return await ask_request_state(ctx, params)


@tool("test_input_required_result_multiple_inputs", "Asks for three things at once.")
async def ask_multiple_inputs(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    if not _given(params, "user_name", "greeting", "client_roots"):
        return _ask(
            "three-questions",
            user_name=NAME_FORM,
            greeting=_sampling("Generate a greeting", 50),
            client_roots=types.ListRootsRequest(),
        )
    return _said("All three answers came.")


@tool("test_input_required_result_multi_round", "Asks twice, one thing after the other.")
async def ask_multi_round(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    if params.request_state == "round-2" and _given(params, "step2"):
        return _said("Both answers came.")
    if params.request_state == "round-1" and _given(params, "step1"):
        return _ask("round-2", step2=COLOR_FORM)
    return _ask("round-1", step1=NAME_FORM)


@tool("test_input_required_result_capabilities", "Asks only what the client can answer.")
async def ask_capabilities(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    declared = ctx.session.client_capabilities
    requests: dict[str, types.InputRequest] = {}
    if declared is not None and declared.sampling is not None:
        requests["question"] = _sampling("What is the capital of France?", 100)
    if declared is not None and declared.elicitation is not None:
        requests["user_name"] = NAME_FORM
    return _ask(**requests) if requests else _said("Nothing to ask.")


@tool("test_streaming_elicitation", "Asks by its result, never by a request on the stream.")
async def streaming_elicitation(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    return await ask_elicitation(ctx, params)


@tool("test_missing_capability", "Needs a client that can sample.")
async def missing_capability(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    declared = ctx.session.client_capabilities
    if declared is None or declared.sampling is None:
        data: dict[str, Any] = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "this tool needs the sampling capability", data)
    return _said("The client can sample.")


# --- Prompts --------------------------------------------------------------------------------------------------------

PROMPTS: Final = [
    types.Prompt(name="test_simple_prompt", description="One message."),
    types.Prompt(
        name="test_prompt_with_arguments",
        description="One message from two arguments.",
        arguments=[
            types.PromptArgument(name="arg1", description="First", required=True),
            types.PromptArgument(name="arg2", description="Second", required=True),
        ],
    ),
    types.Prompt(
        name="test_prompt_with_embedded_resource",
        description="A resource and a message.",
        arguments=[types.PromptArgument(name="resourceUri", description="What to embed", required=True)],
    ),
    types.Prompt(name="test_prompt_with_image", description="An image and a message."),
    types.Prompt(name="test_input_required_result_prompt", description="Asks for context first."),
]


def _user(content: types.ContentBlock) -> types.PromptMessage:
    return types.PromptMessage(role="user", content=content)


async def get_prompt(
    ctx: Context, params: types.GetPromptRequestParams
) -> types.GetPromptResult | types.InputRequiredResult:
    given = params.arguments or {}
    match params.name:
        case "test_simple_prompt":
            content: list[types.ContentBlock] = [_text("This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            content = [_text(f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'")]
        case "test_prompt_with_embedded_resource":
            resource = _embedded(given["resourceUri"], "text/plain", "Embedded resource content for testing.")
            content = [resource, _text("Please process the embedded resource above.")]
        case "test_prompt_with_image":
            content = [_image(), _text("Please analyze the image above.")]
        case "test_input_required_result_prompt":
            if not _given(params, "user_context"):
                return _ask(user_context=CONTEXT_FORM)
            content = [_text(f"Context: {_answered(params, 'user_context').content}")]
        case _:
            raise MCPError(types.INVALID_PARAMS, f"Unknown prompt: {params.name}")
    return types.GetPromptResult(messages=[_user(part) for part in content])


# --- Resources ------------------------------------------------------------------------------------------------------

TEMPLATE: Final = re.compile(r"test://template/([^/]+)/data")
RESOURCES: Final = [
    types.Resource(uri="test://static-text", name="static text", description="A text.", mime_type="text/plain"),
    types.Resource(uri="test://static-binary", name="static binary", description="A PNG.", mime_type="image/png"),
    types.Resource(uri="test://watched-resource", name="watched", description="A text.", mime_type="text/plain"),
]
TEMPLATES: Final = [
    types.ResourceTemplate(
        uri_template="test://template/{id}/data",
        name="template",
        description="Data of an id.",
        mime_type="application/json",
    )
]


async def read_resource(ctx: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    uri = params.uri
    content: types.TextResourceContents | types.BlobResourceContents
    if uri == "test://static-binary":
        content = types.BlobResourceContents(uri=uri, mime_type="image/png", blob=PNG)
    elif uri in ("test://static-text", "test://watched-resource"):
        text = "This is the content of the static text resource."
        content = types.TextResourceContents(uri=uri, mime_type="text/plain", text=text)
    elif found := TEMPLATE.fullmatch(uri):
        text = json.dumps({"id": found[1], "templateTest": True, "data": f"Data for ID: {found[1]}"})
        content = types.TextResourceContents(uri=uri, mime_type="application/json", text=text)
    else:
        raise MCPError(types.INVALID_PARAMS, f"Unknown resource: {uri}", {"uri": uri})
    return types.ReadResourceResult(contents=[content])


# --- The server -----------------------------------------------------------------------------------------------------


class MemoryEventStore(EventStore):
    """Every event of the process, in order, so that a client can resume a stream (SEP-1699)."""

    def __init__(self) -> None:
        self.events: list[tuple[str, types.JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: types.JSONRPCMessage | None) -> str:
        self.events.append((stream_id, message))
        return str(len(self.events))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        last = int(last_event_id) if last_event_id.isdecimal() else 0
        if not 0 < last <= len(self.events):
            return None
        stream = self.events[last - 1][0]
        for position, (stream_id, message) in enumerate(self.events[last:], start=last + 1):
            if stream_id == stream and message is not None:
                await send_callback(EventMessage(message, str(position)))
        return stream


async def list_tools(ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
    return types.ListToolsResult(tools=list(TOOLS.values()))


async def call_tool(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    handler = HANDLERS.get(params.name)
    if handler is None:
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")
    return await handler(ctx, params)


async def list_prompts(ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListPromptsResult:
    return types.ListPromptsResult(prompts=PROMPTS)


async def list_resources(ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
    return types.ListResourcesResult(resources=RESOURCES)


async def list_templates(
    ctx: Context, params: types.PaginatedRequestParams | None
) -> types.ListResourceTemplatesResult:
    return types.ListResourceTemplatesResult(resource_templates=TEMPLATES)


async def complete(ctx: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
    words = [word for word in ("paris", "park", "party", "test") if word.startswith(params.argument.value)]
    return types.CompleteResult(completion=types.Completion(values=words, total=len(words), has_more=False))


async def accept(ctx: Context, params: Any) -> types.EmptyResult:
    """``logging/setLevel``, ``resources/subscribe`` and ``resources/unsubscribe``: accepted, with nothing to do."""
    return types.EmptyResult()


def build() -> Starlette:
    """The fixture as an ASGI app with its endpoint at ``PATH``; Host and Origin must be local."""
    server = Server[Any](
        NAME,
        version="1.0.0",
        get_tool_input_schema=lambda name: TOOLS[name].input_schema if name in TOOLS else None,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_subscribe_resource=accept,
        on_unsubscribe_resource=accept,
        on_subscriptions_listen=ListenHandler(BUS),
        on_completion=complete,
    )
    server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, accept)
    server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=NAME))
    return server.streamable_http_app(
        streamable_http_path=PATH, event_store=MemoryEventStore(), retry_interval=RETRY_MS, host="127.0.0.1"
    )


if __name__ == "__main__":
    # h11 strips the blanks around a header's value, as the fixture alone does not (the stack does).
    uvicorn.run(build(), host="127.0.0.1", port=8765, http="h11", log_level="warning")
