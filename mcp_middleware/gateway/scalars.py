"""The kinds of values of the gateway's file that are one number, word or secret."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Final

from mcp_middleware.nodes import Node

from .shapes import Key, Section, Shape, Text
from .source import INVALID, VARIABLE, Reading, join

__all__ = [
    "SECRET_FILE",
    "Amount",
    "Duration",
    "File",
    "Flag",
    "Off",
    "OneOf",
    "Secret",
    "Share",
    "Size",
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
_VARIABLE: Final = {"type": "string", "pattern": VARIABLE}
"""The schema of what stands for a value of the environment."""


@dataclass(frozen=True)
class File(Shape):
    """The path of a file, read as a Path: of one that is there, or (``new``) that can be made."""

    new: bool = False
    label = "path"

    @property
    def must(self) -> str:  # type: ignore[override]
        return "name a file in a directory that exists, not a directory" if self.new else "name a file that can be read"

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        if node.kind != "string" or not node.text:
            return reading.wrong(node, path, self.must)
        file = reading.path(node.text)
        try:
            good = (
                file.parent.is_dir() and not file.is_dir() if self.new else file.is_file() and os.access(file, os.R_OK)
            )
        except (OSError, ValueError):  # too long, in a directory that is closed to us, or no path at all
            good = False
        return file if good else reading.wrong(node, path, self.must)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class Duration(Shape):
    """Seconds above 0: a number, or a number with a unit."""

    label = "duration"
    kinds: ClassVar[tuple[str, ...]] = ("string", "number")
    must = "be a duration above 0 and of at most 366d, such as 250ms, 60s, 30m or 12h; a number is seconds"

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        match = _DURATION.fullmatch(node.text) if node.kind in self.kinds else None
        seconds = float(match[1]) * _UNITS[match[2] or "s"] if match else 0.0
        return seconds if 0 < seconds <= _MAX_SECONDS else reading.wrong(node, path, self.must)

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
    must = "be a size above 0, such as 64KiB or 4MiB; a number is bytes"
    kinds: ClassVar[tuple[str, ...]] = ("string", "number")

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        match = _SIZE.fullmatch(node.text) if node.kind in self.kinds else None
        size = int(match[1]) * _SIZES[match[2] or "B"] if match else 0
        return size or reading.wrong(node, path, self.must)

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
    from_environment: ClassVar[bool] = True

    @property
    def must(self) -> str:  # type: ignore[override]
        return f"be a whole number from {self.least} to {self.most}"

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        number = int(node.text) if self.accepts(node) and _WHOLE.fullmatch(node.text) else -1
        return number if self.least <= number <= self.most else reading.wrong(node, path, self.must)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "integer", "minimum": self.least, "maximum": self.most}, _VARIABLE]}


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
    must = "be a number from 0 to 1, such as 0.1"
    kinds: ClassVar[tuple[str, ...]] = ("number",)
    from_environment: ClassVar[bool] = True

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        match = _SHARE.fullmatch(node.text) if self.accepts(node) else None
        share = float(match[0]) if match else -1.0
        return share if 0 <= share <= 1 else reading.wrong(node, path, self.must)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, _VARIABLE]}


@dataclass(frozen=True)
class Flag(Shape):
    """True or false, in any spelling of YAML."""

    label = "true or false"
    must = "be true or false"
    kinds: ClassVar[tuple[str, ...]] = (_BOOLEAN,)
    from_environment: ClassVar[bool] = True

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        text = node.text.lower() if self.accepts(node) else ""
        return text in _TRUE if text in _TRUE | _FALSE else reading.wrong(node, path, self.must)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "boolean"}, _VARIABLE]}


@dataclass(frozen=True)
class Off(Shape):
    """``off``, read as that string. To YAML 1.1 it is a boolean."""

    label = "`off`"
    must = "be off"

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

    @property
    def must(self) -> str:  # type: ignore[override]
        return f"be {' or '.join(self.words)}"

    def _read(self, node: Node, path: str, reading: Reading) -> Any:
        if node.kind == "string" and node.text in self.words:
            return node.text
        return reading.wrong(node, path, self.must)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"enum": list(self.words)}, _VARIABLE]}


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
