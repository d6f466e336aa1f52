"""Texts that are evaluated and are also in the training file: they are counted, or left out of it."""

from typing import Any

import torch

from elang.data.examples import Examples
from elang.errors import counted
from elang.notices import notice

# Share of evaluated texts that may also be training texts without a notice: real data repeats itself a little.
_MAX_OVERLAP = 0.01
# Rows that a notice names.
_SHOWN = 3
_EVALUATED = ("validation", "test")


def warn_of_overlap(splits: dict[Any, Examples]) -> None:
    """Give a notice if many evaluated texts are also training texts, or in the slice that chooses thresholds."""
    parts = {part: splits[part].key for part in ("train", "routing") if part in splits}
    for name in (name for name in _EVALUATED if name in splits and "train" in parts):
        examples = splits[name]
        found = {part: torch.isin(examples.key, key) for part, key in parts.items()}
        repeated = torch.stack([*found.values()]).any(0)
        if int(repeated.sum()) < max(1, _MAX_OVERLAP * len(examples)):
            continue
        rows = ", ".join(map(str, examples.id[repeated][:_SHOWN].tolist()))
        held_out = f", {int(found['routing'].sum()):,} in its slice for thresholds" if "routing" in found else ""
        notice(
            "overlap",
            f"Of {counted(len(examples), 'texts')} of '{name}', {int(repeated.sum()):,} also in the training file: "
            f"{int(found['train'].sum()):,} in what is trained on{held_out}; first rows {rows} (counted from 0). They "
            "are kept, and make results look too good. Give --data.drop_overlap true in every step, from the first "
            "training on, to leave them out of the training file; or delete them from one of the two files.",
        )


def without_overlap(examples: Examples, data: Any) -> Examples:
    """The examples of the training file whose texts are not evaluated; a notice counts the others."""
    evaluated = [name for name in _EVALUATED if name in data.files]
    known = torch.isin(examples.key, torch.cat([examples.key[:0], *(data.examples(name).key for name in evaluated)]))
    if known.any():
        notice(
            "overlap-dropped",
            f"Left out {counted(int(known.sum()), 'rows')} of the {len(examples):,} of {data.where('train')}, because "
            f"--data.drop_overlap is true and the same texts are in {' or '.join(map(repr, evaluated))}: first row "
            f"{int(examples.id[known][0])} (counted from 0).",
        )
    return examples.take(~known)
