"""Data modules that a language model may be asked about: the options of its prompt, and examples for it."""

from dataclasses import replace
from typing import Any

from elang.data.examples import Examples, content_key
from elang.data.module import TextData
from elang.errors import InputError
from elang.tasks.kinds import answer_values
from elang.tasks.text_task import TextTask


class PromptedData(TextData):
    """Texts of a task that may be put to a language model. A subclass has :attr:`zero_shot_task` and :meth:`read`.

    Args:
        files: The file of each of ``train``, ``validation`` and ``test``.
        label_words: Whether a decoder-only language model answers in the task's words, scored by its language-model
            head after the prompt, or by a head on its last token; by default in words if ``chat`` or ``examples``, or
            a prompt or answers of your own, are given.
        chat: Give it the prompt as a message, by its tokenizer's chat template.
        system: The system text of that chat.
        examples: Number of answered examples in front of the prompt. They are drawn from the training file without its
            held-out parts, of each class equally many, and stay with a model that is trained with them.
        examples_seed: Another number draws other examples.
        drop_overlap: Leave texts that are also in the validation or test file out of the training file.
        options: Those of :class:`elang.data.module.TextData`.
    """

    def __init__(
        self,
        files: dict[str, str],
        label_words: bool | None = None,
        chat: bool = False,
        system: str | None = None,
        examples: int = 0,
        examples_seed: int = 0,
        drop_overlap: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(files, **options)
        self.drop_overlap = drop_overlap
        if label_words is False and (chat or system or examples):
            raise InputError(
                "--data.chat, --data.system and --data.examples ask for label words; leave out --data.label_words "
                "false."
            )
        if system and not chat:
            raise InputError(
                "--data.system is the system text of a chat: set --data.chat true, or write it in the prompt."
            )
        if examples < 0:
            raise InputError(f"--data.examples must be 0 (none) or more, but it is {examples}.")
        if examples and "train" not in files:
            raise InputError(
                f"--data.examples {examples} are drawn from the training file, which is not given. Set --data.train, "
                "or leave --data.examples out: a model that was trained with examples brings its own."
            )
        self.label_words, self.words = label_words, "chat" if chat else "prompt" if label_words or examples else ""
        self.system, self._shots, self._shots_seed = system or "", examples, examples_seed
        self._drawn: list[str] = []

    @property
    def zero_shot_task(self) -> TextTask:
        """What the task asks, without what this class adds: how it is put to a language model."""
        raise NotImplementedError

    @property
    def text_task(self) -> TextTask:
        """What the task asks, and how."""
        task = replace(self.zero_shot_task, label_words=self.words, system=self.system)
        task.check_prompt()
        if self._shots and not self._drawn:
            # While the file is read, which may ask for the task's labels, there are none.
            count, self._shots = self._shots, 0
            try:
                train = self.examples("train")
            finally:
                self._shots = count
            self._drawn = draw_examples(train, task, count, seed=self._shots_seed, where=self.where("train"))
        return replace(task, examples=self._drawn)


def draw_examples(examples: Examples, task: TextTask, count: int, *, seed: int, where: str) -> list[str]:
    """Draw answered examples for a prompt, of each class equally many: filled prompts and their answers by turns.

    What is drawn depends on the texts and the seed alone: not on the order of the rows, nor on the machine. With a
    larger ``count`` the first ones stay the same.

    Raises:
        InputError: If the task has no answers in words, or there are fewer different texts with an answer.
    """
    if not task.kind.generates and not task.answers:
        raise InputError(
            f"--data.examples needs answers in words, which a {task.problem} task of this data does not have: give "
            "--data.answers, or leave it out."
        )
    # Keys are random bits, so it is random which of them are nearest to the seed's.
    order = (examples.key ^ content_key((str(seed),))).argsort(stable=True).tolist()
    known = (~task.kind.is_unknown(examples.label)).tolist()
    rows: dict[int, int] = {}
    for row in order:
        if known[row] and all(map(str.strip, (*examples.texts[row], _answer(examples, task, row)))):
            rows.setdefault(int(examples.key[row]), row)
    # The first one of each class, then the second ones, each in the order drawn.
    drawn: dict[Any, int] = {}
    rounds: list[tuple[int, int, int]] = []
    for row in rows.values():
        group = int(examples.label[row]) if task.kind.chooses else 0
        drawn[group] = drawn.get(group, -1) + 1
        rounds.append((drawn[group], len(rounds), row))
    if len(rounds) < count:
        raise InputError(
            f"--data.examples {count} is more than the {len(rounds)} different training texts with an answer in "
            f"{where}, whose held-out parts do not count. Ask for fewer."
        )
    chosen = [row for _, _, row in sorted(rounds)[:count]]
    return [part for row in chosen for part in (task.prompt_text(examples.texts[row]), _answer(examples, task, row))]


def _answer(examples: Examples, task: TextTask, row: int) -> str:
    """The right answer to an example, in words."""
    if examples.references is not None:
        return examples.references[row]
    if task.kind.chooses:
        return task.answers[int(examples.label[row])]
    value = float(examples.label[row])
    nearest = min(zip(answer_values(task.answers), task.answers, strict=True), key=lambda pair: abs(pair[0] - value))
    return nearest[1]
