"""What is imported is named: an environment that holds more than it should hides from a developer what a user lacks."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN = ("mcp_middleware", "benchmarks", "examples", "tests", "scripts")
FILES = {name: sorted((ROOT / name).rglob("*.py")) for name in OWN}
REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?")


def normal(name: str) -> str:
    """A distribution's name as all spell it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def named() -> set[str]:
    """The distributions that pyproject.toml names itself, for all or for an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {normal(found[1]) for line in lines if (found := REQUIREMENT.match(line))}


def locked() -> set[str]:
    """The distributions that come with those."""
    lines = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    return {normal(line.partition("==")[0]) for line in lines if "==" in line}


def imported(file: Path) -> Iterator[tuple[str, ...]]:
    """Each import of a file, as the names its module may have: of ``from a import b`` that is a.b, or a."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield from ((f"{node.module}.{alias.name}", node.module) for alias in node.names)


@cache
def providers() -> dict[str, set[str]]:
    """Which distributions have a module; those of a namespace have its modules, and none has the namespace."""
    found: dict[str, set[str]] = {}
    for distribution in distributions():
        name = normal(distribution.name)
        for line in (distribution.read_text("RECORD") or "").splitlines():
            module, _, kind = line.partition(",")[0].rpartition("/")[2].partition(".")
            if kind.split(".")[-1] in ("py", "so", "pyd"):
                directory = line.partition(",")[0].rpartition("/")[0].replace("/", ".")
                path = directory if module == "__init__" else f"{directory}.{module}".lstrip(".")
                found.setdefault(path, set()).add(name)
    return found


def provider(names: tuple[str, ...]) -> set[str]:
    """Who provides the module that an import means: one of ``names``, or what is nearest around it."""
    for name in names:
        while name:
            if name in providers():
                return providers()[name]
            name = name.rpartition(".")[0]
    return set()


def wanting(part: str, allowed: set[str]) -> list[str]:
    """The imports of a part of the repository that none of ``allowed`` provides."""
    return [
        f"{file.relative_to(ROOT)} imports {names[0]}, of {' or '.join(provider(names)) or 'nobody who is installed'}"
        for file in FILES[part]
        for names in imported(file)
        if names[0].partition(".")[0] not in {*OWN, *sys.stdlib_module_names} and not provider(names) & allowed
    ]


def test_what_the_package_imports_it_names_itself() -> None:
    """What comes with something else may leave with it."""
    assert FILES["mcp_middleware"]
    assert wanting("mcp_middleware", named()) == []


@pytest.mark.parametrize("part", OWN[1:])
def test_what_the_rest_imports_comes_with_what_is_named(part: str) -> None:
    assert wanting(part, locked()) == []


def test_a_module_is_of_the_distribution_that_has_its_file() -> None:
    assert provider(("yaml",)) == {"pyyaml"}
    assert provider(("opentelemetry.trace", "opentelemetry")) == {"opentelemetry-api"}
    assert provider(("opentelemetry.sdk.trace.TracerProvider", "opentelemetry.sdk.trace")) == {"opentelemetry-sdk"}
    assert provider(("nobody.has.this", "nobody.has")) == set()
