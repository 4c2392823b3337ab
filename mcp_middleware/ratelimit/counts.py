"""What the limiters of a process have done, as metrics of OpenTelemetry.

Nearly all are plain numbers that a reader of metrics asks for when it wants them, so a call pays an addition for each.
Labels are from fixed sets: agents are not among them. Servers are, for costs, and tools that have answered well.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal, get_args
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import MeterProvider, Observation

from mcp_middleware.storage import Shortage
from mcp_middleware.storage.budgets import Period
from mcp_middleware.types import Money

from .rules import whose

__all__ = ["Counts", "counts_for"]

_SCOPE: Final = "mcp_middleware"
_TOOL_NAME: Final = "gen_ai.tool.name"
_MOST_TOOLS: Final = 1024
_LONG: Final = 256
"""Characters of a tool's name that becomes no label."""
_BOUNDARIES: Final = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)

Step = Literal["reserve", "settle"]


class Counts:
    """All that is counted, for one provider of meters."""

    def __init__(self, provider: MeterProvider | None) -> None:
        self.admitted = 0
        self.refused: Counter[tuple[str, str, bool]] = Counter()
        """By dimension (``size``: can never fit), by whose limit it is (``agent``, ``tool``, ``server``), and whether
        it was enforced."""
        self.debt = 0.0
        """Tokens that were used and not there."""
        self.over = 0
        self.under = 0
        """Tokens by which estimates were above and below what was used."""
        self.reports: Counter[bool] = Counter()
        """Servers' own reports of usage, by whether they were believed."""
        self.fallbacks = 0
        """Decisions by this process alone, the store being away."""
        self.cut = 0
        """Streams that were cut off."""
        self.warnings: Counter[str] = Counter(dict.fromkeys(get_args(Period), 0))
        """Budgets that only warn and were reached, by their period; from 0 on, else the first would be no increase."""
        self._costs: Counter[tuple[str, str | None, str | None]] = Counter()
        """What calls cost in billionths, by currency, server and tool."""
        self._tools: set[str] = set()
        meter = metrics.get_meter(_SCOPE, meter_provider=provider)

        def observe(name: str, unit: str, text: str, read: Callable[[], Iterable[Observation]]) -> None:
            meter.create_observable_counter(
                f"mcp_middleware.limiter.{name}", [lambda _: read()], unit=unit, description=text
            )

        observe("admitted", "{request}", "Requests that fitted into their limits", self._admitted)
        observe("refused", "{request}", "Requests that did not, by what they were short of", self._refused)
        observe("debt", "{token}", "Tokens that calls used although they were not there", self._debt)
        observe("estimate.error", "{token}", "Tokens by which estimates differed from what was used", self._errors)
        observe("reports", "{report}", "Usage that servers reported of themselves", self._reports)
        observe("fallbacks", "{decision}", "Decisions without the shared store", self._fallbacks)
        observe("cut", "{stream}", "Streams that were cut off for want of tokens", self._cut)
        observe("cost", "{currency}", "What calls cost", self._cost)
        observe("budget.warnings", "{warning}", "Budgets that only warn and were reached", self._warned)
        self._store = meter.create_histogram(
            "mcp_middleware.limiter.store.duration",
            unit="s",
            description="Time that the shared store took for one step",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )

    def refuse(self, shortage: Shortage, *, enforced: bool) -> None:
        """A request did not fit, or would not have."""
        self.refused[shortage.dimension, whose(shortage.part), enforced] += 1

    def refuse_for_good(self, part: str | None, *, enforced: bool) -> None:
        """A request is more than the tokens bucket of ``part`` can hold."""
        self.refused["size", whose(part), enforced] += 1

    def refuse_to_pay(self, *, enforced: bool) -> None:
        """A budget was spent."""
        self.refused["budget", "agent", enforced] += 1

    def add_cost(self, cost: Money, server: str | None, tool: str | None) -> None:
        """A call was paid for. ``tool``: its name, if its server is known to have it."""
        if tool is not None and tool not in self._tools:
            if len(self._tools) < _MOST_TOOLS and len(tool) <= _LONG:
                self._tools.add(tool)
            else:
                tool = None
        self._costs[cost.currency, server, tool] += cost.nanos

    def settle(self, estimate: float, used: int, left: float) -> None:
        """A call took ``used`` tokens; ``left`` is what the bucket then holds."""
        if used > estimate:
            self.under += round(used - estimate)
            if left < 0:
                self.debt += min(-left, used - estimate)
        else:
            self.over += round(estimate - used)

    def took(self, step: Step, seconds: float) -> None:
        """The store answered."""
        self._store.record(seconds, {"mcp_middleware.limiter.step": step})

    def _admitted(self) -> Iterator[Observation]:
        yield Observation(self.admitted)

    def _refused(self) -> Iterator[Observation]:
        for (dimension, of, enforced), number in self.refused.items():
            yield Observation(number, _labels(dimension=dimension, whose=of, enforced=enforced))

    def _debt(self) -> Iterator[Observation]:
        yield Observation(self.debt)

    def _errors(self) -> Iterator[Observation]:
        yield Observation(self.over, _labels(direction="over"))
        yield Observation(self.under, _labels(direction="under"))

    def _reports(self) -> Iterator[Observation]:
        for believed, number in self.reports.items():
            yield Observation(number, _labels(believed=believed))

    def _fallbacks(self) -> Iterator[Observation]:
        yield Observation(self.fallbacks)

    def _cut(self) -> Iterator[Observation]:
        yield Observation(self.cut)

    def _cost(self) -> Iterator[Observation]:
        for (currency, server, tool), nanos in self._costs.items():
            labels = _labels(currency=currency)
            if server is not None:
                labels.update(_labels(server=server))
            if tool is not None:
                labels[_TOOL_NAME] = tool
            yield Observation(nanos / 10**9, labels)

    def _warned(self) -> Iterator[Observation]:
        for period, number in self.warnings.items():
            yield Observation(number, _labels(period=period))


def _labels(**labels: str | bool) -> dict[str, str | bool]:
    return {f"mcp_middleware.limiter.{name}": value for name, value in labels.items()}


_of_provider: "WeakKeyDictionary[MeterProvider, Counts]" = WeakKeyDictionary()
_of_the_global_one: list[Counts] = []


def counts_for(provider: MeterProvider | None) -> Counts:
    """What is counted for ``provider`` (None: the global one, set now or later): one for all limiters, so that numbers
    only grow, also when another configuration brings new limiters."""
    if provider is None:
        if not _of_the_global_one:
            _of_the_global_one.append(Counts(None))
        return _of_the_global_one[0]
    counts = _of_provider.get(provider)
    if counts is None:
        counts = _of_provider[provider] = Counts(provider)
    return counts
