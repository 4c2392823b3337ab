"""The schema and the reference of the gateway's file: they say what the reader takes."""

import base64
import functools
import operator
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.authorization.rules import POLICY_KEYS, RULE_KEYS
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.gateway.config import from_mapping
from mcp_middleware.gateway.keys import FILE
from mcp_middleware.gateway.schema import reference_markdown, schema

from .configurations import CONTRACT, SMALL
from .test_config_auth import CONTRACT as AUTH_CONTRACT
from .test_config_auth import PEM

REFERENCE = Path(__file__).parents[2] / "docs" / "configuration.md"
VALIDATOR = jsonschema.Draft202012Validator(schema())
KEYS = [base64.b64encode(bytes([number]) * 32).decode() for number in range(3)]
SECRET = "s" * 32
ENVIRON = {"SESSION_KEY": KEYS[0], "FILES_KEY": "k", "ON": "true", "FIVE": "5", "LAN": "10.1.0.0/16"}


def listed(*items: Any) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(items), min_size=1, unique_by=repr)


def section(required: dict[str, Any] | None = None, **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required or {}, optional=optional)


DURATIONS = st.sampled_from(["250ms", "60s", "1.5h", 1, 0.25, "${FIVE}s", "7"])
SIZES = st.sampled_from(["64KiB", "4MiB", 1000, "100", "${FIVE}MiB"])
COUNTS = st.sampled_from([1, 1000, "${FIVE}"])
FLAGS = st.sampled_from([True, False, "${ON}"])
OFF = st.sampled_from([False, "off"])
HEADERS = st.dictionaries(st.sampled_from(["X-Api-Key", "x-b"]), st.sampled_from(["${FILES_KEY}", "b c"]))
RATES = st.sampled_from(
    ["60/minute", "100 per 2 hours", "1/second", {"rate": "60/minute", "burst": 5}, "${FIVE}/minute"]
)
PROOF = {"client_id": "gateway", "client_secret": "${FILES_KEY}"}
SIGNED = {"client_id": "gateway", "private_key": PEM, "algorithm": "ES256", "key_id": "k"}
GRANTS = [
    {"type": kind, "issuer": "https://login.example.com", **proof, **wanted}
    for kind in ("client_credentials", "token_exchange")
    for proof in ({**PROOF, "secret_method": "client_secret_post"}, SIGNED)
    for wanted in (
        {"audience": "mail", "scope": "a b"},
        {"resource": "https://mail.example.com/mcp", "allow_private_addresses": "${ON}"},
    )
]
CREDENTIALS = [{"type": "none"}, {"type": "header", "name": "X-Own", "value": "${FILES_KEY}"}, *GRANTS]
BUCKETS = section({"requests": RATES}, tokens=RATES)
TIMES: dict[str, st.SearchStrategy[Any]] = {
    "timeout": DURATIONS,
    "stream_idle": DURATIONS,
    "probe_interval": DURATIONS,
    "headers": HEADERS,
    "forward_headers": listed("X-Tenant", "x-b"),
    "credentials": st.sampled_from(CREDENTIALS),
    "caller": st.sampled_from([{"key": SECRET}, {"header": "X-Caller", "key": PEM}]),
    "limits": BUCKETS | section({"tools": st.dictionaries(st.just("s*"), BUCKETS)}),
}
URLS = listed("http://127.0.0.1:9001/mcp", "https://files.example.com", "http://[::1]:9/mcp", "http://h:${FIVE}/mcp")
ANONYMOUS = {
    **TIMES,
    "credentials": st.sampled_from([one for one in CREDENTIALS if one["type"] != "token_exchange"]),
}
del ANONYMOUS["caller"]
CLAIMS = st.sampled_from(["azp", "realm_access.roles", ["client_id", "azp"]])
ISSUER = section(
    {"issuer": st.just("https://login.example.com")},
    typ=st.sampled_from(["at+jwt", "any"]),
    audiences=listed("api", "https://x"),
    algorithms=listed("RS256", "ES256"),
    jwks_uri=st.just("https://login.example.com/keys?v=1"),
    claims=section(agent=CLAIMS, subject=CLAIMS, scopes=CLAIMS, roles=CLAIMS),
    allow_private_addresses=FLAGS,
) | section(
    {"issuer": st.just("https://opaque.example.com")},
    introspection=st.sampled_from(
        [PROOF, {**PROOF, "cache": "off"}, {**SIGNED, "cache": "5s", "endpoint": "https://opaque.example.com/ask?a=1"}]
    ),
)
ISSUERS = st.lists(ISSUER, min_size=1, max_size=1) | listed("https://a.example.com", "https://b.example.com/x")
AUTH = section(
    {"issuers": ISSUERS},
    scopes=listed("mcp:use", "files:read") | st.just([]),
    implied_scopes=st.sampled_from([{}, {"mcp:admin": ["mcp:use"]}]),
    legacy_metadata=FLAGS,
)
RULES = listed(
    {"servers": ["search"], "tools": ["*"], "agents": ["ci-*"], "scopes": ["a:b"]},
    {"effect": "deny", "servers": ["f*"], "prompts": ["p"], "subjects": ["s"], "issuers": ["i"], "roles": ["r"]},
    {"resources": ["file:///*"]},
)


