"""The gateway's OpenTelemetry: providers that send to one collector, or the process's own where none is configured."""

import logging
from typing import Any, Final

from opentelemetry import metrics

from mcp_middleware.tracing import conventions as names
from mcp_middleware.tracing.upstream import ClientSpans

from .sections.tracing import TracingConfig

__all__ = ["Telemetry"]

logger = logging.getLogger("mcp_middleware.gateway")

_SERVICE: Final = "mcp-gateway"
_PATIENCE: Final = 2.0
"""Seconds that one delivery may take, repetitions included: a stop waits for the last one of spans and of metrics."""


class Telemetry:
    """Where spans and metrics go. With ``tracing`` to its collector by OTLP over HTTP; without, to the providers that
    an application has set for itself, if any."""

    def __init__(self, tracing: TracingConfig | None) -> None:
        self.tracer_provider: Any = None
        self.meter_provider: Any = None
        if tracing is not None:
            self.tracer_provider, self.meter_provider = _providers(tracing)
        self.spans = ClientSpans(tracer_provider=self.tracer_provider, meter_provider=self.meter_provider)
        meter = metrics.get_meter(names.SCOPE, meter_provider=self.meter_provider)
        self._reloads = meter.create_counter(
            names.RELOADS, unit="{reload}", description="Changes of the configuration, by how they ended"
        )
        for outcome in ("ok", "refused"):  # else the first would be no increase
            self._reloads.add(0, {"outcome": outcome})
        self._credential_failures = meter.create_counter(
            names.CREDENTIAL_FAILURES,
            unit="{request}",
            description="Requests whose credential failed, by server and how",
        )

    def count_credential_failure(self, server: str, how: str) -> None:
        """A request to ``server`` had no credential (``unavailable``, ``refused``), or one that the server answered 401
        (``rejected``)."""
        self._credential_failures.add(1, {"server": server, "outcome": how})

    def count_reload(self, outcome: str) -> None:
        """A configuration was taken (``ok``) or refused (``refused``)."""
        self._reloads.add(1, {"outcome": outcome})

    def close(self) -> None:
        """Send what waits. Blocks for as long as the exporters take."""
        for provider in (self.tracer_provider, self.meter_provider):
            if provider is not None:
                try:
                    provider.shutdown()
                except Exception:
                    logger.exception("an exporter failed while closing")


def _providers(tracing: TracingConfig) -> tuple[Any, Any]:
    # Not at the top: the SDK and its exporters take a quarter of a second and 20 MB that only tracing should cost.
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    resource = Resource.create({"service.name": _SERVICE})
    base, headers = tracing.otlp, dict(tracing.headers)
    sampler = ParentBasedTraceIdRatio(tracing.sample)
    tracer_provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    tracer_provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{base}/v1/traces", headers=headers, timeout=_PATIENCE))
    )
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=f"{base}/v1/metrics", headers=headers, timeout=_PATIENCE)
    )
    meter_provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    return tracer_provider, meter_provider
