"""What a task asks, and how texts become a model's input: segments for an encoder, a prompt for text-to-text."""

import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from string import Formatter
from typing import Any, Literal

from elang.errors import InputError, listed
from elang.tasks.kind import KINDS, Kind

Problem = Literal["classification", "choice", "regression", "sequence"]
# Exact types: with looser ones the command line would read "{text}" or "True" as YAML.
TaskFields = dict[str, str | list[str]]
_OPTIONAL = ("label_words", "system", "examples", "extract")


@dataclass(frozen=True)
class TextTask:
    """A task on texts, as plain values for checkpoints and ``elang.json``.

    Attributes:
        label_names: Class names in order; one name for a regression; for ``choice`` the candidates' numbers or names.
        problem: The kind of task: ``classification``, ``choice``, ``regression`` or ``sequence`` (generated texts).
        fields: Names of an example's texts.
        segments: One or two templates like ``"{question}"``: an encoder's text or pair of texts. In a ``choice`` task
            there is one input per candidate, which ``{choice}`` stands for.
        prompt: Template of a text-to-text model's input.
        answers: A text-to-text model's answer for each label; for a regression the values that it can answer, as
            strings; empty where the candidates themselves are the answers.
        qualities: The task's metrics; the first one chooses thresholds.
        choice_fields: The fields with the candidates of a ``choice`` task; empty if each example has its own.
        languages: Codes of the source and the target language for multilingual models.
        label_words: How a decoder-only language model is asked for ``answers``: after the ``prompt`` alone, or with it
            as a message of a ``chat``; empty: it does not answer in words, but by a head on its last token.
        system: The system text of a chat; empty: none.
        examples: What a language model is shown in front of the prompt: filled prompts and their answers, by turns.
        extract: How the answer is found in a generated text (:mod:`elang.tasks.extraction`); empty: it is the text.
    """

    label_names: list[str]
    problem: Problem = "classification"
    fields: list[str] = field(default_factory=lambda: ["text"])
    segments: list[str] = field(default_factory=lambda: ["{text}"])
    prompt: str = "{text}"
    answers: list[str] = field(default_factory=list)
    qualities: list[str] = field(default_factory=lambda: ["accuracy"])
    choice_fields: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    label_words: str = ""
    system: str = ""
    examples: list[str] = field(default_factory=list)
    extract: str = ""

    @classmethod
    def of(cls, label_names: list[str], task: TaskFields | None = None) -> "TextTask":
        """Rebuild a task from :meth:`plain`; by default a classification of one text whose answers are the labels.

        A template that names an unknown field raises an ``InputError``.
        """
        values: dict[str, Any] = {**(task or {"answers": label_names}), "label_names": label_names}
        rebuilt = cls(**values)
        blanks = dict.fromkeys([*rebuilt.fields, "choice"], "")
        for template in (*rebuilt.segments, rebuilt.prompt):
            try:
                template.format(**blanks)
            except (KeyError, IndexError, ValueError) as error:
                raise InputError(
                    f"The template '{template}' cannot be filled ({type(error).__name__}: {error}); its fields are "
                    f"{', '.join('{' + name + '}' for name in rebuilt.fields)}."
                ) from error
        return rebuilt

    def plain(self) -> TaskFields:
        """Plain values, from which :meth:`of` rebuilds the task."""
        # Without what only some tasks have, they are those of earlier versions.
        return {name: value for name, value in asdict(self).items() if value or name not in _OPTIONAL}

    @property
    def kind(self) -> Kind:
        """The kind of task, with all behaviour that depends on it."""
        return KINDS[self.problem]

    @property
    def num_outputs(self) -> int:
        """Number of outputs of an encoder's head for an input."""
        return self.kind.num_outputs(self.label_names)

    def choices_of(self, texts: list[tuple[str, ...]]) -> list[tuple[str, ...]] | None:
        """Each example's candidates from the fields; ``None`` if no fields are candidates."""
        places = [self.fields.index(name) for name in self.choice_fields]
        return [tuple(row[i] for i in places) for row in texts] if places else None

    @cached_property
    def _indices(self) -> list[int] | None:
        """The index of each segment's text, if all templates are single fields."""
        index = {f"{{{name}}}": i for i, name in enumerate(self.fields)}
        single = not self.kind.has_candidates and all(template in index for template in self.segments)
        return [index[template] for template in self.segments] if single else None

    def segment_texts(self, texts: tuple[str, ...], choices: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        """The encoder inputs of one example: one, or one for each candidate.

        >>> TextTask(["a", "b"], fields=["q", "p"], segments=["{p}", "{q}"]).segment_texts(("why ?", "so."))
        [('so.', 'why ?')]
        """
        if self._indices is not None and len(texts) == len(self.fields):
            return [tuple([texts[i] for i in self._indices])]
        values = dict(zip(self.fields, texts, strict=True))
        if not self.kind.has_candidates:
            return [tuple(template.format(**values) for template in self.segments)]
        return [tuple(template.format(choice=c, **values) for template in self.segments) for c in choices]

    def prompt_text(self, texts: tuple[str, ...]) -> str:
        """The text-to-text input of one example."""
        return self.prompt.format(**dict(zip(self.fields, texts, strict=True)))

    @cached_property
    def prompt_fields(self) -> list[str]:
        """The fields that the prompt has placeholders for."""
        names = [re.split(r"[.\[]", name)[0] for _, name, _, _ in Formatter().parse(self.prompt) if name]
        return [name for name in self.fields if name in names]

    @property
    def example_pairs(self) -> list[tuple[str, str]]:
        """The examples, each a filled prompt and its answer."""
        return list(zip(self.examples[::2], self.examples[1::2], strict=True))

    @property
    def next_example(self) -> str:
        """What ends the answer of a model that goes on to write examples; empty in a chat, and without examples."""
        if not self.examples or self.label_words == "chat":
            return ""
        return "\n\n" + next(literal for literal, _, _, _ in Formatter().parse(self.prompt)).rstrip(" ")

    def check_prompt(self) -> None:
        """Raise an ``InputError`` if the prompt has no placeholder: all texts would be asked alike."""
        if not self.prompt_fields:
            names = " or ".join(f"{{{name}}}" for name in self.fields)
            raise InputError(f"The prompt '{self.prompt}' has no place for a text: put {names} into --data.prompt.")


def escaped(text: str) -> str:
    """A template of this text."""
    return text.replace("{", "{{").replace("}", "}}")


def align_labels(theirs: list[str], ours: list[str], who: str, whose: str = "the data") -> list[int]:
    """The index of each of ``ours`` among ``theirs``: the order of labels may differ, their names may not.

    Raises:
        InputError: If the names differ; it calls the owner of ``theirs`` by ``who``, that of ``ours`` by ``whose``.

    >>> align_labels(["yes", "no"], ["no", "yes"], "the Super")
    [1, 0]
    """
    if sorted(theirs) != sorted(ours):
        raise InputError(
            f"The label names [{listed(theirs)}] of {who} do not match those of {whose} [{listed(ours)}]. "
            "Fine-tune it on these, or rename its labels (id2label in its config.json, or --data.label_names)."
        )
    index = {name: i for i, name in enumerate(theirs)}
    return [index[name] for name in ours]
