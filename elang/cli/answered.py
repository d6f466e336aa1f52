"""What `elang predict` says at its end: what was cut, and who answered."""

import math
import sys
from collections import Counter

from elang.errors import counted, printable
from elang.inference.loaded import ChainPredictor, LoadedCascade
from elang.inference.queue import person_of
from elang.inference.routing import who
from elang.inference.usage import usage
from elang.notices import notice


def tell_answered(
    predictor: LoadedCascade, given: Counter[str], output: str, *, numbered: bool, alone: bool, queue: str | None
) -> None:
    """Say what was cut, with the first inputs if they are ``numbered`` through, and how many each stage answered.

    Args:
        predictor: What answered.
        given: Answers by stage.
        output: Where they are.
        numbered: Whether the inputs have numbers.
        alone: Whether a pair has no Super.
        queue: The file of what waits for a person.
    """
    _tell_cut(predictor, given.total(), numbered)
    if isinstance(predictor, ChainPredictor):
        said = _of_chain(predictor, given, queue)
    else:
        said = _of_pair(predictor, given, alone)
    end = "" if output == "-" else printable(f"; answers in {output}")
    sys.stderr.write(f"{counted(given.total(), 'inputs')}, {said}{end}\n")


def _tell_cut(predictor: LoadedCascade, total: int, numbered: bool) -> None:
    """Give a notice of inputs that a model cut, with the first ones if they are ``numbered`` through."""
    first = who(predictor.stages[0].name)
    for runner in predictor.runners.values():
        if runner.truncated:
            cut = ", ".join(map(str, runner.first_cut if numbered else ()))
            begin = f"First numbers, from 0: {cut}. " if cut else ""
            limit = f"the {runner.limit} tokens that the {runner.who} reads at most"
            if runner.limit >= runner.max_length:
                limit = f"{runner.limit} tokens, the --data.max_length that the {first} was trained with"
            notice(
                "cut-inputs",
                f"Of {counted(total, 'inputs')}, {runner.truncated:,} longer than {limit}: the {runner.who} did not "
                f"read the rest. {begin}".rstrip(),
            )


def _of_pair(predictor: LoadedCascade, given: Counter[str], alone: bool) -> str:
    """Who answered, the Swift or the Super; ``alone`` if there is only the Swift."""
    if alone:
        return "all answered by the Swift, as no --super_model was given"
    means = {math.inf: ": nothing is passed on to the Super", -math.inf: ": everything is passed on to the Super"}
    total, deferred, stage = given.total(), given["super"], predictor.stages[0]
    return (
        f"{total - deferred:,} answered by the Swift and {deferred:,} ({deferred / total:.1%}) by the Super, at the "
        f"threshold {stage.threshold:.4g} of {stage.score}{means.get(stage.threshold, '')}"
    )


def _of_chain(predictor: ChainPredictor, given: Counter[str], queue: str | None) -> str:
    """Who answered, and what that cost where it is known what an answer costs."""
    found = usage(predictor.stages, given)
    person = person_of(predictor)
    parts = [
        f"{one.answered:,} ({one.share:.1%}) {'wait for' if one.name == person else 'answered by'} {one.name}"
        for one in found
    ]
    if not math.isnan(cost := sum(one.cost for one in found)):
        parts.append(f"{cost / max(1, given.total()):.4g} {predictor.chain.unit} an input")
    said = ", ".join(parts)
    return said if queue is None else printable(f"{said}; the queue is {queue}")
