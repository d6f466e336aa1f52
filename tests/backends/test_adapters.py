"""Adapters of peft: of several families, those of others, and what is refused."""

import json
import shlex
import shutil
from importlib.util import find_spec

import pytest
import torch
from conftest import write_model
from safetensors.torch import load_file, save_file

from backends.test_causal import WORDS_OF, task_of, write_causal
from backends.test_families import task_of as heads_task
from backends.test_families import texts, write_family
from elang import InputError
from elang.backends.loading import adapters
from elang.backends.loading.checkpoints import save_model
from elang.backends.loading.load import load_model
from elang.backends.loading.lora import Lora, LoraOptions
from elang.data.encoding import encode_examples
from elang.records.manifest import Manifest
from elang.tasks.text_task import TextTask

HAS_PEFT = find_spec("peft") is not None
needs_peft = pytest.mark.skipif(not HAS_PEFT, reason="peft is not installed: pip install 'elang-joint[peft]'")
TASK3 = TextTask.of(["a", "b", "c"], None)
# Layers that are shared, stored the other way round, of mixtures of experts, beside relative positions.
FAMILIES = {
    "encoder": ["albert", "bert", "deberta-v2", "mpnet", "xlnet", "squeezebert"],
    "decoder": ["gpt2", "llama", "mixtral", "opt"],
    "text-to-text": ["bart", "mt5", "prophetnet"],
    "words": ["bloom", "gpt2", "granite", "llama", "qwen3_moe"],
}


def make(folder, kind, name):
    if kind == "words":
        return write_causal(folder, name), task_of(WORDS_OF["tree"])
    return write_family(folder, kind, name), heads_task(kind == "text-to-text")


@needs_peft
@pytest.mark.parametrize(("kind", "name"), [(k, name) for k, names in FAMILIES.items() for name in names])
def test_a_family(tmp_path, kind, name):
    """A new adapter changes nothing; a trained one answers alike beside its layers, merged, and written either way."""
    folder, task = make(tmp_path / "base", kind, name)
    model = load_model(folder, task, fine_tune=True)
    if name == "squeezebert":
        # Its layers are convolutions.
        with pytest.raises(InputError, match="no linear layers"):
            Lora(model, LoraOptions(4), folder)
        return
    given = encode_examples(model.reader, model.task, texts(), None, model.reader.limit(60)).batch(list(range(6)))

    @torch.no_grad()
    def logits(one):
        return one.eval()(given).logits

    before, lora = logits(model), Lora(model, LoraOptions(4, merge=False), folder)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-6)
    with torch.no_grad():
        for weight_name, weight in model.backbone.named_parameters():
            if "lora_B" in weight_name:
                weight.normal_(0, 0.05)
    model.train()
    model(given, torch.zeros(6, dtype=torch.long)).loss.backward()
    graded = {n for n, p in model.backbone.named_parameters() if p.grad is not None}
    assert any("lora_B" in n for n in graded)
    assert graded <= {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    apart = logits(model)
    assert (apart - before).abs().max() > 1e-2
    lora.merge(model)
    torch.testing.assert_close(logits(model), apart, rtol=0, atol=1e-5)
    save_model(model, tmp_path / "adapter", Manifest(model.label_names, model.task.plain()), lora)
    lora.options = LoraOptions(4)
    save_model(model, tmp_path / "merged", Manifest(model.label_names, model.task.plain()), lora)
    loaded = [logits(load_model(str(tmp_path / which))) for which in ("adapter", "merged")]
    torch.testing.assert_close(loaded[0], loaded[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(loaded[0], apart, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("adapters") / "base")


@pytest.fixture(scope="module")
def theirs(base, tmp_path_factory):
    """A folder as peft itself writes it, with random weights, and the answers of its merged model."""
    if not HAS_PEFT:
        pytest.skip("peft is not installed")
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("theirs") / "adapter"
    torch.manual_seed(1)
    # A head of two classes is replaced.
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True).eval()
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=["query", "value"], use_rslora=True, use_dora=True, task_type=TaskType.SEQ_CLS
    )
    model = get_peft_model(plain, config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    ids = torch.tensor([[2, 5, 9, 3], [2, 6, 12, 3]])
    with torch.no_grad():
        return folder, ids, model(input_ids=ids).logits


def test_an_adapter_of_peft(theirs, base, monkeypatch):
    """Its base is read from its configuration, its classes from its head; as peft wrote it, and as a plain base."""
    folder, ids, expected = theirs
    loaded = []
    monkeypatch.setattr(adapters, "load_file", lambda path: loaded.append(path) or load_file(path))
    model = load_model(str(folder)).eval()
    # Once, although its head's size is needed first.
    assert len(loaded) == 1
    assert model.label_names == ["LABEL_0", "LABEL_1", "LABEL_2"]
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(input_ids=ids).logits, expected, rtol=0, atol=1e-5)
    assert not [name for name in model.state_dict() if "lora" in name or "base_layer" in name]
    assert model.weights_sha256
    assert all(weight.requires_grad for weight in load_model(str(folder), fine_tune=True, task=TASK3).parameters())


def test_an_adapter_is_fine_tuned_and_cannot_be_put_on_another(theirs, tmp_path):
    folder = str(theirs[0])
    model = load_model(folder, TASK3, fine_tune=True)
    with pytest.raises(InputError, match="an adapter on an adapter"):
        Lora(model, LoraOptions(2, merge=False), folder)
    with pytest.raises(InputError, match=r"--model\.layers cannot cut the adapter"):
        load_model(folder, TASK3, fine_tune=True, layers=1)
    Lora(model, LoraOptions(2), folder)


def edited(theirs, tmp_path, **fields):
    folder = shutil.copytree(theirs[0], tmp_path / "edited")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return str(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base_model_name_or_path": "owner/name"}, ["without a revision", "commit hash"]),
        ({"base_model_name_or_path": "/nowhere/base"}, ["'/nowhere/base'", "Correct base_model_name_or_path"]),
        ({"base_model_name_or_path": None}, ["is not there"]),
        ({"base_model_name_or_path": "owner/name", "revision": "0" * 40}, ["cannot be loaded", "'owner/name@000"]),
        ({"base_model_name_or_path": "owner/name@" + "0" * 40}, ["cannot be loaded", "'owner/name@000"]),
        ({"base_model_name_or_path": "edited"}, ["itself an adapter"]),
        ({"target_modules": ["key"]}, ["does not fit its base", "lora_"]),
        ({"r": 2}, ["does not fit its base"]),
        ({"peft_type": "NONE"}, ["does not fit its base"]),
    ],
)
def test_an_adapter_whose_base_is_not_there_or_does_not_fit(theirs, tmp_path, monkeypatch, fields, words):
    folder = edited(theirs, tmp_path, **fields)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words[0]) as error:
        load_model(folder)
    assert folder in str(error.value)
    assert all(word in str(error.value) for word in words[1:])
    assert "\n" not in str(error.value)


