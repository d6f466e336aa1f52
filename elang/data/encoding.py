"""Texts to tokens, once for each text."""

import json
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch

from elang.data.batches import EncodedExamples, EncodedTexts, Reader
from elang.tasks.text_task import TextTask


def encode_examples(
    reader: Reader,
    task: TextTask,
    texts: list[tuple[str, ...]],
    choices: list[tuple[str, ...]] | None,
    max_length: int,
    references: list[str] | None = None,
    max_target_length: int = 0,
) -> EncodedExamples:
    """Tokenise examples for one model, inputs over ``max_length`` tokens being cut and counted.

    Args:
        reader: The model's.
        task: Gives the templates.
        texts: The values of ``task.fields`` for each example.
        choices: Each example's candidates, in a ``choice`` task.
        max_length: In tokens.
        references: What is to be generated, in a ``sequence`` task.
        max_target_length: In tokens, of these.
    """
    task = reader.task or task
    candidates = choices if choices is not None else [()] * len(texts)
    starts = torch.tensor([0, *(len(c) for c in candidates)]).cumsum(0) if choices is not None else None
    if not reader.text_to_text:
        rows = [row for t, c in zip(texts, candidates, strict=True) for row in task.segment_texts(t, c)]
        return EncodedExamples(encode(reader.tokenizer, rows, max_length), starts)
    found = encode(reader.tokenizer, [(task.prompt_text(t),) for t in texts], max_length)
    if references is not None:
        said = encode(reader.tokenizer, [(r,) for r in references], max_target_length, answers=True)
        return EncodedExamples(found, answers=said)
    if starts is None or task.answers:
        return EncodedExamples(found)
    said = encode(reader.tokenizer, [(c,) for example in candidates for c in example], max_length, answers=True)
    return EncodedExamples(found, starts, said)


def encode(tokenizer: Any, texts: list[tuple[str, ...]], max_length: int, answers: bool = False) -> EncodedTexts:
    """Tokenise texts or pairs, cutting (and counting) those over ``max_length`` tokens.

    Padding and truncation are set in every call, for a tokenizer's own file can fix both.

    Args:
        tokenizer: Of a model.
        texts: One or two an example.
        max_length: In tokens, special ones included.
        answers: They are what a text-to-text model is to say, which some tokenizers write differently.
    """
    found, cut = _columns(tokenizer, texts, max_length, answers)
    lengths = torch.tensor([len(ids) for ids in found["input_ids"]])
    total = int(lengths.sum())
    columns = {
        name: torch.from_numpy(np.fromiter(chain.from_iterable(rows), np.int32, total)) for name, rows in found.items()
    }
    for name in pad_of(tokenizer).keys() - columns.keys():
        columns[name] = torch.zeros(total, dtype=torch.int32)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return EncodedTexts(columns, offsets, pad_of(tokenizer), cut, pads_left(tokenizer) and not answers)


def _columns(
    tokenizer: Any, texts: list[tuple[str, ...]], max_length: int, answers: bool = False
) -> tuple[dict[str, list[list[int]]], int]:
    """Columns of tokens of texts or pairs, one list a text, and how many texts were cut; as :func:`encode` says.

    The tokens' types are left out where all are 0.
    """
    pair = len(texts[0]) == 2

    def tokens(some: list[tuple[str, ...]], **options: Any) -> Any:
        given = {"text_target" if answers else "text": [t[0] for t in some]}
        return tokenizer(
            **given,
            text_pair=[t[1] for t in some] if pair else None,
            padding=False,
            return_attention_mask=False,
            verbose=False,
            **options,
        )

    found = None if answers else _backend_columns(tokenizer, texts)
    if found is None:
        found = dict(tokens(texts, truncation=False))
    over = [i for i, ids in enumerate(found["input_ids"]) if len(ids) > max_length]
    if over:
        cut = tokens([texts[i] for i in over], truncation=True, max_length=max_length)
        for name, rows in found.items():
            for place, row in zip(over, cut[name], strict=True):
                rows[place] = row
    return found, len(over)


def token_lists(
    reader: Reader, task: TextTask, texts: list[tuple[str, ...]], max_length: int
) -> tuple[list[dict[str, list[int]]], int]:
    """Tokens of few examples without candidates: as :func:`encode_examples` makes them, in a fraction of the time.

    Returns:
        The columns of each example, and how many examples were cut.
    """
    task = reader.task or task
    rows = [(task.prompt_text(t),) if reader.text_to_text else task.segment_texts(t)[0] for t in texts]
    columns, cut = _columns(reader.tokenizer, rows, max_length)
    if len(texts) > 1:
        for name in pad_of(reader.tokenizer).keys() - columns.keys():
            columns[name] = [[0] * len(ids) for ids in columns["input_ids"]]
    return [dict(zip(columns, one, strict=True)) for one in zip(*columns.values(), strict=True)], cut


def _backend_columns(tokenizer: Any, texts: list[tuple[str, ...]]) -> dict[str, list[list[int]]] | None:
    """Uncut tokens straight from a fast tokenizer's backend; ``None`` where the tokenizer does more than it.

    Wrapping what comes from it into the library's objects takes as long again as tokenising on some cores.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kind: Any = type(tokenizer)
    if backend is None or not _plain_kind(kind):
        return None
    # A tokenizer's file can have set both.
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if len(texts) == 1:
        # Threads that share out a single text take longer than it.
        made = [backend.encode(*texts[0])]
    else:
        made = backend.encode_batch_fast([t[0] for t in texts] if len(texts[0]) == 1 else texts)
    columns = {"input_ids": [one.ids for one in made]}
    if "token_type_ids" in tokenizer.model_input_names:
        # All texts that stand alone have the same types, which are mostly 0.
        if len(texts[0]) == 1 < len(texts) and not any(backend.encode("a").type_ids):
            return columns
        columns["token_type_ids"] = [one.type_ids for one in made]
    return columns


@cache
def _plain_kind(kind: type) -> bool:
    """Whether a class of tokenizers adds nothing to what its backend does."""
    from transformers import PreTrainedTokenizerFast

    steps = ("__call__", "_encode_plus", "_batch_encode_plus", "batch_encode_plus", "encode_plus")
    return all(getattr(kind, step, None) is getattr(PreTrainedTokenizerFast, step, None) for step in steps)


def pad_of(tokenizer: Any) -> dict[str, int]:
    """The columns that a tokenizer makes, and what pads each."""
    pad_id = tokenizer.pad_token_id
    pad = {"input_ids": 0 if pad_id is None else pad_id}
    if "token_type_ids" in tokenizer.model_input_names:
        pad["token_type_ids"] = tokenizer.pad_token_type_id
    return pad


def pads_left(tokenizer: Any) -> bool:
    """Whether texts are padded on the left, which is decided when a model is loaded."""
    return bool(getattr(tokenizer, "padding_side", "right") == "left")


def same_tokens(one: Any, other: Any) -> bool:
    """Whether two tokenizers make the same of every text: their backends, columns and padding."""

    def described(tokenizer: Any) -> Any:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        kind: Any = type(tokenizer)
        if backend is None or not _plain_kind(kind):
            return None
        # Cut and padded are texts by others.
        parts = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("truncation", "padding")}
        return parts, backend.encode_special_tokens, pad_of(tokenizer), pads_left(tokenizer)

    found = described(one)
    return found is not None and found == described(other)
