"""Labelled texts, of one column or several, from local files or the hub."""

from typing import Any, Literal

from elang.data.columns import given_files, read_frame, texts_of
from elang.data.examples import Examples
from elang.data.labels import class_names, label_index, label_numbers, label_values
from elang.data.prompted import PromptedData
from elang.errors import InputError
from elang.tasks.kind import KINDS
from elang.tasks.text_task import TextTask, escaped


class TextClassificationData(PromptedData):
    """Text classification or regression from local files (CSV, TSV, JSONL, parquet) or a data set on the hub.

    Args:
        train: Training file, or the name of the hub's split.
        validation: Evaluation file or split.
        test: The same for ``elang test``.
        text: The text column, or two for pairs, or more: an encoder then reads the first one and, as its second text,
            all others with their names; a prompt can name each.
        label: The label column.
        label_names: Class names in order; labels may then also be their numbers, from 0. By default the distinct
            labels of the training file, sorted.
        hub: Data set on the hub, ``owner/name@revision``; the files above are then names of its splits.
        hub_config: Its configuration.
        problem: ``classification``, or ``regression`` where the label is a number.
        prompt: Template of a text-to-text or language model's input, ``"review: {text}"``; by default each column with
            its name and, with ``label_words``, the name of the label column.
        answers: What a text-to-text or language model writes for each class, by default the class names; in a
            regression the numbers that it can write.
        options: Those of :class:`elang.data.prompted.PromptedData`.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        text: list[str] | str = "text",
        label: str = "label",
        label_names: list[str] | None = None,
        hub: str | None = None,
        hub_config: str | None = None,
        problem: Literal["classification", "regression"] = "classification",
        prompt: str | None = None,
        answers: list[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(given_files(train, validation, test), **options)
        self.text = [text] if isinstance(text, str) else text
        if not self.text or len(set(self.text)) < len(self.text):
            raise InputError(f"--data.text must name one column of texts or several, but it is {self.text}.")
        self.label, self._names_given, self._label_names = label, label_names is not None, label_names
        self.hub, self.hub_config, self.problem, self.prompt, self.answers = hub, hub_config, problem, prompt, answers
        # The label's name asks for it. Text-to-text models were trained without.
        self._cue = f"\n{label}:" if self.words else ""
        if self.label_words is None and (prompt is not None or answers is not None):
            self.words = self.words or "prompt"
        self._frames: dict[str, Any] = {}

    def _frame(self, source: str) -> Any:
        if source not in self._frames:
            self._frames[source] = read_frame(self.files[source], self.hub, self.hub_config)
        return self._frames[source]

    def _class_names(self) -> list[str]:
        if self._label_names is None:
            source = next(iter(self.files))
            where = self.where(source)
            self._label_names = class_names(label_values(self._frame(source), self.label, where), where)
        if len(self._label_names) < 2 or len(set(self._label_names)) < len(self._label_names):
            raise InputError(
                f"Classification needs at least 2 distinct labels, but the label names are {self._label_names}. Set "
                "--data.label to the label column, or --data.label_names."
            )
        return self._label_names

    @property
    def zero_shot_task(self) -> TextTask:
        """What the task asks."""
        has_classes = KINDS[self.problem].has_classes
        names = self._class_names() if has_classes else [self.label]
        # A column may have any name; a template's field may not.
        fields = self.text
        if not all(name.isidentifier() for name in self.text):
            fields = [f"text{number}" for number in range(1, len(self.text) + 1)]
        segments = [f"{{{name}}}" for name in fields]
        if len(segments) > 2:
            # An encoder takes two texts.
            segments[1:] = [" ".join(f"{name}: {{{name}}}" for name in fields[1:])]
        answers = self.answers or (names if has_classes else [])
        if has_classes and len(answers) != len(names):
            raise InputError(
                f"There are {len(names)} classes, {names}, but --data.answers has {len(answers)}: {answers}. Give one "
                "for each."
            )
        task = TextTask(
            names,
            self.problem,
            fields,
            segments=segments,
            prompt=self.prompt or " ".join(f"{name}: {{{name}}}" for name in fields) + escaped(self._cue),
            answers=answers,
            qualities=["accuracy"] if has_classes else ["pearson", "spearman"],
        )
        return TextTask.of(names, task.plain())

    @property
    def text_columns(self) -> list[str]:
        """The text columns of a file without labels."""
        return self.text

    def title(self, source: str) -> str:
        """The file or data set, with the label column."""
        return f"{super().title(source)} ({self.label})"

    def read(self, source: str) -> Examples:
        """All examples of one source, in its order."""
        frame, where = self._frame(source), self.where(source)
        texts = texts_of(frame, self.text, where)
        values = label_values(frame, self.label, where)
        if KINDS[self.problem].has_classes:
            label = label_index(values, self._class_names(), where, "notice" if self._names_given else "refuse")
        else:
            label = label_numbers(values, where)
        return Examples.of(texts, label)
