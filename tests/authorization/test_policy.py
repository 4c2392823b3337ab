"""The decisions of a policy."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.authorization import Authorizer, Policy
from mcp_middleware.authorization.methods import question
from mcp_middleware.authorization.policy import MAX_TARGET, combine
from mcp_middleware.authorization.uris import spellings
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.message import Notification, Request, Response, parse
from mcp_middleware.types import ANONYMOUS, Decision, Principal
from tests.core.test_globs import reference

ISSUER = "https://login.example.com"
ALICE = Principal(ISSUER, "agent-1", "alice", roles=frozenset({"admin"}))


def tool(name: str) -> Request:
    return question("tools/call", "tool", name)


def resource(uri: str) -> Request:
    return question("resources/read", "resource", uri)


def template(uri: str) -> Request:
    return question("resources/read", "template", uri)


def sent(method: str, **params: Any) -> Request:
    message = parse(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode())
    assert isinstance(message, Request)
    return message


def policy(*rules: dict[str, Any], default: str = "deny") -> Policy:
    return Policy.from_mapping({"default": default, "rules": list(rules)})


def test_a_policy_is_an_authorizer() -> None:
    assert isinstance(policy(), Authorizer)


@pytest.mark.parametrize(
    ("condition", "allowed"),
    [
        ({}, True),
        ({"agents": ["agent-?"]}, True),
        ({"agents": ["agent"]}, False),
        ({"agents": ["Agent-1"]}, False),
        ({"subjects": ["alice"]}, True),
        ({"subjects": ["bob", "ali*"]}, True),
        ({"subjects": ["bob"]}, False),
        ({"issuers": [ISSUER]}, True),
        ({"issuers": [ISSUER + "/"]}, False),
        ({"roles": ["adm*", "other"]}, True),
        ({"roles": ["user"]}, False),
        ({"agents": ["agent-1"], "subjects": ["alice"], "issuers": [ISSUER], "roles": ["admin"]}, True),
        ({"agents": ["agent-1"], "subjects": ["alice"], "issuers": [ISSUER], "roles": ["user"]}, False),
    ],
)
def test_every_condition_of_a_rule_must_hold(condition: dict[str, Any], allowed: bool) -> None:
    assert policy({**condition, "tools": ["echo"]}).authorize(ALICE, tool("echo")).allowed is allowed


@pytest.mark.parametrize("key", ["subjects", "issuers", "roles"])
def test_what_a_caller_does_not_have_matches_not_even_a_star(key: str) -> None:
    """A star over issuers means every authenticated caller."""
    assert not policy({key: ["*"], "tools": ["*"]}).authorize(ANONYMOUS, tool("echo")).allowed
    assert policy({"agents": ["*"], "tools": ["*"]}).authorize(ANONYMOUS, tool("echo")).allowed


def test_decisions_name_their_rule() -> None:
    judge = policy({"tools": ["a*"]}, {"effect": "deny", "tools": ["ab"]}, {"prompts": ["p"]})
    assert judge.authorize(ALICE, tool("a")) == Decision(True, "rules[0]")
    assert judge.authorize(ALICE, tool("ab")) == Decision(False, "rules[1]")
    assert judge.authorize(ALICE, tool("p")) == Decision(False)
    assert judge.authorize(ALICE, question("prompts/get", "prompt", "p")) == Decision(True, "rules[2]")
    assert policy(default="allow").authorize(ALICE, tool("a")) == Decision(True)


def test_case_10_the_scopes_that_are_wanting_are_named_with_those_that_are_met() -> None:
    judge = policy({"tools": ["write"], "scopes": ["read", "write"]})
    with_read = Principal(ISSUER, "a", None, scopes=frozenset({"read"}))
    with_both = Principal(ISSUER, "a", None, scopes=frozenset({"read", "write", "more"}))
    assert judge.authorize(with_read, tool("write")) == Decision(False, "rules[0]", True, ("read", "write"))
    assert judge.authorize(with_both, tool("write")) == Decision(True, "rules[0]", scopes=("read", "write"))


def test_another_rule_without_wanting_scopes_wins_and_else_the_nearest() -> None:
    rules = [{"tools": ["t"], "scopes": ["a", "b"]}, {"tools": ["t*"], "scopes": ["c"]}]
    caller = Principal(ISSUER, "x", None)
    assert policy(*rules).authorize(caller, tool("t")) == Decision(False, "rules[1]", True, ("c",))
    assert policy(*rules, {"tools": ["*"]}).authorize(caller, tool("t")) == Decision(True, "rules[2]")
    denied = policy(*rules, {"effect": "deny", "agents": ["x"], "tools": ["t"]})
    assert denied.authorize(caller, tool("t")) == Decision(False, "rules[2]"), "a denial shows no scopes"


@pytest.mark.parametrize("name", ["write", "w" * 1000])
def test_a_decision_that_was_made_before_is_not_another_callers(name: str) -> None:
    judge = policy({"tools": ["w*"], "agents": ["a"], "scopes": ["w"]}, {"tools": ["w*"], "roles": ["admin"]})
    callers = {
        Principal(ISSUER, "a", None): False,
        Principal(ISSUER, "a", None, scopes=frozenset({"w"})): True,
        Principal(ISSUER, "b", None, scopes=frozenset({"w"})): False,
        Principal(ISSUER, "b", None, roles=frozenset({"admin"})): True,
    }
    for _ in range(2):
        for caller, allowed in callers.items():
            assert judge.authorize(caller, tool(name)).allowed == allowed


def test_a_rule_with_wanting_scopes_holds_against_a_default_to_allow() -> None:
    judge = policy({"tools": ["write"], "scopes": ["w"]}, default="allow")
    assert judge.authorize(ALICE, tool("write")).scopes == ("w",)
    assert judge.authorize(ALICE, tool("read")).allowed


@pytest.mark.parametrize(
    ("uri", "allowed"),
    [
        ("file:///srv/a", True),
        ("file:///srv/a/b..c/...", True),
        ("file:///srv/a%20b", True),
        ("file:///srv/Ä?q=1#f", True),
        ("file:///srv", False),
        ("FILE:///srv/a", False),
        ("file:///srv/..", False),
        ("file:///srv/../etc/passwd", False),
        ("file:///srv/./a", False),
        ("file:///srv/%2e%2E/etc", False),
        ("file:///srv/.%2e%2fetc", False),
        ("file:///srv/%252e%252e%252fetc", False),
        ("file:///srv/%25252e%25252e/etc", False),
        ("file:///srv\\..\\etc", False),
        ("file:///srv/..\\etc", False),
        ("file:///srv/?path=../etc", False),
        ("file:///srv/a\n", False),
        ("file:///srv/.\t./etc", False),
        (" file:///srv/a", False),
        ("file:///srv/secret/x", False),
        ("file:///srv/s%65cret/x", False),
        ("file:///srv/secret%2Fx", False),
        ("file:///srv/secret%252Fx", False),
        ("file:///srv/secret\\x", False),
        ("file:///srv/" + "a" * MAX_TARGET, False),
    ],
)
def test_resources_are_judged_as_a_server_may_read_them(uri: str, allowed: bool) -> None:
    judge = policy({"resources": ["file:///srv/*"]}, {"effect": "deny", "resources": ["file:///srv/secret/*"]})
    assert judge.authorize(ALICE, resource(uri)).allowed is allowed


def test_a_denied_host_is_denied_in_any_case() -> None:
    judge = policy({"resources": ["*"]}, {"effect": "deny", "resources": ["https://internal.example/*"]})
    for uri in ("https://internal.example/a", "HTTPS://Internal.Example/a", "https://INTERNAL%2eexample/a"):
        assert not judge.authorize(ALICE, resource(uri)).allowed
    assert judge.authorize(ALICE, resource("https://other.example/https://Internal.example/")).allowed


DENIED = {
    "file:///etc/*": [
        "file:///etc/passwd",
        "file:/etc/passwd",
        "file:etc/passwd",
        "file://localhost/etc/passwd",
        "FILE://LocalHost/etc/passwd",
        "file:////etc/passwd",
        "file:///etc//passwd",
        "file:////%65tc/passwd",
        "file:%2Fetc/passwd",
        "file:%2F%2Flocalhost%2Fetc/passwd",
        "file:\\\\\\etc\\passwd",
    ],
    "https://internal.example/*": [
        "https://internal.example/x",
        "https://internal.example",
        "https://internal.example?x",
        "https://internal.example:443/x",
        "https://internal.example:0443/x",
        "https://internal.example:/x",
        "https:/internal.example/x",
        "https:internal.example/x",
        "https:////internal.example/x",
        "https://user@internal.example/x",
        "https://user:word@INTERNAL.example:443/x",
        "https://a@b@internal.example/x",
        "https://internal.example./x",
        "https://internal.example.:443/x",
        "https://internal\uff0eexample/x",
        "https://internal\u3002example/x",
        "https://internal\uff61example/x",
        "https://\uff49nternal.example/x",
        "https://internal.example%3A443/x",
        "https:\\\\internal.example\\x",
    ],
    "db://main/secrets/*": [
        "db://main/secrets/a",
        "db://main//secrets/a",
        "db://main/%2fsecrets/a",
        "db://main/secrets//a",
        "db://user@main/secrets/a",
        "DB://Main/secrets/a",
        "db://main:/secrets/a",
    ],
}


@pytest.mark.parametrize(("glob", "uri"), [(glob, uri) for glob, uris in DENIED.items() for uri in uris])
def test_what_is_denied_is_denied_in_other_spellings(glob: str, uri: str) -> None:
    judge = policy({"resources": ["*"]}, {"effect": "deny", "resources": [glob]})
    assert not judge.authorize(ALICE, resource(uri)).allowed


@pytest.mark.parametrize(
    "uri",
    [
        "file:///srv%00/a",
        "file:///srv/a%0A",
        "file:///srv/a%250d",
        "file:///srv/a%7f",
        "file:///srv%3F/a%0A",
        "file:///srv/a%0A?b",
        "note://search?q=a\nb",
        "note://search?q=a\tb",
    ],
)
def test_an_encoded_control_character_is_in_no_uri(uri: str) -> None:
    assert not policy({"resources": ["*"]}).authorize(ALICE, resource(uri)).allowed


@pytest.mark.parametrize("text", ["a%0Ab", "a%09", "%0D%0A", "%00", "a%250Ab"])
def test_a_query_may_have_lines(text: str) -> None:
    """It is text, and who searches for a line break has to encode it. A deny rule still takes all of it."""
    uri = resource(f"note://search?q={text}&in=x")
    assert policy({"resources": ["note://*"]}).authorize(ALICE, uri).allowed
    for glob in ("note://search?q=*", "note://*in=x"):
        denying = {"effect": "deny", "resources": [glob]}
        assert not policy({"resources": ["*"]}, denying).authorize(ALICE, uri).allowed


@pytest.mark.parametrize(
    "uri",
    [
        "file://server/etc/passwd",
        "file:///srv/etc/passwd",
        "https://internal.example:8443/x",
        "https://not-internal.example/x",
        "https://other.example/internal.example/x",
        "db://other/secrets/a",
        "db:///main/secrets/a",
        "db:main/secrets/a",
        "urn:db:main",
        "no-uri",
    ],
)
def test_what_is_not_denied_stays_allowed_and_an_allow_rule_knows_one_spelling(uri: str) -> None:
    denying = [{"effect": "deny", "resources": [glob]} for glob in DENIED]
    assert policy({"resources": ["*"]}, *denying).authorize(ALICE, resource(uri)).allowed
    assert not policy({"resources": ["file:///etc/*"]}).authorize(ALICE, resource("file:/etc/passwd")).allowed


@pytest.mark.parametrize(
    "piece", ["A", "A/", "%41", "%25", ":", "\\", "A.", ".A", "//", "@", "?", "a:/", "\u0327\u0301"]
)
def test_case_39_a_uri_is_read_from_its_beginning_alone(piece: str) -> None:
    """Looked for anew at every place, it would not end before the test's timeout."""
    assert all(spellings(piece * (1_000_000 // len(piece))))


@pytest.mark.parametrize(
    ("uri", "listed", "completed"),
    [
        ("file:///srv/{path}", True, False),
        ("file:///srv/public/{path}", True, True),
        ("file:///{+path}", True, False),
        ("file:///srv/secret/{path}", False, False),
        ("file:///srv/secret/{a}/{b}", False, False),
        ("db://{table}", False, False),
        ("file:///srv/public/fixed", True, True),
    ],
)
def test_case_17_templates_are_listed_for_some_and_completed_for_all(uri: str, listed: bool, completed: bool) -> None:
    judge = policy({"resources": ["file:///srv/*"]}, {"effect": "deny", "resources": ["file:///srv/secret/*"]})
    ref = {"type": "ref/resource", "uri": uri}
    assert judge.authorize(ALICE, template(uri)).allowed is listed
    assert judge.authorize(ALICE, sent("completion/complete", ref=ref, argument={})).allowed is completed


def test_case_17_completion_of_a_prompt_follows_the_prompt() -> None:
    judge = policy({"prompts": ["greet"]})
    for name, allowed in (("greet", True), ("plan", False)):
        asked = sent("completion/complete", ref={"type": "ref/prompt", "name": name})
        assert judge.authorize(ALICE, asked).allowed is allowed


@pytest.mark.parametrize(
    "ref", [None, {}, [], {"type": "ref/prompt"}, {"type": "ref/prompt", "uri": "x"}, {"type": "ref/tool", "name": "x"}]
)
def test_case_17_a_reference_that_cannot_be_read_is_denied(ref: Any) -> None:
    judge = policy({"prompts": ["*"], "resources": ["*"]}, default="allow")
    assert not judge.authorize(ALICE, sent("completion/complete", ref=ref)).allowed


def test_case_17_every_resource_of_a_subscription_must_be_allowed() -> None:
    scoped = [{"resources": [f"x://{name}"], "scopes": [name]} for name in "bc"]
    judge = policy({"resources": ["x://a"]}, *scoped)

    def decide(*uris: str, **more: Any) -> Decision:
        return judge.authorize(
            ALICE, sent("subscriptions/listen", notifications={"resourceSubscriptions": uris, **more})
        )

    assert decide().allowed
    assert decide("x://a", toolsListChanged=True).allowed
    assert decide("x://a", "x://b", "x://c") == Decision(False, "rules[1]", True, ("b", "c"))
    assert decide("x://b", "x://nothing") == Decision(False)
    assert not decide("x://a", taskIds=["1"]).allowed, "what is not known names something"
    assert judge.authorize(ALICE, sent("subscriptions/listen", notifications={"toolsListChanged": True})).allowed
    assert judge.authorize(ALICE, sent("subscriptions/listen")).allowed


@pytest.mark.parametrize(
    "notifications",
    [
        {"resourceSubscriptions": "x://a"},
        {"resourceSubscriptions": [1]},
        {"resourceSubscriptions": ["x://a"] * 1001},
        {"resourceSubscriptions": ["x://" + "a" * 3000] * 30},
        {"resource_subscriptions": []},
        {"ResourceSubscriptions": []},
        [],
    ],
)
def test_case_17_a_subscription_that_cannot_be_read_is_denied(notifications: Any) -> None:
    judge = policy({"resources": ["*"]}, default="allow")
    assert not judge.authorize(ALICE, sent("subscriptions/listen", notifications=notifications)).allowed


@pytest.mark.parametrize(
    ("rules", "default", "decision"),
    [
        ([], "deny", Decision(False)),
        ([], "allow", Decision(True)),
        ([{"prompts": ["*"]}], "deny", Decision(False)),
        ([{"tools": ["echo"]}], "deny", Decision(True, "rules[0]")),
        ([{"tools": ["echo"], "scopes": ["s"]}], "deny", Decision(False, "rules[0]", True, ("s",))),
        ([{"effect": "deny", "tools": ["*"]}], "allow", Decision(False, "rules[0]")),
        (
            [{"agents": ["agent-*"], "tools": ["e"]}, {"effect": "deny", "agents": ["agent-1"], "tools": ["e*"]}],
            "deny",
            Decision(False),
        ),
    ],
)
def test_case_17_tasks_are_open_to_whoever_may_call_some_tool(rules: Any, default: str, decision: Decision) -> None:
    judge = policy(*rules, default=default)
    assert judge.authorize(ALICE, sent("tasks/get", taskId="1")) == decision
    assert judge.authorize(ALICE, sent("tasks/list")) == decision


def test_case_17_unknown_methods_follow_the_default_and_the_protocol_is_open() -> None:
    assert not policy({"tools": ["*"]}).authorize(ALICE, sent("vendor/thing", name="x")).allowed
    assert policy(default="allow").authorize(ALICE, sent("vendor/thing")).allowed
    for method in (
        "initialize",
        "ping",
        "server/discover",
        "logging/setLevel",
        "tools/list",
        "resources/templates/list",
    ):
        assert policy().authorize(ALICE, sent(method)).allowed
    for body in (b'{"jsonrpc":"2.0","method":"notifications/x"}', b'{"jsonrpc":"2.0","id":1,"result":{}}'):
        message = parse(body)
        assert isinstance(message, Notification | Response)
        assert policy().authorize(ALICE, message).allowed


names = st.text("ab_", min_size=1, max_size=4)
globs = st.text("ab_*?", min_size=1, max_size=4)
callers = st.builds(
    Principal,
    issuer=st.sampled_from([None, "i", "j"]),
    client=names,
    subject=st.none() | names,
    scopes=st.frozensets(st.sampled_from("rs")),
    roles=st.frozensets(st.sampled_from(["admin", "user"])),
)
rules = st.fixed_dictionaries(
    {"effect": st.sampled_from(["allow", "deny"]), "tools": st.lists(globs, min_size=1, max_size=3, unique=True)},
    optional={
        "agents": st.lists(globs, min_size=1, max_size=2, unique=True),
        "subjects": st.lists(globs, min_size=1, max_size=2, unique=True),
        "issuers": st.lists(st.sampled_from("ij*"), min_size=1, max_size=2, unique=True),
        "roles": st.lists(st.sampled_from(["admin", "us*"]), min_size=1, max_size=2, unique=True),
        "scopes": st.lists(st.sampled_from("rs"), min_size=1, max_size=2, unique=True),
    },
)


def made(some: list[dict[str, Any]], default: str) -> Policy | None:
    try:
        return policy(*some, default=default)
    except ConfigurationError:
        return None


def expected(some: list[dict[str, Any]], default: str, caller: Principal, name: str) -> bool:
    """The rules as the documentation tells them."""

    def one_of(rule: dict[str, Any], key: str, *values: str | None) -> bool:
        return key not in rule or any(reference(g, v) for g in rule[key] for v in values if v is not None)

    matching = [
        rule
        for rule in some
        if one_of(rule, "tools", name)
        and one_of(rule, "agents", caller.client)
        and one_of(rule, "subjects", caller.subject)
        and one_of(rule, "issuers", caller.issuer)
        and one_of(rule, "roles", *caller.roles)
    ]
    if any(rule["effect"] == "deny" for rule in matching):
        return False
    if matching:
        return any(caller.scopes.issuperset(rule.get("scopes", ())) for rule in matching)
    return default == "allow"


@given(st.lists(rules, max_size=4), st.sampled_from(["allow", "deny"]), callers, names)
def test_decisions_are_those_of_the_reference(
    some: list[dict[str, Any]], default: str, caller: Principal, name: str
) -> None:
    judge = made(some, default)
    if judge is not None:
        decision = judge.authorize(caller, tool(name))
        assert decision.allowed == expected(some, default, caller, name)
        assert decision.allowed or decision.visible == bool(decision.scopes)


@given(st.lists(rules, max_size=3), rules, st.sampled_from(["allow", "deny"]), callers, names)
def test_denying_more_never_allows_more_and_more_scopes_never_deny(
    some: list[dict[str, Any]], more: dict[str, Any], default: str, caller: Principal, name: str
) -> None:
    judge = made(some, default)
    denying = made([*some, {k: v for k, v in more.items() if k != "scopes"} | {"effect": "deny"}], default)
    if judge is None or denying is None:
        return
    assert judge.authorize(caller, tool(name)).allowed or not denying.authorize(caller, tool(name)).allowed
    stronger = Principal(caller.issuer, caller.client, caller.subject, frozenset("rs"), caller.roles)
    assert judge.authorize(stronger, tool(name)).allowed or not judge.authorize(caller, tool(name)).allowed


def test_combining_decisions_keeps_the_worst() -> None:
    allowed, hidden = Decision(True, "rules[0]"), Decision(False, "rules[1]")
    seen = Decision(False, "rules[2]", visible=True)
    short = Decision(False, "rules[3]", visible=True, scopes=("a", "b"))
    shorter = Decision(False, "rules[4]", visible=True, scopes=("b", "c"))
    assert combine([]).allowed
    assert combine([allowed, allowed]) == allowed
    assert combine([allowed, short, seen, hidden]) == hidden
    assert combine([allowed, short, seen]) == seen
    assert combine([allowed, short, shorter]) == Decision(False, "rules[3]", True, ("a", "b", "c"))
    met = Decision(True, "rules[5]", scopes=("d",))
    assert combine([met, allowed]) == met
    assert combine([met, short]).scopes == ("d", *short.scopes), "met ones included"
