"""The limiter: requests and tokens per agent, and what they cost."""

from .budgets import Budget
from .exact import ExactCounter
from .forecast import Forecast
from .guard import GuardStorage, RequestGuardMiddleware
from .middleware import LimiterMode, RateLimitMiddleware, Refusal
from .prices import Price, Prices
from .rate import AgentLimits, PartLimits, Rate
from .tokens import EstimatingCounter, TokenCounter

__all__ = [
    "AgentLimits",
    "Budget",
    "EstimatingCounter",
    "ExactCounter",
    "Forecast",
    "GuardStorage",
    "LimiterMode",
    "PartLimits",
    "Price",
    "Prices",
    "Rate",
    "RateLimitMiddleware",
    "Refusal",
    "RequestGuardMiddleware",
    "TokenCounter",
]
