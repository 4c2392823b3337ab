"""A configuration as text or as Python values, read into nodes that know where they stood: a policy, whose meaning is
for ``authorization.rules``, or the gateway's file.

Of YAML only plain data is understood: no anchors, aliases, merge keys or tags (a few bytes of them can stand for
gigabytes, or for objects), one document, every key once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Final

import yaml

from mcp_middleware.errors import ConfigurationError

__all__ = ["MAX_BYTES", "Node", "read_file", "read_mapping", "read_text"]

MAX_BYTES: Final = 256 * 1024
"""Size of a file; some two thousand rules of a policy fit."""
MAX_DEPTH: Final = 8
"""Levels of nesting; a policy has four, and two more where it stands in the gateway's file."""
_MAX_BITS: Final = 256

_KINDS: Final = {
    "tag:yaml.org,2002:str": "string",
    "tag:yaml.org,2002:null": "empty",
    "tag:yaml.org,2002:bool": "boolean",
    "tag:yaml.org,2002:int": "number",
    "tag:yaml.org,2002:float": "number",
    "tag:yaml.org,2002:timestamp": "date",
}
_PYTHON_KINDS: Final[Mapping[type, str]] = {
    str: "string",
    type(None): "empty",
    bool: "boolean",
    int: "number",
    float: "number",
}
_STARRED: Final = "a text that begins with * or & needs quotes"
_DIRECTIVE: Final = "a text that begins with % needs quotes, and a directive is of no use"
_REMEDIES: Final = (
    ("got '{'", "a text with braces needs quotes here"),
    ("expected alphabetic or numeric character", _STARRED),
    ("anchors and aliases", _STARRED),
    ("tags are not allowed", "a text that begins with ! needs quotes"),
    ("character '\\t'", "indent with spaces"),
    ("cannot start any token", "a text that begins with it needs quotes"),
    (
        "mapping values are not allowed",
        "a text with a colon and a space needs quotes; keys stand below each other, a space after their colon",
    ),
    ("another document", "keep one"),
    ("unexpected end of stream", "close the quote"),
    ("expected ',' or", "close the bracket, or put a text with brackets, commas or colons in quotes"),
    ("expected <block end>", "begin lines of one level in one column, and end what begins with a quote with it"),
    ("escape", "in double quotes a backslash needs another; in single quotes it needs none"),
    ("expected ':'", "end a key with a colon and a space"),
    ("mapping keys are not allowed", "a text that begins with ? needs quotes"),
    ("sequence entries are not allowed", "a text that begins with - needs quotes, and items stand below each other"),
    ("expected the node content", "give the value that is missing here, or put it in quotes"),
    ("expected chomping", "a text that begins with | or > needs quotes"),
    ("expected URI", "a text that begins with ! needs quotes"),
    ("comment or a line break", "begin the text in the next line"),
    ("nested too deeply", f"at most {MAX_DEPTH} levels are read"),
    ("directive", _DIRECTIVE),
    ("<document start>", _DIRECTIVE),
)
"""What to do about errors of YAML, by what they say."""
_USER: Final = re.compile(r"(?<=://)[^/?#\s]*@")
"""A user and password in a URL, which no error shows."""


@dataclass(frozen=True, slots=True)
class Node:
    """One value."""

    place: str
    """Where it stands, for errors: ``policy.yaml:3``, or the name of a source without lines."""
    kind: str
    """``mapping``, ``list``, ``string``, or what it is instead of a string."""
    text: str = ""
    """A scalar as it was written."""
    items: "tuple[Node, ...]" = ()
    members: "Mapping[str, Node]" = field(default_factory=dict)
    written: str | None = None
    """What stood there before values of the environment were put in. Errors quote this: the text may be a secret."""

    def describe(self) -> str:
        """The value as an error quotes it."""
        if self.kind in ("mapping", "list", "empty"):
            return {"mapping": "a mapping", "list": "a list", "empty": "empty"}[self.kind]
        if self.written is not None:
            return f"{_USER.sub('...@', self.written)[:200]!r} (not shown as the environment has it)"
        return (
            repr(_USER.sub("...@", self.text)[:200]) if self.kind == "string" else f"{self.text[:200]} (a {self.kind})"
        )


def read_file(path: str | PathLike[str], *, what: str, problems: list[str] | None = None) -> Node:
    """What a YAML file holds, in UTF-8; ``what`` is its name in errors. Raises ConfigurationError.

    ``problems``: takes what is wrong with single keys, instead of an error.
    """
    if not isinstance(path, str | PathLike):
        raise ConfigurationError(f"the path of {what} is {path!r}; it must name a YAML file")
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a character that no path has
        reason = error.strerror if isinstance(error, OSError) else error
        place = str(path) or repr(path)
        raise ConfigurationError(f"{place}: {what} cannot be read: {reason}; name a YAML file that can be") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(data) <= MAX_BYTES:
            raise ConfigurationError(f"{path}: {what} is not UTF-8 (byte {error.start}); save it as that") from None
        text = ""
    if len(data) > MAX_BYTES:
        raise ConfigurationError(f"{path}: {what} is larger than {MAX_BYTES} bytes, the most that is read")
    return read_text(text, source=str(path), what=what, problems=problems)


