"""Records read from parquet, JSONL or CSV, written by elang or by others, with every value checked."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.errors import InputError, listed
from elang.json_files import OBJECT, TEXT, TEXTS, TRUTH, check_fields, number, parse_object, whole
from elang.method.scores import ASKED_SCORES, ROUTER_READS_OF_TEXTS, SEQUENCE_SCORES
from elang.records.columns import labels, numbers, read_columns, rows_of, vectors
from elang.records.manifest import SAMPLING
from elang.records.table import ASKED_COLUMNS, EXAMPLES, FORMAT, METADATA, Records
from elang.tasks.kind import KINDS, Kind
from elang.tasks.text_task import Problem, align_labels

_SOURCES = {"train", "validation", "test", "transfer"}
# The optional columns of numbers, with the arguments of numbers().
_NUMBERS: dict[str, dict[str, Any]] = {
    "key": {"whole": True},
    "tokens": {"whole": True, "least": 0},
    "steps": {"whole": True, "least": 0},
    "flops": {"least": 0, "unknown": True},
    "score_flops": {"least": 0, "unknown": True},
    "cached": {"whole": True, "least": 0},
    "price": {"least": 0, "unknown": True},
    **{name: {} if name in ASKED_SCORES else {"least": 0, "unknown": True} for name in ASKED_COLUMNS},
}
_COLUMNS = ("split", "id", "prediction", "logits", "scores", "top_ids", "top_log_probs", *_NUMBERS)
# Allowed difference of a value and its logit, as a share of the largest: files have few digits.
_TOLERANCE = 1e-4
_METADATA = {
    "label_names": TEXTS,
    "generated": TRUTH,
    "top_k": whole(0),
    "model": TEXT,
    "routing_fraction": number(0, 1),
    "drop_overlap": TRUTH,
    "made": (
        "an object with a list of notices",
        lambda v: isinstance(v, dict) and isinstance(v.get("notices", []), list),
    ),
    "worth": OBJECT,
    EXAMPLES: TEXTS,
    "sampling": SAMPLING,
}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of a parquet file of elang, empty for other files; a ``ValueError`` if it is damaged."""
    import pyarrow.parquet as pq

    try:
        text = (pq.read_schema(path).metadata or {}).get(METADATA, b"{}")
    except Exception as error:  # pyarrow raises errors of many types for a damaged file
        raise ValueError(str(error)) from error
    try:
        about = parse_object(text)
        check_fields(about, _METADATA)
    except ValueError as error:
        raise ValueError(f"its metadata is damaged: {error}") from error
    check_format(about)
    return about


