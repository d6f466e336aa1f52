"""Models whose files do not hold the weights that are needed, and folders of other libraries."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from conftest import FAST, QUIET, write_model, write_seq2seq
from safetensors.torch import load_file, save_file

from backends.test_families import task_of, write_family
from elang import JointPredictor
from elang.backends.loading.checkpoints import ROUTER_FILE
from elang.backends.loading.load import load_masked, load_model
from elang.cli.verbs import main
from elang.errors import InputError
from elang.notices import forget_notices, notices
from elang.tasks.text_task import TextTask

LABELS = ("bad", "good")
TASK = TextTask.of(list(LABELS))


def edit(folder, change):
    """Write the weights of a folder again, changed."""
    path = Path(folder) / "model.safetensors"
    weights = {name: value.clone() for name, value in load_file(path).items()}
    save_file(change(weights), path, metadata={"format": "pt"})
    return str(folder)


def without(*parts):
    return lambda weights: {n: w for n, w in weights.items() if not any(part in n for part in parts)}


def prefixed(prefix):
    return lambda weights: {prefix + n: w for n, w in weights.items()}


def shaped(name, *shape):
    return lambda weights: weights | {name: torch.zeros(shape)}


def one_more_layer(weights):
    return weights | {n.replace("layer.1.", "layer.2."): w.clone() for n, w in weights.items() if "layer.1." in n}


def stored_as(kind):
    return lambda weights: {n: w.mul(60).to(kind) if n.endswith("query.weight") else w for n, w in weights.items()}


# What is done to a BERT's weights, what a finished model's error names, and what it is when fine-tuning.
DAMAGES = {
    "no head": (without("classifier"), ["'classifier.weight'", "lacks 2 of its 41"], None),
    "no pooler": (without("pooler"), ["'bert.pooler.dense.bias'"], None),
    "no layer": (without("layer.1."), ["'bert.encoder.layer.1."], ["lacks 16"]),
    "no embeddings": (without("embeddings.word"), ["'bert.embeddings.word_embeddings.weight'"], ["lacks 1"]),
    "torch.compile": (
        prefixed("_orig_mod."),
        ["'_orig_mod.'", "torch.compile", "lacks 41"],
        ["lacks 37", "torch.compile"],
    ),
    "DDP": (prefixed("module."), ["'module.'", "DistributedDataParallel"], ["lacks 37"]),
    "8-bit integers": (stored_as(torch.int8), ["2 weights as I8", "quantized"], ["2 weights as I8"]),
    "bytes": (stored_as(torch.uint8), ["2 weights as U8", "query.weight"], ["2 weights as U8"]),
    "8-bit floats": (stored_as(torch.float8_e4m3fn), ["2 weights as F8_E4M3"], ["2 weights as F8_E4M3"]),
    "both": (prefixed("module._orig_mod."), ["'module._orig_mod.'"], ["lacks 37"]),
    "a Lightning module": (prefixed("net.model."), ["'net.model.'", "take it off"], ["lacks 37"]),
    "another number of classes": (shaped("classifier.weight", 5, 32), ["(5, 32)", "(2, 32)"], None),
    "another vocabulary": (shaped("bert.embeddings.word_embeddings.weight", 9, 32), ["(9, 32)"], ["(9, 32)"]),
    "more layers": (one_more_layer, ["more layers", "'bert.encoder.layer.2."], ["more layers", "--model.layers"]),
    "nothing": (lambda weights: {"x": torch.zeros(1)}, ["lacks 41", "'x'"], ["lacks 37"]),
}


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("gptq", ["gptq", "Give the model that it was made from"]),
        ("bitsandbytes", ["bitsandbytes", "t.BertForSequenceClassification.from_pretrained(a).dequantize()"]),
        (None, ["quantization_config in its", "Give the model that it was made from"]),
    ],
)
def test_a_quantized_model_is_refused(tmp_path, method, words):
    write_model(tmp_path, labels=LABELS)
    path = tmp_path / "config.json"
    about = {"quantization_config": {"quant_method": method, "load_in_4bit": True}}
    path.write_text(json.dumps(json.loads(path.read_text()) | about))
    with pytest.raises(InputError, match="is quantized") as error:
        load_model(str(tmp_path))
    assert all(word in str(error.value) for word in words)
    assert ("python -c" in str(error.value)) == (method == "bitsandbytes")


def command_of(error):
    """The Python that a message tells to run."""
    return shlex.split(str(error.value)[str(error.value).index("python -c") :])[2]


def test_pickles_are_converted_by_the_command(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "model", labels=LABELS)
    file = folder / "model.safetensors"
    expected = load_file(file)
    torch.save(expected, folder / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(InputError, match=r"are pickles \(pytorch_model\.bin\)") as error:
        load_model(str(folder))
    # What a stranger's file names is no part of the command unless it is a name.
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("BertForSequenceClassification", "x'; y"))
    with pytest.raises(InputError, match=r"t\.AutoModel\.from_pretrained"):
        load_model(str(folder))
    (folder / "config.json").write_text(config)
    monkeypatch.chdir(tmp_path)
    exec(command_of(error), {})
    assert load_model("FOLDER").label_names == list(LABELS)
    assert all(torch.equal(expected[n], w) for n, w in load_file(tmp_path / "FOLDER" / file.name).items())


@pytest.mark.parametrize("alone", [True, False])
def test_a_gguf_file_is_named_with_the_command(tmp_path, alone):
    (tmp_path / "tiny.Q8_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="a GGUF file") as error:
        load_model(str(tmp_path / "tiny.Q8_0.gguf" if alone else tmp_path))
    assert f'a, f = "{tmp_path}", "tiny.Q8_0.gguf"' in command_of(error)
    compile(command_of(error), "command", "exec")
    assert "pip install gguf accelerate" in str(error.value)


@pytest.mark.parametrize("how", DAMAGES)
def test_weights_that_are_missing(tmp_path, how):
    change, said, fine_tuned = DAMAGES[how]
    folder = edit(write_model(tmp_path / "model", labels=LABELS), change)
    with pytest.raises(InputError) as error:
        load_model(folder, TASK)
    assert all(word in str(error.value) for word in [*said, folder])
    assert "\n" not in str(error.value)
    forget_notices()
    if fine_tuned is None:
        model = load_model(folder, TASK, fine_tune=True)
        assert model.new_weights
        assert [one["kind"] for one in notices()] == ["new-head"]
        assert repr(model.new_weights[0]) in notices()[0]["text"]
        return
    with pytest.raises(InputError) as error:
        load_model(folder, TASK, fine_tune=True)
    assert all(word in str(error.value) for word in fine_tuned)


def test_layers_that_are_left_out(tmp_path):
    """They were asked to be, so nothing is said."""
    folder = edit(write_model(tmp_path / "model", labels=LABELS), one_more_layer)
    forget_notices()
    for layers in (1, 2):
        assert not load_model(folder, TASK, fine_tune=True, layers=layers).new_weights
    assert not notices()


@pytest.mark.parametrize("kind", ["t5", "bart", "marian"])
def test_weights_of_encoder_decoders(tmp_path, kind):
    """Weights that are tied are there once, under any of their names; nothing may be new."""
    whole = write_seq2seq(tmp_path / "whole", kind)
    task = TextTask.of(["hund", "katze"], {"prompt": "{text}", "answers": ["hund", "katze"]})
    start = "" if kind == "t5" else "model."
    forget_notices()
    for fine_tune in (True, False):
        load_model(str(whole), task, fine_tune=fine_tune)
    renamed = shutil.copytree(whole, tmp_path / "renamed")
    edit(
        renamed,
        lambda weights: {
            (f"{start}encoder.embed_tokens.weight" if n == f"{start}shared.weight" else n): w
            for n, w in weights.items()
        },
    )
    load_model(str(renamed), task)
    assert not notices()
    for number, part in enumerate((f"{start}shared", f"{start}decoder.", f"{start}encoder.")):
        lacking = edit(shutil.copytree(whole, tmp_path / str(number)), without(part))
        for fine_tune in (True, False):
            with pytest.raises(InputError, match="lacks"):
                load_model(lacking, task, fine_tune=fine_tune)


def save_other(folder, name, kind="encoder", **config):
    """The same family with the head of another task, with the labels of ours."""
    import transformers
    from transformers import AutoConfig

    write_family(folder, kind, name)
    torch.manual_seed(0)
    model = getattr(transformers, config.pop("auto")).from_config(AutoConfig.from_pretrained(folder))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return str(folder)


OTHER = ["AutoModelForTokenClassification", "AutoModelForQuestionAnswering", "AutoModel", "AutoModelForMaskedLM"]
EACH = ("AutoModelForTokenClassification", "AutoModel", "AutoModelForMaskedLM")
ENCODERS = ("bert", "deberta-v2", "distilbert", "electra", "modernbert", "roberta")
HEADS = [(name, "encoder", auto) for name in ENCODERS for auto in EACH]
HEADS += [("bert", "encoder", "AutoModelForQuestionAnswering"), ("xlnet", "encoder", "AutoModelForTokenClassification")]
HEADS += [("gpt2", "decoder", auto) for auto in (*OTHER[:3], "AutoModelForCausalLM")]
HEADS += [(name, "decoder", auto) for name in ("llama", "qwen3") for auto in (*EACH[:2], "AutoModelForCausalLM")]


@pytest.mark.parametrize(("name", "kind", "auto"), HEADS)
def test_heads_of_other_tasks(tmp_path, name, kind, auto):
    """Also one whose weights fit by chance."""
    folder = save_other(tmp_path / "model", name, kind, auto=auto)
    with pytest.raises(InputError, match=r"lacks|head of another task"):
        load_model(folder, task_of(False))
    forget_notices()
    model = load_model(folder, task_of(False), fine_tune=True)
    # Weights of a token classifier of the same shapes are a start like any other.
    assert model.new_weights or auto == "AutoModelForTokenClassification"
    assert not model.new_weights or [one["kind"] for one in notices()] == ["new-head"]


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_classifiers_of_encoder_decoders(tmp_path, name):
    """They are asked by words here, which their classifying head knows nothing of."""
    folder = save_other(tmp_path / "model", name, "text-to-text", auto="AutoModelForSequenceClassification")
    with pytest.raises(InputError, match=r"another task|lacks"):
        load_model(folder, task_of(True))


def test_a_shard_that_is_missing(tmp_path):
    from transformers import AutoModelForSequenceClassification

    write_model(tmp_path / "model", labels=LABELS)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    index = tmp_path / "model" / "model.safetensors.index.json"
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    assert len(shards) > 1
    load_model(str(tmp_path / "model"), TASK)
    (tmp_path / "model" / shards[-1]).unlink()
    for fine_tune in (True, False):
        with pytest.raises(InputError, match=shards[-1]):
            load_model(str(tmp_path / "model"), TASK, fine_tune=fine_tune)
    # An index that does not tell of it.
    known = json.loads(index.read_text())
    known["weight_map"] = {name: file for name, file in known["weight_map"].items() if file != shards[-1]}
    index.write_text(json.dumps(known))
    with pytest.raises(InputError, match="lacks"):
        load_model(str(tmp_path / "model"), TASK)


def test_weights_beside_those_that_are_used(tmp_path):
    folder = edit(write_model(tmp_path / "model", labels=LABELS), shaped("lm_head.weight", 3, 3))
    edit(folder, lambda weights: weights | {"bert.embeddings.position_ids": torch.arange(64)[None]})
    forget_notices()
    load_model(folder, TASK)
    assert [one["kind"] for one in notices()] == ["unused-weights"]
    assert "'lm_head.weight'." in notices()[0]["text"]


def test_weights_that_are_not_finite(tmp_path):
    """They would look like a training that diverged, at its end."""
    folder = edit(write_model(tmp_path / "model"), lambda weights: {n: w / 0 for n, w in weights.items()})
    with pytest.raises(InputError, match="NaN or infinite"):
        load_model(folder, TASK, fine_tune=True)


def test_the_tokenizer_of_another_model(tmp_path):
    folder = write_model(tmp_path / "model", labels=LABELS)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 9}))
    edit(folder, shaped("bert.embeddings.word_embeddings.weight", 9, 32))
    for fine_tune in (True, False):
        with pytest.raises(InputError, match=r"tokens, and its model has embeddings for 9\."):
            load_model(str(folder), TASK, fine_tune=fine_tune)


@pytest.mark.parametrize("verb", ["score", "validate", "finetune", "predict", "python"])
def test_every_verb_refuses_it(tmp_path, pair, data_args, fails, verb):
    folder = shutil.copytree(pair["super"], tmp_path / "model")
    (folder / "elang.json").unlink()
    edit(folder, prefixed("_orig_mod."))
    given = {
        "score": ["score", "--model.model", folder, "--model.output", tmp_path / "o.parquet", *data_args, *QUIET],
        "validate": [
            "validate",
            "--model.swift_model",
            pair["swift"],
            "--model.super_model",
            folder,
            *data_args,
            *QUIET,
        ],
        "finetune": ["validate", "--model", "FinetuneModule", "--model.model", folder, *data_args, *QUIET],
        "predict": ["predict", "--swift_model", pair["swift"], "--super_model", folder, "--threshold", "0"],
    }
    if verb == "python":
        with pytest.raises(InputError, match="lacks 41"):
            JointPredictor(str(pair["swift"]), str(folder), 0.0)
        return
    if verb == "predict":
        (tmp_path / "lines.txt").write_text("good film\n")
        given["predict"] += ["--input", tmp_path / "lines.txt"]
    fails(given[verb], "lacks 37" if verb == "finetune" else "lacks 41", "torch.compile")


def test_a_new_head_is_not_evaluated(tmp_path, base_model, data_args, fails):
    """The class that fine-tunes would evaluate its random head, where the labels have the names of the data."""
    folder = edit(write_model(tmp_path / "model", labels=LABELS), without("pooler"))
    args = ["validate", "--model", "FinetuneModule", "--model.model", folder, *data_args, *QUIET]
    fails(args, "bert.pooler.dense", "Fine-tune it first")


def test_a_masked_language_model(tmp_path):
    folder = save_other(tmp_path / "model", "bert", auto="AutoModelForMaskedLM")
    assert load_masked(folder)[2]
    assert not load_masked(write_family(tmp_path / "other", "encoder", "bert"))[2]
    for name, change in (("layers", without("layer.1.")), ("compiled", prefixed("_orig_mod."))):
        damaged = edit(shutil.copytree(folder, tmp_path / name), change)
        with pytest.raises(InputError, match="lacks"):
            load_masked(damaged)


def test_router_heads_that_are_cut(tmp_path, pair):
    folder = shutil.copytree(pair["swift"], tmp_path / "swift")
    heads = load_file(folder / ROUTER_FILE) if (folder / ROUTER_FILE).is_file() else {}
    assert heads
    save_file({n: w for n, w in heads.items() if not n.endswith("weight")}, folder / ROUTER_FILE)
    with pytest.raises(InputError, match=r"router heads .*Missing key"):
        load_model(str(folder))


@pytest.mark.parametrize("how", ["no layer", "another", "prefixed", "shape"])
def test_checkpoints(tmp_path, base_model, data_args, fails, how):
    """As a model, and as what a training goes on from."""
    args = ["fit", "--model.model", str(base_model), "--model.output", str(tmp_path / "out"), *data_args]
    callback = ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.dirpath", str(tmp_path)]
    callback += ["--trainer.callbacks.filename", "c"]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    assert main([*args, *quiet, *callback, "--trainer.max_steps", "1"]) == 0
    path = tmp_path / "c.ckpt"
    load_model(str(path))
    known = torch.load(path, weights_only=True)
    changes = {
        "no layer": without("layer.1."),
        "another": shaped("classifier.backbone.qa_outputs.weight", 2, 2),
        "prefixed": prefixed("_orig_mod."),
        "shape": shaped("classifier.backbone.classifier.weight", 5, 32),
    }
    torch.save(known | {"state_dict": changes[how](known["state_dict"])}, path)
    words = {"no layer": "lacks 16", "another": "qa_outputs", "prefixed": "lacks 41", "shape": "(5, 32), and (2, 32)"}
    with pytest.raises(InputError) as error:
        load_model(str(path))
    assert words[how] in str(error.value)
    fails([*args, *FAST, "--trainer.max_steps", "2", "--ckpt_path", path], words[how], str(path), "earlier checkpoint")


def write_parts(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")


def test_a_classifier_among_parts_of_another_library(tmp_path):
    write_parts(write_model(tmp_path / "model", labels=LABELS), "modules.json", "1_Pooling/config.json")
    forget_notices()
    load_model(str(tmp_path / "model"), TASK)
    assert [one["kind"] for one in notices()] == ["dropped-parts"]


@pytest.mark.parametrize("kind", ["sentence-transformers", "SetFit"])
def test_folders_of_other_libraries(tmp_path, kind):
    """Their encoder is used to fine-tune it, and what is left is told; they are no finished models."""
    folder = tmp_path / "model"
    save_other(folder, "bert", auto="AutoModel")
    write_parts(folder, "modules.json", "1_Pooling/config.json", "2_Normalize/config.json")
    if kind == "SetFit":
        # Whoever loaded this would fail.
        write_parts(folder, "config_setfit.json", "model_head.pkl")
    with pytest.raises(InputError, match=f"{kind}.*elang fit"):
        load_model(str(folder), task_of(False))
    forget_notices()
    load_model(str(folder), task_of(False), fine_tune=True)
    told = {one["kind"]: one["text"] for one in notices()}
    assert told.keys() == {"dropped-parts", "new-head"}
    assert all(part in told["dropped-parts"] for part in ("modules.json", "1_Pooling", "2_Normalize", kind))
    assert ("pickle is never loaded" in told["dropped-parts"]) == (kind == "SetFit")
    inner = tmp_path / "old" / "0_Transformer"
    shutil.copytree(folder, inner)
    write_parts(tmp_path / "old", "modules.json")
    with pytest.raises(InputError, match="0_Transformer"):
        load_model(str(tmp_path / "old"), task_of(False), fine_tune=True)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_what_a_base_was_trained_for_is_forgotten(tmp_path, base_model, data_args, fails, problem):
    folder = shutil.copytree(base_model, tmp_path / "model")
    known = json.loads((folder / "config.json").read_text())
    stale = {"problem_type": problem, "finetuning_task": "mnli", "auto_map": {"AutoConfig": "x--y.Z"}}
    stale |= {"id2label": {str(i): f"old {i}" for i in range(5)}, "label2id": {f"old {i}": i for i in range(5)}}
    (folder / "config.json").write_text(json.dumps(known | stale))
    edit(folder, lambda weights: weights | {"classifier.weight": torch.zeros(5, 32), "classifier.bias": torch.zeros(5)})
    out = tmp_path / "out"
    args = ["fit", "--model.model", str(folder), "--model.output", str(out), *data_args, *FAST]
    assert main([*args, "--trainer.max_steps", "1"]) == 0
    text = (out / "config.json").read_text()
    found = json.loads(text)
    assert found["problem_type"] == "single_label_classification"
    assert found["id2label"] == {"0": "bad", "1": "good"}
    assert not any(word in text for word in ("old ", "mnli", "x--y"))
    assert found["architectures"] == ["BertForSequenceClassification"]
    if problem == "multi_label_classification":
        score = ["score", "--model.model", folder, "--model.output", tmp_path / "o.parquet", *data_args, *QUIET]
        (folder / "config.json").write_text(json.dumps(known | {"problem_type": problem} | stale_names()))
        shutil.copy(Path(base_model) / "model.safetensors", folder / "model.safetensors")
        fails(score, "multi_label_classification", "exactly one")


def stale_names():
    return {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
