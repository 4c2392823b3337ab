"""The table of methods is complete."""

import json
import re
from pathlib import Path

import mcp_types
import pytest
from mcp_types.methods import SPEC_CLIENT_METHODS
from msgspec import Raw

from mcp_middleware.authorization.lists import LISTS, MAX_ITEMS, opened
from mcp_middleware.authorization.methods import METHODS, question, questions
from mcp_middleware.bounded import TooManyError
from mcp_middleware.message import MAX_NAMES, Request, parse

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


@pytest.mark.parametrize("item", [b'{"name":"a"}', b"[]", b'{"name":"a","x":[1,2]}'])
def test_case_31_a_page_of_a_list_is_bounded(item: bytes) -> None:
    """One answer of a server, all of it judged, must not keep others waiting."""
    for count in (MAX_ITEMS, MAX_ITEMS + 1, 500_000):
        result = Raw(b'{"tools":[' + b",".join([item] * count) + b"]}")
        if count == MAX_ITEMS:
            read = opened(result, LISTS["tools/list"])
            assert read is not None
            assert len(read[1]) == MAX_ITEMS
        else:
            with pytest.raises(TooManyError):
                opened(result, LISTS["tools/list"])


@pytest.mark.parametrize(
    ("method", "params", "count"),
    [
        ("tools/call", {"name": "a"}, 1),
        ("tasks/get", {"taskId": "1"}, 1),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "a"}}, 1),
        ("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["x://a", "x://b"], "tasks": ["1"]}}, 3),
        ("subscriptions/listen", {"notifications": {f"invented{n}": 1 for n in range(MAX_NAMES)}}, 1),
        ("vendor/method", {}, 1),
    ],
)
def test_case_39_a_request_is_taken_apart_once_and_into_few(method: str, params: object, count: int) -> None:
    """Whatever is invented in a subscription is one question, and a question asks for nothing but itself."""
    message = parse(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode())
    assert isinstance(message, Request)
    asked = questions(message)
    assert asked is not None
    assert len(asked) == count
    for one in (*asked, question("resources/read", "resource", "x://a")):
        again = questions(one)
        assert again is not None
        assert [id(same) for same in again] == [id(one)]
