"""The gateway's file: what it says, and what is said of one that is wrong."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.authorization import Policy
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.gateway.banner import capabilities
from mcp_middleware.gateway.config import Config, ConfigErrors, from_mapping, load
from mcp_middleware.message import Request, parse
from mcp_middleware.ratelimit import AgentLimits, Rate
from mcp_middleware.resource_server import Issuer
from mcp_middleware.types import Principal
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


def call(tool: str) -> Request:
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"%s","arguments":{}}}' % tool.encode()
    message = parse(body)
    assert isinstance(message, Request)
    return message


def test_the_contracts_file_is_read_as_it_stands(tmp_path: Path) -> None:
    path = written(tmp_path, CONTRACT)
    config = load(path, environ=ENVIRON)
    assert (config.source, config.host, config.port) == (str(path), "127.0.0.1", 8080)
    assert config.public_url == "https://mcp.example.com"
    assert config.resource("files") == "https://mcp.example.com/files/mcp"
    assert config.servers["search"].instances == ("http://127.0.0.1:9001/mcp",)
    files = config.servers["files"]
    assert (files.name, files.timeout, files.stream_idle) == ("files", 60.0, 300.0)
    assert files.instances == ("http://127.0.0.1:9002/mcp", "http://127.0.0.1:9003/mcp")
    assert files.headers == {"x-api-key": SECRET}
    assert config.auth is not None
    assert config.auth.issuers == (Issuer("https://login.example.com"),)
    assert config.auth.scopes == ("mcp:use",)
    assert config.limits is not None
    assert (config.limits.requests, config.limits.tokens) == (Rate("60/minute"), Rate("50000/minute"))
    assert config.limits.agents == {"batch-*": AgentLimits(Rate("600/minute"), Rate("1000000/minute"))}
    assert config.sessions.keys == (SESSION_KEY,)
    assert (config.sessions.idle, config.sessions.lifetime, config.sessions.per_agent) == (1800, 43_200, 100)
    assert config.tracing is not None
    assert config.tracing.otlp == "http://127.0.0.1:4318"
    assert config.audit is not None
    assert (config.audit.sqlite, config.audit.on_failure) == (tmp_path / "audit.db", "refuse")
    assert config.state_name == "memory"
    assert (config.state, config.workers, config.tls, config.warnings) == ("memory", 1, None, ())


def test_a_rule_counts_where_its_servers_match(tmp_path: Path) -> None:
    policies = load(written(tmp_path, CONTRACT), environ=ENVIRON).policies
    caller = Principal(issuer="https://login.example.com", client="ci", subject="ci")
    allowed = {}
    for name, policy in policies.items():
        assert policy is not None
        allowed[name] = policy.authorize(caller, call("echo")).allowed
    assert allowed == {"search": True, "files": False}


def test_nothing_secret_is_in_a_repr(tmp_path: Path) -> None:
    text = CONTRACT.replace("state: memory", "state: redis://user:hunter2@127.0.0.1:6379/1")
    text = text.replace("otlp: http://127.0.0.1:4318", 'otlp: http://127.0.0.1:4318, headers: {x-key: "${FILES_KEY}"}')
    config = load(written(tmp_path, text), environ=ENVIRON)
    assert not any(secret in repr(config) for secret in (SECRET, SESSION_KEY, "hunter2"))
    assert config.state_name == "redis://127.0.0.1:6379/1"


def test_what_is_not_given_has_a_safe_value_and_is_warned_of(tmp_path: Path) -> None:
    config = loaded(tmp_path, SMALL)
    assert (config.host, config.port, config.public_url) == ("127.0.0.1", 8080, "http://127.0.0.1:8080")
    assert (config.auth, config.limits, config.audit, config.policies) == (None, None, None, {"a": None})
    assert config.sessions.keys == ()
    keys = [warning.split(" ")[0] for warning in config.warnings]
    assert sorted(keys) == ["access", "audit", "auth", "limits", "sessions.keys"]


@pytest.mark.parametrize("off", ["off", "Off", "no", "false", '"off"'])
def test_off_is_understood_as_yaml_spells_it(tmp_path: Path, off: str) -> None:
    assert loaded(tmp_path, SMALL.replace("off", off)).auth is None


def test_reading_changes_nothing_and_twice_gives_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, CONTRACT.replace("access:", "# access:"))
    assert load(path, environ=ENVIRON) == load(path, environ=ENVIRON)
    assert [entry.name for entry in tmp_path.iterdir()] == ["gateway.yaml"]


def test_the_environment_is_read_in_any_string(tmp_path: Path) -> None:
    text = (
        SMALL.replace("http://127.0.0.1:9001/mcp", "'http://${HOST}:${PORT}/mcp'")
        + 'workers: "${WORKERS}"\nallow_unauthenticated: "${FORCE}"\ndrain: "${DRAIN}"\n'
        + 'tracing: {otlp: "http://127.0.0.1:4318", headers: {x-a: "$${A}", x-b: "$5 ${B}"}}\n'
        + 'access: {rules: [{tools: ["${TOOLS}"]}]}\n'
    )
    config = loaded(
        tmp_path, text, HOST="127.0.0.1", PORT="7000", WORKERS="1", FORCE="true", DRAIN="5s", B="b", TOOLS="read_*"
    )
    assert config.servers["a"].instances == ("http://127.0.0.1:7000/mcp",)
    assert (config.workers, config.drain) == (1, 5.0)
    assert config.tracing is not None
    assert config.tracing.headers == {"x-a": "${A}", "x-b": "$5 b"}
    policy = config.policies["a"]
    assert isinstance(policy, Policy)
    assert {glob.text for glob in policy.rules[0].targets["tool"]} == {"read_*"}


def test_secrets_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(SESSION_KEY + "\n")
    (tmp_path / "api").write_text(SECRET + "\r\n")
    (tmp_path / "redis").write_text("redis://127.0.0.1/2")
    text = """\
