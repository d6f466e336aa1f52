"""Records: one model's answers to a data set, stored so that it need not be run again (docs/records.md)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.errors import InputError, counted
from elang.files import check_output_file, write_atomically
from elang.method.scores import ASKED_SCORES

METADATA = b"elang"
# Small, because merging holds one page of each column of each file in memory.
PAGES = {"data_page_size": 1 << 16, "dictionary_pagesize_limit": 1 << 16}
_USAGE = ("tokens", "steps", "cached", "price")
EXAMPLES = "prompt_examples"
"""The examples that a language model was shown in its prompt, in the metadata of its records."""
ASKED_COLUMNS = tuple(f"{name}{part}" for name in ASKED_SCORES for part in ("", "_flops"))
"""The columns of scores with passes of their own, and of their costs."""
FORMAT = 1
"""Version of the format of records and summaries."""


def check_output(path: str, option: str, inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise an ``InputError`` if ``path``, the value of ``option``, is no ``.parquet`` file or cannot be written.

    ``inputs`` are the files that are read, as in :func:`elang.files.check_output_file`.
    """
    if not path.lower().endswith(".parquet"):
        raise InputError(f"Records are written as parquet, but {option} is '{path}'.")
    check_output_file(path, inputs, option)


@dataclass
class Records:
    """One model's answers to one split, as columns.

    Attributes:
        id: The example's row in its file, int64 ``(N,)``, unique.
        prediction: int64 ``(N,)``, in the order of ``label_names``, -1 for a generated answer that is none of them;
            float64 in a regression.
        logits: float32 ``(N, C)``, in the order of ``label_names``; ``-inf`` for a candidate that an example does not
            have. ``None`` for a model that only answers.
        key: Hash of the text, int64 ``(N,)``.
        tokens: True token length, int64 ``(N,)``.
        flops: Cost of the answer, float64 ``(N,)``.
        texts: The generated texts; predictions then have no meaning.
        steps: Steps of the decoder, int64 ``(N,)``.
        scores: Of the generated texts, float32 ``(N, 24)``, in the order of
            :data:`elang.method.scores.SEQUENCE_SCORES`.
        score_flops: Cost of the scores beside the text's, float64 ``(N,)``.
        top_ids: The most probable tokens at each place of the reference, int32 ``(N, T, K)``, padded with -1.
        top_log_probs: Their log probabilities, float32 ``(N, T, K)``.
        cached: Of a model behind an API: how many of the ``tokens`` its server had cached, int64 ``(N,)``.
        price: What the answer cost there, in the currency of the file's metadata, float64 ``(N,)``.
        p_true: A score with a pass of its own, :data:`elang.method.scores.ASKED_SCORES`, float32 ``(N,)``.
        p_true_flops: Its cost, float64 ``(N,)``.
        agreement: The other one.
        agreement_flops: Its cost.
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
    cached: Tensor | None = None
    price: Tensor | None = None
    p_true: Tensor | None = None
    p_true_flops: Tensor | None = None
    agreement: Tensor | None = None
    agreement_flops: Tensor | None = None

    def __post_init__(self) -> None:
        if (distinct := len(self.id.unique())) < len(self.id):
            raise InputError(f"The records have {len(self.id)} rows but only {distinct} distinct ids.")

    @property
    def asked(self) -> dict[str, Tensor]:
        """The scores with passes of their own that there are, by name."""
        return {name: values for name in ASKED_SCORES if (values := getattr(self, name)) is not None}

    def asked_flops(self, name: str) -> Tensor:
        """The cost of one of them; NaN if it is unknown."""
        flops: Tensor | None = getattr(self, f"{name}_flops")
        return torch.full((len(self.id),), torch.nan, dtype=torch.float64) if flops is None else flops

    @cached_property
    def _row(self) -> dict[int, int]:
        return {value: row for row, value in enumerate(self.id.tolist())}

    def take(self, rows: Tensor) -> "Records":
        """Some rows, in the given order."""
        columns = {column.name: getattr(self, column.name) for column in fields(self)}
        for name, values in columns.items():
            if isinstance(values, list):
                columns[name] = [values[row] for row in rows.tolist()]
            elif values is not None:
                columns[name] = values[rows]
        return Records(**columns)

    def check_ids(self, last: int, what: str = "The records") -> None:
        """Raise an ``InputError`` if examples after the ``last`` one are answered: the ids are of another file."""
        if (beyond := self.id[self.id > last]).numel():
            raise InputError(
                f"{what} have answers to {counted(len(beyond), 'examples')} that the data does not have, first id "
                f"{int(beyond.min())}, where the last is {last}: ids count the rows of one file from 0. Give the file "
                "that was answered, or add the column 'key' of `elang score`."
            )

    def rows(self, ids: Tensor, keys: Tensor | None = None, what: str = "The records") -> Tensor:
        """The row of each id; an ``InputError`` if one is missing, or its key differs because the data is another."""
        missing = [i for i in ids.tolist() if i not in self._row]
        if missing:
            raise InputError(
                f"{what} lack {len(missing)} of {len(ids)} examples, first id {missing[0]}. Add their answers, or "
                "score these files again with `elang score`."
            )
        rows = torch.tensor([self._row[i] for i in ids.tolist()], dtype=torch.int64)
        if keys is not None and self.key is not None and (differs := self.key[rows] != keys.cpu()).any():
            raise InputError(
                f"{what} were made for other data: the text of example {int(ids[differs.nonzero()[0]])} differs. Score "
                "this data again with `elang score`."
            )
        return rows


def _common(parts: Iterable[Records]) -> set[str]:
    """The columns of the first part, but what a server says of some parts' answers only."""
    first, *others = parts
    names = {column.name for column in fields(Records) if getattr(first, column.name) is not None}
    return names - {name for name in _USAGE for part in others if getattr(part, name) is None}


def join_records(parts: list[Records]) -> Records:
    """Records of several parts of one split, by ascending id."""
    columns: dict[str, Any] = {}
    for name in (column.name for column in fields(Records)):
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], list):
            columns[name] = list(chain.from_iterable(values))
        elif name in _common(parts):
            columns[name] = torch.cat(values)
    joined = Records(**columns)
    return joined.take(joined.id.argsort())


def write_records(path: str | Path, splits: dict[str, Records], label_names: list[str], **about: Any) -> None:
    """Write the records of one model, by source, as one parquet file, atomically.

    ``about`` is further metadata of the file (the model's hash and path), of values that JSON can hold.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables, common = [], _common(splits.values())
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
        for name in ("key", "tokens", "flops", "steps", "score_flops", *ASKED_COLUMNS, "cached", "price"):
            if (values := getattr(records, name)) is not None and name in common:
                columns[name] = values.numpy()
        if records.top_ids is not None and records.top_log_probs is not None:
            real = records.top_ids >= 0
            for name, kind in (("top_ids", pa.int32()), ("top_log_probs", pa.float32())):
                rows = [row[mask].numpy() for row, mask in zip(getattr(records, name), real, strict=True)]
                columns[name] = pa.array(rows, pa.list_(kind))
        tables.append(pa.table(columns))
    metadata = {METADATA: json.dumps({"format": FORMAT, "label_names": label_names, **about}).encode()}
    with write_atomically(path) as aside:
        pq.write_table(pa.concat_tables(tables).replace_schema_metadata(metadata), aside, **PAGES)
