"""Decoder-only language models that answer in label words after a prompt: every family, training, and whole pairs."""

import json
import shutil

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import FAST, FILLER, QUIET, epochs
from data.test_prompts import CHATML
from inference.test_serve import Models, as_tuples, labels_of, posted

from backends.test_families import DECODERS, LLAMA, WORDS, texts, write_tokenizer
from elang import FinetuneModule, InputError, JointPredictor
from elang.backends import causal_passes
from elang.backends.answer_trie import AnswerTree, AnswerTrie
from elang.backends.causal import CausalLabelDecoder
from elang.backends.causal_passes import Shape, label_words_flops
from elang.backends.encoder import SequenceClassifier
from elang.backends.loading.checkpoints import save_model
from elang.backends.loading.families import check_words
from elang.backends.loading.load import load_model
from elang.cli.verbs import main
from elang.data.encoding import encode_examples
from elang.notices import forget_notices, notices
from elang.records.manifest import Manifest
from elang.tasks.text_task import TextTask

# Letters are tokens. Two levels of branches, a forced token, and an answer of one token; one token each; one beginning.
WORDS_OF = {"tree": ["abc", "abd", "xyz", "xya", "xb", "q"], "single": ["a", "b", "c"], "shared": ["xab", "xac", "xb"]}
MORE = {"falcon with alibi": {**DECODERS["falcon"], "alibi": True}, "granite": LLAMA}
MORE |= {"mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}}
FAMILIES = {**DECODERS, **MORE}
BY_PATHS = {"bloom", "gpt_neo", *MORE}


def task_of(answers, **fields):
    fields = {"answers": answers, "prompt": "Q{text}Z(", "label_words": "prompt", **fields}
    return TextTask.of([f"l{i}" for i in range(len(answers))], fields)


def write_causal(folder, name="llama", pad=True, **own):
    """A tiny random language model of letters, with weights large enough for its answers to differ."""
    from transformers import AutoConfig, AutoModelForCausalLM

    write_tokenizer(folder, **({} if pad else {"pad_token": None}))
    special = {"pad_token_id": 0 if pad else None, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.partition(" ")[0], vocab_size=WORDS, **special, **{**FAMILIES[name], **own})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.2)
    model.save_pretrained(folder)
    return str(folder)


def encoded(model, rows):
    return encode_examples(model.reader, model.task, rows, None, model.reader.limit(60))