servers: {a: {url: http://127.0.0.1:9001/mcp, headers: {X-Key: {file: "${WHICH}"}}}}
auth: off
sessions: {keys: [{file: key}]}
state: {file: redis}
"""
    config = loaded(tmp_path, text, WHICH="api")
    assert config.servers["a"].headers == {"x-key": SECRET}
    assert config.sessions.keys == (SESSION_KEY,)
    assert config.state == "redis://127.0.0.1/2"
    assert set(config.files) == {tmp_path / name for name in ("key", "api", "redis")}


def test_a_policy_in_a_file_of_its_own_has_servers_and_its_own_lines(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("rules:\n- {servers: [a], tools: [echo]}\n")
    config = loaded(tmp_path, SMALL + "access: {file: policy.yaml}\n")
    assert config.policies["a"] is not None
    assert config.files == (tmp_path / "policy.yaml",)
    (tmp_path / "policy.yaml").write_text("rules:\n- {servers: [b], tools: [echo]}\n")
    assert refused(tmp_path, SMALL + "access: {file: policy.yaml}\n") == [
        "policy.yaml:2: rules[0].servers has the glob 'b', which matches no server; the servers are a"
    ]


ISSUERS = "{issuers: [https://login.example.com]}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("listen: 8080", "gateway.yaml:4: listen is 8080 (a number); it must be host:port, such as 127.0.0.1:8080"),
        ("listen: localhost", "listen is 'localhost'; it must be host:port"),
        ("listen: '::1:80'", "listen is '::1:80'; it must be host:port"),
        ("listen: localhost:70000", "listen is 'localhost:70000'; it must be host:port"),
        ("public_url: ftp://x", "public_url is 'ftp://x'; it must be an absolute http or https URL without user"),
        ("public_url: https://u:p@x", "it must be an absolute http or https URL without user"),
        ("public_url: https://x/?a", "it must be an absolute http or https URL without user, query and fragment"),
        ("listen: 127.0.0.1:0", "gateway.yaml:1: public_url is missing; it must be the URL"),
        ("limit: {}", "gateway.yaml:4: limit is no key of this place; did you mean limits? Allowed are listen,"),
        ("zebra: {}", "gateway.yaml:4: zebra is no key of this place; allowed are listen,"),
        ("'a b\\n': 1", "is no key of this place"),
        ("auth: off", "gateway.yaml:4: the key 'auth' is there twice; keep one"),
        ("limits: {}", "gateway.yaml:4: limits limits nothing; give requests, tokens, concurrency, agents or tools"),
        ("limits: {requests: off}", "limits limits nothing"),
        ("limits: {requests: 60/fortnight}", "limits.requests is '60/fortnight'; it must be a rate such as 60/minute"),
        ("limits: {requests: 60}", "limits.requests is 60 (a number); it must be a rate"),
        ("limits: {requests: {burst: 1}}", "limits.requests.rate is missing"),
        (
            "limits: {agents: {'x': {token: 1/s}}}",
            "limits.agents.x.token is no key of this place; did you mean tokens?",
        ),
        ("sessions: {keys: [short]}", "sessions.keys[0] (not shown) must be 32 random bytes in base64"),
        ("sessions: {keys: [7]}", "sessions.keys[0] must be 32 random bytes in base64"),
        ("sessions: {keys: [{file: gone}]}", "sessions.keys[0].file is 'gone'; it must name a readable file (No such"),
        ("sessions: {keys: [{file: ''}]}", "sessions.keys[0].file is ''; it must be the path of a file"),
        (
            "sessions: {keys: [{file: /dev/null}]}",
            "sessions.keys[0].file is '/dev/null'; it must name a file that is not",
        ),
        ("sessions: {keys: [{file: /dev/zero}]}", "must name a file of at most 65536 bytes"),
        ("sessions: {keys: [{files: gone}]}", "sessions.keys[0].files is no key of this place; did you mean file?"),
        (
            f"sessions: {{keys: ['{SESSION_KEY}', '{SESSION_KEY}']}}",
            "sessions.keys[1] repeats sessions.keys[0]; keep one",
        ),
        ("sessions: {idle: 0}", "sessions.idle is 0 (a number); it must be a duration above 0"),
        ("sessions: {idle: 5 m}", "sessions.idle is '5 m'; it must be a duration above 0"),
        ("sessions: {idle: 999d}", "sessions.idle is '999d'; it must be a duration above 0 and of at most 366d"),
        ("sessions: {per_agent: 0}", "sessions.per_agent is 0 (a number); it must be a whole number from 1"),
        ("sessions: {per_agent: many}", "sessions.per_agent is 'many'; it must be a whole number from 1, or off"),
        ("tracing: {}", "gateway.yaml:4: tracing.otlp is missing"),
        ("tracing: {otlp: localhost}", "tracing.otlp is 'localhost'; it must be an absolute http or https URL"),
        *(
            (
                f"tracing: {{otlp: 'http://x:4318/{path}'}}",
                f"tracing.otlp is 'http://x:4318/{path}'; it must be an absolute http or https URL without user, query "
                "and fragment, the base to which /v1/traces and /v1/metrics are added, such as http://127.0.0.1:4318",
            )
            for path in ("v1/traces", "v1/metrics/", "otlp/v1/logs")
        ),
        ("tracing: {otlp: 'http://x', trust: me}", "tracing.trust is 'me'; it must be none or authenticated or all"),
        ("tracing: {otlp: 'http://x', baggage: ['a b']}", "tracing.baggage[0] is 'a b'; it must be a key of W3C"),
        ("audit: {}", "audit is of no use without sqlite or jsonl; give one"),
        ("audit: {sqlite: gone/a.db}", "audit.sqlite is 'gone/a.db'; it must name a file in a directory that exists"),
        ("audit: {sqlite: a, jsonl: ./a}", "audit.sqlite and audit.jsonl are the same file; give two"),
        ("audit: {jsonl: .}", "audit.jsonl is '.'; it must name a file"),
        ("audit: {jsonl: a, on_failure: no}", "audit.on_failure is no (a boolean); it must be refuse or continue"),
        ("state: postgres://x", "state (not shown) must be memory, or a URL such as redis://host:6379/0"),
        ("state: redis://:pw@/0", "state (not shown) must be memory, or a URL"),
        ("workers: 0", "workers is 0 (a number); it must be a whole number from 1 to 256"),
        ("workers: two", "workers is 'two'; it must be a whole number from 1 to 256"),
        ("tls: {cert: 7, key: '" + "a" * 5000 + "'}", "tls.cert is 7 (a number); it must name a file that can be read"),
        ("tls: {cert: a.pem}", "tls.key is missing"),
        ("tls: {cert: a.pem, key: b.pem}", "tls.cert is 'a.pem'; it must name a file that can be read"),
        ("hosts: ['a/b']", "hosts[0] is 'a/b'; it must be a host, or host:port"),
        ("hosts: mine", "hosts is 'mine'; it must be a list (host)"),
        ("origins: [app.example.com]", "origins[0] is 'app.example.com'; it must be an origin, such as https://app"),
        ("bounds: {max_body_bytes: 4 MB}", "bounds.max_body_bytes is '4 MB'; it must be a size above 0"),
        ("drain: off", "drain is off (a boolean); it must be a duration"),
        ("access: [a]", "access is a list; it must be a policy, or a mapping with file"),
        ("access: {file: gone.yaml}", "access.file is 'gone.yaml'; it must name a file that can be read"),
        ("access: {file: x, rules: []}", "access.rules is no key of this place; allowed are file"),
        ("access: {rule: []}", "gateway.yaml:4: access has the key 'rule'; allowed are default, rules"),
        ("access: {rules: [{tool: [a]}]}", "gateway.yaml:4: access.rules[0] has the key 'tool'; allowed are effect"),
        ("access: {rules: [{tools: ['[']}]}", "access.rules[0].tools has the glob '[': '[' has no meaning in a glob"),
        (
            "access: {rules: [{servers: [b], tools: [x]}]}",
            "gateway.yaml:4: access.rules[0].servers has the glob 'b', which matches no server; the servers are a",
        ),
        ("access: {rules: [{servers: [], tools: [x]}]}", "access.rules[0].servers is empty and can match nothing"),
        ("allow_unauthenticated: perhaps", "allow_unauthenticated is 'perhaps'; it must be true or false"),
        ("drain: '${GONE}'", "drain needs the environment variable GONE, which is not set; set it"),
        ("drain: '${not a name}'", "drain is '${not a name}'; it must have the name of a variable in ${NAME}"),
        (
            "hosts: [${A}]",
            "gateway.yaml:4: not understood as YAML: expected ',' or ']', but got '{'; a text with braces",
        ),
        ("\0", "gateway.yaml: not understood as YAML: unacceptable character #x0000"),
        ("- a", "not understood as YAML"),
        ("a: &x 1", "anchors and aliases are not allowed"),
    ],
)
def test_a_wrong_line_is_named_with_value_and_remedy(tmp_path: Path, text: str, said: str) -> None:
    assert any(said in line for line in refused(tmp_path, SMALL + text + "\n")), refused(tmp_path, SMALL + text + "\n")


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        ("tls:\n\tcert: x", 5, 1, "found character '\\t' that cannot start any token; indent with spaces"),
        ('listen: "a\nb: []', 6, 1, "found unexpected end of stream while scanning a quoted scalar from line 4; close"),
        (
            "hosts: [a\nb: c",
            5,
            2,
            "expected ',' or ']', but got ':' while parsing a flow sequence from line 4; close",
        ),
        (
            "tls:\n    cert: a\n   key: b",
            6,
            4,
            "expected <block end>, but found '<block mapping start>' while parsing a",
        ),
        (
            "listen:\n  127.0.0.1:80\n  drain: 1s",
            6,
            8,
            "mapping values are not allowed here; a text with a colon and a",
        ),
        ('listen: "C:\\d"', 4, 13, "found unknown escape character 'd'; in double quotes a backslash needs another"),
        (
            "listen\nhosts: []",
            5,
            1,
            "could not find expected ':' while scanning a simple key from line 4; end a key with",
        ),
        ("hosts: " + "[" * 9, 4, 15, "nested too deeply; at most 8 levels are read"),
    ],
)
def test_what_is_no_yaml_is_named_with_line_column_and_remedy(
    tmp_path: Path, text: str, line: int, column: int, said: str
) -> None:
    (only,) = refused(tmp_path, SMALL + text + "\n")
    assert only.startswith(f"gateway.yaml:{line}: not understood as YAML: {said}")
    assert only.endswith(f" (column {column})")


def test_a_character_that_yaml_has_not_is_named_with_its_place(tmp_path: Path) -> None:
    assert refused(tmp_path, SMALL + "# a\0b\n") == [
        "gateway.yaml: not understood as YAML: unacceptable character #x0000 in line 4; leave it out (column 4)"
    ]


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ("A: {url: 'http://x/mcp'}", "servers has the key 'A'; it must be at most 64 of a-z"),
        ("healthz: {url: 'http://x/mcp'}", "servers has the key 'healthz'; it must be at most 64 of a-z"),
        (".well-known: {url: 'http://x/mcp'}", "servers has the key '.well-known'; it must"),
        (f"{'a' * 65}: {{url: 'http://x/mcp'}}", "it must be at most 64 of a-z"),
        ("a: {}", "gateway.yaml:2: servers.a has neither of url and instances; it must have one of them"),
        ("a: {url: 'http://x', instances: ['http://y']}", "servers.a has both of url and instances"),
        ("a: 'http://x'", "servers.a is 'http://x'; it must be a mapping with url, instances"),
        ("a: {url: x}", "servers.a.url is 'x'; it must be an absolute http or https URL"),
        ("a: {url: 'http://x/#f'}", "it must be an absolute http or https URL without user, query and fragment"),
        ("a: {url: 'http://x:0/'}", "it must be an absolute http or https URL"),
        ("a: {instances: []}", "servers.a.instances is an empty list; it must be a list with at least one item"),
        ("a: {instances: ['http://x/', 'HTTP://X:80']}", "servers.a.instances[1] repeats servers.a.instances[0]"),
        ("a: {url: 'http://x', timeout: 1e3}", "servers.a.timeout is '1e3'; it must be a duration"),
        ("a: {url: 'http://x', headers: {Mcp-Name: x}}", "servers.a.headers has the key 'Mcp-Name'; it must be"),
        ("a: {url: 'http://x', headers: {mcp_name: x}}", "servers.a.headers has the key 'mcp_name'; it must be"),
        ("a: {url: 'http://x', headers: {Content_Type: x}}", "servers.a.headers has the key 'Content_Type'; it must"),
        ("a: {url: 'http://x', headers: {Connection: x}}", "servers.a.headers has the key 'Connection'; it must be"),
        ("a: {url: 'http://x', headers: {A: b, a: c}}", "servers.a.headers has the key 'a' twice, in two spellings"),
        ('a: {url: "http://x", headers: {A: "b\\nC: d"}}', "servers.a.headers.A (not shown) must be printable ASCII"),
        ('a: {url: "http://x", headers: {A: "b\\tc"}}', "servers.a.headers.A (not shown) must be printable ASCII"),
        ("a: {url: 'http://x', headers: {A: 7}}", "servers.a.headers.A must be printable ASCII"),
    ],
)
def test_a_wrong_server_is_named_with_value_and_remedy(tmp_path: Path, server: str, said: str) -> None:
    lines = refused(tmp_path, f"servers:\n  {server}\nauth: off\n")
    assert any(said in line for line in lines), lines


@pytest.mark.parametrize(
    ("auth", "said"),
    [
        ("on", "auth is on (a boolean); it must be a mapping with issuers, or off"),
        ("{}", "auth.issuers is missing; it must be a list with at least one item (URL, or section)"),
        ("{issuers: []}", "auth.issuers is an empty list"),
        (
            "{issuers: ['http://login.example.com']}",
            "auth.issuers[0] is 'http://login.example.com'; it must be an absolute",
        ),
        ("{issuers: [{issuer: 'https://l', typ: jwt}]}", "auth.issuers[0].typ is 'jwt'; it must be at+jwt or any"),
        (
            "{issuers: [{issuer: 'https://l', algorithms: [HS256]}]}",
            "auth.issuers[0].algorithms[0] is 'HS256'; it must",
        ),
        ("{issuers: [https://l, {issuer: https://l}]}", "auth.issuers has an issuer twice"),
        (f"{ISSUERS[:-1]}, scopes: ['a b']}}", "auth.scopes[0] is 'a b'; it must be a scope"),
        (f"{ISSUERS[:-1]}, scopes: [offline_access]}}", "auth.scopes[0] is 'offline_access'; it must be a scope"),
    ],
)
def test_wrong_authentication_is_named_with_value_and_remedy(tmp_path: Path, auth: str, said: str) -> None:
    lines = refused(tmp_path, SMALL.replace("off", auth))
    assert any(said in line for line in lines), lines


def test_authentication_has_to_be_spoken_of(tmp_path: Path) -> None:
    assert refused(tmp_path, SMALL.replace("auth: off\n", "")) == [
        "gateway.yaml:1: auth is missing; it must be a mapping with issuers, or off"
    ]


@pytest.mark.parametrize("address", ["0.0.0.0:80", "10.0.0.1:80", "mcp.example.com:80", "'[::]:80'"])
def test_authentication_is_off_on_loopback_only_unless_forced(tmp_path: Path, address: str) -> None:
    text = f"listen: {address}\npublic_url: https://mcp.example.com\n{SMALL}"
    assert refused(tmp_path, text) == [
        "gateway.yaml:5: auth is off, and listen is an address that other machines reach; it must be a mapping with "
        "issuers, or listen be 127.0.0.1:80, or allow_unauthenticated be true"
    ]
    assert loaded(tmp_path, text + "allow_unauthenticated: true\n").auth is None


def test_a_public_url_is_https_where_tokens_are_accepted(tmp_path: Path) -> None:
    text = "public_url: http://mcp.example.com\n" + SMALL
    assert any(warning.startswith("public_url is http:") for warning in loaded(tmp_path, text).warnings)
    assert refused(tmp_path, text.replace("off", ISSUERS)) == [
        "gateway.yaml:1: public_url is 'http://mcp.example.com'; it must be https: it is what access tokens are for "
        "(RFC 9728)"
    ]
    assert loaded(tmp_path, text.replace("http://mcp.example.com", "http://localhost:8080/")).public_url == (
        "http://localhost:8080"
    )


def test_several_workers_need_a_key_and_a_shared_count(tmp_path: Path) -> None:
    assert [
        line.partition("; ")[2] for line in refused(tmp_path, SMALL + "workers: 2\nlimits: {requests: 1/second}\n")
    ] == [
        "it must be 1, or sessions.keys be given: each worker would make a key of its own",
        "it must be 1, or state be a Redis URL, or limits.mode and sessions.per_agent be off: each worker would count "
        "by itself",
    ]
    key = f"sessions: {{keys: ['{SESSION_KEY}'], per_agent: off}}\nworkers: 2\n"
    config = loaded(tmp_path, SMALL + key)
    assert (config.workers, config.sessions.per_agent) == (2, None)
    assert any(warning.startswith("workers do not share") for warning in config.warnings)
    assert loaded(tmp_path, SMALL + key + "limits: {mode: off}\n").workers == 2
    shared = (
        f"sessions: {{keys: ['{SESSION_KEY}']}}\nworkers: 2\nstate: redis://127.0.0.1\nlimits: {{requests: 1/second}}\n"
    )
    assert loaded(tmp_path, SMALL + shared).workers == 2


def test_replicas_that_count_by_themselves_are_warned_of(tmp_path: Path) -> None:
    def warned(text: str) -> list[str]:
        return [one for one in loaded(tmp_path, SMALL + text).warnings if one.startswith("replicas")]

    limited = "replicas: 3\nlimits: {requests: 1/second}\n"
    assert warned(limited) == [
        "replicas is 3, and state is memory: each lets the whole of limits and sessions.per_agent pass"
    ]
    assert warned(limited + "state: redis://127.0.0.1\n") == []
    assert warned(limited.replace("replicas: 3", "replicas: 1")) == []
    assert warned(limited.replace("1/second", "1/second, mode: off") + "sessions: {per_agent: off}\n") == []
    alone = "sessions.keys is not given: a key is made that other replicas do not know, and a restart ends all sessions"
    assert alone in loaded(tmp_path, SMALL + limited).warnings


@pytest.mark.parametrize(
    ("rules", "open_to"),
    [
        ("", "a, b"),
        (", rules: [{tools: ['*']}]", "a, b"),
        (", rules: [{effect: deny, servers: [a], tools: ['delete_*']}]", "b"),
        (", rules: [{servers: [b], tools: ['delete_*'], scopes: [files:delete]}]", "a"),
        (", rules: [{effect: deny, agents: [ci], tools: ['*']}]", None),
    ],
)
def test_a_policy_that_keeps_nobody_from_anything_is_warned_of_and_its_default_told(
    tmp_path: Path, rules: str, open_to: str | None
) -> None:
    servers = "servers: {a: {url: http://127.0.0.1:1/mcp}, b: {url: http://127.0.0.1:2/mcp}}\nauth: off\n"
    config = loaded(tmp_path, f"{servers}access: {{default: allow{rules}}}\n")
    said = f"access allows by default, and no rule denies anything on {open_to}: every caller may see and call "
    said += "everything"
    assert [one for one in config.warnings if one.startswith("access")] == ([said] if open_to else [])
    assert capabilities(config)["authorization"] == "policy, allow by default"
    denying = loaded(tmp_path, servers + "access: {rules: [{tools: [x]}]}\n")
    assert not [one for one in denying.warnings if one.startswith("access")]
    assert capabilities(denying)["authorization"] == "policy, deny by default"
    assert capabilities(loaded(tmp_path, SMALL))["authorization"] == "off"


def test_what_opens_a_door_is_warned_of(tmp_path: Path) -> None:
    text = """\
tracing: {otlp: http://127.0.0.1:4318, trust: all, capture_content: yes}
audit: {jsonl: a.jsonl, on_failure: continue}
"""
    warnings = loaded(tmp_path, SMALL + text).warnings
    for named in ("tracing.capture_content is true", "tracing.trust is all", "audit.on_failure is continue"):
        assert any(warning.startswith(named) for warning in warnings)


def test_headers_over_http_to_another_machine_are_warned_of(tmp_path: Path) -> None:
    text = SMALL.replace("http://127.0.0.1:9001/mcp", "http://files.internal/mcp, headers: {x-key: k}")
    assert any(warning.startswith("servers.a.headers go over http") for warning in loaded(tmp_path, text).warnings)


def test_everything_wrong_is_said_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
listen: nowhere
servers:
  a: {}
  B: {url: "http://127.0.0.1/mcp", timout: 1}
  c: {url: "http://127.0.0.1/mcp", url: "http://127.0.0.1/mcp"}
auth: {issuers: [x]}
access: {rules: [{servers: [z], tools: [a]}]}
limits: {requests: "${GONE}"}
workers: 1.5
"""
    assert [line.split(": ")[0] for line in refused(tmp_path, text)] == [
        f"gateway.yaml:{line}" for line in (1, 3, 4, 4, 5, 6, 7, 8, 9)
    ]


@pytest.mark.parametrize("content", [None, "", "# nothing", "[", "- a"])
def test_a_file_that_holds_no_configuration_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "gateway.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigErrors, match=r"gateway\.yaml.*the configuration|not understood as YAML"):
        load(path, environ={})


@pytest.mark.parametrize("path", [None, 7])
def test_what_names_no_file_is_refused(path: Any) -> None:
    with pytest.raises(ConfigErrors, match="the path of the configuration is"):
        load(path, environ={})


def test_the_form_is_the_same_in_python_values() -> None:
    given: dict[str, Any] = {
        "servers": {"a": {"url": "http://127.0.0.1:1/mcp", "timeout": 0.5}},
        "auth": False,
        "bounds": {"max_body_bytes": 1000, "body_timeout": "2s"},
        "limits": {"requests": {"rate": "60/minute", "burst": 5}, "agents": {"x": {"requests": "off"}}},
    }
    config = from_mapping(given, environ={})
    assert config.servers["a"].timeout == 0.5
    assert (config.bounds.max_body_bytes, config.bounds.body_timeout) == (1000, 2.0)
    assert config.limits is not None
    assert config.limits.requests == Rate("60/minute", 5)
    assert config.limits.agents["x"] == AgentLimits(requests=None)
    with pytest.raises(ConfigErrors, match=r"^here: workers is 0 \(a number\)"):
        from_mapping(given | {"workers": 0}, environ={}, source="here")


def test_values_of_the_environment_are_in_no_error(tmp_path: Path) -> None:
    secret = "hunter2/?#[*"
    text = """\
listen: ${S}
public_url: ${S}
servers:
  a: {url: "${S}", headers: {X: "${S}\\n"}, timeout: "${S}"}
auth: {issuers: ["${S}"], scopes: ["${S} ${S}"]}
access: {default: "${S}", rules: [{agents: ["${S}"], servers: ["${S}"], tools: ["${S}"], scopes: ["${S} ${S}"]}]}
limits: {requests: "${S}", agents: {x: {tokens: "${S}"}}}
sessions: {keys: ["${S}"], idle: "${S}", per_agent: "${S}"}
tracing: {otlp: "${S}", trust: "${S}", baggage: ["${S}"], capture_content: "${S}"}
audit: {sqlite: "${S}", on_failure: "${S}"}
state: ${S}
workers: ${S}
tls: {cert: "${S}", key: {a: "${S}"}}
hosts: ["${S}"]
origins: ["${S}"]
drain: ${S}
"""
    lines = refused(tmp_path, text, S=secret)
    assert len(lines) > 25
    assert not any("hunter2" in line for line in lines)


SERVERS = {"a": {"url": "http://127.0.0.1:1/mcp"}}
KEYS = (
    "listen public_url servers auth access limits sessions tracing audit state workers tls hosts origins bounds "
    "drain file url instances headers timeout issuers issuer typ audiences scopes default rules agents tools requests "
    "tokens keys idle per_agent otlp sqlite jsonl cert key rate burst a b"
)
NAMES = st.sampled_from(KEYS.split()) | st.text(max_size=5)
SCALARS: st.SearchStrategy[Any] = (
    st.sampled_from(
        ["${S}", "$${", "${", "${GONE}", "x${S}", "off", "1s", "http://127.0.0.1/mcp", "*", "60/minute", "memory"]
    )
    | st.text(max_size=10)
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.none()
    | st.binary(max_size=3)
    | st.builds(lambda: 10**5000)
)
VALUES = st.recursive(
    SCALARS,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(NAMES, children, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(NAMES, VALUES, max_size=6) | VALUES)
def test_any_values_are_a_configuration_or_refused_and_no_secret_is_shown(mapping: Any) -> None:
    secret = "hunter2-" + "[*?#"
    if isinstance(mapping, dict):
        mapping = {"servers": SERVERS, "auth": "off"} | mapping
    try:
        shown = repr(from_mapping(mapping, environ={"S": secret}).sessions)
    except ConfigurationError as error:
        shown = str(error)
        assert shown
    assert secret not in shown


@given(st.text(max_size=200) | st.text(alphabet="servauth:offlimk{}[]$&*!-\n ,\"'?|>", max_size=200))
def test_any_text_is_a_configuration_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, errors="surrogatepass")
    with pytest.raises(ConfigErrors):
        load(path, environ={})
