"""What an API answers: its text, why it ended, what it took, and the probabilities of its tokens."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from elang.backends.openai.settings import Usage
from elang.json_files import is_number

# A token's text, its log-probability, and those of the most probable ones in its place.
Token = tuple[str, float, list[tuple[str, float]]]
LACKS = {
    "tool": "called a tool",
    "thought": "thought and gave no answer",
    "cut": "reached the limit before an answer",
    "nothing": "without any text",
}
"""Why a reply has no text, and how a notice counts it. Such a reply was charged, and a further try gets the same."""
# What some servers give for a token without a probability.
_LEAST = -100.0


@dataclass(frozen=True)
class Reply:
    """The answer to a request.

    Attributes:
        text: What the model wrote; empty if it refused.
        finish: Why it ended: ``stop``, ``length``, ``content_filter``, or what else the server says.
        refused: The model, or a filter of the server, would not answer.
        lack: Why there is no text, of :data:`LACKS`; empty if there is one, or if the model wrote an empty one.
        model: The model that the server names.
        usage: The tokens that it took, if the server says so.
        tokens: The answer's tokens with their log-probabilities, if the server gives them.
    """

    text: str
    finish: str = "stop"
    refused: bool = False
    lack: str = ""
    model: str = ""
    usage: Usage | None = None
    tokens: list[Token] | None = None

    @classmethod
    def parse(cls, payload: Any) -> "Reply":
        """The first choice of a response's JSON; a ValueError says what it lacks.

        A choice without a text is a reply, too, and so is a reply without a choice that says what it took: both were
        charged.
        """
        if not isinstance(payload, dict):
            raise ValueError("the reply is no object")
        choices, usage = payload.get("choices"), usage_of(payload.get("usage"))
        if choices == [] and usage is not None and usage.input:
            choices = [{"message": {}}]
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ValueError("the reply has no choices")
        choice = choices[0]
        finish = choice.get("finish_reason")
        message = choice.get("message") if "message" in choice or "text" not in choice else {"content": choice["text"]}
        if not isinstance(message, dict):
            raise ValueError("the reply has no message")
        if finish == "error" or choice.get("error"):
            raise ValueError("the answer broke off")
        refused = finish == "content_filter" or bool(message.get("refusal"))
        text = _content(message.get("content"))
        lack = "" if refused else _lack(text, message, finish)
        text = text or ""
        # Half of a surrogate pair is no text that a file can hold.
        text = text.encode("utf-8", "replace").decode()
        model = payload.get("model")
        return cls(
            text="" if refused else text,
            finish=finish if isinstance(finish, str) else "",
            refused=refused,
            lack=lack,
            model=model if isinstance(model, str) else "",
            usage=usage,
            tokens=_of_answer(_tokens(choice.get("logprobs")), text) if text and not refused else None,
        )

    def plain(self) -> dict[str, Any]:
        """Plain values, from which :meth:`of` makes it again."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value not in (None, False) and (name, value) != ("lack", "")
        }

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Reply":
        """A reply of plain values; a ValueError, TypeError or KeyError if they are none."""
        usage = Usage(**values["usage"]) if values.get("usage") else None
        tokens = None
        if values.get("tokens") is not None:
            tokens = [(str(t), float(p), [(str(a), float(q)) for a, q in top]) for t, p, top in values["tokens"]]
        reply = cls(**{**values, "usage": usage, "tokens": tokens})
        if not isinstance(reply.text, str):
            raise ValueError("a text is none")
        return reply


def _content(value: Any) -> str | None:
    """The text of a message, or of its parts; ``None`` if it has none."""
    if isinstance(value, list):
        texts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(text for text in texts if isinstance(text, str)) if texts else None
    return value if isinstance(value, str) else None


def _lack(text: str | None, message: dict[str, Any], finish: Any) -> str:
    """Why there is no text, of :data:`LACKS`; empty if there is one."""
    if text is not None and text.strip():
        return ""
    if message.get("tool_calls") or message.get("function_call"):
        return "tool"
    # Servers that keep a model's thoughts apart have one of these.
    if message.get("reasoning_content") or message.get("reasoning"):
        return "thought"
    if finish == "length":
        return "cut"
    return "nothing" if text is None else ""


def usage_of(values: Any) -> Usage | None:
    """The tokens of a response's ``usage``; ``None`` where it has none of the prompt, or impossible ones."""
    if not isinstance(values, dict):
        return None
    counts = [values.get("prompt_tokens"), values.get("completion_tokens", 0)]
    details = values.get("prompt_tokens_details")
    counts.append((details.get("cached_tokens") if isinstance(details, dict) else None) or 0)
    if not all(isinstance(count, int) and is_number(count, 0, 2.0**53) for count in counts):
        return None
    prompt, output, cached = counts
    return Usage(prompt, min(cached, prompt), output)


def _tokens(values: Any) -> list[Token] | None:
    """The tokens of a chat's or a completion's ``logprobs``, with their probabilities; ``None`` if there are none."""
    if not isinstance(values, dict):
        return None
    try:
        if isinstance(values.get("content"), list):
            rows = values["content"]
            made = [
                (row["token"], row["logprob"], [(t["token"], t["logprob"]) for t in row.get("top_logprobs") or []])
                for row in rows
            ]
        else:
            tops = values.get("top_logprobs") or [{}] * len(values["tokens"])
            given = zip(values["tokens"], values["token_logprobs"], tops, strict=True)
            made = [(token, value, [*(top or {}).items()]) for token, value, top in given]
        tokens = [(_text(t), _log(p), [(_text(a), _log(q)) for a, q in top]) for t, p, top in made]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    return tokens or None


def _of_answer(tokens: list[Token] | None, text: str) -> list[Token] | None:
    """The tokens of the answer's text, without those of thoughts that the server has cut off in front of it."""
    written = "".join(token for token, *_ in tokens or [])
    place = written.rfind(text.strip())
    if tokens is None or place < 0 or not written[:place].strip():
        return tokens
    count = end = 0
    while end < place:
        end, count = end + len(tokens[count][0]), count + 1
    return tokens[count:] if end == place else None


def _text(token: Any) -> str:
    if not isinstance(token, str):
        raise ValueError("a token is no text")
    return token.encode("utf-8", "replace").decode()


def _log(value: Any) -> float:
    """A log-probability; a ValueError for what is none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value) or value > 1e-3:
        raise ValueError("a log-probability is none")
    return max(_LEAST, min(0.0, float(value)))


def answer_of(text: str, structured: bool) -> str:
    """The answer in a text: in a structured one the value of ``answer``, otherwise all of it."""
    if structured:
        try:
            value = json.loads(text)
            if isinstance(value, dict) and isinstance(value.get("answer"), str | int | float):
                return str(value["answer"])
        except (ValueError, RecursionError):
            pass
    return text