def read_text(text: str, *, source: str, what: str, problems: list[str] | None = None) -> Node:
    """What a YAML text holds; ``source`` is where it stands. As ``read_file``."""
    if not isinstance(text, str):
        raise ConfigurationError(f"the text of {what} is {text!r}; it must be a string of YAML")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigurationError(f"{source}: {what} is larger than {MAX_BYTES} bytes, the most that is read")
    try:
        root = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise ConfigurationError(_misread(error, source)) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        where = f"in line {before.count(chr(10)) + 1}; leave it out (column {error.position - before.rfind(chr(10))})"
        said = f"unacceptable character #x{error.character:04x} {where}"
        raise ConfigurationError(f"{source}: not understood as YAML: {said}") from None
    if root is None:
        raise ConfigurationError(f"{source}: {what} is empty; it must be a mapping")
    found: list[str] = []
    node = _node(root, source, root.start_mark.line + 1, found)
    if found and problems is None:
        raise ConfigurationError("\n".join(found))
    if problems is not None:
        problems += found
    return node


def _misread(error: yaml.MarkedYAMLError, source: str) -> str:
    mark, begun = error.problem_mark or error.context_mark, error.context_mark
    said = error.problem or error.context or ""
    if said.startswith("but "):
        said = f"{error.context}, {said}"
    elif mark is not None and begun is not None and begun.line < mark.line:
        said = f"{said} {error.context} from line {begun.line + 1}"
    said += next((f"; {remedy}" for sign, remedy in _REMEDIES if sign in said), "")
    if mark is None:
        return f"{source}: not understood as YAML: {said}"
    return f"{source}:{mark.line + 1}: not understood as YAML: {said} (column {mark.column + 1})"


def read_mapping(value: Mapping[str, Any], *, source: str) -> Node:
    """What Python values hold: mappings, lists, tuples and scalars. Raises ConfigurationError."""
    return _python_node(value, source, 0)


class _Loader(yaml.SafeLoader):
    """Composes nodes, and nothing that could stand for more than was written."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not allowed", problem_mark=event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem="tags are not allowed", problem_mark=event.start_mark)
        if self.depth >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=event.start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _node(node: yaml.Node, source: str, line: int, problems: list[str]) -> Node:
    """``line`` is where the value is said to stand: beside its key, where it has one."""
    place = f"{source}:{line}"
    if isinstance(node, yaml.SequenceNode):
        items = tuple(_node(item, source, item.start_mark.line + 1, problems) for item in node.value)
        return Node(place, "list", items=items)
    if not isinstance(node, yaml.MappingNode):
        return Node(place, _KINDS.get(node.tag, "value of another type"), node.value)
    members: dict[str, Node] = {}
    for key, value in node.value:
        key_line = key.start_mark.line + 1
        if key.tag != "tag:yaml.org,2002:str" or not isinstance(key, yaml.ScalarNode):
            shown = repr(key.value[:200]) if isinstance(key, yaml.ScalarNode) else "a collection"
            remedy = ", which quotes make of it" if key.tag in _KINDS else ""
            problems.append(f"{source}:{key_line}: the key is {shown}; keys must be plain words{remedy}")
            if remedy:  # what it was meant to be is looked at as well
                members.setdefault(key.value, _node(value, source, key_line, problems))
        elif key.value in members:
            problems.append(f"{source}:{key_line}: the key {key.value[:200]!r} is there twice; keep one")
        else:
            members[key.value] = _node(value, source, key_line, problems)
    return Node(place, "mapping", members=members)


def _python_node(value: object, place: str, depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise ConfigurationError(f"{place}: nested too deeply")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                shown = "a huge number" if _is_huge(key) else repr(key)[:200]
                raise ConfigurationError(f"{place}: the key is {shown}; keys must be strings")
        return Node(
            place, "mapping", members={key: _python_node(child, place, depth + 1) for key, child in value.items()}
        )
    if isinstance(value, list | tuple):
        return Node(place, "list", items=tuple(_python_node(child, place, depth + 1) for child in value))
    if _is_huge(value):
        return Node(place, "number", "more than any limit")
    return Node(place, _PYTHON_KINDS.get(type(value), type(value).__name__), str(value))


def _is_huge(value: object) -> bool:
    """Whether this is a number of so many digits that Python refuses to print it."""
    return isinstance(value, int) and value.bit_length() > _MAX_BITS
