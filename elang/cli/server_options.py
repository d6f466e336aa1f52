"""The options of `elang serve`: where the server listens, and how much it accepts."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from elang.backends.remote import TOKEN_VARIABLE
from elang.cli.arguments import check_minimum
from elang.errors import InputError

if TYPE_CHECKING:
    from elang.backends.openai.settings import Settings
    from elang.inference.serving.chat_answer import PairPrices
    from elang.inference.serving.server import ChatOptions


_DEADLINE, _CHAT_DEADLINE = 10.0, 120.0
# As many as OpenAI's own client makes.
_CHAT_TRIES = 3
Role = Literal["swift", "super"]


@dataclass(frozen=True)
class ServerOptions:
    """Where the server listens, and how much it accepts.

    Args:
        host: Address or name to listen on; the default is reached from this machine only, 0.0.0.0 and :: from others.
        port: Its port, from 1024.
        deadline: Seconds in which a request is answered or refused, or a stream has begun; by default 10, and 120 with
            `--api openai`.
        on_super_failure: What happens to a deferred text when the Super is slow, full or dead: `swift` answers with the
            Swift's own answer, flagged as `fallback`; `fail` refuses the request (503 or 504).
        batch_size: Most texts that are answered together, of all requests.
        max_texts: Most texts in a request.
        max_bytes: Most bytes of a request.
        max_pending: Most texts that wait for the Swift; more are refused with 503.
        max_deferred: Most texts that wait for the Super; with more, the Super counts as failed.
        device: cpu, cuda, mps or one of several, as cuda:1; by default GPUs if there are any.
        devices: How many of its kind; by default all.
        workers: Processes on each device, for each of the two models.
        threads: CPU threads of each of them; by default the cores are shared out.
        api: `openai` also has the paths of OpenAI's API: /v1/chat/completions, /v1/completions and /v1/models.
        model_name: The pair's name there; by default that of the Swift's folder.
        key_variable: The environment variable with the token, or API key, that requests must bring.
        super_key_variable: The environment variable with the key of a Super at openai:MODEL@URL.
        super_price: What a million tokens cost that the Super reads, and that it writes, in any currency.
        swift_price: The same of the Swift.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    deadline: float | None = None
    on_super_failure: Literal["swift", "fail"] = "swift"
    batch_size: int = 512
    max_texts: int = 256
    max_bytes: int = 1_000_000
    max_pending: int = 4096
    max_deferred: int = 4096
    device: str | None = None
    devices: int | Literal["auto"] = "auto"
    workers: int = 1
    threads: int | None = None
    api: Literal["elang", "openai"] = "elang"
    model_name: str | None = None
    key_variable: str = TOKEN_VARIABLE
    super_key_variable: str | None = None
    super_price: tuple[float, float] | None = None
    swift_price: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        names = ("max_texts", "max_bytes", "max_pending", "max_deferred", "workers", "batch_size", "threads")
        check_minimum(1, **{name: getattr(self, name) for name in names})
        if not 1024 <= self.port <= 65535:
            raise InputError(f"--port must be from 1024 to 65535, but it is {self.port}.")
        if not 0 < self.seconds < float("inf"):
            raise InputError(f"--deadline must be above 0 seconds and finite, but it is {self.deadline}.")
        for name in ("model_name", "swift_price"):
            if getattr(self, name) is not None and self.api != "openai":
                raise InputError(f"--{name} is for --api openai. Leave it out, or add that.")
        for name in ("super_price", "swift_price"):
            if (price := getattr(self, name)) is not None and not all(0 <= one < float("inf") for one in price):
                raise InputError(f"--{name} must be two numbers from 0, but it is {list(price)}.")
        if self.model_name is not None and not (self.model_name.strip() and self.model_name.isprintable()):
            raise InputError("--model_name must not be empty, nor have characters that cannot be printed.")

    @property
    def seconds(self) -> float:
        """The deadline."""
        return {"elang": _DEADLINE, "openai": _CHAT_DEADLINE}[self.api] if self.deadline is None else self.deadline

    @property
    def chat_defaults(self) -> dict[str, Any]:
        """Settings of a Super of chats that its file does not have: unlike a run, clients wait, and ask again."""
        return {"concurrent": self.max_deferred, "tries": _CHAT_TRIES, "timeout": self.seconds}

    def prices(self, upstream: "Settings | None") -> "PairPrices":
        """What tokens cost, as far as that is known."""
        from elang.backends.openai.settings import Prices

        prices: PairPrices = {}
        of_file = None if upstream is None else upstream.prices
        if of_file is not None:
            prices["super"] = of_file
        given: dict[Role, tuple[float, float] | None] = {"swift": self.swift_price, "super": self.super_price}
        for role, price in given.items():
            if price is not None:
                prices[role] = Prices(*price, date="", currency=of_file.currency if of_file else "")
        return prices

    def chat_options(self, name: str, upstream: "Settings | None") -> "ChatOptions":
        """The pair's name, how its Super is asked, and what tokens cost as far as that is known."""
        from elang.inference.serving.server import ChatOptions

        prices = self.prices(upstream)
        if upstream is not None:
            upstream = replace(upstream, prices=prices.get("super"))
        return ChatOptions(name, upstream, prices)
