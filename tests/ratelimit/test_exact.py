"""The counter with a vocabulary, against the numbers of the corpus."""

import base64
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.ratelimit import ExactCounter
from mcp_middleware.ratelimit.exact import _SEAM

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
    assert exact.count(unbroken) == len(exact._encode(unbroken))
    assert exact.count("\ud800") > 0


WRITTEN = "abz AZ 09 \t\r\n\"'{}[],:;.-_/\\()#*=!<>|+@`~é中文字，。、！٣½\u0301\u00a0’😀"


@given(text=st.text(st.sampled_from(WRITTEN), max_size=40) | st.text(max_size=20))
def test_a_seam_changes_no_number(counter: tuple[str, ExactCounter], text: str) -> None:
    encode = counter[1]._encode
    text = text.encode("utf-8", "replace").decode()
    whole = encode(text)
    for seam in _SEAM.finditer(text):
        assert encode(text[: seam.start()]) + encode(text[seam.start() :]) == whole


@pytest.mark.parametrize("sign", "#*/=-")
def test_a_long_line_of_one_sign_is_counted_shorter_without_another_number(
    counter: tuple[str, ExactCounter], sign: str
) -> None:
    _, exact = counter
    around = ("", " ", "\r\n", "a", "é", "|", "<!", "\n/", ";\n", "-=", "*/")
    for number in (191, 192, 193, 255, 256, 390):
        for before in around:
            for after in around:
                text = before + sign * number + after
                assert exact.count(text) == len(exact._encode(text))


def test_a_text_without_a_seam_is_read_in_small_pieces_and_little_of_a_line_of_megabytes(
    counter: tuple[str, ExactCounter], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, exact = counter
    encode, pieces = exact._encode, list[str]()

    def recorded(piece: str) -> list[int]:
        pieces.append(piece)
        return list(encode(piece))

    monkeypatch.setattr(exact, "_encode", recorded)
    letters = "".join(Random(1).choices("abcdefgh", k=100_000))
    assert exact.count(letters) == pytest.approx(len(encode(letters)), abs=13)
    assert max(map(len, pieces)) <= 8192
    for sign in "#*/=-":
        pieces.clear()
        assert exact.count(sign * 640_000) == 10_000
        assert sum(map(len, pieces)) < 16_000
    pieces.clear()
    table = ("-" * 300 + " ") * 300
    assert exact.count(table) == len(encode(table))
    assert sum(map(len, pieces)) < 300 * 193


LARGE = {
    "base64": base64.b64encode(Random(1).randbytes(900_000)).decode(),
    "compact JSON": json.dumps([{"id": number, "ok": True} for number in range(50_000)], separators=(",", ":")),
    "CSV": "1,2.5,EUR\n" * 120_000,
    "capitals": "SOME WORDS " * 100_000,
    "Chinese": "微服务架构是一种方法，很好。" * 40_000,
    "rare characters": "".join(chr(number) for number in range(0x20000, 0x2A000)) * 3,
    "blanks": " " * 1_200_000,
    "lines": ("-" * 200 + "\n") * 6000,
}


@pytest.mark.parametrize("kind", LARGE)
def test_case_30_no_text_is_too_large_to_be_counted(counter: tuple[str, ExactCounter], kind: str) -> None:
    _, exact = counter
    text = LARGE[kind]
    beginning = text[:40_000]
    per_character = len(exact._encode(beginning)) / len(beginning)
    assert exact.count(beginning) == pytest.approx(len(exact._encode(beginning)), abs=2)
    assert exact.count(text) == pytest.approx(per_character * len(text), rel=0.1)


def test_an_unknown_vocabulary_is_refused() -> None:
    pytest.importorskip("bpe_openai")
    with pytest.raises(ConfigurationError, match="ExactCounter: encoding is 'gpt'; it must be"):
        ExactCounter("gpt")


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bpe_openai", None)
    with pytest.raises(ConfigurationError, match=r"mcp-middleware\[exact\]"):
        ExactCounter()
