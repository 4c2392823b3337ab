"""How many tokens a call's arguments and its answer are to a model.

``TokenCounter`` counts a text and can be exchanged; what is text, and what counts otherwise, is decided here:

- Arguments: every parameter but ``_meta`` and ``requestState``, as JSON, with escapes such as ``\\u4e2d`` read first.
- A tool's result: its content blocks, or its structured content if that is more. Servers send both with the same
  content, and a model sees it once.
- Images and audio, also inside a resource, count as a constant: their bytes say nothing about what a model sees.
  Any other blob counts as its base64 text.
- A link, and whatever else has none of these, counts as a constant too if it is short, else as its JSON.
- An error counts as its message.
- What a server sends before its answer (progress, log messages, questions) counts as the JSON of its parameters.
"""

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Protocol, TypeAlias

import msgspec
from msgspec import Raw

from mcp_middleware.bounded import TooManyError, items_of
from mcp_middleware.message import Request
from mcp_middleware.server_message import MAX_BLOCKS, Content, ServerMessage

__all__ = [
    "AUDIO_TOKENS",
    "IMAGE_TOKENS",
    "EstimatingCounter",
    "Media",
    "TokenCounter",
    "input_tokens",
    "output_tokens",
    "streamed_tokens",
]

IMAGE_TOKENS: Final = 1_600
"""An image: what a picture of about a megapixel costs the models that publish a formula."""
AUDIO_TOKENS: Final = 2_000
"""A sound: about a minute."""
LINK_TOKENS: Final = 40
"""A block without content of its own, such as a resource link, of no more than ``_LINK`` bytes."""
_LINK: Final = 160


class Media(NamedTuple):
    """Tokens of what is no text."""

    image: int = IMAGE_TOKENS
    audio: int = AUDIO_TOKENS


class TokenCounter(Protocol):
    """Counts the tokens of a text, such as a model's own tokenizer does.

    Called on the event loop. A counter that has an attribute ``threaded_above``, a number of bytes, is called in a
    thread for messages of more.
    """

    def count(self, text: str) -> int:
        """From 0 to 1,000,000,000."""
        ...


_SLICE: Final = 512
"""Characters weighed at a time."""
_SLICES: Final = 8
_RUN: Final = 3
"""Characters that may be the same in a row without being one token."""
_DENSE: Final = 12
"""Letters and digits to a separator, above which a text is taken for encoded data."""

_LETTERS: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_UPPER: Final = _LETTERS[26:]
_DIGITS: Final = b"0123456789"
_SPACE: Final = b" \n\t\r"
_NOT_ASCII: Final = bytes(range(0x80, 0x100))


class EstimatingCounter:
    """Estimates from the kinds of characters, without a tokenizer or its tables. The default.

    The weights are a least-squares fit of relative error to a byte-pair encoding of 200,000 entries, over prose, code
    and JSON; docs/members/limiter.md states the error by class. A text without separators (base64, hashes) has
    weights of its own, since no word of it is in any vocabulary. Of a text above 4,096 characters 8 slices of 512 are
    read and scaled up, so that an answer of any size costs the same; where they begin is drawn anew each time, so
    that a text cannot be made to look short.
    """

    def count(self, text: str) -> int:
        """See ``TokenCounter.count``."""
        size = len(text)
        if size <= _SLICE:
            return round(_weigh(text)) if size else 0
        if size <= _SLICE * _SLICES:
            return round(sum(_weigh(text[start : start + _SLICE]) for start in range(0, size, _SLICE)))
        weight = sum(map(_weigh, _slices(text, _SLICE, _SLICES)))
        return round(weight * size / (_SLICE * _SLICES))


def _weigh(text: str) -> float:
    if text[0] == text[-1] and len(text) > _RUN and text.isascii() and text.count(text[0]) == len(text):
        return _repeated(text[0], len(text))
    data = text.encode("utf-8", "replace")
    rest = data.translate(None, _LETTERS)
    letters = len(data) - len(rest)
    others, other_tokens = 0, 0.0
    if not data.isascii():
        beyond = len(rest)
        rest = rest.translate(None, _NOT_ASCII)
        beyond -= len(rest)
        others = len(text) - letters - len(rest)
        other_tokens = 0.5 * beyond - 0.55 * others  # a character of 2 bytes 0.45, of 3 bytes 0.95
    unspaced = rest.translate(None, _SPACE)
    space = len(rest) - len(unspaced)
    punctuation = len(unspaced.translate(None, _DIGITS))
    digits = len(unspaced) - punctuation
    if letters + digits > _DENSE * (space + punctuation + others):
        if not letters and not punctuation:
            return 0.34 * digits + other_tokens  # three are one token
        upper = len(data) - len(data.translate(None, _UPPER))
        return 0.52 * (letters - upper) + 0.95 * upper + 0.59 * digits + 0.6 * punctuation + other_tokens
    indents = data.count(b"  ")  # a run of blanks is one token
    return 0.16 * letters + 0.76 * digits + 0.44 * space - 0.75 * indents + 0.61 * punctuation + other_tokens


