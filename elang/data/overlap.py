"""Texts that are evaluated and are also in the training file, as they are or nearly: counted, or left out of it."""

import re
from typing import Any

import torch
from torch import Tensor

from elang.data.examples import Examples
from elang.errors import counted
from elang.notices import notice

# Share of evaluated texts that may also be training texts without a notice: real data repeats itself a little.
_MAX_OVERLAP = 0.01
# Rows that a notice names.
_SHOWN = 3
_EVALUATED = ("validation", "test")
_KEPT = (
    "They are kept, and make results look too good. Give --data.drop_overlap true in every step, from the first "
    "training on, to leave them out of the training file; or delete them from one of the two files."
)
_words = re.compile(r"[^\W_]+").findall
_three_words = re.compile(r"[\W_]*(?:[^\W_]+[\W_]*){0,3}").match


def warn_of_overlap(splits: dict[Any, Examples]) -> None:
    """Give a notice if many evaluated texts are also training texts, or in the slice that chooses thresholds.

    Another one counts those that differ from a training text only in letter case, white space or punctuation.
    """
    parts = {part: splits[part] for part in ("train", "routing") if part in splits}
    evaluated = [name for name in _EVALUATED if name in splits and "train" in parts]
    # Few training texts begin as an evaluated one, and only these are looked at as a whole.
    begins = {_begin(texts) for name in evaluated for texts in splits[name].texts}
    known = {_alike(texts) for examples in parts.values() for texts in examples.texts if _begin(texts) in begins}
    for name in evaluated:
        examples = splits[name]
        found = {part: torch.isin(examples.key, parts[part].key) for part in parts}
        repeated = torch.stack([*found.values()]).any(0)
        near = torch.tensor([_alike(texts) in known for texts in examples.texts], dtype=torch.bool) & ~repeated
        if _many(near):
            notice(
                "near-overlap",
                f"Of {counted(len(examples), 'texts')} of '{name}', {int(near.sum()):,} differ from one in the "
                f"training file only in letter case, white space or punctuation; first {_rows(examples, near)}. "
                f"{_KEPT}",
            )
        if not _many(repeated):
            continue
        held_out = f", {int(found['routing'].sum()):,} in its slice for thresholds" if "routing" in found else ""
        notice(
            "overlap",
            f"Of {counted(len(examples), 'texts')} of '{name}', {int(repeated.sum()):,} also in the training file: "
            f"{int(found['train'].sum()):,} in what is trained on{held_out}; first {_rows(examples, repeated)}. "
            f"{_KEPT}",
        )


def _many(found: Tensor) -> bool:
    """Whether so many of the evaluated texts, ``(N,)``, are to be told."""
    return int(found.sum()) >= max(1, _MAX_OVERLAP * len(found))


def _rows(examples: Examples, found: Tensor) -> str:
    """The first of these rows, in words."""
    return f"rows {', '.join(map(str, examples.id[found][:_SHOWN].tolist()))} (counted from 0)"


def _begin(texts: tuple[str, ...]) -> str:
    """The first three words of an example, in their normal form."""
    match = _three_words(texts[0])
    return normal_form(match[0]) if match else ""


def _alike(texts: tuple[str, ...]) -> int:
    """A number that examples share whose texts have the same normal forms; it differs from process to process."""
    return hash(tuple(map(normal_form, texts)))


def normal_form(text: str) -> str:
    """A text in lower case, with one space for all white space and punctuation; as it is if it has nothing else.

    >>> normal_form(' Well -- "yes"! '), normal_form(":-)")
    ('well yes', ':-)')
    """
    return " ".join(_words(text.casefold())) or text


def without_overlap(examples: Examples, data: Any) -> Examples:
    """The examples of the training file whose texts are not evaluated, even nearly; a notice counts the others."""
    evaluated = {name: data.examples(name) for name in _EVALUATED if name in data.files}
    same = torch.isin(examples.key, torch.cat([examples.key[:0], *(one.key for one in evaluated.values())]))
    texts_there = [texts for one in evaluated.values() for texts in one.texts]
    begins, forms = {*map(_begin, texts_there)}, {*map(_alike, texts_there)}
    near = [_begin(texts) in begins and _alike(texts) in forms for texts in examples.texts]
    known = same | torch.tensor(near, dtype=torch.bool)
    if known.any():
        only_near = int((known & ~same).sum())
        notice(
            "overlap-dropped",
            f"Left out {counted(int(known.sum()), 'rows')} of the {len(examples):,} of {data.where('train')}, because "
            f"--data.drop_overlap is true and their texts are in {' or '.join(map(repr, evaluated))}"
            f"{f', {only_near:,} in other letter case, white space or punctuation' if only_near else ''}: first row "
            f"{int(examples.id[known][0])} (counted from 0).",
        )
    return examples.take(~known)
