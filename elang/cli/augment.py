"""More texts like those of a task, by replacing words: without labels, for the Super to answer.

A Swift learns from the Super's answers, and small training files have few texts to ask about. Words are replaced by
what a masked language model finds likely in their place or, where the Super's checkpoint has lost that head, by words
whose input embeddings are near. Source: the data augmentation of TinyBERT, Findings of EMNLP 2020.
"""

import random
import re
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from elang.data.columns import SOURCE_KEY, columns_of, read_frame, texts_of
from elang.data.examples import content_key
from elang.errors import InputError
from elang.files import check_output_file, written_aside
from elang.notices import notice
from elang.terminal import say

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

    Args:
        model: The Super's backbone: a folder or a hub id, ``owner/name@revision``.
        output: The table to write (.csv, .jsonl, .parquet), for `--data.transfer`: the text columns, and
            ``source_key``, by which what was made from the routing slice is left out of training.
        input: The training file.
        text: Its text columns, by default ``text``.
        task: A task of GLUE or SuperGLUE instead (glue/rte).
        folder: The benchmark's own files; by default the hub's.
        copies: New texts for each one.
        rate: Share of the words that are replaced; at least one is.
        top_k: How many candidates one is drawn from.
        candidates: ``masked``, ``neighbours``, or the first where the model can.
        seed: Of the draws.
        batch_size: Texts at a time.
        device: By default a GPU if there is one.

    Raises:
        InputError: If an option is wrong or nothing can be replaced.
    """
    _check_numbers(rate, copies=copies, top_k=top_k, batch_size=batch_size)
    if Path(output).suffix.lower() not in (".csv", ".jsonl", ".parquet"):
        raise InputError(f"--output '{output}' must end in .csv, .jsonl or .parquet.")
    check_output_file(output, [input, model])
    columns, texts, keys = _texts(input, columns_of(text), task, folder)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source = Replacements(model, candidates, top_k, place)
    made = _new_texts(source, [row for row in texts for _ in range(copies)], rate, random.Random(seed), batch_size)
    known, kept = set(texts), dict[tuple[str, ...], int]()
    for row, key in zip(made, (key for key in keys for _ in range(copies)), strict=True):
        if row not in known:
            kept.setdefault(row, key)
    if not kept:
        raise InputError(f"No word of the {len(texts)} texts could be replaced. Set another --model or --candidates.")
    _write(kept, columns, output)
    if left := len(made) - len(kept):
        notice("augmented-left-out", f"{left} of {len(made)} new texts came twice or unchanged and were left out.")
    say(f"{len(kept)} texts are in {output}, by {source.how}")


def _check_numbers(rate: float, **counts: int) -> None:
    """Refuse options out of their bounds."""
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"--{name} must be at least 1, but it is {value}.")
    if not 0 < rate <= 1:
        raise InputError(f"--rate must be above 0 and at most 1, but it is {rate}.")


def _new_texts(
    source: "Replacements", rows: list[tuple[str, ...]], rate: float, rng: random.Random, batch_size: int
) -> list[tuple[str, ...]]:
    """One new text for each row, side by side."""
    made: list[tuple[str, ...]] = []
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        sides = [source.replace(list(side), rate, rng) for side in zip(*some, strict=True)]
        made += zip(*sides, strict=True)
    return made


def _texts(
    path: str | None, text: list[str] | None, task: str | None, folder: str | None
) -> tuple[list[str], list[tuple[str, ...]], list[int]]:
    """Text columns, texts, and by what each is held out or not."""
    from elang.data.benchmarks import TaskData

    if (path is None) == (task is None):
        raise InputError("Give either --input, a training file, or --task, a task of GLUE or SuperGLUE.")
    if path is not None:
        columns = text or ["text"]
        texts = texts_of(read_frame(path), columns, f"'{path}'", option="--text")
        return columns, texts, [content_key(row) for row in texts]
    assert task is not None
    if task in _ABOUT_WORDS:
        raise InputError(f"{task} asks about words of its texts; with others in their places it would be another task.")
    data = TaskData(task, folder, ["train"], routing_fraction=0)
    examples = data.examples("train")
    return data.text_task.fields, examples.texts, (examples.key if examples.unit is None else examples.unit).tolist()


def _write(rows: dict[tuple[str, ...], int], columns: list[str], output: str) -> None:
    import pandas as pd

    suffix = Path(output).suffix.lower()
    frame = pd.DataFrame(list(rows), columns=columns).assign(**{SOURCE_KEY: list(rows.values())})
    with written_aside(output) as aside:
        if suffix == ".parquet":
            frame.to_parquet(aside, index=False)
        elif suffix == ".jsonl":
            frame.to_json(aside, orient="records", lines=True, force_ascii=False)
        else:
            frame.to_csv(aside, index=False)


class Replacements:
    """Words that may stand in others' places.

    Args:
        path: The model.
        candidates: How they are found.
        top_k: How many one is drawn from.
        device: Where the model runs.
    """

    def __init__(self, path: str, candidates: Candidates, top_k: int, device: torch.device) -> None:
        from elang.backends.loading.load import load_masked

        self.model, self.tokenizer, has_head = load_masked(path)
        if candidates == "masked" and not has_head:
            raise InputError(
                f"'{path}' has no head of a masked language model. Set --candidates neighbours, or give a --model that "
                "has one."
            )
        self.masked = has_head and candidates != "neighbours"
        self.how = "masked words" if self.masked else "neighbours of the input embeddings"
        if candidates == "auto" and not has_head:
            notice(
                "neighbours-for-masked-words",
                f"'{path}' has no head of a masked language model: words are replaced by those whose input embeddings "
                "are near. A --model that has one replaces them by likely words.",
            )
        self.model = self.model.to(device).eval()
        self.top_k, self.device = top_k, device
        self.words = self._whole_words()
        self._near: dict[str, list[str]] = {}

    def _whole_words(self) -> Tensor:
        """Which tokens are whole words of letters, bool ``(V,)``."""
        size = self.model.get_input_embeddings().weight.shape[0]
        tokens = self.tokenizer.convert_ids_to_tokens(list(range(min(size, len(self.tokenizer)))))
        found = torch.zeros(size, dtype=torch.bool)
        # A piece that goes on a word has "##" before it; where one that begins a word is marked, only that is whole.
        mark = next(
            (mark for mark in ("Ġ", "▁") if sum(str(t).startswith(mark) for t in tokens) > len(tokens) / 10), ""
        )
        for i, token in enumerate(map(str, tokens)):
            found[i] = token.startswith(mark) and len(token) > len(mark) + 1 and token[len(mark) :].isalpha()
        self.mark = mark
        return found.to(self.device)

    def replace(self, texts: list[str], rate: float, rng: random.Random) -> list[str]:
        """Replace some words of each text.

        Args:
            texts: ``B`` of them.
            rate: Share of the words; at least one where there is any.
            rng: Draws them.
        """
        pieces = [_PIECES.findall(text) for text in texts]
        chosen = []
        for row in pieces:
            places = [i for i, piece in enumerate(row) if piece.isalpha() and len(piece) > 1]
            some = [i for i in places if rng.random() < rate]
            chosen.append(some or ([rng.choice(places)] if places else []))
        found = self._masked(pieces, chosen) if self.masked else self._neighbours(pieces, chosen)
        for row, places, words in zip(pieces, chosen, found, strict=True):
            for i, options in zip(places, words, strict=False):
                others = [word for word in options if word.lower() != row[i].lower()]
                if others:
                    new = rng.choice(others)
                    row[i] = new.capitalize() if row[i][0].isupper() else new
        return ["".join(row) for row in pieces]

    @torch.no_grad()
    def _masked(self, pieces: list[list[str]], chosen: list[list[int]]) -> list[list[list[str]]]:
        """Likely words at the chosen places of each text."""
        mask = self.tokenizer.mask_token
        texts = [
            "".join(mask if i in set(places) else piece for i, piece in enumerate(row))
            for row, places in zip(pieces, chosen, strict=True)
        ]
        limit = min(512, self.tokenizer.model_max_length)
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        inputs = inputs.to(self.device)
        logits = self.model(**inputs).logits
        logits = logits.masked_fill(~self.words[: logits.shape[-1]], -torch.inf)
        found = []
        for row in range(len(texts)):
            places = (inputs["input_ids"][row] == self.tokenizer.mask_token_id).nonzero()[:, 0]
            best = logits[row, places].topk(self.top_k, -1).indices
            found.append([self._names(ids) for ids in best])
        return found

    def _names(self, ids: Tensor) -> list[str]:
        return [str(t)[len(self.mark) :] for t in self.tokenizer.convert_ids_to_tokens(ids.tolist())]

    def _neighbours(self, pieces: list[list[str]], chosen: list[list[int]]) -> list[list[list[str]]]:
        """Words whose input embeddings are near those of the chosen ones."""
        wanted = {
            row[i].lower() for row, places in zip(pieces, chosen, strict=True) for i in places
        } - self._near.keys()
        ids = {word: self.tokenizer.convert_tokens_to_ids(self.mark + word) for word in sorted(wanted)}
        known = {word: i for word, i in ids.items() if i not in (None, self.tokenizer.unk_token_id)}
        self._near |= {word: [] for word in wanted}
        if known:
            table = torch.nn.functional.normalize(self.model.get_input_embeddings().weight.detach(), dim=-1)
            near = table[list(known.values())] @ table.T
            near = near.masked_fill(~self.words, -torch.inf).topk(self.top_k + 1, -1).indices
            self._near |= {word: self._names(row[1:]) for word, row in zip(known, near, strict=True)}
        return [[self._near[row[i].lower()] for i in places] for row, places in zip(pieces, chosen, strict=True)]
