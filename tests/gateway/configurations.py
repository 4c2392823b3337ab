"""Files of a gateway, and what is read of them."""

import os
from pathlib import Path

import pytest

from mcp_middleware.gateway.config import Config, ConfigErrors, load
from tests.support import SESSION_KEY

SECRET = "a-secret-that-nobody-may-see"

ENVIRON = {"FILES_KEY": SECRET, "SESSION_KEY": SESSION_KEY}

CONTRACT = """\
listen: 127.0.0.1:8080
public_url: https://mcp.example.com            # resource identifiers are public_url + /{server}/mcp
servers:
  search: {url: http://127.0.0.1:9001/mcp}
  files:
    instances: [http://127.0.0.1:9002/mcp, http://127.0.0.1:9003/mcp]
    headers: {X-Api-Key: "${FILES_KEY}"}
    timeout: 60s                               # to the first byte; streams have an idle limit of their own
auth: {issuers: [{issuer: https://login.example.com}], scopes: [mcp:use]}      # or: auth: off, said aloud
access: {default: deny, rules: [{agents: ["*"], servers: ["search"], tools: ["*"]}]}   # or {file: policy.yaml}
limits: {requests: 60/minute, tokens: 50000/minute, agents: {"batch-*": {requests: 600/minute, tokens: 1000000/minute}}}
sessions: {keys: ["${SESSION_KEY}"], idle: 30m, lifetime: 12h, per_agent: 100}   # base64 of 32 bytes
tracing: {otlp: http://127.0.0.1:4318}
audit: {sqlite: ./audit.db}
state: memory                                  # or redis://...
workers: 1
"""

SMALL = """\
servers:
  a: {url: http://127.0.0.1:9001/mcp}
auth: off
"""


def written(directory: Path, text: str) -> Path:
    path = directory / "gateway.yaml"
    path.write_text(text)
    return path


def loaded(directory: Path, text: str, **environ: str) -> Config:
    return load(written(directory, text), environ=environ)


def refused(directory: Path, text: str, **environ: str) -> list[str]:
    """The errors, with the file's name only."""
    path = written(directory, text)
    with pytest.raises(ConfigErrors) as error:
        load(path, environ=environ)
    assert str(error.value).splitlines() == list(error.value.errors)
    return [line.replace(f"{directory}{os.sep}", "") for line in error.value.errors]
