"""More texts like those of a small training file, made by replacing words, for the Super to answer.

Source: the data augmentation of TinyBERT, Findings of EMNLP 2020.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from elang.cli.arguments import check_minimum, note_replaced
from elang.data.columns import SOURCE_KEY, columns_of, read_frame, texts_of
from elang.data.examples import content_key
from elang.errors import InputError, counted
from elang.files import check_output_file, write_atomically
from elang.notices import notice
from elang.terminal import Progress, say

Candidates = Literal["auto", "masked", "neighbours"]
_ABOUT_WORDS = ("superglue/wic", "superglue/wsc", "superglue/record", "glue/wnli")
_PIECES = re.compile(r"\w+|\W+")


def augment(
    model: str,
    output: str,
    input: str | None = None,  # noqa: A002 - the option's name
    text: list[str] | str | None = None,
    task: str | None = None,
    folder: str | None = None,
    copies: int = 10,
    rate: float = 0.3,
    top_k: int = 15,
    candidates: Candidates = "auto",
    seed: int = 0,
    batch_size: int = 64,
    device: str | None = None,
) -> None:
    """Make more texts like those of a training file, by replacing words.

    New words are those that a masked language model finds likely or, if the model has no such head, those with similar
    input embeddings.

    Args:
        model: The Super's backbone: a folder or a hub id, ``owner/name@revision``.
        output: The table to write (.csv, .jsonl, .parquet), for `--data.transfer`: texts, and keys of their originals.
        input: The training file.
        text: Its text columns, by default ``text``.
        task: A task of GLUE or SuperGLUE instead (glue/rte).
        folder: The benchmark's own files; by default the hub's.
        copies: New texts for each one.
        rate: Share of the words that are replaced, at least one.
        top_k: Number of candidates that a replacement is drawn from.
        candidates: ``masked``, ``neighbours``, or ``auto``: masked if the model has that head.
        seed: Of the draws.
        batch_size: Texts at a time.
        device: By default a GPU if there is one.
    """
    check_minimum(1, copies=copies, top_k=top_k, batch_size=batch_size)
    if not 0 < rate <= 1:
        raise InputError(f"--rate must be above 0 and at most 1, but it is {rate}.")
    if Path(output).suffix.lower() not in (".csv", ".jsonl", ".parquet"):
        raise InputError(f"--output '{output}' must end in .csv, .jsonl or .parquet.")
    check_output_file(output, [input, model])
    note_replaced(output)
    columns, texts = _read_texts(input, columns_of(text), task=task, folder=folder)
    source = Replacements(model, candidates, top_k, device=device)
    rows = [row for row in texts for _ in range(copies)]
    originals = {row for row, _ in texts}
    keys: dict[tuple[str, ...], int] = {}
    for new_row, key in _replaced(source, rows, rate, random.Random(seed), batch_size=batch_size):
        if new_row not in originals:
            keys.setdefault(new_row, key)
    if not keys:
        raise InputError(f"No word of the {len(texts)} texts could be replaced. Set another --model or --candidates.")
    _write(keys, columns, output)
    if dropped := len(rows) - len(keys):
        text = f"Of {counted(len(rows), 'texts')} made, {dropped:,} left out: equal to another one or its original."
        notice("augmented-left-out", text)
    say(f"{output} has {counted(len(keys), 'texts')}, by {source.method}")


def _replaced(
    source: "Replacements", rows: list[tuple[tuple[str, ...], int]], rate: float, rng: random.Random, *, batch_size: int
) -> Iterator[tuple[tuple[str, ...], int]]:
    """Each row with some of its words replaced, and its key."""
    with Progress(len(rows), "texts") as progress:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            fields = zip(*(row for row, _ in batch), strict=True)
            new_rows = zip(*(source.replace(list(field), rate, rng) for field in fields), strict=True)
            yield from zip(new_rows, (key for _, key in batch), strict=True)
            progress.add(len(batch))


def _read_texts(
    path: str | None, columns: list[str] | None, *, task: str | None, folder: str | None
) -> tuple[list[str], list[tuple[tuple[str, ...], int]]]:
    """The text columns, and each example's texts with the key that decides whether it is held out."""
    if path is not None and task is None:
        columns = columns or ["text"]
        texts = texts_of(read_frame(path), columns, f"'{path}'", option="--text")
        return columns, [(row, content_key(row)) for row in texts]
    if path is not None or task is None:
        raise InputError("Give either --input, a training file, or --task, a task of GLUE or SuperGLUE.")
    if task in _ABOUT_WORDS:
        raise InputError(f"{task} asks about words of its texts; with others in their places it would be another task.")
    from elang.data.benchmarks import TaskData

    data = TaskData(task, folder, ["train"], routing_fraction=0)
    examples = data.examples("train")
    keys = (examples.key if examples.unit is None else examples.unit).tolist()
    return data.text_task.fields, list(zip(examples.texts, keys, strict=True))


