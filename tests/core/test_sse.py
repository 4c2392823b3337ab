"""sse.py: frames joined are the stream; nothing whole is held back."""

import itertools
import json
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.sse import Decoder, EventTooLargeError, Frame, encode


def decode(chunks: list[bytes]) -> list[Frame]:
    decoder = Decoder(limit=1_000_000)
    return [frame for chunk in chunks for frame in decoder.feed(chunk)]


def joined(frames: list[Frame]) -> bytes:
    return b"".join(frame.raw for frame in frames)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_with_every_field(end: bytes) -> None:
    raw = end.join([b"event: message", b"id: 7", b"retry: 100", b'data: {"a":', b"data: 1}", b"", b""])
    frames = decode([raw, b": x\n\n"])
    assert frames[0].data == b'{"a":\n1}'
    assert [frame.id for frame in frames] == [b"7", b""]
    assert joined(frames) == raw + b": x\n\n"
    changed = frames[0].with_data(b"[2]")
    assert changed.data == b"[2]"
    assert changed.raw == b"event: message\nid: 7\nretry: 100\ndata: [2]\n\n"


def test_a_priming_event_has_empty_data_and_a_comment_none() -> None:
    frames = decode([b"id: 1\ndata: \n\n", b"event: ping\n\n", b"event:\ndata: 1\n\n"])
    assert [(frame.event, frame.data) for frame in frames] == [(b"message", b""), (b"ping", None), (b"message", b"1")]


def test_a_comment_passes_before_its_blank_line() -> None:
    decoder = Decoder(limit=100)
    assert [frame.raw for frame in decoder.feed(b": ping\n")] == [b": ping\n"]
    assert [frame.raw for frame in decoder.feed(b"\ndata: 1\n\n")] == [b"\ndata: 1\n\n"]
    assert decoder.feed(b": half") == []
    assert [frame.raw for frame in decoder.feed(b"\r\n\r\ndata: 2\n\n")][-1].endswith(b"data: 2\n\n")


def test_a_byte_order_mark_is_no_part_of_the_first_name() -> None:
    frames = decode([b"\xef\xbb\xbfdata: 1\n\n"])
    assert frames[0].data == b"1"


def test_a_byte_order_mark_begins_a_stream_and_no_event() -> None:
    """As every client reads it: later it is the beginning of an unknown name."""
    frames = decode([b": x\n\n", b"\xef\xbb\xbfdata: 1\n\n", b"data: 2\n\n"])
    assert [frame.data for frame in frames] == [None, None, b"2"]
    assert Frame(b"\xef\xbb\xbfdata: 1\n\n").data is None


