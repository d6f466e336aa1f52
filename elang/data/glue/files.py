"""The files of the benchmarks: their rows, and the submissions that they take."""

import json
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.data.glue.task import MOST_CHOICES, Row, Task
from elang.errors import InputError
from elang.notices import notice
from elang.tables import file_lines

STEMS = {"train": ("train",), "validation": ("dev", "val", "validation"), "test": ("test",)}
_ENDINGS = (".tsv", ".jsonl", ".data.txt")


def find_files(task: Task, folder: str | Path) -> dict[str, str]:
    """The files of a task under the benchmark's folder, or in the task's own.

    Raises:
        InputError: If there are none, naming where they were looked for.
    """
    root = Path(folder)
    root = root / task.folder if (root / task.folder).is_dir() else root
    found = {}
    for split, usual in STEMS.items():
        stems = (task.stems[split],) if split in task.stems else usual
        paths = [root / f"{stem}{ending}" for stem in stems for ending in _ENDINGS]
        if there := [str(path) for path in paths if path.is_file()]:
            found[split] = there[0]
    if not found:
        raise InputError(
            f"There are no files of {task.name} in '{folder}': neither {task.folder}/train.tsv nor train.jsonl, nor "
            "the others. Give the folder that holds the benchmark's own folders, or leave it out to use the hub."
        )
    return found


def read_rows(task: Task, split: str, path: str) -> list[Row]:
    """Read one of the benchmark's own files.

    Raises:
        InputError: If it cannot be read, or a row has too few or too many fields; with the line's number. Where
            the benchmark's own files are known to have such rows, all but a test set's, whose answers are counted, go
            as they do on the hub: short ones are left out, with a warning, of long ones the end.
    """
    lines = [line.rstrip("\n").removesuffix("\r") for line in file_lines(path)]
    if path.endswith(".data.txt"):
        return _wic_rows(path, lines)
    if path.endswith(".jsonl"):
        return [row for number, line in enumerate(lines, 1) for row in _json_rows(path, number, line)]
    first = 0
    names: tuple[str, ...] = task.header
    if not names or split == "test":
        names, first = tuple(lines[0].split("\t")) if lines else (), 1
    names = tuple(task.columns.get(name, name) for name in names)
    rows: list[Row] = []
    broken = []
    for number, line in enumerate(lines[first:], first + 1):
        values = line.split("\t")
        if len(values) < len(names):
            broken.append(number)
        if len(values) != len(names) and (split == "test" or not task.broken_rows):
            raise InputError(
                f"Line {number} of '{path}' has {len(values)} fields where {len(names)} are needed: {names}. Mend "
                "or remove the line."
            )
        if len(values) >= len(names):
            rows.append(dict(zip(names, values, strict=False)))
    if broken:
        notice(
            "broken-lines",
            f"{len(broken)} broken lines of '{path}' were left out, as on the hub; first line {broken[0]}.",
        )
    return rows


def _wic_rows(path: str, lines: list[str]) -> list[Row]:
    """WiC as its authors give it: a file of pairs, and one of T and F beside it."""
    gold = Path(path.removesuffix(".data.txt") + ".gold.txt")
    labels = gold.read_text("utf-8").split() if gold.is_file() else [""] * len(lines)
    if len(labels) != len(lines):
        raise InputError(f"'{path}' has {len(lines)} lines, but '{gold}' has {len(labels)} labels. Fetch both anew.")
    rows: list[Row] = []
    for number, (line, label) in enumerate(zip(lines, labels, strict=True), 1):
        values = line.split("\t")
        if len(values) != 5:
            raise InputError(f"Line {number} of '{path}' has {len(values)} fields where 5 are needed. Mend the line.")
        known = {"label": {"T": "True", "F": "False"}.get(label, label)} if label else {}
        rows.append({"word": values[0], "sentence1": values[3], "sentence2": values[4], "idx": number - 1, **known})
    return rows


def _json_rows(path: str, number: int, line: str) -> Iterator[Row]:
    """One line of SuperGLUE's files, its nested parts laid flat as the hub has them."""
    try:
        row = json.loads(line)
        passage = row.get("passage")
        if "qas" in row:
            text = passage["text"]
            entities = sorted({text[e["start"] : e["end"] + 1] for e in passage["entities"]})
            for query in row["qas"]:
                answers = {"answers": sorted({a["text"] for a in query["answers"]})} if "answers" in query else {}
                index = {"passage": row["idx"], "query": query["idx"]}
                yield {"passage": text, "query": query["query"], "entities": entities, "idx": index, **answers}
        elif isinstance(passage, dict):
            for question in passage["questions"]:
                for answer in question["answers"]:
                    index = {"paragraph": row["idx"], "question": question["idx"], "answer": answer["idx"]}
                    known = {"label": answer["label"]} if "label" in answer else {}
                    texts = {"question": question["question"], "answer": answer["text"], "idx": index}
                    yield {"paragraph": passage["text"], **texts, **known}
        elif "target" in row:
            yield _mended({**{name: value for name, value in row.items() if name != "target"}, **row["target"]})
        else:
            yield row
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"Line {number} of '{path}' is no row of the benchmark ({type(error).__name__}: {error}). Mend the line."
        ) from error


def _mended(row: dict[str, Any]) -> Row:
    """WSC's row with spans that are in its text, which the hub's ``wsc.fixed`` mends in this way."""
    for index, name in (("span1_index", "span1_text"), ("span2_index", "span2_text")):
        said = row[name]
        if said in row["text"] or said in _UNMENDED:
            continue
        if "theyscold" in said:
            row["span2_index"] = 10
        first = row["text"].split()[row[index]]
        said = (said[0].lower() if first[0].islower() else said[0].upper()) + said[1:]
        row[name] = said.rstrip(".").replace("\n", " ")
    return row


# Other words stand between theirs.
_UNMENDED = ("Kamenev and Zinoviev", "Kamenev, Zinoviev, and Stalin")


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
