"""What `elang serve --shadow` takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from elang.cli.arguments import check_minimum
from elang.errors import InputError
from elang.files import check_output_file

if TYPE_CHECKING:
    from elang.backends.openai.settings import Prices
    from elang.inference.serving.shadow import ShadowOptions


@dataclass(frozen=True)
class WatchOptions:
    """A random sample that also goes to the Super, so that `elang monitor` can say whether a promise still holds.

    Args:
        shadow: The share of inputs that is sampled, such as 0.01. Those of them that the Swift answers also go to the
            Super, after they have been answered.
        shadow_log: The file that both answers are added to.
        shadow_budget: The most that the Super's answers may cost in 24 hours; by default anything.
        shadow_budget_in: What that counts: `requests`, `money` by --super_price, or `flops` of a Super that runs here.
        shadow_queue: Most sampled inputs that wait for the Super; while it is full, nothing is sampled.
        shadow_texts: Log inputs, too, and answers that are texts, which may be private.
    """

    shadow: float | None = None
    shadow_log: str = "shadow.jsonl"
    shadow_budget: float | None = None
    shadow_budget_in: Literal["requests", "money", "flops"] = "requests"
    shadow_queue: int = 256
    shadow_texts: bool = False

    def __post_init__(self) -> None:
        check_minimum(1, shadow_queue=self.shadow_queue)
        if self.shadow is not None and not 0 < self.shadow <= 1:
            raise InputError(f"--shadow must be above 0 and at most 1, but it is {self.shadow}.")
        if self.shadow_budget is not None and not 0 < self.shadow_budget < float("inf"):
            raise InputError(f"--shadow_budget must be finite and above 0, but it is {self.shadow_budget}.")
        if self.shadow is None and (self.shadow_budget is not None or self.shadow_texts):
            raise InputError("--shadow_budget and --shadow_texts are for --shadow, the share that is sampled. Give it.")

    def made(self, super_model: str, remote: bool, price: "Prices | None") -> "ShadowOptions | None":
        """What the server takes, or ``None`` if nothing is watched; ``price`` is the Super's."""
        if self.shadow is None:
            return None
        from elang.inference.serving.shadow import ShadowOptions

        check_output_file(self.shadow_log, [], option="--shadow_log", suffix=".jsonl")
        config: Any = None
        if self.shadow_budget_in == "flops" and not remote:
            from elang.backends.loading.source import Source

            config = Source.find(super_model).config()
        return ShadowOptions(
            share=self.shadow,
            log=Path(self.shadow_log),
            budget=self.shadow_budget,
            unit=self.shadow_budget_in,
            queue=self.shadow_queue,
            texts=self.shadow_texts,
            prices=price,
            config=config,
        )