@torch.no_grad()
def by_hand(folder, given, tokens):
    """The label logits by one whole forward pass of the library for each word after each prompt."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = []
    for i in range(len(given.lengths)):
        prompt, row = given.batch([i])["input_ids"][0].tolist(), []
        for word in tokens:
            z = plain(input_ids=torch.tensor([prompt + word]), use_cache=False).logits[0, len(prompt) - 1 :]
            value = torch.zeros(())
            for t, token in enumerate(word):
                branches = sorted({w[t] for w in tokens if w[:t] == word[:t]})
                first = all(w[:t] == word[:t] for w in tokens)
                if len(branches) > 1:
                    # Of the first choice the raw logits, of later ones the share of each branch.
                    chosen = z[t, branches] if first else z[t, branches].log_softmax(-1)
                    value = value + chosen[branches.index(token)]
            row.append(value)
        rows.append(torch.stack(row))
    return torch.stack(rows)


FEW, SHARED = ["bloom", "falcon", "gemma2", "gpt2", "llama", "opt"], [("llama", "shared"), ("granite", "shared")]


@pytest.mark.parametrize(("name", "words"), [(n, "tree") for n in FAMILIES] + [(n, "single") for n in FEW] + SHARED)
def test_a_family(tmp_path, name, words):
    """A batch, padded on either side, answers as each text alone, and as the library does word by word."""
    folder = write_causal(tmp_path / "model", name)
    model = load_model(folder, task_of(WORDS_OF[words])).eval()
    assert isinstance(model, CausalLabelDecoder)
    assert model.shape.tree == (name not in BY_PATHS)
    model.add_heads()
    given = encoded(model, texts())
    assert int(given.lengths.max()) == model.reader.limit(60) == 48 - max(map(len, WORDS_OF[words]))
    with torch.no_grad():
        batch = model(given.batch(list(range(6))))
        alone = [model(given.batch([i])) for i in range(6)]
        assert model.tokenizer.padding_side == "left"
        model.tokenizer.padding_side = "right"
        right = model(encoded(model, texts()).batch(list(range(6))))
    tokens = model.prompt.answer_tokens(model.tokenizer, model.task.answers)
    for other in (torch.cat([one.logits for one in alone]), right.logits, by_hand(folder, given, tokens)):
        torch.testing.assert_close(batch.logits, other, rtol=0, atol=1e-5)
    assert model.scores(batch)["router"].shape == (6,)
    for other in (torch.cat([one.pooled for one in alone]), right.pooled):
        torch.testing.assert_close(batch.pooled, other, rtol=0, atol=1e-4)
    assert batch.logits.std(0).min() > 1e-2
    assert batch.pooled.std(0).max() > 1e-2


COUNTED = ["llama", "qwen2", "gemma", "qwen3_moe", "gpt2", "bloom", "granite"]


def made_countable(model):
    """A model whose passes torch counts, after a check that its own formula is one of its family.

    Attention that is not eager is not counted, nor experts in groups.
    """
    model.backbone.set_attn_implementation("eager")
    model.backbone.config._experts_implementation = "batched_mm"
    forget_notices()
    model.check_cost()
    assert not notices()
    return model


@pytest.mark.parametrize(("name", "words"), [(n, "tree") for n in COUNTED] + [("llama", "single"), ("mpt", "single")])
def test_flops_are_those_of_the_forward_pass(tmp_path, name, words):
    """Counted on the model that answers."""
    from torch.utils.flop_counter import FlopCounterMode

    model = made_countable(load_model(write_causal(tmp_path / "model", name), task_of(WORDS_OF[words])).eval())
    given = encoded(model, texts())
    for i in (0, 3, 5):
        inputs = given.batch([i])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(inputs)
        assert float(model.flops(inputs)["flops"]) == pytest.approx(counter.get_total_flops(), rel=1e-3)
    paper = model.flops(given.batch([0, 5]), "paper")["flops"]
    assert paper[0] == paper[1] > 0


def test_many_labels_cost_little():
    """77 labels of up to four tokens after 100 tokens: fewer than 1.5 forward passes over the prompt and a word."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM, LlamaConfig

    chance = torch.Generator().manual_seed(0)
    words = {tuple(torch.randint(30, (4,), generator=chance).tolist()) for _ in range(77)}
    assert len(words) == 77
    trie = AnswerTrie.of([list(word) for word in words])
    config = LlamaConfig(
        vocab_size=8000, hidden_size=576, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=9
    )
    config.num_key_value_heads = 3
    shape = Shape.of(config, trie, AnswerTree.of(trie))
    # Most words share no more than their first token.
    assert shape.nodes < 77
    ours = float(label_words_flops(config, torch.tensor([100]), shape))
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            plain(input_ids=torch.ones(1, 104, dtype=torch.int64), attention_mask=torch.ones(1, 104))
    assert ours < 1.5 * counter.get_total_flops()


def test_a_trie_as_a_tree():
    trie = AnswerTrie.of([[1, 2, 3], [1, 2, 4], [1, 5, 6, 7], [1, 5, 6, 8], [1, 9]])
    tree = AnswerTree.of(trie)
    assert tree.tokens.tolist() == [1, 2, 5, 6]
    assert tree.depth.tolist() == [1, 2, 2, 3]
    assert tree.sees.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    assert sorted(tree.place.tolist()) == [1, 2, 4]
    assert len(AnswerTree.of(AnswerTrie.of([[1, 2], [3, 2]])).tokens) == 0


def test_a_tree_that_inference_moved_can_be_trained():
    trie = AnswerTrie.of([[1, 2], [1, 3], [4, 5]])
    for indices in (trie, AnswerTree.of(trie)):
        with torch.inference_mode():
            moved = indices.to(torch.device("meta"))
        assert {(each.device.type, each.is_inference()) for each in vars(moved).values()} == {("meta", False)}
        assert moved.to(torch.device("meta")) is moved


