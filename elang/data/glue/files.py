"""The benchmarks' own files, brought into the rows that the hub's data sets have."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elang.data.glue.task import Row, Task
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
