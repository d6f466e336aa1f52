"""How texts are drawn instead of taking the most probable tokens."""

from dataclasses import asdict, dataclass
from typing import Any

from elang.errors import InputError
from elang.notices import notice


@dataclass(frozen=True)
class Sampling:
    """Texts are drawn token by token. A draw depends on the seed and the prompt alone, not on the batch or the run.

    Args:
        temperature: Logits are divided by it; below 1, probable tokens are drawn more often.
        top_p: Only the most probable tokens are drawn that have this share of the probability together.
        top_k: Only so many of the most probable tokens are drawn; 0: any number.
        seed: Another one draws other texts.

    Raises:
        InputError: If a value is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise InputError(
                f"The temperature of sampling must be finite and above 0, but it is {self.temperature}. For the most "
                "probable tokens leave sampling out."
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p of sampling must be above 0 and at most 1, but it is {self.top_p}.")
        for name, value in (("top_k", self.top_k), ("seed", self.seed)):
            if type(value) is not int or not 0 <= value < 2**31:
                raise InputError(f"{name} of sampling must be a whole number from 0 to 2^31 - 1, but it is {value}.")

    @classmethod
    def of(cls, values: dict[str, Any] | None) -> "Sampling | None":
        """Rebuild it from :meth:`plain`; ``None`` if nothing is drawn."""
        return cls(**values) if values else None

    def plain(self) -> dict[str, Any]:
        """Its values, for ``elang.json`` and records."""
        return asdict(self)


def tell_sampled(sampling: dict[str, Any], what: str = "The answers") -> None:
    """Give a notice that answers are drawn, by :meth:`Sampling.plain`, so that all figures are those of one draw."""
    how = ", ".join(f"{name} {value}" for name, value in sampling.items())
    notice(
        "sampled-texts",
        f"{what} are drawn ({how}), one for each prompt. Figures, thresholds and certificates are of this draw "
        "alone: another seed gives other answers, of which they say nothing.",
        stacklevel=3,
    )


def tell_drawn(drawn: dict[str, dict[str, Any]]) -> None:
    """Tell which of the models of an evaluation, by their paths, draw, and whether the second one draws as the first.

    An empty :meth:`Sampling.plain` is of one that does not draw.
    """
    for path, how in drawn.items():
        if how:
            tell_sampled(how, f"The answers of '{path}'")
    if any(how != next(iter(drawn.values())) for how in drawn.values()):
        first, second = drawn
        notice(
            "other-sampling",
            f"The answers of '{second}' are not drawn as those of '{first}', and where both run, `elang predict` draws "
            "both as the Swift: what thresholds of this evaluation promise does not hold there. Draw both alike "
            "(--model.sampling).",
            stacklevel=3,
        )


def is_sampling(values: Any) -> bool:
    """Whether values of JSON are those of :meth:`Sampling.plain`, or an empty object."""
    numbers = isinstance(values, dict) and all(type(value) in (int, float) for value in values.values())
    try:
        if numbers:
            Sampling.of(values)
    except (TypeError, InputError):
        return False
    return numbers