def _repeated(char: str, number: int) -> float:
    """One character and nothing else: vocabularies have long runs of those that tables are drawn with."""
    if char.isdigit():
        each = 0.34
    elif char.isalpha():
        each = 0.125
    elif char == " ":
        each = 0.016
    else:
        each = 0.06 if char.isspace() else 0.25
    return 1 + each * number


class _Block(msgspec.Struct, frozen=True, rename={"mime_type": "mimeType"}):
    """The content of a resource, in a result of ``resources/read`` or embedded in a tool's."""

    mime_type: str | None = None
    text: str | None = None
    blob: str | None = None


class _ResourceResult(msgspec.Struct, frozen=True):
    contents: Raw


class _Told(msgspec.Struct, frozen=True):
    params: Raw = Raw()


class _ToolResult(msgspec.Struct, frozen=True):
    content: Raw


class _PromptMessage(msgspec.Struct, frozen=True):
    content: Raw


class _PromptResult(msgspec.Struct, frozen=True):
    messages: Raw


_told: Final = msgspec.json.Decoder(_Told)
_block: Final = msgspec.json.Decoder(_Block)
_content: Final = msgspec.json.Decoder(Content)
_tool_result: Final = msgspec.json.Decoder(_ToolResult)
_resource_result: Final = msgspec.json.Decoder(_ResourceResult)
_prompt_message: Final = msgspec.json.Decoder(_PromptMessage)
_prompt_result: Final = msgspec.json.Decoder(_PromptResult)
_any: Final = msgspec.json.Decoder()
_encode: Final = msgspec.json.Encoder().encode

_APART: Final = 256
"""Texts of an answer that are counted each by itself. There may be millions of others, of a letter each."""
_MAX_DECODED: Final = 256 * 1024
"""Bytes of JSON to decode for its escapes; the values of more could fill the memory, so there they are replaced."""
_PART: Final = 4 * 1024
_PARTS: Final = 8
"""What is read of so much JSON, unless its counter may take long: from all over it, for no beginning speaks for all."""
_ESCAPES: Final = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")

_MOST: Final = 1_000_000_000
"""Tokens of one text; more than any has that fits into a message."""
_UNCOUNTED: Final = frozenset({"_meta", "requestState"})

_Part: TypeAlias = int | str | Raw
"""Of an answer: its tokens, or the text or JSON that has to be counted."""


def input_tokens(request: Request, counter: TokenCounter) -> int:
    """Tokens of what a caller's model wrote."""
    return _json_tokens([raw for name, raw in request.params.items() if name not in _UNCOUNTED], counter)


def streamed_tokens(message: ServerMessage, counter: TokenCounter) -> int:
    """Tokens of a message that comes before the answer."""
    try:
        params = _told.decode(message.raw).params
    except (msgspec.DecodeError, RecursionError):
        return 0
    return _json_tokens([params], counter) if params else 0


def output_tokens(request: Request, answer: ServerMessage, counter: TokenCounter, media: Media = Media()) -> int:  # noqa: B008
    """Tokens of what a caller's model is going to read."""
    if answer.error is not None:
        return _count(counter, answer.error.message)
    if not isinstance(answer.result, Raw):
        return 0
    try:
        if request.method == "tools/call":
            result = answer.tool_result
            if result is not None and (result.content or result.structured):
                content = _sum(_tool_parts(result.content, answer.result, media), counter)
                return max(content, _json_tokens([result.structured], counter)) if result.structured else content
        elif request.method == "resources/read":
            contents = items_of(_resource_result.decode(answer.result).contents, MAX_BLOCKS)
            return _sum([_or_all(_resource(_block.decode(one), media), one) for one in contents], counter)
        elif request.method == "prompts/get":
            messages = items_of(_prompt_result.decode(answer.result).messages, MAX_BLOCKS)
            blocks = [_prompt_message.decode(one).content for one in messages]
            return _sum([_or_all(_block_part(_content.decode(one), media), one) for one in blocks], counter)
    except (msgspec.DecodeError, RecursionError, TooManyError):
        pass  # too many parts, or not the shape its method has: counted as the JSON it is
    return _json_tokens([answer.result], counter)


