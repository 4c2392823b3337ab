"""The standalone gateway: the members stacked before a forwarder, one endpoint for many agents and many servers."""

from typing import TYPE_CHECKING

from mcp_middleware.exports import lazy_exports

if TYPE_CHECKING:
    from .app import Gateway, create_app
    from .config import Config, from_mapping, load

__all__ = ["Config", "Gateway", "create_app", "from_mapping", "load"]

_HOMES = {
    "app": ("Gateway", "create_app"),
    "config": ("Config", "from_mapping", "load"),
}


if not TYPE_CHECKING:  # a type checker would take every name for one of ours
    __getattr__ = lazy_exports(__name__, _HOMES)
