"""``python -m examples.authorization_server``: what it prints works, and what is wrong it says."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx2
import jwt
import pytest
import yaml
from joserfc.jwk import ECKey

from examples.authorization_server.__main__ import parse
from mcp_middleware.gateway.config import from_mapping
from tests.support import free_port

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "examples.authorization_server"]
README = ROOT / "examples" / "authorization_server" / "README.md"
FILES = "http://127.0.0.1:8000/files/mcp"


@contextmanager
def running(*arguments: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The command on a port of its own: its banner, and the process; ended by Ctrl-C."""
    command = [*COMMAND, f"--port={free_port()}", f"--resource={FILES}", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            yield _until(process.stdout, "Ctrl-C"), process
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=20)[0]
    assert process.returncode == 0, rest
    assert rest == ""


def _until(output: IO[str], word: str) -> str:
    lines = []
    for line in output:
        lines.append(line)
        if word in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def test_what_it_prints_can_be_pasted(tmp_path: Path) -> None:
    clients = tmp_path / "clients.json"
    clients.write_text(json.dumps([{"client_id": "mine", "secret": "secret", "scopes": ["mcp:use"]}]))
    with running(f"--clients={clients}", "--user=carol=admin,editor", "--scope=mcp:use=Use it") as (banner, process):
        assert "DEVELOPMENT ONLY" in banner
        assert "carol (admin, editor)" in banner
        issuer = re.findall(r"^Issuer +(\S+)$", banner, re.MULTILINE)[0]
        block = banner.partition("gateway.yaml:\n")[2].partition("\n\nA client")[0].strip("\n")
        configured = yaml.safe_load(block.replace("# introspection", "introspection"))
        assert configured["auth"]["issuers"][0]["issuer"] == issuer
        assert configured["auth"]["issuers"][0]["introspection"]["client_id"] == "gateway"
        config = from_mapping({"servers": {"files": {"url": "http://127.0.0.1:9001/mcp"}}, **configured})
        assert config.auth is not None
        asked = config.auth.issuers[0].introspection
        assert asked is not None
        assert asked.cache == 0, "revocation is seen at once"
        [get_token] = re.findall(r"TOKEN=\$\(.*?\n    \|.*?\)\n", banner, re.DOTALL)
        [ask] = re.findall(r"curl -s \S+/introspect .*", banner)
        shell = f"{get_token} echo $TOKEN; {ask}"
        said = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True, timeout=20).stdout
        token, _, told = said.partition("\n")
        assert json.loads(told)["active"] is True
        assert json.loads(told)["scope"] == "mcp:use", "else the gateways of the documentation do not take it"
        with httpx2.Client(base_url=issuer) as http:
            assert "Never deploy it" in http.get("/").text
            form = {"grant_type": "client_credentials", "client_id": "mine", "client_secret": "secret"}
            assert http.post("/token", data=form).json()["scope"] == "mcp:use"
            if not hasattr(signal, "SIGHUP"):
                return
            assert process.stdout is not None
            published = [1]
            for word in ("new key", "old key is gone"):
                os.kill(process.pid, signal.SIGHUP)
                assert _until(process.stdout, word)
                published.append(len(http.get("/jwks").json()["keys"]))
            assert published == [1, 2, 1]
            [key] = http.get("/jwks").json()["keys"]
            assert key["kid"] != jwt.get_unverified_header(token)["kid"]


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [*COMMAND, f"--port={port}", f"--resource={FILES}"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=20)
    assert ended.returncode == 1
    assert f"port {port} cannot be had" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--resource"),
        (["--resource=files"], "resource is 'files'"),
        (["--resource", FILES, "--port=0"], "--port is 0"),
        (["--resource", FILES, "--port=70000"], "--port is 70000"),
        (["--resource", FILES, "--lifetime=0"], "--lifetime is 0"),
        (["--resource", FILES, "--form=paseto"], "--form"),
        (["--resource", FILES, "--user==admin"], "--user is '=admin'"),
        (["--resource", FILES, "--trust=x"], "--trust is 'x'"),
        (["--resource", FILES, "--clients=nowhere.json"], "nowhere.json cannot be read"),
        (["--resource", FILES, "--clients=no.json"], "no.json is wrong"),
        (["--resource", FILES, "--clients=object.json"], "object.json is wrong: it must be a list"),
        (["--resource", FILES, "--clients=client.json"], "client.json: client 'a' has"),
        (["--resource", FILES, "--trust=https://idp.example.com=object.json"], "object.json is wrong: there must be"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("no.json").write_text("no")
    Path("object.json").write_text("{}")
    Path("client.json").write_text('[{"client_id": "a", "password": "x"}]')
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_the_clients_of_the_readme_are_right(tmp_path: Path) -> None:
    [text] = re.findall(r"^```json\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    values = json.loads(text)
    values[1]["public_key"] = ECKey.generate_key("P-256").as_dict(private=False)
    clients = tmp_path / "clients.json"
    clients.write_text(json.dumps(values))
    server = parse([f"--resource={FILES}", f"--clients={clients}"]).server
    assert [server.query_client(name).methods[-1] for name in ("agent", "gateway", "editor")] == [
        "client_secret_post",
        "private_key_jwt",
        "none",
    ]


def test_what_is_right_is_taken(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [ECKey.generate_key("P-256").as_dict(private=False)]}))
    options = [
        "--form=opaque",
        "--algorithm=RS256",
        "--lifetime=60",
        "--registered-scope-binds",
        "--scope=a",
        "--scope=b=B",
    ]
    server = parse([f"--resource={FILES}", f"--trust=https://idp.example.com={keys}", *options]).server
    assert (server.form, server.keys.algorithm, server.lifetime) == ("opaque", "RS256", 60)
    assert server.registered_scope_binds
    assert server.scopes == {"a": "", "b": "B"}
    assert list(server.identity_providers) == ["https://idp.example.com"]
