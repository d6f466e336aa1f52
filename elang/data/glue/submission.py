"""What ReCoRD's candidates earn, and the files that a benchmark takes as a submission."""

import json
import string
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.data.glue.task import MOST_CHOICES, Row, Task


def answer_words(text: str) -> list[str]:
    """The words of an answer as ReCoRD's and SQuAD's evaluation compares them.

    >>> answer_words("The  U.S. Army")
    ['us', 'army']
    """
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def answer_f1(said: str, right: str) -> float:
    """F1 of the words of an answer.

    >>> answer_f1("Barack Obama", "Obama")
    0.6666666666666666
    """
    a, b = answer_words(said), answer_words(right)
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b)) if common else 0.0


def answer_rewards(rows: list[Row]) -> tuple[Tensor, dict[str, Tensor]]:
    """ReCoRD's labels, the first right candidate of each row, and what choosing each candidate earns.

    Returns:
        Labels ``(N,)``, -1 where no answer is known; ``answer_f1`` and ``answer_exact``, float32 ``(N, K)``: the best
        over all right answers.
    """
    label = torch.full((len(rows),), -1)
    f1, exact = torch.zeros(2, len(rows), MOST_CHOICES).unbind(0)
    for i, row in enumerate(rows):
        right = list(row.get("answers", ()))
        for k, said in enumerate(row["entities"][:MOST_CHOICES] if right else ()):
            f1[i, k] = max(answer_f1(said, r) for r in right)
            exact[i, k] = max(answer_words(said) == answer_words(r) for r in right)
        if right:
            label[i] = int(f1[i].argmax())
    return label, {"answer_f1": f1, "answer_exact": exact}


def write_submission(task: Task, rows: list[Row], answers: list[str | float], path: str | Path) -> None:
    """Write answers to a test split in the form that the benchmark takes.

    Args:
        task: Whose.
        rows: Of the test split, :meth:`TaskData.rows`.
        answers: A label's name for each, the chosen text (ReCoRD) or the value (STS-B).
        path: The file.
    """
    from elang.files import written_aside

    said: list[Any] = list(answers)
    if task.submitted in ("numbers", "nested"):
        said = [task.label_names.index(str(a)) for a in answers]
    elif task.submitted == "lower":
        said = [str(a).lower() for a in answers]
    elif task.submitted == "values":
        said = [f"{min(5.0, max(0.0, float(a))):.3f}" for a in answers]
    with written_aside(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        if task.benchmark == "glue":
            file.write("index\tprediction\n")
            for i, (row, answer) in enumerate(zip(rows, said, strict=True)):
                file.write(f"{row.get('index', row.get('id', row.get('idx', i)))}\t{answer}\n")
            return
        if task.submitted == "nested":
            lines: list[Any] = _nested(rows, said)
        elif task.submitted == "text":
            lines = [{"idx": row["idx"]["query"], "label": a} for row, a in zip(rows, said, strict=True)]
        else:
            lines = [{"idx": row["idx"], "label": a} for row, a in zip(rows, said, strict=True)]
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _nested(rows: list[Row], said: list[Any]) -> list[Any]:
    """MultiRC's form: answers within questions within passages."""
    passages: dict[Any, dict[Any, list[Any]]] = {}
    for row, label in zip(rows, said, strict=True):
        index = row["idx"]
        question = passages.setdefault(index["paragraph"], {}).setdefault(index["question"], [])
        question.append({"idx": index["answer"], "label": label})
    return [
        {"idx": p, "passage": {"questions": [{"idx": q, "answers": a} for q, a in questions.items()]}}
        for p, questions in passages.items()
    ]
