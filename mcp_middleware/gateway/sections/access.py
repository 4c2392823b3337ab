"""``access``: who may see and call what."""

from typing import Any, Final

from mcp_middleware.authorization.rules import POLICY_KEYS, RULE_KEYS
from mcp_middleware.gateway.scalars import File, OneOf
from mcp_middleware.gateway.shapes import Either, Key, ListOf, Section, Text
from mcp_middleware.gateway.source import Reading
from mcp_middleware.nodes import Node

__all__ = ["ACCESS"]

_WORDS: Final = ListOf(Text("string", "be a string"))
_EFFECT: Final = OneOf(("allow", "deny"))
_RULE: Final = Section(
    "access.rules[]",
    tuple(
        Key(name, _EFFECT, about, "allow") if name == "effect" else Key(name, _WORDS, about)
        for name, about in RULE_KEYS.items()
    ),
)
_POLICY: Final = Section(
    "access",
    (
        Key("default", _EFFECT, POLICY_KEYS["default"], "deny"),
        Key("rules", ListOf(_RULE, least=0), POLICY_KEYS["rules"]),
    ),
)
"""What ``authorization.rules`` reads, for the schema and the reference."""
_POLICY_FILE: Final = Section(
    "access",
    (
        Key(
            "file",
            File(),
            "A policy file, in place of the keys above; its rules may have `servers` too.",
            required=True,
        ),
    ),
)


class _Access(Either):
    """A policy: here, or in a file of its own. Read as its node, or as the file's section: the rules of a policy are
    for ``authorization.rules``."""

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        if node.kind != "mapping":
            return reading.wrong(node, path, self.must)
        return _POLICY_FILE.read(node, path, reading) if "file" in node.members else node


ACCESS: Final = _Access((_POLICY, _POLICY_FILE), "be a policy, or a mapping with file")
