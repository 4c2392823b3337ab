"""Public names of a package that cost an application no more than the imports of those it uses."""

import sys
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy_exports"]


def lazy_exports(package: str, homes: Mapping[str, Collection[str]]) -> Callable[[str], Any]:
    """The ``__getattr__`` of ``package`` (PEP 562). ``homes``: for each of its modules the names that it defines."""

    def get(name: str) -> Any:
        for home, names in homes.items():
            if name in names:
                value = getattr(import_module(f".{home}", package), name)
                setattr(sys.modules[package], name, value)
                return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
