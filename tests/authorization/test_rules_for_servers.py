"""Rules that are about some of several servers."""

import pytest

from mcp_middleware.authorization import Policy
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.nodes import read_text


def rules(text: str, *names: str) -> dict[str, list[str]]:
    policies = Policy.for_servers(read_text(text, source="policy.yaml", what="the policy"), names)
    assert not any(policy.warnings for policy in policies.values())
    return {name: [rule.name for rule in policy.rules] for name, policy in policies.items()}


def refused(text: str, *names: str, inside: str = "") -> list[str]:
    with pytest.raises(ConfigurationError) as error:
        Policy.for_servers(read_text(text, source="policy.yaml", what="the policy"), names, inside=inside)
    return str(error.value).splitlines()


def test_a_servers_rules_are_those_that_match_its_name_and_keep_their_own() -> None:
    text = "rules:\n- {servers: [a], tools: [x]}\n- {tools: [y]}\n- {servers: ['b*'], tools: [z]}"
    assert rules(text, "a", "b1", "c") == {
        "a": ["rules[0]", "rules[1]"],
        "b1": ["rules[1]", "rules[2]"],
        "c": ["rules[1]"],
    }


def test_the_default_is_every_servers() -> None:
    policies = Policy.for_servers(read_text("default: allow", source="p", what="the policy"), ["a", "b"])
    assert {policy.default for policy in policies.values()} == {"allow"}


def test_a_rule_that_changes_something_on_one_server_is_kept() -> None:
    deny = "rules:\n- {servers: [a], effect: deny, tools: [x]}\n- {tools: [x]}"
    assert rules(deny, "a", "b") == {"a": ["rules[0]", "rules[1]"], "b": ["rules[1]"]}
    same = "rules:\n- {servers: [a], tools: [x]}\n- {servers: [b], tools: [x]}"
    assert rules(same, "a", "b") == {"a": ["rules[0]"], "b": ["rules[1]"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "rules:\n- {tools: [x]}\n- {servers: [b], tools: [x]}",
            "policy.yaml:3: rules[1] says the same as rules[0]; keep one",
        ),
        (
            "rules:\n- servers:\n  - a\n  - d\n  tools: [x]",
            "policy.yaml:4: rules[0].servers has the glob 'd', which matches no server; the servers are a, b",
        ),
        ("rules:\n- {servers: ['[a]'], tools: [x]}", "policy.yaml:2: rules[0].servers has the glob '[a]': '[' has no"),
    ],
)
def test_case_18_a_rule_that_can_never_match_is_refused(text: str, said: str) -> None:
    (line,) = refused(text, "a", "b")
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "rules:\n- {servers: [a], effect: deny, tools: [x]}\n- {servers: [a], tools: [x]}",
            "policy.yaml:3: rules[1] allows only what rules[0] denies, and changes nothing",
        ),
        (
            "rules:\n- {servers: [a], effect: deny, tools: [x]}\n- {servers: [b], tools: [x]}\n- {tools: [x]}",
            "policy.yaml:4: rules[2] allows only what rules[0] denies, or says the same as rules[1], and changes "
            "nothing",
        ),
    ],
)
def test_a_rule_that_others_deny_whole_on_each_of_its_servers_is_kept_and_told_of(text: str, said: str) -> None:
    policies = Policy.for_servers(read_text(text, source="policy.yaml", what="the policy"), ["a", "b"])
    assert {warning for policy in policies.values() for warning in policy.warnings} == {said}


def test_errors_say_where_the_policy_stands() -> None:
    text = "default: x\nrules:\n- {tols: [a]}\nrule: 1"
    assert refused(text, "a", inside="access.") == [
        "policy.yaml:4: access has the key 'rule'; allowed are default, rules",
        "policy.yaml:1: access.default is 'x'; it must be allow or deny",
        "policy.yaml:3: access.rules[0] has the key 'tols'; allowed are effect, agents, subjects, issuers, roles, "
        "servers, tools, prompts, resources, scopes",
        "policy.yaml:3: access.rules[0] names no target and can match nothing; it needs tools, prompts, resources or "
        "several",
    ]


def test_a_policy_for_one_server_knows_no_servers() -> None:
    with pytest.raises(ConfigurationError) as error:
        Policy.from_text("rules: [{servers: [a], tools: [x]}]", source="policy.yaml")
    assert str(error.value).startswith(
        "policy.yaml:1: rules[0] has the key 'servers', which only the gateway's access section knows; allowed are "
    )
