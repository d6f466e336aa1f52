"""Records and threshold files: round trips, files of strangers, and files that cannot be used."""

import json
import math
import warnings
from dataclasses import fields
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from elang.errors import InputError
from elang.files import file_sha256, plain, write_atomically
from elang.method.curve.points import Point
from elang.notices import Notice
from elang.records.columns import read_columns
from elang.records.manifest import _FIELDS, FILENAME, Manifest, threshold_entry
from elang.records.reading import read_records
from elang.records.table import Records, write_records
from elang.tables import is_table
from elang.tasks.text_task import align_labels

NAMES = ["no", "maybe", "yes"]
FIELDS = ["id", "prediction", "logits", "key", "tokens", "flops"]


def records(n=9, seed=0, logits=True):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, 3, generator=generator)
    return Records(
        id=torch.randperm(100, generator=generator)[:n],
        prediction=values.argmax(-1),
        logits=values if logits else None,
        key=torch.randint(-(2**62), 2**62, (n,), generator=generator),
        tokens=torch.randint(3, 500, (n,), generator=generator),
        flops=1e9 * torch.rand(n, generator=generator, dtype=torch.float64),
    )


def check_same(found, expected):
    for name in FIELDS:
        one, two = getattr(found, name), getattr(expected, name)
        assert (one is None) == (two is None), name
        assert one is None or (one.dtype == two.dtype and torch.equal(one, two)), name


def write(path, columns):
    """A stranger's file."""
    frame = pd.DataFrame(columns)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    return path


@pytest.mark.parametrize("logits", [True, False])
def test_round_trip(tmp_path, logits):
    splits = {"train": records(9, 0, logits), "validation": records(4, 1, logits)}
    write_records(tmp_path / "new" / "r.parquet", splits, NAMES, weights_sha256="abc", seed=3)
    found, about = read_records(tmp_path / "new" / "r.parquet", NAMES)
    assert about == {"format": 1, "label_names": NAMES, "weights_sha256": "abc", "seed": 3}
    assert found.keys() == splits.keys()
    for split, expected in splits.items():
        check_same(found[split], expected)


def test_optional_columns_may_be_absent(tmp_path):
    bare = Records(torch.arange(3), torch.tensor([2, 0, 1]))
    write_records(tmp_path / "r.parquet", {"test": bare}, NAMES)
    check_same(read_records(tmp_path / "r.parquet", NAMES)[0]["test"], bare)


@pytest.mark.parametrize("logits", [True, False])
def test_labels_come_back_in_the_order_of_the_data(tmp_path, logits):
    ours = ["yes", "no", "maybe"]
    theirs = records(logits=logits)
    write_records(tmp_path / "r.parquet", {"test": theirs}, NAMES)
    found = read_records(tmp_path / "r.parquet", ours)[0]["test"]
    assert [ours[i] for i in found.prediction] == [NAMES[i] for i in theirs.prediction]
    if logits:
        assert torch.equal(found.logits[:, ours.index("maybe")], theirs.logits[:, NAMES.index("maybe")])
        assert torch.equal(found.logits.argmax(-1), found.prediction)


def test_other_labels_are_refused(tmp_path):
    write_records(tmp_path / "r.parquet", {"test": records()}, NAMES)
    for ours in (["no", "yes"], ["no", "perhaps", "yes"], [*NAMES, "never"]):
        with pytest.raises(InputError, match="do not match"):
            read_records(tmp_path / "r.parquet", ours)


def test_align_labels():
    assert align_labels(NAMES, ["yes", "no", "maybe"], "it") == [2, 0, 1]
    with pytest.raises(InputError, match="it"):
        align_labels(["0", "1"], ["no", "yes"], "it")
    with pytest.raises(InputError, match="12 more"):
        align_labels([str(i) for i in range(20)], NAMES, "it")


def test_rows_by_id():
    table = records()
    order = torch.tensor([5, 0, 8, 2])
    assert torch.equal(table.rows(table.id[order]), order)
    assert torch.equal(table.rows(table.id[order], table.key[order]), order)
    assert torch.equal(table.rows(table.id.flip(0)), torch.arange(8, -1, -1))


