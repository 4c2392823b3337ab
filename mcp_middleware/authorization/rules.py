"""The rules of a policy: what a well-formed one says, and every reason to refuse one that says nothing. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from mcp_middleware.errors import ConfigurationError

from .globs import Glob
from .loader import Node

__all__ = ["CONDITIONS", "TARGETS", "Effect", "Rule", "compile_rules"]

Effect: TypeAlias = Literal["allow", "deny"]

CONDITIONS: Final = ("agents", "subjects", "issuers", "roles")
"""A rule's keys that say whom it is for; those that are there must all hold."""
TARGETS: Final[Mapping[str, str]] = {"tools": "tool", "prompts": "prompt", "resources": "resource"}
"""A rule's keys that say what it is about, with the kind of target that their globs name."""

_POLICY_KEYS: Final = ("default", "rules")
_RULE_KEYS: Final = ("effect", *CONDITIONS, *TARGETS, "scopes")
_EFFECTS: Final[Mapping[str, Effect]] = {"allow": "allow", "deny": "deny"}
_ANY: Final = Glob("*")
_SCOPE: Final = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]+")
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


def compile_rules(root: Node) -> tuple[Effect, tuple[Rule, ...]]:
    """What happens where no rule matches, and the rules. Raises ConfigurationError naming everything wrong at once."""
    problems = _Problems()
    default: Effect = "deny"
    rules: list[Rule] = []
    if root.kind != "mapping":
        problems.at(root, f"the policy is {root.describe()}; it must be a mapping with the keys default and rules")
    problems.unknown_keys(root, "the policy", _POLICY_KEYS)
    if "default" in root.members:
        default = problems.effect(root.members["default"], "default") or default
    if "rules" in root.members:
        listed = root.members["rules"]
        if listed.kind != "list":
            problems.at(listed, f"rules is {listed.describe()}; it must be a list")
        compiled = [(_rule(node, index, problems), node) for index, node in enumerate(listed.items)]
        sound = [(rule, node) for rule, node in compiled if rule is not None]
        rules = [rule for rule, _ in sound]
        _refuse_idle(sound, problems)
    if problems:
        raise ConfigurationError("\n".join(problems))
    return default, tuple(rules)


class _Problems(list[str]):
    """Everything wrong with a policy, and the checks that more than one key needs."""

    def at(self, node: Node, text: str) -> None:
        self.append(f"{node.place}: {text}")

    def unknown_keys(self, node: Node, name: str, known: Sequence[str]) -> None:
        for key, value in node.members.items():
            if key not in known:
                self.at(value, f"{name} has the key {key[:200]!r}; allowed are {', '.join(known)}")

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
                self.at(item, f"{name} has the glob {text[:200]!r}: {error}")
        return frozenset(globs)

    def scopes(self, node: Node, name: str, effect: Effect) -> tuple[str, ...]:
        if effect == "deny":
            self.at(node, f"{name}: a rule that denies asks for no scopes; leave the key out")
        scopes = self.strings(node, name)
        for item, text in scopes:
            if not _SCOPE.fullmatch(text):
                self.at(item, f"{name} has {text[:200]!r}; a scope is printable ASCII, no space, quote, backslash")
            elif text == "offline_access":
                self.at(item, f"{name} has offline_access, which asks for a refresh token and permits nothing")
        return tuple(text for _, text in scopes)


def _rule(node: Node, index: int, problems: _Problems) -> Rule | None:
    """The rule in a node, or None where something is wrong with it."""
    name = f"rules[{index}]"
    before = len(problems)
    if node.kind != "mapping":
        problems.at(node, f"{name} is {node.describe()}; it must be a mapping, such as {{agents: [...], tools: [...]}}")
        return None
    problems.unknown_keys(node, name, _RULE_KEYS)
    members = node.members
    effect = problems.effect(members["effect"], f"{name}.effect") if "effect" in members else "allow"
    conditions = {key: problems.globs(members[key], f"{name}.{key}") for key in CONDITIONS if key in members}
    targets = {kind: problems.globs(members[key], f"{name}.{key}") for key, kind in TARGETS.items() if key in members}
    if not targets:
        problems.at(node, f"{name} names no target and can match nothing; it needs {', '.join(TARGETS)} or several")
    scopes: tuple[str, ...] = ()
    if "scopes" in members:
        scopes = problems.scopes(members["scopes"], f"{name}.scopes", effect or "allow")
    if effect is None or len(problems) > before:
        return None
    return Rule(name, effect, conditions, targets, scopes)


def _refuse_idle(rules: Sequence[tuple[Rule, Node]], problems: _Problems) -> None:
    """Refuse rules that change nothing: repeated ones, and allowing ones of which other rules deny everything."""
    denied = [
        (kind, glob, rule)
        for rule, _ in rules
        if rule.effect == "deny"
        for kind, globs in rule.targets.items()
        for glob in globs
    ]
    seen: dict[object, Rule] = {}
    for rule, node in rules:
        first = seen.setdefault(rule.content, rule)
        if first is not rule:
            problems.at(node, f"{rule.name} says the same as {first.name}; keep one")
        over = _shadowing(rule, denied) if rule.effect == "allow" else None
        if over:
            names = " and ".join(dict.fromkeys(deny.name for deny in over))
            problems.at(node, f"{rule.name} allows only what {names} denies, and deny wins; remove it")


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
