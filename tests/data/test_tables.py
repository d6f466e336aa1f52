"""What would be shifted, dropped or made up on reading is refused with file and line, or told in a notice."""

import bz2
import gzip
import io
import json
import lzma
import sys
import types

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from elang.cli.verbs import main
from elang.data.columns import read_frame, texts_of
from elang.data.labels import class_names, label_index, label_values
from elang.data.text_classification import TextClassificationData
from elang.errors import InputError
from elang.inference.inputs import read_inputs
from elang.notices import Notice, forget_notices, notices
from elang.tables import text_lines


def written(path, labels, texts=None):
    """A table of any format with these labels, as it comes from other tools."""
    texts = texts or [f"text {i}" for i in range(len(labels))]
    frame = pd.DataFrame({"text": texts, "label": labels}, dtype=object)
    if path.suffix == ".parquet":
        frame.infer_objects().to_parquet(path)
    elif path.suffix == ".jsonl":
        lines = [json.dumps({"text": t, "label": v}) for t, v in zip(texts, labels, strict=True)]
        path.write_text("\n".join(lines) + "\n", "utf-8")
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def kinds_told(path, **options):
    """The label names and indices of a file, and the kinds of notices."""
    forget_notices()
    data = TextClassificationData(validation=str(path), **options)
    label = data.examples("validation").label.tolist()
    return data.label_names, label, [one["kind"] for one in notices()]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("x.csv", "text,label\na, good film,good\nbad,bad\n", 2),
        ("x.csv", "text,label\nfine,good\na, good film,good\n", 3),
        ("x.csv", "text,label,note\nfine,good,\nbad,bad\n", 3),
        ("x.csv", 'text,label\n"two\nlines",good\n\nlost, comma,bad\n', 5),
        ("x.csv", 'text,label\nfine,good\n"never closed,bad\nfine,good\n', 3),
        ("x.csv", 'text,label\n"he said "hi" to me",good\n', 2),
        ("x.csv", "text,label\r\nfine,good\r\na\rb,bad\r\n", 3),
        ("x.CSV", "text,label\nfine,good,\nbad,bad,\n", 2),
        ("x.tsv", "text\tlabel\na\tb\tgood\n", 2),
        ("x.Tsv", "text\tlabel\nfine\tgood\nbad\n", 3),
        ("x.jsonl", '{"text": "a", "label": "b"}\n\n{"text": "a"\n', 3),
        ("x.JSONL", '{"text": "a", "label": "b"} {"text": "c"}\n', 1),
        ("x.jsonl", '{"text": "a", "text": "b", "label": "c"}\n', 1),
        ("x.jsonl", '[{"text": "a", "label": "b"}]\n', 1),
        ("x.jsonl", '{"text": "a", "label": "b"}\n3\n', 2),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_row_of_another_shape_is_refused_with_its_line(name, content, line, packed, tmp_path):
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content.encode(), mtime=0) if packed else content.encode())
    with pytest.raises(InputError, match=rf"(?i)line {line} of '.*{name}"):
        read_frame(str(path))