def test_missing_ids_are_counted_and_named():
    table = records()
    asked = torch.cat([table.id[:2], torch.tensor([1001, 1002])])
    with pytest.raises(InputError, match="The Super's records lack 2 of 4 examples, first id 1001"):
        table.rows(asked, what="The Super's records")


def test_other_texts_are_refused():
    table = records()
    keys = table.key.clone()
    keys[3] += 1
    with pytest.raises(InputError, match=f"example {int(table.id[3])} differs"):
        table.rows(table.id, keys)
    without = Records(table.id, table.prediction)
    assert torch.equal(without.rows(table.id, keys), torch.arange(9))


def test_an_id_counts_once():
    with pytest.raises(InputError, match="3 rows but only 2 distinct ids"):
        Records(torch.tensor([4, 7, 4]), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_bare_answers_of_a_black_box(tmp_path, suffix):
    columns = {"id": [3, 1, 2], "prediction": ["yes", "no", "maybe"]}
    found, about = read_records(write(tmp_path / f"r{suffix}", columns), NAMES)
    assert about == {}
    check_same(found["validation"], Records(torch.tensor([3, 1, 2]), torch.tensor([2, 0, 1])))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_all_columns_of_a_black_box(tmp_path, suffix):
    columns = {
        "split": ["test", "train", "test"],
        "id": [5, 5, 0],
        "prediction": ["yes", "no", "maybe"],
        "key": [2**62 + 1, -(2**62) - 1, 0],
        "tokens": [3, 4, 5],
        "flops": [1.5e9, 2.5, 0.0],
    }
    found, _ = read_records(write(tmp_path / f"r{suffix}", columns), NAMES)
    assert found.keys() == {"test", "train"}
    assert found["test"].prediction.tolist() == [2, 1]
    assert found["test"].id.tolist() == [5, 0]
    assert found["test"].key.tolist() == [2**62 + 1, 0]
    assert found["train"].key.tolist() == [-(2**62) - 1]
    assert found["test"].tokens.tolist() == [3, 5]
    assert found["test"].flops.tolist() == [1.5e9, 0.0]


def test_numbers_of_a_csv_file_are_read_to_the_last_bit(tmp_path):
    """Which pandas before 3.1 does only where it is told to."""
    exact = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e9
    columns = {"id": range(1000), "prediction": ["yes"] * 1000, "flops": exact.tolist()}
    found = read_records(write(tmp_path / "r.csv", columns), NAMES)[0]["validation"]
    assert found.flops.tolist() == exact.tolist()


@pytest.mark.parametrize("names", [["0", "1"], ["None", "NA"], ["true", "false"], ["1.0", "01"]])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_label_names_are_text_whatever_they_look_like(tmp_path, suffix, names):
    path = write(tmp_path / f"r{suffix}", {"id": [0, 1, 2], "prediction": [names[1], names[0], names[1]]})
    assert read_records(path, names)[0]["validation"].prediction.tolist() == [1, 0, 1]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_logits_of_a_stranger(tmp_path, suffix):
    path = write(tmp_path / f"r{suffix}", {"id": [0, 1], "logits": [[0.5, 2.5, -1.0], [0.0, 0.25, 4.0]]})
    found = read_records(path, NAMES)[0]["validation"]
    assert found.logits.tolist() == [[0.5, 2.5, -1.0], [0.0, 0.25, 4.0]]
    assert found.prediction.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": [0, 1], "prediction": ["yes", "perhaps"]}, "unknown label 'perhaps'"),
        ({"id": [0, 0], "prediction": ["yes", "no"]}, "distinct ids"),
        ({"id": [0, 1], "answer": ["yes", "no"]}, "it needs 'id' and 'logits' or 'prediction'"),
        ({"row": [0, 1], "prediction": ["yes", "no"]}, "it needs 'id' and 'logits' or 'prediction'"),
        ({"id": [0, 1], "logits": [[0.0, 1.0], [1.0, 0.0]]}, "where 3 finite numbers are needed"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_content_that_cannot_be_used(tmp_path, suffix, columns, said):
    path = write(tmp_path / f"r{suffix}", columns)
    with pytest.raises(InputError, match=said):
        read_records(path, NAMES)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="no records file"):
        read_records(tmp_path / "none.parquet", NAMES)
    with pytest.raises(InputError, match="no records file"):
        read_records(tmp_path, NAMES)
    (tmp_path / "r.xlsx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"\.parquet, \.jsonl, \.csv"):
        read_records(tmp_path / "r.xlsx", NAMES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.parquet", b""),
        ("r.parquet", b"PAR1 this is not a table PAR1"),
        ("r.jsonl", b'{"id": 1, "prediction"'),
        ("r.csv", b""),
        ("r.csv", b'id,prediction\n1,"yes\n2,no\n'),
        ("r.csv", b"id,prediction\n1,\xff\xfe\n"),
    ],
)
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_records(tmp_path / name, NAMES)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_parquet_cut_short(tmp_path, keep):
    path = tmp_path / "r.parquet"
    write_records(path, {"test": records()}, NAMES)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(InputError, match="cannot be read"):
        read_records(path, NAMES)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": ["a", "b"]},
        {"id": [0.5, 1.0]},
        {"id": [None, 1]},
        {"flops": ["many", "few"]},
        {"tokens": [3.7, 4.0]},
        {"split": [None, "test"]},
        {"logits": [[0.0, 1.0, None], [0.0, 1.0, 2.0]]},
        {"logits": [None, [0.0, 1.0, 2.0]]},
    ],
)
def test_values_of_another_kind(tmp_path, wrong):
    path = write(tmp_path / "r.jsonl", {"id": [0, 1], "prediction": ["yes", "no"]} | wrong)
    with pytest.raises(InputError, match=next(iter(wrong))):
        read_records(path, NAMES)


