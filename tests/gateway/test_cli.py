"""The command line: what it says, and how it ends."""

import base64
import errno
import gc
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from mcp_middleware.gateway.cli import main
from mcp_middleware.gateway.server import why_not
from tests.certificates import certificate
from tests.support import listener

GOOD = """\
listen: 127.0.0.1:8080
servers:
  search: {url: "http://127.0.0.1:9001/mcp"}
  files: {instances: ["http://127.0.0.1:9002/mcp", "http://127.0.0.1:9003/mcp"]}
auth: {issuers: ["https://login.example.com"], scopes: ["mcp:use"]}
limits: {requests: 60/minute, agents: {"batch-*": {requests: 600/minute}}}
state: redis://user:secret@127.0.0.1:6379/0
"""

BAD = """\
listen: nowhere
servers:
  search: {url: "ftp://127.0.0.1/mcp"}
  files: {urls: ["http://127.0.0.1:9002/mcp"]}
auth: maybe
"""


def written(directory: Path, text: str) -> Path:
    file = directory / "gateway.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("command", ["check", "run"])
def test_everything_wrong_is_said_at_once_with_its_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, BAD)
    assert main([command, str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    for line, key in ((1, "listen"), (3, "servers.search.url"), (4, "servers.files"), (5, "auth")):
        assert any(found.startswith(f"{file}:{line}: {key}") for found in lines), key


def test_a_good_file_is_summed_up_without_its_secrets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(written(tmp_path, GOOD))]) == 0
    said = capsys.readouterr().out
    assert "http://127.0.0.1:8080/files/mcp -> http://127.0.0.1:9002/mcp, http://127.0.0.1:9003/mcp" in said
    assert "authentication: tokens of https://login.example.com, scopes mcp:use" in said
    assert "limits: 60/minute requests, others for batch-*" in said
    assert "dangerous: audit is not given" in said
    assert "secret" not in said


