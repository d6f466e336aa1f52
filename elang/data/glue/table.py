"""The task table: all of GLUE and SuperGLUE, one row a task.

Texts are joined for text-to-text models, and answered, as in the T5 library; what departs from it is said at the row.
Column names are those of the hub's data sets, into which :mod:`elang.data.glue.files` brings the benchmarks' own files.
"""

import difflib
from collections.abc import Sequence
from dataclasses import replace

from elang.data.glue.task import MOST_CHOICES, Task, join_entities, mark_spans, strip_markup
from elang.errors import InputError

_NLI = ("entailment", "not_entailment")
_NO_YES = ("False", "True")
_MNLI = Task(
    "glue/mnli",
    "MNLI",
    "mnli",
    ("premise", "hypothesis"),
    ("{premise}", "{hypothesis}"),
    "mnli hypothesis: {hypothesis} premise: {premise}",
    ("entailment", "neutral", "contradiction"),
    ("accuracy",),
    columns={"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},
    stems={"validation": "dev_matched", "test": "test_matched"},
    splits={"validation": "validation_matched", "test": "test_matched"},
    submission="MNLI-m.tsv",
)
_ROWS = [
    Task(
        "glue/cola",
        "CoLA",
        "cola",
        ("sentence",),
        ("{sentence}",),
        "cola sentence: {sentence}",
        ("unacceptable", "acceptable"),
        ("matthews",),
        header=("source", "label", "mark", "sentence"),
        submission="CoLA.tsv",
        submitted="numbers",
    ),
    Task(
        "glue/sst2",
        "SST-2",
        "sst2",
        ("sentence",),
        ("{sentence}",),
        "sst2 sentence: {sentence}",
        ("negative", "positive"),
        ("accuracy",),
        submission="SST-2.tsv",
        submitted="numbers",
    ),
    Task(
        "glue/mrpc",
        "MRPC",
        "mrpc",
        ("sentence1", "sentence2"),
        ("{sentence1}", "{sentence2}"),
        "mrpc sentence1: {sentence1} sentence2: {sentence2}",
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
        columns={"Quality": "label", "#1 String": "sentence1", "#2 String": "sentence2"},
        submission="MRPC.tsv",
        submitted="numbers",
    ),
    Task(
        "glue/stsb",
        "STS-B",
        "stsb",
        ("sentence1", "sentence2"),
        ("{sentence1}", "{sentence2}"),
        "stsb sentence1: {sentence1} sentence2: {sentence2}",
        ("similarity",),
        ("pearson", "spearman"),
        answers=tuple(f"{i / 5:.1f}" for i in range(26)),
        problem="regression",
        columns={"score": "label"},
        submission="STS-B.tsv",
        submitted="values",
    ),
    Task(
        "glue/qqp",
        "QQP",
        "qqp",
        ("question1", "question2"),
        ("{question1}", "{question2}"),
        "qqp question1: {question1} question2: {question2}",
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        columns={"is_duplicate": "label"},
        broken_rows=True,
        submission="QQP.tsv",
        submitted="numbers",
    ),
    _MNLI,
    replace(
        _MNLI,
        name="glue/mnli-mm",
        stems={"validation": "dev_mismatched", "test": "test_mismatched"},
        splits={"validation": "validation_mismatched", "test": "test_mismatched"},
        submission="MNLI-mm.tsv",
        trained_on="glue/mnli",
    ),
    Task(
        "glue/qnli",
        "QNLI",
        "qnli",
        ("question", "sentence"),
        ("{question}", "{sentence}"),
        "qnli question: {question} sentence: {sentence}",
        _NLI,
        ("accuracy",),
        submission="QNLI.tsv",
    ),
    Task(
        "glue/rte",
        "RTE",
        "rte",
        ("sentence1", "sentence2"),
        ("{sentence1}", "{sentence2}"),
        "rte sentence1: {sentence1} sentence2: {sentence2}",
        _NLI,
        ("accuracy",),
        submission="RTE.tsv",
    ),
    Task(
        "glue/wnli",
        "WNLI",
        "wnli",
        ("sentence1", "sentence2"),
        ("{sentence1}", "{sentence2}"),
        "wnli sentence1: {sentence1} sentence2: {sentence2}",
        ("not_entailment", "entailment"),
        ("accuracy",),
        submission="WNLI.tsv",
        submitted="numbers",
    ),
    Task(
        "superglue/boolq",
        "BoolQ",
        "boolq",
        ("passage", "question"),
        ("{passage}", "{question}"),
        "boolq passage: {passage} question: {question}",
        _NO_YES,
        ("accuracy",),
        whole=("passage",),
        submission="BoolQ.jsonl",
        submitted="lower",
    ),
    Task(
        "superglue/cb",
        "CB",
        "cb",
        ("premise", "hypothesis"),
        ("{premise}", "{hypothesis}"),
        "cb hypothesis: {hypothesis} premise: {premise}",
        ("entailment", "contradiction", "neutral"),
        ("accuracy", "f1_macro"),
        submission="CB.jsonl",
    ),
    Task(
        "superglue/copa",
        "COPA",
        "copa",
        ("premise", "question", "choice1", "choice2"),
        ("{premise} What was the {question}?", "{choice}"),
        "copa choice1: {choice1} choice2: {choice2} premise: {premise} question: {question}",
        ("choice1", "choice2"),
        ("accuracy",),
        problem="choice",
        choice_fields=("choice1", "choice2"),
        submission="COPA.jsonl",
        submitted="numbers",
    ),
    Task(
        "superglue/multirc",
        "MultiRC",
        "multirc",
        ("paragraph", "question", "answer"),
        ("{paragraph}", "{question} {answer}"),
        "multirc question: {question} answer: {answer} paragraph: {paragraph}",
        _NO_YES,
        ("f1", "exact_match"),
        prepare=strip_markup,
        whole=("paragraph",),
        submission="MultiRC.jsonl",
        submitted="nested",
    ),
    # A text-to-text model chooses among the candidates, instead of writing one freely (which --generate does).
    Task(
        "superglue/record",
        "ReCoRD",
        "record",
        ("article", "query", "entity_list"),
        ("{article}", "{query} {choice}"),
        "record query: {query} entities: {entity_list} passage: {article}",
        tuple(str(i) for i in range(MOST_CHOICES)),
        ("answer_f1", "answer_exact"),
        answers=(),
        problem="choice",
        prepare=join_entities,
        whole=("article",),
        submission="ReCoRD.jsonl",
        submitted="text",
    ),
    Task(
        "superglue/rte",
        "RTE",
        "rte",
        ("premise", "hypothesis"),
        ("{premise}", "{hypothesis}"),
        "rte hypothesis: {hypothesis} premise: {premise}",
        _NLI,
        ("accuracy",),
        submission="RTE.jsonl",
    ),
    Task(
        "superglue/wic",
        "WiC",
        "wic",
        ("word", "sentence1", "sentence2"),
        ("{word}: {sentence1}", "{sentence2}"),
        "wic sentence1: {sentence1} sentence2: {sentence2} word: {word}",
        _NO_YES,
        ("accuracy",),
        submission="WiC.jsonl",
        submitted="lower",
    ),
    # The T5 paper generates the noun; we ask whether the marked one is meant, so that there are labels to score.
    Task(
        "superglue/wsc",
        "WSC",
        "wsc.fixed",
        ("marked", "span1_text", "span2_text"),
        ("{marked}", "{span2_text} is {span1_text}"),
        "wsc text: {marked}",
        _NO_YES,
        ("accuracy",),
        prepare=mark_spans,
        submission="WSC.jsonl",
    ),
]
TASKS: dict[str, Task] = {task.name: task for task in _ROWS}


def find_tasks(name: str, more: Sequence[str] = ()) -> list[Task]:
    """The task of a name, or all of a benchmark.

    Args:
        name: Of either.
        more: Further names that are known, for the message.

    Raises:
        InputError: Naming the nearest names.

    >>> [task.name for task in find_tasks("glue/rte")]
    ['glue/rte']
    """
    if name in TASKS:
        return [TASKS[name]]
    found = [task for task in TASKS.values() if task.benchmark == name]
    if found:
        return found
    # A name without a benchmark may be in both.
    whole = {known: known.replace("-", "") for known in (*TASKS, "glue", "superglue", *more)}
    plain = whole if "/" in name else {known: short.rpartition("/")[2] for known, short in whole.items()}
    wanted = name.lower().replace("-", "").replace("_", "")
    close = difflib.get_close_matches(wanted, dict.fromkeys(plain.values()), 3, 0.5)
    near = [known for one in close for known in plain if plain[known] == one]
    raise InputError(
        f"There is no task '{name}'. "
        + (f"Did you mean {' or '.join(near[:3])}? " if near else "")
        + f"There are {', '.join([*TASKS, *more])}."
    )
