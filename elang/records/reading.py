"""Records read from parquet, JSONL or CSV, ours or a stranger's, with every value checked."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.errors import InputError, listed
from elang.json_files import OBJECT, TEXT, TEXTS, TRUTH, check_fields, number, parse_object, whole
from elang.method.scores import SEQUENCE_SCORES
from elang.records.columns import labels, numbers, read_columns, rows_of, vectors
from elang.records.table import FORMAT, METADATA, Records
from elang.tasks.kind import KINDS, Kind
from elang.tasks.text_task import Problem, align_labels

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
    kind = KINDS[problem]
    needed = ["prediction"] if kind.generates else ["logits", "prediction"]
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
        if kind.generates:
            answers = _of_texts(part, str(path), about.get("top_k", 0))
        else:
            answers = _of_labels(part, label_names, order, str(path), kind, about.get("generated", False))
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
    frame: Any, label_names: list[str], order: list[int], path: str, kind: Kind, generated: bool
) -> dict[str, Any]:
    """Columns of records of classes or values."""
    columns = _optional(frame, path, ["key", "tokens", "flops"])
    logits = None
    if "logits" in frame:
        logits = torch.from_numpy(vectors(frame, "logits", len(label_names), path, kind.has_candidates)[:, order])
    if "prediction" not in frame:
        assert logits is not None
        prediction = kind.predict(logits)
    elif not kind.chooses:
        prediction = torch.from_numpy(numbers(frame, "prediction", path))
    else:
        prediction = torch.from_numpy(labels(frame, "prediction", label_names, path, generated))
    # A generated answer is not the one that the logits favour.
    if logits is not None and not generated:
        if not kind.chooses:
            apart = (prediction - logits[:, 0]).abs() > _TOLERANCE * logits.abs().max()
        else:
            # Of several that are equally probable each may be said.
            apart = logits.gather(1, prediction[:, None])[:, 0] < logits.amax(-1)
        if apart.any():
            first = int(apart.nonzero()[0])
            raise InputError(
                f"'{path}' contradicts itself in {rows_of(apart.numpy(), frame)}: the prediction is "
                f"{frame['prediction'].tolist()[first]!r}, but the logits {logits[first, np.argsort(order)].tolist()} "
                f"{'are largest for' if kind.chooses else 'say'} another. Correct them, or leave one of the "
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
