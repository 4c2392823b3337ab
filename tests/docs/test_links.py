"""A relative link of the documentation leads to a file that is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_relative_links_resolve(page: Path) -> None:
    links = _LINK.findall(_CODE.sub("", page.read_text()))
    paths = [link.partition("#")[0] for link in links if ":" not in link.partition("/")[0]]
    broken = [path for path in paths if path and not (page.parent / path).exists()]
    assert not broken
