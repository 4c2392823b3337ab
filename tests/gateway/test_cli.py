"""The command line: what it says, and how it ends."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from mcp_middleware.gateway.cli import main
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


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


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
    assert ended.stderr.startswith("mcp-gateway: cannot listen on 192.0.2.1:8080: ")
    assert len(ended.stderr.splitlines()) == 1


def test_no_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "usage: mcp-gateway" in capsys.readouterr().err
