"""Whose tokens the gateway accepts: JWTs and opaque ones, of several issuers at once, while keys change or one dies."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest

from examples.authorization_server import Client
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.gateway.app import create_app
from mcp_middleware.gateway.cli import main
from mcp_middleware.gateway.config import from_mapping
from mcp_middleware.resource_server import Issuer
from tests.authorization_server.running import Credentials, RunningServer, running
from tests.integration.stack import build_server
from tests.support import SESSION_KEY, answer_of, connect, free_port, initialize, post, serve, text_of

from .authority import authority
from .gateways import ECHO, Running, gateway
from .processes import Process, backend, client, configured
from .processes import running as process

ELSEWHERE = "http://127.0.0.1:9/elsewhere"


@dataclass
class Site:
    """A gateway with its issuers: one of JWTs, one of opaque tokens."""

    gateway: Running
    signing: RunningServer
    opaque: RunningServer
    agents: dict[RunningServer, Credentials]

    async def token(self, issuer: RunningServer, resource: str | None = None) -> str:
        return await issuer.token(self.agents[issuer], resource or self.gateway.url(), "mcp:use")

    async def call(self, token: str, **options: Any) -> httpx2.Response:
        return await post(self.gateway.http, self.gateway.url(), "tools/call", ECHO, token=token, **options)


@asynccontextmanager
async def site(directory: Path, *, key: bool = False, cache: str = "30s", **changes: Any) -> AsyncIterator[Site]:
    """The gateway before a real server. ``changes`` are those of its ``auth`` section."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(serve(build_server("sdk")))
        signing = await stack.enter_async_context(running(resources=[ELSEWHERE]))
        opaque = await stack.enter_async_context(running(resources=[ELSEWHERE], form="opaque"))
        own = opaque.add_client("gateway", key=key)
        proof = {"private_key": own.private_key} if key else {"client_secret": own.secret}
        introspection = {"client_id": own.client_id, **proof, "cache": cache}
        issuers = [signing.issuer, {"issuer": opaque.issuer, "introspection": introspection}]
        auth = {"issuers": issuers, "scopes": ["mcp:use"], **changes}
        gate = await stack.enter_async_context(
            gateway(directory, {"files": f"{upstream}/mcp"}, authorities=[signing, opaque], auth=auth)
        )
        agents = {issuer: issuer.add_client("ci-1") for issuer in (signing, opaque)}
        yield Site(gate, signing, opaque, agents)


@pytest.mark.parametrize("key", [False, True], ids=["secret", "private key"])
async def test_case_7_opaque_tokens_are_introspected_and_kept(key: bool, tmp_path: Path) -> None:
    async with site(tmp_path, key=key) as found:
        token = await found.token(found.opaque)
        assert "." not in token
        found.opaque.counts.clear()
        replies = await asyncio.gather(*(found.call(token) for _ in range(20)))
        assert {reply.status_code for reply in replies} == {200}
        assert found.opaque.counts["/introspect"] == 1
        refused = await found.call(await found.token(found.opaque, ELSEWHERE))
        assert refused.status_code == 401, "a token for another resource"
        assert (await found.call("made-up")).status_code == 401
        async with connect(found.gateway.url(), token=token) as agent:
            assert text_of(await agent.call_tool("echo", {"text": "hi"})) == "hi"


