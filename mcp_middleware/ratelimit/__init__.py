"""The limiter: requests and tokens per agent."""

from .exact import ExactCounter
from .forecast import Forecast
from .guard import RequestGuardMiddleware
from .middleware import LimiterMode, RateLimitMiddleware, Refusal
from .rate import AgentLimits, PartLimits, Rate
from .tokens import EstimatingCounter, TokenCounter

__all__ = [
    "AgentLimits",
    "EstimatingCounter",
    "ExactCounter",
    "Forecast",
    "LimiterMode",
    "PartLimits",
    "Rate",
    "RateLimitMiddleware",
    "Refusal",
    "RequestGuardMiddleware",
    "TokenCounter",
]
