"""The rules of a policy: what a well-formed one says, and what is said of one that changes nothing. Pure."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.globs import Glob, matcher
from mcp_middleware.nodes import Node

__all__ = [
    "CONDITIONS",
    "POLICY_KEYS",
    "RULE_KEYS",
    "SCOPE",
    "TARGETS",
    "Effect",
    "Rule",
    "compile_rules",
    "compile_rules_for_servers",
]

Effect: TypeAlias = Literal["allow", "deny"]

CONDITIONS: Final = ("agents", "subjects", "issuers", "roles")
"""A rule's keys that say whom it is for; those that are there must all hold."""
TARGETS: Final[Mapping[str, str]] = {"tools": "tool", "prompts": "prompt", "resources": "resource"}
"""A rule's keys that say what it is about, with the kind of target that their globs name."""

POLICY_KEYS: Final[Mapping[str, str]] = {
    "default": "What happens where no rule matches: `allow` or `deny`.",
    "rules": "The rules. One that denies wins over all that allow.",
}
"""A policy's keys, with what they are for."""
RULE_KEYS: Final[Mapping[str, str]] = {
    "effect": "`allow` or `deny`.",
    "agents": "Globs of client ids; the rule is for those agents only.",
    "subjects": "Globs of `sub` claims: the people an agent acts for.",
    "issuers": "Globs of issuers.",
    "roles": "Globs of roles, one of which the caller must have.",
    "servers": "Globs of servers' names; the rule is about those servers only.",
    "tools": "Globs of the tools it is about.",
    "prompts": "Globs of the prompts it is about.",
    "resources": "Globs of the resources' URIs it is about.",
    "scopes": "Scopes that a token must have, all of them, for the rule to allow.",
}
"""A rule's keys, with what they are for. ``servers`` has a meaning only where there are several: in the gateway."""
_SERVERS: Final = "servers"
_NO_RULES: Final = Node("", "list")
_EFFECTS: Final[Mapping[str, Effect]] = {"allow": "allow", "deny": "deny"}
_ANY: Final = Glob("*")
SCOPE: Final = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]+")
"""A scope token (RFC 6749 section 3.3); it goes into a header as it is."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule."""

    name: str
    """``rules[0]``, as decisions and audit records call it."""
    effect: Effect
    conditions: Mapping[str, frozenset[Glob]]
    """Key of CONDITIONS to globs, one of which the caller must match; an absent key asks nothing."""
    targets: Mapping[str, frozenset[Glob]]
    """Kind of target to the globs that name it."""
    scopes: tuple[str, ...] = ()
    """What a token must carry, all of it."""

    @property
    def content(self) -> object:
        """Equal for rules that say the same."""
        return (
            self.effect,
            frozenset(self.conditions.items()),
            frozenset(self.targets.items()),
            frozenset(self.scopes),
        )

    def is_for_all_of(self, other: "Rule") -> bool:
        """Whether every caller whom ``other`` is for, this is for too."""
        for key, globs in self.conditions.items():
            theirs = other.conditions.get(key)
            if theirs is None and key == "agents":
                theirs = frozenset({_ANY})  # every caller has an agent; not every one has a subject, issuer or role
            if theirs is None or not all(_covered(glob, globs) for glob in theirs):
                return False
        return True


def compile_rules(root: Node) -> tuple[Effect, tuple[Rule, ...], Mapping[str, str]]:
    """What happens where no rule matches, the rules, and by the names of those that are denied whole a sentence about
    each. Raises ConfigurationError naming everything wrong at once."""
    problems = _Problems("")
    default, read = _policy(root, problems, several_servers=False)
    denied = _judge_idle([read], problems)
    problems.raise_if_any()
    return default, tuple(one.rule for one in read), denied


def compile_rules_for_servers(
    root: Node, names: Collection[str], *, inside: str = ""
) -> tuple[Effect, Mapping[str, tuple[Rule, ...]], Mapping[str, str]]:
    """As ``compile_rules``, for each server the rules whose ``servers`` match its name, and those without any.

    ``inside`` is what the places of the policy's keys begin with in errors, such as ``access.``.
    """
    problems = _Problems(inside)
    default, read = _policy(root, problems, several_servers=True)
    for one in read:
        for item in one.listed:
            if names and not any(_names(Glob(item.text), name) for name in names):
                text = f"{one.rule.name}.servers has the glob {item.describe()}, which matches no server"
                problems.at(item, f"{inside}{text}; the servers are {', '.join(names)}")
    everywhere = all(one.servers is None for one in read)
    by_server = {name: read if everywhere else [one for one in read if one.is_about(name)] for name in names}
    alike = {tuple(one.rule.name for one in some): some for some in by_server.values()}  # most servers' rules are alike
    denied = _judge_idle(list(alike.values()), problems)
    problems.raise_if_any()
    return default, {name: tuple(one.rule for one in some) for name, some in by_server.items()}, denied


