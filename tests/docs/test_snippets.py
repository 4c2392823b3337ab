"""Every ``python`` block of the documentation runs by itself, in an empty directory and without a network.

A block of another language with a title (```` ```yaml title="policy.yaml" ````) is a file: the blocks of its page find
it in their directory.
"""

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(
    r"^(?P<indent>[ ]*)(?P<fence>```+)[ ]*(?P<language>\w+)?(?P<rest>[^\n`]*)\n"
    r"(?P<code>.*?)^(?P=indent)(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL,
)
_TITLE = re.compile(r'title="([\w./-]+)"')


class Block(NamedTuple):
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str | None
    code: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        indent = len(match["indent"])
        code = "".join(line[indent:] if line.strip() else line for line in match["code"].splitlines(keepends=True))
        title = _TITLE.search(match["rest"])
        line = text.count("\n", 0, match.start("code")) + 1
        yield Block(page, line, match["language"] or "", title[1] if title else None, code)


PYTHON_BLOCKS = [block for page in PAGES for block in blocks_of(page) if block.language in ("python", "py")]


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def loopback_only(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in ("localhost", "127.0.0.1", "::1", None):
            raise AssertionError(f"a block of the documentation looks up {host!r}")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", loopback_only)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=[block.name for block in PYTHON_BLOCKS])
def test_a_python_block_runs_alone(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in blocks_of(block.page):
        if file.title is not None and file.language not in ("python", "py"):
            path = tmp_path / file.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.code)
    monkeypatch.chdir(tmp_path)
    code = compile("\n" * (block.line - 1) + block.code, block.name, "exec")
    exec(code, {"__name__": "__main__"})  # noqa: S102 - running it is the test


def test_the_quick_start_is_among_the_blocks_that_run() -> None:
    assert any(block.page.name == "README.md" for block in PYTHON_BLOCKS)
