"""The fenced blocks of the documentation's pages."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

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
    """The blocks of one page, in order, without their indentation."""
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        indent = len(match["indent"])
        code = "".join(line[indent:] if line.strip() else line for line in match["code"].splitlines(keepends=True))
        title = _TITLE.search(match["rest"])
        line = text.count("\n", 0, match.start("code")) + 1
        yield Block(page, line, match["language"] or "", title[1] if title else None, code)


def write_files(page: Path, directory: Path) -> None:
    """Put the files that a page shows into ``directory``: its titled blocks that are no Python."""
    for file in blocks_of(page):
        if file.title is not None and file.language not in ("python", "py"):
            path = directory / file.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.code)
