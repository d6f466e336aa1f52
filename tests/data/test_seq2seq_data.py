"""Pairs of texts: parallel files, tables and the hub; what is kept, dropped and counted."""

import gzip
import json
import sys
import types

import pandas as pd
import pytest
from conftest import write_parallel

from elang import InputError, Seq2SeqData
from elang.notices import Notice


@pytest.fixture
def files(tmp_path):
    write_parallel(tmp_path / "train", 60, 1)
    write_parallel(tmp_path / "val", 11, 2)
    return tmp_path


def data_of(folder, **options):
    given = {"train": str(folder / "train"), "validation": str(folder / "val"), "source": "en", "target": "de"}
    return Seq2SeqData(**{**given, **options})


def lines(path):
    return path.read_text("utf-8").split("\n")[:-1]


def pairs(examples):
    return [(t[0], r) for t, r in zip(examples.texts, examples.references, strict=True)]


def test_parallel_files(files):
    found = data_of(files).examples("validation")
    assert pairs(found) == list(zip(lines(files / "val.en"), lines(files / "val.de"), strict=True))
    assert found.id.tolist() == list(range(11))
    assert found.labelled


def test_every_form_gives_the_same_pairs(files, monkeypatch):
    expected = pairs(data_of(files).read("validation"))
    for side in ("en", "de"):
        with gzip.open(files / f"zipped.{side}.gz", "wb") as file:
            file.write((files / f"val.{side}").read_bytes())
    frame = pd.DataFrame(expected, columns=["en", "de"])
    frame.to_csv(files / "val.tsv", sep="\t", index=False)
    frame.to_csv(files / "val.csv", index=False)
    frame.to_parquet(files / "val.parquet")
    frame.to_json(files / "val.jsonl", orient="records", lines=True, force_ascii=False)
    (files / "nested.jsonl").write_text(
        "".join(json.dumps({"translation": {"en": a, "de": b}}) + "\n" for a, b in expected), "utf-8"
    )
    for name in ("zipped", "val.tsv", "val.csv", "val.parquet", "val.jsonl", "nested.jsonl"):
        assert pairs(data_of(files, validation=str(files / name)).read("validation")) == expected, name
    rows = [{"translation": {"en": a, "de": b}} for a, b in expected]

    def load_dataset(name, config, split, revision):
        assert (name, config, split, revision) == ("wmt/wmt16", "de-en", "validation", "abc")
        return types.SimpleNamespace(to_pandas=lambda: pd.DataFrame(rows))

    offline = types.SimpleNamespace(HF_HUB_OFFLINE=True)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset, config=offline))
    hub = Seq2SeqData(validation="validation", hub="wmt/wmt16@abc", hub_config="de-en", source="en", target="de")
    assert pairs(hub.read("validation")) == expected
    with pytest.raises(InputError, match=r"between \['en', 'de'\], not 'en' and 'fr'"):
        Seq2SeqData(validation="validation", hub="wmt/wmt16@abc", hub_config="de-en", source="en", target="fr").read(
            "validation"
        )


def test_only_a_line_feed_ends_a_line(tmp_path):
    (tmp_path / "v.en").write_bytes("\ufeffa\u2028b\x0bc\r\nd\re\n".encode())
    (tmp_path / "v.de").write_bytes(b"1\n2")
    data = data_of(tmp_path, train=None, validation=str(tmp_path / "v"))
    assert pairs(data.read("validation")) == [("a\u2028b\x0bc", "1"), ("d\re", "2")]


def test_unequal_files_name_both_counts(files):
    with (files / "val.de").open("a", encoding="utf-8") as file:
        file.write("mehr .\n")
    with pytest.raises(InputError, match=r"val\.en' has 11 lines and '.*val\.de' 12"):
        data_of(files).read("validation")


def test_empty_lines_are_kept_and_counted(files):
    rows = lines(files / "val.en")
    (files / "val.en").write_text("\n".join([rows[0], "", "  ", *rows[3:]]) + "\n", "utf-8")
    with pytest.warns(UserWarning, match="2 of 11 lines of .* have an empty source: kept"):
        found = data_of(files).read("validation")
    assert [t[0] for t in found.texts[:3]] == [rows[0], "", "  "]


