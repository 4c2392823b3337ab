"""What the gateway's file may hold, for editors (JSON Schema) and for people (Markdown), from the table in ``keys``."""

from typing import Any, Final

import yaml

from .keys import FILE
from .scalars import SECRET_FILE
from .shapes import Key, Section

__all__ = ["reference_markdown", "schema"]

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_PREFACE: Final = """\
# Configuration of the gateway

`mcp-gateway run gateway.yaml` reads one YAML file; `mcp-gateway check gateway.yaml` says everything that is wrong with
it at once, each with its line. `mcp-gateway schema` prints its JSON Schema, for editors.

```yaml
listen: 127.0.0.1:8080
public_url: https://mcp.example.com
servers:
  search: {url: "http://127.0.0.1:9001/mcp"}
  files:
    instances: ["http://127.0.0.1:9002/mcp", "http://127.0.0.1:9003/mcp"]
    credentials: {type: header, name: X-Api-Key, value: "${FILES_KEY}"}
auth: {issuers: [{issuer: "https://login.example.com"}], scopes: ["mcp:use"]}
access:
  rules:
    - {agents: ["*"], servers: [search], tools: ["*"]}
    - {agents: ["ci-*"], servers: [files], tools: [read_*], scopes: ["files:read"]}
limits: {requests: 60/minute, tokens: 50000/minute}
sessions: {keys: [{file: /run/secrets/session_key}]}
audit: {sqlite: audit.db}
```

## Values

| value | what may stand there |
|---|---|
| any string | `${NAME}` in it is the environment variable of that name, `$${` a literal `${`. One that is not set \
is an error. |
| number, true or false | The same, where `"${NAME}"` is the whole value. |
| duration | `250ms`, `60s`, `30m`, `12h`, `1d`, or a number of seconds; above 0. |
| size | `64KiB`, `4MiB`, `1GiB`, or a number of bytes; above 0. |
| rate | `60/minute`, `100 per 2 hours`; the amount is also how much may come at once. |
| glob | What whole names look like: `*` is any run of characters, also none, `?` exactly one. `[`, `]`, `{`, `}`, \
`\\` and a leading `!` are refused. |
| path | Relative ones start where the file is. |
| secret | A string, best from the environment, or `{file: PATH}`: what the file holds, without the line break at its \
end. |

Secrets, and whatever comes from the environment, are shown in no error and no log. YAML is read as plain data: no \
anchors, aliases or tags, and every key once.
"""


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the file as it is written, references to the environment included.

    It judges keys and values one by one. What several keys mean together is for ``config.load`` alone.
    """
    secret_file = SECRET_FILE.schema() | {"description": "A secret in a file of its own."}
    head = {"$schema": _DIALECT, "title": "mcp-gateway", "description": "The configuration of mcp-gateway."}
    return head | FILE.schema() | {"$defs": {"secretFile": secret_file}}


def reference_markdown() -> str:
    """``docs/configuration.md``: what values look like, and the keys of every section."""
    kinds: dict[str, list[Section]] = {}
    for section in FILE.sections():
        kinds.setdefault(section.name, []).append(section)
    return "\n".join([_PREFACE, *(_section(name, sections) for name, sections in kinds.items())])


def _section(name: str, kinds: list[Section]) -> str:
    """The keys of a section. One that has several kinds needs only what all of them need."""
    heading = "The file" if not name else f"`{name}`" if "." in name or " " not in name else name.capitalize()
    names = [{key.name for key in section.keys} for section in kinds]
    keys = {key.name: key for section in kinds for key in section.keys}
    rows = [
        f"| `{key.name}` | {key.shape.label} | {_default(key, all(key.name in kind for kind in names))} | {key.about} |"
        for key in keys.values()
    ]
    return "\n".join([f"## {heading}", "", "| key | value | without it | meaning |", "|---|---|---|---|", *rows, ""])


def _default(key: Key, everywhere: bool) -> str:
    if key.required:
        return "required" if everywhere else ""
    if key.default is None or key.default in ({}, []):
        return ""
    return f"`{yaml.safe_dump(key.default, default_flow_style=True).splitlines()[0]}`"


if __name__ == "__main__":
    print(reference_markdown(), end="")
