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
:data:`elang.method.scores.SEQUENCE_SCORES`), ``score_flops`` (what these cost beside the text, float64) and, for
distillation, ``top_ids`` and ``top_log_probs`` (lists): the most probable tokens at each place of the reference.

Parquet files of ours carry label names and the model's identity in their metadata.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.errors import InputError
from elang.files import check_output_file, written_aside

METADATA = b"elang"
# Small, for of many files that are merged a page of each column of each is in memory.
PAGES = {"data_page_size": 1 << 16, "dictionary_pagesize_limit": 1 << 16}
FORMAT = 1
"""Of records and summaries; one that is larger is of a later version."""


def check_output(path: str, option: str, inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuse to write records under another name than a parquet file's, or where they cannot be.

    Args:
        path: The file to write.
        option: That names it.
        inputs: What is read, as :func:`elang.files.check_output_file` takes it.

    Raises:
        InputError: Naming the option.
    """
    if not path.lower().endswith(".parquet"):
        raise InputError(f"Records are written as parquet, but {option} is '{path}'.")
    check_output_file(path, inputs, option)


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
