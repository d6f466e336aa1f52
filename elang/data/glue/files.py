"""The benchmarks' own files: reading their rows, and writing submissions."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.data.columns import read_lines
from elang.data.glue.task import MAX_CANDIDATES, Row, Task
from elang.errors import InputError
from elang.files import write_atomically
from elang.method.quality.texts import answer_f1, answer_words
from elang.notices import notice

STEMS = {"train": ("train",), "validation": ("dev", "val", "validation"), "test": ("test",)}
_ENDINGS = (".tsv", ".jsonl", ".data.txt")
# WSC's spans whose words are not adjacent in the text. The hub leaves them as they are.
_SPLIT_SPANS = ("Kamenev and Zinoviev", "Kamenev, Zinoviev, and Stalin")


def find_files(task: Task, folder: str | Path) -> dict[str, str]:
    """The files of a task, by split, in the benchmark's folder or the task's; an ``InputError`` if there are none."""
    root = Path(folder)
    root = root / task.folder if (root / task.folder).is_dir() else root
    files = {}
    for split, usual in STEMS.items():
        stems = (task.stems[split],) if split in task.stems else usual
        paths = [root / f"{stem}{ending}" for stem in stems for ending in _ENDINGS]
        if existing := [str(path) for path in paths if path.is_file()]:
            files[split] = existing[0]
    if not files:
        raise InputError(
            f"There are no files of {task.name} in '{folder}': neither {task.folder}/train.tsv nor train.jsonl, nor "
            "the others. Give the folder that holds the benchmark's own folders, or leave it out to use the hub."
        )
    return files


def read_rows(task: Task, split: str, path: str) -> list[Row]:
    """Read one of the benchmark's own files.

    Where a task has ``broken_rows``, short rows of its training and development files are left out with a notice, and
    long rows lose their end, as on the hub.

    Raises:
        InputError: If the file cannot be read, or another row has too few or too many fields.
    """
    lines = read_lines(path)
    if path.endswith(".data.txt"):
        return _wic_rows(path, lines)
    if path.endswith(".jsonl"):
        return [row for number, line in enumerate(lines, 1) for row in _json_rows(path, number, line)]
    header, first = list(task.header), 0
    if not header or split == "test":
        header, first = (lines[0].split("\t") if lines else []), 1
    names = [task.columns.get(name, name) for name in header]
    rows: list[Row] = []
    broken = []
    for number, line in enumerate(lines[first:], first + 1):
        values = line.split("\t")
        if len(values) != len(names) and (split == "test" or not task.broken_rows):
            raise InputError(
                f"Line {number} of '{path}' has {len(values)} fields where {len(names)} are needed: {names}. Correct "
                "or remove the line."
            )
        if len(values) < len(names):
            broken.append(number)
        else:
            rows.append(dict(zip(names, values, strict=False)))
    if broken:
        notice(
            "broken-lines",
            f"{len(broken)} broken lines of '{path}' were left out, as on the hub; first line {broken[0]}.",
        )
    return rows


def _wic_rows(path: str, lines: list[str]) -> list[Row]:
    """WiC in its authors' format: a file of pairs, and a file of T and F beside it."""
    gold = Path(path.removesuffix(".data.txt") + ".gold.txt")
    labels = gold.read_text("utf-8").split() if gold.is_file() else [""] * len(lines)
    if len(labels) != len(lines):
        raise InputError(f"'{path}' has {len(lines)} lines, but '{gold}' has {len(labels)} labels. Fetch both again.")
    rows: list[Row] = []
    for i, (line, label) in enumerate(zip(lines, labels, strict=True)):
        values = line.split("\t")
        if len(values) != 5:
            raise InputError(f"Line {i + 1} of '{path}' has {len(values)} fields where 5 are needed. Correct the line.")
        row = {"word": values[0], "sentence1": values[3], "sentence2": values[4], "idx": i}
        rows.append({**row, "label": {"T": "True", "F": "False"}.get(label, label)} if label else row)
    return rows


