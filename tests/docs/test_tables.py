"""Every table of the documentation has a head: without one, it is shown as text."""

import re
from itertools import groupby
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_tables_have_heads(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for row, lines in groupby(text.splitlines(), lambda line: line.startswith("|")):
        if row:
            head, rule, *_ = [*lines, ""]
            assert re.fullmatch(r"\|(:?-+:?\|)+", rule), head
