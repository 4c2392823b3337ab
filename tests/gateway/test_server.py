"""The gateway as a process: cases 37 and 43, reloads, workers and TLS, with real signals and sockets."""

import asyncio
import gc
import json
import os
import signal
import ssl
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mcp_middleware.audit.query import AuditTrail
from mcp_middleware.gateway.app import create_app
from mcp_middleware.gateway.config import load
from mcp_middleware.gateway.server import Worker
from tests.certificates import certificate
from tests.support import SESSION_KEY, children_of, initialize, listener, post

from .processes import Process, backend, client, configured, running

SLOW = {"name": "slow", "arguments": {}}
QUICK = {"name": "quick", "arguments": {}}
UNCOUNTED = {"keys": [SESSION_KEY], "per_agent": "off"}


async def call(http: httpx2.AsyncClient, url: str, params: Mapping[str, Any] = QUICK) -> httpx2.Response:
    return await post(http, url, "tools/call", params)


async def served(http: httpx2.AsyncClient, url: str) -> bool:
    return (await call(http, url)).status_code == 200


async def pids(process: Process, count: int) -> list[int]:
    """The workers, once there are that many."""
    while len(found := children_of(process.process.pid)) != count:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    return found


async def test_case_43_a_stop_lets_calls_finish_ends_streams_and_is_not_ready_meanwhile(tmp_path: Path) -> None:
    async with backend() as files, running(tmp_path, {"files": files.origin}) as process, client() as http:
        url = f"{process.origin}/files/mcp"
        session = await initialize(http, url)
        assert session is not None
        headers = {"accept": "text/event-stream", "mcp-session-id": session, "mcp-protocol-version": "2025-11-25"}
        async with http.stream("GET", url, headers=headers) as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == ": hello"
            calling = asyncio.create_task(call(http, url, SLOW))
            await files.begun.wait()
            process.send(signal.SIGTERM)
            await process.wrote("stopping: 2 requests are open")
            ready = await http.get(f"{process.origin}/readyz")
            assert (ready.status_code, ready.json()["status"]) == (503, "draining")
            late = await call(http, url)
            assert (late.status_code, late.headers["connection"]) == (200, "close")  # no client retries a 503
            assert [line async for line in lines if line] == []  # it ends as streams end, not by a broken connection
        files.go_on.set()
        answer = await calling
        assert answer.status_code == 200
        assert await process.ended() == 0
        assert process.lines[-2].endswith("stopped")


async def test_case_43_a_stop_ends_by_its_deadline(tmp_path: Path) -> None:
    async with (
        backend() as files,
        running(tmp_path, {"files": files.origin}, drain="300ms") as process,
        client() as http,
    ):
        calling = asyncio.create_task(call(http, f"{process.origin}/files/mcp", SLOW))
        await files.begun.wait()
        process.send(signal.SIGTERM)
        assert await process.ended() == 0
        await process.wrote("1 requests did not finish in time")
        assert not any("Traceback" in line for line in process.lines)
        await asyncio.gather(calling, return_exceptions=True)


async def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    async with backend() as files, running(tmp_path, {"files": files.origin}, drain="1h") as process, client() as http:
        calling = asyncio.create_task(call(http, f"{process.origin}/files/mcp", SLOW))
        await files.begun.wait()
        process.send(signal.SIGINT)
        await process.wrote("stopping")
        process.send(signal.SIGINT)
        assert await process.ended() == 128 + signal.SIGINT
        await asyncio.gather(calling, return_exceptions=True)


async def test_case_43_no_call_is_lost_when_it_stops_under_load(tmp_path: Path) -> None:
    async with backend() as files, running(tmp_path, {"files": files.origin}) as process:
        url = f"{process.origin}/files/mcp"
        answers: list[int] = []
        under_load = asyncio.Event()

        async def caller() -> None:
            async with client() as http:
                while True:
                    try:
                        answers.append((await call(http, url)).status_code)
                        if len(answers) == 100:
                            under_load.set()
                    except (httpx2.ConnectError, httpx2.RemoteProtocolError, httpx2.ReadError):
                        return  # the connection ended between two calls

        callers = [asyncio.create_task(caller()) for _ in range(8)]
        await under_load.wait()
        process.send(signal.SIGTERM)
        assert await process.ended() == 0
        await asyncio.gather(*callers)
        assert set(answers) == {200}
        assert answers.count(200) == files.calls  # whatever reached the server was answered