def servers(keys: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    one = section({"url": URLS.map(lambda urls: urls[0])}, **keys) | section({"instances": URLS}, **keys)
    return st.fixed_dictionaries({"search": one, "files": one})


CALLERS = section({"servers": servers(TIMES), "auth": AUTH}) | section({"servers": servers(ANONYMOUS), "auth": OFF})
REST = section(
    listen=st.sampled_from(["127.0.0.1:8080", "[::1]:80", "localhost:${FIVE}"]),
    public_url=st.sampled_from(["https://mcp.example.com", "http://localhost:8080/", "https://x.example.com/mcp"]),
    allow_unauthenticated=FLAGS,
    access=section(default=st.sampled_from(["allow", "deny"]), rules=RULES),
    limits=section(
        {"requests": RATES},
        tokens=RATES | OFF,
        concurrency=COUNTS | OFF,
        agents=st.dictionaries(st.just("b-*"), section(requests=RATES | OFF, concurrency=COUNTS | OFF)),
        tools=st.dictionaries(st.just("s*"), BUCKETS),
        initial_output_tokens=COUNTS | st.just(0),
        image_tokens=COUNTS | st.just(0),
        audio_tokens=COUNTS | st.just(0),
        counter=st.just("estimate"),
        mode=st.sampled_from(["enforce", "shadow"]) | OFF,
        refuse_with=st.sampled_from(["error", "tool_result"]),
        cut_streams=FLAGS,
    ),
    guard=section(
        {"addresses": st.sampled_from(["600/minute", "${FIVE}/second"])},
        tools=st.dictionaries(st.just("s*"), st.just("5/hour")),
        trusted_proxies=listed("10.0.0.0/8", "::1", "${LAN}"),
    ),
    sessions=section(keys=listed(*KEYS), idle=DURATIONS, lifetime=DURATIONS, per_agent=COUNTS | OFF),
    tracing=section(
        {"otlp": st.sampled_from(["http://127.0.0.1:4318", "https://otlp.example.com/otlp/"])},
        headers=HEADERS,
        sample=st.sampled_from([0, 1, 0.1, 0.25, "0.${FIVE}"]),
        baggage=listed("a", "b"),
        trust=st.sampled_from(["none", "authenticated", "all"]),
        capture_content=FLAGS,
    ),
    audit=section(
        {"sqlite": st.just("a.db")}, jsonl=st.just("a.jsonl"), on_failure=st.sampled_from(["refuse", "continue"])
    ),
    state=st.sampled_from(["memory", "redis://127.0.0.1:6379/0", "rediss://u:p@h"]),
    workers=st.just(1),
    replicas=st.integers(1, 50),
    tls=st.just({"cert": __file__, "key": __file__}),
    hosts=listed("h", "h:80", "[::1]:80"),
    origins=listed("*", "https://app.example.com", "http://localhost:3000"),
    bounds=section(max_body_bytes=SIZES, max_header_bytes=SIZES, body_timeout=DURATIONS, max_answer_bytes=SIZES),
    drain=DURATIONS,
    connections_per_agent=COUNTS,
    body_memory=SIZES,
    access_log=FLAGS,
)

AMOUNTS = st.sampled_from([1, 0.5, "0.000001", 2e-6, "${FIVE}", "1.${FIVE}"])  # each another: a rule is not there twice
PRICES = section(
    {
        "currency": st.sampled_from(["EUR", "credits"]),
        "rules": st.lists(
            section({"output": AMOUNTS}, input=AMOUNTS, call=AMOUNTS, servers=listed("s*"), tools=listed("a", "b*")),
            min_size=1,
            max_size=2,
            unique_by=repr,
        ),
    }
)
BUDGET = section(
    {"period": st.sampled_from(["day", "month"]), "amount": AMOUNTS},
    agents=listed("*", "b-*"),
    action=st.sampled_from(["refuse", "warn"]),
)
COSTS = section({}) | section({"prices": PRICES}, budgets=st.lists(BUDGET, min_size=1, max_size=1))

CONFIGURATIONS = st.builds(lambda *parts: functools.reduce(operator.or_, parts), CALLERS, REST, COSTS)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@given(CONFIGURATIONS)
def test_a_good_configuration_is_good_to_schema_and_reader(mapping: dict[str, Any]) -> None:
    VALIDATOR.validate(mapping)
    from_mapping(mapping, environ=ENVIRON)


def test_the_configurations_of_this_test_have_every_key_of_the_file() -> None:
    keys = {key.name for key in FILE.keys}
    assert set(schema()["properties"]) == keys
    seen: set[str] = set()

    @given(CONFIGURATIONS)
    def look(mapping: dict[str, Any]) -> None:
        seen.update(mapping)

    look()
    assert seen == keys


@pytest.mark.parametrize("text", [CONTRACT, AUTH_CONTRACT, SMALL])
def test_the_schema_takes_the_contracts_file(text: str) -> None:
    VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "change",
    [
        {"listen": 8080},
        {"listen": "localhost"},
        {"public_url": "mcp.example.com"},
        {"servers": {}},
        {"servers": {"A": {"url": "http://x"}}},
        {"servers": {"healthz": {"url": "http://x"}}},
        {"servers": {"a": {"url": "x"}}},
        {"servers": {"a": {"url": "http://x", "timout": 1}}},
        {"servers": {"a": {"url": "http://x", "timeout": 0}}},
        {"servers": {"a": {"url": "http://x", "timeout": "5 m"}}},
        {"servers": {"a": {"url": "http://x", "headers": {"X": 7}}}},
        {"servers": {"a": {"url": "http://x", "credentials": {"type": "basic"}}}},
        {"servers": {"a": {"url": "http://x", "credentials": {"type": "header", "name": "X"}}}},
        {"servers": {"a": {"url": "http://x", "credentials": {"type": "client_credentials", "client_id": "x"}}}},
        {"servers": {"a": {"url": "http://x", "caller": {"header": "X"}}}},
        {"servers": {"a": {"url": "http://x", "headers": {"X": {"env": "x"}}}}},
        {"servers": {"a": {"url": "http://x", "headers": {"a b": "x"}}}},
        {"auth": True},
        {"auth": {}},
        {"auth": {"issuers": []}},
        {"auth": {"issuers": [{"issuer": "https://l", "typ": "jwt"}]}},
        {"auth": {"issuers": [{"issuer": "https://l", "claims": {"agents": "azp"}}]}},
        {"auth": {"issuers": [{"issuer": "https://l", "introspection": {}}]}},
        {"auth": {"issuers": ["https://l"], "implied_scopes": {"a": "b"}}},
        {"access": []},
        {"access": {"rules": [{"tool": ["x"]}]}},
        {"access": {"rules": [{"tools": []}]}},
        {"limits": {"requests": 60}},
        {"limits": {"requests": {"burst": 1}}},
        {"sessions": {"per_agent": 0}},
        {"tracing": {}},
        {"tracing": {"otlp": "http://x:4318/v1/traces"}},
        {"tracing": {"otlp": "http://x:4318/v1/metrics/"}},
        {"audit": {"on_failure": "shrug"}},
        {"workers": 0},
        {"workers": "two"},
        {"tls": {"cert": "a"}},
        {"bounds": {"max_body_bytes": "4 MB"}},
        {"zebra": 1},
    ],
)
def test_what_the_schema_refuses_the_reader_refuses(change: dict[str, Any]) -> None:
    mapping = yaml.safe_load(SMALL) | change
    assert not VALIDATOR.is_valid(mapping)
    with pytest.raises(ConfigurationError):
        from_mapping(mapping, environ={})