class _Read(NamedTuple):
    """A sound rule, with the servers it is about (None: all), and where it stands."""

    rule: Rule
    node: Node
    servers: frozenset[Glob] | None = None
    listed: tuple[Node, ...] = ()
    """The items of ``servers``."""

    def is_about(self, server: str) -> bool:
        return self.servers is None or any(_names(glob, server) for glob in self.servers)


def _names(glob: Glob, server: str) -> bool:
    return matcher([glob]).fullmatch(server) is not None


def _policy(root: Node, problems: "_Problems", *, several_servers: bool) -> tuple[Effect, list[_Read]]:
    default: Effect = "deny"
    name = problems.inside.removesuffix(".") or "the policy"
    if root.kind != "mapping":
        problems.at(root, f"{name} is {root.describe()}; it must be a mapping with the keys default and rules")
    problems.unknown_keys(root, name, tuple(POLICY_KEYS))
    if "default" in root.members:
        default = problems.effect(root.members["default"], f"{problems.inside}default") or default
    listed = root.members.get("rules", _NO_RULES)
    if listed.kind != "list":
        problems.at(listed, f"{problems.inside}rules is {listed.describe()}; it must be a list")
    rules = [_rule(node, index, problems, several_servers) for index, node in enumerate(listed.items)]
    return default, [rule for rule in rules if rule is not None]


class _Problems(list[str]):
    """Everything wrong with a policy, and the checks that more than one key needs."""

    def __init__(self, inside: str) -> None:
        super().__init__()
        self.inside = inside
        """What the places of the policy's keys begin with."""

    def raise_if_any(self) -> None:
        if self:
            raise ConfigurationError("\n".join(self))

    def at(self, node: Node, text: str) -> None:
        self.append(f"{node.place}: {text}")

    def unknown_keys(self, node: Node, name: str, known: Sequence[str]) -> None:
        for key, value in node.members.items():
            if key not in known:
                where = ", which only the gateway's access section knows" if key == _SERVERS else ""
                self.at(value, f"{name} has the key {key[:200]!r}{where}; allowed are {', '.join(known)}")

    def effect(self, node: Node, name: str) -> Effect | None:
        effect = _EFFECTS.get(node.text) if node.kind == "string" else None
        if effect is None:
            self.at(node, f"{name} is {node.describe()}; it must be allow or deny")
        return effect

    def strings(self, node: Node, name: str) -> list[tuple[Node, str]]:
        """The strings of a list, with their nodes; nothing else may be in it, nor one of them twice."""
        if node.kind != "list":
            self.at(node, f"{name} is {node.describe()}; it must be a list of strings")
        elif not node.items:
            self.at(node, f"{name} is empty and can match nothing; name at least one, or leave the key out")
        found: dict[str, Node] = {}
        for index, item in enumerate(node.items):
            place = f"{name}[{index}]"
            if item.kind != "string":
                remedy = "" if item.kind in ("mapping", "list", "empty") else "; put it in quotes"
                self.at(item, f"{place} is {item.describe()}; it must be a string{remedy}")
            elif item.text in found:
                self.at(item, f"{place} is {item.describe()}, which is in the list already")
            else:
                found[item.text] = item
        return [(item, text) for text, item in found.items()]

    def globs(self, node: Node, name: str) -> frozenset[Glob]:
        globs: set[Glob] = set()
        for item, text in self.strings(node, name):
            try:
                globs.add(Glob(text))
            except ValueError as error:
                why = error if item.written is None else "with the environment's values it is none"
                self.at(item, f"{name} has the glob {item.describe()}: {why}")
        return frozenset(globs)

    def scopes(self, node: Node, name: str, effect: Effect) -> tuple[str, ...]:
        if effect == "deny":
            self.at(node, f"{name}: a rule that denies asks for no scopes; leave the key out")
        scopes = self.strings(node, name)
        for item, text in scopes:
            if not SCOPE.fullmatch(text):
                self.at(item, f"{name} has {item.describe()}; a scope is printable ASCII, no space, quote, backslash")
            elif text == "offline_access":
                self.at(item, f"{name} has offline_access, which asks for a refresh token and permits nothing")
        return tuple(text for _, text in scopes)