def check_format(about: dict[str, Any]) -> None:
    """Raise a ``ValueError`` for a file of a later version."""
    version = about.get("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise ValueError(f"it has the format {version!r}, and this version knows formats up to {FORMAT}: update elang")


def read_records(
    path: str | Path, label_names: list[str], problem: Problem = "classification"
) -> tuple[dict[str, Records], dict[str, Any]]:
    """Read the records of one model: by source, with the file's metadata (empty for files of others).

    Args:
        path: A parquet, JSONL or CSV file with the columns of docs/records.md.
        label_names: The classes of the data set; the answers are returned in this order.
        problem: In a ``regression`` predictions are numbers; in a ``choice`` task ``-inf`` logits are allowed.

    Raises:
        InputError: If the file cannot be read, lacks a column, has other labels, or has values that are invalid or
            contradict each other, with their rows.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no records file '{path}'. Make it with `elang score`.")
    try:
        about = read_metadata(path) if path.suffix.lower() == ".parquet" else {}
        frame, names = read_columns(path, _COLUMNS)
    except InputError:
        raise
    except Exception as error:  # the readers raise errors of many types for a damaged file
        raise InputError(f"The records file '{path}' cannot be read ({error}). Make it again.") from error
    kind = KINDS[problem]
    needed = ["prediction"] if kind.generates else ["logits", "prediction"]
    if "id" not in frame or not any(name in frame for name in needed):
        raise InputError(
            f"The records file '{path}' has the columns {names}; it needs 'id' and {' or '.join(map(repr, needed))}."
        )
    if len(frame) == 0:
        raise InputError(f"The records file '{path}' has no rows. Make it with `elang score`.")
    order = align_labels(about.get("label_names", label_names), label_names, str(path))
    splits = {}
    for split, part in _by_split(frame, str(path)).items():
        ids = numbers(part, "id", str(path), whole=True, least=0)
        if (repeated := part["id"].duplicated(keep=False)).any():
            first = part["id"][repeated].iloc[0]
            raise InputError(
                f"'{path}' has {len(part)} rows of '{split}' but only {len(np.unique(ids))} distinct ids: {first} "
                f"is the id of {rows_of(part['id'] == first, part)}. Leave one answer to each example."
            )
        if kind.generates:
            columns = _text_columns(part, str(path), about.get("top_k", 0))
        else:
            columns = _label_columns(
                part, str(path), kind, label_names=label_names, order=order, generated=about.get("generated", False)
            )
        splits[split] = Records(torch.from_numpy(ids), **columns)
    return splits, about


def _by_split(frame: Any, path: str) -> dict[str, Any]:
    """The rows of each split."""
    if "split" not in frame:
        return {"validation": frame}
    splits = frame["split"]
    if (missing := splits.isna() | (splits == "")).any():
        raise InputError(
            f"The records file '{path}' has no 'split' in {rows_of(missing, frame)}. Fill or remove the column."
        )
    splits = splits.astype(str)
    if unknown := [split for split in splits.unique() if split not in _SOURCES]:
        raise InputError(
            f"The records file '{path}' has rows of a split '{unknown[0]}', which nothing would read: "
            f"{rows_of(splits == unknown[0], frame)}. A split is one of {', '.join(sorted(_SOURCES))}: the file whose "
            "rows the ids count."
        )
    return {split: frame[splits == split] for split in sorted(splits.unique())}


def _optional(frame: Any, path: str, names: list[str]) -> dict[str, Tensor]:
    """Those of some columns of numbers that are in the frame and known."""
    columns = {name: numbers(frame, name, path, **_NUMBERS[name]) for name in names if name in frame}
    return {name: torch.from_numpy(values) for name, values in columns.items() if values is not None}


def _label_columns(
    frame: Any, path: str, kind: Kind, *, label_names: list[str], order: list[int], generated: bool
) -> dict[str, Any]:
    """The columns of records of classes or values."""
    columns: dict[str, Any] = _optional(frame, path, ["key", "tokens", "flops", "steps", "cached", "price"])
    logits = None
    if "logits" in frame:
        values = vectors(frame, "logits", len(label_names), path=path, missing=kind.has_candidates)
        logits = torch.from_numpy(values[:, order])
        columns["logits"] = logits.float()
    if "prediction" not in frame:
        assert logits is not None
        return columns | {"prediction": kind.predict(logits)}
    if kind.chooses:
        prediction = torch.from_numpy(labels(frame, "prediction", label_names, path=path, none=generated))
    else:
        prediction = torch.from_numpy(numbers(frame, "prediction", path))
    # A generated answer need not be the one with the largest logit.
    if logits is not None and not generated:
        if kind.chooses:
            # Any of several equal logits may be the answer.
            differs = logits.gather(1, prediction[:, None])[:, 0] < logits.amax(-1)
        else:
            differs = (prediction - logits[:, 0]).abs() > _TOLERANCE * logits.abs().max()
        if differs.any():
            first = int(differs.nonzero()[0])
            raise InputError(
                f"'{path}' contradicts itself in {rows_of(differs.numpy(), frame)}: the prediction is "
                f"{frame['prediction'].tolist()[first]!r}, but the logits {logits[first, np.argsort(order)].tolist()} "
                f"{'are largest for' if kind.chooses else 'say'} another. Correct them, or leave one of the "
                f"two columns out. Logits are in the order of the labels, [{listed(label_names)}]."
            )
    return columns | {"prediction": prediction}


def _text_columns(frame: Any, path: str, top_k: int) -> dict[str, Any]:
    """The columns of records of generated texts."""
    texts = frame["prediction"].tolist()
    if (bad := np.array([not _is_text(text) for text in texts])).any():
        raise InputError(
            f"'{path}' has no text as its 'prediction' in {rows_of(bad, frame)}: "
            f"{frame['prediction'][bad].iloc[0]!r}. Correct it."
        )
    columns: dict[str, Any] = _optional(frame, path, list(_NUMBERS))
    columns |= {name: columns[name].float() for name in ASKED_SCORES if name in columns}
    if "scores" in frame:
        earlier = len(frame) > 0 and np.size(frame["scores"].iloc[0]) == len(ROUTER_READS_OF_TEXTS)
        size = len(ROUTER_READS_OF_TEXTS if earlier else SEQUENCE_SCORES)
        columns["scores"] = torch.from_numpy(vectors(frame, "scores", size, path=path, unknown=True)).float()
    for name, pad in (("top_ids", -1), ("top_log_probs", -math.inf)):
        if not top_k or name not in frame:
            continue
        try:
            if frame[name].map(len).any():
                rows = [torch.tensor(row) for row in frame[name].tolist()]
                padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
                columns[name] = padded.unflatten(1, (-1, top_k))
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"The column '{name}' of '{path}' is damaged ({error}). Make it again.") from error
    return {"prediction": torch.zeros(len(texts)).long(), "texts": texts, **columns}


def _is_text(value: Any) -> bool:
    """Whether a value is a text that UTF-8 can encode; JSON may hold half a character."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False