def test_a_quote_that_swallows_rows(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('text,label\nfine,good\n"oh no,bad\ngood,good\nbad",bad\n')
    with pytest.raises(InputError, match=r"Row 1 .* looks like 3 rows"):
        read_frame(str(path))
    path.write_text('text,label\nfine,good\n"Dear sir, hello\nit is, well,\nfine",good\n')
    assert read_frame(str(path))["label"].tolist() == ["good", "good"]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.txt"])
def test_marks_and_ends_of_lines_are_no_part_of_texts(name, end, mark, tmp_path):
    """Nor does any other character end a line."""
    texts = ["a\u2028b\x85c\x0bd", "fine"]
    rows = {
        "csv": ["text,label", *(f"{text},good" for text in texts)],
        "tsv": ["text\tlabel", *(f"{text}\tgood" for text in texts)],
        "jsonl": [json.dumps({"text": text, "label": "good"}, ensure_ascii=False) for text in texts],
        "txt": texts,
    }[name[2:]]
    (tmp_path / name).write_bytes(mark + "".join(row + end for row in rows).encode())
    columns = None if name == "x.txt" else ["text"]
    found = list(read_inputs(str(tmp_path / name), columns))
    assert [row if columns is None else row[0] for row in found] == texts


def test_a_carriage_return_within_a_text_ends_no_row(tmp_path):
    (tmp_path / "x.tsv").write_bytes(b"text\tlabel\na\rb\tgood\nc\tbad\n")
    (tmp_path / "x.csv").write_bytes(b'text,label\n"a\rb",good\nc,bad\n')
    for name in ("x.tsv", "x.csv"):
        frame = read_frame(str(tmp_path / name))
        assert frame.values.tolist() == [["a\rb", "good"], ["c", "bad"]]
    (tmp_path / "x.txt").write_bytes(b"a\rb\nc\n")
    assert list(read_inputs(str(tmp_path / "x.txt"), None)) == ["a\rb", "c"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text,label\nfine,good\n".encode("utf-16"), "UTF-16"),
        ("text,label\nfine,good\n".encode("utf-16-le"), "line 1 holds a NUL"),
        (b"text,label\nfine\0,good\n", "line 2 holds a NUL"),
        (b"text,label\ncaf\xe9,good\n", "line 2 is not UTF-8"),
        (gzip.compress(b"text,label\n", mtime=0), "gzip"),
        (b"PK\x03\x04rest", "spreadsheet"),
        (bz2.compress(b"text,label\n"), "bzip2"),
        (lzma.compress(b"text,label\n"), "xz"),
        (b"PAR1\0", "parquet"),
    ],
)
@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.txt"])
def test_what_is_no_utf8_text(content, words, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content.replace(b"text,label", b'{"text": ""}') if name == "x.jsonl" else content)
    with pytest.raises(InputError, match=f"{name}' cannot be read as UTF-8 text.*{words}"):
        list(read_inputs(str(path), None if name == "x.txt" else ["text"]))
    with pytest.raises(InputError, match=f"Standard input cannot be read as UTF-8 text.*{words}"):
        list(text_lines(io.BytesIO(content), "Standard input"))


def test_standard_input_is_utf8_whatever_the_locale(monkeypatch):
    def given(content):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), "ascii", "surrogateescape"))
        return list(read_inputs("-", None))

    assert given("\ufeffcafé\nfine\r\n".encode()) == ["café", "fine"]
    with pytest.raises(InputError, match="Standard input cannot be read as UTF-8 text: line 2"):
        given(b"fine\ncaf\xe9\n")
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match="closed"):
        list(read_inputs("-", None))


