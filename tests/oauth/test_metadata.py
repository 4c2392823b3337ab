"""Discovery of an authorization server over a socket, and what is believed of its metadata (F8, F4)."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mcp_middleware.oauth import metadata
from mcp_middleware.oauth.http import FetchError, IssuerUnavailableError, OAuthHTTPClient, RefusedAddressError
from mcp_middleware.oauth.metadata import MetadataSource, WrongMetadataError, discover, discovery_urls, parse_metadata
from mcp_middleware.testing import FakeClock
from tests.support import serve

ISSUER = "https://login.example.com"
URL = f"{ISSUER}/.well-known/oauth-authorization-server"


def document(**changes: Any) -> dict[str, Any]:
    made = {
        "issuer": ISSUER,
        "token_endpoint": f"{ISSUER}/token",
        "introspection_endpoint": f"{ISSUER}/introspect",
        "jwks_uri": "https://keys.example.com/jwks?p=1",
        "revocation_endpoint": f"{ISSUER}/revoke",
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


def body(**changes: Any) -> bytes:
    return json.dumps(document(**changes)).encode()


def test_where_metadata_may_be() -> None:
    assert discovery_urls("https://a.example/t/1/") == [
        "https://a.example/.well-known/oauth-authorization-server/t/1",
        "https://a.example/.well-known/openid-configuration/t/1",
        "https://a.example/t/1/.well-known/openid-configuration",
    ]
    assert len(discovery_urls("https://a.example")) == 2


def test_what_a_server_says_of_itself() -> None:
    metadata = parse_metadata(body(), url=URL, issuer=ISSUER)
    assert metadata.issuer == ISSUER
    assert metadata.endpoint("token_endpoint") == metadata.token_endpoint == f"{ISSUER}/token"
    assert metadata.endpoint("jwks_uri") == "https://keys.example.com/jwks?p=1"
    assert metadata.token_endpoint_auth_methods == ("private_key_jwt",)
    assert metadata.document["revocation_endpoint"] == f"{ISSUER}/revoke"
    assert json.loads(metadata.body) == metadata.document
    assert repr(metadata.body) not in repr(metadata)


@pytest.mark.parametrize("methods", [None, [], "client_secret_basic", [1], {}])
def test_a_server_that_says_nothing_of_it_takes_basic(methods: Any) -> None:
    """RFC 8414 section 2."""
    metadata = parse_metadata(body(token_endpoint_auth_methods_supported=methods), url=URL, issuer=ISSUER)
    assert metadata.token_endpoint_auth_methods == ("client_secret_basic",)
    assert metadata.introspection_endpoint_auth_methods == ("client_secret_basic",)


def test_what_introspection_wants_may_be_something_else() -> None:
    said = {"introspection_endpoint_auth_methods_supported": ["client_secret_post"]}
    assert parse_metadata(body(), url=URL, issuer=ISSUER).introspection_endpoint_auth_methods == ("private_key_jwt",)
    found = parse_metadata(body(**said), url=URL, issuer=ISSUER)
    assert found.introspection_endpoint_auth_methods == ("client_secret_post",)
    assert found.token_endpoint_auth_methods == ("private_key_jwt",)


@pytest.mark.parametrize(
    "issuer", [None, 1, "", ISSUER + "/", ISSUER.upper(), "https://evil.example", "http://login.example.com", [ISSUER]]
)
def test_another_issuers_metadata_says_what_came_and_what_was_expected(issuer: Any) -> None:
    """F8, RFC 8414 section 3.3."""
    with pytest.raises(WrongMetadataError) as caught:
        parse_metadata(body(issuer=issuer), url=URL, issuer=ISSUER)
    assert str(caught.value) == f"{URL} has the issuer {issuer!a}; '{ISSUER}' was expected"


BAD_ENDPOINTS = [
    1,
    "",
    "/jwks",
    "http://keys.example.com/jwks",
    "http://127.0.0.1/jwks",
    "https://127.0.0.1/jwks",
    "https://localhost/jwks",
    "https://x.localhost/jwks",
    "https://169.254.169.254/latest",
    "https://10.0.0.1/jwks",
    "https://[::1]/jwks",
    "https://[fd00::1]/jwks",
    "https://[::ffff:10.0.0.1]/jwks",
    "https://[64:ff9b::10.0.0.1]/jwks",
    "file:///etc/passwd",
    "https://user:pass@keys.example.com/",
    "https://keys.example.com/jwks?p=1#x",
    "https://keys.example.com/jwks?p=\n",
    ["https://keys.example.com/"],
]


@pytest.mark.parametrize("value", BAD_ENDPOINTS)
@pytest.mark.parametrize("name", ["jwks_uri", "token_endpoint"])
def test_an_endpoint_is_not_just_anywhere(name: Any, value: Any) -> None:
    """F4. The rest of the metadata stays good, for those who do not need that endpoint."""
    metadata = parse_metadata(body(**{name: value}), url=URL, issuer=ISSUER)
    assert getattr(metadata, name) is None
    with pytest.raises(WrongMetadataError, match=f"^{URL} has the {name} "):
        metadata.endpoint(name)
    assert metadata.endpoint("introspection_endpoint")


def test_an_endpoint_that_is_missing_is_said_to_be() -> None:
    metadata = parse_metadata(body(introspection_endpoint=None), url=URL, issuer=ISSUER)
    with pytest.raises(WrongMetadataError, match=f"^{URL} names no introspection_endpoint$"):
        metadata.endpoint("introspection_endpoint")


def test_an_issuer_may_be_where_its_endpoints_are() -> None:
    for issuer, place, allowed in [
        ("https://10.0.0.1/realm", "https://10.0.0.1/jwks", False),
        ("http://127.0.0.1:9000", "http://localhost:9001/jwks", False),
        ("https://login.example.com", "https://10.0.0.1/jwks", True),
    ]:
        metadata = parse_metadata(body(issuer=issuer, jwks_uri=place), url=URL, issuer=issuer, allow_private=allowed)
        assert metadata.jwks_uri == place
    metadata = parse_metadata(body(jwks_uri="https://127.0.0.1/"), url=URL, issuer=ISSUER, allow_private=True)
    assert metadata.jwks_uri is None


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"1", b"<html>", b"\xff\xfe", b"[" * 100_000, b'{"issuer": '])
def test_what_is_no_metadata_is_refused(text: bytes) -> None:
    with pytest.raises(FetchError, match="no JSON object"):
        parse_metadata(text, url=URL, issuer=ISSUER)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(f"{ISSUER}/x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = ["issuer", "token_endpoint", "introspection_endpoint", "jwks_uri", "token_endpoint_auth_methods_supported"]


@given(
    st.binary(max_size=100) | st.dictionaries(st.sampled_from(NAMES), JSON).map(lambda made: json.dumps(made).encode())
)
def test_no_metadata_breaks_the_parser(text: bytes) -> None:
    try:
        metadata = parse_metadata(text, url=URL, issuer=ISSUER)
    except FetchError:
        return
    assert metadata.issuer == ISSUER
    assert all(isinstance(method, str) for method in metadata.token_endpoint_auth_methods)


@given(st.dictionaries(st.sampled_from(NAMES[1:]), JSON))
def test_no_endpoint_breaks_the_parser(changes: dict[str, Any]) -> None:
    metadata = parse_metadata(json.dumps(document() | changes).encode(), url=URL, issuer=ISSUER)
    for found in (metadata.token_endpoint, metadata.introspection_endpoint, metadata.jwks_uri):
        assert found is None or found.startswith("https://")


def discovery_places(issuer: "Issuer") -> list[str]:
    return [urlsplit(url).path for url in discovery_urls(issuer.issuer)]


class Issuer:
    """An authorization server that has metadata and nothing else."""

    def __init__(self) -> None:
        self.url = ""
        self.app = Starlette(routes=[Route("/{path:path}", self._answer)])
        self.reset()

    def reset(self) -> None:
        self.path = ""
        self.places = {"/.well-known/oauth-authorization-server"}
        self.status = 200
        self.text: str | None = None
        """In place of metadata."""
        self.changes: dict[str, Any] = {}
        self.asked: Counter[str] = Counter()
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = asyncio.Event()

    @property
    def issuer(self) -> str:
        return self.url + self.path

    async def _answer(self, request: Request) -> Response:
        self.asked[request.url.path] += 1
        self.waiting.set()
        await self.open.wait()
        if request.url.path not in self.places:
            return Response(status_code=404)
        made = {"issuer": self.issuer, "token_endpoint": f"{self.url}/token"} | self.changes
        return Response(self.text or json.dumps(made), self.status, media_type="application/json")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running() -> AsyncIterator[Issuer]:
    made = Issuer()
    async with serve(made.app) as made.url:
        yield made


@pytest.fixture
def issuer(running: Issuer) -> Issuer:
    running.reset()
    return running


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("", "/.well-known/openid-configuration"),
        ("/t", "/.well-known/oauth-authorization-server/t"),
        ("/t", "/.well-known/openid-configuration/t"),
        ("/t/", "/t/.well-known/openid-configuration"),
    ],
)
async def test_metadata_is_found_in_any_of_its_places(issuer: Issuer, path: str, place: str) -> None:
    issuer.path, issuer.places = path, {place}
    found = await discover(OAuthHTTPClient(), issuer.issuer)
    assert found.url == issuer.url + place


async def test_a_place_with_another_issuers_metadata_is_passed_over(issuer: Issuer) -> None:
    """As of an OpenID provider that serves several tenants; if none is right, the first says what came."""
    issuer.places = {"/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"}
    issuer.changes = {"issuer": "https://other.example"}
    with pytest.raises(WrongMetadataError, match=r"oauth-authorization-server has the issuer 'https://other\.example'"):
        await discover(OAuthHTTPClient(), issuer.issuer)
    assert sum(issuer.asked.values()) == 2


@pytest.mark.parametrize(("status", "final"), [(200, True), (404, True), (429, False), (503, False)])
async def test_where_nothing_is_found_it_says_what_was_expected(issuer: Issuer, status: int, final: bool) -> None:
    issuer.path, issuer.status = "/t", status
    issuer.places = set(discovery_places(issuer))
    issuer.text = "<html>"
    with pytest.raises(FetchError) as caught:
        await discover(OAuthHTTPClient(), issuer.issuer)
    assert caught.value.status == status
    assert caught.value.final is final
    assert all(place in str(caught.value) for place in issuer.places)
    expected = f"; the metadata of '{issuer.issuer}' was expected at one of them"
    assert str(caught.value).endswith(expected) is final


async def test_an_issuer_on_a_private_network_is_not_asked() -> None:
    async def look_up(host: str, port: int) -> list[str]:
        return ["10.0.0.1"]

    client = OAuthHTTPClient(resolve=look_up)
    with pytest.raises(RefusedAddressError, match="is private"):
        await discover(client, ISSUER)
    with pytest.raises(RefusedAddressError, match="is private"):
        await MetadataSource(ISSUER, client).get()


async def fetched(source: MetadataSource) -> None:
    assert source._fetch is not None
    await asyncio.wait({source._fetch})


async def test_metadata_is_kept_and_fetched_again_in_the_background(issuer: Issuer) -> None:
    clock = FakeClock()
    source = MetadataSource(issuer.issuer, OAuthHTTPClient(), lifetime=100, clock=clock)
    assert source.known is None
    first = await source.get()
    clock.advance(99)
    assert await source.get() is first
    issuer.changes = {"jwks_uri": f"{issuer.url}/jwks"}
    clock.advance(1)
    assert await source.get() is first
    await fetched(source)
    assert (await source.get()).jwks_uri == f"{issuer.url}/jwks"
    assert sum(issuer.asked.values()) == 2


async def test_all_who_ask_wait_for_one_fetch_and_survive_one_who_goes_away(issuer: Issuer) -> None:
    issuer.open.clear()
    source = MetadataSource(issuer.issuer, OAuthHTTPClient())
    asking = [asyncio.create_task(source.get()) for _ in range(10)]
    await issuer.waiting.wait()
    asking[0].cancel()
    issuer.open.set()
    found = await asyncio.gather(*asking[1:])
    assert len(set(map(id, found))) == 1
    assert sum(issuer.asked.values()) == 1


async def test_an_outage_is_not_asked_again_before_the_cooldown_ends(issuer: Issuer) -> None:
    """Case 42."""
    clock = FakeClock()
    issuer.places = set()
    source = MetadataSource(issuer.issuer, OAuthHTTPClient(), cooldown=10, clock=clock)
    for _ in range(2):
        with pytest.raises(IssuerUnavailableError, match="answered 404") as caught:
            await source.get()
    assert caught.value.retry_after == 10
    assert sum(issuer.asked.values()) == 2  # one discovery, two places
    issuer.places = {"/.well-known/oauth-authorization-server"}
    clock.advance(10)
    assert (await source.get()).issuer == issuer.issuer


async def test_old_metadata_serves_while_the_issuer_is_down(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    source = MetadataSource(issuer.issuer, OAuthHTTPClient(), lifetime=100, cooldown=10, clock=clock)
    first = await source.get()
    issuer.status = 503
    clock.advance(100_000)
    assert await source.get() is first
    await fetched(source)
    assert await source.get() is first
    assert sum(issuer.asked.values()) == 3
    assert "could not be fetched" in caplog.text  # nobody else would say it


async def test_who_is_told_of_an_outage_is_the_one_to_log_it(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    issuer.places = set()
    with pytest.raises(IssuerUnavailableError, match="cannot be fetched"):
        await MetadataSource(issuer.issuer, OAuthHTTPClient()).get()
    assert not caplog.records


async def test_metadata_that_turns_wrong_is_told_while_there_is_no_other(issuer: Issuer) -> None:
    clock = FakeClock()
    issuer.changes = {"issuer": "https://other.example"}
    source = MetadataSource(issuer.issuer, OAuthHTTPClient(), clock=clock)
    for _ in range(2):
        with pytest.raises(WrongMetadataError):
            await source.get()
    assert sum(issuer.asked.values()) == 2


async def test_what_is_doubted_is_fetched_again_once_a_cooldown(issuer: Issuer) -> None:
    clock = FakeClock()
    source = MetadataSource(issuer.issuer, OAuthHTTPClient(), cooldown=10, clock=clock)
    first = await source.get()
    source.doubt()
    assert await source.get() is first
    clock.advance(10)
    source.doubt()
    issuer.changes = {"jwks_uri": f"{issuer.url}/jwks"}
    assert (await source.get()).jwks_uri == f"{issuer.url}/jwks"
    source.doubt()
    await source.get()
    assert sum(issuer.asked.values()) == 2
    clock.advance(10)
    source.doubt()
    issuer.status = 503
    second = source.known
    assert [await source.get() for _ in range(3)] == [second] * 3  # better than none
    assert sum(issuer.asked.values()) == 4


async def test_a_fault_of_ours_is_an_outage_too(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenClient(OAuthHTTPClient):
        async def get(self, url: str, *, allow_private: bool = False) -> bytes:
            raise RuntimeError("unforeseen")

    with pytest.raises(IssuerUnavailableError, match="an error of our own"):
        await MetadataSource(ISSUER, BrokenClient()).get()
    assert "unforeseen" in caplog.text


async def test_an_issuer_that_hangs_is_given_up(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 42."""
    monkeypatch.setattr(metadata, "_TIMEOUT", 0.05)
    issuer.open.clear()
    source = MetadataSource(issuer.issuer, OAuthHTTPClient())
    with pytest.raises(IssuerUnavailableError, match=r"no answer within 0\.05 s"):
        await source.get()
    assert isinstance(source.failure, FetchError)
    issuer.open.set()


async def test_closing_ends_a_fetch(issuer: Issuer) -> None:
    issuer.open.clear()
    source = MetadataSource(issuer.issuer, OAuthHTTPClient())
    asking = asyncio.create_task(source.get())
    await issuer.waiting.wait()
    await source.aclose()
    with pytest.raises(IssuerUnavailableError):
        await asking
    issuer.open.set()
    await source.aclose()
    assert (await source.get()).issuer == issuer.issuer