@pytest.mark.parametrize("by", ["signal", "file"])
async def test_case_43_a_reload_drops_no_connection(tmp_path: Path, by: str) -> None:
    async with (
        backend() as files,
        running(tmp_path, {"files": files.origin}) as process,
        httpx2.AsyncClient(limits=httpx2.Limits(max_connections=1)) as http,
    ):
        other = f"{process.origin}/other/mcp"
        assert await served(http, f"{process.origin}/files/mcp")
        assert (await call(http, other)).status_code == 404
        async with client() as slow:
            calling = asyncio.create_task(call(slow, f"{process.origin}/files/mcp", SLOW))
            await files.begun.wait()
            process.write(configured({"files": files.origin, "other": files.origin}, process.port))
            if by == "signal":
                process.send(signal.SIGHUP)
            await process.wrote("was reloaded")
            assert await served(http, other)
            files.go_on.set()
            assert (await calling).status_code == 200


async def test_case_43_a_policy_file_is_watched_as_well(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("default: deny\n")
    section = {"file": "policy.yaml"}
    async with (
        backend() as files,
        running(tmp_path, {"files": files.origin}, access=section) as process,
        client() as http,
    ):
        url = f"{process.origin}/files/mcp"
        assert not await served(http, url)
        policy.write_text("default: allow\n")
        await process.wrote("was reloaded")
        assert await served(http, url)


@pytest.mark.slow
async def test_case_18_a_bad_file_keeps_the_last_good_one_and_says_so(tmp_path: Path) -> None:
    async with backend() as files, running(tmp_path, {"files": files.origin}) as process, client() as http:
        url = f"{process.origin}/files/mcp"
        process.reload(configured({"files": files.origin}, process.port, limits={"requests": "many"}, drain="soon"))
        await process.wrote("limits.requests")
        await process.wrote("drain")
        assert await served(http, url)
        ready = await http.get(f"{process.origin}/readyz")
        assert ready.status_code == 200
        assert "refused" in ready.json()["reload"]
        process.reload(configured({"files": files.origin}, process.port))
        await process.wrote("was reloaded")
        assert "reload" not in (await http.get(f"{process.origin}/readyz")).json()


async def test_a_reload_collects_the_configuration_before_and_does_not_walk_what_was_there_at_the_start(
    tmp_path: Path,
) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(json.dumps(configured({"files": "http://127.0.0.1:9"}, 0, public_url="http://127.0.0.1:8080")))
    config = load(file)
    with listener() as bound:
        worker, gateway = Worker(bound, config, path=file), create_app(config)
        gc.freeze()
        try:
            await worker._reload(gateway)
            replaced = weakref.ref(gateway._generation)
            await worker._reload(gateway)
            assert replaced() is None
            made = {id(one) for one in gc.get_objects()}
            assert id(gateway._generation) in made, "it is not frozen, and the next reload can collect it"
            assert id(worker.__dict__) not in made
        finally:
            gc.unfreeze()


async def test_what_cannot_change_while_it_runs_is_said(tmp_path: Path) -> None:
    async with backend() as files, running(tmp_path, {"files": files.origin}) as process, client() as http:
        process.reload(configured({"files": files.origin}, process.port + 1, public_url=process.origin))
        await process.wrote("restart.*listen")
        assert await served(http, f"{process.origin}/files/mcp")


def trusting(directory: Path) -> ssl.SSLContext:
    """A new certificate for 127.0.0.1 in ``directory``; who trusts it and nothing else."""
    return ssl.create_default_context(cafile=certificate(directory, "127.0.0.1")[0])


@pytest.mark.slow
async def test_tls_and_a_renewed_certificate_without_a_dropped_connection(tmp_path: Path) -> None:
    first = trusting(tmp_path)
    tls = {"cert": "cert.pem", "key": "key.pem"}
    async with backend() as files, running(tmp_path, {"files": files.origin}, tls=tls) as process:
        url = f"{process.origin}/files/mcp"
        async with client(first) as before:
            assert await served(before, url)
            (tmp_path / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
            process.send(signal.SIGHUP)
            await process.wrote("tls.cert")
            async with client(first) as still:
                assert await served(still, url)
            second = trusting(tmp_path)
            await process.wrote("was reloaded")  # by itself, for it looks at its certificates as well
            async with client(second) as after:
                assert await served(after, url)
            assert await served(before, url)
            with pytest.raises(httpx2.ConnectError):
                async with client(first) as late:
                    await served(late, url)


async def test_plain_http_to_a_tls_port_and_the_other_way_round_end_at_once(tmp_path: Path) -> None:
    certificate(tmp_path, "127.0.0.1")
    async with (
        backend() as files,
        running(tmp_path, {"files": files.origin}, tls={"cert": "cert.pem", "key": "key.pem"}) as process,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(10):
            await asyncio.gather(reader.read(), return_exceptions=True)
        writer.close()


@pytest.mark.slow
async def test_several_workers_serve_one_port_and_one_that_dies_is_replaced(tmp_path: Path) -> None:
    async with backend() as files, running(tmp_path, {"files": files.origin}, workers=2, sessions=UNCOUNTED) as process:
        url = f"{process.origin}/files/mcp"
        first = await pids(process, 2)
        async with client() as http:
            session = await initialize(http, url)
        for _ in range(20):  # a session opened by one worker is known to the other
            async with client() as http:
                answer = await post(http, url, "tools/call", QUICK, era="legacy", session=session)
                assert answer.status_code == 200
        os.kill(first[0], signal.SIGKILL)
        await process.wrote("killed by SIGKILL")
        second = await pids(process, 2)
        assert first[1] in second
        async with client() as http:
            assert await served(http, url)
        process.send(signal.SIGTERM)
        assert await process.ended() == 0
        assert await process.wrote("stopped")  # once, where the signal comes before the new worker heeds it


@pytest.mark.slow
async def test_workers_reload_and_drain_together(tmp_path: Path) -> None:
    sections: dict[str, Any] = {"workers": 2, "sessions": UNCOUNTED}
    async with backend() as files, running(tmp_path, {"files": files.origin}, **sections) as process, client() as http:
        process.reload(configured({"files": files.origin, "other": files.origin}, process.port, **sections))
        await process.wrote("was reloaded", times=2)
        calling = asyncio.create_task(call(http, f"{process.origin}/other/mcp", SLOW))
        await files.begun.wait()
        process.send(signal.SIGINT)
        await process.wrote("stopping", times=2)
        files.go_on.set()
        assert (await calling).status_code == 200
        assert await process.ended() == 0


@pytest.mark.slow
async def test_a_worker_that_replaces_another_serves_by_what_the_file_says_now(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("default: allow\n")
    sections: dict[str, Any] = {"workers": 2, "sessions": UNCOUNTED, "access": {"file": "policy.yaml"}}
    async with backend() as files, running(tmp_path, {"files": files.origin}, **sections) as process:
        url = f"{process.origin}/files/mcp"
        policy.write_text("default: deny\n")
        await process.wrote("was reloaded", times=2)
        for pid in await pids(process, 2):
            os.kill(pid, signal.SIGKILL)
        await process.wrote("was reloaded", times=4)
        async with client() as http:
            assert not await served(http, url)

        policy.write_text("default: perhaps\n")
        await process.wrote("was refused|one was refused", times=2)
        old, other = await pids(process, 2)
        os.kill(old, signal.SIGKILL)
        await process.wrote("another starts", times=4)  # it does not serve by a policy that is not in force
        policy.write_text("default: deny\n")
        await process.wrote("was reloaded", times=5)
        assert other in await pids(process, 2)


@pytest.mark.slow
async def test_workers_do_not_outlive_the_process_that_watches_them(tmp_path: Path) -> None:
    async with backend() as files, running(tmp_path, {"files": files.origin}, workers=2, sessions=UNCOUNTED) as process:
        await pids(process, 2)
        process.send(signal.SIGKILL)
        await process.ended()  # what they write to is closed by the last of them
        await process.wrote("it ends too", times=2)


async def test_workers_that_cannot_start_end_it_all(tmp_path: Path) -> None:
    (tmp_path / "audit.db").write_text("this is no database" * 100)
    async with backend() as files:
        with pytest.raises(AssertionError, match="audit"):
            async with running(
                tmp_path, {"files": files.origin}, workers=2, sessions=UNCOUNTED, audit={"sqlite": "audit.db"}
            ):
                pass


FAILING = """
import sys
from mcp_middleware.gateway.lines import configure_logging
from mcp_middleware.gateway.supervisor import supervise

configure_logging(sys.stderr, "info", "text")

def work(parent, first, again):
    raise RuntimeError("nobody expected this")

sys.exit(supervise(2, work))
"""


async def test_a_worker_that_fails_as_nobody_expected_says_why() -> None:
    failing = await asyncio.create_subprocess_exec(sys.executable, "-c", FAILING, stderr=asyncio.subprocess.PIPE)
    _, said = await failing.communicate()
    assert failing.returncode == 1
    assert b"ERROR a worker failed\n" in said
    assert b"RuntimeError: nobody expected this\n" in said


async def test_case_37_a_header_flood_is_answered_431_and_recorded(tmp_path: Path) -> None:
    audit = {"sqlite": "audit.db"}
    async with backend() as files, running(tmp_path, {"files": files.origin}, audit=audit) as process, client() as http:
        for flood in ({f"x-{index}": "y" * 1000 for index in range(300)}, {f"x-{index}": "y" for index in range(900)}):
            answer = await http.get(f"{process.origin}/files/mcp", headers=flood)
            assert answer.status_code == 431
        assert await served(http, f"{process.origin}/files/mcp")
        process.send(signal.SIGTERM)
        assert await process.ended() == 0
    reasons = [record.reason for record in AuditTrail(tmp_path / "audit.db").read()]
    assert reasons == ["headers_too_large", "headers_too_large", None]


@pytest.mark.slow
async def test_case_37_slow_headers_and_slow_bodies_are_cut_off_while_others_are_served(tmp_path: Path) -> None:
    async with backend() as files, running(tmp_path, {"files": files.origin}) as process, client() as http:
        heads = [await _dripping(process, b"POST /files/mcp HTTP/1.1\r\nHost: a\r\n", b"X: y\r\n") for _ in range(100)]
        bodies = [
            await _dripping(
                process,
                b"POST /files/mcp HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                b"Content-Length: 1000\r\n\r\n" % process.port,
                b" ",
            )
            for _ in range(100)
        ]
        assert await served(http, f"{process.origin}/files/mcp")
        answers = await asyncio.gather(*(ended for ended in heads + bodies))
        assert {answer[:12] for answer in answers} == {b"HTTP/1.1 408"}
        assert await served(http, f"{process.origin}/files/mcp")
        assert files.calls == 2


async def _dripping(process: Process, head: bytes, drop: bytes) -> "asyncio.Task[bytes]":
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
    writer.write(head)

    async def drip() -> None:
        while True:
            writer.write(drop)
            await asyncio.sleep(0.5)

    async def whole() -> bytes:
        dripping = asyncio.create_task(drip())
        try:
            async with asyncio.timeout(20):
                return await reader.read()
        finally:
            dripping.cancel()
            writer.close()

    return asyncio.create_task(whole())


async def test_case_34_the_access_log_says_who_asked_what_and_how_it_ended_in_one_line(tmp_path: Path) -> None:
    async with backend() as files, running(tmp_path, {"files": files.origin}) as process, client() as http:
        url = f"{process.origin}/files/mcp"
        await call(http, url, {"name": "quick", "arguments": {}})
        name = "evil\n00:00:00 \x1b[31m\u202etool"
        await post(http, url, "tools/call", {"name": name, "arguments": {}}, era="legacy", session="none")
        (line,) = await process.wrote(r" tools/call quick ")
        assert line.split()[1:6] == ["anonymous", "tools/call", "quick", f"files@{files.origin[7:]}/mcp", "200"]
        (line,) = await process.wrote("evil")
        assert '"evil\\n00:00:00 \\x1b[31m\\u202etool"' in line
        assert line.isprintable()


@pytest.mark.slow
async def test_logs_for_programs_are_json_and_the_access_log_can_be_off(tmp_path: Path) -> None:
    json_format = ("--log-format", "json")
    async with backend() as files, client() as http:
        async with running(tmp_path, {"files": files.origin}, options=json_format) as process:
            assert await served(http, f"{process.origin}/files/mcp")
            (line,) = await process.wrote('"method":"tools/call"')
            found = json.loads(line)
            assert (found["agent"], found["target"], found["server"], found["status"]) == (
                "anonymous",
                "quick",
                "files",
                200,
            )
            process.send(signal.SIGTERM)
            await process.ended()
            assert all(json.loads(line) for line in process.lines[:-1])
        async with running(tmp_path, {"files": files.origin}, access_log=False) as process:
            assert await served(http, f"{process.origin}/files/mcp")
            process.send(signal.SIGTERM)
            await process.ended()
            assert not any("tools/call" in line for line in process.lines)


async def test_the_banner_says_who_answers_what_is_on_and_what_is_dangerous(tmp_path: Path) -> None:
    servers: dict[str, str] = {"gone": "http://127.0.0.1:9"}
    async with backend() as files, running(tmp_path, servers | {"files": files.origin}) as process:
        await process.wrote("! auth is off")
        text = "\n".join(process.lines)
        assert f"listens on {process.origin}" in text
        assert "/gone/mcp   DOES NOT ANSWER" in text
        assert "/files/mcp  answers" in text
        assert "DANGEROUS" in text
