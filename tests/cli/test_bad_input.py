"""Bad input ends in one paragraph that names the value and the remedy, exit code 2, and nothing half-written."""

import json
import shutil
import warnings

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import FAST, QUIET, VOCABULARY, write_model
from safetensors.torch import load_file, save_file

from elang.backends.loading.load import load_model
from elang.cli.suite_plan import read_plan
from elang.cli.verbs import main
from elang.data.columns import read_frame, texts_of
from elang.data.examples import Examples
from elang.data.overlap import warn_of_overlap
from elang.data.text_classification import TextClassificationData
from elang.errors import InputError
from elang.inference.predictor import JointPredictor
from elang.notices import Notice, notices
from elang.records.reading import read_records


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Outputs by default lie in the working directory, where another test's may be locked."""
    monkeypatch.chdir(tmp_path)


def replaced(args, option, value):
    """The arguments with one option's value exchanged or added."""
    args = list(args)
    if option in args:
        args[args.index(option) + 1] = str(value)
        return args
    return [*args, option, str(value)]


@pytest.fixture
def fit_args(base_model, data_args, tmp_path):
    model = ["--model.model", str(base_model), "--model.output", str(tmp_path / "model")]
    return ["fit", *model, *data_args, *FAST, "--trainer.max_steps", "1"]


def test_no_verb_of_that_name(fails):
    fails(["translate"], "translate", "elang --help")
    fails(["valdate"], "Did you mean 'validate'?")


def test_missing_file(fails, fit_args, tmp_path):
    fails(replaced(fit_args, "--data.train", tmp_path / "none.csv"), "none.csv", "Give the path")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("option", "remedy"), [("--data.text", "--data.text"), ("--data.label", "--data.label")])
def test_missing_column(fails, fit_args, option, remedy):
    fails(replaced(fit_args, option, "sentense"), "sentense", "['text', 'label']", remedy)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text,label\n", ["empty data set", "another file"]),
        ("", ["cannot be read"]),
        ("text,label\ngood film,good\n  ,bad\n", ["empty text", "row 1"]),
        ("text,label\ngood film,good\nbad,meh\n", ["unknown label 'meh'", "row 1", "--data.label_names"]),
        ('text,label\ngood film\n"bad', ["Line 2", "1 fields where the header has 2"]),
        ("text,label\n\xff\xfe", ["not UTF-8", "Save it as UTF-8"]),
        ("text;label\na, b, c;good\n", ["Line 2", "['text;label']", "separated by ';'"]),
        ("text;label\na;good\n", ["no column 'text'", "['text;label']", "separated by ';'"]),
        ("text;label\na;good\na, b;good\n", ["Line 3", "separated by ';'"]),
    ],
)
def test_bad_rows(fails, fit_args, tmp_path, content, words):
    path = tmp_path / "bad.csv"
    path.write_bytes(content.encode("latin-1"))
    fails([*replaced(fit_args, "--data.validation", path), "--data.label_names", "[bad,good]"], *words)


def test_one_label_only(fails, fit_args, tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("text,label\ngood film,good\nfine film,good\n")
    fails(replaced(fit_args, "--data.train", path), "at least 2 distinct labels", "good")


def test_another_kind_of_file(fails, fit_args, tmp_path):
    path = tmp_path / "train.xlsx"
    path.write_text("x")
    fails(replaced(fit_args, "--data.train", path), "train.xlsx", ".csv")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--data.routing_fraction", "1.5"), ("--data.batch_size", "0"), ("--data.text", "[a,b,c]")],
)
def test_bad_options(fails, fit_args, option, value):
    fails(replaced(fit_args, option, value), option)


def test_no_data_at_all(fails, base_model):
    fails(["fit", "--model.model", base_model, *QUIET], "--data.train")


def test_hub_data_must_be_pinned(fails, fit_args):
    fails([*fit_args, "--data.hub", "owner/name"], "owner/name@<commit hash>")


