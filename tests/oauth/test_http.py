"""F4 over real sockets: what the client connects to, follows, reads and sends."""

import asyncio
import gc
import gzip
import logging
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth import http
from mcp_middleware.oauth.http import BusyError, FetchError, OAuthHTTPClient, RefusedAddressError, look_up
from tests.certificates import certificate, server_context
from tests.oauth.servers import http_answer, raw_server


class Names:
    """A resolver whose answers a test decides; one list for each look-up, the last for all further ones."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def test_a_document_is_fetched() -> None:
    async with raw_server() as server:
        server.answer = http_answer(b'{"a": 1}')
        assert await OAuthHTTPClient().get(f"http://127.0.0.1:{server.port}/x?y=1") == b'{"a": 1}'
        assert server.received[0].startswith(b"GET /x?y=1 HTTP/1.1\r\n")


async def test_a_form_is_posted() -> None:
    async with raw_server() as server:
        server.answer = http_answer(b"no", status="401 Unauthorized")
        url = f"http://localhost:{server.port}/token"
        answer = await OAuthHTTPClient().post(url, {"scope": "a b&c", "ü": "="}, headers={"authorization": "Basic x"})
        assert answer == (401, b"no")
        head, body = server.received[0].split(b"\r\n\r\n")
        assert parse_qs(body.decode()) == {"scope": ["a b&c"], "ü": ["="]}
        assert b"authorization: Basic x" in head
        assert b"content-type: application/x-www-form-urlencoded" in head


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_no_redirect_is_followed(status: str) -> None:
    async with raw_server() as server:
        server.answer = http_answer(b"", status=status, headers=b"location: /elsewhere\r\n")
        for request in (OAuthHTTPClient().get, lambda url: OAuthHTTPClient().post(url, {})):
            with pytest.raises(FetchError, match="answered 30") as caught:
                await request(f"http://127.0.0.1:{server.port}/")
            assert caught.value.status == int(status[:3])
        assert len(server.received) == 2


@pytest.mark.parametrize("status", ["204 No Content", "404 Not Found", "500 Oops", "206 Partial Content"])
async def test_only_a_200_has_a_document(status: str) -> None:
    async with raw_server() as server:
        server.answer = http_answer(b"", status=status)
        with pytest.raises(FetchError) as caught:
            await OAuthHTTPClient().get(f"http://127.0.0.1:{server.port}/")
        assert caught.value.status == int(status[:3])


@pytest.mark.parametrize(
    "answer",
    [
        http_answer(b"x" * 300_000),
        http_answer(b"x" * 300_000, length=10_000_000),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"10000\r\n%s\r\n" % (b"x" * 0x10000) * 5,
        http_answer(gzip.compress(b"{}", mtime=0), headers=b"content-encoding: gzip\r\n"),
        http_answer(b"{}", headers=b"Content-Encoding: br\r\n"),
        http_answer(b"{}", length=10),
        b"HTTP/1.1 200 OK\r\nx: " + b"x" * 1_000_000,
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"not http\r\n\r\n",
        b"",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
    ],
)
async def test_what_is_no_answer_within_the_bounds_is_refused(answer: bytes) -> None:
    async with raw_server() as server:
        server.answer = answer
        client = OAuthHTTPClient()
        with pytest.raises(FetchError):
            await client.get(f"http://127.0.0.1:{server.port}/")
        server.answer = http_answer(b"good")
        assert await client.get(f"http://127.0.0.1:{server.port}/") == b"good"


@pytest.mark.parametrize("answer", [http_answer(b"{}", length=10), b"not http\r\n\r\n", b""])
async def test_what_breaks_off_or_is_no_http_is_said_in_words_and_not_quoted(answer: bytes) -> None:
    async with raw_server() as server:
        server.answer = answer
        with pytest.raises(FetchError) as caught:
            await OAuthHTTPClient().get(f"http://127.0.0.1:{server.port}/")
    assert str(caught.value) == f"http://127.0.0.1:{server.port}/ answered what is no HTTP, or no whole answer"


async def test_an_answer_that_drips_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_TIMEOUT", 0.2)
    async with raw_server() as server:
        server.answer, server.drip = http_answer(b"", length=100_000), True
        client = OAuthHTTPClient()
        with pytest.raises(FetchError, match="no whole answer within"):
            await client.get(f"http://127.0.0.1:{server.port}/")
        await asyncio.wait_for(server.idle.wait(), 5)
        assert client._pools == {}


async def test_what_only_connects_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_TIMEOUT", 0.2)
    async with raw_server() as server:
        server.answer = b""
        server.hang.set()
        with pytest.raises(FetchError, match="no whole answer within"):
            await OAuthHTTPClient().get(f"http://127.0.0.1:{server.port}/")
        await asyncio.wait_for(server.idle.wait(), 5)


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example.com/",
        "http://10.0.0.1/",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "https://user:pass@login.example.com/",
        "https://login.example.com/#x",
        "https://login.example.com/\r\nx: y",
        "https://",
        "http://[",
        "",
    ],
)
async def test_what_is_no_url_of_ours_is_not_asked(url: str) -> None:
    names = Names(["127.0.0.1"])
    with pytest.raises(FetchError):
        await OAuthHTTPClient(resolve=names).get(url)
    assert names.asked == []


BAD_ADDRESSES = ["10.0.0.1", "127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "fd00:ec2::254", "::ffff:127.0.0.1"]  # noqa: S104


@pytest.mark.parametrize("address", BAD_ADDRESSES)
async def test_a_name_with_an_address_that_is_not_public_is_refused(address: str) -> None:
    """Also where its other addresses are public."""
    names = Names([address], ["93.184.215.14", address])
    client = OAuthHTTPClient(resolve=names)
    for _ in range(2):
        with pytest.raises(RefusedAddressError, match=r"^https://login\.example\.com/: login\.example\.com has "):
            await client.get("https://login.example.com/")
    assert client._pools == {}


@pytest.mark.parametrize("host", ["10.0.0.1", "169.254.169.254", "[::ffff:10.0.0.1]", "[fd00::1]", "192.0.0.192"])
async def test_an_address_in_the_url_is_judged_without_a_look_up(host: str) -> None:
    names = Names(["93.184.215.14"])
    with pytest.raises(RefusedAddressError):
        await OAuthHTTPClient(resolve=names).get(f"https://{host}/")
    assert names.asked == []


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "017700000001", "127.1", "0177.0.0.1", "127.0.0.1."])
async def test_another_spelling_of_this_machine_is_judged_by_what_it_means(host: str) -> None:
    """The system reads them as addresses, and the address is loopback without the URL naming it."""
    with pytest.raises(FetchError):
        await OAuthHTTPClient().get(f"https://{host}/")


async def test_a_name_of_this_machine_must_not_lead_elsewhere() -> None:
    with pytest.raises(RefusedAddressError, match="not this machine's own"):
        await OAuthHTTPClient(resolve=Names(["93.184.215.14"])).get("http://login.localhost/")


async def test_a_name_without_addresses_cannot_be_fetched() -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(-2, "Name or service not known")

    for resolve, why in ((Names([]), "has no address"), (unknown, "Name or service not known")):
        with pytest.raises(FetchError, match=f": no connection can be made: .*{why}"):
            await OAuthHTTPClient(resolve=resolve).get("https://login.example.com/")


async def test_names_are_looked_up_by_the_system() -> None:
    assert set(await look_up("localhost", 80)) <= {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match=r".+"):
        await look_up("x" * 70 + ".invalid", 80)


async def test_a_resolver_that_hangs_takes_one_thread_for_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 42. It cannot be ended, so nobody may wait for it, and it takes nothing that others need."""
    answer, asked = threading.Event(), []

    def hang(host: str, *args: object, **options: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        asked.append(host)
        answer.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 443))]

    monkeypatch.setattr(http, "getaddrinfo", hang)
    monkeypatch.setattr(http, "_TIMEOUT", 0.05)
    client, threads = OAuthHTTPClient(), threading.active_count()
    for _ in range(3):
        with pytest.raises(FetchError, match="no whole answer within"):
            await client.get("https://login.example.com/")
    assert asked == ["login.example.com"]
    assert threading.active_count() <= threads + 1
    later = asyncio.create_task(look_up("login.example.com", 443))
    await asyncio.sleep(0)
    answer.set()
    assert await later == ["10.0.0.1"]
    assert http._looking == {}


