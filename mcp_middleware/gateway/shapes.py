"""The kinds of values that the gateway's file has: what they have in common, and those that are made of others.

Each says of itself how it is read, its JSON Schema and its name in the reference, so that the three cannot differ.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.nodes import Node, read_mapping

from .source import INVALID, VARIABLE, Reading, join

__all__ = ["Either", "Key", "Kinds", "ListOf", "MapOf", "Section", "Shape", "Text"]


class Shape(ABC):
    """One kind of value."""

    kinds: ClassVar[tuple[str, ...]] = ("string",)
    """The kinds of nodes that are read; among several shapes the first that reads a node's kind gets it."""
    from_environment: ClassVar[bool] = False
    """Whether a string of the environment is read too, although none may be written."""
    label: str
    """Its name in the reference."""
    must: str
    """What it must do or be, after "it must"."""

    def read(self, node: Node, path: str, reading: Reading) -> Any:
        """The value of a node, or INVALID with the problem noted."""
        return INVALID if path in reading.unset else self._read(node, path, reading)

    def accepts(self, node: Node) -> bool:
        """Whether a node is meant to be one of these."""
        return node.kind in self.kinds or (self.from_environment and node.written is not None)

    @abstractmethod
    def _read(self, node: Node, path: str, reading: Reading) -> Any: ...

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """The JSON Schema (2020-12) of the value as written, references to the environment included."""

    def sections(self) -> "Sequence[Section]":
        """The sections in it, for the reference."""
        return ()


@dataclass(frozen=True)
class Text(Shape):
    """A string that a function turns into a value, or refuses by a ValueError."""

    label: str
    must: str
    check: Callable[[str], Any] = str
    pattern: str = "."
    """What every good one matches (a search, as JSON Schema has it)."""
    examples: tuple[str, ...] = ()

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        if node.kind != "string" or not node.text:
            return reading.wrong(node, path, self.must)
        try:
            return self.check(node.text)
        except ValueError:
            return reading.wrong(node, path, self.must)

    def schema(self) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "string", "pattern": f"(?:{self.pattern})|{VARIABLE}"}
        return found | ({"examples": list(self.examples)} if self.examples else {})


@dataclass(frozen=True)
class ListOf(Shape):
    """A list of values of one kind, read as a tuple; none may be there twice."""

    item: Shape
    least: int = 1
    kinds: ClassVar[tuple[str, ...]] = ("list",)

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"list of: {self.item.label}"

    @property
    def must(self) -> str:  # type: ignore[override]
        return f"be a list{' with at least one item' if self.least else ''} ({self.item.label})"

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        if node.kind != "list" or len(node.items) < self.least:
            shown = "an empty list" if node.kind == "list" else node.describe()
            return reading.at(node, f"{path} is {shown}; it must {self.must}")
        values = [self.item.read(item, f"{path}[{index}]", reading) for index, item in enumerate(node.items)]
        if any(value is INVALID for value in values):
            return INVALID
        for index, value in enumerate(values):
            if value in values[:index]:
                first = values.index(value)
                return reading.at(node.items[index], f"{path}[{index}] repeats {path}[{first}]; keep one")
        return tuple(values)

    def schema(self) -> dict[str, Any]:
        least = {"minItems": self.least} if self.least else {}
        return {"type": "array", "items": self.item.schema(), "uniqueItems": True, **least}

    def sections(self) -> "Sequence[Section]":
        return self.item.sections()


@dataclass(frozen=True)
class MapOf(Shape):
    """A mapping whose keys the user chooses."""

    named: Text
    """What its keys must be."""
    value: Shape
    least: int = 0
    kinds: ClassVar[tuple[str, ...]] = ("mapping",)

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"mapping from {self.named.label} to: {self.value.label}"

    @property
    def must(self) -> str:  # type: ignore[override]
        return f"be a mapping{' with at least one key' if self.least else ''} ({self.named.label})"

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        if node.kind != "mapping" or len(node.members) < self.least:
            shown = "an empty mapping" if node.kind == "mapping" else node.describe()
            return reading.at(node, f"{path} is {shown}; it must {self.must}")
        values: dict[str, Any] = {}
        sound = True
        for key, child in node.members.items():
            try:
                name = self.named.check(key)
            except ValueError:
                reading.at(child, f"{path} has the key {key[:200]!r}; it must {self.named.must}")
                sound = False
                name = key
            if name in values:
                reading.at(child, f"{path} has the key {key[:200]!r} twice, in two spellings; keep one")
                sound = False
            values[name] = self.value.read(child, join(path, key), reading)
            sound = sound and values[name] is not INVALID
        return values if sound else INVALID

    def schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "propertyNames": {"pattern": self.named.pattern},
            "additionalProperties": self.value.schema(),
        } | ({"minProperties": self.least} if self.least else {})

    def sections(self) -> "Sequence[Section]":
        return self.value.sections()


