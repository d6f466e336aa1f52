"""Answers that a server sends in pieces, and the limits of such a stream."""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

from elang.backends.openai.client import check_size
from elang.backends.openai.redaction import PieceRedactor, spelled, without
from elang.backends.openai.replies import usage_of
from elang.backends.retrying import TemporaryError

WHOLE = 10
"""A stream ends within so many times the seconds that one of its pieces may take."""


class SlowError(Exception):
    """A stream takes longer than it may, though the server may send bytes."""


async def pieces(chunks: AsyncIterable[bytes], seconds: float) -> AsyncGenerator[str, None]:
    """The data of the events in a stream's chunks. Each comes within so many ``seconds`` of the one before.

    Comments do not count. The client must limit reading to as many seconds: silence is not noticed here.

    Raises:
        SlowError: If a piece takes longer, or the stream longer than :data:`WHOLE` times that.
        TemporaryError: If the stream is larger than a reply may be.
    """
    now = time.monotonic()
    late, end, size, rest = now + seconds, now + WHOLE * seconds, 0, b""
    async for chunk in chunks:
        now = time.monotonic()
        if now > min(late, end):
            raise SlowError
        size += len(chunk)
        check_size(size)
        # Not by str.splitlines: a text may have Unicode's separators in it.
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and (data := line[5:].strip()):
                yield data.decode()
                late = time.monotonic() + seconds
    if rest.startswith(b"data:") and (data := rest[5:].strip()):
        yield data.decode()


async def stream_parts(
    chunks: AsyncIterable[bytes], seconds: float, secret: str
) -> AsyncGenerator[dict[str, Any], None]:
    """The parts of a streamed answer, without the secret; those before its first text, which may not come, with that.

    Raises:
        SlowError: As :func:`pieces`.
        TemporaryError: If the stream is too large, or breaks off.
        ValueError, TypeError, KeyError or AttributeError: If a piece is none.
    """
    ended, begun, waiting, redactor = False, False, list[dict[str, Any]](), PieceRedactor(secret)
    async for data in pieces(chunks, seconds):
        if data == "[DONE]":
            ended = True
            break
        chunk = json.loads(data)
        if error := chunk.get("error"):
            raise TemporaryError(f"the server broke off: {str(without(error, secret))[:200]}")
        part = part_of(chunk, "delta", secret)
        for choice in part["choices"]:
            redactor.clean(choice)
            ended |= choice.get("finish_reason") is not None
            begun |= ended or any(value for name, value in choice["delta"].items() if name != "role")
        waiting.append(part)
        while begun and waiting:
            yield waiting.pop(0)
    if rest := redactor.rest():
        waiting.append({"choices": rest})
    for part in waiting if ended or rest else ():
        yield part
    if not ended:
        raise TemporaryError("the server broke off")


def part_of(reply: dict[str, Any], name: str, secret: str) -> dict[str, Any]:
    """A reply, or a piece of a stream, as a part of an answer without the secret; an error if a choice of it is none.

    Some servers send pieces that only end a choice, or only say something about it. ``usage`` is there if it is told.
    """
    choices, reply = [], without(reply, secret)
    for choice in reply["choices"] if name == "message" else reply.get("choices") or []:
        delta, index = choice[name] if name == "message" else choice.get(name) or {}, choice.get("index", 0)
        if not isinstance(delta, dict) or not isinstance(index, int):
            raise TypeError("a choice is none")
        rest = {key: value for key, value in choice.items() if key != name}
        if spelled(rest.get("logprobs"), secret):
            rest["logprobs"] = None
        choices.append({**rest, "index": index, "delta": delta})
    if name == "message" and not choices:
        raise ValueError("no choices")
    usage = usage_of(reply.get("usage"))
    return {"choices": choices} if usage is None else {"choices": choices, "usage": usage}
