"""Models, checkpoints, records and settings from a stranger: whatever they hold, none of it is run."""

import json
import os
import pickle
import shutil

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import QUIET
from safetensors.torch import load_file

from elang.cli.verbs import main


class Payload:
    """A pickle that makes a file when it is read."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.fixture
def marker(tmp_path):
    """A file that is there once something was run; the payload does run where pickles are read."""
    path = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(path))).close()
    assert path.exists()
    path.unlink()
    return path


CODE = "from pathlib import Path\nPath({marker!r}).touch()\nclass Theirs:\n    pass\n"


def weights_as_pickle(folder, marker):
    """Weights as torch pickles them, without any safetensors."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state | {"x": Payload(marker)}, folder / "pytorch_model.bin")


def pickle_named_safetensors(folder, marker):
    torch.save({"x": Payload(marker)}, folder / "model.safetensors")


def pickled_heads(folder, marker):
    torch.save({"x": Payload(marker)}, folder / "router.safetensors")


def bring_code(folder, marker, name, **more):
    """The library's way for a folder to bring code of its own."""
    (folder / "theirs.py").write_text(CODE.format(marker=str(marker)))
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def code_of_a_model(folder, marker):
    kinds = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    auto = dict.fromkeys(kinds, "theirs.Theirs")
    bring_code(folder, marker, "config.json", auto_map=auto, model_type="theirs", architectures=["Theirs"])


def code_of_a_tokenizer(folder, marker):
    auto = {"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]}
    bring_code(folder, marker, "tokenizer_config.json", auto_map=auto)


@pytest.mark.parametrize(
    "spoil", [weights_as_pickle, pickle_named_safetensors, pickled_heads, code_of_a_model, code_of_a_tokenizer]
)
@pytest.mark.parametrize("verb", ["predict", "score", "fit"])
def test_a_model_folder_runs_nothing(spoil, verb, marker, pair, data_args, tmp_path, capfd):
    folder = shutil.copytree(pair["swift"], tmp_path / "theirs")
    spoil(folder, marker)
    (tmp_path / "in.txt").write_text("a good film\n")
    args = {
        "predict": ["--swift_model", folder, "--super_model", pair["super"], "--input", tmp_path / "in.txt"],
        "score": ["--model.model", folder, "--model.output", tmp_path / "r.parquet", *data_args, *QUIET],
        "fit": ["--model.model", folder, "--model.output", tmp_path / "m", *data_args, *QUIET],
    }[verb]
    if verb == "fit":
        args += ["--trainer.max_steps", "1", "--trainer.enable_checkpointing", "false"]
    code = main([verb, *map(str, args)])
    said = capfd.readouterr().err
    assert not marker.exists()
    # Heads are not read for training, and a tokenizer's own class is passed over for the library's.
    if spoil is not code_of_a_tokenizer and (spoil, verb) != (pickled_heads, "fit"):
        assert code == 2, said
        assert "elang: error: " in said


def test_pickles_beside_the_weights_are_not_read(marker, pair, tmp_path, capfd):
    folder = shutil.copytree(pair["swift"], tmp_path / "theirs")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "tokenizer.pkl"):
        torch.save({"x": Payload(marker)}, folder / name)
    (tmp_path / "in.txt").write_text("a good film\n")
    models = ["--swift_model", folder, "--super_model", pair["super"]]
    assert main(["predict", *map(str, models), "--input", str(tmp_path / "in.txt")]) == 0
    assert json.loads(capfd.readouterr().out)["label"] in ("bad", "good")
    assert not marker.exists()


@pytest.mark.parametrize("role", ["--model.swift_model", "--model.super_model"])
def test_a_checkpoint_runs_nothing(role, marker, joint_args, tmp_path, fails):
    torch.save({"elang": {"config": Payload(marker)}, "state_dict": {}}, tmp_path / "theirs.ckpt")
    args = list(joint_args)
    args[args.index(role) + 1] = str(tmp_path / "theirs.ckpt")
    fails(["validate", *args, "--model.output", tmp_path / "joint"], "more than tensors")
    assert not marker.exists()


