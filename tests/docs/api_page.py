"""The page of the Python interface, made from signatures and docstrings.

``python -m tests.docs.api_page > docs/api.md`` makes it anew. Read from the sources and not from what is imported, so
that a signature stands as its author wrote it.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final, TypeAlias

from tests.docs.blocks import ROOT

PACKAGE: Final = "mcp_middleware"
HOMES: Final = {
    "": "Import these from the package itself.",
    "audit": "What reads a trail, and what a sink of your own is made of.",
    "ratelimit": "Words that options of the limiter take.",
    "tracing": "A word that an option takes.",
    "credentials": "What a credential of your own is made of.",
    "oauth": "The client by which authorization servers are asked.",
    "storage": "What a store of your own has to do, and what it is asked.",
    "affinity": "What is sealed in a session id.",
    "types": "Values and small interfaces that all share.",
    "message": "What an `Authorizer` is given.",
    "errors": "Errors, and the codes of refusals.",
    "gateway": "The gateway as a library.",
    "testing": "For tests of what you build on this.",
}
"""The modules whose names people use, and what each is for. A name is told of in the first that has it."""

_PREFACE: Final = """\
# Python interface

Every public name, from its docstring. What the options do, with examples, is on the pages of the
[members](index.md); what all members share is in the [reference](reference.md).

A module that is not here is the package's own business, and may change without notice.
"""
_WIDTH: Final = 100
_SECTION: Final = re.compile(r"^(Args|Returns|Raises|Yields):$")
_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
_Named: TypeAlias = _Function | ast.ClassDef | ast.Assign | ast.AnnAssign
_Home: TypeAlias = tuple[str, _Named, str | None]
"""The module where something is defined, its definition, and the string below it."""


@cache
def _tree(module: str) -> tuple[ast.Module, bool]:
    """A module's source, and whether it is a package."""
    path = ROOT / Path(*module.split("."))
    package = path.is_dir()
    return ast.parse((path / "__init__.py" if package else path.with_suffix(".py")).read_text()), package


def _name_of(node: ast.stmt) -> str | None:
    if isinstance(node, _Function | ast.ClassDef):
        return node.name
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.target)
    return ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else None


def _with_strings(body: Sequence[ast.stmt]) -> Iterator[tuple[ast.stmt, str | None]]:
    """Each statement, and the string that stands below it."""
    for node, after in zip(body, [*body[1:], None], strict=True):
        below = after.value if isinstance(after, ast.Expr) else None
        yield node, below.value if isinstance(below, ast.Constant) and isinstance(below.value, str) else None


def _find(module: str, name: str) -> _Home | None:
    """Where ``name`` of ``module`` is defined, through whatever imports it; None if that is not in this package."""
    tree, package = _tree(module)
    for node, below in _with_strings(tree.body):
        if _name_of(node) == name and isinstance(node, _Function | ast.ClassDef | ast.Assign | ast.AnnAssign):
            return module, node, below
    for imported in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
        if any((alias.asname or alias.name) == name for alias in imported.names):
            above = module.split(".")[: len(module.split(".")) - imported.level + package]
            home = ".".join([*(above if imported.level else []), *filter(None, [imported.module])])
            return _find(home, name) if home.startswith(PACKAGE) else None
    return None


def public_names(module: str) -> list[str]:
    """What a module lists as public."""
    for node in _tree(module)[0].body:
        if _name_of(node) == "__all__" and isinstance(node, ast.Assign):
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []


def _value(module: str, node: ast.expr) -> str:
    """A default as people should read it: a private constant by what it is, if that is short."""
    if isinstance(node, ast.Name) and (node.id.startswith("_") or node.id.isupper()):
        home = _find(module, node.id)
        value = getattr(home[1], "value", None) if home else None
        text = _value(home[0], value) if home and isinstance(value, ast.expr) else "..."
        return text if len(text) < 40 else "..."
    return ast.unparse(node)


def _parameter(module: str, argument: ast.arg, default: ast.expr | None, stars: str = "") -> str:
    text = f"{stars}{argument.arg}" + (f": {ast.unparse(argument.annotation)}" if argument.annotation else "")
    if default is None:
        return text
    return text + (" = " if argument.annotation else "=") + _value(module, default)


def _parameters(module: str, function: _Function) -> list[str]:
    """Those of a function but ``self``."""
    given = function.args
    before = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(before) - len(given.defaults)) + list(given.defaults)
    listed = [_parameter(module, argument, default) for argument, default in zip(before, defaults, strict=True)]
    if before and before[0].arg in ("self", "cls"):
        listed = listed[1:]
    if given.vararg is not None:
        listed.append(_parameter(module, given.vararg, None, "*"))
    elif given.kwonlyargs:
        listed.append("*")
    listed += [_parameter(module, *pair) for pair in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return listed + ([_parameter(module, given.kwarg, None, "**")] if given.kwarg else [])


def _call(name: str, parameters: Sequence[str], returns: str = "") -> str:
    line = f"{name}({', '.join(parameters)}){returns}"
    if len(line) <= _WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {parameter}," for parameter in parameters), f"){returns}"])


def _returns(function: _Function) -> str:
    return f" -> {ast.unparse(function.returns)}" if function.returns is not None else ""