@pytest.mark.parametrize(("rest", "status"), [("", 1), ("sessions: {keys: [{file: key}]}\naudit: {sqlite: a.db}\n", 0)])
def test_strict_fails_on_a_danger(rest: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_text(base64.b64encode(bytes(32)).decode())
    rules = "access: {rules: [{tools: [x]}]}\n"
    file = written(tmp_path, GOOD + rules + rest)
    assert main(["check", "--strict", str(file)]) == status
    assert ("dangerous: " in capsys.readouterr().out) is bool(status)
    assert main(["check", str(file)]) == 0


def test_garbage_is_collected_again_by_a_command_that_has_ended_and_by_a_worker_that_has_started(
    tmp_path: Path,
) -> None:
    assert main(["check", str(written(tmp_path, GOOD))]) == 0
    assert gc.isenabled()
    started = "import gc; from mcp_middleware.gateway import server; gc.disable(); server._settle_heap()"
    subprocess.run([sys.executable, "-c", f"{started}; assert gc.isenabled()"], check=True)


@pytest.mark.parametrize(
    ("cert", "key", "why"),
    [("cert.pem", "key.pem", None), ("key.pem", "cert.pem", "PEM"), ("cert.pem", "other", "PEM")],
)
def test_check_loads_the_certificate(
    cert: str, key: str, why: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate(tmp_path, "127.0.0.1")
    (tmp_path / "other").write_text("no PEM")
    file = written(tmp_path, f"{GOOD}tls: {{cert: {cert}, key: {key}}}\n")
    assert main(["check", str(file)]) == (2 if why else 0)
    said = capsys.readouterr().err
    if why is None:
        assert said == ""
    else:
        assert said.startswith(f"{file}: tls.cert is '{tmp_path / cert}' and tls.key is '{tmp_path / key}'; they must")
        assert why in said


@pytest.mark.parametrize(("words", "needs_it"), [(["run"], True), (["check", "--online"], True), (["check"], False)])
def test_a_missing_extra_is_named(
    words: list[str],
    needs_it: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in ("uvloop", "httptools"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert main([*words, str(written(tmp_path, GOOD))]) == (2 if needs_it else 0)
    said = "mcp-gateway: this needs httptools, uvloop: install mcp-middleware[gateway]\n"
    assert capsys.readouterr().err == (said if needs_it else "")


@pytest.mark.parametrize("words", [["run", "gateway.yaml"], ["demo"], ["check", "--online", "gateway.yaml"]])
def test_on_windows_it_says_so(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(words) == 2
    assert "does not work on Windows" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["schema"], ["check", "gateway.yaml"]])
def test_nobody_listening_any_more_is_no_error(words: list[str], tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    command = [sys.executable, "-m", "mcp_middleware.gateway", *words]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        ended = subprocess.run(
            command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=30, check=False, cwd=tmp_path
        )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("words", [["schema"], ["check", "gateway.yaml"]])
def test_a_full_disk_is_one_line(words: list[str], tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    command = [sys.executable, "-m", "mcp_middleware.gateway", *words]
    with Path("/dev/full").open("w") as output:
        ended = subprocess.run(
            command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=30, check=False, cwd=tmp_path
        )
    assert (ended.returncode, ended.stderr) == (
        1,
        "mcp-gateway: the output cannot be written: No space left on device; give it another place\n",
    )


def test_what_a_file_says_is_shown_by_any_terminal_and_moves_no_cursor(tmp_path: Path) -> None:
    written(tmp_path, GOOD.replace("batch-*", "caf\u00e9*\\e1m\\u202e"))
    command = [sys.executable, "-m", "mcp_middleware.gateway", "check", "gateway.yaml"]
    for encoding, shown in (("utf-8", "caf\u00e9*\\x1b1m\\u202e"), ("ascii", "caf\\xe9*\\x1b1m\\u202e")):
        environ = {**os.environ, "PYTHONIOENCODING": encoding}
        ended = subprocess.run(command, capture_output=True, timeout=30, check=True, cwd=tmp_path, env=environ)
        assert f"others for {shown}\n" in ended.stdout.decode(encoding)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.yaml", "the configuration cannot be read: No such file or directory; name a YAML file that can be"),
        (".", "the configuration cannot be read: Is a directory; name a YAML file that can be"),
        ("empty.yaml", "the configuration is empty; it must be a mapping"),
        ("latin.yaml", "the configuration is not UTF-8 (byte 2); save it as that"),
        ("large.yaml", "the configuration is larger than 262144 bytes, the most that is read"),
    ],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_a_file_that_is_none_is_one_line(
    command: str, name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    (tmp_path / "latin.yaml").write_bytes(b"# \xe9\n")
    (tmp_path / "large.yaml").write_text(GOOD + "#" * 2_000_000)
    assert main([command, str(tmp_path / name)]) == 2
    assert capsys.readouterr() == ("", f"{tmp_path / name}: {said}\n")


def test_a_trail_that_cannot_be_written_is_named_by_its_key(tmp_path: Path) -> None:
    for key, path in (("sqlite", "gateway.yaml"), ("jsonl", "/proc/trail")):
        text = GOOD.replace(":8080", ":0\npublic_url: http://127.0.0.1:8080") + f"audit: {{{key}: {path}}}\n"
        file = written(tmp_path, text.replace("state: redis://user:secret@127.0.0.1:6379/0\n", ""))
        command = [sys.executable, "-m", "mcp_middleware.gateway", "run", str(file)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
        assert ended.stderr.startswith(f"mcp-gateway: {file}: audit.{key}: ")
        assert ended.stderr.endswith("; name a new file or an audit trail\n")


def test_the_schema_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(capsys.readouterr().out))


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    bound = listener()
    bound.listen()
    port = bound.getsockname()[1]
    file = written(tmp_path, GOOD.replace(":8080", f":{port}"))
    command = [sys.executable, "-m", "mcp_middleware.gateway", "run", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    bound.close()
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        f"mcp-gateway: cannot listen on 127.0.0.1:{port}: another program does; stop it, or change `listen`"
    ]


def test_an_address_that_is_not_here_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = GOOD.replace("listen: 127.0.0.1:8080", "listen: 192.0.2.1:8080\npublic_url: https://mcp.example.com")
    command = [sys.executable, "-m", "mcp_middleware.gateway", "run", str(written(tmp_path, text))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert ended.stderr == (
        "mcp-gateway: cannot listen on 192.0.2.1:8080: this machine has no such address; change `listen`\n"
    )


def test_a_port_that_needs_a_right_and_a_host_that_nobody_knows_are_named_with_what_to_do() -> None:
    refused = PermissionError(errno.EACCES, "Permission denied")
    assert "CAP_NET_BIND_SERVICE" in why_not(refused)
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert why_not(unknown) == "Name or service not known; change `listen`"


def test_no_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "usage: mcp-gateway" in capsys.readouterr().err
