"""Tokens kept by whom they are for: renewed ahead of their end, asked for once however many wait.

1. A token is used until shortly before its end, and not beyond the end of what it was exchanged for.
2. In the last quarter of that time, the next request has a new one fetched and goes on with the old one.
3. Without a token a request waits for one; all requests for the same one wait for one fetch.
4. What was said of one token is remembered for that one for a while, so that nobody's token can keep others from
   theirs. A server that does not answer, or says that it has too much to do, is left alone for a while by all, also by
   those who wait for their turn; then one request tries whether it is back, and nobody waits long for that one. One
   that refuses us is left alone by all as well: with each request it would get the same wrong secret again.
5. A token that a server rejected is replaced; while no other can be had it is still the best there is.
6. The number of tokens and of refusals is bounded; those not used for longest go first.
"""

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from mcp_middleware.oauth.http import OVERLOADED, BusyError, FetchError, IssuerUnavailableError
from mcp_middleware.oauth.tokens import IssuedToken, TokenRequestError
from mcp_middleware.types import Clock

from .interface import CredentialRefusedError, CredentialUnavailableError

__all__ = ["KeptToken", "TokenKeeper", "keep"]

logger = logging.getLogger("mcp_middleware.credentials")

Issue: TypeAlias = Callable[[], Awaitable[IssuedToken]]

_MARGIN: Final = 5.0
"""Seconds before its end from which a token is not sent any more: it must last until the server has checked it. Never
more than a tenth of the token's life."""
_RENEWED_AT: Final = 0.75
"""Part of its life after which a token is renewed."""
_COOLDOWN: Final = 10.0
"""Seconds that a server which does not answer is left alone, and that a token which a server rejected must have lived
to be replaced: one that rejects new ones would have a token fetched for each request."""
_PATIENCE: Final = 1.0
"""Seconds that a request waits for a better token than the one that a server rejected, or for an authorization server
that did not answer the last time."""
_REFUSED_FOR: Final = 30.0
"""Seconds that a refusal holds."""
_MAX_REFUSALS: Final = 1024
_OF_US: Final = frozenset({"invalid_client", "unauthorized_client", "unsupported_grant_type"})
"""What a server says before it looks at any token (RFC 6749 section 5.2): who asks is not known, or may not ask so."""
_ELSEWHERE: Final = range(300, 400)
"""Statuses of a server that has moved, or that something else stands before."""


@dataclass(slots=True)
class KeptToken:
    """A token with its times, in Unix seconds."""

    value: str = field(repr=False)
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    """As a request carries it."""
    asked_at: float
    renew_at: float
    """When to ask for the next one; infinite where no next one would live longer."""
    ends_at: float
    rejected: bool = False
    """A server did not accept it."""


def keep(token: IssuedToken, *, now: float, until: float = math.inf) -> KeptToken:
    """When ``token``, asked for at ``now``, is renewed and not used any more; ``until`` is the end of what it was
    exchanged for. Unix seconds."""
    ends = min(token.expires_at, until)
    life = ends - now
    usable = ends - min(_MARGIN, life / 10)
    renewed = now + life * _RENEWED_AT if ends < until else math.inf
    header = (b"authorization", b"Bearer " + token.value.encode("ascii"))
    return KeptToken(token.value, (header,), now, renewed, usable)


class _Refusal(NamedTuple):
    message: str
    caller: bool | None
    """Whether it is about the one who calls; None where the server decided nothing, and may the next time."""
    since: float
    """Unix seconds."""

    @property
    def seconds(self) -> float:
        """How long it holds."""
        return _COOLDOWN if self.caller is None else _REFUSED_FOR


