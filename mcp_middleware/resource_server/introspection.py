"""Asking the issuer about a token (RFC 7662): what its answer must be (pure), and the asking.

The issuer is protected from us, and our callers from the issuer:

1. One question for each token at a time, whoever asks; few questions at once; a bounded number of them waiting.
2. Tokens that turn out to be none use up an allowance. When it is gone, tokens that are not known are answered "not
   now" for a moment, so that a flood of them drowns neither the issuer nor this process. A token that was good the
   last time is asked about again all the same, and does not wait behind the others.
3. An issuer that does not answer is left alone for a second, then two, and so on up to ten; one question then tries
   whether it is back. Nobody waits for one that is known to be silent.
"""

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.http import OVERLOADED, BusyError, FetchError, IssuerUnavailableError, OAuthHTTPClient
from mcp_middleware.oauth.metadata import MetadataSource
from mcp_middleware.types import Clock

from .allowance import Allowance
from .claims import Identity, InvalidTokenError, identity_of, shown
from .issuers import Introspection, Issuer
from .tokens import check_audience, check_purpose, check_times, json_object

__all__ = ["Introspected", "Introspector", "check_introspected", "parse_introspection"]

logger = logging.getLogger("mcp_middleware.resource_server")

_MAX_BODY_BYTES: Final = 32 * 1024
"""Of an answer about one token; thousands of them are kept."""
_AT_ONCE: Final = 16
"""Questions to one issuer."""
_RESERVED: Final = 4
"""More of them, about tokens that were good the last time, where those wait for others."""
_WAITING: Final = 512
"""Questions that wait for their turn; more are answered "not now"."""
_FRUITLESS: Final = 50.0
"""Questions a second about tokens that are none. One costs us about 1 ms, and the issuer a look-up."""
_FRUITLESS_BURST: Final = 200.0
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 10.0
"""Seconds that an issuer which does not answer is left alone."""
_SILENT: Final = 1.0
"""Seconds without an answer after which nobody waits for the next one."""
_PATIENCE: Final = 0.03
"""Seconds that a caller waits for an issuer which was silent."""
_MOVED: Final = frozenset({*range(300, 400), 404, 405, 410})
"""Answers of whatever stands where the endpoint was."""
_MADE_UP: Final = "mcp-middleware-asks-whether-you-answer"
"""A token that nobody issued."""


class Introspected(NamedTuple):
    """What an issuer says of a token that is good here."""

    identity: Identity
    expires_at: int | None
    """Unix seconds; None where the issuer does not say."""
    claims: dict[str, Any]


