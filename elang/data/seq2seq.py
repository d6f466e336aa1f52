"""Pairs of texts for translation or summarisation, from files or the hub."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from elang.data.columns import check_file, column_place, given_files, read_frame, read_lines, texts_of
from elang.data.examples import Examples
from elang.data.prompted import PromptedData
from elang.errors import InputError
from elang.method.quality.texts import TEXT_METRICS
from elang.notices import notice
from elang.tables import SUFFIXES, suffix_of
from elang.tasks.extraction import SlowPatternError, extractor
from elang.tasks.text_task import TextTask


class Seq2SeqData(PromptedData):
    """Pairs of texts from parallel files, tables (CSV, TSV, JSONL, parquet) or a data set on the hub.

    Parallel files are given by their common prefix: ``--data.train data/train --data.source en
    --data.target de`` reads ``data/train.en`` and ``data/train.de``, or these with ``.gz``. In a table the two are
    columns, on the hub columns or the languages of ``translation``.

    Empty texts are kept and counted. ``max_words`` and ``max_ratio`` drop and count pairs of the training file alone.

    Args:
        train: Training pairs.
        validation: Evaluation pairs.
        test: The same for ``elang test``; may lack targets.
        source: Suffix, column or language of the texts to read.
        target: Suffix, column or language of the texts to generate.
        hub: Data set on the hub, ``owner/name@revision``; the files above are then names of its splits.
        hub_config: Its configuration (``de-en``).
        prompt: Template of a model's input, ``"translate English to German: {text}"``.
        extract: How the answer is found in a text and in its reference: ``choice`` (a letter: "The answer is (B)"),
            ``number`` (the last one, or what follows ``####``), ``first_line``, or a regular expression with one group.
            The metrics then compare what was found; a text in which nothing is found is wrong, and counted.
        source_language: The source's code, for models of many languages (``eng_Latn`` of NLLB, ``en_XX`` of mBART).
        target_language: The target's code.
        qualities: Metrics, of which the first chooses thresholds: ``bleu`` (for targets without blanks ``bleu_zh`` or
            ``bleu_char``), ``chrf``, ``rouge_l``, ``exact_text``, ``exact_answer``, ``token_f1``, ``number_match``,
            ``token_accuracy``.
        max_length: Tokens kept of a source; longer ones are cut and counted.
        max_target_length: Tokens kept of a reference (cut ones are counted), and the longest text generated.
        routing_fraction: Share of the training file held out for the router and thresholds.
        max_words: Training pairs with more words on a side are dropped.
        max_ratio: Training pairs with one side over this many times as long as the other, in words, are dropped.
        options: Those of :class:`elang.data.prompted.PromptedData`.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        source: str = "source",
        target: str = "target",
        hub: str | None = None,
        hub_config: str | None = None,
        prompt: str = "{text}",
        source_language: str | None = None,
        target_language: str | None = None,
        qualities: list[str] | None = None,
        max_length: int = 128,
        max_target_length: int = 128,
        routing_fraction: float = 0.05,
        max_words: int | None = None,
        max_ratio: float | None = None,
        extract: str | None = None,
        **options: Any,
    ) -> None:
        if max_target_length < 1:
            raise InputError(f"--data.max_target_length must be at least 1, but it is {max_target_length}.")
        if (max_words is not None and max_words < 1) or (max_ratio is not None and max_ratio < 1):
            raise InputError(
                f"--data.max_words {max_words} and --data.max_ratio {max_ratio} must be at least 1, or not be set."
            )
        # The options without a value here are for tasks with labels.
        super().__init__(
            given_files(train, validation, test),
            max_length=max_length,
            routing_fraction=routing_fraction,
            label_words=None,
            transfer=None,
            fold=None,
            **options,
        )
        self.words = self.words if self.words == "chat" else ""
        self.max_target_length = max_target_length
        self.source, self.target = source, target
        self.hub, self.hub_config, self.prompt = hub, hub_config, prompt
        if (source_language is None) != (target_language is None):
            raise InputError("Give both --data.source_language and --data.target_language, or neither.")
        self.languages = [source_language, target_language] if source_language and target_language else []
        self.extract = extract or ""
        if extract:
            extractor(extract)
        self.qualities = qualities or ["bleu", "chrf"]
        if unknown := [name for name in self.qualities if name not in TEXT_METRICS]:
            raise InputError(f"There is no metric of texts '{unknown[0]}'; there are {', '.join(TEXT_METRICS)}.")
        self.max_words, self.max_ratio = max_words, max_ratio

    @property
    def zero_shot_task(self) -> TextTask:
        """What the task asks."""
        task = TextTask(
            [],
            "sequence",
            segments=[],
            prompt=self.prompt,
            qualities=self.qualities,
            languages=self.languages,
            extract=self.extract,
        )
        return TextTask.of([], task.plain())

    def check_files(self) -> None:
        """Raise an ``InputError`` if a local file does not exist, other than the target's of the test set."""
        for split, path in () if self.hub else self.files.items():
            if suffix_of(path) in SUFFIXES:
                check_file(path)
                continue
            self._side(split, "source")
            self._side(split, "target")

    def title(self, source: str) -> str:
        """The files or data set, with what is made of what."""
        return f"{super().title(source)} ({self.source} to {self.target})"

    def read(self, source: str) -> Examples:
        """All pairs of one split, in its order; of the training file those that the filters keep."""
        texts, references = self._pairs(source)
        if not texts:
            raise InputError(f"{self.where(source)} has no lines. Give another file.")
        for side, lines in (("source", texts), ("target", references or [])):
            if empty := sum(not line.strip() for line in lines):
                notice(
                    "empty-texts", f"{empty} of {len(lines)} lines of {self.where(source)} have an empty {side}: kept."
                )
        self._check_extracted(references or [], self.where(source))
        # There are no classes: 0 is an example with a reference, -1 one without.
        label = torch.full((len(texts),), -1 if references is None else 0)
        examples = Examples.of([(text,) for text in texts], label, references=references)
        if source != "train" or references is None or (self.max_words is None and self.max_ratio is None):
            return examples
        return examples.take(self._filter(texts, references))

    def _check_extracted(self, references: list[str], where: str) -> None:
        """Refuse references in which no answer is found, and count them if these are only some."""
        if not self.extract or not references:
            return
        try:
            missing = [row for row, text in enumerate(references) if extractor(self.extract)(text) is None]
        except SlowPatternError as slow:
            raise InputError(f"{slow} It was a reference of {where}.") from slow
        if len(missing) == len(references):
            raise InputError(
                f"--data.extract {self.extract} finds no answer in any reference of {where}, the first of which is "
                f"{references[0][:200]!r}. Correct it, or --data.target."
            )
        if missing:
            notice(
                "no-answer-found",
                f"--data.extract {self.extract} finds no answer in {len(missing)} of {len(references)} references of "
                f"{where}, the first in row {missing[0]} (counted from 0): every answer to these counts as wrong.",
            )

    def _filter(self, texts: list[str], references: list[str]) -> Tensor:
        """Which pairs ``max_words`` and ``max_ratio`` keep, bool ``(N,)``."""
        words = torch.tensor([[len(t.split()), len(r.split())] for t, r in zip(texts, references, strict=True)])
        longer, shorter = words.amax(1), words.amin(1)
        too_long = uneven = torch.zeros(len(words), dtype=torch.bool)
        if self.max_words is not None:
            too_long = longer > self.max_words
        if self.max_ratio is not None:
            uneven = (longer > self.max_ratio * shorter) & ~too_long
        keep = ~(too_long | uneven)
        if not keep.any():
            raise InputError(
                f"--data.max_words {self.max_words} and --data.max_ratio {self.max_ratio} leave no pair of "
                f"{self.where('train')}. Raise them."
            )
        if not keep.all():
            notice(
                "dropped-pairs",
                f"Of {len(words)} training pairs {int(too_long.sum())} are dropped for over {self.max_words} words, "
                f"{int(uneven.sum())} for a ratio of lengths over {self.max_ratio}.",
            )
        return keep

    def _pairs(self, split: str) -> tuple[list[str], list[str] | None]:
        import pandas as pd

        path = self.files[split]
        if self.hub is None and suffix_of(path) not in SUFFIXES:
            return self._parallel(split)
        frame = read_frame(path, self.hub, self.hub_config)
        if "translation" in frame and self.source not in frame:
            rows = [row if isinstance(row, dict) else {} for row in frame["translation"]]
            if rows and not all(side in rows[0] for side in (self.source, self.target)):
                raise InputError(
                    f"{self.where(split)} translates between {list(rows[0])}, not '{self.source}' and '{self.target}'. "
                    "Set --data.source and --data.target."
                )
            frame = pd.DataFrame({side: [row.get(side) for row in rows] for side in (self.source, self.target)})
        sides: list[list[str]] = []
        for name, column in (("source", self.source), ("target", self.target)):
            if name == "target" and split == "test" and column_place(list(frame.columns), column) is None:
                return sides[0], None
            texts = texts_of(frame, [column], self.where(split), empty=True, option=f"--data.{name}")
            sides.append([text for (text,) in texts])
        return sides[0], sides[1]

    def _parallel(self, split: str) -> tuple[list[str], list[str] | None]:
        source, target = self._side(split, "source"), self._side(split, "target")
        assert source is not None
        texts = read_lines(source)
        if target is None:
            return texts, None
        references = read_lines(target)
        if len(texts) != len(references):
            raise InputError(
                f"'{source}' has {len(texts)} lines and '{target}' {len(references)}, but lines "
                "are paired by their numbers. Give files of equal length."
            )
        return texts, references

    def _side(self, split: str, side: Literal["source", "target"]) -> Path | None:
        """One of two parallel files, which may be compressed; ``None`` if a test set has no target."""
        path = f"{self.files[split]}.{self.source if side == 'source' else self.target}"
        for candidate in (Path(path), Path(f"{path}.gz")):
            if candidate.is_file():
                return candidate
        if (split, side) == ("test", "target"):
            return None
        raise InputError(
            f"There is no file '{path}', nor one with .gz. Set --data.{side} to the suffix, or give a "
            f"{', '.join(SUFFIXES)} file."
        )