async def test_the_connection_goes_to_the_address_that_was_judged() -> None:
    """A name that changes its address afterwards gains nothing: it is looked up once."""
    names = Names(["127.0.0.2"], ["10.0.0.1"])
    async with raw_server("127.0.0.2") as server:
        await OAuthHTTPClient(resolve=names).get(f"http://login.localhost:{server.port}/")
        assert names.asked == ["login.localhost"]
        assert server.reached == ["127.0.0.2"]
        assert b"Host: login.localhost:" in server.received[0]


async def test_the_next_address_is_tried_where_one_does_not_answer() -> None:
    async with raw_server("127.0.0.2") as server:
        client = OAuthHTTPClient(resolve=Names(["127.0.0.3", "127.0.0.2"]))
        await client.get(f"http://login.localhost:{server.port}/")
        assert server.reached == ["127.0.0.2"]


async def test_tls_verifies_the_name_although_the_address_is_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, private = certificate(tmp_path, "login.localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    async with raw_server("127.0.0.2", tls=server_context(cert, private)) as server:
        client = OAuthHTTPClient(resolve=Names(["127.0.0.2"]))
        await client.get(f"https://login.localhost:{server.port}/")
        with pytest.raises(FetchError, match=r": no connection can be made: .*CERTIFICATE_VERIFY_FAILED"):
            await client.get(f"https://other.localhost:{server.port}/")
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(FetchError, match=r": no connection can be made: .*CERTIFICATE_VERIFY_FAILED"):
            await OAuthHTTPClient(resolve=Names(["127.0.0.2"])).get(f"https://login.localhost:{server.port}/")
        assert len(server.received) == 1


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_a_mistake_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "authorities.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(ConfigurationError, match=r"^SSL_CERT_FILE is '.*authorities\.pem'; it must name certificates"):
        OAuthHTTPClient()


async def test_nothing_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login alice password secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    async with raw_server() as server, raw_server() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        server.answer = http_answer(b"{}", headers=b"set-cookie: a=b\r\n")
        client = OAuthHTTPClient()
        for _ in range(2):
            await client.get(f"http://127.0.0.1:{server.port}/")
        assert proxy.received == []
        sent = b"".join(server.received).lower()
        assert b"authorization" not in sent
        assert b"cookie" not in sent


async def test_nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with raw_server() as server:
        client = OAuthHTTPClient()
        url = f"http://127.0.0.1:{server.port}/"
        await client.post(url, {"client_secret": "hunter2"}, headers={"authorization": "Basic aHVudGVyMg"})
        assert "hunter2" not in caplog.text
        assert "aHVudGVyMg" not in caplog.text


def test_one_client_serves_one_loop_after_the_other_and_leaves_nothing_open() -> None:
    """Also where a loop ends in the middle of a request. Pytest makes an error of a socket that is left open."""
    client = OAuthHTTPClient()

    async def fetch(cancel: bool) -> None:
        async with raw_server() as server:
            if cancel:
                server.answer = b""
                server.hang.set()
            fetching = asyncio.create_task(client.get(f"http://127.0.0.1:{server.port}/"))
            await server.asked.wait()
            if cancel:
                fetching.cancel()
                await asyncio.wait({fetching})
            else:
                await fetching

    for cancel in (False, True, False):
        asyncio.run(fetch(cancel))
        gc.collect()
        assert client._pools == {}


async def test_who_has_no_turn_is_told_so_and_waiting_costs_no_time_of_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A crowd at the start must not be taken for an outage."""
    async with raw_server() as server:
        server.hang.set()
        server.answer = b""
        client = OAuthHTTPClient()
        url = f"http://127.0.0.1:{server.port}/"
        crowd = [asyncio.create_task(client.get(url)) for _ in range(http._MAX_CONNECTIONS)]
        for _ in crowd:
            await server.accepted.get()
        patient = asyncio.create_task(client.get(url))
        await asyncio.sleep(0)
        with monkeypatch.context() as patched:
            patched.setattr(http, "_QUEUE_TIMEOUT", 0.01)
            with pytest.raises(BusyError, match="too many requests"):
                await client.get(url)
        server.answer = http_answer(b"{}")
        crowd[0].cancel()
        assert await patient == b"{}"
        for task in crowd:
            task.cancel()
        await asyncio.wait(crowd)
        assert client._pools == {}


async def test_an_origin_that_hangs_holds_up_nobody_else() -> None:
    async with raw_server() as slow, raw_server() as good:
        slow.answer = b""
        slow.hang.set()
        client = OAuthHTTPClient()
        waiting = [
            asyncio.create_task(client.get(f"http://127.0.0.1:{slow.port}/")) for _ in range(http._MAX_CONNECTIONS + 5)
        ]
        for _ in range(http._MAX_CONNECTIONS):
            await slow.accepted.get()
        assert await client.get(f"http://127.0.0.1:{good.port}/") == b"{}"
        assert slow.open == http._MAX_CONNECTIONS
        await client.aclose()
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert client._pools == {}
