"""The per-example record: what one model answered, once, so that it need not be asked again.

A table with one row an example (parquet, or CSV or JSONL for a model that others run):

| column | type | meaning |
|---|---|---|
| ``split`` | string | the file that the example is from: ``train``, ``validation`` or ``test`` |
| ``id`` | int64 | its row in that file, counted from 0 |
| ``key`` | int64 | hash of its text; optional, checked where present |
| ``logits`` | list of float32 | one a class, in the order of the label names; or instead of it |
| ``prediction`` | string | the answered label's name; a number in a regression; the text that was generated |
| ``tokens`` | int64 | true token length; optional |
| ``flops`` | float64 | cost of the answer; optional |

Of generated texts optionally also ``steps`` (of the decoder, int64), ``scores`` (list of float32, in the order of
:data:`elang.sequence_scores.SEQUENCE_SCORES`), ``score_flops`` (what these cost beside the text, float64) and, for
distillation, ``top_ids`` and ``top_log_probs`` (lists): the most probable tokens at each place of the reference.

Parquet files of ours carry label names and the model's identity in their metadata.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.columns import labels, numbers, read_columns, rows_of, vectors
from elang.data.format import Problem
from elang.errors import InputError
from elang.json_files import OBJECT, TEXT, TEXTS, TRUTH, check_fields, number, parse_object, whole
from elang.outputs import check_output_file, written_aside
from elang.sequence_scores import SEQUENCE_SCORES

METADATA = b"elang"
# Small, for of many files that are merged a page of each column of each is in memory.
PAGES = {"data_page_size": 1 << 16, "dictionary_pagesize_limit": 1 << 16}
_LISTED = 8
# The files that a row's id may count in.
_SPLITS = {"train", "validation", "test", "transfer"}
# Whole numbers or not, the least one, and whether it may be unknown.
_NUMBERS = {
    "key": (True, -math.inf, False),
    "tokens": (True, 0.0, False),
    "steps": (True, 0.0, False),
    "flops": (False, 0.0, True),
    "score_flops": (False, 0.0, True),
}
_COLUMNS = ("split", "id", "prediction", "logits", "scores", "top_ids", "top_log_probs", *_NUMBERS)
# By how much a value and its logit may differ, as a share of the largest one: files are written with few digits.
_TOLERANCE = 1e-4
_ABOUT = {
    "label_names": TEXTS,
    "generated": TRUTH,
    "top_k": whole(0),
    "model": TEXT,
    "routing_fraction": number(0, 1),
    "made": (
        "an object with a list of notices",
        lambda v: isinstance(v, dict) and isinstance(v.get("notices", []), list),
    ),
    "worth": OBJECT,
}
FORMAT = 1
"""Of records and summaries; one that is larger is of a later version."""


def check_output(path: str, option: str, inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuse to write records under another name than a parquet file's, or where they cannot be.

    Args:
        path: The file to write.
        option: That names it.
        inputs: What is read, as :func:`elang.outputs.check_output_file` takes it.

    Raises:
        InputError: Naming the option.
    """
    if not path.lower().endswith(".parquet"):
        raise InputError(f"Records are written as parquet, but {option} is '{path}'.")
    check_output_file(path, inputs, option)


def source_of(split: str) -> str:
    """The file that a split's examples, and so their ids, are from: held-out slices are part of the training file."""
    return "train" if split in ("routing", "fold") else split