def _markdown(docstring: str | None) -> str:
    """A docstring as Markdown: its sections of ``name: text`` become lists."""
    lines, section = [], False
    for line in (docstring or "").replace("``", "`").splitlines():
        if _SECTION.match(line):
            lines += [] if line == "Args:" else [line, ""]
            section = True
        elif section and re.match(r"    \S", line):
            name, _, rest = line.strip().partition(": ")
            lines.append(f"- `{name}`: {rest}")
        elif section and line.strip():
            lines.append(f"  {line.strip()}")
        else:
            section = section and not line.strip()
            lines.append(line)
    return "\n".join(lines).strip()


def _ancestry(module: str, node: ast.ClassDef) -> Iterator[tuple[str, ast.ClassDef]]:
    """A class and those of ours that it inherits from, the nearest first."""
    yield module, node
    for base in node.bases:
        home = _find(module, base.id) if isinstance(base, ast.Name) else None
        if home and isinstance(home[1], ast.ClassDef):
            yield from _ancestry(home[0], home[1])


def _fields(module: str, node: ast.ClassDef) -> Iterator[tuple[str, str | None, bool]]:
    """The public fields of a class: each as it is written, what is said of it, and whether a call may give it."""
    for statement, below in _with_strings(node.body):
        if isinstance(statement, ast.AnnAssign) and not ast.unparse(statement.target).startswith("_"):
            kind, value = ast.unparse(statement.annotation), statement.value
            hidden = isinstance(value, ast.Call) and any(
                word.arg == "init" and isinstance(word.value, ast.Constant) and not word.value.value
                for word in value.keywords
            )
            default = _default_of(module, value)
            text = f"{ast.unparse(statement.target)}: {kind}" + (f" = {default}" if default else "")
            yield text, below, not hidden and not kind.startswith("ClassVar")


def _default_of(module: str, value: ast.expr | None) -> str | None:
    if isinstance(value, ast.Call) and ast.unparse(value.func) in ("field", "msgspec.field"):
        words = {word.arg: word.value for word in value.keywords}
        if "default_factory" in words:
            return f"{ast.unparse(words['default_factory'])}()"
        value = words.get("default")
    return _value(module, value) if value is not None else None


def _is_value(node: ast.ClassDef) -> bool:
    """Whether its fields are what it is made of."""
    marks = [ast.unparse(mark) for mark in [*node.decorator_list, *node.bases]]
    return any(re.match(r"(dataclass|msgspec\.Struct|Struct|NamedTuple)\b", mark) for mark in marks)


def _methods(module: str, node: ast.ClassDef) -> Iterator[str]:
    """What a class has for others to call, or to fill in."""
    for method in (child for child in node.body if isinstance(child, _Function)):
        marks = {ast.unparse(mark) for mark in method.decorator_list}
        told_of_its_base = node.name != "Member" and method.name.startswith("on_")
        if (
            told_of_its_base
            or method.name.startswith(("_", "test_"))
            or any(mark.endswith((".setter", "overload")) for mark in marks)
        ):
            continue
        about = " ".join(_markdown(ast.get_docstring(method)).split())
        if "property" in marks or "cached_property" in marks:
            shown = f"{method.name}: {ast.unparse(method.returns)}" if method.returns else method.name
        else:
            kind = "async " if isinstance(method, ast.AsyncFunctionDef) else ""
            shown = f"{kind}{method.name}({', '.join(_parameters(module, method))}){_returns(method)}"
        yield f"- `{shown}`" + (f": {about}" if about else "")


def _class(module: str, node: ast.ClassDef) -> Iterator[str]:
    fields: list[tuple[str, str | None]] = []
    parameters: list[str] | None = None
    for home, owner in _ancestry(module, node):
        begin = next((m for m in owner.body if isinstance(m, _Function) and m.name == "__init__"), None)
        if begin is not None:
            parameters = _parameters(home, begin)
            break
        if _is_value(owner):
            found = list(_fields(home, owner))
            parameters = [text for text, _, given in found if given]
            break
    protocol = any(ast.unparse(base).startswith("Protocol") for base in node.bases)
    if not protocol and parameters is not None:
        yield f"```text\n{_call(node.name, parameters)}\n```"
    yield _markdown(ast.get_docstring(node))
    fields = [(text, about) for text, about, _ in _fields(module, node) if about or protocol]
    told = [f"- `{text}`" + (f": {' '.join(_markdown(about).split())}" if about else "") for text, about in fields]
    yield _listed("Fields:", told)
    yield _listed("Methods:", list(_methods(module, node)))


def _listed(head: str, items: Sequence[str]) -> str:
    """A list with its head: two lists that follow each other would be one."""
    return "\n".join([head, "", *items]) if items else ""


def _entry(name: str, home: _Home) -> str:
    module, node, below = home
    parts: list[str] = [f"### `{name}`"]
    if isinstance(node, ast.ClassDef):
        parts += _class(module, node)
    elif isinstance(node, _Function):
        parts += [f"```text\n{_call(name, _parameters(module, node), _returns(node))}\n```"]
        parts += [_markdown(ast.get_docstring(node))]
    elif node.value is not None and len(shown := ast.unparse(node.value)) <= _WIDTH:
        parts += [f"```text\n{name} = {shown}\n```", _markdown(below)]
    else:
        parts += [_markdown(below)]
    return "\n\n".join(part for part in parts if part)


def page() -> str:
    """``docs/api.md``."""
    told: set[str] = set()
    parts = [_PREFACE.rstrip()]
    for home, about in HOMES.items():
        module = f"{PACKAGE}.{home}" if home else PACKAGE
        names = [name for name in public_names(module) if name not in told]
        told.update(names)
        parts += [f"## `{module}`", about]
        parts += [_entry(name, found) for name in names if (found := _find(module, name)) is not None]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
