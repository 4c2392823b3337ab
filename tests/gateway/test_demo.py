"""The demonstration: its issuer, its servers, and the whole of it as a newcomer meets it."""

import asyncio
import base64
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from mcp.shared.auth import OAuthMetadata

from mcp_middleware.gateway.config import load
from mcp_middleware.gateway.demo import main
from mcp_middleware.gateway.demo.issuer import Client, Issuer
from mcp_middleware.gateway.demo.servers import RequireKey, files, search, tickets
from tests.example.test_demo import lines_of
from tests.support import children_of, connect, post, serve, text_of

ROOT = Path(__file__).parents[2]
COMMAND = [str(Path(sys.executable).with_name("mcp-gateway")), "demo"]
URL = "http://127.0.0.1:9000"
RESOURCE = "http://127.0.0.1:8080/files/mcp"
CLIENTS = [Client("assistant", "a b:c%", frozenset({"mcp:use", "tickets:write"}))]
pytestmark = pytest.mark.timeout(120)

BASIC = "Basic " + base64.b64encode(b"assistant:a%20b%3Ac%25").decode()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer(URL, clients=CLIENTS, resources=[RESOURCE])


@pytest.fixture
async def http(issuer: Issuer) -> Any:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(issuer.app()), base_url=URL) as client:
        yield client


async def ask(http: httpx2.AsyncClient, fields: dict[str, str], authorization: str | None = None) -> httpx2.Response:
    headers = {"authorization": authorization} if authorization else {}
    asked = {"grant_type": "client_credentials", "resource": RESOURCE} | fields
    return await http.post("/token", data=asked, headers=headers)


@pytest.mark.parametrize("name", ["oauth-authorization-server", "openid-configuration"])
async def test_the_official_client_reads_the_issuers_metadata(http: httpx2.AsyncClient, name: str) -> None:
    metadata = OAuthMetadata.model_validate_json((await http.get(f"/.well-known/{name}")).content)
    assert str(metadata.issuer) == URL
    assert metadata.grant_types_supported == ["client_credentials"]


@pytest.mark.parametrize(
    ("fields", "authorization"),
    [({}, BASIC), ({"client_id": "assistant", "client_secret": "a b:c%"}, None)],
    ids=["client_secret_basic", "client_secret_post"],
)
async def test_a_secret_buys_a_token_for_one_resource(
    http: httpx2.AsyncClient, fields: dict[str, str], authorization: str | None
) -> None:
    response = await ask(http, {"scope": "mcp:use"} | fields, authorization)
    assert (response.status_code, response.headers["cache-control"]) == (200, "no-store")
    token = response.json()["access_token"]
    [key] = (await http.get("/jwks")).json()["keys"]
    header = jwt.get_unverified_header(token)
    assert (header["typ"], header["alg"], header["kid"]) == ("at+jwt", "ES256", key["kid"])
    claims = jwt.decode(token, jwt.PyJWK(key), algorithms=["ES256"], audience=RESOURCE, issuer=URL)
    assert (claims["sub"], claims["client_id"], claims["scope"]) == ("assistant", "assistant", "mcp:use")


@pytest.mark.parametrize(
    ("fields", "authorization", "status", "error"),
    [
        ({}, "Basic " + base64.b64encode(b"assistant:wrong").decode(), 401, "invalid_client"),
        ({}, "Basic " + base64.b64encode(b"nobody:").decode(), 401, "invalid_client"),
        ({}, "Basic !", 401, "invalid_client"),
        ({}, None, 401, "invalid_client"),
        ({"grant_type": "password"}, BASIC, 400, "unsupported_grant_type"),
        ({"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange"}, BASIC, 400, "unsupported_grant_type"),
        ({"resource": "http://127.0.0.1:8080/other/mcp"}, BASIC, 400, "invalid_target"),
        ({"scope": "mcp:use admin"}, BASIC, 400, "invalid_scope"),
    ],
)
async def test_the_issuer_refuses_everything_else(
    http: httpx2.AsyncClient, fields: dict[str, str], authorization: str | None, status: int, error: str
) -> None:
    response = await ask(http, fields, authorization)
    assert (response.status_code, response.json()["error"]) == (status, error)
    assert ("www-authenticate" in response.headers) == (status == 401)


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 400),
        ("application/x-www-form-urlencoded", b"grant_type=client_credentials&grant_type=client_credentials", 400),
        ("application/x-www-form-urlencoded", b"grant_type=" + b"a" * 20_000, 413),
    ],
    ids=["no form", "a parameter twice", "too large"],
)
async def test_the_issuer_refuses_what_is_no_token_request(
    http: httpx2.AsyncClient, content_type: str, body: bytes, status: int
) -> None:
    response = await http.post("/token", content=body, headers={"content-type": content_type, "authorization": BASIC})
    assert (response.status_code, response.json()["error"]) == (status, "invalid_request")


