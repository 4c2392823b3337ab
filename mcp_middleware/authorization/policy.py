"""A policy and its decisions. Pure: a decision depends on the policy, the caller and the message, on nothing else."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from os import PathLike
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

from mcp_middleware.globs import Glob, matcher
from mcp_middleware.message import Message, Request
from mcp_middleware.nodes import Node, read_file, read_mapping, read_text
from mcp_middleware.types import Decision, Principal

from .methods import questions
from .rules import Effect, Rule, compile_rules, compile_rules_for_servers
from .uris import spellings

__all__ = ["MAX_TARGET", "Authorizer", "Policy", "combine"]

logger = logging.getLogger("mcp_middleware.authorization")

MAX_TARGET: Final = 8192
"""Characters of a name, URI or template; a longer one names nothing that a policy allows."""
_WHAT: Final = "the policy"
_ANY: Final = Glob("*")
_ALLOWED: Final = Decision(allowed=True)
_DENIED: Final = Decision(allowed=False)
_CALLERS: Final = 1024
"""Callers whose rules are kept at hand."""
_DECISIONS: Final = 4096
"""Decisions kept at hand."""
_LONG: Final = 256
"""Characters of a target, above which its decision is not kept: callers choose them, and so what fills the memory."""

_Caller: TypeAlias = tuple[str | None, str, str | None, frozenset[str]]
"""What rules can ask of a caller: issuer, client, subject, roles."""


@runtime_checkable
class Authorizer(Protocol):
    """Decides what a caller may do. A Policy is one; so is anything else with this method."""

    def authorize(self, principal: Principal, message: Message) -> Decision:
        """The decision on one message: a request with one ``target`` of one ``target_kind`` (``tool``, ``prompt``,
        ``resource``, ``template``, ``task``; None for a method that is not known). The items of a list are asked for
        one by one, as if each was called."""
        ...


class Policy:
    """Rules that allow and deny, and what holds where none matches. Made by one of the ``from_`` methods, which log
    the ``warnings``."""

    def __init__(self, rules: Iterable[Rule], *, default: Effect = "deny", warnings: Iterable[str] = ()) -> None:
        self.rules: tuple[Rule, ...] = tuple(rules)
        self.default: Effect = default
        self.warnings: tuple[str, ...] = tuple(warnings)
        """A sentence for each rule that allows only what others deny: so it is meant, or it is a mistake."""
        self._default = Decision(allowed=default == "allow")
        compiled = [_CompiledRule(rule) for rule in self.rules]

        @lru_cache(maxsize=_CALLERS)
        def grants(issuer: str | None, client: str, subject: str | None, roles: frozenset[str]) -> _Grants:
            values = {
                "agents": (client,),
                "subjects": () if subject is None else (subject,),
                "issuers": () if issuer is None else (issuer,),
                "roles": roles,
            }
            return _Grants(rule for rule in compiled if rule.is_for(values))

        self._grants = grants
        self._judge_cached = lru_cache(maxsize=_DECISIONS)(self._judge)

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> "Policy":
        """The policy in a YAML file. Raises ConfigurationError naming the line of everything that is wrong with it."""
        return cls._compile(read_file(path, what=_WHAT))

    @classmethod
    def from_text(cls, text: str, *, source: str = "policy") -> "Policy":
        """The policy in a YAML text; ``source`` is its name in errors. Raises ConfigurationError."""
        return cls._compile(read_text(text, source=source, what=_WHAT))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, source: str = "policy") -> "Policy":
        """The policy in Python values of the same form as the YAML. Raises ConfigurationError."""
        return cls._compile(read_mapping(mapping, source=source))

    @classmethod
    def for_servers(cls, root: Node, names: Collection[str], *, inside: str = "") -> "dict[str, Policy]":
        """For each of several servers the policy of the rules that are about it: those whose ``servers`` match its
        name, and those without. Rules keep their names. ``inside`` is what the places of the policy's keys begin with
        in errors. Raises ConfigurationError, also for ``servers`` that match none of ``names``."""
        default, rules, denied = compile_rules_for_servers(root, names, inside=inside)
        made: dict[tuple[str, ...], Policy] = {}  # one for all servers whose rules are alike
        found = {}
        for server, some in rules.items():
            key = tuple(rule.name for rule in some)
            if key not in made:
                made[key] = cls(some, default=default, warnings=[denied[name] for name in key if name in denied])
            found[server] = made[key]
        return found

    @classmethod
    def _compile(cls, root: Node) -> "Policy":
        default, rules, denied = compile_rules(root)
        for sentence in denied.values():
            logger.warning("%s", sentence)
        return cls(rules, default=default, warnings=denied.values())

    def authorize(self, principal: Principal, message: Message) -> Decision:
        """Whether ``principal`` may send ``message``; where it names several targets, whether all are allowed."""
        asked = questions(message)
        if asked is None:
            return _DENIED
        return combine([self._decide(principal, request) for request in asked])

    def _decide(self, principal: Principal, request: Request) -> Decision:
        caller = (principal.issuer, principal.client, principal.subject, principal.roles)
        method, kind, target = request.method, request.target_kind, request.target
        judge = self._judge if target is not None and len(target) > _LONG else self._judge_cached
        return judge(caller, principal.scopes, method, kind, target)

    def _judge(
        self, caller: _Caller, scopes: frozenset[str], method: str, kind: str | None, target: str | None
    ) -> Decision:
        """One target. Deny wins over allow; an allowing rule whose scopes are met wins over one whose are not."""
        matching = self._grants(*caller).matching(method, kind, target)
        if matching is None:
            return _DENIED
        if matching.denying is not None:
            return matching.denying.decision
        nearest: _CompiledRule | None = None
        fewest = 0
        for rule in matching.allowing:
            wanting = len(rule.scopes - scopes) if rule.scopes else 0
            if not wanting:
                return rule.decision
            if nearest is None or wanting < fewest:
                nearest, fewest = rule, wanting
        return self._default if nearest is None else nearest.short_of_scopes


def combine(decisions: Sequence[Decision]) -> Decision:
    """One decision where all must allow: the worst of them, with every scope that is needed anywhere."""
    if len(decisions) == 1:
        return decisions[0]
    if not decisions:
        return _ALLOWED
    denied = [decision for decision in decisions if not decision.allowed]
    for incurable in (*(d for d in denied if not d.visible), *(d for d in denied if not d.scopes)):
        return incurable
    scopes = dict.fromkeys(scope for decision in decisions for scope in decision.scopes)
    return replace((denied or decisions)[0], scopes=tuple(scopes))


class _CompiledRule:
    """A rule with its globs as expressions and its decisions made."""

    __slots__ = ("_conditions", "_targets", "decision", "rule", "scopes", "short_of_scopes")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.scopes = frozenset(rule.scopes)
        self.decision = Decision(allowed=rule.effect == "allow", rule=rule.name, scopes=rule.scopes)
        self.short_of_scopes = Decision(allowed=False, rule=rule.name, visible=True, scopes=rule.scopes)
        self._conditions = {key: matcher(globs).fullmatch for key, globs in rule.conditions.items()}
        self._targets = {kind: matcher(globs).fullmatch for kind, globs in rule.targets.items()}

    def is_for(self, callers: Mapping[str, Collection[str]]) -> bool:
        """Whether each condition is met by one of the caller's values for it."""
        return all(any(map(matches, callers[key])) for key, matches in self._conditions.items())

    def names(self, kind: str, target: str) -> bool:
        """Whether the rule is about this target."""
        matches = self._targets.get(kind)
        return matches is not None and matches(target) is not None

    def names_all_of(self, kind: str, glob: Glob) -> bool:
        """Whether the rule is about everything that the glob matches."""
        return any(wider.covers(glob) for wider in self.rule.targets.get(kind, ()))

    def names_some_of(self, kind: str, glob: Glob) -> bool:
        """Whether the rule is about anything that the glob matches."""
        return any(other.overlaps(glob) for other in self.rule.targets.get(kind, ()))