@pytest.mark.parametrize("words", WORDS_OF)
@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_the_loss_is_that_of_the_answers_tokens(tmp_path, name, words):
    """With and without the labels' logits, and whatever the padding; of no token of the prompt."""
    from transformers import AutoModelForCausalLM

    folder = write_causal(tmp_path / "model", name)
    model = load_model(folder, task_of(WORDS_OF[words]), fine_tune=True).eval()
    given, target = encoded(model, texts()), torch.tensor([0, 1, 2, 2, 1, 0])
    tokens = model.prompt.answer_tokens(model.tokenizer, model.task.answers)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    total, count = torch.zeros(()), 0
    for i, label in enumerate(target.tolist()):
        prompt = given.batch([i])["input_ids"][0].tolist()
        z = plain(input_ids=torch.tensor([prompt + tokens[label]])).logits[0, len(prompt) - 1 : -1]
        total = total + F.cross_entropy(z, torch.tensor(tokens[label]), reduction="sum")
        count += len(tokens[label])
    (total / count).backward()
    batch = given.batch(list(range(6)))
    for wanted in (True, False):
        model.zero_grad()
        answer = model(batch, target, want_logits=wanted)
        torch.testing.assert_close(answer.loss, total / count, rtol=1e-5, atol=1e-5)
        answer.loss.backward()
        for (key, ours), theirs in zip(model.backbone.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=key)
    with torch.no_grad():
        torch.testing.assert_close(model(batch, target).logits, model(batch).logits, rtol=0, atol=1e-5)


def test_a_tree_and_its_paths_train_alike(tmp_path, monkeypatch):
    """The gradients of label logits are the same by one pass, and by one for each path; with checkpoints, too."""
    folder = write_causal(tmp_path / "model")
    grads = []
    for families, checkpointing in ((causal_passes._ANY_MASK, False), (frozenset(), False), (frozenset(), True)):
        monkeypatch.setattr(causal_passes, "_ANY_MASK", families)
        model = load_model(folder, task_of(WORDS_OF["tree"]), fine_tune=True)
        assert model.shape.tree == bool(families)
        model.prepare_training(0.0, freeze_embeddings=False, checkpointing=checkpointing, compiled=False)
        logits = model(encoded(model, texts()).batch(list(range(6)))).logits
        logits.square().sum().backward()
        grads.append([weight.grad.clone() for weight in model.backbone.parameters()])
    for others in grads[1:]:
        torch.testing.assert_close(others, grads[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["gemma2", "gpt_neo", "qwen2"])
@pytest.mark.parametrize("words", [True, False])
def test_the_first_layers_of_families_that_list_theirs(tmp_path, name, words):
    folder = write_causal(tmp_path / "base", name)
    task = task_of(WORDS_OF["tree"]) if words else TextTask.of(["a", "b"])
    model = load_model(folder, task, fine_tune=True, layers=1).eval()
    save_model(model, tmp_path / "model", Manifest(model.label_names, task.plain()))
    again = load_model(str(tmp_path / "model")).eval()
    inputs = encoded(model, texts()).batch(list(range(6)))
    with torch.no_grad():
        torch.testing.assert_close(again(inputs).logits, model(inputs).logits)


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "falcon", "bloom", "opt"])
def test_without_a_padding_token(tmp_path, name):
    """None is needed, and the model's configuration stays as it was."""
    folder = write_causal(tmp_path / "model", name, pad=False)
    forget_notices()
    model = load_model(folder, task_of(WORDS_OF["tree"])).eval()
    assert [one["kind"] for one in notices()] == ["label-words"]
    assert model.backbone.config.pad_token_id is None
    given = encoded(model, texts())
    with torch.no_grad():
        batch = model(given.batch(list(range(6)))).logits
        alone = torch.cat([model(given.batch([i])).logits for i in range(6)])
    torch.testing.assert_close(batch, alone, rtol=0, atol=1e-4)


