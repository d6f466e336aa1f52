"""What a request to `elang serve` may contain, how its body is read, and what is answered.

Errors name the place, never the input, so what is sent back is short.
"""

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

if sys.version_info >= (3, 11):
    from asyncio import timeout as timeout
else:
    from async_timeout import timeout as timeout

RETRY = {"Retry-After": "1"}
# Longer bodies are parsed in a thread, one at a time, so that short ones need not wait; this many of them may wait.
_SHORT, _QUEUED = 16_384, 32
# The most digits of a number, and characters of a refusal.
_DIGITS, _DETAIL = 20, 400
_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# Stop at the first wrong element, because each further one would cost time.
_Strings = Annotated[list[str], Field(fail_fast=True)]
Role = Literal["swift", "super"]
Reason = Literal["timeout", "full", "failed", "unavailable", "cost", "budget"]


class Question(BaseModel):
    """Texts to be answered."""

    # A misspelt deadline would otherwise be none.
    model_config = ConfigDict(extra="forbid")

    texts: list[str | _Strings] = Field(
        fail_fast=True, description="Texts, or for each input one text for each of the task's fields."
    )
    choices: Annotated[list[_Strings], Field(fail_fast=True)] | None = Field(
        None, description="Each input's candidates, where the task has its own."
    )
    # Of the Swift alone: above which score to defer; by default the server's.
    threshold: Annotated[SkipJsonSchema[float | None], Field(exclude=True)] = None


class TimedQuestion(Question):
    """Texts to be answered by the pair."""

    threshold: Annotated[SkipJsonSchema[None], Field(exclude=True)] = None
    # Servers of earlier versions send it.
    keep: Literal[False] = False
    deadline: float | None = Field(
        None, gt=0, strict=True, allow_inf_nan=False, description="Seconds; at most the server's, which is the default."
    )


_SCHEMA = {"schema": TimedQuestion.model_json_schema()}
BODY = {"requestBody": {"required": True, "content": {"application/json": _SCHEMA}}}
"""The schema of a request's body, for /docs."""


class Answer(BaseModel):
    """The pair's answer to one input."""

    label: str | float = Field(description="The class, the candidate, the generated text, or a regression's value.")
    probability: float | None = Field(
        None,
        description="The probability of the label by the model that answers, the softmax over its answers; null for "
        "generated texts, in a regression, and from a Super elsewhere that gives none.",
    )
    score: float | None = Field(
        description="The Swift's difficulty score, larger is harder; null where the Swift was not asked first, because "
        "the threshold defers everything."
    )
    answered_by: Role
    answer: str | None = Field(
        None, description="What the Swift's --data.extract finds in a generated text; null if nothing, or if not set."
    )
    fallback: Reason | None = Field(None, description="Why the Swift answers what the Super should have.")
    cut: list[Role] = Field([], description="Which models read only the beginning: the input is too long for them.")


class Reply(BaseModel):
    """The answers, in the order of the texts."""

    answers: list[Answer]


class Labels(BaseModel):
    """The Super's answers, in the order of the texts."""

    answers: list[str | float]
    probabilities: list[float | None] | None = Field(None, description="Of the answers, where they have any.")
    cut: list[int] = Field([], description="Numbers, from 0, of the texts of which only the beginning was read.")


@dataclass(frozen=True)
class Limits:
    """What a server accepts: the seconds, texts and bytes of a request, and the texts of a batch.

    With more than ``pending`` texts that wait for the Swift, requests are refused; with more than ``deferred`` texts
    that wait for the Super, it counts as failed.
    """

    deadline: float = 10.0
    texts: int = 256
    pending: int = 4096
    deferred: int = 4096
    batch: int = 512
    bytes: int = 1_000_000


class ApiError(HTTPException):
    """A refusal in OpenAI's form: what is wrong, in which parameter, and a code."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    @property
    def body(self) -> dict[str, Any]:
        """The body of the response."""
        return error_body(self.status_code, self.detail, self.param, self.code)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of a refusal in OpenAI's form."""
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class QuestionReader:
    """Reads the questions of requests, within ``limits``."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting = 0
        self._turn = asyncio.Semaphore(1)

    async def __call__(self, request: Request) -> TimedQuestion:
        """The question of a request; 415 if it is not JSON, 422 if it is not a question, 503 if too many wait."""
        kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise HTTPException(415, "Send JSON, with the header 'Content-Type: application/json'.")
        body = await request.body()
        if len(body) <= _SHORT:
            return parse_question(body, self.limits)
        if self._waiting >= _QUEUED:
            raise busy("Too many long requests wait to be read.")
        self._waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(parse_question, body, self.limits)
        finally:
            self._waiting -= 1


def parse_question(body: bytes, limits: Limits) -> TimedQuestion:
    """The question in a body of JSON; an HTTPException with 422 if there is none."""
    try:
        # The hooks stop at the first thing that no question contains.
        hooks: Any = {"object_pairs_hook": _object, "parse_constant": _constant, "parse_int": _integer}
        content = json.loads(body.decode("utf-8-sig"), **hooks)
    except UnicodeDecodeError as error:
        raise refused(f"The body is not UTF-8: byte {error.start} (counted from 0) cannot be read.") from None
    except RecursionError:
        raise refused("The body is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise refused(f"The body is not JSON: {error.msg} (character {error.pos}, counted from 0).") from None
    if not isinstance(content, dict):
        raise refused('The body must be an object such as {"texts": ["a text"]}.')
    for name, what in (("texts", "texts"), ("choices", "lists of choices")):
        # Before their elements are looked at.
        if isinstance(values := content.get(name), list) and len(values) > limits.texts:
            raise refused(f"A request has at most {limits.texts} {what}, but this one has {len(values)}.")
    try:
        question = TimedQuestion.model_validate(content)
    except ValidationError as error:
        raise refused("; ".join(map(_reason, error.errors(include_url=False, include_input=False)[:3]))) from None
    texts, choices = question.texts, question.choices
    # What would spoil the answers to other questions of a batch.
    if choices is not None and (len(choices) != len(texts) or not all(choices)):
        raise refused("Each input needs at least one candidate, in 'choices'.")
    for place, part in enumerate([*texts, *(choices or [])]):
        try:
            "".join(part).encode("utf-8")
        except UnicodeEncodeError:
            raise refused(f"Input {place % len(texts)} (counted from 0) is no valid Unicode.") from None
    return question


def refused(detail: str) -> HTTPException:
    """The refusal of bad input, with a short reason that can be encoded."""
    text = detail if len(detail) <= _DETAIL else f"{detail[: _DETAIL - 3]}..."
    return HTTPException(422, text.encode("utf-8", "backslashreplace").decode())


def busy(reason: str) -> HTTPException:
    """The refusal of a request that may succeed later."""
    return HTTPException(503, f"{reason} Ask again later.", RETRY)


def _reason(error: Any) -> str:
    """One of pydantic's errors, without the input."""
    place = ".".join(str(part) for part in error["loc"] if isinstance(part, int) or part in TimedQuestion.model_fields)
    return f"{place or 'body'}: {error['msg'][:100]}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = [name for name in TimedQuestion.model_fields if name != "threshold"]
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name not in fields:
            raise refused(f"There is no field {name[:40]!a}; there are {', '.join(fields)}.")
        if name in content:
            raise refused(f"The field '{name}' is there twice.")
        content[name] = value
    return content


def _constant(name: str) -> float:
    raise refused(f"The body is not JSON: {name} is not a number.")


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise refused(f"The body has a number of {len(digits)} digits; the most is {_DIGITS}.")
    return int(digits)
