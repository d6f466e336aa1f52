"""A chain of models in place of a pair, as an option of `predict`."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from elang.errors import InputError
from elang.inference.options import PairOptions
from elang.records.chain_file import FILENAME, Chain

_OF_STAGES = ("threshold", "score", "thresholds")


@dataclass(frozen=True)
class ChainOptions:
    """A chain in place of a pair.

    Args:
        chain: The folder or file in which `elang choose` or `elang curve` wrote a chain of models with thresholds, in
            place of --swift_model and --super_model.
        models: Which models they are, by the names of the stages, where the chain does not say it: a folder, a hub id,
            an address or `person`; or an object with `model`, `score`, `threshold`, `thresholds` or `cost`.
    """

    chain: str | None = None
    models: dict[str, Any] = field(default_factory=dict)

    def resolved(self, pair: PairOptions, swift_model: str | None, super_model: str | None) -> Chain | None:
        """The chain with its models, if there is one; refuses options that do not go with it."""
        if self.chain is None:
            if self.models:
                raise InputError("--models names the models of a chain: give it as --chain, too.")
            if swift_model is None and super_model is None:
                raise InputError("Give a pair's --swift_model and --super_model, or a --chain of models.")
            return None
        if swift_model is not None or super_model is not None:
            raise InputError("--chain has all models: leave out --swift_model and --super_model.")
        defaults = {one.name: one.default for one in fields(PairOptions)}
        if given := [name for name in _OF_STAGES if getattr(pair, name) != defaults[name]]:
            raise InputError(
                f"Each stage of a chain has its own {given[0]}: give it in the chain's file or by --models "
                f"'{{NAME: {{{given[0]}: ...}}}}' in place of --{given[0]}."
            )
        return Chain.read(self.chain).with_models(self.models)

    @property
    def files(self) -> list[str]:
        """The chain's file, which no output may replace."""
        if self.chain is None:
            return []
        return [str(Path(self.chain) / FILENAME if Path(self.chain).is_dir() else self.chain)]


def ways_of(pair: PairOptions) -> dict[str, Any]:
    """How models run, without what each stage of a chain has for itself."""
    return {name: value for name, value in vars(pair).items() if name not in _OF_STAGES}