def test_the_issuer_is_on_a_loopback_address_or_not_at_all() -> None:
    with pytest.raises(ValueError, match="loopback"):
        Issuer("http://192.0.2.1:9000", clients=CLIENTS, resources=[RESOURCE])


def test_a_clients_secret_is_not_shown() -> None:
    assert CLIENTS[0].secret not in repr(CLIENTS)
    assert Client.load(Client.dump(CLIENTS)) == CLIENTS


def test_nothing_else_in_the_package_issues_tokens() -> None:
    """What else is signed proves who we are, and says who calls: with keys of ours, and of types of their own."""
    package = ROOT / "mcp_middleware"
    signing = {str(path.relative_to(package)) for path in package.rglob("*.py") if "jwt.encode(" in path.read_text()}
    assert signing == {"gateway/demo/issuer.py", "oauth/authentication.py", "credentials/signer.py"}


async def test_the_files_server_keeps_what_a_session_reads() -> None:
    async with serve(files("files-1").streamable_http_app()) as origin:
        async with connect(f"{origin}/mcp", era="legacy") as one, connect(f"{origin}/mcp", era="legacy") as other:
            assert text_of(await one.call_tool("open_file", {"name": "budget.txt"})) == "budget.txt is open at files-1"
            lines = [text_of(await one.call_tool("next_line", {})) for _ in range(3)]
            assert lines == ["Bread: 12. (files-1)", "Games: 30. (files-1)", "the end (files-1)"]
            assert "no file is open" in text_of(await other.call_tool("next_line", {}))
        async with connect(f"{origin}/mcp") as modern:
            assert text_of(await modern.call_tool("count_words", {"name": "budget.txt"})) == "4 words (files-1)"
            assert "budget.txt" in text_of(await modern.call_tool("list_files", {}))


async def test_the_other_servers_have_what_the_story_uses() -> None:
    async with serve(search("search").streamable_http_app()) as origin, connect(f"{origin}/mcp") as client:
        assert text_of(await client.call_tool("find", {"text": "PARTY"})) == "How to plan a party"
    async with serve(tickets("tickets").streamable_http_app()) as origin, connect(f"{origin}/mcp") as client:
        assert text_of(await client.call_tool("create_ticket", {"title": "Tea"})) == "ticket 2: Tea"
        assert "Tea" in text_of(await client.call_tool("list_tickets", {}))
        assert text_of(await client.call_tool("purge_tickets", {})) == "all tickets deleted"


@pytest.mark.parametrize(("key", "status"), [("right", 200), ("wrong", 401), (None, 401)])
async def test_the_files_server_asks_for_its_key(key: str | None, status: int) -> None:
    app = RequireKey(files("files-1").streamable_http_app(), "right")
    async with serve(app) as origin, httpx2.AsyncClient() as http:
        headers = {} if key is None else {"x-api-key": key}
        assert (await post(http, f"{origin}/mcp", "tools/list", headers=headers)).status_code == status