def test_every_key_is_described_in_schema_and_reference() -> None:
    reference = reference_markdown()
    text = str(schema())
    for described in FILE.sections():
        for key in described.keys:
            assert key.about.endswith("."), key
            assert f"| `{key.name}` |" in reference
            assert key.about in reference
            assert f"'{key.name}': {{'description': " in text
    for about in (*POLICY_KEYS.values(), *RULE_KEYS.values()):
        assert about in reference


def test_what_is_missing_has_a_remedy() -> None:
    for described in FILE.sections():
        for key in described.keys:
            assert re.match("(be|name) ", key.shape.must), key


def test_a_key_of_one_kind_of_a_section_is_not_required_of_all() -> None:
    reference = reference_markdown()
    assert "| `file` | path |  | A policy file" in reference
    assert "| `default` | `allow` or `deny` | `deny` |" in reference
    assert "| `effect` | `allow` or `deny` | `allow` |" in reference


def test_the_reference_is_the_one_in_the_documentation() -> None:
    """``python -m mcp_middleware.gateway.schema > docs/configuration.md`` makes it anew."""
    assert REFERENCE.read_text() == reference_markdown()


def test_the_references_example_is_a_configuration(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", reference_markdown(), re.DOTALL)
    assert example is not None
    mapping = yaml.safe_load(example[1].replace("/run/secrets/session_key", str(tmp_path / "key")))
    (tmp_path / "key").write_text(KEYS[0])
    VALIDATOR.validate(mapping)
    assert set(from_mapping(mapping, environ=ENVIRON).servers) == {"search", "files"}
