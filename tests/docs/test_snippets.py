"""Every ``python`` block of the documentation runs by itself, in an empty directory and without a network; every
``gateway.yaml`` is one that the gateway accepts; and every command of ours in a shell block is one that we have.

A block of another language with a title (```` ```yaml title="policy.yaml" ````) is a file: the blocks of its page find
it in their directory.
"""

import re
import shlex
import socket
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mcp_middleware.audit.__main__ import parse as parse_audit
from mcp_middleware.gateway.cli import _parser as gateway_parser
from mcp_middleware.gateway.cli import main
from mcp_middleware.gateway.schema import schema
from tests.docs.blocks import PAGES, Block, blocks_of, write_files
from tests.support import SESSION_KEY

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON_BLOCKS = [block for block in BLOCKS if block.language in ("python", "py")]
CONFIGURATIONS = [block for block in BLOCKS if block.title in ("gateway.yaml", "servers.yaml")]

AROUND_SERVERS = """
listen: 127.0.0.1:8080
public_url: https://mcp.example.com
auth: {issuers: ["https://login.example.com"]}
sessions: {keys: ["${SESSION_KEY}"]}
"""
"""What makes a whole file of the section that a block has."""

ENVIRONMENT = {
    "SESSION_KEY": SESSION_KEY,
    "FILES_KEY": "a-secret",
    "GATEWAY_SECRET": "another-secret",
    "REDIS_URL": "redis://127.0.0.1:6379/0",
}

_OURS = re.compile(r"(?:mcp-gateway|python -m mcp_middleware\.(?P<module>gateway|audit))\b")
_NEXT_COMMAND = re.compile(r"&&|[|;>]|(?:^|\s)#")


@cache
def private_key() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


def commands_in(block: Block) -> list[str]:
    """The package's own commands in a shell block, each without what the shell does with it."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [command for line in lines if _OURS.match(command := _NEXT_COMMAND.split(line)[0].strip())]


COMMANDS = [(block, command) for block in BLOCKS if block.language == "sh" for command in commands_in(block)]


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def loopback_only(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in ("localhost", "127.0.0.1", "::1", None):
            raise AssertionError(f"a block of the documentation looks up {host!r}")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", loopback_only)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=[block.name for block in PYTHON_BLOCKS])
def test_a_python_block_runs_alone(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(block.page, tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    code = compile("\n" * (block.line - 1) + block.code, block.name, "exec")
    exec(code, {"__name__": "__main__"})  # noqa: S102 - running it is the test


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("block", CONFIGURATIONS, ids=[block.name for block in CONFIGURATIONS])
def test_the_gateway_accepts_its_configuration(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(block.page, tmp_path)
    code = block.code if block.title == "gateway.yaml" else AROUND_SERVERS + block.code
    file = tmp_path / "gateway.yaml"
    file.write_text(code)
    for name in re.findall(r"file: (session_key\w*)", code):
        (tmp_path / name).write_text(SESSION_KEY)
    for name in re.findall(r"file: (\w+\.pem)", code):
        (tmp_path / name).write_text(private_key())
    for name in re.findall(r"\$\{(\w+)\}", code):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    status = main(["check", str(file)])
    assert status == 0, capsys.readouterr().err
    jsonschema.validate(yaml.safe_load(code), schema())  # as an editor does


@pytest.mark.parametrize(
    ("block", "command"), COMMANDS, ids=[f"{block.name}: {command}" for block, command in COMMANDS]
)
def test_a_command_of_ours_exists(block: Block, command: str) -> None:
    match = _OURS.match(command)
    assert match is not None
    arguments = shlex.split(command[match.end() :])
    if match["module"] == "audit":
        parse_audit(arguments, datetime.now(UTC))
    else:
        gateway_parser().parse_args(arguments)


def test_the_quick_starts_are_among_what_is_tried() -> None:
    assert any(block.page.name == "README.md" for block in PYTHON_BLOCKS)
    assert any(block.page.name == "README.md" for block in CONFIGURATIONS)
    assert any(command.startswith("mcp-gateway run") for block, command in COMMANDS if block.page.name == "README.md")