async def test_case_4_several_issuers_at_once_each_for_its_own_tokens(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        for issuer in (found.signing, found.opaque):
            token = await found.token(issuer)
            reply = await found.call(token)
            assert answer_of(reply)["result"]["content"][0]["text"] == "x"
        found.signing.form, found.opaque.form = "opaque", "jwt"
        assert (await found.call(await found.token(found.opaque))).status_code == 200, "a JWT that is introspected"
        assert (await found.call(await found.token(found.signing))).status_code == 401, "nobody can be asked about it"
        claims = jwt.decode(await found.token(found.opaque), options={"verify_signature": False})
        forged = found.opaque.server.keys.sign(claims | {"iss": found.signing.issuer})
        assert (await found.call(forged)).status_code == 401, "issuer A's name with B's key"
    assert {record.issuer for record in found.gateway.records() if record.decision == "allowed"} == {
        found.signing.issuer,
        found.opaque.issuer,
    }


async def test_case_7_a_revocation_is_seen_within_the_stated_time(tmp_path: Path) -> None:
    async with site(tmp_path, cache="500ms") as found:
        token = await found.token(found.opaque)
        assert (await found.call(token)).status_code == 200
        found.opaque.revoke(token)
        async with asyncio.timeout(10):
            while (reply := await found.call(token)).status_code == 200:
                pass
        assert reply.status_code == 401
        assert 'error="invalid_token"' in reply.headers["www-authenticate"]


async def test_keys_are_rotated_under_load_and_no_good_token_is_refused(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        statuses: Counter[int] = Counter()
        phase = asyncio.Condition()

        async def agent() -> None:
            while True:
                reply = await found.call(await found.token(found.signing))
                async with phase:
                    statuses[reply.status_code] += 1
                    phase.notify_all()

        async def after(calls: int) -> None:
            async with asyncio.timeout(30), phase:
                most = statuses.total() + calls
                await phase.wait_for(lambda: statuses.total() >= most)

        old = await found.token(found.signing)
        found.signing.counts.clear()
        agents = [asyncio.create_task(agent()) for _ in range(8)]
        await after(50)
        found.signing.rotate_keys()
        await after(100)
        assert (await found.call(old)).status_code == 200
        found.signing.remove_old_keys()
        await after(50)
        for task in agents:
            task.cancel()
        await asyncio.gather(*agents, return_exceptions=True)
        assert set(statuses) == {200}
        assert found.signing.counts["/jwks"] == 1, "an unknown key has them fetched, once"


async def test_case_42_an_issuer_that_dies_keeps_nobody_out_whom_it_let_in(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        issuers = (found.signing, found.opaque)
        known = {issuer: await found.token(issuer) for issuer in issuers}
        new = {issuer: await found.token(issuer) for issuer in issuers}
        for token in known.values():
            assert (await found.call(token)).status_code == 200
        for issuer in issuers:
            await issuer.down()
        for token in known.values():
            assert (await found.call(token)).status_code == 200, "its keys, or its word, are kept"
        assert (await found.call(new[found.signing])).status_code == 200, "the key is known"
        reply = await found.call(new[found.opaque])
        assert (reply.status_code, "www-authenticate" in reply.headers) == (503, False)
        assert int(reply.headers["retry-after"]) >= 1
        found.signing.rotate_keys()
        claims = jwt.decode(new[found.signing], options={"verify_signature": False})
        reply = await found.call(found.signing.server.keys.sign(claims))
        assert (reply.status_code, "www-authenticate" in reply.headers) == (503, False), "the key may be a new one"


async def test_case_24_a_session_outlives_a_change_of_the_key_and_of_the_token(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        session = await initialize(found.gateway.http, found.gateway.url(), token=await found.token(found.signing))
        found.signing.rotate_keys()
        reply = await found.call(await found.token(found.signing), era="legacy", session=session)
        assert answer_of(reply)["result"]["content"][0]["text"] == "x"


async def test_scopes_that_imply_others_and_claims_that_are_elsewhere(tmp_path: Path) -> None:
    async with site(
        tmp_path, scopes=["mcp:use"], implied_scopes={"mcp:admin": ["mcp:write"], "mcp:write": ["mcp:use"]}
    ) as found:
        agent, url = found.agents[found.signing], found.gateway.url()
        for scope, status in (("mcp:admin", 200), ("mcp:write", 200), ("mcp:other", 403)):
            assert (await found.call(await found.signing.token(agent, url, scope))).status_code == status


@pytest.mark.parametrize("origin", [None, "https://anywhere.example"])
async def test_clients_of_2025_03_26_find_the_issuers_metadata_at_our_origin(
    origin: str | None, tmp_path: Path
) -> None:
    async with site(tmp_path) as found:
        path = "/.well-known/oauth-authorization-server"
        headers = {"origin": origin} if origin else {}
        copy = await found.gateway.http.get(found.gateway.origin + path, headers=headers)
        original = await found.gateway.http.get(found.signing.issuer + path)
        assert (copy.status_code, copy.content) == (200, original.content)
        assert copy.headers["access-control-allow-origin"] == "*"
        assert (await found.gateway.http.post(found.gateway.origin + path)).status_code == 405
        wrong = await found.gateway.http.get(found.gateway.origin + path, headers={"host": "evil.example"})
        assert wrong.status_code == 421
    assert {record.reason for record in found.gateway.records()} == {"bad_host"}


async def test_an_issuer_at_our_own_origin_speaks_for_itself() -> None:
    """Whoever is in front of both sends what is for the issuer there; what still comes here is no server's."""
    port = free_port()
    public = f"http://127.0.0.1:{port}"
    app = create_app(from_mapping(configured({"files": ELSEWHERE}, port, auth={"issuers": [public]})))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=public) as http:
        reply = await http.get("/.well-known/oauth-authorization-server")
    await app.shutdown()
    assert reply.status_code == 404


async def test_the_copy_of_the_metadata_can_be_switched_off(tmp_path: Path) -> None:
    async with site(tmp_path, legacy_metadata=False) as found:
        copy = await found.gateway.http.get(f"{found.gateway.origin}/.well-known/oauth-authorization-server")
        assert copy.status_code == 404


async def ready(found: Running) -> dict[str, Any]:
    """Wait until the gateway is ready; what it said before."""
    said: dict[str, Any] = {}
    async with asyncio.timeout(15):
        while (reply := await found.http.get(f"{found.origin}/readyz")).status_code != 200:
            said = reply.json()
            await asyncio.sleep(0.02)
    return said


async def test_an_authorization_server_that_is_down_at_the_start_is_waited_for(tmp_path: Path) -> None:
    async with (
        running(resources=[ELSEWHERE]) as issuer,
        authority() as other,
        serve(build_server("sdk")) as upstream,
    ):
        await issuer.down()
        other.refusal = (503, "temporarily_unavailable")
        grant = {"issuer": other.issuer, "client_id": "gateway", "client_secret": "s"}
        mail = {"url": f"{upstream}/mcp", "credentials": {"type": "client_credentials", **grant}}
        async with gateway(tmp_path, {"files": f"{upstream}/mcp", "mail": mail}, authorities=[issuer]) as found:
            reply = await found.http.get(f"{found.origin}/readyz")
            assert (reply.status_code, reply.json()["status"]) == (503, "waiting")
            first = f"The issuer {issuer.issuer} has not answered yet"
            second = "The authorization server of servers.mail.credentials has not answered yet"
            assert reply.json()["waiting"] == [first, second]
            assert (await found.http.get(f"{found.origin}/healthz")).status_code == 200
            await issuer.up()
            other.refusal = None
            await ready(found)
            token = await issuer.token(issuer.add_client("ci-1"), found.url("mail"), "mcp:use")
            assert (await post(found.http, found.url("mail"), "tools/call", ECHO, token=token)).status_code == 200
            await issuer.down()
            assert (await found.http.get(f"{found.origin}/readyz")).status_code == 200, "it has answered once"


async def test_an_authorization_server_that_contradicts_the_file_later_is_said_to(tmp_path: Path) -> None:
    async with authority() as other, backend() as files:
        other.refusal = (503, "temporarily_unavailable")
        grant = {"issuer": other.issuer, "client_id": "gateway", "client_secret": "s"}
        server = {"url": f"{files.origin}/mcp", "credentials": {"type": "client_credentials", **grant}}
        async with process(tmp_path, {"files": server}) as started, client() as http:
            other.refusal = (401, "invalid_client")
            await started.wrote(r"servers\.files\.credentials: no token can be had .* invalid_client")
            document = (await http.get(f"{started.origin}/readyz")).json()
            assert (document["status"], document["waiting"]) == (
                "waiting",
                ["The authorization server of servers.files.credentials contradicts it; the log says how"],
            )


async def test_it_says_that_it_starts_while_an_issuer_takes_its_time() -> None:
    async with authority() as issuer:
        issuer.open.clear()
        sections = configured({"files": "http://127.0.0.1:9"}, 8080, auth={"issuers": [issuer.issuer]})
        app = create_app(from_mapping(sections))
        starting = asyncio.create_task(app.startup())
        await issuer.asked.wait()
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1:8080") as http:
            assert (await http.get("/healthz")).status_code == 200
            reply = await http.get("/readyz")
            assert (reply.status_code, reply.json()["status"]) == (503, "starting")
            issuer.open.set()
            with pytest.raises(ConfigurationError, match="names no jwks_uri"):
                await starting
        await app.shutdown()


async def test_a_file_that_is_read_again_before_the_start_is_asked_about_all_the_same() -> None:
    """As a worker does that replaces one which ended."""
    async with authority() as issuer:
        app = create_app(from_mapping(configured({"files": ELSEWHERE}, 8080, auth={"issuers": [issuer.issuer]})))
        await app.reload(app.config)
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="names no jwks_uri"):
                await app.startup()
            await app.shutdown()


async def test_an_issuer_that_a_reload_adds_takes_no_gateway_out_of_service(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        config = found.gateway.app.config
        assert config.auth is not None
        silent = Issuer("http://127.0.0.1:9")
        auth = replace(config.auth, issuers=(*config.auth.issuers, silent))
        await found.gateway.app.reload(replace(config, auth=auth))
        reply = await found.gateway.http.get(f"{found.gateway.origin}/readyz")
        assert (reply.status_code, reply.json()["status"]) == (200, "ready")
        assert reply.json()["waiting"] == ["The issuer http://127.0.0.1:9 has not answered yet"]
        assert (await found.call(await found.token(found.signing))).status_code == 200


async def test_a_reload_that_an_issuer_contradicts_changes_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as found, authority() as other:
        other.names = "https://login.example.com"
        config = found.gateway.app.config
        assert config.auth is not None
        auth = replace(config.auth, issuers=(Issuer(other.issuer),))
        with pytest.raises(ConfigurationError, match=r"https://login\.example\.com"):
            await found.gateway.app.reload(replace(config, auth=auth))
        files = replace(config.servers["files"], credentials=other.grant())
        with pytest.raises(ConfigurationError, match=r"^servers\.files\.credentials: "):
            await found.gateway.app.reload(replace(config, servers={"files": files}))
        assert found.gateway.app.config is config
        assert (await found.call(await found.token(found.signing))).status_code == 200


GRANT = {"client_id": "gateway", "client_secret": "right", "resource": ELSEWHERE}
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no introspection endpoint": ({"introspection": {"endpoint": "{issuer}/none"}}, {}, "{issuer}/none"),
    "a client that may not introspect": ({"introspection": {"client_secret": "hunter2"}}, {}, "introspect"),
    "no keys": ({"jwks_uri": "{issuer}/none"}, {}, "{issuer}/none"),
    "another secret": ({}, {"type": "client_credentials", **GRANT, "client_secret": "hunter2"}, "invalid_client"),
    "another client": ({}, {"type": "client_credentials", **GRANT, "client_id": "nobody"}, "client_id=nobody"),
    "another resource": ({}, {"type": "client_credentials", **GRANT, "resource": f"{ELSEWHERE}/2"}, f"{ELSEWHERE}/2"),
    "another scope": ({}, {"type": "client_credentials", **GRANT, "scope": "root"}, "scope=root"),
    "an issuer that is not there": (
        {},
        {"type": "client_credentials", **GRANT, "issuer": "{issuer}/x"},
        "{issuer}/x' was",
    ),
    "an exchange to elsewhere": (
        {},
        {"type": "token_exchange", **GRANT, "resource": f"{ELSEWHERE}/2"},
        f"{ELSEWHERE}/2",
    ),
    "an exchange for nobody": ({}, {"type": "token_exchange", **GRANT, "client_secret": "hunter2"}, "invalid_client"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_an_authorization_server_does_not_do_is_refused_at_the_start(case: str) -> None:
    changed, credentials, said = WRONG[case]
    named = Client.from_dict({"client_id": "gateway", "secret": "right", "scopes": ["files:use"], "serves": []})
    known = replace(named, strict=True)
    async with running(resources=[ELSEWHERE], clients=[known]) as server:

        def here(value: Any) -> Any:
            return value.replace("{issuer}", server.issuer) if isinstance(value, str) else value

        issuer = {name: here(value) for name, value in changed.items()}
        if "introspection" in changed:
            asked = {"client_id": "gateway", "client_secret": "right"} | changed["introspection"]
            issuer["introspection"] = {name: here(value) for name, value in asked.items()}
        sections = configured({"files": "http://127.0.0.1:9"}, 8080)
        sections["auth"] = {"issuers": [{"issuer": server.issuer, **issuer}]}
        if credentials:
            grant = {name: here(value) for name, value in credentials.items()}
            sections["servers"]["files"]["credentials"] = {"issuer": server.issuer, **grant}
        app = create_app(from_mapping(sections))
        with pytest.raises(ConfigurationError) as refused:
            await app.startup()
        assert here(said) in str(refused.value)
        assert "hunter2" not in str(refused.value)
        await app.shutdown()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("place", ["auth", "credentials"])
async def test_an_authorization_server_that_contradicts_the_file_ends_the_start(
    workers: int, place: str, tmp_path: Path
) -> None:
    async with authority() as issuer:
        issuer.names = "https://login.example.com"
        sections = configured({"files": "http://127.0.0.1:9"}, free_port(), workers=workers)
        sections["sessions"] = {"keys": [SESSION_KEY], "per_agent": "off"}
        if place == "auth":
            sections["auth"] = {"issuers": [issuer.issuer]}
        else:
            grant = {"issuer": issuer.issuer, "client_id": "gateway", "client_secret": "hunter2"}
            sections["servers"]["files"]["credentials"] = {"type": "client_credentials", **grant}
        file = tmp_path / "gateway.yaml"
        file.write_text(json.dumps(sections))
        command = [sys.executable, "-m", "mcp_middleware.gateway", "run", str(file)]
        ended = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
        )
    assert ended.returncode == 2, ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith("mcp-gateway: ")]
    assert said, ended.stderr
    assert "'https://login.example.com'" in said[0]
    assert f"'{issuer.issuer}' was expected" in said[0]
    assert "Traceback" not in ended.stderr
    assert "hunter2" not in ended.stderr


async def test_a_process_says_whom_it_waits_for_and_keeps_the_last_good_file(tmp_path: Path) -> None:
    async with running(resources=[ELSEWHERE]) as issuer, authority() as other, backend() as files:
        other.names = "https://login.example.com"
        await issuer.down()
        auth = {"issuers": [issuer.issuer]}
        async with process(tmp_path, {"files": files.origin}, auth=auth) as started, client() as http:
            await started.wrote("WAITING, and not ready until then")
            await started.wrote(f"! The issuer {issuer.issuer} has not answered yet")
            assert (await http.get(f"{started.origin}/readyz")).json()["status"] == "waiting"
            await issuer.up()
            await started.wrote(f"the issuer {issuer.issuer} answers")
            assert (await http.get(f"{started.origin}/readyz")).status_code == 200
            wrong = configured({"files": files.origin}, started.port, auth={"issuers": [other.issuer]})
            started.reload(wrong)
            await started.wrote("the configuration stays as it was; the new one was refused")
            await started.wrote("'https://login.example.com'")
            document = (await http.get(f"{started.origin}/readyz")).json()
            assert (document["status"], "reload" in document) == ("ready", True)


async def test_case_43_a_process_that_is_told_to_stop_waits_for_no_issuer(tmp_path: Path) -> None:
    async with authority() as issuer:
        issuer.open.clear()
        file, port = tmp_path / "gateway.yaml", free_port()
        file.write_text(json.dumps(configured({"files": ELSEWHERE}, port, auth={"issuers": [issuer.issuer]})))
        command = (sys.executable, "-m", "mcp_middleware.gateway", "run", str(file))
        started = Process(
            await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE), port, file, "http"
        )
        await issuer.asked.wait()
        started.send(signal.SIGTERM)
        assert await started.ended() == 0
        assert [line.partition("INFO ")[2] for line in started.lines[:-1]] == [
            "stopping: 0 requests are open, and have 10 s to finish",
            "stopped",
        ]
        issuer.open.set()


async def test_a_secret_in_a_file_is_changed_while_calls_go_on(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("first\n")
    known = Client.from_dict({"client_id": "gateway", "secret": "first"})
    async with running(resources=[ELSEWHERE], clients=[known]) as server, backend() as files:
        grant = {"client_id": "gateway", "client_secret": {"file": "secret"}, "resource": ELSEWHERE}
        credentials = {"type": "client_credentials", "issuer": server.issuer, **grant}
        section = {"url": f"{files.origin}/mcp", "credentials": credentials}
        async with process(tmp_path, {"files": section}) as started, client() as http:
            url = f"{started.origin}/files/mcp"
            assert (await post(http, url, "tools/call", ECHO)).status_code == 200
            server.server.add_client(replace(known, secret="second"))
            server.counts.clear()
            beside = tmp_path / "secret.new"
            beside.write_text("second\n")
            beside.replace(secret)
            await started.wrote("the configuration was reloaded")
            assert server.counts["/token"] == 1, "asked at the reload"
            assert (await post(http, url, "tools/call", ECHO)).status_code == 200
            assert not any("second" in line or "first" in line for line in started.lines)


def checked(file: Path, sections: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    file.write_text(json.dumps(sections))
    handlers = logging.getLogger().handlers
    before = handlers[:]
    levels = {name: logging.getLogger(name).level for name in ("mcp_middleware", "mcp_middleware.storage")}
    status = main(["check", "--online", str(file)])
    handlers[:] = before  # its own writes to a stream that ends with the test
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    said = capsys.readouterr()
    return status, said.out, said.err


async def test_check_asks_whom_the_file_names_when_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gateway.yaml"
    async with running(resources=[ELSEWHERE]) as issuer, authority() as other, backend() as files:
        own = issuer.add_client("gateway")
        grant = {"issuer": issuer.issuer, "client_id": "gateway", "client_secret": own.secret, "resource": ELSEWHERE}
        sections = configured({"files": files.origin}, free_port(), auth={"issuers": [issuer.issuer]})
        sections["servers"]["files"]["credentials"] = {"type": "client_credentials", **grant}

        async def check() -> tuple[int, str, str]:
            return await asyncio.to_thread(checked, file, sections, capsys)

        status, out, err = await check()
        assert (status, err) == (0, "")
        assert f"online: {issuer.issuer} answers as expected" in out
        assert "online: servers.files gets its credential" in out
        assert f"online: servers.files: {files.origin.removeprefix('http://')}/mcp answers" in out
        assert os.listdir(tmp_path) == [file.name], "nothing is made"  # noqa: PTH208

        sections["servers"]["files"]["credentials"]["client_secret"] = "hunter2"
        status, out, err = await check()
        assert (status, "online: servers.files.credentials: no token can be had" in err) == (2, True)
        assert "hunter2" not in out + err

        other.names = "https://login.example.com"
        sections["auth"]["issuers"] = [other.issuer]
        status, _, err = await check()
        assert (status, f"'{other.issuer}' was expected" in err) == (2, True)

        sections["auth"]["issuers"] = ["http://127.0.0.1:9", other.issuer, issuer.issuer]
        status, out, err = await check()
        assert (status, f"'{other.issuer}' was expected" in err) == (2, True)
        assert "online: the issuer http://127.0.0.1:9 does not answer: " in out
        assert f"online: {issuer.issuer} answers as expected" in out, "each is said, whatever the others are"

        sections["auth"]["issuers"] = ["http://127.0.0.1:9"]
        del sections["servers"]["files"]["credentials"]
        sections["servers"]["dead"] = {"url": "http://127.0.0.1:9/mcp"}
        status, out, err = await check()
        assert (status, err) == (1, "")
        silent = (
            "online: the issuer http://127.0.0.1:9 does not answer: http://127.0.0.1:9/.well-known/oauth-authorization"
        )
        assert silent in out
        assert "online: servers.dead: 127.0.0.1:9/mcp is not usable: no connection" in out
        assert not any(word in out for word in (" yet", "waited", "asked again", "ejected")), "it asks once, and ends"
        del sections["servers"]["dead"]

        sections["auth"] = False
        sections["servers"]["files"]["credentials"] = {"type": "client_credentials", **grant, "issuer": ELSEWHERE}
        status, out, _ = await check()
        assert status == 1
        assert "online: servers.files gets no credential: the metadata of " in out


def test_check_says_that_certificates_of_the_environment_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "authorities.pem").write_text("none\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authorities.pem"))
    sections = configured({"files": "http://127.0.0.1:9"}, free_port(), auth={"issuers": ["https://localhost:9"]})
    status, _, err = checked(tmp_path / "gateway.yaml", sections, capsys)
    assert status == 2
    assert err.startswith("mcp-gateway: SSL_CERT_FILE is '")
