"""When a token is renewed and not used any more."""

import math

from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.credentials.keeping import keep
from mcp_middleware.oauth.tokens import IssuedToken

seconds = st.floats(0.001, 1e6)


@given(st.floats(0, 2e9), seconds, st.none() | seconds)
def test_a_token_is_never_used_beyond_its_end_or_the_callers(now: float, life: float, left: float | None) -> None:
    until = math.inf if left is None else now + left
    kept = keep(IssuedToken("x", now + life), now=now, until=until)
    assert now <= kept.ends_at <= min(now + life, until)
    assert kept.ends_at >= min(now + life, until) - 5.0
    if kept.renew_at < math.inf:
        assert now <= kept.renew_at <= kept.ends_at
    assert (kept.renew_at == math.inf) == (now + life >= until)
    assert kept.headers == ((b"authorization", b"Bearer x"),)
    assert "Bearer" not in repr(kept)