def test_over_long_texts_are_counted_and_said(base_model, data_args, recwarn):
    args = replaced(["score", "--model.model", str(base_model), *data_args, *QUIET], "--data.label_names", "[bad,good]")
    from elang.data.batches import Reader

    data = TextClassificationData(train=data_args[1], validation=data_args[3], max_length=8, routing_fraction=0.2)

    class Trainer:
        class lightning_module:  # noqa: N801
            from transformers import AutoTokenizer

            readers = {"model": Reader(AutoTokenizer.from_pretrained(base_model), False)}  # noqa: RUF012

        global_rank, world_size = 0, 1

    data.trainer = Trainer
    data.setup("validate")
    lengths = pd.read_csv(data_args[3])["text"].str.split().str.len() + 2
    said = [str(w.message) for w in recwarn if "longer than 8 tokens" in str(w.message)]
    assert said == [said[0]]
    assert f" were cut: {(lengths > 8).sum()} of 61 inputs of 'validation'" in said[0]
    assert max(data._encoded["validation", "model"].lengths) == 8
    assert args


def test_missing_model(fails, fit_args, tmp_path):
    fails(replaced(fit_args, "--model.model", tmp_path / "none"), "none", "elang fit")
    fails(replaced(fit_args, "--model.model", "bert-base-uncased"), "bert-base-uncased", "@<commit hash>")
    fails(replaced(fit_args, "--model.model", "owner/name@abc"), "owner/name@abc", "cannot be loaded")


def test_too_many_layers(fails, fit_args):
    fails([*fit_args, "--model.layers", "3"], "has 2 layers", "first 3")


