"""What the limiter's metrics say."""

from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from mcp_middleware.storage import RedisStorage
from mcp_middleware.testing import FakeClock

from .conftest import Make

PREFIX = "mcp_middleware.limiter."


class Meters:
    """A provider of its own, and what it has been told."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def read(self) -> dict[str, dict[tuple[Any, ...], Any]]:
        """By name without the prefix, and by the values of the labels in the order of their names."""
        data = self.reader.get_metrics_data()
        found: dict[str, dict[tuple[Any, ...], Any]] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    assert metric.name.startswith(PREFIX)
                    points: dict[tuple[Any, ...], Any] = {}
                    for point in metric.data.data_points:
                        labels = point.attributes or {}
                        assert all(name.startswith(PREFIX) for name in labels)
                        value = getattr(point, "value", None)
                        points[tuple(labels[name] for name in sorted(labels))] = (
                            value if value is not None else getattr(point, "count", None)
                        )
                    found[metric.name.removeprefix(PREFIX)] = points
        return found


@pytest.fixture
def meters() -> Meters:
    return Meters()


async def test_what_a_stream_brings_beyond_its_estimate_is_under_estimated_and_may_be_debt(
    make: Make, meters: Meters
) -> None:
    stack = make(tokens="1000/day", meter_provider=meters.provider)
    stack.server.notices = [{"jsonrpc": "2.0", "method": "notifications/message", "params": ["x" * 796]}] * 3
    await stack.call()
    seen = meters.read()
    assert seen["estimate.error"][("under",)] == 2400
    assert seen["debt"][()] == pytest.approx(6 + 2400 + 100 - 1000, abs=2)


async def test_admitted_refused_debt_errors_and_reports_are_counted(
    make: Make, meters: Meters, clock: FakeClock
) -> None:
    options: dict[str, Any] = {"requests": "4/day", "tokens": "1000/day", "tools": {"t": {"requests": "1/day"}}}
    stack = make(**options, meter_provider=meters.provider)
    for name in ("t", "t", "u"):
        await stack.call(name=name)
    stack.server.result = {"content": [{"type": "text", "text": "x" * 900}]}
    await stack.call(name="v")
    await stack.call(name="u")
    await stack.call(name="u", arguments={"text": "y" * 2000})
    stack.server.result = {"content": [], "_meta": {"usage": {"outputTokens": -1}}}
    await stack.call("prompts/get", caller="other", name="p")
    stack.server.result = {"content": [], "_meta": {"usage": {"outputTokens": 1}}}
    await stack.call("prompts/get", caller="other", name="p")
    stack.limiter.mode = "shadow"
    await stack.call(name="u", caller="agent")
    seen = meters.read()
    assert seen["admitted"] == {(): 5}
    assert seen["refused"] == {
        ("requests", True, "tool"): 1,
        ("tokens", True, "agent"): 1,
        ("size", True, "agent"): 1,
        ("tokens", False, "agent"): 1,
    }
    assert seen["debt"][()] == pytest.approx(900 - 1000 + 3 * 3 + 200, abs=20)
    assert seen["estimate.error"][("under",)] == 800
    assert seen["estimate.error"][("over",)] > 0
    assert seen["reports"] == {(False,): 1, (True,): 2}
    assert seen["fallbacks"] == seen["cut"] == {(): 0}
    assert "store.duration" not in seen


async def test_whose_limit_a_request_never_fits_is_counted(make: Make, meters: Meters) -> None:
    parts = {"tools": {"t": {"tokens": "50/day"}}, "server": "s", "server_limits": {"tokens": "100/day"}}
    stack = make(tokens="1000/day", **parts, meter_provider=meters.provider)
    for name in ("t", "u"):
        assert (await stack.call(name=name, arguments={"text": "y" * 200})).status == 413
    assert meters.read()["refused"] == {("size", True, "tool"): 1, ("size", True, "server"): 1}


async def test_the_store_is_timed_and_what_is_decided_without_it_is_counted(make: Make, meters: Meters) -> None:
    storage = RedisStorage("redis://127.0.0.1:1/0", replicas=2)
    stack = make(requests="10/day", tokens="5000/day", meter_provider=meters.provider, storage=storage)
    await stack.call()
    seen = meters.read()
    assert seen["fallbacks"] == {(): 1}
    assert seen["store.duration"] == {("reserve",): 1, ("settle",): 1}
    await storage.aclose()


async def test_limiters_of_one_provider_count_together(make: Make, meters: Meters) -> None:
    """So that a reload, which makes new ones, lets no number fall."""
    for _ in range(3):
        await make(requests="10/day", meter_provider=meters.provider).call()
    assert meters.read()["admitted"] == {(): 3}
