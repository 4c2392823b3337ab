"""What a policy's text may be, and what is said of one that is wrong."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.authorization import Policy
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.nodes import MAX_BYTES

CONTRACT = """
default: deny
rules:
  - {agents: ["ci-*"], tools: ["read_*", "echo"], scopes: ["files:read"]}
  - {agents: ["*"], subjects: ["alice"], issuers: ["https://login.example.com"], roles: ["admin"], tools: ["*"],
     prompts: ["*"], resources: ["file:///srv/*"]}
  - {effect: deny, agents: ["*"], tools: ["admin_*"]}
"""


def refused(text: str) -> str:
    with pytest.raises(ConfigurationError) as error:
        Policy.from_text(text, source="policy.yaml")
    return str(error.value)


def test_the_form_of_the_contract_is_read_from_text_file_and_mapping(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(CONTRACT)
    mapping = {
        "default": "deny",
        "rules": [
            {"agents": ["ci-*"], "tools": ("read_*", "echo"), "scopes": ["files:read"]},
            {
                "agents": ["*"],
                "subjects": ["alice"],
                "issuers": ["https://login.example.com"],
                "roles": ["admin"],
                "tools": ["*"],
                "prompts": ["*"],
                "resources": ["file:///srv/*"],
            },
            {"effect": "deny", "agents": ["*"], "tools": ["admin_*"]},
        ],
    }
    policies = [Policy.from_text(CONTRACT), Policy.from_file(path), Policy.from_mapping(mapping)]
    assert policies[0].rules == policies[1].rules == policies[2].rules
    assert [rule.name for rule in policies[0].rules] == ["rules[0]", "rules[1]", "rules[2]"]
    assert {policy.default for policy in policies} == {"deny"}


def test_block_style_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes("\ufeff# who may what\nrules:\n- tools:\n  - echo\ndefault: allow\n".encode())
    policy = Policy.from_file(path)
    assert policy.default == "allow"
    assert policy.rules[0].effect == "allow"


@pytest.mark.parametrize("text", ["default: deny", "rules: []", "{}"])
def test_a_policy_may_deny_everything(text: str) -> None:
    assert Policy.from_text(text).default == "deny"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "policy.yaml: the policy is empty"),
        ("# nothing", "policy.yaml: the policy is empty"),
        ("- a", "policy.yaml:1: the policy is a list; it must be a mapping"),
        ("default: maybe", "policy.yaml:1: default is 'maybe'; it must be allow or deny"),
        ("default: no", "policy.yaml:1: default is no (a boolean); it must be allow or deny"),
        ("defaults: deny", "policy.yaml:1: the policy has the key 'defaults'; allowed are default, rules"),
        ("rules: {}", "policy.yaml:1: rules is a mapping; it must be a list"),
        ("rules:", "policy.yaml:1: rules is empty; it must be a list"),
        ("rules:\n- echo", "policy.yaml:2: rules[0] is 'echo'; it must be a mapping"),
        (
            "rules:\n- tools: [a]\n  agent: [b]",
            "policy.yaml:3: rules[0] has the key 'agent'; allowed are effect",
        ),
        ("rules:\n- tools: echo", "policy.yaml:2: rules[0].tools is 'echo'; it must be a list of strings"),
        (
            "rules:\n- tools:\n  - a\n  - 7",
            "policy.yaml:4: rules[0].tools[1] is 7 (a number); it must be a string",
        ),
        ("rules:\n- tools: [on]", "rules[0].tools[0] is on (a boolean); it must be a string; put it in quotes"),
        ("rules:\n- tools: [2026-07-28]", "is 2026-07-28 (a date); it must be a string; put it in quotes"),
        ("rules:\n- tools: [~]", "rules[0].tools[0] is empty; it must be a string"),
        ("rules:\n- tools: [[a]]", "rules[0].tools[0] is a list; it must be a string"),
        ("rules:\n- tools: [a, a]", "rules[0].tools[1] is 'a', which is in the list already"),
        (
            "rules:\n- tools:\n  - a\n  - 'b[c]'",
            "policy.yaml:4: rules[0].tools has the glob 'b[c]': '[' has no",
        ),
        ("rules:\n- tools: ['']", "rules[0].tools has the glob '': it is empty"),
        ("rules:\n- effect: Deny\n  tools: [a]", "policy.yaml:2: rules[0].effect is 'Deny'; it must be allow or deny"),
        (
            "rules:\n- tools: [a]\n  scopes: [a b]",
            "policy.yaml:3: rules[0].scopes has 'a b'; a scope is",
        ),
        ("rules:\n- tools: [a]\n  scopes: ['a\"']", "rules[0].scopes has 'a\"'; a scope is"),
        ("rules:\n- tools: [a]\n  scopes: [offline_access]", "rules[0].scopes has offline_access"),
    ],
)
def test_case_18_a_wrong_policy_is_refused_with_line_value_and_remedy(text: str, said: str) -> None:
    assert said in refused(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules:\n- agents: [a]", "policy.yaml:2: rules[0] names no target and can match nothing; it needs tools"),
        ("rules:\n- tools: []", "policy.yaml:2: rules[0].tools is empty and can match nothing"),
        ("rules:\n- tools: [a]\n  roles: []", "policy.yaml:3: rules[0].roles is empty and can match nothing"),
        ("rules:\n- tools: [a]\n- tools: [a]", "policy.yaml:3: rules[1] says the same as rules[0]"),
        ("rules:\n- tools: [a, b*]\n- tools: [b**, a]", "policy.yaml:3: rules[1] says the same as rules[0]"),
        ("rules:\n- {effect: deny, tools: [a], scopes: [b]}", "rules[0].scopes: a rule that denies asks for no scopes"),
    ],
)
def test_case_18_a_rule_that_can_never_match_is_refused(text: str, said: str) -> None:
    assert said in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "rules:\n- {effect: deny, tools: ['ad*']}\n- {tools: ['a*']}",
        "rules:\n- {effect: deny, tools: [a]}\n- {tools: [a], prompts: [b]}",
        "rules:\n- {effect: deny, agents: [x], tools: [a]}\n- {tools: [a]}",
        "rules:\n- {effect: deny, subjects: ['*'], tools: [a]}\n- {tools: [a]}",
        "rules:\n- {effect: deny, agents: [x], tools: [a]}\n- {agents: [x, y], tools: [a]}",
        "rules:\n- {tools: [a], scopes: [s]}\n- {tools: [a], scopes: [t]}",
    ],
)
def test_a_rule_that_can_match_is_kept(text: str) -> None:
    policy = Policy.from_text(text)
    assert (len(policy.rules), policy.warnings) == (2, ())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "rules:\n- {effect: deny, tools: ['ad*']}\n- {agents: [x], tools: [admin, 'ad?']}",
            "policy.yaml:3: rules[1] allows only what rules[0] denies, and changes nothing",
        ),
        (
            "rules:\n- {tools: [a], prompts: [b]}\n- {effect: deny, tools: [a]}\n- {effect: deny, prompts: ['*']}",
            "policy.yaml:2: rules[0] allows only what rules[1] and rules[2] denies, and changes nothing",
        ),
        (
            "rules:\n- {effect: deny, agents: ['ci-*'], tools: [a]}\n- {agents: ['ci-x*'], roles: [r], tools: [a]}",
            "policy.yaml:3: rules[1] allows only what rules[0] denies, and changes nothing",
        ),
    ],
)
def test_a_rule_that_others_deny_whole_is_kept_and_told_of(
    text: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy.from_text(text, source="policy.yaml")
    assert policy.warnings == (said,)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [said]


def test_case_18_everything_that_is_wrong_is_said_at_once() -> None:
    said = refused("default: x\nrules:\n- {tols: [a]}\n- {tools: ['[']}\n- {tools: [a], agents: []}").splitlines()
    assert [line.split(": ")[0] for line in said] == [f"policy.yaml:{line}" for line in (1, 3, 3, 4, 5)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1]\nb: *x", "policy.yaml:1: not understood as YAML: anchors and aliases are not allowed"),
        ("a: *x", "policy.yaml:1: not understood as YAML: anchors and aliases are not allowed"),
        ("rules: !!python/object/apply:os.system ['true']", "tags are not allowed"),
        ("rules: !!set {a}", "tags are not allowed"),
        ("<<: {default: allow}", "policy.yaml:1: the key is '<<'; keys must be plain words"),
        ("default: deny\ndefault: allow", "policy.yaml:2: the key 'default' is there twice"),
        ("rules:\n- tools: [a]\n  'tools': [b]", "policy.yaml:3: the key 'tools' is there twice"),
        ("1: a", "policy.yaml:1: the key is '1'; keys must be plain words"),
        ("? [a]\n: b", "policy.yaml:1: the key is a collection"),
        ("default: deny\n---\ndefault: allow", "policy.yaml:2: not understood as YAML"),
        ("rules: [", "policy.yaml:1: not understood as YAML"),
        ("\x00", "policy.yaml: not understood as YAML"),
        ("rules: [{tools: [*]}]", "policy.yaml:1: not understood as YAML: expected alphabetic or numeric character"),
        ("rules: [{tools: [*]}]", "; a text that begins with * or & needs quotes"),
        ("rules: [{tools: [*_file]}]", "anchors and aliases are not allowed; a text that begins with * or & needs quo"),
        ("rules: [{tools: [!x y]}]", "tags are not allowed; a text that begins with ! needs quotes"),
        ("rules: [{tools: [@x]}]", "cannot start any token; a text that begins with it needs quotes"),
        ("rules:\n\t- {tools: [x]}", "cannot start any token; indent with spaces"),
        ("default: a: b", "mapping values are not allowed here; a text with a colon and a space needs quotes"),
        ("a: 1\n--- \na: 2", "expected a single document in the stream, but found another document; keep one"),
        ("1: a", "keys must be plain words, which quotes make of it"),
        ("default: https://ada:secret@example.com", "default is 'https://...@example.com'"),
        ("rules: " + "[" * 5000, "nested too deeply"),
        ("- " * 5000, "nested too deeply"),
    ],
)
def test_case_18_yaml_is_plain_data(text: str, said: str) -> None:
    assert said in refused(text)


def test_case_18_a_policy_is_bounded_in_size(tmp_path: Path) -> None:
    assert "larger than" in refused("#" * (MAX_BYTES + 1))
    path = tmp_path / "policy.yaml"
    path.write_bytes("é".encode() * MAX_BYTES)
    with pytest.raises(ConfigurationError, match="larger than"):
        Policy.from_file(path)


@pytest.mark.parametrize("content", [None, b"default: \xff"])
def test_case_18_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "policy.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"policy\.yaml: the policy (cannot be read|is not UTF-8)"):
        Policy.from_file(path)


def nested() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["rules"] = value
    return value


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"rules": [{"tools": "echo"}]}, "here: rules[0].tools is 'echo'; it must be a list of strings"),
        ({"rules": [{"tools": [True]}]}, "here: rules[0].tools[0] is True (a boolean); it must be a string"),
        ({"rules": [{"tools": [b"echo"]}]}, "here: rules[0].tools[0] is b'echo' (a bytes); it must be a string"),
        ({"rules": [{1: []}]}, "here: the key is 1; keys must be strings"),
        ({"default": None}, "here: default is empty; it must be allow or deny"),
        (nested(), "here: nested too deeply"),
        (["rules"], "here: the policy is a list"),
    ],
)
def test_a_wrong_mapping_is_refused_with_the_place(mapping: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Policy.from_mapping(mapping, source="here")
    assert said in str(error.value)


@given(st.text(max_size=200) | st.text(alphabet="rules:tolaget[]{}*&!-\n ,\"'?|>", max_size=200))
def test_any_text_is_a_policy_or_refused(text: str) -> None:
    try:
        said: str = Policy.from_text(text, source="policy.yaml").default
    except ConfigurationError as error:
        said = str(error)
    assert said.startswith(("allow", "deny", "policy.yaml"))


@pytest.mark.parametrize(
    ("load", "named"),
    [(Policy.from_file, "the path of the policy is None"), (Policy.from_text, "the text of the policy is None")],
)
def test_what_is_no_file_and_no_text_is_refused_by_name(load: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        load(None)
