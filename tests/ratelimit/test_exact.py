"""The counter with a vocabulary, against the numbers of the corpus."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.ratelimit import ExactCounter

CORPUS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "corpus.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["o200k_base", "cl100k_base"])
def counter(request: pytest.FixtureRequest) -> tuple[str, ExactCounter]:
    pytest.importorskip("bpe_openai")
    return request.param, ExactCounter(request.param)


def test_every_text_of_the_corpus_has_its_number(counter: tuple[str, ExactCounter]) -> None:
    name, exact = counter
    assert [exact.count(entry["text"]) for entry in CORPUS] == [entry["tokens"][name] for entry in CORPUS]


def test_a_large_text_is_counted_in_pieces_without_a_seam_to_be_seen(counter: tuple[str, ExactCounter]) -> None:
    _, exact = counter
    text = "the harbour office closes at five, but the lamps along the quay stay lit " * 5000
    assert exact.count(text) == len(exact._encode(text))
    unbroken = "A1" * 100_000
    assert exact.count(unbroken) == pytest.approx(len(exact._encode(unbroken)), abs=10)
    assert exact.count("\ud800") > 0


def test_an_unknown_vocabulary_is_refused() -> None:
    pytest.importorskip("bpe_openai")
    with pytest.raises(ConfigurationError, match="ExactCounter: encoding is 'gpt'; it must be"):
        ExactCounter("gpt")


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bpe_openai", None)
    with pytest.raises(ConfigurationError, match=r"mcp-middleware\[exact\]"):
        ExactCounter()