class _Matching(NamedTuple):
    """The rules that speak of one target: the first that denies it, all that allow it."""

    denying: _CompiledRule | None
    allowing: Sequence[_CompiledRule]


class _Grants:
    """The rules that are for one caller."""

    __slots__ = ("_allow", "_deny", "_tasks")

    def __init__(self, rules: Iterable[_CompiledRule]) -> None:
        rules = list(rules)
        self._deny = [rule for rule in rules if rule.rule.effect == "deny"]
        self._allow = [rule for rule in rules if rule.rule.effect == "allow"]
        self._tasks = self._rules_on_tasks()

    def matching(self, method: str, kind: str | None, target: str | None) -> _Matching | None:
        """The rules on a target; None where no rule can allow it."""
        if kind is None:
            return _Matching(None, ())
        if kind == "task":
            return self._tasks
        if target is None or len(target) > MAX_TARGET:
            return None
        if kind == "template":
            template = Glob.of_template(target)
            if method == "completion/complete":
                return self._rules_on_all_of(template)
            return self._rules_on_some_of(template)
        forms = spellings(target) if kind == "resource" else (target,)
        if not forms:
            return None
        for rule in self._deny:
            for form in forms:
                if rule.names(kind, form):
                    return _Matching(rule, ())
        return _Matching(None, [rule for rule in self._allow if rule.names(kind, target)])

    def _rules_on_some_of(self, template: Glob) -> _Matching:
        """A template is worth listing where it can expand to something allowed."""
        allowing = [rule for rule in self._allow if rule.names_some_of("resource", template)]
        return _Matching(self._denying_all_of("resource", template), allowing)

    def _rules_on_all_of(self, template: Glob) -> _Matching:
        """Completion names values: it is open where everything that the template expands to is allowed."""
        denying = next((rule for rule in self._deny if rule.names_some_of("resource", template)), None)
        return _Matching(denying, [rule for rule in self._allow if rule.names_all_of("resource", template)])

    def _rules_on_tasks(self) -> _Matching:
        """A task is a tool call that has begun: open to whoever may call some tool."""

        def is_of_use(rule: _CompiledRule) -> bool:
            globs = rule.rule.targets.get("tool", ())
            return any(self._denying_all_of("tool", glob) is None for glob in globs)

        return _Matching(self._denying_all_of("tool", _ANY), [rule for rule in self._allow if is_of_use(rule)])

    def _denying_all_of(self, kind: str, glob: Glob) -> _CompiledRule | None:
        return next((rule for rule in self._deny if rule.names_all_of(kind, glob)), None)
