"""Session affinity: session ids that are sealed, bound to their caller, and routable without a shared store."""

from .middleware import SessionAffinityMiddleware
from .sealing import KeyRing, Session

__all__ = ["KeyRing", "Session", "SessionAffinityMiddleware"]
