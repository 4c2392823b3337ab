"""The gateway's file as nodes, with the environment's values in them. What they mean is for ``shapes`` and ``config``.

``${NAME}`` in any string stands for the environment variable of that name, ``$${`` for a literal ``${``. Where a secret
is expected, ``{file: PATH}`` stands for what a file holds. Neither kind of value is ever part of an error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from mcp_middleware.nodes import Node

__all__ = ["INVALID", "VARIABLE", "Reading", "join", "with_environment"]

VARIABLE: Final = r"\$\{[A-Za-z_][A-Za-z0-9_]*\}"
_REFERENCE: Final = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\})?")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_*?/:@-]{1,200}", re.ASCII)
_MAX_SECRET_BYTES: Final = 64 * 1024

INVALID: Final[Any] = object()
"""What is read from a node that is wrong; the error is noted already."""


@dataclass(slots=True)
class Reading:
    """One reading of a file: what it may look at, and everything that was found wrong."""

    environ: Mapping[str, str] = field(repr=False)
    directory: Path
    """Where relative paths start."""
    problems: list[str] = field(default_factory=list)
    unset: set[str] = field(default_factory=set)
    """Keys whose value could not be had from the environment."""
    files: list[Path] = field(default_factory=list)
    """What was read besides the file itself."""

    def at(self, node: Node, text: str) -> Any:
        """Note a problem. Returns INVALID."""
        self.problems.append(f"{node.place}: {text}")
        return INVALID

    def wrong(self, node: Node, path: str, must: str) -> Any:
        """Note that the value of a key is not what it must be. Returns INVALID."""
        return self.at(node, f"{path} is {node.describe()}; it must {must}")

    def path(self, text: str) -> Path:
        """A path of the file: relative ones start where the file is."""
        return self.directory / text

    def secret_file(self, node: Node, path: str, text: str) -> Any:
        """What a file holds, without the line break at its end. INVALID where there is nothing to be had."""
        try:
            found = self.path(text)
            self.files.append(found)
            with found.open("rb") as file:
                data = file.read(_MAX_SECRET_BYTES + 1)
            secret = data.decode().rstrip("\r\n")
        except (OSError, ValueError) as error:
            reason = (error.strerror or "unreadable") if isinstance(error, OSError) else "it is no text in UTF-8"
            return self.wrong(node, path, f"name a readable file ({reason})")
        if len(data) > _MAX_SECRET_BYTES:
            return self.wrong(node, path, f"name a file of at most {_MAX_SECRET_BYTES} bytes")
        if not secret:
            return self.wrong(node, path, "name a file that is not empty")
        return secret


def with_environment(node: Node, path: str, reading: Reading) -> Node:
    """``node`` with the environment's values in the strings of it and of everything in it."""
    if node.kind == "mapping":
        return replace(
            node,
            members={key: with_environment(child, join(path, key), reading) for key, child in node.members.items()},
        )
    if node.kind == "list":
        items = enumerate(node.items)
        return replace(node, items=tuple(with_environment(item, f"{path}[{i}]", reading) for i, item in items))
    if node.kind != "string" or "${" not in node.text:
        return node
    wanting: list[str] = []
    malformed = False

    def value(match: re.Match[str]) -> str:
        nonlocal malformed
        if match[0] == "$${":
            return "${"
        name = match[1]
        if name is None:
            malformed = True
            return ""
        if name not in reading.environ:
            wanting.append(name)
        return reading.environ.get(name, "")

    text = _REFERENCE.sub(value, node.text)
    for name in dict.fromkeys(wanting):
        reading.at(
            node,
            f"{path} needs the environment variable {name}, which is not set; set it, or write $${{ for a literal ${{",
        )
    if malformed:
        reading.wrong(node, path, "have the name of a variable in ${NAME}; write $${ for a literal ${")
    if wanting or malformed:
        reading.unset.add(path)
        return replace(node, text="unset", written=node.text)
    return replace(node, text=text, written=node.text)


def join(path: str, key: str) -> str:
    """The name of a key in a section, as errors have it."""
    shown = key if _PLAIN.fullmatch(key) else repr(key[:200])
    return f"{path}.{shown}" if path else shown