def _rule(node: Node, index: int, problems: _Problems, several_servers: bool) -> _Read | None:
    """The rule in a node, or None where something is wrong with it."""
    own_name = f"rules[{index}]"
    name = problems.inside + own_name
    before = len(problems)
    if node.kind != "mapping":
        problems.at(node, f"{name} is {node.describe()}; it must be a mapping, such as {{agents: [...], tools: [...]}}")
        return None
    members = node.members
    problems.unknown_keys(node, name, [key for key in RULE_KEYS if several_servers or key != _SERVERS])
    effect = problems.effect(members["effect"], f"{name}.effect") if "effect" in members else "allow"
    conditions = {key: problems.globs(members[key], f"{name}.{key}") for key in CONDITIONS if key in members}
    targets = {kind: problems.globs(members[key], f"{name}.{key}") for key, kind in TARGETS.items() if key in members}
    if not targets:
        problems.at(node, f"{name} names no target and can match nothing; it needs {', '.join(TARGETS)} or several")
    scopes: tuple[str, ...] = ()
    if "scopes" in members:
        scopes = problems.scopes(members["scopes"], f"{name}.scopes", effect or "allow")
    listed = members.get(_SERVERS) if several_servers else None
    servers = problems.globs(listed, f"{name}.{_SERVERS}") if listed is not None else None
    if effect is None or len(problems) > before:
        return None
    rule = Rule(own_name, effect, conditions, targets, scopes)
    return _Read(rule, node, servers, listed.items if listed is not None else ())


class _Idle(NamedTuple):
    """Why a rule changes nothing."""

    reason: str
    repeats: bool = False


def _judge_idle(groups: Sequence[Sequence[_Read]], problems: _Problems) -> dict[str, str]:
    """Refuse rules that repeat others in all of the groups they are in, and return the sentences about allowing ones
    of which other rules deny everything, by their names. A group is the rules of one server.

    The latter are no mistake: who must stop an agent at once adds a rule that denies, and takes no other away.
    """
    found: dict[str, tuple[Node, list[_Idle | None]]] = {}
    for group in groups:
        for one, why in zip(group, _idleness([one.rule for one in group]), strict=True):
            found.setdefault(one.rule.name, (one.node, []))[1].append(why)
    denied = {}
    for name, (node, each) in found.items():
        idle = [one for one in each if one is not None]
        if len(idle) < len(each):
            continue
        reasons = ", or ".join(dict.fromkeys(one.reason for one in idle))
        if all(one.repeats for one in idle):
            problems.at(node, f"{problems.inside}{name} {reasons}; keep one")
        else:
            denied[name] = f"{node.place}: {problems.inside}{name} {reasons}, and changes nothing"
    return denied


def _idleness(rules: Sequence[Rule]) -> Iterator[_Idle | None]:
    """Of each rule, why it changes nothing; None for one that does."""
    denied = [
        (kind, glob, rule)
        for rule in rules
        if rule.effect == "deny"
        for kind, globs in rule.targets.items()
        for glob in globs
    ]
    seen: dict[object, Rule] = {}
    for rule in rules:
        first = seen.setdefault(rule.content, rule)
        over = _shadowing(rule, denied) if rule.effect == "allow" else None
        if first is not rule:
            yield _Idle(f"says the same as {first.name}", repeats=True)
        elif over:
            yield _Idle(f"allows only what {' and '.join(dict.fromkeys(deny.name for deny in over))} denies")
        else:
            yield None


def _shadowing(rule: Rule, denied: Sequence[tuple[str, Glob, Rule]]) -> list[Rule] | None:
    """For each glob of an allowing rule the one that denies all of it to all of its callers; None if one has none."""
    over: list[Rule] = []
    for kind, globs in rule.targets.items():
        for glob in globs:
            for denied_kind, wider, deny in denied:
                if denied_kind == kind and wider.covers(glob) and deny.is_for_all_of(rule):
                    over.append(deny)
                    break
            else:
                return None
    return over


def _covered(glob: Glob, by: frozenset[Glob]) -> bool:
    return any(wider.covers(glob) for wider in by)