@pytest.mark.parametrize("before", [None, "old"])
def test_written_aside_is_all_or_nothing(tmp_path, before):
    path = tmp_path / "folder" / "file.txt"
    if before is not None:
        path.parent.mkdir()
        path.write_text(before)

    def write_half():
        with write_atomically(path) as aside:
            assert aside.parent == path.parent
            aside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert (path.read_text() if path.exists() else None) == before
    assert [p.name for p in path.parent.iterdir()] == ([] if before is None else ["file.txt"])
    with write_atomically(path) as aside:
        aside.write_text("whole")
        assert (path.read_text() if path.exists() else None) == before
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_records_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "r.parquet"
    write_records(path, {"test": records()}, NAMES)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_records(path, {"test": records(seed=1)}, NAMES, model=object())
    mixed = {"train": records(), "test": records(logits=False)}
    with pytest.raises(ValueError, match=r".+"):
        write_records(path, mixed, NAMES)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def manifest(**changes):
    points = {"keep": math.inf, "defer": -math.inf, "parity": -3.0618157386779785}
    entries = {
        name: threshold_entry(Point(t, 0.25, 0.9, math.nan, 2.0), "rule", "slice", 40) for name, t in points.items()
    }
    options = {"score": "free_energy", "weights_sha256": "a" * 64} | changes
    return Manifest(NAMES, thresholds={"free_energy": entries, "margin": {}}, **options)


def test_manifest_round_trip(tmp_path):
    made = manifest(score="free_energy", temperature=2.0, routing_fraction=0.1, max_length=99)
    made.write(tmp_path / FILENAME)
    for found in (Manifest.read(tmp_path), Manifest.read(tmp_path / FILENAME)):
        assert found.threshold("keep") == math.inf
        assert found.threshold("defer") == -math.inf
        assert found.threshold("parity") == -3.0618157386779785
        assert found.threshold("parity", "free_energy") == found.threshold("parity")
        assert plain(vars(found)) == plain(vars(made))
        assert found.versions.keys() == {"elang", "torch", "transformers"}
    # Any JSON reader can read it, infinities included.
    json.loads((tmp_path / FILENAME).read_text(), parse_constant=lambda name: pytest.fail(name))


