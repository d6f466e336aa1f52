"""All tasks of GLUE and SuperGLUE.

Prompts and answers of text-to-text models are those of the T5 library; a comment marks where they differ. Column names
are those of the hub's data sets; :mod:`elang.data.glue.files` brings the benchmarks' own files into the same form.
"""

import difflib
from collections.abc import Sequence
from dataclasses import replace

from elang.data.glue.task import MAX_CANDIDATES, Task, join_entities, mark_spans, strip_markup
from elang.errors import InputError

_NLI = ("entailment", "not_entailment")
_NO_YES = ("False", "True")
_MNLI = Task(
    "glue/mnli",
    "MNLI",
    ("premise", "hypothesis"),
    label_names=("entailment", "neutral", "contradiction"),
    config="mnli",
    prompt="mnli hypothesis: {hypothesis} premise: {premise}",
    columns={"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},
    stems={"validation": "dev_matched", "test": "test_matched"},
    splits={"validation": "validation_matched", "test": "test_matched"},
)
_ALL = [
    Task(
        "glue/cola",
        "CoLA",
        ("sentence",),
        label_names=("unacceptable", "acceptable"),
        qualities=("matthews",),
        header=("source", "label", "mark", "sentence"),
        submitted="numbers",
    ),
    Task("glue/sst2", "SST-2", ("sentence",), label_names=("negative", "positive"), submitted="numbers"),
    Task(
        "glue/mrpc",
        "MRPC",
        ("sentence1", "sentence2"),
        label_names=("not_equivalent", "equivalent"),
        qualities=("accuracy", "f1"),
        columns={"Quality": "label", "#1 String": "sentence1", "#2 String": "sentence2"},
        submitted="numbers",
    ),
    Task(
        "glue/stsb",
        "STS-B",
        ("sentence1", "sentence2"),
        label_names=("similarity",),
        qualities=("pearson", "spearman"),
        answers=tuple(f"{i / 5:.1f}" for i in range(26)),
        problem="regression",
        columns={"score": "label"},
        submitted="values",
    ),
    Task(
        "glue/qqp",
        "QQP",
        ("question1", "question2"),
        label_names=("not_duplicate", "duplicate"),
        qualities=("accuracy", "f1"),
        columns={"is_duplicate": "label"},
        broken_rows=True,
        submitted="numbers",
    ),
    _MNLI,
    replace(
        _MNLI,
        name="glue/mnli-mm",
        stems={"validation": "dev_mismatched", "test": "test_mismatched"},
        splits={"validation": "validation_mismatched", "test": "test_mismatched"},
        trained_on="glue/mnli",
    ),
    Task("glue/qnli", "QNLI", ("question", "sentence"), label_names=_NLI),
    Task("glue/rte", "RTE", ("sentence1", "sentence2"), label_names=_NLI),
    Task("glue/wnli", "WNLI", ("sentence1", "sentence2"), label_names=_NLI[::-1], submitted="numbers"),
    Task(
        "superglue/boolq",
        "BoolQ",
        ("passage", "question"),
        label_names=_NO_YES,
        grouped_by=("passage",),
        submitted="lower",
    ),
    Task(
        "superglue/cb",
        "CB",
        ("premise", "hypothesis"),
        label_names=("entailment", "contradiction", "neutral"),
        prompt="cb hypothesis: {hypothesis} premise: {premise}",
        qualities=("accuracy", "f1_macro"),
    ),
    Task(
        "superglue/copa",
        "COPA",
        ("premise", "question", "choice1", "choice2"),
        label_names=("choice1", "choice2"),
        segments=("{premise} What was the {question}?", "{choice}"),
        prompt="copa choice1: {choice1} choice2: {choice2} premise: {premise} question: {question}",
        problem="choice",
        choice_fields=("choice1", "choice2"),
        submitted="numbers",
    ),
    Task(
        "superglue/multirc",
        "MultiRC",
        ("paragraph", "question", "answer"),
        label_names=_NO_YES,
        segments=("{paragraph}", "{question} {answer}"),
        prompt="multirc question: {question} answer: {answer} paragraph: {paragraph}",
        qualities=("f1", "exact_match"),
        prepare=strip_markup,
        grouped_by=("paragraph",),
        submitted="nested",
    ),
    # A text-to-text model chooses among the candidates, instead of writing one freely (which --generate does).
    Task(
        "superglue/record",
        "ReCoRD",
        ("article", "query", "entity_list"),
        label_names=tuple(str(i) for i in range(MAX_CANDIDATES)),
        segments=("{article}", "{query} {choice}"),
        prompt="record query: {query} entities: {entity_list} passage: {article}",
        qualities=("answer_f1", "answer_exact"),
        answers=(),
        problem="choice",
        prepare=join_entities,
        grouped_by=("article",),
        submitted="text",
    ),
    Task(
        "superglue/rte",
        "RTE",
        ("premise", "hypothesis"),
        label_names=_NLI,
        prompt="rte hypothesis: {hypothesis} premise: {premise}",
    ),
    Task(
        "superglue/wic",
        "WiC",
        ("word", "sentence1", "sentence2"),
        label_names=_NO_YES,
        segments=("{word}: {sentence1}", "{sentence2}"),
        prompt="wic sentence1: {sentence1} sentence2: {sentence2} word: {word}",
        submitted="lower",
    ),
    # The T5 paper generates the noun. We ask whether the marked one is meant, so that there are labels to score.
    Task(
        "superglue/wsc",
        "WSC",
        ("marked", "span1_text", "span2_text"),
        label_names=_NO_YES,
        config="wsc.fixed",
        segments=("{marked}", "{span2_text} is {span1_text}"),
        prompt="wsc text: {marked}",
        prepare=mark_spans,
    ),
]
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def find_tasks(name: str, more: Sequence[str] = ()) -> list[Task]:
    """The task called ``name``, or all tasks of that benchmark; an ``InputError`` suggests names, also of ``more``.

    >>> [task.name for task in find_tasks("glue/rte")]
    ['glue/rte']
    """
    if name in TASKS:
        return [TASKS[name]]
    if tasks := [task for task in TASKS.values() if task.benchmark == name]:
        return tasks
    # Compared without hyphens; a name without a benchmark may be in both.
    spellings = {known: known.replace("-", "") for known in (*TASKS, "glue", "superglue", *more)}
    if "/" not in name:
        spellings = {known: spelling.rpartition("/")[2] for known, spelling in spellings.items()}
    spelling = name.lower().replace("-", "").replace("_", "")
    close = difflib.get_close_matches(spelling, dict.fromkeys(spellings.values()), 3, 0.5)
    near = [known for match in close for known in spellings if spellings[known] == match]
    suggestion = f"Did you mean {' or '.join(near[:3])}? " if near else ""
    raise InputError(f"There is no task '{name}'. {suggestion}There are {', '.join([*TASKS, *more])}.")
