"""What a request to the OpenAI-compatible paths may contain, and how it is read.

Each field is used, or has a value that changes nothing, or makes the request one that only a Super elsewhere may take.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from elang.backends.chat_decoding import Chat
from elang.inference.serving.conversation import read_conversation
from elang.inference.serving.schema import ApiError, Role
from elang.tasks.text_task import TextTask

# Fields of ours that a request may have, in the body's object `elang` or, with x-elang- before them, as headers.
_OURS = ("threshold", "always", "max_cost")
_MOST_STOPS, _MOST_LOGPROBS, _MOST_CHOICES = 4, 20, 128


@dataclass(frozen=True)
class PairChoice:
    """What a request asks of the pair: a threshold by name or number, one of the models, the most that it may cost."""

    threshold: str | float | None = None
    always: Role | None = None
    max_cost: float | None = None


@dataclass(frozen=True)
class ChatRequest:
    """A request for a chat's next message, or for the completion of a text.

    Attributes:
        body: What a Super elsewhere is sent, as a chat.
        chat: What a model here is asked.
        beyond: Why no model here takes it, empty if they do; ``param`` is the field.
        turns: Messages before the last one.
        stream: Whether tokens are to be sent as they come.
        include_usage: Whether a stream is to end with its usage.
        completion: Whether the answer is to have the form of /v1/completions.
        choice: What is asked of the pair.
    """

    body: dict[str, Any]
    chat: Chat
    beyond: str = ""
    param: str | None = None
    turns: int = 0
    stream: bool = False
    include_usage: bool = False
    completion: bool = False
    choice: PairChoice = field(default_factory=PairChoice)


def _empty(value: Any) -> bool:
    return value in ([], {}, "none")


def _anything(value: Any) -> bool:
    return True


# Fields that models here do not have, and whether a value changes nothing.
_WITHOUT_EFFECT: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), lambda value: value == 0),
    **dict.fromkeys(("logit_bias", "tools", "functions", "function_call"), _empty),
    "tool_choice": lambda value: value in ("none", "auto"),
    "modalities": lambda value: value == ["text"],
    "response_format": lambda value: value == {"type": "text"},
    "store": lambda value: value is False,
    "service_tier": lambda value: value in ("auto", "default"),
    # They say something about the request or about tools, not about the answer.
    **dict.fromkeys(("user", "metadata", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"), _anything),
    # Of /v1/completions.
    "echo": lambda value: value is False,
    "suffix": lambda value: value == "",
    "best_of": lambda value: value == 1,
}
_READ = (
    *("model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature"),
    *("top_p", "n", "stop", "seed", "logprobs", "top_logprobs", "elang"),
)


def read_request(
    raw: bytes, headers: Mapping[str, str], model: str, task: TextTask, completion: bool = False
) -> ChatRequest:
    """The request in a body of JSON to a pair of this name; an :class:`ApiError` if it is none."""
    body = _object_of(raw)
    _check_model(body.get("model"), model)
    choice = _pair_choice(body.pop("elang", None), headers)
    stream, include_usage = _boolean(body, "stream"), _stream_options(body)
    chat = _settings(body, completion)
    if completion:
        _complete_as_chat(body)
    beyond, param = _beyond(body)
    texts, turns, system, why = read_conversation(body.get("messages"), task)
    if why and not beyond:
        beyond, param = why, "messages"
    before = len(body["messages"]) - 1
    chat = replace(chat, texts=texts, turns=turns, system=system)
    return ChatRequest(
        body,
        chat,
        beyond,
        param,
        before,
        stream=stream,
        include_usage=include_usage,
        completion=completion,
        choice=choice,
    )


def _object_of(raw: bytes) -> dict[str, Any]:
    def constant(name: str) -> float:
        raise ApiError(400, f"The body is not JSON: {name} is not a number.")

    try:
        body = json.loads(raw.decode("utf-8-sig"), parse_constant=constant)
        if b"\\u" in raw:
            # Halves of characters, which nothing could encode.
            json.dumps(body, ensure_ascii=False).encode()
    except (UnicodeDecodeError, UnicodeEncodeError):
        raise ApiError(400, "The body is no valid Unicode.") from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.") from None
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON: {str(error)[:100]}.") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be an object.")
    # null is the same as nothing, as in OpenAI's own API.
    return {name: value for name, value in body.items() if value is not None}


def _check_model(given: Any, model: str) -> None:
    if not isinstance(given, str):
        raise ApiError(400, "Name the model, as a text.", "model")
    if given != model:
        message = f"The model '{given[:100]}' does not exist; this server has '{model}'."
        raise ApiError(404, message, "model", "model_not_found")


def _pair_choice(given: Any, headers: Mapping[str, str]) -> PairChoice:
    values: dict[str, Any] = {}
    for name in _OURS:
        if (value := headers.get(f"x-elang-{name.replace('_', '-')}")) is not None:
            values[name] = value
    if given is not None:
        if not isinstance(given, dict):
            raise ApiError(400, 'elang must be an object, such as {"threshold": "99%"}.', "elang")
        if unknown := given.keys() - set(_OURS):
            message = f"elang has no field {min(unknown)[:40]!a}; there are {', '.join(_OURS)}."
            raise ApiError(400, message, f"elang.{min(unknown)[:40]}")
        values |= {name: value for name, value in given.items() if value is not None}
    if "always" in values and values["always"] not in ("swift", "super"):
        raise ApiError(400, "elang.always must be 'swift' or 'super'.", "elang.always")
    if "threshold" in values:
        value = values["threshold"]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ApiError(400, "elang.threshold must be a name or a number.", "elang.threshold")
        if "always" in values:
            raise ApiError(400, "elang.threshold and elang.always exclude each other.", "elang.always")
    if "max_cost" in values:
        try:
            cost = math.nan if isinstance(values["max_cost"], bool) else float(values["max_cost"])
        except (TypeError, ValueError):
            cost = math.nan
        if not 0 <= cost < math.inf:
            raise ApiError(400, "elang.max_cost must be a number from 0.", "elang.max_cost")
        values["max_cost"] = cost
    return PairChoice(**values)


def _stream_options(body: dict[str, Any]) -> bool:
    given = body.get("stream_options", {})
    if not isinstance(given, dict) or given.keys() - {"include_usage", "include_obfuscation"}:
        raise ApiError(400, "stream_options has only include_usage.", "stream_options")
    if given and not body.get("stream"):
        raise ApiError(400, "stream_options are for a stream: set stream to true.", "stream_options")
    if given.get("include_obfuscation"):
        raise ApiError(400, "This server does not pad its stream.", "stream_options.include_obfuscation")
    return _boolean(given, "include_usage")


def _settings(body: dict[str, Any], completion: bool) -> Chat:
    """How the answer is to be written, without the conversation."""
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in body]
    tokens = [_number(body, name, 1, whole=True) for name in names]
    stop = body.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > _MOST_STOPS or not all(isinstance(s, str) and s for s in stop):
        raise ApiError(400, f"stop must be a text or up to {_MOST_STOPS} of them, none empty.", "stop")
    top: int | None
    if completion:
        top = int(_number(body, "logprobs", 0, 5, whole=True)) if "logprobs" in body else None
    else:
        top = int(_number(body, "top_logprobs", 0, _MOST_LOGPROBS, whole=True)) if "top_logprobs" in body else 0
        if not _boolean(body, "logprobs"):
            if top:
                raise ApiError(400, "top_logprobs needs logprobs to be true.", "top_logprobs")
            top = None
    return Chat(
        (),
        tokens=int(min(tokens)) if tokens else None,
        stop=tuple(stop),
        temperature=_number(body, "temperature", 0, 2) if "temperature" in body else None,
        top_p=_number(body, "top_p", 0, 1) if "top_p" in body else 1.0,
        seed=int(_number(body, "seed", -(2**62), 2**62, whole=True)) if "seed" in body else None,
        count=int(_number(body, "n", 1, _MOST_CHOICES, whole=True)) if "n" in body else 1,
        top_logprobs=top,
    )


def _number(body: dict[str, Any], name: str, least: float, most: float = math.inf, whole: bool = False) -> float:
    value = body[name]
    good = isinstance(value, int) or (isinstance(value, float) and not whole)
    if isinstance(value, bool) or not good or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        upto = "" if most == math.inf else f" to {most:g}"
        raise ApiError(400, f"{name} must be {kind} from {least:g}{upto}.", name)
    number: float = value
    return number


def _boolean(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} must be true or false.", name)
    return value


def _complete_as_chat(body: dict[str, Any]) -> None:
    """Make a chat of a request for a completion: its text is the user's message."""
    prompt = body.pop("prompt", None)
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise ApiError(400, "prompt must be one text; send each in a request of its own.", "prompt")
    if "messages" in body:
        raise ApiError(400, "messages belong to /v1/chat/completions.", "messages")
    body["messages"] = [{"role": "user", "content": prompt}]
    for name in ("echo", "suffix", "best_of"):
        if not _WITHOUT_EFFECT[name](body.pop(name, {"echo": False, "suffix": "", "best_of": 1}[name])):
            raise ApiError(400, f"This server does not support {name}.", name, "unsupported_parameter")
    if "logprobs" in body:
        body["top_logprobs"], body["logprobs"] = body["logprobs"], True


def _beyond(body: dict[str, Any]) -> tuple[str, str | None]:
    """The first field that no model here takes, and its name."""
    for name, value in body.items():
        if name not in _READ and not _WITHOUT_EFFECT.get(name, lambda value: False)(value):
            return f"the parameter {name[:40]!a}", name[:40]
    return "", None