def test_threshold_entry():
    entry = threshold_entry(Point(0.5, 0.25, 0.9, 7.0, 2.0), "least deferral", "a slice", 40)
    assert entry == {
        "threshold": 0.5,
        "rule": "least deferral",
        "chosen_on": "a slice",
        "num_examples": 40,
        "deferred_share": 0.25,
        "quality": 0.9,
        "speedup": 2.0,
    }


@pytest.mark.parametrize(
    ("name", "score", "said"),
    [
        ("99%", None, "'keep', 'defer', 'parity'"),
        ("parity", "margin", "it has none. Give a number"),
        ("parity", "router", "'router'"),
    ],
)
def test_missing_threshold(name, score, said):
    with pytest.raises(InputError, match=said):
        manifest().threshold(name, score)


def test_thresholds_of_other_weights_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "b").write_bytes(b"weightz")
    digest, other = file_sha256(tmp_path / "a"), file_sha256(tmp_path / "b")
    made = Manifest(NAMES, weights_sha256=digest)
    made.check_weights(digest, "model")
    with pytest.raises(InputError, match=f"{digest[:12]}.*the model.*{other[:12]}"):
        made.check_weights(other, "the model")
    Manifest(NAMES).check_weights(other, "model")  # a manifest without a hash makes no claim


def test_hash_of_files(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "b").write_bytes(b"x" * (3 << 20))
    a, b = tmp_path / "a", tmp_path / "b"
    assert len({file_sha256(a), file_sha256(b), file_sha256(a, b), file_sha256(b, a)}) == 4


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1, 2]",
        "null",
        '{"label_names": ["a", "b"]}',
        '{"format": 0, "label_names": ["a", "b"]}',
        '{"format": 1}',
        '{"format": 1, "label_names": ["a", "b"], "unheard": 1}',
        b"\xff\xfe\x00",
    ],
)
def test_garbled_manifest(tmp_path, content):
    path = tmp_path / FILENAME
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match="not a threshold file of this version"):
        Manifest.read(tmp_path)


def test_no_manifest(tmp_path):
    with pytest.raises(InputError, match="no threshold file"):
        Manifest.read(tmp_path)
    with pytest.raises(InputError, match="no threshold file"):
        Manifest.read(tmp_path / "nowhere.json")


def test_plain():
    value = {"a": [math.inf, (-math.inf, math.nan)], "b": {"c": 1.5, "d": "inf", "e": None}}
    assert plain(value) == {"a": ["inf", ["-inf", None]], "b": {"c": 1.5, "d": "inf", "e": None}}


ALL = [".csv", ".jsonl", ".parquet"]
NESTED = [".jsonl", ".parquet"]


def answers(path, names, problem="classification", **columns):
    """The answers of a stranger's table, read."""
    rows = len(next(iter(columns.values())))
    return read_records(write(path, {"id": range(rows)} | columns), names, problem)[0]["validation"]


@pytest.mark.parametrize("suffix", ALL)
@pytest.mark.parametrize("empty", [None, math.nan, "", "  "], ids=repr)
def test_rows_without_an_answer_are_named(tmp_path, suffix, empty):
    given = ["yes", empty, "no", empty, "perhaps"]
    with pytest.raises(InputError, match=r"no answer .*rows 1 and 3 \(counted from 0\)"):
        answers(tmp_path / f"r{suffix}", NAMES, prediction=given)
    with pytest.raises(InputError, match=r"no answer .*rows 0, 1, 2, 3, 4 and 5 more"):
        answers(tmp_path / f"r{suffix}", NAMES, prediction=[empty] * 10)
    with pytest.raises(InputError, match="'prediction' in row 1"):
        answers(tmp_path / f"r{suffix}", ["value"], "regression", prediction=["1.5", empty])


@pytest.mark.parametrize("name", ["prediction", "logits"])
def test_a_key_that_is_missing_in_one_line(tmp_path, name):
    value = {"prediction": "yes", "logits": [0.0, 1.0, 2.0]}[name]
    (tmp_path / "r.jsonl").write_text(f'{{"id": 0, "{name}": {json.dumps(value)}}}\n{{"id": 1}}\n')
    with pytest.raises(InputError, match=f"{name if name == 'logits' else 'no answer'}.* row 1"):
        read_records(tmp_path / "r.jsonl", NAMES)


