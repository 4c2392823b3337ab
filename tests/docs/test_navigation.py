"""The documentation's navigation leads to every page once."""

import re

from tests.docs.blocks import ROOT


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r'"([\w./-]+\.md)"', (ROOT / "zensical.toml").read_text())
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(named) == sorted(pages)
