"""The page of the Python interface is what the sources say, and the documentation imports as that page does."""

import ast
import re

import pytest

import mcp_middleware
from tests.docs.api_page import page
from tests.docs.blocks import PAGES, ROOT, Block, blocks_of

SCRIPTS = [
    block
    for path in PAGES
    for block in blocks_of(path)
    if block.language in ("python", "py") or (block.title or "").endswith(".py")
]


def test_the_page_is_what_the_sources_say() -> None:
    """``python -m tests.docs.api_page > docs/api.md`` makes it anew."""
    assert (ROOT / "docs" / "api.md").read_text() == page()


def test_every_name_of_the_package_is_on_the_page() -> None:
    told = re.findall(r"^### `(\w+)`\n\n(.+)", page(), re.MULTILINE)
    assert set(mcp_middleware.__all__) <= {name for name, _ in told}
    assert not [name for name, about in told if about.startswith("#")]


@pytest.mark.parametrize("block", SCRIPTS, ids=[block.name for block in SCRIPTS])
def test_what_the_package_exports_is_imported_from_it(block: Block) -> None:
    imports = [node for node in ast.walk(ast.parse(block.code)) if isinstance(node, ast.ImportFrom)]
    deeper = [node for node in imports if (node.module or "").startswith("mcp_middleware.")]
    names = {alias.name for node in deeper for alias in node.names}
    assert not names.intersection(mcp_middleware.__all__)
