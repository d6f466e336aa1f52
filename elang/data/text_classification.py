"""Labelled texts or pairs of texts from local files or the hub."""

from typing import Any, Literal

from elang.data.columns import given_files, read_frame, texts_of
from elang.data.examples import Examples
from elang.data.labels import class_names, label_index, label_numbers, label_values
from elang.data.module import TextData
from elang.errors import InputError
from elang.tasks.kind import KINDS
from elang.tasks.text_task import TextTask, escaped, words_asked


class TextClassificationData(TextData):
    """Text classification or regression from local files (CSV, TSV, JSONL, parquet) or a data set on the hub.

    Args:
        train: Training file, or the name of the hub's split.
        validation: Evaluation file or split.
        test: The same for ``elang test``.
        text: The text column, or two for pairs.
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
        label_words: Whether a decoder-only language model answers in these words, scored by its language-model head
            after the prompt, or by a head on its last token; by default in words if ``prompt``, ``answers`` or ``chat``
            are given.
        chat: Give it the prompt as a message, by its tokenizer's chat template.
        system: The system text of that chat.
        options: Those of :class:`elang.data.module.TextData`.
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
        label_words: bool | None = None,
        chat: bool = False,
        system: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(given_files(train, validation, test), **options)
        self.text = [text] if isinstance(text, str) else text
        if len(self.text) not in (1, 2):
            raise InputError(f"A text or a pair of texts can be classified, but --data.text names {self.text}.")
        self.label, self._names_given, self._label_names = label, label_names is not None, label_names
        self.hub, self.hub_config, self.problem, self.prompt, self.answers = hub, hub_config, problem, prompt, answers
        guess = prompt is not None or answers is not None
        self._words, self._system = words_asked(label_words, chat, system, guess=guess)
        # The label's name asks for it. Text-to-text models were trained without.
        self._cue = f"\n{label}:" if label_words or chat else ""
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
    def text_task(self) -> TextTask:
        """What the task asks."""
        has_classes = KINDS[self.problem].has_classes
        names = self._class_names() if has_classes else [self.label]
        # A column may have any name; a template's field may not.
        fields = self.text if all(name.isidentifier() for name in self.text) else ["text1", "text2"][: len(self.text)]
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
            segments=[f"{{{name}}}" for name in fields],
            prompt=self.prompt or " ".join(f"{name}: {{{name}}}" for name in fields) + escaped(self._cue),
            answers=answers,
            qualities=["accuracy"] if has_classes else ["pearson", "spearman"],
            label_words=self._words,
            system=self._system,
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
            label = label_index(values, self.label_names, where, "notice" if self._names_given else "refuse")
        else:
            label = label_numbers(values, where)
        return Examples.of(texts, label)