def _write(keys: dict[tuple[str, ...], int], columns: list[str], output: str) -> None:
    import pandas as pd

    frame = pd.DataFrame(list(keys), columns=columns).assign(**{SOURCE_KEY: list(keys.values())})
    suffix = Path(output).suffix.lower()
    with write_atomically(output) as aside:
        if suffix == ".parquet":
            frame.to_parquet(aside, index=False)
        elif suffix == ".jsonl":
            frame.to_json(aside, orient="records", lines=True, force_ascii=False)
        else:
            frame.to_csv(aside, index=False)


class Replacements:
    """Replaces words of texts by one of ``top_k`` candidates of the model at ``path``."""

    def __init__(self, path: str, candidates: Candidates, top_k: int, *, device: str | None = None) -> None:
        from elang.backends.loading.load import load_masked

        model, self.tokenizer, has_head = load_masked(path)
        if candidates == "masked" and not has_head:
            raise InputError(
                f"'{path}' has no head of a masked language model. Set --candidates neighbours, or give a --model that "
                "has one."
            )
        if candidates == "auto" and not has_head:
            notice(
                "neighbours-for-masked-words",
                f"'{path}' has no head of a masked language model: words are replaced by those whose input embeddings "
                "are near. A --model that has one replaces them by likely words.",
            )
        self.masked = has_head and candidates != "neighbours"
        self.method = "masked words" if self.masked else "neighbours of the input embeddings"
        self.model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        self.top_k = top_k
        self.embeddings: Tensor = self.model.get_input_embeddings().weight.detach()
        ids = list(range(min(len(self.embeddings), len(self.tokenizer))))
        tokens = [str(token) for token in self.tokenizer.convert_ids_to_tokens(ids)]
        # Some tokenizers mark a token that begins a word; in others, one that continues a word starts with "##".
        marks = (mark for mark in ("Ġ", "▁") if sum(t.startswith(mark) for t in tokens) > len(tokens) / 10)
        self.mark = next(marks, "")
        words = [t.removeprefix(self.mark) if t.startswith(self.mark) else "" for t in tokens]
        # Which tokens are whole words, bool (V,).
        is_word = [len(word) > 1 and word.isalpha() for word in words]
        is_word += [False] * (len(self.embeddings) - len(words))
        self.is_word = torch.tensor(is_word, device=self.model.device)
        self._neighbours: dict[str, list[str]] = {}

    def replace(self, texts: list[str], rate: float, rng: random.Random) -> list[str]:
        """Replace the share ``rate`` of the words of each text, at least one; ``rng`` draws them and their places."""
        pieces = [_PIECES.findall(text) for text in texts]
        chosen = []
        for row in pieces:
            words = [i for i, piece in enumerate(row) if piece.isalpha() and len(piece) > 1]
            drawn = [i for i in words if rng.random() < rate]
            chosen.append(drawn or ([rng.choice(words)] if words else []))
        candidates = self._likely_words(pieces, chosen) if self.masked else self._similar_words(pieces, chosen)
        for row, places, candidates_of_row in zip(pieces, chosen, candidates, strict=True):
            for i, options in zip(places, candidates_of_row, strict=False):
                others = [word for word in options if word.lower() != row[i].lower()]
                if others:
                    word = rng.choice(others)
                    row[i] = word.capitalize() if row[i][0].isupper() else word
        return ["".join(row) for row in pieces]

    @torch.no_grad()
    def _likely_words(self, pieces: list[list[str]], chosen: list[list[int]]) -> list[list[list[str]]]:
        """What the masked language model finds likely at the chosen places of each text."""
        masked = [
            "".join(self.tokenizer.mask_token if i in places else piece for i, piece in enumerate(row))
            for row, places in zip(pieces, map(set, chosen), strict=True)
        ]
        limit = min(512, self.tokenizer.model_max_length)
        inputs = self.tokenizer(masked, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        logits = self.model(**inputs).logits
        logits = logits.masked_fill(~self.is_word[: logits.shape[-1]], -torch.inf)
        is_mask = inputs["input_ids"] == self.tokenizer.mask_token_id
        best = [row[places].topk(self.top_k, -1).indices for row, places in zip(logits, is_mask, strict=True)]
        return [[self._words(ids) for ids in rows] for rows in best]

    def _similar_words(self, pieces: list[list[str]], chosen: list[list[int]]) -> list[list[list[str]]]:
        """Words whose input embeddings are near those of the chosen words."""
        words = [[row[i].lower() for i in places] for row, places in zip(pieces, chosen, strict=True)]
        new = sorted({word for row in words for word in row} - self._neighbours.keys())
        ids = {word: self.tokenizer.convert_tokens_to_ids(self.mark + word) for word in new}
        known = {word: i for word, i in ids.items() if i not in (None, self.tokenizer.unk_token_id)}
        self._neighbours |= {word: [] for word in new}
        if known:
            table = torch.nn.functional.normalize(self.embeddings, dim=-1)
            closeness = (table[list(known.values())] @ table.T).masked_fill(~self.is_word, -torch.inf)
            nearest = closeness.topk(self.top_k + 1, -1).indices
            self._neighbours |= {word: self._words(row[1:]) for word, row in zip(known, nearest, strict=True)}
        return [[self._neighbours[word] for word in row] for row in words]

    def _words(self, ids: Tensor) -> list[str]:
        return [str(token)[len(self.mark) :] for token in self.tokenizer.convert_ids_to_tokens(ids.tolist())]