@dataclass(frozen=True)
class Key:
    """One key of a section."""

    name: str
    shape: Shape
    about: str
    """What it is for, in Markdown without line breaks."""
    default: Any = None
    """As it would be written; None where nothing stands in its place."""
    required: bool = False


@dataclass(frozen=True)
class Section(Shape):
    """A mapping with known keys, read as a dict that has each of them; None where nothing is given."""

    name: str
    """Its heading in the reference, as a path: ``servers.<name>``."""
    keys: tuple[Key, ...]
    build: Callable[[Mapping[str, Any]], Any] = field(default=dict)
    """What is made of the values, once all of them are sound."""
    judge: Callable[[Collection[str]], str | None] = field(default=lambda _: None)
    """Of the names of the keys that are given: what is wrong with having these together, or None."""
    kinds: ClassVar[tuple[str, ...]] = ("mapping",)

    label = "section"

    @property
    def must(self) -> str:  # type: ignore[override]
        return f"be a mapping with {', '.join(key.name for key in self.keys)}"

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        values = self.values(node, path, reading)
        if values is INVALID or any(value is INVALID for value in values.values()):
            return INVALID
        try:
            return self.build(values)
        except ConfigurationError as error:  # of values that are sound one by one; it shows no secret
            return reading.at(node, f"{path}: {error}")

    def values(self, node: Node, path: str, reading: Reading) -> Any:
        """The values of all keys, INVALID where one is wrong or missing; INVALID for what is no section at all."""
        known = [key.name for key in self.keys]
        if node.kind != "mapping":
            return reading.wrong(node, path or "the configuration", self.must)
        before = len(reading.problems)
        for name, child in node.members.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
                meant = f"did you mean {near[0]}? Allowed are" if near else "allowed are"
                reading.at(child, f"{join(path, name)} is no key of this place; {meant} {', '.join(known)}")
        fault = self.judge(node.members)
        if fault is not None:
            reading.at(node, f"{path} {fault}")
        unsound = len(reading.problems) > before
        values: dict[str, Any] = {}
        for key in self.keys:
            place = join(path, key.name)
            if key.name in node.members:
                values[key.name] = key.shape.read(node.members[key.name], place, reading)
            elif key.required:
                values[key.name] = reading.at(node, f"{place} is missing; it must {key.shape.must}")
            elif key.default is not None:
                values[key.name] = key.shape.read(read_mapping(key.default, source=place), place, reading)
            else:
                values[key.name] = None
        return INVALID if unsound and path else values

    def schema(self) -> dict[str, Any]:
        properties = {}
        for key in self.keys:
            found = {"description": key.about} | key.shape.schema()
            properties[key.name] = found | ({"default": key.default} if key.default is not None else {})
        required = [key.name for key in self.keys if key.required]
        return {"type": "object", "properties": properties, "additionalProperties": False} | (
            {"required": required} if required else {}
        )

    def sections(self) -> "Sequence[Section]":
        return [self, *(section for key in self.keys for section in key.shape.sections())]


@dataclass(frozen=True)
class Either(Shape):
    """A value of one of several kinds: the first that takes it."""

    shapes: tuple[Shape, ...]
    must: str

    @property
    def label(self) -> str:  # type: ignore[override]
        return ", or ".join(dict.fromkeys(shape.label for shape in self.shapes))

    def accepts(self, node: Node) -> bool:
        return any(shape.accepts(node) for shape in self.shapes)

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        for shape in self.shapes:
            if shape.accepts(node):
                before = len(reading.problems)
                value = shape.read(node, path, reading)
                if value is not INVALID or node.kind in ("mapping", "list"):
                    return value
                del reading.problems[before:]  # they speak of one kind, as if there were no others
                break
        return reading.wrong(node, path, self.must)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [shape.schema() for shape in self.shapes]}

    def sections(self) -> "Sequence[Section]":
        return [section for shape in self.shapes for section in shape.sections()]


@dataclass(frozen=True)
class Kinds(Shape):
    """A mapping whose ``type`` says which of several sections it is. Each of them has that key."""

    named: Mapping[str, Section]
    """The section of each type."""
    must = "be a mapping with type"
    kinds: ClassVar[tuple[str, ...]] = ("mapping",)

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"section with `type`: {' or '.join(f'`{name}`' for name in self.named)}"

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        must = f"be {' or '.join(self.named)}"
        if node.kind != "mapping":
            return reading.wrong(node, path, self.must)
        given, place = node.members.get("type"), join(path, "type")
        if given is None:
            return reading.at(node, f"{place} is missing; it must {must}")
        if place in reading.unset:
            return INVALID
        if given.kind != "string" or given.text not in self.named:
            return reading.wrong(given, place, must)
        return self.named[given.text].read(node, path, reading)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [section.schema() for section in self.named.values()]}

    def sections(self) -> "Sequence[Section]":
        return list(self.named.values())
