"""The limiter: requests and tokens per agent."""

from .forecast import Forecast
from .middleware import LimiterMode, RateLimitMiddleware, Refusal
from .rate import AgentLimits, PartLimits, Rate
from .tokens import EstimatingCounter, TokenCounter

__all__ = [
    "AgentLimits",
    "EstimatingCounter",
    "Forecast",
    "LimiterMode",
    "PartLimits",
    "Rate",
    "RateLimitMiddleware",
    "Refusal",
    "TokenCounter",
]