def test_json_values_stay_what_they_are(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "label": 1, "id": 123456789012345678901}\n\n{"label": 2, "text": "b", "x": NaN}\n')
    with pytest.warns(Notice, match=r"Blank lines among .* left out: 1\."):
        frame = read_frame(str(path))
    assert frame["id"].tolist() == [123456789012345678901, None]
    assert label_values(frame, "label", "x") == ["1", "2"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_label_is_none(suffix, empty, tmp_path):
    path = written(tmp_path / f"x.{suffix}", ["good", "bad", empty])
    with pytest.raises(InputError, match="no label in row 2"):
        kinds_told(path)


@pytest.mark.parametrize(
    ("suffix", "labels", "kind"),
    [
        ("jsonl", [["good"], ["bad", "good"]], "a list"),
        ("jsonl", ["good", {"start": 1}], "an object"),
        ("parquet", [[0, 1], [1, 0]], "a list"),
        ("parquet", [{"answer": "good"}, {"answer": "bad"}], "an object"),
        ("parquet", [b"good", b"bad"], "bytes"),
        ("csv", ["['good']", "['bad', 'good']"], "a list"),
        ("tsv", ["[0, 1]", "[1, 0]"], "a list"),
        ("csv", ["good", "bad", "bad|good"], "several labels"),
        ("csv", ["good", "bad", "good, bad"], "several labels"),
    ],
)
def test_more_than_one_label_a_row_is_refused(suffix, labels, kind, tmp_path):
    path = written(tmp_path / f"x.{suffix}", labels)
    with pytest.raises(InputError, match=f"{kind}.*one label a row is needed.*multi-label"):
        kinds_told(path)


def test_arrays_as_labels():
    frame = pd.DataFrame({"label": [np.array([0, 1]), np.array([1, 0])]})
    with pytest.raises(InputError, match=r"a list \(\[0, 1\]\)"):
        label_values(frame, "label", "x")


@pytest.mark.parametrize(
    ("trained", "labels", "expected"),
    [
        (["1.0", "2.0", "3.0"], ["1", "2"], [0, 1]),
        (["1", "2", "3"], ["3.0", "1.0"], [2, 0]),
        (["False", "True"], ["true", "false"], [1, 0]),
        (["bad", "good"], ["good ", "bad"], [1, 0]),
        (["caf\u00e9", "x"], ["cafe\u0301", "x"], [0, 1]),
    ],
)
def test_another_spelling_of_a_label_is_found_and_told(trained, labels, expected, tmp_path):
    for path in (written(tmp_path / "x.csv", labels), written(tmp_path / "x.parquet", labels)):
        assert kinds_told(path, label_names=trained)[1:] == (expected, ["label-spelling"])


@pytest.mark.parametrize("names", [["-1", "1"], ["1.5", "2.5"], ["①", "②"], ["٣", "٤"], ["01", "02"]])
def test_numbers_are_no_places_among_names_that_are_numbers(names):
    with pytest.raises(InputError, match="unknown label '0'"):
        label_index(["0"], names, "x")


def test_numbers_instead_of_names(tmp_path):
    train, path = written(tmp_path / "t.csv", ["good", "bad"]), written(tmp_path / "x.jsonl", [0, 1])
    data = TextClassificationData(str(train), str(path), routing_fraction=0)
    with pytest.raises(
        InputError, match=r"numbers, but those of the training file are the names .*--data\.label_names"
    ):
        data.examples("validation")
    assert kinds_told(path, label_names=["bad", "good"])[1:] == ([0, 1], ["numbered-labels"])
    # As another program may have left them.
    floats = written(tmp_path / "y.csv", ["0.0", "1.0"])
    assert kinds_told(floats, label_names=["bad", "good"])[1:] == ([0, 1], ["numbered-labels"])
    mixed = written(tmp_path / "y.csv", ["good", "1"])
    with pytest.raises(InputError, match="unknown label '1'"):
        kinds_told(mixed, label_names=["bad", "good"])


@pytest.mark.parametrize(
    ("labels", "names", "kinds"),
    [
        (["1", "01", "001"], ["001", "01", "1"], ["like-labels"]),
        (["10", "9", "-1"], ["-1", "9", "10"], []),
        (["②", "①"], ["①", "②"], []),
        (["٣", "1"], ["1", "٣"], []),
        (["--1", "1"], ["--1", "1"], []),
        (["9" * 5000, "1"], ["1", "9" * 5000], []),
        (["good", "good ", "bad"], ["bad", "good"], ["label-spelling"]),
        (["2", "1.0", "1"], ["1", "2"], ["label-spelling"]),
        (["Good", "good"], ["Good", "good"], ["like-labels"]),
        (["nan", "good"], ["good", "nan"], ["like-labels"]),
        (["+1", "1", "-1"], ["+1", "-1", "1"], ["like-labels"]),
        (["1e0", "1"], ["1", "1e0"], ["like-labels"]),
        (["\uff11", "1"], ["1", "\uff11"], ["like-labels"]),
        (["good", "good\u200b"], ["good", "good\u200b"], ["like-labels"]),
        (["9007199254740993", "9007199254740992"], ["9007199254740992", "9007199254740993"], []),
        (["[UNK]", "a/b"], ["[UNK]", "a/b"], []),
    ],
)
def test_the_order_of_labels_depends_on_them_alone(labels, names, kinds, tmp_path):
    for order in (labels, labels[::-1]):
        found = kinds_told(written(tmp_path / "x.jsonl", order))
        assert (found[0], found[2]) == (names, kinds)
        assert class_names(order, "x") == names


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        ([["a", "b"], "c"], r"a list \(\['a', 'b'\]\)"),
        (["c", 3], r"a number \(3\)"),
        (["c", True], "a truth value"),
        (["c", None], "no value"),
        (["c", {"a": 1}], "an object"),
    ],
)
def test_what_is_no_text_is_named(texts, kind, tmp_path):
    path = written(tmp_path / "x.jsonl", ["good", "bad"], texts)
    row = next(i for i, text in enumerate(texts) if not isinstance(text, str))
    with pytest.raises(InputError, match=f"is no text, first row {row} .*{kind}"):
        texts_of(read_frame(str(path)), ["text"], "x")