@dataclass
class Records:
    """One model's answers to one split, as columns.

    Attributes:
        id: int64 ``(N,)``, unique.
        prediction: int64 ``(N,)``, in the order of ``label_names``, -1 for a generated answer that is none of them;
            float64 in a regression.
        logits: float32 ``(N, C)``, or ``None`` for a model that only answers; ``-inf`` for a candidate that an example
            does not have.
        key: int64 ``(N,)`` or ``None``.
        tokens: int64 ``(N,)`` or ``None``.
        flops: float64 ``(N,)`` or ``None``.
        texts: What was generated, where there are no labels; predictions are then meaningless.
        steps: int64 ``(N,)`` or ``None``.
        scores: float32 ``(N, 24)`` or ``None``, of what was generated.
        score_flops: float64 ``(N,)`` or ``None``.
        top_ids: int32 ``(N, T, K)`` or ``None``, padded with -1.
        top_log_probs: float32 ``(N, T, K)`` or ``None``.
    """

    id: Tensor
    prediction: Tensor
    logits: Tensor | None = None
    key: Tensor | None = None
    tokens: Tensor | None = None
    flops: Tensor | None = None
    texts: list[str] | None = None
    steps: Tensor | None = None
    scores: Tensor | None = None
    score_flops: Tensor | None = None
    top_ids: Tensor | None = None
    top_log_probs: Tensor | None = None
    _row: dict[int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._row = {int(v): i for i, v in enumerate(self.id.tolist())}
        if len(self._row) != len(self.id):
            raise InputError(f"The records have {len(self.id)} rows but only {len(self._row)} distinct ids.")

    def take(self, rows: Tensor) -> "Records":
        """Some rows, in the order given."""
        chosen: dict[str, Any] = {}
        for name in (f.name for f in fields(self) if f.init):
            column = getattr(self, name)
            chosen[name] = [column[i] for i in rows.tolist()] if isinstance(column, list) else column
            if isinstance(column, Tensor):
                chosen[name] = column[rows]
        return Records(**chosen)

    def check_ids(self, last: int, what: str = "The records") -> None:
        """Refuse answers to examples behind the ``last`` one: the ids are of another file.

        Raises:
            InputError: Naming the first of them.
        """
        if (beyond := self.id[self.id > last]).numel():
            raise InputError(
                f"{what} have answers to {len(beyond)} examples that the data does not have, first id "
                f"{int(beyond.min())}, where the last is {last}: ids count the rows of one file from 0. Give the file "
                "that was answered, or add the column 'key' of `elang score`."
            )

    def rows(self, ids: Tensor, keys: Tensor | None = None, what: str = "The records") -> Tensor:
        """Return the row of each id.

        Raises:
            InputError: If an id is missing, or its key differs: the records are of other data.
        """
        missing = [i for i in ids.tolist() if i not in self._row]
        if missing:
            raise InputError(
                f"{what} lack {len(missing)} of {len(ids)} examples, first id {missing[0]}. Add their answers, or "
                "score these files again with `elang score`."
            )
        rows = torch.tensor([self._row[i] for i in ids.tolist()], dtype=torch.int64)
        if keys is not None and self.key is not None and not torch.equal(self.key[rows], keys.cpu()):
            first = int(ids[(self.key[rows] != keys.cpu()).nonzero()[0]])
            raise InputError(
                f"{what} were made for other data: the text of example {first} differs. Score this data again "
                "with `elang score`."
            )
        return rows


def join_records(parts: list[Records]) -> Records:
    """Records of several parts of one split, by ascending id."""
    joined: dict[str, Any] = {}
    for name in (f.name for f in fields(Records) if f.init):
        columns = [getattr(part, name) for part in parts]
        if isinstance(columns[0], list):
            joined[name] = [value for column in columns for value in column]
        else:
            joined[name] = None if columns[0] is None else torch.cat(columns)
    found = Records(**joined)
    return found.take(found.id.argsort())


def write_records(path: str | Path, splits: dict[str, Records], label_names: list[str], **about: Any) -> None:
    """Write the records of one model as one parquet file, whole or not at all.

    Args:
        path: The file.
        splits: The records of each source split.
        label_names: The classes, in the order of the logits.
        about: What else to keep in the file's metadata (the model's hash, its path); must fit JSON.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for split, records in splits.items():
        n = len(records.id)
        columns: dict[str, Any] = {"split": pa.array([split] * n, pa.string()), "id": records.id.numpy()}
        if records.texts is not None:
            columns["prediction"] = pa.array(records.texts, pa.string())
        elif records.prediction.is_floating_point():
            columns["prediction"] = records.prediction.numpy()
        else:
            names = ["" if i < 0 else label_names[i] for i in records.prediction.tolist()]
            columns["prediction"] = pa.array(names, pa.string())
        for name in ("logits", "scores"):
            if (values := getattr(records, name)) is not None:
                columns[name] = pa.array(list(values.numpy()), pa.list_(pa.float32()))
        for name in ("key", "tokens", "flops", "steps", "score_flops"):
            if (values := getattr(records, name)) is not None:
                columns[name] = values.numpy()
        if records.top_ids is not None and records.top_log_probs is not None:
            real = records.top_ids >= 0
            columns["top_ids"] = pa.array(
                [ids[mask].numpy() for ids, mask in zip(records.top_ids, real, strict=True)], pa.list_(pa.int32())
            )
            columns["top_log_probs"] = pa.array(
                [p[mask].numpy() for p, mask in zip(records.top_log_probs, real, strict=True)], pa.list_(pa.float32())
            )
        tables.append(pa.table(columns))
    metadata = {METADATA: json.dumps({"format": FORMAT, "label_names": label_names, **about}).encode()}
    with written_aside(path) as aside:
        pq.write_table(pa.concat_tables(tables).replace_schema_metadata(metadata), aside, **PAGES)


def read_about(path: str | Path) -> dict[str, Any]:
    """What a parquet file of ours says of itself; empty for others.

    Raises:
        ValueError: If it is damaged.
    """
    import pyarrow.parquet as pq

    try:
        text = (pq.read_schema(path).metadata or {}).get(METADATA, b"{}")
    except Exception as error:  # whatever the reader says of a damaged file
        raise ValueError(str(error)) from error
    try:
        found = parse_object(text)
        check_fields(found, _ABOUT)
    except ValueError as error:
        raise ValueError(f"what it says of itself is damaged: {error}") from error
    check_format(found)
    return found


def check_format(found: dict[str, Any]) -> None:
    """Refuse what a later version wrote.

    Raises:
        ValueError: Naming its format.
    """
    own = found.get("format", FORMAT)
    if not isinstance(own, int) or own > FORMAT:
        raise ValueError(f"it is of the format {own!r}, and this version knows formats up to {FORMAT}: update elang")


def read_records(
    path: str | Path, label_names: list[str], problem: Problem = "classification"
) -> tuple[dict[str, Records], dict[str, Any]]:
    """Read the records of one model, ours or a stranger's.

    Args:
        path: A parquet, JSONL or CSV file with the columns that the module lists.
        label_names: The classes of the data set; the answers come back in this order.
        problem: In a ``regression`` predictions are numbers; in a ``choice`` task ``-inf`` logits are allowed.

    Returns:
        The records of each split, and the file's metadata (empty for files that are not ours).

    Raises:
        InputError: If the file cannot be read, lacks a column, names other labels, or has values that cannot be used
            or contradict each other, with their rows.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no records file '{path}'. Make it with `elang score`.")
    try:
        about = read_about(path) if path.suffix.lower() == ".parquet" else {}
        frame, names = read_columns(path, _COLUMNS)
    except InputError:
        raise
    except Exception as error:  # whatever the readers say of a damaged file
        raise InputError(f"The records file '{path}' cannot be read ({error}). Make it anew.") from error
    needed = ["prediction"] if problem == "sequence" else ["logits", "prediction"]
    if "id" not in frame or not any(name in frame for name in needed):
        raise InputError(
            f"The records file '{path}' has the columns {names}; it needs 'id' and {' or '.join(map(repr, needed))}."
        )
    if len(frame) == 0:
        raise InputError(f"The records file '{path}' has no rows. Make it with `elang score`.")
    order = align_labels(about.get("label_names", label_names), label_names, str(path))
    found = {}
    for split, part in _by_split(frame, str(path)).items():
        ids = numbers(part, "id", str(path), whole=True, least=0)
        if (twice := part["id"].duplicated(keep=False)).any():
            first = part["id"][twice].iloc[0]
            raise InputError(
                f"'{path}' has {len(part)} rows of '{split}' but only {len(np.unique(ids))} distinct ids: {first} "
                f"stands in {rows_of(part['id'] == first, part)}. Leave one answer to each example."
            )
        if problem == "sequence":
            answers = _of_texts(part, str(path), about.get("top_k", 0))
        else:
            answers = _of_labels(part, label_names, order, str(path), problem, about.get("generated", False))
        found[split] = Records(torch.from_numpy(ids), **answers)
    return found, about


def _by_split(frame: Any, path: str) -> dict[str, Any]:
    """The rows of each split."""
    if "split" not in frame:
        return {"validation": frame}
    splits = frame["split"]
    if (lost := splits.isna() | (splits == "")).any():
        raise InputError(
            f"The records file '{path}' has no 'split' in {rows_of(lost, frame)}. Fill or remove the column."
        )
    splits = splits.astype(str)
    if unknown := [split for split in splits.unique() if split not in _SPLITS]:
        raise InputError(
            f"The records file '{path}' has rows of a split '{unknown[0]}', which nothing would read: "
            f"{rows_of(splits == unknown[0], frame)}. A split is one of {', '.join(sorted(_SPLITS))}: the file that "
            "the row's id counts in."
        )
    return {split: frame[splits == split] for split in sorted(splits.unique())}


def _optional(frame: Any, path: str, names: list[str]) -> dict[str, Tensor | None]:
    """Columns that may be missing."""
    found: dict[str, Tensor | None] = {}
    for name in names:
        whole, least, unknown = _NUMBERS[name]
        values = numbers(frame, name, path, whole, least, unknown) if name in frame else None
        found[name] = None if values is None else torch.from_numpy(values)
    return found


def _of_labels(
    frame: Any, label_names: list[str], order: list[int], path: str, problem: Problem, generated: bool
) -> dict[str, Any]:
    """Columns of records of classes or values."""
    columns = _optional(frame, path, ["key", "tokens", "flops"])
    logits = None
    if "logits" in frame:
        logits = torch.from_numpy(vectors(frame, "logits", len(label_names), path, problem == "choice")[:, order])
    if "prediction" not in frame:
        assert logits is not None
        prediction = logits[:, 0] if problem == "regression" else logits.argmax(-1)
    elif problem == "regression":
        prediction = torch.from_numpy(numbers(frame, "prediction", path))
    else:
        prediction = torch.from_numpy(labels(frame, "prediction", label_names, path, generated))
    # A generated answer is not the one that the logits favour.
    if logits is not None and not generated:
        if problem == "regression":
            apart = (prediction - logits[:, 0]).abs() > _TOLERANCE * logits.abs().max()
        else:
            # Of several that are equally probable each may be said.
            apart = logits.gather(1, prediction[:, None])[:, 0] < logits.amax(-1)
        if apart.any():
            first = int(apart.nonzero()[0])
            raise InputError(
                f"'{path}' contradicts itself in {rows_of(apart.numpy(), frame)}: the prediction is "
                f"{frame['prediction'].tolist()[first]!r}, but the logits {logits[first, np.argsort(order)].tolist()} "
                f"{'say' if problem == 'regression' else 'are largest for'} another. Correct them, or leave one of the "
                f"two columns out. Logits are in the order of the labels, [{listed(label_names)}]."
            )
    return {"prediction": prediction, "logits": None if logits is None else logits.float(), **columns}


def _of_texts(frame: Any, path: str, top_k: int) -> dict[str, Any]:
    """Columns of records of generated texts."""
    texts = frame["prediction"].tolist()
    if (bad := np.array([not _is_text(text) for text in texts])).any():
        raise InputError(
            f"'{path}' has no text as its 'prediction' in {rows_of(bad, frame)}: "
            f"{frame['prediction'][bad].iloc[0]!r}. Correct it."
        )
    columns: dict[str, Any] = _optional(frame, path, list(_NUMBERS))
    if "scores" in frame:
        columns["scores"] = torch.from_numpy(vectors(frame, "scores", len(SEQUENCE_SCORES), path)).float()
    for name, pad in (("top_ids", -1), ("top_log_probs", -math.inf)):
        if not top_k or name not in frame:
            continue
        try:
            if frame[name].map(len).any():
                rows = [torch.tensor(row) for row in frame[name].tolist()]
                padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
                columns[name] = padded.unflatten(1, (-1, top_k))
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"The column '{name}' of '{path}' is damaged ({error}). Make it anew.") from error
    return {"prediction": torch.zeros(len(texts)).long(), "texts": texts, **columns}


def _is_text(value: Any) -> bool:
    """Whether a value is a text that can be written; JSON may hold half a character."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


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


def listed(names: list[str]) -> str:
    """Some names in a sentence, and how many more there are.

    >>> listed(["a", "b"])
    "'a', 'b'"
    """
    said = ", ".join(map(repr, names[:_LISTED]))
    return said + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