@pytest.mark.parametrize("piece", [b"\n", b"\r", b"\r\n", b": c\n\n", b"data: x\n\n", b"data\r\n\r\n", b"a\r\r"])
def test_case_31_what_nobody_reads_is_one_frame_for_each_piece_of_a_stream(piece: bytes) -> None:
    decoder = Decoder(limit=100_000)
    chunk = piece * (4096 // len(piece))
    frames = [decoder.feed(chunk, unread=lambda data: b"{" not in data) for _ in range(20)]
    assert all(len(some) <= 2 for some in frames)
    frames.append(decoder.feed(b"\ndata: {}\n\n", unread=lambda data: b"{" not in data))
    assert frames[-1][-1].data == b"{}"
    assert joined([frame for some in frames for frame in some]) == chunk * 20 + b"\ndata: {}\n\n"


@pytest.mark.parametrize("line", [b"data\n", b"event: a\r", b"x\n", b"data: []\r\n"])
def test_case_39_an_event_of_too_many_lines_is_refused(line: bytes) -> None:
    end = line.lstrip(b"dataevnx: []")
    lines = 500_000
    for more in (0, 1):
        decoder = Decoder(limit=10_000_000)
        decoder.feed(b"data: {" + end)
        whole = line * (lines - 2 + more) + end
        if more:
            with pytest.raises(EventTooLargeError):
                decoder.feed(whole)
        else:
            assert decoder.feed(whole)[0].lines == lines


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_is_the_same_however_it_is_cut_into_pieces(monkeypatch: pytest.MonkeyPatch, end: bytes) -> None:
    raw = end.join([b"event: a", b"data: [1,", b": c", b"data", b"event: b", b"id: 7", b"data: 2]", b"", b""])
    for piece in range(len(raw) + 1):
        monkeypatch.setattr("mcp_middleware.sse._PIECE", piece)
        frame = Frame(raw)
        assert (frame.data, frame.event) == (b"[1,\n\n2]", b"b")
        assert frame.with_data(b"3\r\n4").raw == b"event: a\n: c\nevent: b\nid: 7\ndata: 3\ndata: 4\n\n"


def test_an_event_larger_than_the_limit_is_refused() -> None:
    decoder = Decoder(limit=1000)
    decoder.feed(b"data: " + b"x" * 900)
    with pytest.raises(EventTooLargeError):
        decoder.feed(b"x" * 200)


def most_memory(act: Callable[[], object]) -> int:
    """Bytes that ``act`` held at once beyond those held before."""
    tracemalloc.start()
    act()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_case_39_a_large_event_in_small_pieces_is_not_copied_for_each() -> None:
    decoder = Decoder(limit=10_000_000)
    decoder.feed(b"data: " + b"x" * 4_000_000)
    decoder.feed(b"x" * 400_000)  # leaves room to grow
    assert most_memory(lambda: decoder.feed(b"x\n")) < 100_000
    assert decoder.feed(b"\n")[0].data == b"x" * 4_400_001


@pytest.mark.parametrize("line", [b"a\n", b"a:\n", b":\r", b"data\n", b"\ndata", b"data:ab\n"])
def test_case_39_an_event_of_short_lines_takes_no_multiple_of_its_size(line: bytes) -> None:
    frame = Frame(line * (2_000_000 // len(line)) + b"\n\n")
    assert most_memory(lambda: (frame.data, frame.event)) < 8 * len(frame.raw)


def test_data_of_many_lines() -> None:
    lines = [str(number).encode() for number in range(3000)]
    assert Frame(b"".join(b"data:%b\n" % line for line in lines) + b"\n").data == b"\n".join(lines)


def test_encode_keeps_lines() -> None:
    frames = decode([encode(b"a\nb", event=b"e")])
    assert (frames[0].data, joined(frames)) == (b"a\nb", encode(b"a\nb", event=b"e"))


lines = st.sampled_from(
    [
        b"data: 1",
        b"data:2",
        b"data",
        b"xdata: 3",
        b"datadata: 4",
        b"data data: 5",
        b"event: x",
        b"id: 3",
        b": c",
        b":",
        b"",
        b"",
        b"x: y",
        b"data: \xc3\xa9",
    ]
)
ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
streams = st.lists(st.tuples(lines, ends), max_size=20).map(lambda parts: b"".join(a + b for a, b in parts))


def reference(stream: bytes) -> list[bytes]:
    """The data of each event, by the standard's algorithm on the whole stream."""
    text = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[bytes] = []
    data: list[bytes] = []
    for line in text.split(b"\n")[:-1]:
        name, _, value = line.partition(b":")
        if not line:
            if data:
                events.append(b"\n".join(data))
            data = []
        elif name == b"data":
            data.append(value.removeprefix(b" "))
    return events


@given(streams, st.lists(st.integers(0, 200), max_size=6))
def test_any_chunking_gives_the_same_events_and_the_same_bytes(stream: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    chunks = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert [frame.data for frame in decode(chunks) if frame.data is not None] == reference(stream)
    end = b"\ndata: end\n\n"  # brings out what is held
    assert joined(decode([*chunks, end])) == stream + end
    decoder = Decoder(limit=1_000_000)
    assert joined([f for c in [*chunks, end] for f in decoder.feed(c, unread=bool)]) == stream + end


@given(st.dictionaries(st.text(), st.text()))
def test_json_survives_a_rewrite(value: dict[str, str]) -> None:
    frame = decode([b"id: 1\nevent: message\ndata: {}\n\n"])[0]
    again = decode([frame.with_data(json.dumps(value).encode()).raw])
    assert json.loads(again[0].data or b"") == value