def parse_introspection(body: bytes) -> dict[str, Any] | None:
    """The claims of an active token, None of another one (RFC 7662 section 2.2).

    Raises InvalidTokenError where ``active`` is no boolean: then nothing was said in the token's favour. Raises
    ValueError where the body is no such answer.
    """
    if len(body) > _MAX_BODY_BYTES:
        raise ValueError(f"more than {_MAX_BODY_BYTES} bytes")
    try:
        answer = json_object(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    active = answer.pop("active", None)
    if active is True:
        return answer
    if active is False:
        return None
    raise InvalidTokenError(f"active is {shown(active)}, no boolean")


def check_introspected(
    claims: Mapping[str, Any], issuer: Issuer, *, resource: str, now: float, leeway: float
) -> Introspected:
    """What the claims of an active token say; ``now`` and ``leeway`` as in ``check_claims``. Raises InvalidTokenError.

    An issuer that leaves ``iss`` out is the one that was asked; one that leaves ``exp`` out says by each new answer
    whether the token still holds.
    """
    if claims.get("iss", issuer.issuer) != issuer.issuer:
        raise InvalidTokenError("iss is another issuer")
    check_audience(claims, issuer, resource)
    ends = check_times(claims, now=now, leeway=leeway)
    kind = claims.get("token_type")
    if kind is not None and (not isinstance(kind, str) or kind.lower() != "bearer"):
        raise InvalidTokenError(f"token_type {shown(kind)} is no bearer token")
    check_purpose(claims, typed=False)
    return Introspected(identity_of(claims, issuer.mapping), ends, {**claims, "iss": issuer.issuer})


class _Answer(NamedTuple):
    body: bytes
    asked_at: float
    """On the monotonic clock: what was revoked after this may not be in the answer."""


class Introspector:
    """Asks one issuer about tokens. ``clock`` gives Unix seconds, ``monotonic`` measures pauses."""

    def __init__(
        self,
        issuer: Issuer,
        options: Introspection,
        client: OAuthHTTPClient,
        metadata: MetadataSource,
        *,
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        self.issuer = issuer
        self._options = options
        self._client = client
        self._metadata = metadata
        self._clock = clock
        self._monotonic = monotonic
        self._asking: dict[bytes, asyncio.Task[_Answer | IssuerUnavailableError]] = {}
        self._turns, self._reserved = asyncio.Semaphore(_AT_ONCE), asyncio.Semaphore(_RESERVED)
        self._fruitless = Allowance(_FRUITLESS, most=_FRUITLESS_BURST, clock=monotonic)
        self._failures = 0
        """In a row."""
        self._retry_at = -math.inf
        self.answered = False
        """Whether it has ever answered."""
        self._trying = False
        """One question is under way that tries whether the issuer is back."""
        self._silent = False

    async def ask(self, token: str, digest: bytes, *, was_good: bool) -> tuple[bytes, float]:
        """The body of the issuer's answer about ``token``, whose hash is ``digest``, and when it was asked, on the
        monotonic clock. ``was_good``: the last answer called it so. Raises IssuerUnavailableError."""
        asking = self._asking.get(digest)
        if asking is None:
            trial = self._admit(was_good)
            # A task: a caller that goes away does not end it for the others.
            question = self._answer(token, trial, was_good)
            asking = asyncio.create_task(question, name=f"introspection at {self.issuer.issuer}")
            self._asking[digest] = asking
            asking.add_done_callback(lambda _: self._asking.pop(digest, None))
        await asyncio.wait({asking}, timeout=_PATIENCE if self._silent else None)
        if not asking.done() or asking.cancelled():
            raise self._unavailable()
        answer = asking.result()
        if isinstance(answer, IssuerUnavailableError):
            raise IssuerUnavailableError(str(answer), retry_after=answer.retry_after)
        return answer

    def refused(self) -> None:
        """Note that a question was about a token that is none."""
        self._fruitless.spend(1.0)

    async def check(self) -> None:
        """Ask about a token that nobody issued. Raises ConfigurationError where the answer shows that the
        configuration is wrong, FetchError where none comes."""
        name = self.issuer.issuer
        try:
            endpoint = await self._endpoint()
        except IssuerUnavailableError as error:
            raise self._metadata.failure or FetchError(str(error)) from None
        status, body = await self._post(endpoint, _MADE_UP)
        failure = FetchError(f"{endpoint} answered {status}", status=status)
        if not failure.final:
            raise failure
        said = ascii(body[:200].decode("utf-8", "replace"))
        client = self._options.authentication.client_id
        if status != 200:
            raise ConfigurationError(
                f"the issuer {name}: the introspection endpoint {endpoint} answered {status} {said} to client_id "
                f"{client!r}; it must answer 200 to a client that may introspect"
            )
        try:
            claims = parse_introspection(body)
        except (ValueError, InvalidTokenError) as error:
            raise ConfigurationError(
                f"the issuer {name}: the introspection endpoint {endpoint} answered {said} ({error}); it must answer "
                "as RFC 7662 says"
            ) from None
        if claims is not None:
            raise ConfigurationError(
                f"the issuer {name}: the introspection endpoint {endpoint} called a made-up token active"
            )
        self.answered = True
        self._note_answer()

    async def aclose(self) -> None:
        """Stop what is being asked."""
        asking = set(self._asking.values())
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking)
        self._asking.clear()
        self._trying = False
        # Old ones belong to an event loop that may have ended.
        self._turns, self._reserved = asyncio.Semaphore(_AT_ONCE), asyncio.Semaphore(_RESERVED)

    def _admit(self, was_good: bool) -> bool:
        """Whether a new question tries if the issuer is back. Raises IssuerUnavailableError where none may be asked."""
        if not was_good and (len(self._asking) >= _WAITING or not self._fruitless.left):
            raise IssuerUnavailableError(f"too many tokens that {self.issuer.issuer} would have to be asked about")
        if not self._failures:
            return False
        if self._trying or self._monotonic() < self._retry_at:
            raise self._unavailable()
        self._trying = True
        return True

    async def _answer(self, token: str, trial: bool, was_good: bool) -> _Answer | IssuerUnavailableError:
        turns = self._reserved if was_good and self._turns.locked() else self._turns
        try:
            async with turns:
                return await self._answer_now(token, trial, was_good)
        finally:
            if trial:
                self._trying = False

    async def _answer_now(self, token: str, trial: bool, was_good: bool) -> _Answer | IssuerUnavailableError:
        if not trial and (self._failures or not (was_good or self._fruitless.left)):
            return self._unavailable()  # that became so while it waited
        begun, asked_at = asyncio.get_running_loop().time(), self._monotonic()
        try:
            endpoint = await self._endpoint()
            status, body = await self._post(endpoint, token)
        except IssuerUnavailableError as error:
            return self._note_failure(str(error), asyncio.get_running_loop().time() - begun, trial)
        except BusyError as error:  # of others at the same origin; nothing is known of this one
            logger.warning("%s could not be asked about a token: %s", self.issuer.issuer, error)
            return self._unavailable()
        except FetchError as error:
            if error.status is None or error.status in _MOVED:
                self._metadata.doubt()
            if error.status is None:
                return self._note_failure(str(error), asyncio.get_running_loop().time() - begun, trial)
            return self._note_strange(str(error))
        except Exception:
            logger.exception("introspection failed in a way that is not foreseen")
            return self._note_failure("an error of our own", 0.0, trial)
        if status in _MOVED:
            self._metadata.doubt()
        if status in OVERLOADED:
            return self._note_failure(f"{endpoint} answered {status}", 0.0, trial)
        if status != 200:  # 401 means us: the caller's token was not judged
            return self._note_strange(f"the introspection endpoint {endpoint} answered {status}")
        self.answered = True
        self._note_answer()
        return _Answer(body, asked_at)

    async def _endpoint(self) -> str:
        return self._options.endpoint or (await self._metadata.get()).endpoint("introspection_endpoint")

    async def _post(self, endpoint: str, token: str) -> tuple[int, bytes]:
        form, headers = {"token": token, "token_type_hint": "access_token"}, dict[str, str]()
        known = self._metadata.known
        self._options.authentication.apply(
            form,
            headers,
            audience=self.issuer.issuer,
            now=self._clock(),
            methods=() if known is None else known.introspection_endpoint_auth_methods,
        )
        private = self.issuer.allow_private_addresses
        return await self._client.post(endpoint, form, headers=headers, allow_private=private)

    def _note_answer(self) -> None:
        self._failures = 0
        self._silent = False

    def _note_strange(self, reason: str) -> IssuerUnavailableError:
        """The issuer is there. Whoever finds a token that it fails on must not stop the questions about others."""
        self._note_answer()
        self.refused()
        logger.error("%s did not judge a token: %s", self.issuer.issuer, reason)
        return IssuerUnavailableError(f"{self.issuer.issuer} does not introspect this token")

    def _note_failure(self, reason: str, seconds: float, trial: bool) -> IssuerUnavailableError:
        """Leave the issuer alone for a while. Questions that were under way together fail as one."""
        if not self._failures or trial:
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._failures, 10))
            self._failures += 1
            self._retry_at = self._monotonic() + pause
            self._silent = seconds >= _SILENT
            logger.warning("%s could not be asked about a token: %s", self.issuer.issuer, reason)
        return self._unavailable()

    def _unavailable(self) -> IssuerUnavailableError:
        wait = self._retry_at - self._monotonic() if self._failures else 0.0
        return IssuerUnavailableError(f"{self.issuer.issuer} cannot be asked about a token", retry_after=wait)
