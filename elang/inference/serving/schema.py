"""What a request to `elang serve` may hold, and how its body is read: bounded before it is looked at closely.

A body is read as JSON by Python's own parser, with hooks that stop at the first thing no question holds. Errors name
the place, never the input: what is sent back is short whatever was sent.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

# Longer bodies are parsed in a thread, one at a time, so that short ones need not wait for them.
_SHORT = 16_384
# Long bodies that wait to be parsed at most.
_QUEUED = 32
# Digits of a number at most: no deadline has more.
_DIGITS = 20
_DETAIL = 400
# The first wrong element is enough, and every further one would cost.
_Strings = Annotated[list[str], Field(fail_fast=True)]


class Question(BaseModel):
    """Texts to be answered."""

    # A misspelt deadline would be none.
    model_config = ConfigDict(extra="forbid")

    texts: list[str | _Strings] = Field(
        fail_fast=True, description="Texts, or for each input one text for each of the task's fields."
    )
    choices: Annotated[list[_Strings], Field(fail_fast=True)] | None = Field(
        None, description="Each input's candidates, where the task has its own."
    )
    keep: bool = Field(False, description="Of the Swift alone: answer also what would be deferred.")


class TimedQuestion(Question):
    """Texts to be answered by the pair."""

    keep: Literal[False] = False
    deadline: float | None = Field(
        None, gt=0, strict=True, allow_inf_nan=False, description="Seconds; at most the server's, which is the default."
    )


BODY = {"required": True, "content": {"application/json": {"schema": TimedQuestion.model_json_schema()}}}
"""The schema of a request's body, for /docs."""


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        deadline: Seconds that a request may take.
        texts: Texts in a request.
        pending: Texts that the Swift is asked at a time; more are refused.
        deferred: Texts that the Super is asked at a time; more are answered as if it had failed.
        batch: Texts of requests that are answered together.
        bytes: Of a request.
    """

    deadline: float = 10.0
    texts: int = 256
    pending: int = 4096
    deferred: int = 4096
    batch: int = 512
    bytes: int = 1_000_000


class QuestionReader:
    """Reads the questions of requests.

    Args:
        limits: What is taken.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting = 0
        self._turn = asyncio.Semaphore(1)

    async def __call__(self, request: Request) -> TimedQuestion:
        """The question of a request.

        Raises:
            HTTPException: 415 for another type than JSON, 422 for anything that is no question, 503 where too many
                long bodies wait.
        """
        kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise HTTPException(415, "Send JSON, with the header 'Content-Type: application/json'.")
        body = await request.body()
        if len(body) <= _SHORT:
            return parse_question(body, self.limits)
        if self._waiting >= _QUEUED:
            raise HTTPException(503, "Too many long requests wait to be read. Ask again later.", {"Retry-After": "1"})
        self._waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(parse_question, body, self.limits)
        finally:
            self._waiting -= 1


def parse_question(body: bytes, limits: Limits) -> TimedQuestion:
    """The question in a body of JSON.

    Raises:
        HTTPException: 422, with a short reason that does not repeat the input.
    """
    try:
        found = json.loads(
            body.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer
        )
    except UnicodeDecodeError as error:
        raise refused(f"The body is no UTF-8: byte {error.start} (counted from 0) cannot be read.") from None
    except RecursionError:
        raise refused("The body is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise refused(f"The body is no JSON: {error.msg} (character {error.pos}, counted from 0).") from None
    except _OddError as error:
        raise refused(str(error)) from None
    if not isinstance(found, dict):
        raise refused('The body must be an object such as {"texts": ["a text"]}.')
    for name in ("texts", "choices"):
        # Before anything looks at each of them.
        if isinstance(given := found.get(name), list) and len(given) > limits.texts:
            what = "texts" if name == "texts" else "lists of choices"
            raise refused(f"A request has at most {limits.texts} {what}, but this one has {len(given)}.")
    try:
        question = TimedQuestion.model_validate(found)
    except ValidationError as error:
        raise refused(
            "; ".join(_reason(one) for one in error.errors(include_url=False, include_input=False)[:3])
        ) from None
    check_question(question)
    return question


def check_question(question: Question) -> None:
    """Refuse what would spoil others' answers in a common batch.

    Raises:
        HTTPException: 422, for candidates that are not one list for each text, or text that is no Unicode.
    """
    texts, choices = question.texts, question.choices
    if choices is not None and (len(choices) != len(texts) or not all(choices)):
        raise refused("Each input needs at least one candidate, in 'choices'.")
    for place, part in enumerate([*texts, *(choices or [])]):
        try:
            "".join(part).encode("utf-8")
        except UnicodeEncodeError:
            raise refused(f"Input {place % len(texts)} (counted from 0) is no valid Unicode.") from None


def refused(detail: str) -> HTTPException:
    """A refusal of bad input, whose reason is short and can be sent."""
    text = detail if len(detail) <= _DETAIL else f"{detail[: _DETAIL - 3]}..."
    return HTTPException(422, text.encode("utf-8", "backslashreplace").decode())


def _reason(error: Any) -> str:
    """One error of pydantic's, without the input."""
    place = ".".join(str(part) for part in error["loc"] if isinstance(part, int) or part in TimedQuestion.model_fields)
    return f"{place or 'body'}: {error['msg'][:100]}"


class _OddError(ValueError):
    """Something in a body that no question holds."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = TimedQuestion.model_fields
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name not in known:
            raise _OddError(f"There is no field {name[:40]!a}; there are {', '.join(known)}.")
        if name in found:
            raise _OddError(f"The field '{name}' is there twice.")
        found[name] = value
    return found


def _constant(name: str) -> float:
    raise _OddError(f"The body is no JSON: {name} is no number.")


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise _OddError(f"The body holds a number of {len(digits)} digits; {_DIGITS} are the most.")
    return int(digits)