def test_a_missing_package_is_named_with_the_extra_it_comes_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    assert main(["--once"]) == 2
    assert capsys.readouterr().err == (
        "error: the demonstration needs mcp, which comes with pip install 'mcp-middleware[demo]'\n"
    )


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration leaves its files where temporary ones are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the command prints."""
    command = [sys.executable, "-c", "import sys; from mcp_middleware.gateway.demo import main; sys.exit(main())"]
    environment = {**os.environ, "PYTHONWARNINGS": "default", "TMPDIR": str(tmp_path_factory.mktemp("demo"))}
    ended = subprocess.run([*command, "--once"], capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert ended.stderr == ""
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.mark.slow
class TestStory:
    """The story, told once for all of these."""

    def test_it_has_calls_of_every_fate(self, output: str) -> None:
        assert "SURPRISE" not in output
        assert [line.split()[0] for line in lines_of(output, "denied")] == [
            *("purge_tickets", "no_such_tool", "its", "files-1,", "next_line")
        ]
        assert len(lines_of(output, "limited")) == 1
        assert re.search(r"allowed +find report, \d+ s later", output), "waiting as long as told is enough"
        [step_up] = lines_of(output, "step-up")
        assert step_up.startswith("403 insufficient_scope")
        assert "tickets:write" in step_up

    def test_a_hidden_tool_reads_like_an_unknown_one(self, output: str) -> None:
        hidden, unknown = (re.split(r" {2,}", line)[-1] for line in lines_of(output, "denied")[:2])
        assert hidden.replace("purge_tickets", "no_such_tool") == unknown

    def test_a_session_stays_until_its_instance_dies(self, output: str) -> None:
        [killed] = [line.split()[0] for line in lines_of(output, "killed")]
        other = {"files-1": "files-2", "files-2": "files-1"}[killed]
        assert [line.split()[-1] for line in lines_of(output, "allowed") if "open_file" in line] == [killed, other]
        assert "HTTP 404" in output
        before, after = output.split("killed", 1)
        assert before.count(f"({killed})") == 2
        assert f"({other})" not in before
        assert f"4 by {other}; without a session: nothing lost" in after
        assert [line.split()[0] for line in lines_of(output, "restarted")] == [killed]

    def test_the_configuration_it_prints_is_kept_and_holds_no_secret(self, output: str) -> None:
        found = re.search(r"^The gateway runs by this file, (.*):$", output, re.MULTILINE)
        assert found is not None
        path = Path(found[1])
        for line in path.read_text().splitlines():
            assert f"  {line}\n" in output
        assert sorted(load(path).servers) == ["files", "search", "tickets"], "it can be run again"
        for name in ("files.key", "session.key"):
            secret = path.with_name(name)
            assert secret.stat().st_mode & 0o077 == 0
            assert secret.read_text() not in output
        assert path.parent.stat().st_mode & 0o077 == 0

    def test_the_audit_trail_has_the_same_story(self, output: str) -> None:
        trail, _, costs = output.partition("The audit trail")[2].partition("What it cost")
        for word in ("allowed", "denied", "limited", "unauthenticated", "insufficient_scope", "session_instance_down"):
            assert word in trail
        for what in ("assistant", "crawler", "purge_tickets", "open_file", "count_words"):
            assert what in trail
        for what in ("assistant  files", "crawler    search", "EUR", "(total)"):
            assert what in costs


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--port", "--otlp"])
def test_a_gateway_that_does_not_start_ends_it_all(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        value, said = {
            "--port": (str(taken.getsockname()[1]), "another program does"),
            "--otlp": ("{a: b}", "tracing.otlp"),
        }[option]
        assert main(["--once", option, value]) == 1
    assert "error: gateway did not start" in (error := capsys.readouterr().err)
    assert said in error


@contextmanager
def running() -> "Iterator[subprocess.Popen[str]]":
    """The command as a newcomer types it, to be ended by the test."""
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: "subprocess.Popen[str]", what: str) -> str:
    """What the command says, up to a line with ``what``."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if what in line:
            return said
    raise AssertionError(f"it ended before it said {what!r}:\n{said}")


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "٣"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--once", f"--port={port}"])
    assert ended.value.code == 2
    assert "it must be a whole number from 1 to 65535" in capsys.readouterr().err


@pytest.mark.slow
def test_nobody_listening_any_more_ends_it(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with os.fdopen(writing, "w") as output:
        ended = subprocess.run(COMMAND, stdout=output, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.slow
def test_what_stays_up_serves_any_client_until_ctrl_c() -> None:
    with running() as process:
        said = read_until(process, "grant_type=client_credentials")
        url = re.search(r"MCP server +(\S+),", said)
        command = re.search(r"^  (curl .*)\\\n +(.*)$", said, re.MULTILINE)
        assert url is not None
        assert command is not None
        answer = subprocess.run(command[1] + command[2], shell=True, capture_output=True, check=True)  # noqa: S602
        token = re.search(r'"access_token":"([^"]+)"', answer.stdout.decode())
        assert token is not None

        async def list_tickets() -> str:
            async with connect(url[1], token=token[1]) as client:
                return text_of(await client.call_tool("list_tickets", {}))

        assert "Tea" in asyncio.run(list_tickets())
        children = children_of(process.pid)
        assert len(children) == 6
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=30)[0]
        assert process.returncode == 0, rest
    assert "Everything has ended" in rest
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_ends_every_process(number: signal.Signals) -> None:
    with running() as process:
        read_until(process, "asks too often")
        children = children_of(process.pid)
        assert len(children) == 6
        process.send_signal(number)
        process.send_signal(number)
        rest = process.communicate(timeout=30)[0]
        assert process.returncode == 1, rest
    assert "it was ended before the end of the story" in rest
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
