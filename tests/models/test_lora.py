"""LoRA: what is trained, what is written, and that a run can be stopped, resumed and spread."""

import json
import shutil

import pytest
import torch
from backends.test_adapters import needs_peft
from backends.test_causal import write_causal
from conftest import FAST, write_t5
from safetensors.torch import load_file, save_file
from test_pitfalls import run_cli

from elang import FinetuneModule, InputError, JointPredictor
from elang.backends.loading.load import load_model
from elang.backends.loading.lora import Lora, LoraOptions
from elang.cli.verbs import main
from elang.notices import forget_notices, notices
from elang.records.manifest import Manifest
from models.test_distributed import elang as elang_on
from models.test_lightning import trainer
from models.test_training import checkpoints

pytestmark = needs_peft
RANK = ["--model.lora_rank", "4"]


@pytest.fixture
def lora_args(base_model, data_args, tmp_path):
    model = ["--model.model", base_model, *RANK, "--model.output", tmp_path / "model"]
    return [*model, *data_args, *FAST, "--trainer.default_root_dir", tmp_path, "--trainer.max_epochs", "2"]


def fit(*args):
    assert main(["fit", *map(str, args)]) == 0


def logits_of(path, texts):
    predictor = JointPredictor(None, str(path), device="cpu")
    return [answer.probability for answer in predictor(texts)], [answer.label for answer in predictor(texts)]


def moved(model, base):
    """The names of the weights that differ from the base's."""
    a, b = (load_file(folder / "model.safetensors") for folder in (model, base))
    return {name for name in a.keys() & b.keys() if not torch.equal(a[name], b[name])}, a.keys() ^ b.keys()


def test_only_linear_layers_and_the_head_move(lora_args, base_model, tmp_path):
    """The folder is that of a plain model, whose embeddings, norms and biases are the base's."""
    fit(*lora_args)
    changed, others = moved(tmp_path / "model", base_model)
    assert not others
    assert not [name for name in changed if "embeddings" in name or "LayerNorm" in name]
    body = {name for name in changed if not name.startswith(("classifier", "bert.pooler"))}
    assert len(body) == 2 * 6
    assert all(name.endswith(".weight") for name in body)
    assert changed - body == {f"{m}.{w}" for m in ("classifier", "bert.pooler.dense") for w in ("weight", "bias")}
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    assert Manifest.read(tmp_path / "model").weights_sha256 == load_model(str(tmp_path / "model")).weights_sha256


