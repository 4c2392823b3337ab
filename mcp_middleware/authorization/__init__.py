"""Tool authorization: policies, their decisions, and the middleware that carries them out."""

from .middleware import ToolAuthorizationMiddleware
from .policy import Authorizer, Policy

__all__ = ["Authorizer", "Policy", "ToolAuthorizationMiddleware"]
