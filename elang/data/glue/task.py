"""One row of the task table: a benchmark's task, its columns, its texts and its metrics."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from elang.method.quality.registry import QualityName
from elang.tasks.text_task import Problem, TextTask

GLUE = "nyu-mll/glue@bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
SUPERGLUE = "aps/super_glue@3de24cf8022e94f4ee4b9d55a6f539891524d646"
# More candidates than any ReCoRD passage has.
MOST_CHOICES = 128
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """One task of a benchmark.

    Attributes:
        name: ``glue/rte``.
        folder: Of the benchmark's own files.
        config: Of the hub's data set.
        fields: The columns that are an example's texts.
        segments: An encoder's input, see :class:`elang.tasks.text_task.TextTask`.
        prompt: A text-to-text model's input.
        label_names: In the order of the hub's class indices.
        qualities: The benchmark's metrics; the first one chooses thresholds.
        answers: Of a text-to-text model; by default the label names.
        problem: See :class:`elang.tasks.text_task.TextTask`.
        choice_fields: The same.
        columns: The names that columns have in the benchmark's own files where they differ, ``{theirs: ours}``.
        header: The columns of training and development files that have no header line.
        stems: Names of the benchmark's own files where they are not the usual ones.
        splits: Names of the hub's splits where they are not the usual ones.
        prepare: Turns a row into fields that are not its columns as they are.
        broken_rows: Leave out (and count) rows with too few fields, which the benchmark's own files have.
        whole: The fields whose examples stay together on one side of the routing slice: a passage with all its
            questions.
        submission: Name of the file that the benchmark takes.
        submitted: What it takes for each example: the label's name, its number, its name in lower case, a value, the
            chosen candidate's text, or numbers nested by passage and question. The last two also say that the rows
            are ReCoRD's and MultiRC's.
        trained_on: The task whose models answer this one.
    """

    name: str
    folder: str
    config: str
    fields: tuple[str, ...]
    segments: tuple[str, ...]
    prompt: str
    label_names: tuple[str, ...]
    qualities: tuple[QualityName, ...]
    answers: tuple[str, ...] | None = None
    problem: Problem = "classification"
    choice_fields: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    header: tuple[str, ...] = ()
    stems: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Row], Row] | None = None
    broken_rows: bool = False
    whole: tuple[str, ...] = ()
    submission: str = ""
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
    def text_task(self) -> TextTask:
        """What is asked, without where it is from."""
        names = list(self.label_names)
        return TextTask(
            names,
            self.problem,
            list(self.fields),
            list(self.segments),
            self.prompt,
            names if self.answers is None else list(self.answers),
            list(self.qualities),
            list(self.choice_fields),
        )


def mark_spans(row: Row) -> Row:
    """WSC's text with the noun in ``*`` and the pronoun in ``#``, as the T5 library marks them."""
    words = str(row["text"]).split(" ")
    spans = [(int(row[f"span{k}_index"]), str(row[f"span{k}_text"]), mark) for k, mark in ((1, "*"), (2, "#"))]
    for start, said, mark in sorted(spans, reverse=True):
        end = start + len(said.split(" "))
        marked = " ".join(words[start:end])
        # Punctuation that is written with the last word stays outside.
        size = len(said) if marked.lower().startswith(said.lower()) else len(marked)
        words[start:end] = [mark, marked[:size], mark + marked[size:]]
    return {**row, "marked": " ".join(words)}


def strip_markup(row: Row) -> Row:
    """MultiRC's passage without the HTML that numbers its sentences."""
    passage = str(row["paragraph"]).replace("<br>", " ").replace("<b>", "").replace("</b>", "")
    return {**row, "paragraph": passage}


def join_entities(row: Row) -> Row:
    """ReCoRD's candidates as one text, and its passage without the marks of its highlights."""
    passage = str(row["passage"])
    for end in ".?!\"'":
        passage = passage.replace(f"{end}\n@highlight\n", f"{end} ")
    return {**row, "entity_list": ", ".join(row["entities"]), "article": passage.replace("\n@highlight\n", ". ")}