def test_frozen_bfloat16_weights_stay_so_in_a_bfloat16_training(lora_args, base_model, tmp_path):
    """They take half the memory, and what is written is what is written without; other weights are left alone."""
    folder = tmp_path / "published"
    shutil.copytree(base_model, folder)
    weights = {name: weight.bfloat16().float() for name, weight in load_file(folder / "model.safetensors").items()}
    odd = next(name for name in weights if name.endswith("query.weight"))
    weights[odd] += 2.0**-20
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    seen = {}

    class Watch(Lora):
        def begin(self, model, precision):
            super().begin(model, "" if seen else precision)
            seen.setdefault("halves", {n for n, p in model.backbone.named_parameters() if p.dtype == torch.bfloat16})

    args = [*lora_args, "--model.model", folder, "--trainer.precision", "bf16-mixed"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("elang.models.finetune.Lora", Watch)
        fit(*args)
        halved = load_file(tmp_path / "model" / "model.safetensors")
        fit(*args)
    assert len(seen["halves"]) == 2 * 6 - 1
    assert not [n for n in seen["halves"] if "embeddings" in n or odd.replace(".weight", ".base_layer.weight") in n]
    whole = load_file(tmp_path / "model" / "model.safetensors")
    assert {weight.dtype for weight in halved.values()} == {torch.float32}
    assert all(torch.equal(weight, whole[name]) for name, weight in halved.items())


def test_weights_keep_the_precision_of_the_training(lora_args, pair, base_model, tmp_path):
    """With bfloat16 alone no layer is of another type; one that broke off in it may go on in float32."""
    args = ["--model", "SwiftModule", "--model.super_records", pair["records"], *lora_args]
    fit(*args, "--trainer.precision", "bf16-true")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    model = load_model(str(base_model), fine_tune=True)
    lora = Lora(model, LoraOptions(4), str(base_model))
    for layer in (layers := [m for m in model.backbone.modules() if isinstance(m, torch.nn.Linear)]):
        layer.weight.data = layer.weight.data.bfloat16().float()
    for precision in ("bf16-mixed", "32-true"):
        lora.begin(model, precision)
        assert any(layer.weight.dtype == torch.bfloat16 for layer in layers) == (precision == "bf16-mixed")


def test_a_swift_as_an_adapter_is_the_merged_one(lora_args, pair, joint_args, data_args, tmp_path, files):
    """Same thresholds, answers and costs; its hash covers the base, which must stay as it is."""
    args = ["--model", "SwiftModule", "--model.super_records", pair["records"], *lora_args]
    fit(*args)
    fit(*args, "--model.lora_merge", "false", "--model.output", tmp_path / "adapter")
    merged, adapter = tmp_path / "model", tmp_path / "adapter"
    names = {path.name for path in adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "router.safetensors", "elang.json"} <= names
    assert "model.safetensors" not in names
    assert (adapter / "adapter_model.safetensors").stat().st_size < (merged / "model.safetensors").stat().st_size / 2
    a, b = (Manifest.read(folder) for folder in (merged, adapter))
    assert a.thresholds == b.thresholds
    assert a.weights_sha256 != b.weights_sha256 == load_model(str(adapter)).weights_sha256
    for name, folder in (("a", merged), ("b", adapter)):
        own = [*joint_args, "--model.swift_model", folder, "--model.output", tmp_path / name]
        assert main(["validate", *map(str, own)]) == 0
    curves = [(tmp_path / name / "curve.csv").read_text() for name in ("a", "b")]
    assert curves[0] == curves[1]
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    shutil.copytree(base, tmp_path / "other")
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace(base, str(tmp_path / "other")))
    assert load_model(str(adapter)).weights_sha256 == b.weights_sha256
    next(tmp_path.glob("other/*.safetensors")).write_bytes((pair["super"] / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="damaged or were replaced"):
        load_model(str(adapter))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resuming_ends_with_the_same_weights(lora_args, base_model, tmp_path, dropout):
    """Bit for bit; the checkpoint holds the adapters and the heads alone, and answers as the folder does."""
    args = [*lora_args, "--trainer.enable_checkpointing", "true", "--model.lora_dropout", dropout]
    fit(*args, "--trainer.callbacks", checkpoints(tmp_path))
    at_once = load_file(tmp_path / "model" / "model.safetensors")
    shutil.rmtree(tmp_path / "model")
    fit(*args, "--ckpt_path", tmp_path / "epoch=0.ckpt")
    resumed = load_file(tmp_path / "model" / "model.safetensors")
    assert {n: float((resumed[n] - v).abs().max()) for n, v in at_once.items()} == dict.fromkeys(at_once, 0.0)
    state = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["state_dict"]
    trained = [
        name for name in state if "lora_" in name or "classifier.backbone.classifier" in name or "pooler" in name
    ]
    assert len(trained) == len(state) == 2 * 12 + 4
    texts = ["the film was great", "a dull plot"]
    assert logits_of(tmp_path / "epoch=1.ckpt", texts) == logits_of(tmp_path / "model", texts)


def test_a_checkpoint_needs_its_base(lora_args, base_model, tmp_path, fails):
    shutil.copytree(base_model, tmp_path / "base")
    args = [*lora_args, "--model.model", tmp_path / "base", "--trainer.enable_checkpointing", "true"]
    fit(*args, "--trainer.callbacks", checkpoints(tmp_path))
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes((tmp_path / "model" / "model.safetensors").read_bytes())
    words = str(tmp_path / "base"), "only the weights that LoRA trains", "Put that model back"
    fails(["fit", *args, "--ckpt_path", tmp_path / "epoch=0.ckpt"], *words)
    with pytest.raises(InputError, match=words[1]):
        load_model(str(tmp_path / "epoch=0.ckpt"))


def test_a_trained_module_is_tested_and_fitted_again(base_model, files, data_args, tmp_path):
    """Its adapters are merged at the end, and taken off where a checkpoint or another training needs them."""
    cli = run_cli("fit", *(["--model.model", base_model, *RANK, "--model.output", tmp_path / "m", *data_args, *FAST]))
    module, data = cli.model, cli.datamodule
    first, *_ = trainer(tmp_path).validate(module, data, verbose=False)
    path = tmp_path / "x.ckpt"
    cli.trainer.save_checkpoint(path)
    second, *_ = trainer(tmp_path).validate(module, data, ckpt_path=str(path), verbose=False, weights_only=True)
    assert second == pytest.approx(first, abs=1e-6)
    loaded = FinetuneModule.load_from_checkpoint(path)
    third, *_ = trainer(tmp_path).validate(loaded, data, verbose=False)
    assert third == pytest.approx(first, abs=1e-6)
    trainer(tmp_path, max_epochs=1).fit(module, data)
    assert any(module.lora.frozen(module.classifier))
    plain = load_model(str(tmp_path / "m")).eval().state_dict()
    ours = module.classifier.state_dict()
    name = "backbone.bert.encoder.layer.0.output.dense"
    torch.testing.assert_close(ours[f"{name}.base_layer.weight"], plain[f"{name}.weight"])


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_models_that_answer_in_words(family, data_args, tmp_path):
    """All but the adapters is frozen, with activations recomputed or not; FLOPs are a plain model's."""
    if family == "t5":
        base = write_t5(tmp_path / "base", ["good film bad plot"])
        data = ["--data.prompt", "{text}", "--data.answers", "[bad, good]"]
    else:
        base = write_causal(tmp_path / "base")
        data = ["--data.prompt", "{text}", "--data.answers", "[b, c]", "--data.max_length", "30"]
    args = ["--model.model", base, *RANK, *data_args, *data, *FAST, "--trainer.max_steps", "3"]
    for name, more in (
        ("a", []),
        ("b", ["--model.gradient_checkpointing", "true"]),
        ("c", ["--model.lora_merge", "false"]),
    ):
        fit(*args, *more, "--model.output", tmp_path / name)
    plain = load_file(tmp_path / "a" / "model.safetensors")
    again = load_file(tmp_path / "b" / "model.safetensors")
    for key, value in plain.items():
        torch.testing.assert_close(value, again[key])
    base_weights = load_file(tmp_path / "base" / "model.safetensors")
    changed = {key for key in plain if not torch.equal(plain[key], base_weights[key])}
    assert changed
    assert not [key for key in changed if "shared" in key or "embed" in key or "lm_head" in key or "norm" in key]
    models = [load_model(str(tmp_path / name)).eval() for name in ("a", "c")]
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert sum(p.numel() for p in models[0].parameters()) == sum(p.numel() for p in models[1].parameters())


def test_two_processes_in_half_precision(lora_args, tmp_path):
    """Plain DDP, without a search for unused parameters."""
    elang_on("fit", *lora_args, "--trainer.precision", "bf16-mixed", processes=2)
    assert all(v.dtype == torch.float32 for v in load_file(tmp_path / "model" / "model.safetensors").values())
    assert load_model(str(tmp_path / "model"))


def test_a_low_learning_rate_is_told_of(lora_args, tmp_path):
    for rate, told in (("5e-5", True), ("5e-4", False)):
        forget_notices()
        run_cli("fit", *lora_args, "--model.lr", rate, "--trainer.max_steps", "1")
        assert ("low-rate" in [one["kind"] for one in notices()]) == told


def test_chosen_layers(lora_args, base_model, tmp_path, fails):
    args = [*lora_args, "--model.lora_modules", "[query, attention.output.dense]", "--model.lora_alpha", "1"]
    module = run_cli("fit", *args).model
    adapted = [name for name, weight in module.classifier.named_parameters() if "lora_A" in name]
    assert len(adapted) == 4
    assert all("query" in name or "attention.output.dense" in name for name in adapted)
    layer = module.classifier.backbone.bert.encoder.layer[0].attention.self.query
    assert layer.scaling["default"] == 0.25
    fails(["fit", *lora_args, "--model.lora_modules", "[q_proj]"], "q_proj", "'dense', 'key', 'query', 'value'")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.lora_alpha", "8"], ["--model.lora_alpha needs --model.lora_rank"]),
        (["--model.lora_merge", "false"], ["--model.lora_merge needs --model.lora_rank"]),
        (["--model.lora_rank", "0"], ["--model.lora_rank is 0"]),
        ([*RANK, "--model.lora_dropout", "1"], ["--model.lora_dropout is 1.0", "[0, 1)"]),
        ([*RANK, "--model.lora_alpha", "-1"], ["--model.lora_alpha is -1.0"]),
    ],
)
def test_options_that_mean_nothing(base_model, data_args, fails, options, words):
    fails(["fit", "--model.model", base_model, *data_args, *FAST, *options], *words)


def test_what_is_trained_is_a_small_part(base_model, data_args, tmp_path):
    """Gradients and the optimizer's states are those of the adapters and the head alone."""
    module = run_cli("fit", "--model.model", base_model, *RANK, "--model.output", tmp_path / "m", *data_args, *FAST)
    weights = list(module.model.classifier.parameters())
    states = module.trainer.optimizers[0].state
    trained = sum(p.numel() for p in weights if p.requires_grad)
    assert sum(state["exp_avg"].numel() for state in states.values()) == trained
    assert all(weight.grad is None for weight in weights if not weight.requires_grad)
    # Rank 4 beside six square and oblong layers of width 32 and 64, in two layers; the pooler, the classifier.
    layers = 2 * 4 * (4 * (32 + 32) + 2 * (32 + 64))
    assert trained == layers + 32 * 33 + 2 * 33
