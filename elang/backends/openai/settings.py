"""Which model behind which API, with which key, limits and prices: ``openai:MODEL@URL``, or a YAML file with more."""

import math
import os
import re
from dataclasses import dataclass, field, fields
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from elang.errors import InputError, first_line, listed
from elang.json_files import POSITIVE, TRUTH, Check, check_fields, number, whole

SCHEME = "openai:"
_VENDOR, _VENDOR_KEY = "https://api.openai.com/v1", "OPENAI_API_KEY"
Api = Literal["chat", "completions"]
Structured = Literal["no", "json_schema", "choice", "guided_choice"]
# What a request is made of here; other fields are the user's, in `body`.
_OURS = ("model", "messages", "prompt", "stream", "n", "logprobs", "top_logprobs")
_MILLION = 1e6


@dataclass(frozen=True)
class Usage:
    """Tokens of a request: of the prompt, how many of these the server had cached, and of the answer."""

    input: int
    cached: int
    output: int


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, in a currency, and when that was so; ``cached`` tokens cost ``input`` by default."""

    input: float
    output: float
    date: str
    cached: float | None = None
    currency: str = "USD"

    def of(self, usage: Usage) -> float:
        """What a request cost.

        >>> Prices(2.0, 8.0, "2026-11-01", cached=0.5).of(Usage(1000, 400, 100))
        0.0022
        """
        cached = self.input if self.cached is None else self.cached
        fresh = (usage.input - usage.cached) * self.input + usage.cached * cached
        return round((fresh + usage.output * self.output) / _MILLION, 12)

    @classmethod
    def read(cls, values: Any) -> "Prices":
        """Prices of a YAML file; a ValueError says what is wrong with them."""
        if not isinstance(values, dict):
            raise ValueError("its 'prices' are no names and values")
        _check_names(values, cls, "prices.")
        amount = number(0)
        checks: dict[str, Check] = {"input": amount, "output": amount, "cached": amount, "currency": _TEXT}
        check_fields(values, checks, ("input", "output", "date"), "prices.")
        day = values["date"]
        try:
            day = day if isinstance(day, date) else date.fromisoformat(str(day))
        except ValueError:
            raise ValueError(f"its 'prices.date' is {day!r}, where a day is needed, such as 2026-11-01") from None
        return cls(**{**values, "date": day.isoformat()})


_TEXT: Check = ("a text that is not empty", lambda v: isinstance(v, str) and bool(v.strip()))


@dataclass(frozen=True)
class Settings:
    """How a model behind an API is asked.

    Attributes:
        model: The model's name there.
        url: The address in front of ``/chat/completions``.
        key: The environment variable with the key; the key itself is read when it is sent, and kept nowhere.
        key_header: The header that the key is sent in; in ``Authorization`` it follows ``Bearer``.
        organization: Sent as ``OpenAI-Organization``.
        project: Sent as ``OpenAI-Project``.
        headers: Further headers; no secrets, because they are no variables.
        api: ``chat`` sends messages, ``completions`` one text.
        structured: How the server is told that only the labels are answers: ``json_schema`` (``response_format``),
            ``choice`` or ``guided_choice`` (vLLM), or ``no``.
        max_tokens: The most tokens of an answer; by default what the longest label or --data.max_target_length takes.
        logprobs: Most probable tokens to ask for at each place of an answer; by default none, and for a Swift 20 in a
            chat and 5 otherwise.
        body: Further fields of a request; null leaves one of ours out.
        concurrent: Most requests at a time.
        requests_per_minute: At most so many requests a minute.
        tokens_per_minute: At most so many tokens a minute, by an estimate before a request.
        tries: Attempts at a request.
        timeout: Seconds that an attempt may take.
        deadline: Seconds after which a request is not tried again.
        batch: Whether requests go as batch files (``/batches``), whose answers may take a day.
        budget: The most money that a run may spend, in the prices' currency.
        prices: What tokens cost.
    """

    model: str
    url: str
    key: str | None = None
    key_header: str = "Authorization"
    organization: str | None = None
    project: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    api: Api = "chat"
    structured: Structured = "no"
    max_tokens: int | None = None
    logprobs: int | None = None
    body: dict[str, Any] = field(default_factory=dict)
    concurrent: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    tries: int = 8
    timeout: float = 60.0
    deadline: float | None = None
    batch: bool = False
    budget: float | None = None
    prices: Prices | None = None

    @property
    def address(self) -> str:
        """``openai:MODEL@URL``."""
        return f"{SCHEME}{self.model}@{self.url}"

    @classmethod
    def of(cls, address: str, **defaults: Any) -> "Settings":
        """The settings of ``openai:MODEL@URL``, or of a YAML file whose ``model`` is such an address.

        Without ``@URL`` it is OpenAI's own, with the key in OPENAI_API_KEY. To another URL no key is sent that a file
        does not name. ``defaults`` take the place of those of fields that the file does not have.

        Raises:
            InputError: If the address is none, the file cannot be read, or it has a value that cannot be.
        """
        if address.lower().startswith(SCHEME):
            return cls(**defaults, **_parts(address))
        try:
            values = yaml.safe_load(Path(address).read_text("utf-8"))
            if not isinstance(values, dict) or not isinstance(values.get("model"), str):
                raise ValueError("it has no 'model', such as model: openai:MODEL@URL")
            _check_names(values, cls, "", without="url")
            check_fields(values, _CHECKS)
            given = {name: value for name, value in values.items() if value is not None}
            made = {**defaults, **_parts(given.pop("model")), **given}
            if "prices" in made:
                made["prices"] = Prices.read(made["prices"])
            settings = cls(**made)
            settings._check()
        except (OSError, UnicodeError, yaml.YAMLError, ValueError) as error:
            raise InputError(f"The settings '{address}' cannot be used: {first_line(error)}. Correct them.") from error
        return settings

    def _check(self) -> None:
        """Raise a ValueError for settings that do not go together."""
        if self.budget is not None and self.prices is None:
            raise ValueError("a 'budget' needs 'prices'")
        if self.structured == "json_schema" and self.api == "completions":
            raise ValueError("'structured: json_schema' is of 'api: chat'")
        if ours := [name for name in _OURS if name in self.body]:
            raise ValueError(f"its 'body' has '{ours[0]}', which is made here")
        secret = [name for name in self.headers if name.lower() in ("authorization", "api-key", "x-api-key", "cookie")]
        if secret:
            raise ValueError(
                f"its 'headers' have '{secret[0]}': name the variable with the key as 'key', and its header as "
                "'key_header'"
            )
        if self.key is not None and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.key):
            # It may be the key itself, so it is not shown.
            raise ValueError("its 'key' is no name of an environment variable, such as key: OPENAI_API_KEY")

    @property
    def secret(self) -> str:
        """The key itself, empty without one."""
        return os.environ.get(self.key, "") if self.key else ""

    def without_key(self, text: str) -> str:
        """A text without the key."""
        return text.replace(self.secret, "…") if self.secret else text

    def headers_now(self) -> dict[str, str]:
        """The headers of a request; an InputError if the variable with the key is not set or cannot be sent."""
        headers = dict(self.headers)
        for name, value in (("OpenAI-Organization", self.organization), ("OpenAI-Project", self.project)):
            if value:
                headers[name] = value
        if self.key is not None:
            key = self.secret
            if not key or not key.isascii() or not key.isprintable() or key != key.strip():
                raise InputError(
                    f"The key of {self.address} is read from the environment variable {self.key}, which is "
                    f"{'not fit for an HTTP header' if key else 'not set'}. Set it."
                )
            bearer = self.key_header.lower() == "authorization"
            headers[self.key_header] = f"Bearer {key}" if bearer else key
        return headers


def _one_of(values: Any) -> Check:
    known = get_args(values)
    return f"one of {', '.join(known)}", lambda v: v in known


_HEADERS: Check = (
    "names of headers with texts",
    lambda v: isinstance(v, dict) and all(isinstance(text, str) and text.isprintable() for text in v.values()),
)
_LIMIT: Check = ("a number above 0", lambda v: v is None or (POSITIVE[1](v) and v < math.inf))
_COUNT: Check = whole(1)
_CHECKS: dict[str, Check] = {
    **dict.fromkeys(("key", "key_header", "organization", "project"), _TEXT),
    "headers": _HEADERS,
    "batch": TRUTH,
    "api": _one_of(Api),
    "structured": _one_of(Structured),
    **dict.fromkeys(("max_tokens", "concurrent", "tries"), _COUNT),
    "logprobs": whole(0),
    "body": ("names and values", lambda v: isinstance(v, dict) and all(isinstance(name, str) for name in v)),
    **dict.fromkeys(("requests_per_minute", "tokens_per_minute", "timeout", "deadline", "budget"), _LIMIT),
}


def _check_names(values: dict[Any, Any], cls: type[Any], where: str, without: str = "") -> None:
    known = [one.name for one in fields(cls) if one.name != without]
    if unknown := [str(name) for name in values if name not in known]:
        meant = "".join(f"; did you mean '{name}'" for name in get_close_matches(unknown[0], known, 1))
        raise ValueError(f"it has '{where}{unknown[0]}', which is none of [{listed(known)}]{meant}")


def _parts(address: str) -> dict[str, Any]:
    """Model and URL of an address, and the key's variable where it is known; an InputError if it is no address."""
    match = re.fullmatch(r"(?i:openai:)(.+?)(?:@(https?://.+))?", address)
    form = "give openai:MODEL@URL, such as openai:qwen3-8b@http://127.0.0.1:8000/v1"
    if match is None or (match[2] is None and "://" in match[1]):
        raise InputError(f"'{_hidden(address)}' is no address of a model behind an API; {form}.")
    model, url = match[1], (match[2] or "").rstrip("/")
    if not url:
        return {"model": model, "url": _VENDOR, "key": _VENDOR_KEY}
    host, _, path = url.partition("://")[2].partition("/")
    if "@" in host or "?" in url or "#" in url:
        raise InputError(
            f"'{_hidden(address)}' has a password or a query in its URL, which records and logs would show; {form}, "
            "and name the variable with the key in a YAML file (docs/super.md)."
        )
    valid = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+)(?::([0-9]{1,5}))?", host)
    if not valid or int(valid[1] or 1) > 65535:
        raise InputError(f"'{address}' is no address of a model behind an API; {form}.")
    return {"model": model, "url": url if path else f"{url}/v1"}


def _hidden(address: str) -> str:
    """An address without what may be a password."""
    return re.sub(r"://[^/@]*@", "://…@", address).partition("?")[0]