def test_records_run_nothing(marker, pair, joint_args, tmp_path, fails):
    """A column whose type says that its description is a pickle, and one of pickled values."""
    table = pq.read_table(pair["records"])
    described = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    described[b"ARROW:extension:metadata"] = pickle.dumps(Payload(marker), protocol=0)
    field = table.schema.field("id").with_metadata(described)
    typed = pa.table(table.columns, schema=table.schema.set(table.schema.get_field_index("id"), field))
    names = [name for name in table.column_names if name != "id"]
    values = pa.array([pickle.dumps(Payload(marker))] * len(table))
    given = {"typed": typed, "values": table.select(names).append_column("id", values)}
    for name, own in given.items():
        pq.write_table(own.replace_schema_metadata(table.schema.metadata), tmp_path / f"{name}.parquet")
    args = list(joint_args)
    place = args.index("--model.super_model") + 1
    args[place] = str(tmp_path / "typed.parquet")
    # A type that is not known is read as what it is stored as.
    assert main(["validate", *args, "--model.output", str(tmp_path / "joint")]) == 0
    args[place] = str(tmp_path / "values.parquet")
    fails(["validate", *args, "--model.output", tmp_path / "other"], "values.parquet")
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:builtins.open ['{marker}', 'w']",
        "trainer:\n  callbacks:\n  - class_path: builtins.open\n    init_args: {{file: '{marker}', mode: w}}",
        "trainer:\n  logger:\n    class_path: subprocess.Popen\n    init_args: {{args: [touch, '{marker}']}}",
        "data:\n  class_path: pathlib.Path.touch\n  init_args: {{self: '{marker}'}}",
    ],
)
def test_settings_run_nothing(text, marker, base_model, data_args, tmp_path, capfd):
    (tmp_path / "theirs.yaml").write_text(text.format(marker=marker))
    args = ["--model.model", str(base_model), "--model.output", str(tmp_path / "model"), *data_args]
    assert main(["fit", "--config", str(tmp_path / "theirs.yaml"), *args]) == 2
    assert "Traceback" not in capfd.readouterr().err
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../outside", "{root}/outside", "a/../../outside"])
def test_what_records_name_stays_a_name(name, pair, joint_args, tmp_path, monkeypatch):
    """Texts and metadata that look like paths make no file."""
    name = name.format(root=tmp_path)
    table = pq.read_table(pair["records"])
    about = json.loads(table.schema.metadata[b"elang"])
    texts = {key: name for key, value in about.items() if isinstance(value, str)}
    assert len(texts) > 1
    (tmp_path / "in").mkdir()
    theirs = table.replace_schema_metadata({"elang": json.dumps(about | texts | {"model": name, "more": name})})
    pq.write_table(theirs, tmp_path / "in" / "theirs.parquet")
    args = list(joint_args)
    args[args.index("--model.super_model") + 1] = str(tmp_path / "in" / "theirs.parquet")
    monkeypatch.chdir(tmp_path / "in")
    assert main(["validate", *args, "--model.output", str(tmp_path / "in" / "joint")]) == 0
    assert main(["report", str(tmp_path / "in" / "joint"), "--output", str(tmp_path / "in" / "r.html")]) == 0
    assert sorted(os.listdir(tmp_path)) == ["in"]
    assert [one for one in sorted(os.listdir(tmp_path / "in")) if not one.startswith("r")] == [
        "joint",
        "theirs.parquet",
    ]


def test_a_report_shows_a_strangers_text_as_text(pair, joint_args, tmp_path):
    """Classes, inputs and file names with markup of their own."""
    assert main(["validate", *joint_args, "--model.output", str(tmp_path / "joint")]) == 0
    evil = "</script><script>alert(1)</script>"
    frame = pd.read_parquet(tmp_path / "joint" / "records.parquet")
    schema = pq.read_schema(tmp_path / "joint" / "records.parquet")
    frame["input"] = [evil] * len(frame)
    pq.write_table(
        pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(schema.metadata),
        tmp_path / "joint" / "records.parquet",
    )
    path = tmp_path / "joint" / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"swift_model": evil, "super_model": evil}))
    assert main(["report", str(tmp_path / "joint"), "--output", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "alert(1)" in page
    assert evil not in page
    assert "<script>alert" not in page