def test_a_folder_of_others_is_not_overwritten(fails, fit_args, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    fails(replaced(fit_args, "--model.output", tmp_path / "mine"), "not a model folder", "--model.output")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_labels_of_swift_and_super_that_do_not_match(fails, joint_args, tmp_path):
    other = write_model(tmp_path / "other", labels=("no", "yes"))
    fails(["validate", *replaced(joint_args, "--model.super_model", other)], "['no', 'yes']", "['bad', 'good']")
    with pytest.raises(InputError, match=f"of '{other}' do not match those of '{joint_args[1]}'"):
        JointPredictor(joint_args[1], str(other))
    with pytest.raises(InputError, match=f"'{other}', which `elang fit` has not written"):
        JointPredictor(str(other), joint_args[1])


def test_a_truncated_model(fails, joint_args, pair, tmp_path):
    broken = shutil.copytree(pair["super"], tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    fails(["validate", *replaced(joint_args, "--model.super_model", broken)], "broken", "cannot be loaded")
    assert not (tmp_path / "joint").exists()


@pytest.mark.parametrize("missing", [["tokenizer.json"], ["tokenizer.json", "tokenizer_config.json"]])
def test_a_missing_tokenizer(missing, fails, joint_args, pair, fit_args, tmp_path):
    """The library makes one up that knows no word."""
    copy = shutil.copytree(pair["swift"], tmp_path / "swift")
    for name in missing:
        (copy / name).unlink()
    fails(["validate", *replaced(joint_args, "--model.swift_model", copy)], copy, "cannot be loaded", "tokenizer")
    fails(replaced(fit_args, "--model.model", copy), copy, "tokenizer")


def test_nan_logits(fails, joint_args, pair, tmp_path):
    broken = shutil.copytree(pair["swift"], tmp_path / "nan")
    state = load_file(broken / "model.safetensors")
    state["classifier.bias"] += torch.nan
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    (broken / "elang.json").unlink()
    out = tmp_path / "joint"
    fails(
        ["validate", *replaced(joint_args, "--model.swift_model", broken), "--model.output", out],
        "NaN",
        "precision",
    )
    assert not out.exists()
    with pytest.raises(InputError, match="NaN"):
        JointPredictor(str(broken), str(pair["super"]), threshold=0.0)(["good film"])


def test_diverged_training_writes_nothing(fails, fit_args, tmp_path):
    fails([*replaced(fit_args, "--model.lr", "1e38"), "--trainer.max_steps", "4"], "NaN", "--model.lr")
    assert not (tmp_path / "model").exists()


@pytest.fixture
def checkpoint(fit_args, tmp_path):
    args = replaced(fit_args, "--trainer.enable_checkpointing", "true")
    assert main([*args, "--trainer.default_root_dir", str(tmp_path)]) == 0
    return next(tmp_path.rglob("*.ckpt"))


def test_a_checkpoint_of_another_class(fails, fit_args, joint_args, pair, checkpoint, tmp_path):
    swift = ["--model", "SwiftModule", "--model.super_records", pair["records"]]
    args = [fit_args[0], *swift, *fit_args[1:], "--ckpt_path", checkpoint]
    fails(args, "another class", "FinetuneModule", "SwiftModule")
    fails(["validate", *joint_args, "--ckpt_path", checkpoint], "another class", "JointModule")
    stranger = tmp_path / "stranger.ckpt"
    torch.save({"state_dict": {}}, stranger)
    fails(["validate", *replaced(joint_args, "--model.swift_model", stranger)], "another class", "stranger.ckpt")


def test_a_truncated_checkpoint(fails, fit_args, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-2000])
    fails([*fit_args, "--ckpt_path", checkpoint], "truncated", checkpoint.name)
    fails(replaced(fit_args, "--model.model", checkpoint), "truncated")


def test_a_missing_checkpoint(fails, fit_args):
    fails([*fit_args, "--ckpt_path", "none.ckpt"], "none.ckpt")


def test_a_checkpoint_that_would_run_code(fails, fit_args, tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (marker.write_text, ("x",))

    torch.save({"elang": Evil()}, tmp_path / "evil.ckpt")
    fails([*fit_args, "--ckpt_path", tmp_path / "evil.ckpt"], "more than tensors")
    fails(replaced(fit_args, "--model.model", tmp_path / "evil.ckpt"), "more than tensors")
    assert not marker.exists()


def test_a_checkpoint_of_other_labels(fails, fit_args, checkpoint, tmp_path):
    frame = pd.read_csv(fit_args[fit_args.index("--data.train") + 1])
    for split in ("train", "validation"):
        frame.assign(label=frame["label"].str.upper()).to_csv(tmp_path / f"{split}.csv", index=False)
        fit_args = replaced(fit_args, f"--data.{split}", tmp_path / f"{split}.csv")
    fails([*fit_args, "--ckpt_path", checkpoint], "['bad', 'good']", "['BAD', 'GOOD']")


def test_thresholds_of_another_swift(fails, joint_args, pair, tmp_path):
    data = json.loads((pair["swift"] / "elang.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(data | {"weights_sha256": "0" * 64}))
    words = ("another Swift", "elang validate")
    fails(["validate", *joint_args, "--model.thresholds", tmp_path / "other.json"], *words)
    models = ["--swift_model", pair["swift"], "--super_model", pair["super"]]
    fails(["predict", *models, "--thresholds", tmp_path / "other.json"], *words)
    (tmp_path / "garbled.json").write_text("{")
    fails(["predict", *models, "--thresholds", tmp_path / "garbled.json"], "garbled.json")


def test_a_slice_that_was_trained_on(fails, joint_args):
    fails(["validate", *replaced(joint_args, "--data.routing_fraction", "0.5")], "0.5", "0.25", "trained on")


def test_records_of_other_data(fails, joint_args, pair, tmp_path):
    frame = pd.read_csv(joint_args[joint_args.index("--data.validation") + 1])
    frame.loc[3, "text"] = "a good story"
    frame.to_csv(tmp_path / "other.csv", index=False)
    args = replaced(joint_args, "--model.super_model", pair["records"])
    fails(["validate", *replaced(args, "--data.validation", tmp_path / "other.csv")], "other data", "example 3")


def test_records_of_a_split_that_nothing_reads(fails, joint_args, pair, tmp_path):
    frame = pd.read_parquet(pair["records"])
    frame.loc[frame.index[:3], "split"] = "routing"
    frame.to_parquet(tmp_path / "odd.parquet")
    args = replaced(joint_args, "--model.super_model", tmp_path / "odd.parquet")
    fails(["validate", *args], "split 'routing'", "test, train, transfer, validation")


@pytest.mark.parametrize(("known", "most", "said"), [(0, 0.01, 0), (1, 0.01, 1), (8, 0.01, 1), (8, 0.15, 0)])
def test_evaluating_what_is_trained_on_is_said(files, tmp_path, monkeypatch, known, most, said):
    monkeypatch.setattr("elang.data.overlap._MAX_OVERLAP", most)
    validation = pd.read_csv(files[1])
    data = TextClassificationData(str(files[0]), str(tmp_path / "dev.csv"), routing_fraction=0.2)
    learned = data.examples("train").texts
    rows = pd.DataFrame({"text": [row[0] for row in learned[:known]], "label": "good"})
    pd.concat([rows, validation]).to_csv(tmp_path / "dev.csv", index=False)
    for stage in ("fit", "validate"):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            data.setup(stage)
        found = [str(w.message) for w in seen if "also in the training file" in str(w.message)]
        assert len(found) == said
        texts, numbered = f"Of {61 + known} texts of 'validation', ", ", ".join(map(str, range(min(known, 3))))
        told = f"also in the training file: {known} in what is trained on, 0 in its slice for thresholds; first rows "
        assert not said or (found[0].startswith(texts) and f"{told}{numbered} (counted from 0)" in found[0])


def test_nearly_equal_texts_are_counted_apart():
    """They differ in case, white space and punctuation; texts of nothing else are compared as they are."""
    train = ["Is it GOOD?", "a bad film", "a  good\tone", ":-)", "e-mail", "Stra\u00dfe", "x y"]
    dev = ["is it good", "a bad film", "A good, one", ":-(", "email", "STRASSE!", "xy", "\u201cis it good\u201d"]
    splits = {"train": train, "validation": dev}
    with pytest.warns(Notice) as seen:
        warn_of_overlap(
            {name: Examples.of([(t,) for t in rows], torch.zeros(len(rows))) for name, rows in splits.items()}
        )
    said = [str(one.message) for one in seen]
    assert "Of 8 texts of 'validation', 4 differ from one in the training file only in letter case" in said[0]
    assert "first rows 0, 2, 5 (counted from 0)" in said[0]
    assert "Of 8 texts of 'validation', 1 also in the training file" in said[1]
    assert len(said) == 2


def test_evaluated_texts_are_left_out_of_the_training_file(fails, files, base_model, tmp_path):
    """Of training and of the slice that chooses thresholds; a model that was trained with them is refused."""
    whole = pd.read_csv(files[0])
    parts = TextClassificationData(str(files[0]), str(files[1]))
    leaked = [row for part in ("train", "routing") for row in parts.examples(part).id[:2].tolist()]
    dev, n = tmp_path / "dev.csv", len(whole)
    texts = whole.iloc[leaked].copy()
    texts.iloc[0, 0] = f"{texts.iloc[0, 0].upper()} !"
    pd.concat([texts, pd.read_csv(files[1])]).to_csv(dev, index=False)
    args = ["--data.train", files[0], "--data.validation", dev, "--trainer.default_root_dir", tmp_path, *FAST]
    fit = ["fit", "--model.model", base_model, *args, "--trainer.max_steps", 1, "--model.output"]
    for name, dropped in (("with", []), ("without", ["--data.drop_overlap", "true"])):
        assert main([*map(str, [*fit, tmp_path / name, *dropped])]) == 0
        *near, said = [one["text"] for one in notices() if "overlap" in one["kind"]]
        if not dropped:
            assert "1 differ from one in the training file only in letter case" in near[0]
            assert "1 in what is trained on, 2 in its slice for thresholds; first rows 1, 2, 3 (counted" in said
            assert "--data.drop_overlap true in every step, from the first training on" in said
    assert said.startswith(f"Left out 4 rows of the {n} of '{files[0]}'")
    assert "their texts are in 'validation', 1 in other letter case, white space or punctuation" in said
    kept = TextClassificationData(str(files[0]), str(dev), drop_overlap=True)
    ids = [row for part in ("train", "routing") for row in kept.examples(part).id.tolist()]
    assert sorted(ids) == sorted({*range(n)} - {*leaked})
    assert kept.file_rows == n
    models = ["--model.swift_model", tmp_path / "without", "--model.super_model", tmp_path / "with"]
    validate = ["validate", *models, *args[:4], "--data.drop_overlap", "true", "--model.output", tmp_path / "joint"]
    fails(validate, f"'{tmp_path / 'with'}' was trained without it", "Train it again with --data.drop_overlap true")
    # What `score` records about its model is checked alike.
    records = tmp_path / "records.parquet"
    assert main([*map(str, ["score", "--model.model", tmp_path / "with", "--model.output", records, *args[:4]])]) == 0
    fails([records if part == tmp_path / "with" else part for part in validate], "was trained without it")


def test_records_that_lack_rows(fails, joint_args, pair, tmp_path):
    frame = pd.read_parquet(pair["records"]).iloc[5:]
    frame.to_parquet(tmp_path / "few.parquet")
    fails(["validate", *replaced(joint_args, "--model.super_model", tmp_path / "few.parquet")], "lack 5 of 61")


def test_a_super_that_is_needed(fails, fit_args):
    fails([fit_args[0], "--model", "SwiftModule", *fit_args[1:]], "--model.super_records", "elang score")


def test_a_swift_without_logits(fails, joint_args, pair, tmp_path):
    pd.read_parquet(pair["records"]).drop(columns="logits").to_parquet(tmp_path / "bare.parquet")
    fails(["validate", *replaced(joint_args, "--model.swift_model", tmp_path / "bare.parquet")], "no logits")


def test_unknown_thresholds_and_scores(fails, pair):
    models = ["predict", "--swift_model", pair["swift"], "--super_model", pair["super"]]
    fails([*models, "--threshold", "best"], "'best'", "'parity'")
    fails([*models, "--score", "luck"], "'luck'", "free_energy")
    fails([*models, "--threshold", "nan"], "NaN")


def test_predict_on_bad_input(fails, pair, tmp_path):
    models = ["predict", "--swift_model", pair["swift"], "--super_model", pair["super"]]
    (tmp_path / "lines.txt").write_text("good film\n\nbad film\n")
    out = tmp_path / "out.jsonl"
    for wrong in ("out.csv", "out.TSV", "out.parquet", "out.json", "out.jsonl.gz"):
        fails(
            [*models, "--input", tmp_path / "lines.txt", "--output", tmp_path / wrong],
            wrong,
            "must end in .jsonl",
            "pandas",
        )
    figures = ["bench", *models[1:], "--input", tmp_path / "lines.txt", "--output", tmp_path / "figures.csv"]
    fails(figures, "figures.csv", "must end in .json:")
    fails([*models, "--input", tmp_path / "lines.txt", "--output", out], "Line 2", "empty")
    (tmp_path / "none.txt").write_text("")
    fails([*models, "--input", tmp_path / "none.txt", "--output", out], "none.txt", "empty")
    fails([*models, "--input", tmp_path / "missing.txt", "--output", out], "missing.txt")
    assert not list(tmp_path.glob("*out*"))
    with pytest.raises(InputError, match="Input 1"):
        JointPredictor(str(pair["swift"]), str(pair["super"]))(["good", " "])


def test_damaged_tables(tmp_path):
    """What fuzzing found: bytes that are no UTF-8 within parquet, a bare number among JSON lines, a wrong metadata."""
    columns = {"split": ["test"], "id": [0], "prediction": ["good"], "text": ["film"], "label": ["good"]}
    whole, bad = tmp_path / "whole.parquet", tmp_path / "bad.parquet"
    for about in ({"label_names": ["bad", "good"]}, {"label_names": 3}, [1], {"label_names": ["good"], "format": 99}):
        table = pa.table(columns).replace_schema_metadata({"elang": json.dumps(about)})
        pq.write_table(table, whole, compression="none", use_dictionary=False)
        if about != {"label_names": ["bad", "good"]}:
            said = "update elang" if "format" in about else "damaged"
            with pytest.raises(InputError, match=f"cannot be read.*{said}"):
                read_records(whole, ["bad", "good"])
            continue
        assert len(read_records(whole, ["bad", "good"])[0]["test"].id) == 1
        for word in (b"test", b"film"):
            bad.write_bytes(whole.read_bytes().replace(word, b"\xff\xfe\xfd\xfc"))
            if word == b"film":  # of a column that records do not have
                read_records(bad, ["bad", "good"])
                continue
            with pytest.raises(InputError, match="cannot be read"):
                read_records(bad, ["bad", "good"])
        with pytest.raises(InputError, match="cannot be read"):
            texts_of(read_frame(str(bad)), ["text"], "it")
    (tmp_path / "x.jsonl").write_text('{"id": 0, "prediction": "good"}\n2')
    with pytest.raises(InputError, match="cannot be read"):
        read_records(tmp_path / "x.jsonl", ["bad", "good"])
    (tmp_path / "x.yaml").write_bytes(b"swift_model: \x94\n")
    with pytest.raises(InputError, match="cannot be read"):
        read_plan(str(tmp_path / "x.yaml"))


def test_what_a_later_version_wrote_is_refused(pair, joint_args, tmp_path, fails):
    joint = tmp_path / "joint"
    assert main(["validate", *joint_args, "--model.output", str(joint)]) == 0
    for name in ("summary.json", "elang.json"):
        text = (joint / name).read_text("utf-8")
        assert '"format": 1' in text
        (joint / name).write_text(text.replace('"format": 1', '"format": 2'), "utf-8")
        fails(["calibrate", joint, "--max_regret", "0.3"], "format 2", "version")
        (joint / name).write_text(text, "utf-8")


def test_regression_models_have_no_energy(base_model):
    from elang.backends.loading.load import load_model
    from elang.method.scores import free_energy
    from elang.tasks.text_task import TextTask

    model = load_model(str(base_model), TextTask.of(["score"]), fine_tune=True)
    ids = torch.tensor([[VOCABULARY.index("good")]])
    answer = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    with pytest.raises(InputError, match="router's score"):
        free_energy(answer.logits)


def test_two_files_that_name_the_classes_differently(pair, tmp_path):
    copy = shutil.copytree(pair["swift"], tmp_path / "swift")
    config = json.loads((copy / "config.json").read_text()) | {"id2label": {"0": "good", "1": "bad"}}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.warns(Notice, match=r"\['good', 'bad'\] in config.json .* \['bad', 'good'\] in elang.json"):
        assert load_model(str(copy)).label_names == ["good", "bad"]


@pytest.mark.parametrize("flops", [".inf", ".nan", "-1", "0"])
def test_costs_of_a_super_that_cannot_be(fails, joint_args, flops):
    fails(["validate", *joint_args, f"--model.super_flops={flops}"], "--model.super_flops")


def test_answers_to_examples_that_are_not_there(fails, joint_args, pair, tmp_path):
    frame = pd.read_parquet(pair["records"]).query("split == 'validation'")[["split", "id", "prediction"]]
    more = frame.tail(1).assign(id=frame["id"].max() + 5)
    pd.concat([frame, more]).to_csv(tmp_path / "more.csv", index=False)
    args = replaced(joint_args, "--model.super_model", tmp_path / "more.csv")
    fails(["validate", *args], "more.csv", "answers to 1 example", "first id 65")


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "\n".join(["", "  - &a0 [x]", *(f"  - &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]),
    ],
    ids=["deep", "aliases"],
)
def test_yaml_that_is_deep_or_grows(tmp_path, content):
    (tmp_path / "x.yaml").write_text(f"swift_model: a\nsuper_model: b\njoint: {{}}\nall: {content}\n")
    with pytest.raises(InputError, match=r"x\.yaml"):
        read_plan(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("flow", [False, True])
def test_a_name_that_stands_twice_in_yaml(tmp_path, capfd, flow):
    """YAML would take the last one."""
    path = tmp_path / "x.yaml"
    twice = "{max_length: 32,\n max_length: 64}" if flow else "\n  max_length: 32\n  max_length: 64"
    line = 4 if flow else 5
    path.write_text(f"swift_model: a\nsuper_model: b\njoint: {twice}\n")
    with pytest.raises(
        InputError, match=rf"x\.yaml' .*'max_length' stands twice, in line {line - 1} and(.|\n)*line {line}"
    ):
        read_plan(str(path))
    path.write_text(f"trainer: {twice}\n".replace("max_length", "max_epochs"))
    assert main(["fit", "--config", str(path)]) == 2
    said = capfd.readouterr().err
    assert f"'max_epochs' stands twice, in line {line - 3}" in said
    assert f'x.yaml", line {line - 2}' in said


def test_names_that_a_merge_brings_may_stand_again(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("swift_model: a\nsuper_model: b\njoint: &j {data: {a: 1}}\nall: {<<: *j, data: {a: 2}}\n")
    assert read_plan(str(path))["all"] == {"data": {"a": 2}}
