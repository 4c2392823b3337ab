"""The table of methods is complete."""

import re
from pathlib import Path

import mcp_types
from mcp_types.methods import SPEC_CLIENT_METHODS
from msgspec import Raw

from mcp_middleware.authorization.lists import LISTS, MAX_ITEMS, filtered
from mcp_middleware.authorization.methods import METHODS

SERVER_TO_CLIENT = {"roots/list", "sampling/createMessage", "elicitation/create"}


def test_case_17_every_request_of_a_client_is_classified() -> None:
    """Those the SDK serves, and those that its schema of any revision knows."""
    known = set(SPEC_CLIENT_METHODS)
    for module in Path(mcp_types.__file__).parent.rglob("*.py"):
        known |= set(re.findall(r'method: Literal\["((?!notifications/)[^"]+)"\]', module.read_text()))
    assert known - SERVER_TO_CLIENT <= METHODS.keys()
    assert "tasks/list" in known, "the schema was read"


def test_what_is_filtered_is_open() -> None:
    assert {METHODS[method] for method in LISTS} == {"open"}


def test_case_31_a_page_of_a_list_is_bounded() -> None:
    """One answer of a server, all of it judged in one turn, must not keep others waiting."""
    for count, kept in ((MAX_ITEMS, True), (MAX_ITEMS + 1, False)):
        result = Raw(b'{"tools":[' + b",".join([b'{"name":"a"}'] * count) + b"]}")
        assert (filtered(result, LISTS["tools/list"], bool) is not None) is kept