def _tool_parts(blocks: Sequence[Content], result: Raw, media: Media) -> list[_Part]:
    parts = [_block_part(block, media) for block in blocks]
    if None not in parts:
        return [part for part in parts if part is not None]
    texts = items_of(_tool_result.decode(result).content, MAX_BLOCKS)
    return [_or_all(part, text) for part, text in zip(parts, texts, strict=True)]


def _block_part(block: Content, media: Media) -> int | str | None:
    """A block's tokens, or the text that has to be counted; None where it has neither."""
    if block.data is not None and (tokens := _medium(block.type, media)) is not None:
        return tokens
    if block.text:
        return block.text
    if block.resource:
        return _resource(_block.decode(block.resource), media)
    return block.text if block.data is None else block.data


def _resource(block: _Block, media: Media) -> int | str | None:
    if block.text or block.blob is None:
        return block.text
    tokens = _medium((block.mime_type or "").partition("/")[0], media)
    return block.blob if tokens is None else tokens


def _medium(kind: str, media: Media) -> int | None:
    kind = kind.lower()
    if kind == "image":
        return media.image
    return media.audio if kind == "audio" else None


def _or_all(part: int | str | None, text: Raw) -> _Part:
    """All of a block where no part of it counts by itself."""
    if part is not None:
        return part
    return LINK_TOKENS if len(text) <= _LINK else text


def _sum(parts: Sequence[_Part], counter: TokenCounter) -> int:
    texts = [part for part in parts if isinstance(part, str)]
    whole = [part for part in parts if isinstance(part, Raw)]
    tokens = sum([part for part in parts if isinstance(part, int)])
    tokens += sum([_count(counter, text) for text in texts[:_APART]])
    if len(texts) > _APART:
        tokens += _count(counter, "\n".join(texts[_APART:]))
    return tokens + _json_tokens(whole, counter) if whole else tokens


def _json_tokens(values: Sequence[Raw], counter: TokenCounter) -> int:
    """Tokens of some JSON values, counted as one text."""
    text = b"".join(values).decode("utf-8", "replace")
    if "\\u" not in text:  # faster than the same question to bytes
        return _count(counter, text)
    if len(text) <= _MAX_DECODED:
        text = b"".join([_unescaped(value) for value in values]).decode("utf-8", "replace")
        return _count(counter, text)
    if hasattr(counter, "threaded_above"):
        return _count(counter, _replaced(text))
    parts = "".join(_slices(text, _PART, _PARTS))
    return round(_count(counter, _replaced(parts)) * len(text) / len(parts))


def _unescaped(value: Raw) -> bytes:
    data = bytes(value)
    with suppress(msgspec.DecodeError, RecursionError):  # else counted with its escapes
        return _encode(_any.decode(data))
    return data


def _replaced(text: str) -> str:
    """JSON with the characters that its escapes stand for."""
    return _ESCAPES.sub(lambda run: bytes.fromhex(run[0].replace("\\u", "")).decode("utf-16-be", "replace"), text)


def _slices(text: str, size: int, number: int) -> Iterator[str]:
    """Some of a long text, from all over it. Where they begin is drawn anew each time, so that nobody can make a text
    look short."""
    stride = (len(text) - size) / number
    phase = random.random() * stride  # noqa: S311  # evenness matters, secrecy does not
    for index in range(number):
        start = int(phase + index * stride)
        yield text[start : start + size]


def _count(counter: TokenCounter, text: str) -> int:
    """A user's counter is not trusted with the buckets: a negative number would fill them, and one that no
    float holds could not be settled."""
    tokens = counter.count(text)
    if not isinstance(tokens, int) or tokens < 0:
        raise ValueError(f"the token counter answered {tokens!r}; it must be an integer of at least 0")
    if tokens > _MOST:
        raise ValueError(f"the token counter answered more than {_MOST:,} for one text")
    return tokens