def test_a_base_beside_its_adapter_and_an_adapter_as_a_pickle(theirs, base, tmp_path, monkeypatch):
    # Beside the folder that the tests run in there may be one of that name.
    monkeypatch.chdir(tmp_path)
    folder = edited(theirs, tmp_path, base_model_name_or_path="../base")
    shutil.copytree(base, tmp_path / "base")
    assert load_model(folder)
    file = tmp_path / "edited" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(InputError, match="as a pickle") as error:
        load_model(folder)
    exec(shlex.split(str(error.value)[str(error.value).index("python -c") :])[2], {})
    assert load_model(folder)


@needs_peft
def test_a_prompt_is_no_adapter_to_merge(base, tmp_path):
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(base)
    get_peft_model(plain, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)).save_pretrained(tmp_path / "p")
    with pytest.raises(InputError, match="PROMPT_TUNING, which cannot be merged"):
        load_model(str(tmp_path / "p"))


def test_without_peft(base, tmp_path, monkeypatch):
    """One sentence with what to install, or how to merge it elsewhere."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'elang-joint\[peft\]'.*merge_and_unload"):
        load_model(str(tmp_path))
    monkeypatch.setattr("elang.errors.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--model\.lora_rank needs peft: pip install 'elang-joint\[peft\]'"):
        LoraOptions(4)


def test_words_of_an_adapter_of_a_language_model(tmp_path):
    """A third party's adapter of a language model answers in label words, as its base does."""
    if not HAS_PEFT:
        pytest.skip("peft is not installed")
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder, task = write_causal(tmp_path / "base"), task_of(WORDS_OF["tree"])
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    model.save_pretrained(tmp_path / "adapter")
    answers = [load_model(path, task).eval() for path in (folder, str(tmp_path / "adapter"))]
    given = encode_examples(answers[0].reader, task, texts(), None, 40).batch([0, 1, 2])
    with torch.no_grad():
        # A new adapter is the base.
        assert torch.equal(answers[0](given).logits, answers[1](given).logits)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file({n: w + 0.3 for n, w in weights.items()}, tmp_path / "adapter" / "adapter_model.safetensors")
    with torch.no_grad():
        assert not torch.allclose(
            answers[0](given).logits, load_model(str(tmp_path / "adapter"), task).eval()(given).logits
        )


@needs_peft
def test_a_base_of_the_hub(tmp_path, base, monkeypatch):
    """Its adapter names it with the commit, is loaded beside it from the cache, and covers it by its hash."""
    from huggingface_hub import constants

    commit = "0123456789" * 4
    cached = tmp_path / "hub" / "models--owner--name" / "snapshots" / commit
    shutil.copytree(base, cached)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "hub"))
    path, folder = f"owner/name@{commit}", str(tmp_path / "adapter")
    model = load_model(path, TASK3, fine_tune=True)
    lora = Lora(model, LoraOptions(2, merge=False), path)
    lora.merge(model)
    save_model(model, folder, Manifest(model.label_names, TASK3.plain()), lora)
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (about["base_model_name_or_path"], about["revision"]) == ("owner/name", commit)
    assert load_model(folder).weights_sha256 == Manifest.read(folder).weights_sha256
    weights = load_file(cached / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, cached / "model.safetensors")
    with pytest.raises(InputError, match="damaged or were replaced"):
        load_model(folder)
