"""The gateway's file: what it says, and what is warned of."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.authorization import Policy
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.gateway.banner import capabilities
from mcp_middleware.gateway.config import ConfigErrors, from_mapping, load
from mcp_middleware.message import Request, parse
from mcp_middleware.ratelimit import AgentLimits, Rate
from mcp_middleware.resource_server import Issuer
from mcp_middleware.types import Principal
from tests.support import SESSION_KEY

from .configurations import CONTRACT, ENVIRON, SECRET, SMALL, loaded, refused, written


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