def _json_rows(path: str, number: int, line: str) -> Iterator[Row]:
    """One line of SuperGLUE's files, with its nested parts flattened as on the hub."""
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
                    label = {"label": answer["label"]} if "label" in answer else {}
                    texts = {"question": question["question"], "answer": answer["text"], "idx": index}
                    yield {"paragraph": passage["text"], **texts, **label}
        elif "target" in row:
            target = row.pop("target")
            yield _with_correct_spans({**row, **target})
        else:
            yield row
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"Line {number} of '{path}' is no row of the benchmark ({type(error).__name__}: {error}). Correct the line."
        ) from error


def _with_correct_spans(row: dict[str, Any]) -> Row:
    """WSC's row with spans that occur in its text, corrected like the hub's ``wsc.fixed``."""
    for index, name in (("span1_index", "span1_text"), ("span2_index", "span2_text")):
        span = row[name]
        if span in row["text"] or span in _SPLIT_SPANS:
            continue
        if "theyscold" in span:
            row["span2_index"] = 10
        first = row["text"].split()[row[index]]
        span = (span[0].lower() if first[0].islower() else span[0].upper()) + span[1:]
        row[name] = span.rstrip(".").replace("\n", " ")
    return row


def answer_rewards(rows: list[Row]) -> tuple[Tensor, dict[str, Tensor]]:
    """ReCoRD's labels, and the reward of choosing each candidate.

    Returns:
        The first right candidate, int64 ``(N,)``, -1 if unknown; and ``answer_f1`` and ``answer_exact``, float32
        ``(N, K)``, each the best over all right answers.
    """
    label = torch.full((len(rows),), -1)
    f1, exact = torch.zeros(2, len(rows), MAX_CANDIDATES).unbind(0)
    for i, row in enumerate(rows):
        references = list(row.get("answers", ()))
        if not references:
            continue
        for k, candidate in enumerate(row["entities"][:MAX_CANDIDATES]):
            f1[i, k] = max(answer_f1(candidate, reference) for reference in references)
            exact[i, k] = max(answer_words(candidate) == answer_words(reference) for reference in references)
        label[i] = int(f1[i].argmax())
    return label, {"answer_f1": f1, "answer_exact": exact}


def write_submission(task: Task, rows: list[Row], answers: list[str | float], path: str | Path) -> None:
    """Write answers to a test split, in the benchmark's submission format.

    ``rows`` are from :meth:`elang.data.benchmarks.TaskData.rows`. An answer is a label's name, the chosen text (ReCoRD)
    or a value (STS-B).
    """
    values: list[Any] = list(answers)
    if task.submitted in ("numbers", "nested"):
        values = [task.label_names.index(str(answer)) for answer in answers]
    elif task.submitted == "lower":
        values = [str(answer).lower() for answer in answers]
    elif task.submitted == "values":
        values = [f"{min(5.0, max(0.0, float(answer))):.3f}" for answer in answers]
    with write_atomically(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        if task.benchmark == "glue":
            file.write("index\tprediction\n")
            for i, (row, value) in enumerate(zip(rows, values, strict=True)):
                file.write(f"{row.get('index', row.get('id', row.get('idx', i)))}\t{value}\n")
            return
        if task.submitted == "nested":
            lines = _nested(rows, values)
        else:
            ids = [row["idx"]["query"] if task.submitted == "text" else row["idx"] for row in rows]
            lines = [{"idx": idx, "label": value} for idx, value in zip(ids, values, strict=True)]
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _nested(rows: list[Row], labels: list[int]) -> list[dict[str, Any]]:
    """MultiRC's format: answers within questions within passages."""
    passages: dict[Any, dict[Any, list[Any]]] = {}
    for row, label in zip(rows, labels, strict=True):
        index = row["idx"]
        answers = passages.setdefault(index["paragraph"], {}).setdefault(index["question"], [])
        answers.append({"idx": index["answer"], "label": label})
    return [
        {"idx": p, "passage": {"questions": [{"idx": q, "answers": a} for q, a in questions.items()]}}
        for p, questions in passages.items()
    ]