@pytest.mark.parametrize("suffix", ALL)
def test_rows_of_unknown_labels_are_named(tmp_path, suffix):
    with pytest.raises(InputError, match=r"unknown label 'perhaps' in rows 1 and 2 .*'no', 'maybe', 'yes'"):
        answers(tmp_path / f"r{suffix}", NAMES, prediction=["yes", "perhaps", "never", "no"])


INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.mark.parametrize("kind", [*INTEGERS, "float32", "float64", "Int64", "object", "category", "str"])
@pytest.mark.parametrize("suffix", ALL)
def test_classes_that_are_numbers(tmp_path, suffix, kind):
    """1, 1.0 and "1" are the class '1', in every format and type."""
    column = pd.Series([1, 0, 2, 1]).astype(kind)
    found = answers(tmp_path / f"r{suffix}", ["0", "1", "2"], prediction=column)
    assert found.prediction.tolist() == [1, 0, 2, 1]
    if kind != "str":
        found = answers(tmp_path / f"r{suffix}", ["0.0", "1.0", "2.0"], prediction=column)
        assert found.prediction.tolist() == [1, 0, 2, 1]
    with pytest.raises(InputError, match=r"unknown label '2(\.0)?' in row 2"):
        answers(tmp_path / f"r{suffix}", ["0", "1"], prediction=column)


@pytest.mark.parametrize("suffix", ALL)
@pytest.mark.parametrize("names", [["False", "True"], ["false", "true"], ["0", "1"]])
def test_answers_that_are_truth_values(tmp_path, suffix, names):
    found = answers(tmp_path / f"r{suffix}", names, prediction=[True, False, True])
    assert found.prediction.tolist() == [1, 0, 1]


@pytest.mark.parametrize("suffix", ALL)
def test_classes_with_names_are_counted_by_numbers_with_a_note(tmp_path, suffix):
    with pytest.warns(Notice, match="0 is taken for 'no' and 2 for 'yes'"):
        found = answers(tmp_path / f"r{suffix}", NAMES, prediction=[2, 0, 1])
    assert found.prediction.tolist() == [2, 0, 1]
    for number in (3, -1, 0.5):
        with pytest.raises(InputError, match="unknown label"):
            answers(tmp_path / f"r{suffix}", NAMES, prediction=[number, number])


@pytest.mark.parametrize("suffix", ALL)
def test_two_names_of_one_number_are_not_mixed(tmp_path, suffix):
    found = answers(tmp_path / f"r{suffix}", ["1", "01"], prediction=["01", "1"])
    assert found.prediction.tolist() == [1, 0]
    with pytest.raises(InputError, match=r"unknown label '1\.0'"):
        answers(tmp_path / f"r{suffix}", ["1", "01"], prediction=[1.0, 1.0])


@pytest.mark.parametrize("suffix", NESTED)
def test_logits_that_contradict_predictions(tmp_path, suffix):
    logits = [[0.5, 2.5, -1.0], [0.0, 0.25, 4.0], [1.0, 1.0, 0.0]]
    path = tmp_path / f"r{suffix}"
    # Of equals the one that was said.
    assert answers(path, NAMES, logits=logits, prediction=["maybe", "yes", "maybe"]).prediction.tolist() == [1, 2, 1]
    with pytest.raises(InputError, match=r"contradicts itself in rows 1 and 2 .*'maybe'.*\[0.0, 0.25, 4.0\]"):
        answers(path, NAMES, logits=logits, prediction=["maybe", "maybe", "yes"])
    missing = [[-math.inf, 0.5, 0.0]]
    if suffix == ".parquet":
        assert answers(path, ["0", "1", "2"], "choice", logits=missing, prediction=["1"]).prediction.tolist() == [1]
        with pytest.raises(InputError, match="contradicts itself in row 0"):
            answers(path, ["0", "1", "2"], "choice", logits=missing, prediction=["0"])


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1.7e9])
@pytest.mark.parametrize("suffix", NESTED)
def test_a_value_that_contradicts_its_logit(tmp_path, suffix, scale):
    path, logits = tmp_path / f"r{suffix}", [[scale], [float(f"{1.1 * scale:.9g}")]]
    said = [float(f"{1.00001 * scale:.9g}"), logits[1][0]]
    # The prediction, which float32 would round.
    assert answers(path, ["value"], "regression", logits=logits, prediction=said).prediction.tolist() == said
    alone = answers(path, ["value"], "regression", logits=logits)
    assert alone.prediction.tolist() == [row[0] for row in logits]
    with pytest.raises(InputError, match="contradicts itself in row 1"):
        answers(path, ["value"], "regression", logits=logits, prediction=[scale, scale])