def test_half_a_character(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n{"text": "a\\ud800"}\n')
    with pytest.raises(InputError, match=r"lone surrogate.* row 1"):
        texts_of(read_frame(str(tmp_path / "x.jsonl")), ["text"], "x")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", "a good film,good\nbad,bad\nfine,good\n", "no column 'text'.*looks like data"),
        ("x.tsv", "fine\tgood\nbad\tbad\nbad\tgood\n", "no column 'text'.*looks like data"),
        ("x.csv", "text;label\nfine;good\n", "separated by ';'"),
        ("x.csv", "text\tlabel\nfine\tgood\n", "separated by"),
        ("x.tsv", "text,label\nfine,good\n", "separated by ','"),
        ("x.csv", "text,text,label\na,b,good\n", "2 columns 'text'"),
        ("x.json", '[{"text": "a"}]', "named .jsonl"),
    ],
)
def test_headers(name, content, words, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        list(read_inputs(str(tmp_path / name), ["text"]))


def test_columns_of_parquet_are_those_of_the_file(tmp_path):
    """An index with a name is one, what a folder's name says is none, and of two with one name neither is taken."""
    folder = tmp_path / "label=1"
    folder.mkdir()
    frame = pd.DataFrame({"text": ["fine", "bad"], "label": ["good", "bad"]})
    frame.set_index("label").to_parquet(folder / "x.parquet")
    assert kinds_told(folder / "x.parquet")[:2] == (["bad", "good"], [1, 0])
    table = pa.table([["fine"], ["good"], ["bad"]], names=["text", "label", "label"])
    pq.write_table(table, folder / "x.parquet")
    with pytest.raises(InputError, match="2 columns 'label'"):
        kinds_told(folder / "x.parquet")


def test_quotes_of_csv_in_tsv_are_told(tmp_path):
    path = tmp_path / "x.tsv"
    texts = ['he said "no"', "fine", '"quoted"']
    pd.DataFrame({"text": texts, "label": ["good", "bad", "bad"]}).to_csv(path, sep="\t", index=False)
    with pytest.warns(Notice, match="2 texts in the first 1000 rows of .*x.tsv' are in quotes"):
        assert read_frame(str(path))["text"].tolist()[0] == '"he said ""no"""'
    path.write_text('text\tlabel\n"fine"\tgood\na "" b\tbad\n')
    assert kinds_told(path)[2] == []


def test_blanks_around_the_names_of_columns_do_not_matter(tmp_path):
    (tmp_path / "x.csv").write_text("text , label\nfine,good\nbad,bad\n")
    assert kinds_told(tmp_path / "x.csv")[:2] == (["bad", "good"], [1, 0])


def test_blank_lines_are_told_unless_they_are_the_last(tmp_path):
    for name, mark in (("x.csv", ","), ("x.tsv", "\t")):
        lines = ["text,label", "fine,good", *[""] * 3, *["bad,bad"] * 1000, "", ""]
        (tmp_path / name).write_text("\n".join(line.replace(",", mark) for line in lines))
        with pytest.warns(Notice, match=r"Blank lines among .* left out: 3\."):
            assert len(read_frame(str(tmp_path / name))) == 1001


def test_long_texts(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\n" + "a" * 200_000 + ",good\n")
    assert len(read_frame(str(tmp_path / "x.csv"))["text"][0]) == 200_000


def test_suffixes_in_capitals_are_records_too(pair, joint_args, data_args, fails, tmp_path):
    """What is taken for the folder of a model is not found."""
    from elang.inference.predictor import JointPredictor

    path = tmp_path / "SUPER.PARQUET"
    path.write_bytes(pair["records"].read_bytes())
    with pytest.raises(InputError, match="Records such as"):
        JointPredictor(str(pair["swift"]), str(path))
    args = [str(path) if arg == str(pair["super"]) else arg for arg in joint_args]
    assert main(["validate", *args, "--model.output", str(tmp_path / "joint")]) == 0
    fails(["score", "--model.model", path, *data_args], "already a file of records")


def test_whatever_the_hubs_library_raises_is_one_error(monkeypatch):
    def load_dataset(*args, **options):
        raise RuntimeError("Dataset scripts are no longer supported, but found x.py")

    offline = types.SimpleNamespace(HF_HUB_OFFLINE=True)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset, config=offline))
    with pytest.raises(
        InputError, match=r"'train' of the hub data set 'a/b@c' .*scripts are no longer supported.*local"
    ):
        read_frame("train", "a/b@c")
