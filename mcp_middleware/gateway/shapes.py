"""The kinds of values that the gateway's file has. Each says of itself how it is read, its JSON Schema and its name in
the reference, so that the three cannot differ."""

import difflib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, Final

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.nodes import Node, read_mapping

from .source import INVALID, VARIABLE, Reading, join

__all__ = [
    "Amount",
    "Duration",
    "Either",
    "File",
    "Flag",
    "Key",
    "Kinds",
    "ListOf",
    "MapOf",
    "Off",
    "OneOf",
    "Secret",
    "Section",
    "Shape",
    "Share",
    "Size",
    "Text",
    "Whole",
]

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)?", re.ASCII)
_MAX_SECONDS: Final = 366 * 86_400.0
_SIZES: Final = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_SIZE: Final = re.compile(r"([0-9]{1,12})(B|KiB|MiB|GiB)?", re.ASCII)
_SHARE: Final = re.compile(r"[0-9](?:\.[0-9]{1,9})?", re.ASCII)
_WHOLE: Final = re.compile(r"[0-9]{1,12}", re.ASCII)
_NUMBER: Final = re.compile(r"(?=[0-9.])(0|[1-9][0-9]{0,11})?(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?", re.ASCII)
_TRUE: Final = frozenset({"true", "yes", "on"})
_FALSE: Final = frozenset({"false", "no", "off"})
_BOOLEAN: Final = "boolean"


class Shape(ABC):
    """One kind of value."""

    kinds: ClassVar[tuple[str, ...]] = ("string",)
    """The kinds of nodes that are read; among several shapes the first that reads a node's kind gets it."""
    label: str
    """Its name in the reference."""

    def read(self, node: Node, path: str, reading: Reading) -> Any:
        """The value of a node, or INVALID with the problem noted."""
        return INVALID if path in reading.unset else self._read(node, path, reading)

    def accepts(self, node: Node) -> bool:
        """Whether a node is meant to be one of these."""
        return node.kind in self.kinds

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
    """What it must do or be, after "it must"."""
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
class File(Shape):
    """The path of a file, read as a Path: of one that is there, or (``new``) that can be made."""

    new: bool = False
    label = "path"

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        must = "name a file in a directory that exists" if self.new else "name a file that can be read"
        if node.kind != "string" or not node.text:
            return reading.wrong(node, path, must)
        file = reading.path(node.text)
        try:
            good = (
                file.parent.is_dir() and not file.is_dir() if self.new else file.is_file() and os.access(file, os.R_OK)
            )
        except (OSError, ValueError):  # too long, in a directory that is closed to us, or no path at all
            good = False
        return file if good else reading.wrong(node, path, must)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class Secret(Shape):
    """A string that is never shown, or ``{file: PATH}``. As ``Text``, whose check may raise ConfigurationError."""

    label: str
    must: str
    check: Callable[[str], Any] = str
    examples: tuple[str, ...] = ()
    kinds: ClassVar[tuple[str, ...]] = ("string", "mapping")

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        if node.kind == "mapping":
            values = SECRET_FILE.read(node, path, reading)
            if values is INVALID:
                return INVALID
            text = reading.secret_file(node.members["file"], join(path, "file"), values["file"])
            if text is INVALID:
                return INVALID
        elif node.kind == "string":
            text = node.text
        else:
            return reading.at(node, f"{path} must {self.must}")
        try:
            if not text:
                raise ValueError
            return self.check(text)
        except ValueError:
            return reading.at(node, f"{path} (not shown) must {self.must}")

    def schema(self) -> dict[str, Any]:
        text: dict[str, Any] = {"type": "string", "minLength": 1}
        if self.examples:
            text["examples"] = list(self.examples)
        return {"anyOf": [text, {"$ref": "#/$defs/secretFile"}]}


@dataclass(frozen=True)
class Duration(Shape):
    """Seconds above 0: a number, or a number with a unit."""

    label = "duration"
    kinds: ClassVar[tuple[str, ...]] = ("string", "number")
    MUST: ClassVar[str] = (
        "be a duration above 0 and of at most 366d, such as 250ms, 60s, 30m or 12h; a number is seconds"
    )

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        match = _DURATION.fullmatch(node.text) if node.kind in self.kinds else None
        seconds = float(match[1]) * _UNITS[match[2] or "s"] if match else 0.0
        return seconds if 0 < seconds <= _MAX_SECONDS else reading.wrong(node, path, self.MUST)

    def schema(self) -> dict[str, Any]:
        pattern = rf"^[0-9]{{1,12}}(\.[0-9]{{1,6}})?(ms|s|m|h|d)?$|{VARIABLE}"
        return {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": _MAX_SECONDS},
                {"type": "string", "pattern": pattern, "examples": ["250ms", "60s", "30m", "12h"]},
            ]
        }


@dataclass(frozen=True)
class Size(Shape):
    """Bytes, above 0: a number, or a number with a unit."""

    label = "size"
    kinds: ClassVar[tuple[str, ...]] = ("string", "number")

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        match = _SIZE.fullmatch(node.text) if node.kind in self.kinds else None
        size = int(match[1]) * _SIZES[match[2] or "B"] if match else 0
        return size or reading.wrong(node, path, "be a size above 0, such as 64KiB or 4MiB; a number is bytes")

    def schema(self) -> dict[str, Any]:
        pattern = rf"^[0-9]{{1,12}}(B|KiB|MiB|GiB)?$|{VARIABLE}"
        text = {"type": "string", "pattern": pattern, "examples": ["64KiB", "4MiB"]}
        return {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 10**12 - 1}, text]}