class TokenKeeper:
    """Keeps up to ``size`` tokens. ``refuses_caller``: whether what a server said is about the one who calls.

    ``clock`` gives Unix seconds. Where it is set back, pauses are over: they must not grow to hours.
    """

    def __init__(
        self,
        *,
        issuer: str,
        size: int,
        refuses_caller: Callable[[TokenRequestError], bool],
        clock: Clock,
    ) -> None:
        self._issuer = issuer
        self._size = size
        self._refuses_caller = refuses_caller
        self._clock = clock
        self._tokens: OrderedDict[Hashable, KeptToken] = OrderedDict()
        self._refusals: OrderedDict[Hashable, _Refusal] = OrderedDict()
        self._fetches: dict[Hashable, asyncio.Task[KeptToken | None]] = {}
        self._refusal_of_all: _Refusal | None = None
        """That the server did not answer, or refused us, if that was the last that is known of it."""
        self._silence: asyncio.Future[None] | None = None
        """Done once it does not answer."""

    async def get(self, key: Hashable, issue: Issue, *, until: float = math.inf) -> KeptToken:
        """The token for ``key``; ``issue`` asks for one. Nothing is used at or after ``until`` (Unix seconds).

        Raises CredentialUnavailableError and CredentialRefusedError.
        """
        now = self._clock()
        kept = self._tokens.get(key)
        if kept is not None and now < kept.ends_at:
            self._tokens.move_to_end(key)
            if now >= kept.renew_at and self._why_not(key) is None:
                fetch = self._fetch(key, issue, until)
                if kept.rejected:
                    return await _result(fetch, _PATIENCE) or kept
                kept.renew_at = now + _COOLDOWN
            return kept
        why_not = self._why_not(key)
        if why_not is None:
            kept = await self._wait(self._fetch(key, issue, until))
            if kept is not None:
                return kept
            why_not = self._why_not(key)
        raise why_not or CredentialUnavailableError(f"{self._issuer} gives no token now")

    async def _wait(self, fetch: asyncio.Task[KeptToken | None]) -> KeptToken | None:
        """What ``fetch`` brings. It is not waited for long once the server does not answer others."""
        loop = asyncio.get_running_loop()
        if self._refusal_of_all is None or self._refusal_of_all.caller is not None:
            if self._silence is None or self._silence.get_loop() is not loop:
                self._silence = loop.create_future()
            either: set[asyncio.Future[Any]] = {fetch, self._silence}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return await _result(fetch, _PATIENCE)

    def put(self, key: Hashable, token: KeptToken) -> None:
        """Keep ``token``, which shows that the server issues some."""
        self._refusal_of_all = None
        self._refusals.pop(key, None)
        self._tokens[key] = token
        self._tokens.move_to_end(key)
        if len(self._tokens) > self._size:
            self._tokens.popitem(last=False)

    def rejected(self, key: Hashable, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """A server rejected ``headers``: replace them, unless they are new. True where others are worth a try."""
        kept = self._tokens.get(key)
        if kept is None or kept.headers != tuple(headers):
            return True
        if _left(kept.asked_at, _COOLDOWN, self._clock()):
            return False
        kept.rejected, kept.renew_at = True, -math.inf
        return self._why_not(key) is None

    async def aclose(self) -> None:
        """Stop the fetches that run."""
        fetches, self._fetches = self._fetches, {}
        self._end_waiting()
        for fetch in fetches.values():
            fetch.cancel()
        if fetches:
            await asyncio.wait(fetches.values())

    def _why_not(self, key: Hashable) -> CredentialRefusedError | CredentialUnavailableError | None:
        """Why no token can be asked for now; None where one can."""
        now = self._clock()
        wait = 0.0
        refusal = self._refusals.get(key)
        if refusal is not None:
            wait = _left(refusal.since, refusal.seconds, now)
            if not wait:
                del self._refusals[key]
            elif refusal.caller is not None:
                return CredentialRefusedError(refusal.message, caller=refusal.caller)
        of_all = self._refusal_of_all
        if of_all is not None:
            left = _left(of_all.since, of_all.seconds, now)
            if not left and key not in self._fetches and not all(fetch.done() for fetch in self._fetches.values()):
                left = _PATIENCE  # one request tries whether it is back
            if left and of_all.caller is not None:
                return CredentialRefusedError(of_all.message, caller=of_all.caller)
            wait = max(wait, left)
        return CredentialUnavailableError(f"{self._issuer} gives no token now", retry_after=wait) if wait else None

    def _fetch(self, key: Hashable, issue: Issue, until: float) -> asyncio.Task[KeptToken | None]:
        """The fetch that runs, or a new one. A caller that goes away does not end it for the others."""
        fetch = self._fetches.get(key)
        if fetch is None or fetch.done():
            fetch = asyncio.create_task(self._refresh(key, issue, until), name=f"token of {self._issuer}")
            self._fetches[key] = fetch
            fetch.add_done_callback(partial(self._forget, key))
        return fetch

    def _forget(self, key: Hashable, fetch: asyncio.Task[KeptToken | None]) -> None:
        if self._fetches.get(key) is fetch:
            del self._fetches[key]

    async def _refresh(self, key: Hashable, issue: Issue, until: float) -> KeptToken | None:
        now = self._clock()
        try:
            token = await issue()
        except CredentialRefusedError as error:
            self._refuse(key, str(error), error.caller)
        except TokenRequestError as error:
            if error.status in OVERLOADED:
                self._be_silent(str(error))
            elif error.permanent and error.error in _OF_US:
                self._refuse_all(str(error))
            else:
                self._refusal_of_all = None
                self._refuse(key, str(error), self._refuses_caller(error) if error.permanent else None)
        except BusyError as error:
            self._refuse(key, str(error), None)
        except FetchError as error:
            if error.status is None or error.status in OVERLOADED or error.status in _ELSEWHERE:
                self._be_silent(str(error))
            else:  # an answer that is too long, or compressed: what came of this token, and says nothing of others
                self._refusal_of_all = None
                self._refuse(key, str(error), None)
        except IssuerUnavailableError as error:
            self._be_silent(str(error))
        except Exception:
            logger.exception("asking %s for a token failed in a way that is not foreseen", self._issuer)
            self._refuse(key, "an error of our own", None)
        else:
            kept = keep(token, now=now, until=until)
            if self._clock() < kept.ends_at:
                self.put(key, kept)
                return kept
            self._refuse(key, f"{self._issuer} gave a token that ended on its way", None)
        return None

    def _refuse(self, key: Hashable, message: str, caller: bool | None) -> None:
        level = {True: logging.INFO, False: logging.ERROR, None: logging.WARNING}[caller]
        logger.log(level, "no token was issued: %s", message)
        self._refusals[key] = _Refusal(message, caller, self._clock())
        self._refusals.move_to_end(key)
        if len(self._refusals) > _MAX_REFUSALS:
            self._refusals.popitem(last=False)

    def _refuse_all(self, message: str) -> None:
        logger.error("no token was issued: %s", message)
        self._refusal_of_all = _Refusal(message, False, self._clock())

    def _be_silent(self, message: str) -> None:
        logger.warning("%s gives no tokens: %s", self._issuer, message)
        self._refusal_of_all = _Refusal(message, None, self._clock())
        self._end_waiting()

    def _end_waiting(self) -> None:
        silence, self._silence = self._silence, None
        if silence is not None:
            silence.set_result(None)


def _left(since: float, seconds: float, now: float) -> float:
    """How much is left of a pause; nothing where the clock was set back beyond its beginning."""
    return since + seconds - now if since <= now < since + seconds else 0.0


async def _result(fetch: asyncio.Task[KeptToken | None], timeout: float | None) -> KeptToken | None:  # noqa: ASYNC109
    """What ``fetch`` brought, if it did within ``timeout`` seconds. It goes on for the others."""
    await asyncio.wait({fetch}, timeout=timeout)
    return fetch.result() if fetch.done() and not fetch.cancelled() else None