def test_one_answer_begins_another(tmp_path):
    """Each then ends with the end of text; without one they are refused."""
    folder = write_causal(tmp_path / "model")
    model = load_model(folder, task_of(["no", "not", "yes"])).eval()
    ids = model.answer_ids.tolist()
    assert [[*row[: row.index(3)], 3] for row in ids] == [
        [*model.tokenizer(word, add_special_tokens=False)["input_ids"], 3] for word in ("no", "not", "yes")
    ]
    given = encoded(model, texts())
    with torch.no_grad():
        logits = model(given.batch(list(range(6)))).logits
    tokens = [[token for token in row if token >= 0] for row in ids]
    torch.testing.assert_close(logits, by_hand(folder, given, tokens), rtol=0, atol=1e-5)
    model.tokenizer.eos_token = None
    with pytest.raises(InputError, match="begins another, and the tokenizer has no end of text"):
        CausalLabelDecoder(model.backbone, model.tokenizer, model.task)
    with pytest.raises(InputError, match="have the same tokens"):
        load_model(folder, task_of(["no", "no"]))


def test_values_are_answered_in_words(base):
    """The mean of the numbers that it can say; what is trained is the nearest one."""
    fields = {"problem": "regression", "prompt": "text: {text}", "label_words": "prompt", "qualities": ["pearson"]}
    model = load_model(base, TextTask.of(["value"], {**fields, "answers": ["1", "2", "3"]}), fine_tune=True).eval()
    classes = load_model(base, task_of(["1", "2", "3"], prompt="text: {text}")).eval()
    inputs, target = encoded(model, [("good",), ("bad",)]).batch([0, 1]), torch.tensor([2.2, 9.0])
    with torch.no_grad():
        answer, other = model(inputs, target), classes(inputs, torch.tensor([1, 2]))
    expected = (other.logits.softmax(-1) * torch.tensor([1.0, 2.0, 3.0])).sum(-1)
    torch.testing.assert_close(answer.prediction.float(), expected)
    torch.testing.assert_close(answer.loss, other.loss)
    with pytest.raises(InputError, match="must be numbers"):
        load_model(base, TextTask.of(["value"], {**fields, "answers": ["good", "bad"]}))


def test_what_label_words_are_not_for(tmp_path, base_model):
    folder = write_causal(tmp_path / "model")
    candidates = TextTask.of(
        ["0", "1"], {"problem": "choice", "prompt": "{text}", "answers": [], "label_words": "prompt"}
    )
    with pytest.raises(InputError, match="in words that all examples share"):
        load_model(folder, candidates)
    with pytest.raises(InputError, match="it does not generate them"):
        load_model(folder, task_of(["a", "b"]), generate=True)
    with pytest.raises(InputError, match="no place for a text"):
        load_model(folder, task_of(["a", "b"], prompt="Which?"))
    with pytest.raises(InputError, match="no chat template"):
        load_model(folder, task_of(["a", "b"], label_words="chat"))
    # An encoder has no words, however it is asked.
    assert isinstance(load_model(str(base_model), task_of(["a", "b"]), fine_tune=True), SequenceClassifier)


def test_a_head_without_training_names_the_other_way(tmp_path):
    folder = write_causal(tmp_path / "model")
    with pytest.raises(InputError, match=r"Fine-tune it with `elang fit`\. Untrained.*--data\.label_words true"):
        load_model(folder, TextTask.of(["a", "b"]))
    path = tmp_path / "model" / "model.safetensors"
    from safetensors.torch import load_file, save_file

    weights = {name: value for name, value in load_file(path).items() if name != "lm_head.weight"}
    save_file(weights, path, metadata={"format": "pt"})
    for fine_tune in (True, False):
        with pytest.raises(InputError, match=r"lacks 1 of its .*lm_head\.weight.*Give a complete model"):
            load_model(folder, task_of(["a", "b"]), fine_tune=fine_tune)


def test_a_family_whose_answers_depend_on_the_batch(tmp_path, monkeypatch):
    folder = write_causal(tmp_path / "model", "granite")
    asked = causal_passes.chain_pass

    def blind(backbone, ids, mask, **more):
        return asked(backbone, ids, torch.ones_like(mask), **more)

    monkeypatch.setattr(causal_passes, "chain_pass", blind)
    monkeypatch.setattr("elang.backends.decoder_only.chain_pass", blind)
    with pytest.raises(InputError, match="'granite' model has answers that depend on what else is in a batch"):
        load_model(folder, task_of(WORDS_OF["single"]))


