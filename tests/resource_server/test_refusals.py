"""What the log says of tokens that were refused, however many there are."""

import logging

import pytest

from mcp_middleware.resource_server.refusals import Refusals
from mcp_middleware.testing import FakeClock


def test_a_flood_of_bad_tokens_is_a_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mcp_middleware.resource_server")
    clock = FakeClock()
    refusals = Refusals(clock)
    for _ in range(1000):
        refusals.note("it is malformed")
    clock.advance(1.0)
    refusals.note("it has expired")
    refusals.note("it has expired")
    clock.advance(2.0)
    refusals.note("it is for another")
    assert caplog.messages == [
        "a token was refused: it is malformed",
        "a token was refused: it has expired (999 others since the line before)",
        "a token was refused: it is for another (1 others since the line before)",
    ]
