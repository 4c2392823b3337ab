"""The limiter: requests and tokens per agent."""

from .middleware import RateLimitMiddleware
from .rate import AgentLimits, Rate
from .tokens import EstimatingCounter, TokenCounter

__all__ = ["AgentLimits", "EstimatingCounter", "Rate", "RateLimitMiddleware", "TokenCounter"]
