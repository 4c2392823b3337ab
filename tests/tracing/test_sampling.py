"""Whose sampled flag decides."""

from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import Tracer
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased

from mcp_middleware.tracing import TraceContextMiddleware
from mcp_middleware.types import Principal
from tests.core.asgi import Call

from .calls import AGENT, HEADER, META, OTHER_SPAN, OTHER_TRACE, SPAN, TRACE, Resource, call, ids, links, traceparent
from .conftest import Telemetry, TracedServer

UNTRUSTED = [(None, "none"), (None, "authenticated"), (AGENT, "none")]
TRUSTED = [(AGENT, "authenticated"), (None, "all"), (AGENT, "all")]


def sampled(server: TracedServer) -> bool:
    return bool(int(server.meta["traceparent"][-2:], 16) & 1)


async def one_call(
    server: TracedServer, sampler: Sampler, principal: Principal | None, trust: Any, flag: str
) -> Telemetry:
    telemetry = Telemetry(sampler)
    app = Resource(TraceContextMiddleware(server, trust=trust, **telemetry.options), fields={"principal": principal})
    await Call(app, call({"traceparent": META[:-2] + flag}), headers={"traceparent": HEADER[:-2] + flag}).run()
    await Call(app, call(), headers={"traceparent": META[:-2] + flag}).run()
    assert server.meta["traceparent"].startswith(f"00-{TRACE}-")
    assert SPAN not in server.meta["traceparent"]
    telemetry.close()
    return telemetry


@pytest.mark.parametrize(("principal", "trust"), UNTRUSTED)
@pytest.mark.parametrize("flag", ["00", "01", "ff"])
@pytest.mark.parametrize(
    ("sampler", "kept"),
    [
        (ParentBased(TraceIdRatioBased(0)), False),
        (ParentBased(TraceIdRatioBased(1)), True),
        (ParentBased(ALWAYS_ON), True),
        (ParentBased(ALWAYS_OFF), False),
        (ALWAYS_ON, True),
        (ALWAYS_OFF, False),
    ],
)
async def test_case_33_an_untrusted_sampled_flag_decides_nothing(
    server: TracedServer, principal: Principal | None, trust: str, flag: str, sampler: Sampler, kept: bool
) -> None:
    telemetry = await one_call(server, sampler, principal, trust, flag)
    assert len(telemetry.spans) == (2 if kept else 0)
    assert sampled(server) is kept
    for span in telemetry.spans:
        assert span.parent is not None
        assert ids(span.parent) == (TRACE, SPAN)


@pytest.mark.parametrize(("principal", "trust"), TRUSTED)
@pytest.mark.parametrize("flag", ["00", "01"])
@pytest.mark.parametrize("root", [ALWAYS_ON, ALWAYS_OFF])
async def test_case_33_a_trusted_sampled_flag_decides(
    server: TracedServer, principal: Principal | None, trust: str, flag: str, root: Sampler
) -> None:
    telemetry = await one_call(server, ParentBased(root), principal, trust, flag)
    assert len(telemetry.spans) == (2 if flag == "01" else 0)
    assert sampled(server) is (flag == "01")


async def test_case_33_an_untrusted_trace_id_decides_nothing() -> None:
    """A sampler by ratio keeps the smallest ids; a caller who picks one gains nothing."""
    server, telemetry = TracedServer(), Telemetry(ParentBased(TraceIdRatioBased(0.25)))
    app = TraceContextMiddleware(server, **telemetry.options)
    for number in range(1, 401):
        await Call(app, call({"traceparent": f"00-{number:032x}-{SPAN}-01"})).run()
    telemetry.close()
    assert 50 < len(telemetry.spans) < 150  # 100 expected; 5.8 standard deviations


async def test_case_33_calls_of_one_trace_are_kept_or_dropped_together() -> None:
    server, telemetry = TracedServer(), Telemetry(ParentBased(TraceIdRatioBased(0.5)))
    app = TraceContextMiddleware(server, **telemetry.options)
    decisions = set()
    for _ in range(20):
        await Call(app, call({"traceparent": META})).run()
        decisions.add(sampled(server))
    telemetry.close()
    assert len(decisions) == 1


async def test_case_33_a_provider_that_hides_its_sampler_gets_a_new_trace(server: TracedServer) -> None:
    """Another implementation of the API: the caller's context is then a link."""
    telemetry = Telemetry()

    class Provider(trace.TracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            tracer = telemetry.tracers.get_tracer("x")
            assert isinstance(tracer, Tracer)
            return tracer

    app = TraceContextMiddleware(server, tracer_provider=Provider())
    await Call(app, call({"traceparent": META}), headers={"traceparent": HEADER}).run()
    span = telemetry.span()
    assert span.parent is None
    assert links(span) == [(OTHER_TRACE, OTHER_SPAN), (TRACE, SPAN)]
    assert server.meta["traceparent"] == traceparent(span)
    telemetry.close()


async def test_a_sampler_that_fails_does_not_fail_the_request(
    server: TracedServer, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Sampler):
        def should_sample(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("broken sampler")

        def get_description(self) -> str:
            return "broken"

    telemetry = Telemetry(Broken())
    app = TraceContextMiddleware(server, **telemetry.options)
    assert (await Call(app, call({"traceparent": META})).run()).status == 200
    assert (await Call(app, call()).run()).status == 200
    assert server.received[0] == call({"traceparent": META})
    assert "broken sampler" in caplog.text
    telemetry.close()
