"""What is published is what was written: the wheel builds, is complete, and installs no more than the package; and with
the sources comes all that their tests read."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ("mcp_middleware", "tests", "examples", "docs", "benchmarks", "scripts", "requirements")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _built("wheel", tmp_path_factory.mktemp("wheel"))


def _built(kind: str, directory: Path) -> Path:
    """What the back end that is installed here makes, so that nothing is downloaded."""
    build = f"from hatchling.build import build_{kind}; print(build_{kind}({str(directory)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True, text=True)
    return directory / done.stdout.splitlines()[-1]


def _files(folder: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".db" not in path.name  # what a run leaves
    }


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    files = _files("mcp_middleware")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert "mcp_middleware/py.typed" in packed
    assert packed == files


def test_the_wheel_carries_its_licence_and_needs_no_extra(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in metadata
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert not [line for line in needed if "opentelemetry-sdk" in line or "fastmcp" in line or " mcp" in line]


def test_the_sources_come_with_all_that_their_tests_read(tmp_path: Path) -> None:
    with tarfile.open(_built("sdist", tmp_path)) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    wanted = set().union(*map(_files, SHIPPED)) | {path.name for path in ROOT.glob("*.md")}
    assert wanted | {"pyproject.toml", "LICENSE", "zensical.toml"} <= packed
