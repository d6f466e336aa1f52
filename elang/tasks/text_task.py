"""What a task asks, and how texts become a model's input: segments for an encoder, a prompt for text-to-text."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from elang.errors import InputError, listed
from elang.tasks.kind import KINDS, Kind

Problem = Literal["classification", "choice", "regression", "sequence"]
# Exact types, for the command line would read "{text}" or "True" of a looser one as YAML.
TaskFields = dict[str, str | list[str]]


@dataclass(frozen=True)
class TextTask:
    """A task on texts, as plain values that go into checkpoints and ``elang.json``.

    Attributes:
        label_names: Class names in order; one name for a regression; for ``choice`` the candidates' numbers or names.
        problem: ``classification`` (an encoder has one output a class), ``choice`` (one output a candidate),
            ``regression`` (one output, a value) or ``sequence`` (a text is generated; there are no labels).
        fields: Names of an example's texts.
        segments: One or two templates of them, ``"{question}"``: an encoder's text or pair of texts. In a ``choice``
            task ``{choice}`` stands for the candidate, and there is one input a candidate.
        prompt: Template of a text-to-text model's input.
        answers: What a text-to-text model says for each label; for a regression the strings of the values that it can
            say; none where the candidates themselves are the answers.
        qualities: The task's metrics; the first one chooses thresholds.
        choice_fields: The fields that are the candidates of a ``choice`` task; none where each example brings its own.
        languages: Codes of the source's and the target's language, for models of many languages; or none.
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

    @classmethod
    def of(cls, label_names: list[str], task: TaskFields | None = None) -> "TextTask":
        """Rebuild a task from :meth:`plain`; by default a classification of one text whose answers are the labels.

        Raises:
            InputError: If a template names a field that there is not.
        """
        values: dict[str, Any] = {**(task or {"answers": label_names}), "label_names": label_names}
        found = cls(**values)
        known = dict.fromkeys([*found.fields, "choice"], "")
        for template in (*found.segments, found.prompt):
            try:
                template.format(**known)
            except (KeyError, IndexError, ValueError) as error:
                raise InputError(
                    f"The template '{template}' cannot be filled ({type(error).__name__}: {error}); its fields are "
                    f"{', '.join('{' + name + '}' for name in found.fields)}."
                ) from error
        return found

    def plain(self) -> TaskFields:
        """Plain values, from which :meth:`of` rebuilds it."""
        return asdict(self)

    @property
    def kind(self) -> Kind:
        """The kind of task, with all that depends on it."""
        return KINDS[self.problem]

    @property
    def num_outputs(self) -> int:
        """Outputs of an encoder's head."""
        return self.kind.num_outputs(self.label_names)

    def choices_of(self, texts: list[tuple[str, ...]]) -> list[tuple[str, ...]] | None:
        """The candidates that are among the fields, for each example; ``None`` if none are."""
        places = [self.fields.index(name) for name in self.choice_fields]
        return [tuple(row[i] for i in places) for row in texts] if places else None

    @cached_property
    def _places(self) -> list[int] | None:
        """Which text each segment is, where templates add nothing to them."""
        known = {f"{{{name}}}": place for place, name in enumerate(self.fields)}
        plain = not self.kind.has_candidates and all(template in known for template in self.segments)
        return [known[template] for template in self.segments] if plain else None

    def segment_texts(self, texts: tuple[str, ...], choices: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        """The encoder inputs of one example: one, or one for each candidate.

        >>> TextTask(["a", "b"], fields=["q", "p"], segments=["{p}", "{q}"]).segment_texts(("why ?", "so."))
        [('so.', 'why ?')]
        """
        if self._places is not None and len(texts) == len(self.fields):
            return [tuple([texts[place] for place in self._places])]
        values = dict(zip(self.fields, texts, strict=True))
        if not self.kind.has_candidates:
            return [tuple(template.format(**values) for template in self.segments)]
        return [tuple(template.format(choice=c, **values) for template in self.segments) for c in choices]

    def prompt_text(self, texts: tuple[str, ...]) -> str:
        """The text-to-text input of one example."""
        return self.prompt.format(**dict(zip(self.fields, texts, strict=True)))


def align_labels(theirs: list[str], ours: list[str], who: str, whose: str = "the data") -> list[int]:
    """Return, for each of ``ours``, its place among ``theirs``: label orders differ, names do not.

    Args:
        theirs: Label names of a model or of records.
        ours: Those that they are to be.
        who: Whose the first are, in a message.
        whose: Whose the others are.

    Raises:
        InputError: If the two are not the same set of names.

    >>> align_labels(["yes", "no"], ["no", "yes"], "the Super")
    [1, 0]
    """
    if sorted(theirs) != sorted(ours):
        raise InputError(
            f"The label names [{listed(theirs)}] of {who} do not match those of {whose} [{listed(ours)}]. "
            "Fine-tune it on these, or rename its labels (id2label in its config.json, or --data.label_names)."
        )
    place = {name: i for i, name in enumerate(theirs)}
    return [place[name] for name in ours]
