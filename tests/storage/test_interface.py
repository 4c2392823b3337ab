"""What a storage may be asked."""

import sys
from typing import Any

import pytest

from mcp_middleware.storage.interface import check_tokens


@pytest.mark.parametrize("tokens", [-1, float("nan"), float("inf"), pytest.param(10**400, id="more than a float")])
def test_what_is_no_number_of_tokens_is_refused(tokens: Any) -> None:
    with pytest.raises(ValueError, match="it must be a finite number of at least 0"):
        check_tokens(tokens)


@pytest.mark.parametrize("tokens", [0, 0.5, sys.float_info.max])
def test_whatever_a_float_holds_is_a_number_of_tokens(tokens: Any) -> None:
    check_tokens(tokens)