def test_filters_drop_training_pairs_alone(files):
    (files / "train.en").write_text("a b c d .\na b\na\n\n", "utf-8")
    (files / "train.de").write_text("1 2 3 4 5 6\n1 2\n1 2 3\n1\n", "utf-8")
    options = {"max_words": 5, "max_ratio": 2.0}
    with pytest.warns(Notice, match="Of 4 training pairs 1 are dropped for over 5 words, 2 for a ratio of .* over 2.0"):
        found = data_of(files, **options).read("train")
    assert found.id.tolist() == [1]
    assert len(data_of(files, validation=str(files / "train"), **options).read("validation")) == 4
    (files / "train.en").write_text("a b c d .\n\n\n\n", "utf-8")
    with pytest.raises(InputError, match=r"max_words 1 and --data\.max_ratio 1\.0 leave no pair"):
        data_of(files, max_words=1, max_ratio=1.0).read("train")


def test_slices_part_the_training_file(files):
    data = data_of(files, routing_fraction=0.3)
    parts = [data.examples(split) for split in ("train", "routing")]
    assert sorted(i for part in parts for i in part.id.tolist()) == list(range(60))
    assert all(len(part) > 3 for part in parts)
    assert data.splits == ["validation", "routing", "train"]


def test_a_test_file_may_lack_its_target(files):
    (files / "t.en").write_text("a cat .\n", "utf-8")
    found = data_of(files, test=str(files / "t")).read("test")
    assert found.references is None
    assert not found.labelled
    (files / "t.tsv").write_text("en\na cat .\n", "utf-8")
    assert not data_of(files, test=str(files / "t.tsv")).read("test").labelled


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": None, "validation": None}, "No data was given"),
        ({"routing_fraction": 1.5}, "routing_fraction must be in"),
        ({"source_language": "eng_Latn"}, "Give both"),
        ({"qualities": ["blue"]}, "no metric of texts 'blue'; there are bleu, "),
        ({"max_target_length": 0}, "max_target_length must be at least 1"),
        ({"max_words": 0}, "must be at least 1"),
        ({"prompt": "{txt}"}, r"template '\{txt\}' cannot be filled"),
    ],
)
def test_bad_options(files, options, said):
    with pytest.raises(InputError, match=said):
        data_of(files, **options).text_task  # noqa: B018


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("val", None, r"no file '.*val\.de', nor one with \.gz"),
        ("x.tsv", "en\tfr\na\tb\n", r"no column 'de'; it has \['en', 'fr'\]"),
        ("x.jsonl", '{"en": "a", "de": null}\n', "1 row whose 'de' is no text, first row 0"),
        ("x.tsv", "en\tde\n", "an empty data set"),
        ("x.tsv", "en\tde\na\tb\na\tb\tc\n", r"Line 3 of '.*x\.tsv' has 3 fields where the header has 2"),
        ("x.tsv", "en\tde\na\n", "Line 2 .* has 1 fields"),
        ("x.jsonl", '{"translation": {"en": "a", "de": null}}\n', "1 row whose 'de' is no text, first row 0"),
        ("x.jsonl", '{"translation": {"en": "a", "de": "b"}}\n{"translation": {"en": "a"}}\n', "whose 'de' is no text"),
        ("x.jsonl", '{"translation": null}\n', r"translates between \[\]"),
    ],
)
def test_bad_files(files, name, content, said):
    if content is None:
        (files / "val.de").unlink()
    else:
        (files / name).write_text(content, "utf-8")
    with pytest.raises(InputError, match=said):
        data_of(files, validation=str(files / name)).read("validation")


def test_not_text_is_refused(tmp_path):
    (tmp_path / "v.en").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "v.de").write_bytes(b"a\n")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        data_of(tmp_path, train=None, validation=str(tmp_path / "v")).read("validation")
    (tmp_path / "v.en").unlink()
    whole = gzip.compress(b"a b c\n" * 50)
    for damaged in (whole[:-12], whole[:12] + b"\xff\xff\xff" + whole[15:]):
        (tmp_path / "v.en.gz").write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read"):
            data_of(tmp_path, train=None, validation=str(tmp_path / "v")).read("validation")


def test_real_parallel_files(real_data):
    folder = real_data / "data" / "multi30k"
    data = Seq2SeqData(str(folder / "train"), str(folder / "val"), str(folder / "test_2016_flickr"), "en", "de")
    counts = {split: len(data.read(split)) for split in ("train", "validation", "test")}
    assert counts == {"train": 29_000, "validation": 1_014, "test": 1_000}
    assert data.read("test").references[0].startswith("Ein Mann mit einem orangefarbenen Hut")