@dataclass(frozen=True)
class Whole(Shape):
    """A whole number."""

    label = "whole number"
    most: int = 10**9
    least: int = 1
    kinds: ClassVar[tuple[str, ...]] = ("number",)

    def accepts(self, node: Node) -> bool:
        return node.kind == "number" or node.written is not None

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        number = int(node.text) if self.accepts(node) and _WHOLE.fullmatch(node.text) else -1
        return (
            number
            if self.least <= number <= self.most
            else reading.wrong(node, path, f"be a whole number from {self.least} to {self.most}")
        )

    def schema(self) -> dict[str, Any]:
        variable = {"type": "string", "pattern": VARIABLE}
        return {"anyOf": [{"type": "integer", "minimum": self.least, "maximum": self.most}, variable]}


@dataclass(frozen=True)
class Amount(Shape):
    """An amount of money, read as the decimal that was written. ``check`` may refuse it, as a ``Text``'s does."""

    must: str
    check: Callable[[Decimal], Any]
    label = "amount"
    kinds: ClassVar[tuple[str, ...]] = ("string", "number")

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        try:
            if node.kind not in self.kinds or not _NUMBER.fullmatch(node.text):
                raise ValueError
            amount = Decimal(node.text)
            self.check(amount)
        except (ValueError, ArithmeticError):
            return reading.wrong(node, path, self.must)
        return amount

    def schema(self) -> dict[str, Any]:
        text = {"type": "string", "pattern": rf"^{_NUMBER.pattern}$|{VARIABLE}"}
        return {"anyOf": [{"type": "number", "minimum": 0}, text]}


@dataclass(frozen=True)
class Share(Shape):
    """A part of all, from 0 to 1."""

    label = "number from 0 to 1"
    kinds: ClassVar[tuple[str, ...]] = ("number",)

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        match = _SHARE.fullmatch(node.text) if node.kind == "number" or node.written is not None else None
        share = float(match[0]) if match else -1.0
        return share if 0 <= share <= 1 else reading.wrong(node, path, "be a number from 0 to 1, such as 0.1")

    def schema(self) -> dict[str, Any]:
        variable = {"type": "string", "pattern": VARIABLE}
        return {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, variable]}


@dataclass(frozen=True)
class Flag(Shape):
    """True or false, in any spelling of YAML."""

    label = "true or false"
    kinds: ClassVar[tuple[str, ...]] = (_BOOLEAN,)

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        text = node.text.lower() if node.kind == _BOOLEAN or node.written is not None else ""
        return text in _TRUE if text in _TRUE | _FALSE else reading.wrong(node, path, "be true or false")

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": VARIABLE}]}


@dataclass(frozen=True)
class Off(Shape):
    """``off``, read as that string. To YAML 1.1 it is a boolean."""

    label = "`off`"

    def accepts(self, node: Node) -> bool:
        if node.kind == _BOOLEAN:
            return node.text.lower() in _FALSE
        return node.kind == "string" and node.text == "off"

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        return "off"

    def schema(self) -> dict[str, Any]:
        return {"enum": [False, "off"]}


@dataclass(frozen=True)
class OneOf(Shape):
    """One of several words."""

    words: tuple[str, ...]

    @property
    def label(self) -> str:  # type: ignore[override]
        return " or ".join(f"`{word}`" for word in self.words)

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        if node.kind == "string" and node.text in self.words:
            return node.text
        return reading.wrong(node, path, f"be {' or '.join(self.words)}")

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"enum": list(self.words)}, {"type": "string", "pattern": VARIABLE}]}


@dataclass(frozen=True)
class ListOf(Shape):
    """A list of values of one kind, read as a tuple; none may be there twice."""

    item: Shape
    least: int = 1
    kinds: ClassVar[tuple[str, ...]] = ("list",)

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"list of: {self.item.label}"

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        if node.kind != "list" or len(node.items) < self.least:
            some = " with at least one item" if self.least else ""
            shown = "an empty list" if node.kind == "list" else node.describe()
            return reading.at(node, f"{path} is {shown}; it must be a list{some} ({self.item.label})")
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

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        if node.kind != "mapping" or len(node.members) < self.least:
            some = " with at least one key" if self.least else ""
            shown = "an empty mapping" if node.kind == "mapping" else node.describe()
            return reading.at(node, f"{path} is {shown}; it must be a mapping{some} ({self.named.label})")
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
            return reading.wrong(node, path or "the configuration", f"be a mapping with {', '.join(known)}")
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
                values[key.name] = reading.at(node, f"{place} is missing; {key.about[:1].lower()}{key.about[1:]}")
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
        return ", or ".join(shape.label for shape in self.shapes)

    def accepts(self, node: Node) -> bool:
        return any(shape.accepts(node) for shape in self.shapes)

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        for shape in self.shapes:
            if shape.accepts(node):
                return shape.read(node, path, reading)
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
    kinds: ClassVar[tuple[str, ...]] = ("mapping",)

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"section with `type`: {OneOf(tuple(self.named)).label}"

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        must = f"be {' or '.join(self.named)}"
        if node.kind != "mapping":
            return reading.wrong(node, path, "be a mapping with type")
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


SECRET_FILE: Final = Section(
    "{file: ...}",
    (
        Key(
            "file",
            Text("path", "be the path of a file", examples=("/run/secrets/session_key",)),
            "The file that holds the secret; the line break at its end is no part of it.",
            required=True,
        ),
    ),
)
