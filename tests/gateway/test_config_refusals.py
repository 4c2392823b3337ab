"""A gateway's file that is wrong: what is said of it names the line, the value and the remedy."""

from pathlib import Path
from typing import Any

import pytest

from mcp_middleware.gateway.config import ConfigErrors, load
from tests.support import SESSION_KEY

from .configurations import SMALL, loaded, refused

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