@pytest.mark.parametrize("suffix", ALL)
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("flops", [1e9, math.inf]),
        ("flops", [1e9, -math.inf]),
        ("flops", [1e9, -1.0]),
        ("flops", [1e9, math.nan]),
        ("flops", [1e9, None]),
        ("flops", [1e9, True]),
        ("flops", ["1e9", "1e999"]),
        ("tokens", [3, -1]),
        ("tokens", [3, 1e30]),
        ("tokens", [3, None]),
        ("key", [3, 2**63]),
        ("key", [3, -(2**63) - 1]),
        ("id", [0, -1]),
        ("id", [0, 10**25]),
        ("id", [0, True]),
    ],
)
def test_numbers_that_cannot_be_are_named_with_column_and_row(tmp_path, suffix, name, values):
    path = tmp_path / f"r{suffix}"
    columns = {"id": [0, 1], "prediction": ["yes", "no"]} | {name: values}
    if suffix == ".jsonl":
        # As Python writes them, infinities and all.
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".parquet" and any(isinstance(value, bool | str) or abs(value or 0) >= 2**63 for value in values):
        columns[name] = [str(value) for value in values]
        write(path, columns)
    else:
        write(path, columns)
    with pytest.raises(InputError, match=rf"'{name}' in row 1 \(counted from 0\)"):
        read_records(path, NAMES)


@pytest.mark.parametrize("suffix", ALL)
def test_costs_that_are_all_unknown(tmp_path, suffix):
    found = answers(tmp_path / f"r{suffix}", NAMES, prediction=["yes", "no"], flops=[None, None])
    assert found.flops is None


@pytest.mark.parametrize("suffix", NESTED)
@pytest.mark.parametrize("row", [[0.0, math.nan, 1.0], [0.0, 1e300, 1.0], [0.0, 1.0], [[0.0, 1.0, 2.0]], 3.0, "0 1 2"])
def test_rows_of_logits_that_cannot_be_are_named(tmp_path, suffix, row):
    good = [0.0, 1.0, 2.0]
    if suffix == ".parquet" and not (isinstance(row, list) and isinstance(row[0], float)):
        # A column of it has one type.
        good = row
    with pytest.raises(InputError, match=r"logits .*row"):
        answers(tmp_path / f"r{suffix}", NAMES, logits=[good, row])


@pytest.mark.parametrize("suffix", ALL)
def test_ids_that_come_twice_are_named(tmp_path, suffix):
    path = write(tmp_path / f"r{suffix}", {"id": [4, 7, 4], "prediction": ["yes", "no", "yes"]})
    with pytest.raises(InputError, match=r"only 2 distinct ids: 4 is the id of rows 0 and 2"):
        read_records(path, NAMES)