def test_a_loader_may_pad_on_the_right(tmp_path):
    """As the tokenizer in a model's files does."""
    from transformers import AutoTokenizer

    task = task_of(WORDS_OF["tree"])
    module = FinetuneModule(write_causal(tmp_path / "model"), task.label_names, task.plain()).eval()
    prompts = [task.prompt_text(row) for row in texts()]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    answers = []
    for side in ("left", "right"):
        tokenizer.padding_side = side
        with torch.no_grad():
            answers.append(module(**tokenizer(prompts, padding=True, return_tensors="pt")).logits)
    torch.testing.assert_close(*answers, rtol=0, atol=1e-5)


def test_half_precision_keeps_logits_in_float32(tmp_path):
    folder = write_causal(tmp_path / "model")
    plain = load_model(folder, task_of(WORDS_OF["tree"])).eval()
    model = load_model(folder, task_of(WORDS_OF["tree"]), dtype=torch.bfloat16).eval()
    assert model.backbone.dtype == torch.bfloat16
    inputs = encoded(model, texts()).batch(list(range(6)))
    with torch.no_grad():
        half, whole = model(inputs).logits, plain(inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            mixed = plain(inputs).logits
    assert half.dtype == mixed.dtype == torch.float32
    for rough in (half, mixed):
        torch.testing.assert_close(rough, whole, rtol=0, atol=0.3)


# A whole pair.


def word_tokenizer(words, length=64, split="Whitespace"):
    """A tokenizer that reads whole words, of which the first three are special, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = getattr(pre_tokenizers, split)()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": length}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHATML, **special)


@pytest.fixture(scope="module")
def base(tmp_path_factory, files):
    """An untrained Llama of two layers that reads whole words, with a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = str(tmp_path_factory.mktemp("causal") / "base")
    words = ["<s>", "</s>", "<unk>", "text", "label", ":", *FILLER, "good", "great", "fine", "superb", "bad", "poor"]
    words += ["awful", "dull", "1", "2", "3", "<|user|>", "<|assistant|>", "<|system|>"]
    word_tokenizer(words).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {**LLAMA, "hidden_size": 32, "intermediate_size": 64}
    config = LlamaConfig(
        vocab_size=len(words), bos_token_id=0, eos_token_id=1, tie_word_embeddings=True, initializer_range=0.1, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words_args(data_args):
    return [*data_args, "--data.label_words", "true"]


@pytest.fixture(scope="module")
def causal_pair(tmp_path_factory, base, words_args):
    """A trained Super, its records, a Swift of one layer that learned from them, and their evaluation, as paths."""
    root = tmp_path_factory.mktemp("causal_pair")
    paths = {name: str(root / name) for name in ("super", "super.parquet", "swift", "joint")}
    fit = ["fit", *words_args, *FAST, "--trainer.default_root_dir", str(root), "--model.model", base]
    assert main([*fit, "--model.output", paths["super"], *epochs(6)]) == 0
    score = ["score", "--model.model", paths["super"], "--model.output", paths["super.parquet"]]
    assert main([*score, *words_args, *QUIET]) == 0
    swift = ["--model", "SwiftModule", "--model.layers", "1", "--model.super_records", paths["super.parquet"]]
    swift += ["--model.margin_weight", "0.1", "--model.score", "free_energy", "--model.output", paths["swift"]]
    assert main([*fit, *swift, *epochs(2)]) == 0
    joint = ["--model.swift_model", paths["swift"], "--model.super_model", paths["super"]]
    assert main(["validate", *joint, *words_args, *QUIET, "--model.output", paths["joint"]]) == 0
    return paths


def test_a_packed_training_ends_with_the_same_weights(causal_pair, base, words_args, tmp_path):
    """A Swift learns labels, the Super's logits and a margin, and gets its router and thresholds, packed or not."""
    from safetensors.torch import load_file

    swift = ["fit", "--model", "SwiftModule", *words_args, *FAST, "--model.model", base, "--model.score", "free_energy"]
    swift += ["--model.super_records", causal_pair["super.parquet"], "--trainer.max_steps", "5"]
    swift += ["--seed_everything", "1", "--trainer.limit_val_batches", "0", "--model.margin_weight", "0.1"]
    folders = [tmp_path / name for name in ("packed", "plain")]
    for folder in folders:
        packing = str(folder.name == "packed").lower()
        assert main([*swift, "--model.packing", packing, "--model.output", str(folder)]) == 0
    for name in ("model", "router"):
        packed, plain = (load_file(folder / f"{name}.safetensors") for folder in folders)
        for key, weight in plain.items():
            torch.testing.assert_close(packed[key], weight, rtol=1e-3, atol=1e-3, msg=key)
    assert Manifest.read(folders[0]).thresholds.keys() == Manifest.read(folders[1]).thresholds.keys()


def test_a_pair_learns_routes_and_is_certified(causal_pair, files, tmp_path):
    task = Manifest.read(causal_pair["swift"]).task
    assert (task["label_words"], task["prompt"]) == ("prompt", "text: {text}\nlabel:")
    summary = json.loads((tmp_path.parent / causal_pair["joint"] / "summary.json").read_text())
    assert summary["qualities"]["accuracy"]["super"]["quality"] > 0.8
    records = pd.read_parquet(f"{causal_pair['joint']}/records.parquet")
    assert {"score_free_energy", "score_router"} <= set(records)
    assert (records["swift_flops"] < records["super_flops"]).all()
    assert main(["calibrate", causal_pair["joint"], "--max_regret", "0.4", "--confidence", "0.6"]) == 0
    # In Python, in a stream, and behind the service, in any batch; a few texts take the short way.
    frame = records.query("split == 'validation'")
    lines = pd.read_csv(files[1])["text"].tolist()
    models = (causal_pair["swift"], causal_pair["super"])
    threshold = float(frame["score_free_energy"].median())
    deferred = (frame["score_free_energy"] > threshold).tolist()
    expected = frame["super_prediction"].where(deferred, frame["swift_prediction"])
    for few in (0, 4):
        predictor = JointPredictor(*models, threshold, "free_energy", device="cpu", batch_size=5, few=few)
        answers = predictor(lines) if not few else [predictor([line])[0] for line in lines]
        near = [abs(score - threshold) < 1e-4 for score in frame["score_free_energy"]]
        for one, label, hard, close, score in zip(
            answers, expected, deferred, near, frame["score_free_energy"], strict=True
        ):
            assert one.score == pytest.approx(score, abs=1e-4)
            assert close or (one.label == ["bad", "good"][label] and (one.answered_by == "super") == hard)
    (response,) = posted(Models(predictor).service(), {"texts": lines[:3]})
    assert labels_of(response) == as_tuples(answers[:3])


def test_its_folder_answers_in_plain_transformers(causal_pair, files):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(causal_pair["super"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(causal_pair["super"])
    frame = pd.read_parquet(causal_pair["super.parquet"]).query("split == 'validation'")
    labels = tokenizer.convert_tokens_to_ids(["bad", "good"])
    for text, logits in zip(pd.read_csv(files[1])["text"][:9], frame["logits"], strict=False):
        ids = tokenizer(f"text: {text}\nlabel:", add_special_tokens=False, return_tensors="pt")["input_ids"]
        expected = model(input_ids=ids).logits[0, -1, labels]
        assert logits.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_checkpoint_is_the_same_model(base, words_args, tmp_path):
    fit = ["fit", *words_args, *QUIET, "--model.model", base, "--trainer.default_root_dir", str(tmp_path)]
    assert main([*fit, "--model.output", str(tmp_path / "model"), "--trainer.max_steps", "3"]) == 0
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    one, two = load_model(str(tmp_path / "model")).eval(), load_model(str(checkpoint)).eval()
    assert isinstance(two, CausalLabelDecoder)
    inputs = encoded(one, [("the film was good",), ("dull",)]).batch([0, 1])
    with torch.no_grad():
        torch.testing.assert_close(one(inputs).logits, two(inputs).logits)


def told():
    return [one["text"] for one in notices() if one["kind"] == "label-words"]


def test_which_way_a_model_answers(base, causal_pair, data_args, words_args, tmp_path, fails):
    """Words where they are asked for, a head where not; a finished model as it was trained."""
    score = ["score", *QUIET, "--model.output", str(tmp_path / "records.parquet")]
    fails([*score, "--model.model", base, *data_args], "--data.label_words true")
    forget_notices()
    assert main([*score, "--model.model", base, *words_args]) == 0
    assert "answers in label words, ['bad', 'good'], after the prompt 'text: {text}\\nlabel:'" in told()[0]
    forget_notices()
    asked = ["--data.prompt", "{text} good or bad?", "--data.answers", "[poor, fine]"]
    assert main([*score, "--model.model", base, *data_args, *asked]) == 0
    assert "['poor', 'fine']" in told()[0]
    forget_notices()
    assert main([*score, "--model.model", causal_pair["super"], *words_args]) == 0
    assert not told()
    fails([*score, "--model.model", causal_pair["super"], *words_args, "--data.prompt", "{text}?"], "--data.prompt")
    fails(
        [*score, "--model.model", causal_pair["super"], *words_args, "--data.chat", "true"],
        "--data.chat and --data.system as in training",
        "true",
    )
    # A head: by default, and where words are refused; it stays one when words are asked for.
    fit = ["fit", *data_args, *FAST, "--model.model", base, "--trainer.max_steps", "1"]
    for name, more in (("default", []), ("false", [*asked, "--data.label_words", "false"])):
        assert main([*fit, *more, "--model.output", str(tmp_path / name)]) == 0
        assert isinstance(load_model(str(tmp_path / name)), SequenceClassifier)
    assert not told()
    head = shutil.copytree(tmp_path / "default", tmp_path / "head")
    assert main([*score, "--model.model", str(head), *words_args]) == 0
    assert isinstance(load_model(str(head), task_of(["a", "b"]), fine_tune=True), SequenceClassifier)
    assert "is a classifier by its config.json" in told()[0]


def test_an_encoder_decoder_is_asked_without_a_chat(tmp_path):
    """It may be the partner of a model that is asked in one."""
    trained, asked = task_of(["a", "b"]), task_of(["a", "b"], label_words="chat", system="short")
    check_words(trained, asked, "a T5", after_prompt=False)
    with pytest.raises(InputError, match=r"trained with --data.chat false .* the data has true and 'short'"):
        check_words(trained, asked, "a Llama", after_prompt=True)


def test_a_chat_is_trained_and_answered_as_one(base, words_args, tmp_path, files):
    fit = ["fit", *words_args, *FAST, "--model.model", base, "--trainer.max_steps", "2"]
    chat = ["--data.chat", "true", "--data.system", "good or bad"]
    assert main([*fit, *chat, "--model.output", str(tmp_path / "model")]) == 0
    model = load_model(str(tmp_path / "model")).eval()
    assert (model.task.label_words, model.task.system) == ("chat", "good or bad")
    assert model.prompt.template.startswith("<|system|>good or bad</s>\n<|user|>text: {text}")
    predictor = JointPredictor(None, str(tmp_path / "model"), device="cpu")
    (answer,) = predictor(["the film was good"])
    ids = model.tokenizer.apply_chat_template(
        [{"role": "system", "content": "good or bad"}, {"role": "user", "content": "text: the film was good\nlabel:"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    logits = model.backbone(input_ids=ids).logits[0, -1, model.tokenizer.convert_tokens_to_ids(["bad", "good"])]
    assert answer.label == ["bad", "good"][int(logits.argmax())]


def test_a_published_model_is_the_super_of_any_swift(base, pair, causal_pair, tmp_path):
    """It answers what the Swift was trained for, in words."""
    swift = shutil.copytree(pair["swift"], tmp_path / "swift")
    manifest = json.loads((swift / "elang.json").read_text())
    manifest["task"] |= {"label_words": "prompt", "prompt": "text: {text}\nlabel:"}
    (swift / "elang.json").write_text(json.dumps(manifest))
    predictor = JointPredictor(str(swift), base, "-inf", device="cpu")
    assert isinstance(predictor.super_, CausalLabelDecoder)
    assert {one.answered_by for one in predictor(["the film was good", "dull"])} == {"super"}


def test_texts_that_are_cut_are_counted(base, words_args, tmp_path):
    forget_notices()
    score = ["score", "--model.model", base, *words_args, *QUIET, "--model.output", str(tmp_path / "r.parquet")]
    assert main([*score, "--data.max_length", "12"]) == 0
    assert any("were cut" in one["text"] and "longer than 12 tokens" in one["text"] for one in notices())
    frame = pd.read_parquet(tmp_path / "r.parquet")
    assert frame["tokens"].max() == 12
