"""One task of GLUE or SuperGLUE: its columns, texts and metrics."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from elang.method.quality.registry import QualityName
from elang.tasks.text_task import Problem, TextTask

GLUE = "nyu-mll/glue@bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
SUPERGLUE = "aps/super_glue@3de24cf8022e94f4ee4b9d55a6f539891524d646"
# More candidates than any ReCoRD passage has.
MAX_CANDIDATES = 128
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """One task of a benchmark.

    Attributes:
        name: Such as ``glue/rte``.
        folder: The folder of the task in the benchmark's own download.
        fields: The columns that are an example's texts.
        label_names: In the order of the hub's class indices.
        config: Configuration of the hub's data set; by default the last part of ``name``.
        segments: An encoder's input (:class:`elang.tasks.text_task.TextTask`); by default each field by itself.
        prompt: A text-to-text model's input; by default ``config`` and each field with its name.
        qualities: The benchmark's metrics; the first one chooses thresholds.
        answers: What a text-to-text model says for each label; by default the label names.
        problem: See :class:`elang.tasks.text_task.TextTask`.
        choice_fields: See :class:`elang.tasks.text_task.TextTask`.
        columns: Columns of the benchmark's own files whose name differs from the hub's: ``{theirs: hub's}``.
        header: Column names of training and development files without a header line.
        stems: Names of the benchmark's own files, by split, where they are unusual.
        splits: Names of the hub's splits where they are unusual.
        prepare: Computes the fields from a row whose columns are not the fields.
        broken_rows: Leave out (and count) rows with too few fields: the benchmark's own files have some.
        grouped_by: Examples with equal values in these fields (all questions about one passage) stay on one side of the
            routing slice.
        submitted: What a submission has for each example: the label's name, its number, its name in lower case, a
            value, the text of ReCoRD's chosen candidate, or numbers nested by passage and question (MultiRC).
        trained_on: The task whose models answer this one; empty if its own do.
    """

    name: str
    folder: str
    fields: tuple[str, ...]
    _: KW_ONLY
    label_names: tuple[str, ...]
    config: str = ""
    segments: tuple[str, ...] = ()
    prompt: str = ""
    qualities: tuple[QualityName, ...] = ("accuracy",)
    answers: tuple[str, ...] | None = None
    problem: Problem = "classification"
    choice_fields: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    header: tuple[str, ...] = ()
    stems: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Row], Row] | None = None
    broken_rows: bool = False
    grouped_by: tuple[str, ...] = ()
    submitted: Literal["names", "numbers", "lower", "values", "text", "nested"] = "names"
    trained_on: str = ""

    @property
    def benchmark(self) -> str:
        """``glue`` or ``superglue``."""
        return self.name.partition("/")[0]

    @property
    def hub(self) -> str:
        """The hub's data set, at its pinned revision."""
        return GLUE if self.benchmark == "glue" else SUPERGLUE

    @property
    def hub_config(self) -> str:
        """The configuration of the hub's data set."""
        return self.config or self.name.partition("/")[2]

    @property
    def text_task(self) -> TextTask:
        """The task as a :class:`elang.tasks.text_task.TextTask`."""
        return TextTask(
            list(self.label_names),
            self.problem,
            list(self.fields),
            segments=list(self.segments or (f"{{{name}}}" for name in self.fields)),
            prompt=self.prompt or " ".join([self.hub_config, *(f"{name}: {{{name}}}" for name in self.fields)]),
            answers=list(self.label_names if self.answers is None else self.answers),
            qualities=list(self.qualities),
            choice_fields=list(self.choice_fields),
        )


def mark_spans(row: Row) -> Row:
    """WSC's text with the noun in ``*`` and the pronoun in ``#``, as the T5 library marks them."""
    words = str(row["text"]).split(" ")
    spans = [(int(row[f"span{k}_index"]), str(row[f"span{k}_text"]), mark) for k, mark in ((1, "*"), (2, "#"))]
    for start, span, mark in sorted(spans, reverse=True):
        end = start + len(span.split(" "))
        marked = " ".join(words[start:end])
        # Punctuation that is attached to the last word stays outside.
        size = len(span) if marked.lower().startswith(span.lower()) else len(marked)
        words[start:end] = [mark, marked[:size], mark + marked[size:]]
    return {**row, "marked": " ".join(words)}


def strip_markup(row: Row) -> Row:
    """MultiRC's passage without the HTML that numbers its sentences."""
    passage = str(row["paragraph"]).replace("<br>", " ").replace("<b>", "").replace("</b>", "")
    return {**row, "paragraph": passage}


def join_entities(row: Row) -> Row:
    """ReCoRD's candidates as one text, and its passage without the highlight marks."""
    passage = str(row["passage"])
    for end in ".?!\"'":
        passage = passage.replace(f"{end}\n@highlight\n", f"{end} ")
    return {**row, "entity_list": ", ".join(row["entities"]), "article": passage.replace("\n@highlight\n", ". ")}