def test_columns_that_come_twice(tmp_path):
    (tmp_path / "r.csv").write_text("id,prediction,prediction\n0,yes,no\n")
    (tmp_path / "r.jsonl").write_text('{"id": 0, "prediction": "yes", "prediction": "no"}\n')
    table = pa.table([[0], ["yes"], ["no"]], names=["id", "prediction", "prediction"])
    pq.write_table(table, tmp_path / "r.parquet")
    for suffix in ALL:
        with pytest.raises(InputError, match=r"cannot be read .*'prediction'"):
            read_records(tmp_path / f"r{suffix}", NAMES)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,prediction\n0,yes, indeed\n1,no\n", "Line 2"),
        ("id,prediction\n0,yes\n1,no, never\n", "Line 3"),
        ("id,prediction,flops\n0,yes,1\n1\n", "row 1"),
        ("id;prediction\n0;yes\n", "has the columns"),
    ],
)
def test_rows_of_another_width(tmp_path, content, said):
    (tmp_path / "r.csv").write_text(content)
    with pytest.raises(InputError, match=said):
        read_records(tmp_path / "r.csv", NAMES)


@pytest.mark.parametrize("suffix", ALL)
def test_what_does_not_matter(tmp_path, suffix):
    """Suffixes in capitals, byte order marks, and what stands in columns that nothing reads."""
    path = write(tmp_path / f"r{suffix}", {"id": [0, 1], "prediction": ["yes", "no"], "hash": ["5", "6"]})
    upper = tmp_path / f"split=test{suffix.upper()}" / f"R{suffix.upper()}"
    upper.parent.mkdir()
    content = path.read_bytes()
    if suffix != ".parquet":
        content = b"\xef\xbb\xbf" + content.replace(b'"5"', b"5" * 30).replace(b",5", b"," + b"5" * 30)
        assert b"5" * 30 in content
    upper.write_bytes(content)
    splits, _ = read_records(upper, NAMES)
    assert splits["validation"].prediction.tolist() == [2, 0]
    assert is_table(str(upper))


def test_json_lines_that_are_damaged(tmp_path):
    good = b'{"id": 0, "prediction": "yes"}\n'
    for line, said in (
        (b'{"id": 1, "prediction"', "Line 2"),
        (b"[1]", "Line 2.*it is no object"),
        (b"[" * 100_000, "Line 2"),
        (b'{"id": 1, "prediction": "\xff"}', "utf-8"),
        (b'{"id": ' + b"1" * 5000 + b"}", "Line 2|whole number"),
    ):
        (tmp_path / "r.jsonl").write_bytes(good + line + b"\n")
        with pytest.raises(InputError, match=said):
            read_records(tmp_path / "r.jsonl", NAMES)


def test_half_a_character_is_no_text(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"id": 0, "prediction": "ja"}\n{"id": 1, "prediction": "\\ud800"}\n')
    with pytest.raises(InputError, match=r"no text .* row 1"):
        read_records(tmp_path / "r.jsonl", [], "sequence")


@pytest.mark.parametrize(
    "about",
    [
        *({"top_k": "x"}, {"generated": 1}, {"routing_fraction": None}, {"label_names": "ab"}, {"model": [1]}),
        *({"made": 1}, {"made": {"notices": None}}, {"worth": 1}),
    ],
)
def test_metadata_of_another_kind(tmp_path, about):
    path = tmp_path / "r.parquet"
    write_records(path, {"test": Records(torch.arange(2), torch.tensor([2, 0]))}, NAMES)
    table = pq.read_table(path)
    told = {"format": 1, "label_names": NAMES} | about
    pq.write_table(table.replace_schema_metadata({"elang": json.dumps(told)}), path)
    with pytest.raises(InputError, match=f"metadata is damaged: its '{next(iter(about))}'"):
        read_records(path, NAMES)


