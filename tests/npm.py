"""Packages of npm for the tests: set up once for the user, and never in the repository."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["NODE", "UnavailableError", "install", "node_of"]

CACHE_VARIABLE: Final = "MCP_CONFORMANCE_CACHE"

NODE: Final = "node@22"
"""The Node that the packages need, which few machines have."""


class UnavailableError(Exception):
    """The packages cannot be set up here; the message says what is missing."""


def install(name: str, packages: Sequence[str]) -> Path:
    """The directory ``name`` of the user's cache, with ``packages`` in its ``node_modules``, installed with npm if they
    are not there yet. ``name`` tells versions apart. Raises UnavailableError."""
    base = os.environ.get(CACHE_VARIABLE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(base) / "mcp-middleware" / name
    if node_of(home).exists():
        return home
    npm = shutil.which("npm")
    if npm is None:
        raise UnavailableError(f"{name} needs npm, which is not on the PATH")
    home.parent.mkdir(parents=True, exist_ok=True)
    # Into a directory of its own, moved into place when whole: an install that was cut off is never found.
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        command = [npm, "install", "--prefix", scratch, "--no-audit", "--no-fund", "--loglevel=error", *packages, NODE]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise UnavailableError(f"npm could not install {', '.join(packages)}: {done.stderr.strip()[-2000:]}")
        if not node_of(Path(scratch)).exists():
            raise UnavailableError("npm installed the packages without their Node; are install scripts disabled?")
        if not node_of(home).exists():  # another process may have been faster
            shutil.rmtree(home, ignore_errors=True)
            Path(scratch).rename(home)
            Path(scratch).mkdir()
    return home


def node_of(home: Path) -> Path:
    """The Node among the packages in ``home``."""
    return home / "node_modules" / ".bin" / "node"
