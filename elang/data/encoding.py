"""Tokenising texts, each once."""

import json
from itertools import chain
from typing import Any

import numpy as np
import torch

from elang.data.batches import EncodedExamples, EncodedTexts, Reader
from elang.data.examples import Examples
from elang.data.fast_tokens import backend_columns, own_backend
from elang.notices import notice
from elang.tasks.text_task import TextTask
from elang.terminal import waiting


class CutTexts:
    """Counts the texts of each split that are longer than a limit, to tell of all splits in one notice."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str, int], dict[str, str]] = {}

    def add(self, split: str, kind: str, option: str, limit: int, texts: EncodedTexts) -> None:
        """Count those of a split."""
        if texts.truncated:
            counts = self.counts.setdefault((kind, option, limit), {})
            counts[split] = f"{texts.truncated:,} of {len(texts.lengths):,} {kind} of '{split}'"

    def tell(self) -> None:
        """Give a notice for each limit."""
        for (kind, option, limit), counts in self.counts.items():
            cut = f"{kind.capitalize()} longer than {limit} tokens were cut: {', '.join(counts.values())}"
            notice("cut-inputs", f"{cut}. Raise --data.{option} to keep them whole.")


def encode_split(
    split: str, examples: Examples, task: TextTask, *, reader: Reader, limits: tuple[int, int], cut: CutTexts
) -> EncodedExamples:
    """Tokenise a split for one model, and count the texts that were cut.

    ``limits`` are the tokens kept of an input and of a reference; the model's own limit may be lower.
    """
    target_limit = reader.text_limit(limits[1])
    limit = reader.limit(limits[0], target_limit)
    with waiting(f"tokenising '{split}'"):
        encoded = encode_examples(
            reader,
            task,
            examples.texts,
            choices=examples.choices,
            max_length=limit,
            references=examples.references,
            max_target_length=target_limit,
        )
    cut.add(split, "inputs", "max_length", limit, encoded.texts)
    if encoded.answers is not None and examples.references is not None:
        cut.add(split, "references", "max_target_length", target_limit, encoded.answers)
    return encoded


def encode_examples(
    reader: Reader,
    task: TextTask,
    texts: list[tuple[str, ...]],
    choices: list[tuple[str, ...]] | None,
    max_length: int,
    references: list[str] | None = None,
    max_target_length: int = 0,
) -> EncodedExamples:
    """Tokenise examples for one model; texts over the lengths in tokens are cut and counted.

    Args:
        reader: How the model reads.
        task: Gives the templates, unless the reader has its own task.
        texts: The values of ``task.fields`` for each example.
        choices: Each example's candidates, in a ``choice`` task.
        max_length: Limit of an input.
        references: The texts to generate, in a ``sequence`` task.
        max_target_length: Limit of a reference.
    """
    task = reader.task or task
    candidates = choices if choices is not None else [()] * len(texts)
    starts = torch.tensor([0, *map(len, candidates)]).cumsum(0) if choices is not None else None
    if not reader.text_to_text:
        rows = [row for t, c in zip(texts, candidates, strict=True) for row in task.segment_texts(t, c)]
        return EncodedExamples(encode(reader.tokenizer, rows, max_length), starts)
    if reader.prompt is not None:
        lists, truncated = reader.prompt.token_lists(reader.tokenizer, task.fields, texts, limit=max_length)
        prompts = _flat(reader.tokenizer, lists, truncated, left=pads_left(reader.tokenizer))
    else:
        prompts = encode(reader.tokenizer, [(task.prompt_text(t),) for t in texts], max_length)
    if references is not None:
        return EncodedExamples(prompts, answers=encode_texts(reader, references, max_target_length))
    if reader.prompt is not None or starts is None or task.answers:
        return EncodedExamples(prompts)
    answers = encode(reader.tokenizer, [(c,) for c in chain.from_iterable(candidates)], max_length, answers=True)
    return EncodedExamples(prompts, starts, answers)


def encode(tokenizer: Any, texts: list[tuple[str, ...]], max_length: int, answers: bool = False) -> EncodedTexts:
    """Tokenise texts or pairs; those over ``max_length`` tokens, special ones included, are cut and counted.

    ``answers`` are texts that a text-to-text model writes; some tokenizers encode these differently.
    """
    lists, truncated = _token_lists(tokenizer, texts, max_length, answers)
    return _flat(tokenizer, lists, truncated, left=pads_left(tokenizer) and not answers)


def encode_texts(reader: Reader, texts: list[str], max_length: int) -> EncodedTexts:
    """Tokenise texts as a model writes them, with the token that ends them; long ones are cut before it and counted."""
    if reader.prompt is None or reader.end is None:
        return encode(reader.tokenizer, [(text,) for text in texts], max_length, answers=True)
    # Of no text at all the tokenizer makes nothing.
    lists = reader.prompt.answer_tokens(reader.tokenizer, texts) if texts else []
    truncated = sum(len(ids) >= max_length for ids in lists)
    return _flat(
        reader.tokenizer, {"input_ids": [[*ids[: max_length - 1], reader.end] for ids in lists]}, truncated, left=False
    )


def _flat(tokenizer: Any, lists: dict[str, list[list[int]]], truncated: int, left: bool) -> EncodedTexts:
    """The columns of many texts, each flat."""
    lengths = torch.tensor([len(ids) for ids in lists["input_ids"]])
    total = int(lengths.sum())
    columns = {
        name: torch.from_numpy(np.fromiter(chain.from_iterable(rows), np.int32, total)) for name, rows in lists.items()
    }
    for name in pad_of(tokenizer).keys() - columns.keys():
        columns[name] = torch.zeros(total, dtype=torch.int32)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return EncodedTexts(columns, offsets, pad_of(tokenizer), truncated=truncated, left=left)


def token_lists(
    reader: Reader, task: TextTask, texts: list[tuple[str, ...]], max_length: int
) -> tuple[list[dict[str, list[int]]], int]:
    """The tokens of a few examples without candidates, in a fraction of the time of :func:`encode_examples`.

    Returns:
        The columns of each example, and how many examples were cut.
    """
    task = reader.task or task
    if reader.prompt is not None:
        columns, truncated = reader.prompt.token_lists(reader.tokenizer, task.fields, texts, limit=max_length)
    else:
        rows = [(task.prompt_text(t),) if reader.text_to_text else task.segment_texts(t)[0] for t in texts]
        columns, truncated = _token_lists(reader.tokenizer, rows, max_length)
    if len(texts) > 1 or reader.prompt is not None:
        for name in pad_of(reader.tokenizer).keys() - columns.keys():
            columns[name] = [[0] * len(ids) for ids in columns["input_ids"]]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], truncated


def _token_lists(
    tokenizer: Any, texts: list[tuple[str, ...]], max_length: int, answers: bool = False
) -> tuple[dict[str, list[list[int]]], int]:
    """Columns of tokens, one list a text, and how many texts were cut; without ``token_type_ids`` if all are 0."""

    def tokenise(texts: list[tuple[str, ...]], **options: Any) -> Any:
        # Padding is set in every call, because a tokenizer's file can turn it on; likewise truncation.
        return tokenizer(
            **{"text_target" if answers else "text": [t[0] for t in texts]},
            text_pair=[t[1] for t in texts] if len(texts[0]) == 2 else None,
            padding=False,
            return_attention_mask=False,
            verbose=False,
            **options,
        )

    columns = None if answers else backend_columns(tokenizer, texts)
    if columns is None:
        columns = dict(tokenise(texts, truncation=False))
    long = [i for i, ids in enumerate(columns["input_ids"]) if len(ids) > max_length]
    if long:
        cut = tokenise([texts[i] for i in long], truncation=True, max_length=max_length)
        for name, rows in columns.items():
            for i, row in zip(long, cut[name], strict=True):
                rows[i] = row
    return columns, len(long)


def pad_of(tokenizer: Any) -> dict[str, int]:
    """The columns of a tokenizer's output, and the value that pads each."""
    pad_id = tokenizer.pad_token_id
    pad = {"input_ids": 0 if pad_id is None else pad_id}
    if "token_type_ids" in tokenizer.model_input_names:
        pad["token_type_ids"] = tokenizer.pad_token_type_id
    return pad


def pads_left(tokenizer: Any) -> bool:
    """Whether texts are padded on the left, which is decided when a model is loaded."""
    return bool(getattr(tokenizer, "padding_side", "right") == "left")


def same_tokens(first: Any, second: Any) -> bool:
    """Whether two tokenizers encode every text alike: their backends, columns and padding are equal."""

    def description(tokenizer: Any) -> Any:
        if (backend := own_backend(tokenizer)) is None:
            return None
        # Truncation and padding are done elsewhere.
        parts = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("truncation", "padding")}
        return parts, backend.encode_special_tokens, pad_of(tokenizer), pads_left(tokenizer)

    described = description(first)
    return described is not None and described == description(second)