def test_every_field_of_a_manifest_is_checked():
    assert {*_FIELDS} == {one.name for one in fields(Manifest)}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("label_names", ["yes", [1, 2], None, {}]),
        ("temperature", ["x", None, True, 0, -1, [1], math.inf, math.nan, 10**5000]),
        ("score", [None, 1, ["router"]]),
        ("weights_sha256", [None, 5]),
        ("routing_fraction", ["0.1", -0.1, 1.5, None, True]),
        ("max_length", ["long", 0, -1, 2.5, True, 10**30]),
        ("num_beams", [0, None, "4"]),
        ("router", [[], {"router": 1}]),
        ("thresholds", [[], None, {"margin": []}, {"margin": {"parity": 0.5}}]),
        ("task", [3, [], {"fields": "text"}, {"problem": "riddle"}, {"unheard": "x"}]),
        ("versions", [[], "1"]),
    ],
)
def test_fields_of_a_manifest_that_cannot_be(tmp_path, field, values):
    manifest().write(tmp_path / FILENAME)
    whole = json.loads((tmp_path / FILENAME).read_text())
    for value in values:
        text = json.dumps({**whole, field: "?"}).replace('"?"', "1" * 5000 if value == 10**5000 else json.dumps(value))
        (tmp_path / FILENAME).write_text(text)
        named = "" if value == 10**5000 or (isinstance(value, float) and not math.isfinite(value)) else field
        with pytest.raises(InputError, match=f"{FILENAME}' is not a threshold file.*{named}"):
            Manifest.read(tmp_path)


@pytest.mark.parametrize("value", ["1e999", "-1e999", "NaN", "Infinity", "null", "true", '"x"', '"0.5"', "[0.5]", "{}"])
def test_thresholds_that_cannot_be(tmp_path, value):
    manifest().write(tmp_path / FILENAME)
    text = (tmp_path / FILENAME).read_text().replace("-3.0618157386779785", value)
    (tmp_path / FILENAME).write_text(text)
    with pytest.raises(InputError, match=r"thresholds\.free_energy\.parity\.threshold|which is no JSON"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"format": 1, "label_names": ["a"], "label_names": ["b"]}', "'label_names' more than once"),
        (b'{"format": true, "label_names": ["a"]}', "has the format True"),
        (b"\xff{}", "utf-8"),
        (b"", "Expecting value"),
    ],
)
def test_json_that_is_odd(tmp_path, content, said):
    (tmp_path / FILENAME).write_bytes(content)
    with pytest.raises(InputError, match=said):
        Manifest.read(tmp_path)
    (tmp_path / FILENAME).unlink()
    (tmp_path / FILENAME).mkdir()
    with pytest.raises(InputError, match="not a threshold file"):
        Manifest.read(tmp_path)


def test_a_manifest_with_a_byte_order_mark_is_read(tmp_path):
    manifest().write(tmp_path / FILENAME)
    (tmp_path / FILENAME).write_bytes(b"\xef\xbb\xbf" + (tmp_path / FILENAME).read_bytes())
    assert Manifest.read(tmp_path).label_names == NAMES


def test_numbers_of_csv_are_read_to_the_last_bit(tmp_path):
    """And without an option that pandas warns of."""
    bits = np.random.default_rng(0).integers(0, 2**64, 5000, dtype=np.uint64).view(np.float64)
    wanted = np.append(np.abs(bits[np.isfinite(bits)]), [5e-324, 0.1, 2.0**53])
    path = tmp_path / "x.csv"
    path.write_text("id,flops\n" + "".join(f"{i},{value!r}\n" for i, value in enumerate(wanted.tolist())))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame, _ = read_columns(path, ["id", "flops"])
    assert (frame["flops"].to_numpy() == wanted).all()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_large_ids_that_were_rounded_are_refused(tmp_path, suffix):
    """Above 2**53 a floating-point number may be any of several ids; integers and decimals are read as they are."""

    def write(first, second):
        path = tmp_path / f"x{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.table({"id": [first, second], "prediction": ["good", "bad"]}), path)
        elif suffix == ".csv":
            path.write_text(f"id,prediction\n{first},good\n{second},bad\n")
        else:
            row = '{{"id": {}, "prediction": "{}"}}\n'
            path.write_text(row.format(first, "good") + row.format(second, "bad"))
        return path

    large = 2**53 + 1
    exact = [Decimal(large), Decimal(1)] if suffix == ".parquet" else [large, 1]
    found, _ = read_records(write(*exact), ["bad", "good"])
    assert found["validation"].id.tolist() == [large, 1]
    with pytest.raises(InputError, match=r"as its 'id' in row 0 .* that no floating-point number has rounded"):
        read_records(write(float(large), 1.0), ["bad", "good"])
