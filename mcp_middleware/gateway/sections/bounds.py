"""``bounds``: what one request may take."""

from typing import Final

from mcp_middleware.gateway.scalars import Duration, Size
from mcp_middleware.gateway.shapes import Key, Section
from mcp_middleware.member import Bounds

__all__ = ["BOUNDS"]

BOUNDS: Final = Section(
    "bounds",
    (
        Key("max_body_bytes", Size(), "A request's body; a larger one is answered 413.", "4MiB"),
        Key("max_header_bytes", Size(), "A request's headers; larger ones are answered 431.", "64KiB"),
        Key("body_timeout", Duration(), "How long a request's body may take; then 408.", "10s"),
        Key("max_answer_bytes", Size(), "One message of a server; a larger one becomes an error.", "64MiB"),
    ),
    lambda values: Bounds(**values),
)
