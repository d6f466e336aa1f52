"""Decoder-only language models that generate texts: every family, scores, costs, training, and whole pairs."""

import json
import random
import shutil
from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from conftest import QUIET, SOURCE_WORDS, TARGET_WORDS, epochs, read_curve, write_seq2seq
from data.test_prompts import CHATML
from inference.test_serve import Models, as_tuples, labels_of, posted
from models.test_clusters import elang, spread

from backends.test_adapters import needs_peft
from backends.test_causal import made_countable, word_tokenizer, write_causal
from backends.test_families import texts
from backends.test_prompts import write_config
from elang import InputError, JointPredictor
from elang.backends.causal_generator import CausalGenerator
from elang.backends.causal_passes import cache_name
from elang.backends.generator import TextGenerator
from elang.backends.loading.load import load_model
from elang.backends.loading.weights import check_state
from elang.backends.network import InferenceOptions
from elang.backends.recorded import RecordedBackend
from elang.backends.seconds import pair_latency
from elang.backends.text_scores import SAMPLES, Check, Noise, drawn_by
from elang.cli.verbs import main
from elang.data.encoding import encode_examples, encode_texts
from elang.data.prompts import turn_end
from elang.method.scores import SEQUENCE_SCORES, sequence_scores, token_scores
from elang.models.loaders import LoaderBatches
from elang.notices import forget_notices, notices
from elang.records.manifest import Manifest
from elang.tasks.sampling import Sampling
from elang.tasks.text_task import TextTask

TASK = TextTask([], "sequence", segments=[], qualities=["exact_text"], prompt="Q{text}Z(")
FAMILIES = ["bloom", "falcon", "gemma", "gemma2", "gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "opt", "phi"]
FAMILIES += ["qwen2", "qwen3", "qwen3_moe", "smollm3", "mpt"]
TOKENS = 10


def made_of(folder, beams=1, heads=False, **options):
    model = load_model(folder, TASK, **options).eval()
    assert isinstance(model, CausalGenerator)
    model.configure_generation(TOKENS, beams)
    if heads:
        model.add_heads()
    return model


def encoded(model, rows, references=None):
    limit = model.reader.limit(60)
    return encode_examples(model.reader, TASK, rows, None, limit, references, max_target_length=TOKENS)


def plain_of(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def by_the_library(plain, given, i, beams):
    """The tokens that ``generate`` makes of one prompt, up to their end, and their scores by one forward pass."""
    prompt = given.batch([i])["input_ids"]
    how = {"max_new_tokens": TOKENS, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
    ids = plain.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **how)[0, prompt.shape[1] :].tolist()
    ids = torch.tensor(ids[: ids.index(3) + 1] if 3 in ids else ids)
    logits = plain(input_ids=torch.cat([prompt, ids[None]], 1), use_cache=False).logits[0, prompt.shape[1] - 1 : -1]
    return ids, sequence_scores(token_scores(logits, ids)[None], torch.tensor([len(ids)]))[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(tmp_path, name):
    """A batch, padded on either side, writes as each prompt alone, and as the library does.

    The scores are those of one forward pass over prompt and text; it does not matter if there is a padding token.
    """
    for pad, beams in ((False, 1), (True, 3), *([(True, 1)] if name in ("llama", "bloom") else [])):
        folder = write_causal(tmp_path / f"{pad}{beams}", name, pad)
        model, plain = made_of(folder, beams, heads=True), plain_of(folder)
        given = encoded(model, texts())
        assert int(given.lengths.max()) == 48 - TOKENS
        with torch.no_grad():
            model.tokenizer.padding_side = "right"
            right = model.generate(model.encode(encoded(model, texts()).batch(list(range(6)))))
            model.tokenizer.padding_side = "left"
            batch = model.generate(model.encode(given.batch(list(range(6)))))
            alone = [model.generate(model.encode(given.batch([i]))) for i in range(6)]
        for i, one in enumerate(alone):
            ids, scores = by_the_library(plain, given, i, beams)
            for made, row in ((batch, i), (right, i), (one, 0)):
                assert made.ids[row, : int(made.steps[row])].tolist() == ids.tolist()
                torch.testing.assert_close(made.scores[row], scores, rtol=0, atol=1e-4)
                torch.testing.assert_close(made.encoded.pooled[row], one.encoded.pooled[0], rtol=0, atol=1e-4)
        assert batch.encoded.pooled.std(0).max() > 1e-2
        assert model.scores(batch)["prompt_router"].shape == (6,)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_cache_of_fixed_size(tmp_path, name):
    folder = write_causal(tmp_path / "model", name)
    model = made_of(folder)
    model.ask_for("agreement")
    inputs = encoded(model, texts()).batch(list(range(6)))
    made = [model.generate(model.encode(inputs))]
    agreement = model.score_of("agreement", made[0])
    model.use_static_cache(True)
    from transformers import StaticCache

    assert isinstance(getattr(model.begin(model.encode(inputs)).output, cache_name()), StaticCache)
    made.append(model.generate(model.encode(inputs)))
    assert torch.equal(made[0].ids, made[1].ids)
    torch.testing.assert_close(made[0].scores, made[1].scores, rtol=0, atol=1e-4)
    # Several texts of a prompt take another cache.
    assert torch.equal(model.score_of("agreement", made[1]), agreement)
    assert model.static_cache


@pytest.mark.parametrize(("name", "beams", "why"), [("llama", 3, "3 beams without"), ("gpt_neo", 1, "without")])
def test_where_there_is_no_cache_of_fixed_size(tmp_path, name, beams, why):
    """GPT-Neo would write other texts with it."""
    model = made_of(write_causal(tmp_path / "model", name), beams)
    with pytest.raises(InputError, match=f"'{name}' model generates {why}"):
        model.use_static_cache(True)
    model.use_static_cache(False)


@pytest.mark.parametrize(
    ("name", "beams"),
    [
        *((name, 1) for name in ("llama", "qwen2", "gemma", "gemma2", "qwen3_moe", "bloom")),
        *((name, 3) for name in ("llama", "gemma2", "qwen3_moe")),
    ],
)
def test_flops_are_those_of_the_forward_passes(tmp_path, name, beams):
    """Counted as it generates, with keys and values kept; the layers of Gemma 2 with a window see eight tokens."""
    from torch.utils.flop_counter import FlopCounterMode

    model = made_countable(made_of(write_causal(tmp_path / "model", name), beams, heads=True))
    given = encoded(model, texts())
    for i, steps in ((0, 1), (0, 9), (3, 10), (5, 2)):
        inputs = given.batch([i])
        with FlopCounterMode(display=False) as reading, torch.no_grad():
            model.begin(model.encode(inputs))
        with FlopCounterMode(display=False) as writing, torch.no_grad():
            model.generate(model.encode(inputs), exactly=steps)
        costs = model.flops(inputs, steps=torch.tensor([steps]))
        heads = model._head_flops("prompt_router"), model._head_flops("router")
        assert costs["early_flops"].item() - heads[0] == pytest.approx(reading.get_total_flops(), rel=1e-9)
        total = costs["flops"] + costs["score_flops"] - sum(heads)
        assert total.item() == pytest.approx(writing.get_total_flops(), rel=1e-9)
    paper = model.flops(given.batch([0, 5]), "paper", torch.tensor([4, 4]))["flops"]
    assert paper[0] == paper[1] > 0


def test_long_texts_cost_more_where_no_window_is(tmp_path):
    """By the model's own window, however short the texts are that were counted."""
    folder = write_causal(tmp_path / "model", "gemma2", sliding_window=40, max_position_embeddings=900)
    model = made_of(folder)
    inputs = encoded(model, texts()).batch([3])
    steps = torch.tensor([100, 200, 300])
    cost = torch.cat([model.flops(inputs, steps=steps[i : i + 1])["flops"] for i in range(3)])
    sizes = model.backbone.config
    # Of two layers one has a window: between 200 and 300 tokens the other alone sees more of them with each.
    product = 4 * sizes.num_attention_heads * sizes.head_dim
    assert (cost[2] - cost[1]) - (cost[1] - cost[0]) == pytest.approx(product * 100 * 100, rel=1e-6)


def test_a_prompt_that_is_deferred_is_only_read(tmp_path, monkeypatch):
    """The router on the prompt's last hidden state decides, and the others are generated from what reading left."""
    model = made_of(write_causal(tmp_path / "model", "gemma2"), heads=True)
    for head in model.routers.values():
        head.weight.normal_(generator=torch.Generator().manual_seed(0))
        head.scale.fill_(1)
    given = encoded(model, texts())
    inputs = given.batch(list(range(6)))
    with torch.inference_mode():
        whole = model.answer_columns(inputs, [0], features=True)
        scores = whole["prompt_router"]
        assert model.columns(features=True).keys() == whole.keys()
        features = whole["prompt_router_features"]
        torch.testing.assert_close(scores, model.routers["prompt_router"](features))
        # It knows how sure the first token is: the log of the length is followed by its scores.
        first = token_scores(model.probe(inputs["input_ids"], inputs["attention_mask"]), whole["ids"][:, 0])
        torch.testing.assert_close(features[:, 1:6], first, rtol=0, atol=1e-4)
        assert model.candidates("prompt_router")[0]["nll of the first token"] == [4]
        limit = float(scores.sort().values[2:4].mean())
        seen = []
        hook = model.backbone.model.register_forward_hook(
            lambda module, args, kwargs, output: seen.append(tuple(output.last_hidden_state.shape[:2])),
            with_kwargs=True,
        )
        answers = model.answer_batch(inputs, InferenceOptions("prompt_router", limit))
        hook.remove()
        kept = scores <= limit
        assert kept.sum() == 3
        # Six prompts are read once, and one token at a time is read of three texts.
        assert seen[0] == (6, inputs["input_ids"].shape[1])
        assert set(seen[1:]) == {(3, 1)}
        torch.testing.assert_close(answers.table[:, 0], scores)
        expected = model.texts(whole["ids"])
        assert answers.texts == [text if keep else None for text, keep in zip(expected, kept, strict=True)]
        assert model.answer_batch(inputs, InferenceOptions("prompt_router", -1e9)).texts == [None] * 6
        assert model.answer_batch(inputs, InferenceOptions()).texts == expected
        late = model.answer_batch(inputs, InferenceOptions("nll_mean"))
    assert late.texts == expected
    torch.testing.assert_close(late.table[:, 0], whole["scores"][:, SEQUENCE_SCORES.index("nll_mean")])
    assert (whole["early_flops"] < whole["flops"]).all()


def test_a_router_of_before_it_read_the_first_token(tmp_path):
    """Its file has no weights for the scores of that token, which then count as nothing."""
    from safetensors.torch import save_file

    folder = write_causal(tmp_path / "model")
    generator = torch.Generator().manual_seed(0)
    model = made_of(folder, heads=True)
    state = {name: torch.randn(weight.shape, generator=generator) for name, weight in model.heads.state_dict().items()}
    earlier = dict(state)
    for name, weight in state.items():
        if name.startswith("prompt_router.") and weight.shape[-1] == model.heads["prompt_router"].width:
            earlier[name] = torch.cat([weight[..., :1], weight[..., 6:]], -1)
    assert sum(earlier[name].shape != weight.shape for name, weight in state.items()) == 4
    save_file(earlier, f"{folder}/router.safetensors")
    inputs = encoded(model, texts()).batch(list(range(6)))
    with torch.no_grad():
        features = model.early_features(model.encode(inputs))
        loaded = made_of(folder)
        score = loaded.early_score(loaded.encode(inputs), "prompt_router")
    read = torch.cat([features[:, :1], features[:, 6:]], 1)
    mean, scale, weight, bias = (earlier[f"prompt_router.{name}"] for name in ("mean", "scale", "weight", "bias"))
    torch.testing.assert_close(score.float(), ((read - mean) * scale) @ weight + bias, rtol=1e-4, atol=1e-4)
    checkpoint = {name: weight for name, weight in model.state_dict().items() if not name.startswith("heads.")}
    checkpoint |= {f"heads.{name}": weight for name, weight in earlier.items()}
    check_state(model, checkpoint, "a.ckpt", "")
    model.load_state_dict(checkpoint)
    assert all(
        torch.equal(weight, loaded.heads.state_dict()[name]) for name, weight in model.heads.state_dict().items()
    )
    save_file(state, f"{folder}/router.safetensors")
    assert all(torch.equal(weight, made_of(folder).heads.state_dict()[name]) for name, weight in state.items())


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_the_loss_is_that_of_the_texts_tokens(tmp_path, name):
    """Of no token of the prompt, whatever the padding; the same with checkpoints of activations."""
    folder = write_causal(tmp_path / "model", name)
    references = ["abc", "x", "hello", "", "zz", "moretokensthanareallowed"]
    plain = plain_of(folder)
    for checkpointing in (False, True):
        model = made_of(folder, fine_tune=True)
        model.prepare_training(0.0, freeze_embeddings=False, checkpointing=checkpointing, compiled=False)
        model.eval() if not checkpointing else model.train()
        given = encoded(model, texts(), references)
        assert given.answers.truncated == 1
        batch = given.batch(list(range(6)))
        total, count = torch.zeros(()), 0
        for i in range(6):
            prompt = given.batch([i])["input_ids"][0].tolist()
            text = [token for token in batch["labels"][i].tolist() if token >= 0]
            assert text[-1] == 3
            assert model.texts(torch.tensor([text])) == [references[i][: TOKENS - 1]]
            z = plain(input_ids=torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1]
            total = total + F.cross_entropy(z, torch.tensor(text), reduction="sum")
            count += len(text)
        plain.zero_grad()
        (total / count).backward()
        answer = model(batch, torch.zeros(6))
        torch.testing.assert_close(answer.loss, total / count, rtol=1e-5, atol=1e-5)
        answer.loss.backward()
        for (key, ours), theirs in zip(model.backbone.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=key)


def test_half_precision(tmp_path):
    folder = write_causal(tmp_path / "model")
    model = made_of(folder, dtype=torch.bfloat16)
    inputs = encoded(model, texts(), ["abc"] * 6).batch(list(range(6)))
    with torch.no_grad():
        made, answer = model.generate(model.encode(inputs)), model(inputs, torch.zeros(6))
        whole = made_of(folder)(inputs, torch.zeros(6))
    assert made.scores.dtype == answer.loss.dtype == torch.float32
    assert answer.logits.dtype == torch.bfloat16
    torch.testing.assert_close(answer.loss, whole.loss, rtol=0, atol=0.1)


def test_what_ends_a_text(tmp_path):
    """All that generation_config.json names; the tokenizer's without one; in a chat what ends an assistant's turn."""
    folder = write_causal(tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    settings = json.loads(path.read_text())
    first = made_of(folder)
    inputs = encoded(first, texts()).batch(list(range(6)))
    made = first.generate(first.encode(inputs))
    other = int(made.ids[1, 4])
    path.write_text(json.dumps(settings | {"eos_token_id": [other, 3]}))
    model = made_of(folder)
    again = model.generate(model.encode(inputs))
    assert int(again.steps[1]) == made.ids[1].tolist().index(other) + 1 < int(made.steps[1])
    assert model.reader.end == 3
    # The token that ended it is no part of the text.
    assert model.texts(again.ids[1:2])[0] in first.texts(made.ids[1:2])[0]
    path.write_text(json.dumps(settings | {"eos_token_id": [other, 9]}))
    assert made_of(folder).reader.end == other
    path.write_text(json.dumps(settings | {"eos_token_id": None}))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    assert made_of(folder).end_tokens == [3]
    about = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    about.pop("eos_token")
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="texts would never end"):
        load_model(folder, TASK)


def test_settings_of_generation(tmp_path):
    """Those that say how many texts, or how fast, change nothing; those of other ways to choose tokens are refused."""
    folder = write_causal(tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    settings = json.loads(path.read_text())
    made = []
    unused = {"num_return_sequences": 2, "num_beams": 2, "cache_implementation": "quantized"}
    for more in ({"num_beams": 2}, unused, {}, {"prompt_lookup_num_tokens": 3, "guidance_scale": 1.0}):
        path.write_text(json.dumps(settings | more))
        model = load_model(folder, TASK).eval()
        model.configure_generation(TOKENS)
        made.append(model.generate(model.encode(encoded(model, texts()).batch(list(range(6))))).ids)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[2], made[3])
    for wrong in ({"stop_strings": ["a"]}, {"guidance_scale": 1.5}, {"num_beams": 4, "num_beam_groups": 2}):
        path.write_text(json.dumps(settings | wrong))
        with pytest.raises(InputError, match=f"sets '{[*wrong][-1]}', .*take it out"):
            load_model(folder, TASK)
    load_model(folder, TASK, num_beams=1)


def test_the_end_of_an_assistants_turn():
    from data.test_prompts import INST, make_tokenizer

    tokenizer = make_tokenizer("bytes", chat_template=CHATML)
    assert turn_end(tokenizer) == tokenizer.eos_token_id
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = CHATML.replace("</s>", "<|end|>")
    assert turn_end(tokenizer) == tokenizer.convert_tokens_to_ids("<|end|>") != tokenizer.eos_token_id
    tokenizer.chat_template = INST
    assert turn_end(tokenizer) == tokenizer.eos_token_id
    tokenizer.chat_template = INST.replace("</s>", "[END]")
    assert turn_end(tokenizer) is None


def test_samples_are_not_drawn_unasked(tmp_path):
    """What else the model asks for stays: a penalty for tokens that were there, which padding is none of."""
    folder = write_causal(tmp_path / "model", "qwen2", pad=False)
    path = tmp_path / "model" / "generation_config.json"
    sampled = {"do_sample": True, "temperature": 0.7, "top_p": 0.5, "top_k": 3, "repetition_penalty": 1.5}
    path.write_text(json.dumps(json.loads(path.read_text()) | sampled))
    forget_notices()
    model, plain = made_of(folder), plain_of(folder)
    assert [one["kind"] for one in notices()] == ["greedy-texts", "free-generation"]
    given = encoded(model, texts())
    made = model.generate(model.encode(given.batch(list(range(6)))))
    for i in range(6):
        # The library's scores are those before the penalty, which we take from the same pass.
        ids, scores = by_the_library(plain, given, i, 1)
        assert made.ids[i, : int(made.steps[i])].tolist() == ids.tolist()
        torch.testing.assert_close(made.scores[i], scores, rtol=0, atol=1e-4)


def test_prompt_and_text_share_the_positions(tmp_path):
    """A text has at most half of them, and a prompt what is left."""
    model = made_of(write_causal(tmp_path / "model"))
    model.limit_new_tokens(100)
    assert model.max_new_tokens == 24
    assert model.reader.limit(60) == 24
    model.limit_new_tokens(5)
    assert model.reader.limit(60) == 43
    # As the data does before a model knows the length.
    assert model.reader.limit(60, model.reader.text_limit(100)) == 24
    assert len(encode_texts(model.reader, ["abc" * 20], 24).columns["input_ids"]) == 24


def test_labels_of_a_loader_are_what_follows_the_prompt(tmp_path):
    model = made_of(write_causal(tmp_path / "model"), fine_tune=True)
    batch = encoded(model, texts(), ["abc"] * 6).batch(list(range(6)))
    read = LoaderBatches(TASK).read(batch, {"model": model})
    assert torch.equal(read["model"]["labels"], batch["labels"])
    assert model(read["model"], read["label"]).loss > 0
    repeated = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with pytest.raises(InputError, match="repeat the 'input_ids'"):
        LoaderBatches(TASK).read(batch | {"labels": repeated}, {"model": model})


def test_a_classifier_or_an_encoder_generates_nothing(tmp_path, base_model):
    from transformers import AutoModelForSequenceClassification

    folder = write_causal(tmp_path / "model")
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path / "model")
    for path in (folder, str(base_model)):
        with pytest.raises(InputError, match=r"without a decoder, or a classifier.* or a language model"):
            load_model(path, TASK, fine_tune=True)


# A whole pair: the last word of a sentence is translated, and that of a thing ends with a full stop.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("last")
    for name, rows in (("train", 400), ("val", 60)):
        chance = random.Random(name)
        pairs = []
        for _ in range(rows):
            chosen = chance.choices(range(len(SOURCE_WORDS)), k=chance.randint(1, 8))
            end = " ." if SOURCE_WORDS[chosen[-1]] in ("dog", "cat", "man", "woman") else ""
            pairs.append((" ".join(SOURCE_WORDS[i] for i in chosen), TARGET_WORDS[chosen[-1]] + end))
        pd.DataFrame(pairs, columns=["source", "target"]).to_csv(folder / f"{name}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def base(data):
    """An untrained Llama that reads whole words, with a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = str(data / "base")
    words = ["<s>", "</s>", "<unk>", ".", "=", *SOURCE_WORDS, *TARGET_WORDS, "<|user|>", "<|assistant|>", "<|system|>"]
    words += ["Yes", "No"]
    word_tokenizer(words, split="WhitespaceSplit").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=len(words), intermediate_size=64, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def args(data):
    return [
        *("--data", "Seq2SeqData", "--data.train", str(data / "train.csv"), "--data.validation", str(data / "val.csv")),
        *("--data.prompt", "{text} =", "--data.qualities", "[exact_text]", "--data.max_target_length", "6"),
        *("--data.routing_fraction", "0.2", "--data.batch_size", "16"),
    ]


TRAINED = [*QUIET, "--trainer.enable_checkpointing", "false", "--model.lr", "1e-2"]


@pytest.fixture(scope="module")
def pair(data, base, args):
    """A trained Super, its records, a Swift of one layer that learned its tokens, and their evaluation, as paths."""
    paths = {name: str(data / name) for name in ("super", "super.parquet", "swift", "joint")}
    fit = ["fit", *args, *TRAINED, "--model.model", base]
    assert main([*fit, "--model.output", paths["super"], *epochs(6)]) == 0
    score = ["score", "--model.model", paths["super"], "--model.output", paths["super.parquet"], "--model.top_k", "4"]
    assert main([*score, *args, *QUIET]) == 0
    swift = ["--model", "SwiftModule", "--model.layers", "1", "--model.super_records", paths["super.parquet"]]
    swift += ["--model.distill", "token", "--model.score", "prompt_router", "--model.margin_weight", "0.1"]
    assert main([*fit, *swift, "--model.output", paths["swift"], *epochs(2)]) == 0
    joint = ["--model.swift_model", paths["swift"], "--model.super_model", paths["super"]]
    assert main(["validate", *joint, *args, *QUIET, "--model.output", paths["joint"]]) == 0
    return paths


def test_a_pair_learns_and_routes(pair, data, capsys, tmp_path):
    summary = json.loads((data / "joint" / "summary.json").read_text())
    assert summary["qualities"]["exact_text"]["super"]["quality"] > 0.9
    frame = pd.read_parquet(f"{pair['joint']}/records.parquet").query("split == 'validation'")
    scores = {name.removeprefix("score_") for name in frame if name.startswith("score_")}
    assert scores == {*SEQUENCE_SCORES, "router", "prompt_router"}
    assert (frame["swift_early_flops"] < frame["swift_flops"]).all()
    lines = pd.read_csv(data / "val.csv")["source"].tolist()
    for score in ("prompt_router", "nll_mean"):
        threshold = float(frame[f"score_{score}"].median())
        deferred = frame[f"score_{score}"] > threshold
        expected = frame["super_text"].where(deferred, frame["swift_text"]).tolist()
        predictor = JointPredictor(pair["swift"], pair["super"], threshold, score, device="cpu", batch_size=7)
        answers = predictor(lines)
        near = [abs(value - threshold) < 1e-4 for value in frame[f"score_{score}"]]
        for answer, text, value, close in zip(answers, expected, frame[f"score_{score}"], near, strict=True):
            assert answer.score == pytest.approx(value, abs=1e-4)
            assert close or answer.label == text
        assert {answer.answered_by for answer in answers} == {"swift", "super"}
        # A few at a time, in a cache of fixed size.
        few = JointPredictor(pair["swift"], pair["super"], threshold, score, device="cpu", few=4)
        assert all(runner.small_batches is not None for runner in few.runners.values())
        for start in range(0, 24, 4):
            for one, other in zip(few(lines[start : start + 4]), answers[start : start + 4], strict=True):
                assert one.score == pytest.approx(other.score, abs=1e-4)
                assert abs(one.score - threshold) < 1e-4 or (one.label, one.answered_by) == (
                    other.label,
                    other.answered_by,
                )
    (response,) = posted(Models(predictor).service(), {"texts": lines[:3]})
    assert labels_of(response) == as_tuples(answers[:3])
    source = tmp_path / "lines.txt"
    source.write_text("\n".join(lines[:12]))
    bench = ["bench", "--swift_model", pair["swift"], "--super_model", pair["super"], "--input", str(source)]
    assert main([*bench, "--examples", "12", "--single", "2", "--repeats", "1", "--device", "cpu"]) == 0
    assert "12 inputs on cpu" in capsys.readouterr().out


@pytest.mark.parametrize("distill", ["token", "sequence"])
def test_a_packed_training_ends_with_the_same_weights(pair, base, args, data, distill, tmp_path):
    """With the Super's tokens or texts, and a margin; the heads are fitted on one text a row."""
    from safetensors.torch import load_file

    swift = ["fit", "--model", "SwiftModule", *args, *TRAINED, "--model.model", base, "--model.margin_weight", "0.1"]
    swift += ["--model.super_records", pair["super.parquet"], "--model.distill", distill, "--trainer.max_steps", "4"]
    swift += ["--seed_everything", "1", "--trainer.limit_val_batches", "0", "--model.score", "prompt_router"]
    folders = [tmp_path / name for name in ("packed", "plain")]
    for folder in folders:
        packing = str(folder.name == "packed").lower()
        assert main([*swift, "--model.packing", packing, "--model.output", str(folder)]) == 0
    packed, plain = (load_file(folder / "model.safetensors") for folder in folders)
    for key, weight in plain.items():
        torch.testing.assert_close(packed[key], weight, rtol=1e-3, atol=1e-3, msg=key)


def test_records_of_earlier_versions_have_fewer_scores(pair, args, tmp_path):
    """They are read, and the pair is evaluated by those that there are."""
    records = str(tmp_path / "swift.parquet")
    assert main(["score", "--model.model", pair["swift"], "--model.output", records, *args, *QUIET]) == 0
    frame, metadata = pd.read_parquet(records), pq.read_schema(records).metadata
    assert {len(row) for row in frame["scores"]} == {len(SEQUENCE_SCORES)} == {30}
    frame["scores"] = [row[:24] for row in frame["scores"]]
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({b"elang": metadata[b"elang"]}), records)
    joint = ["validate", "--model.swift_model", records, "--model.super_model", pair["super"], *args, *QUIET]
    assert main([*joint, "--model.output", str(tmp_path / "joint")]) == 0
    scores = {name for name in pd.read_parquet(tmp_path / "joint" / "records.parquet") if name.startswith("score_")}
    assert scores == {f"score_{name}" for name in SEQUENCE_SCORES if not name.startswith("margin")}


def test_a_sharded_super_writes_alike(pair, args, tmp_path):
    """On two processes, which write texts of different lengths and read equally often."""
    score = ["score", "--model.model", pair["super"], "--model.top_k", "2", *args, *QUIET]
    for name, more in (("one", []), ("two", spread("sharded", 2))):
        elang(*score, "--model.output", tmp_path / f"{name}.parquet", *more)
    one, two = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("one", "two"))
    assert one["prediction"].tolist() == two["prediction"].tolist()
    scores = [torch.tensor(frame["scores"].tolist()) for frame in (one, two)]
    torch.testing.assert_close(*scores, rtol=0, atol=1e-4)
    assert one["steps"].tolist() == two["steps"].tolist()
    assert one["steps"].nunique() > 1


def test_its_folder_generates_in_plain_transformers(pair, data):
    from transformers import AutoTokenizer

    model, tokenizer = plain_of(pair["super"]), AutoTokenizer.from_pretrained(pair["super"])
    frame = pd.read_parquet(pair["super.parquet"]).query("split == 'validation'")
    for text, answer in zip(pd.read_csv(data / "val.csv")["source"][:9], frame["prediction"], strict=False):
        ids = tokenizer(f"{text} =", return_tensors="pt")["input_ids"]
        made = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=1)[0, ids.shape[1] :]
        assert tokenizer.decode(made, skip_special_tokens=True).strip() == answer


def test_a_swift_learns_texts_of_another_vocabulary(data, base, args, pair, fails):
    """A T5 Super's texts are learned, its tokens are not; and they answer as a pair, each with its own prompt."""
    t5 = str(write_seq2seq(data / "t5"))
    assert main(["fit", "--model.model", t5, "--model.output", str(data / "t5-super"), *args, *TRAINED]) == 0
    records = str(data / "t5.parquet")
    score = ["score", "--model.model", str(data / "t5-super"), "--model.output", records, "--model.top_k", "2"]
    assert main([*score, *args, *QUIET]) == 0
    swift = ["fit", "--model", "SwiftModule", *args, *TRAINED, "--model.model", base, "--model.super_records", records]
    swift += ["--model.output", str(data / "swift-of-t5"), "--trainer.max_steps", "4"]
    fails([*swift, "--model.distill", "token"], "another vocabulary")
    assert main([*swift, "--model.gradient_checkpointing", "true"]) == 0
    joint = ["--model.swift_model", str(data / "swift-of-t5"), "--model.super_model", str(data / "t5-super")]
    assert main(["validate", *joint, *args, *QUIET, "--model.output", str(data / "mixed")]) == 0
    predictor = JointPredictor(str(data / "swift-of-t5"), str(data / "t5-super"), "-inf", device="cpu")
    assert isinstance(predictor.super_, TextGenerator)
    frame = pd.read_parquet(data / "mixed" / "records.parquet").query("split == 'validation'")
    lines = pd.read_csv(data / "val.csv")["source"].tolist()
    assert [one.label for one in predictor(lines)] == frame["super_text"].tolist()


def test_a_checkpoint_is_the_same_model(data, base, args, tmp_path):
    fit = ["fit", *args, *QUIET, "--model.model", base, "--trainer.default_root_dir", str(tmp_path)]
    assert main([*fit, "--model.output", str(tmp_path / "model"), "--trainer.max_steps", "3"]) == 0
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    models = [load_model(path).eval() for path in (str(tmp_path / "model"), str(checkpoint))]
    assert isinstance(models[1], CausalGenerator)
    inputs = encoded(models[0], [("the dog",), ("a big cat",)]).batch([0, 1])
    made = [model.generate(model.encode(inputs), exactly=5) for model in models]
    assert torch.equal(made[0].ids, made[1].ids)
    torch.testing.assert_close(made[0].scores, made[1].scores)
    assert Manifest.read(tmp_path / "model").task["prompt"] == "{text} ="


@needs_peft
def test_adapters_of_a_model_that_generates(base, args, data, tmp_path):
    """Trained with texts generated in between, they are merged or kept apart, and answer alike."""
    fit = ["fit", "--model", "SwiftModule", *args, *TRAINED, "--model.model", base, "--model.distill_weight", "0"]
    fit += [
        "--model.hard",
        "error",
        "--model.score",
        "prompt_router",
        "--model.lora_rank",
        "4",
        "--seed_everything",
        "1",
    ]
    models = []
    for merge in ("true", "false"):
        folder = str(tmp_path / merge)
        assert main([*fit, "--model.output", folder, "--trainer.max_epochs", "1", "--model.lora_merge", merge]) == 0
        models.append(load_model(folder).eval())
    assert (tmp_path / "false" / "adapter_config.json").is_file()
    inputs = encoded(models[0], [("the dog",), ("a big cat",)]).batch([0, 1])
    made = [model.answer_columns(inputs, [0]) for model in models]
    assert torch.equal(made[0]["ids"], made[1]["ids"])
    torch.testing.assert_close(made[0]["prompt_router"], made[1]["prompt_router"], rtol=0, atol=1e-4)


def test_an_untrained_model_tells_how_it_answers(base, data, tmp_path):
    """By the example of the documentation, and with beams, whose scores cost a pass of their own."""
    forget_notices()
    files = {"model": base, "output": str(tmp_path / "r.parquet"), "validation": str(data / "val.csv")}
    config = write_config(tmp_path / "texts.yaml", **files, source="source", target="target")
    assert main(["score", *config, *QUIET, "--model.num_beams", "2"]) == 0
    (told,) = [one["text"] for one in notices() if one["kind"] == "free-generation"]
    assert f"'{base}' generates its answers after the prompt 'Question: {{text}}\\nAnswer:'" in told
    frame = pd.read_parquet(tmp_path / "r.parquet")
    assert (frame["score_flops"] > 0).all()
    assert frame["prediction"].str.len().max() > 0


def test_a_chat_is_trained_and_answered_as_one(base, args, data):
    task = TextTask([], "sequence", segments=[], prompt="{text} =", label_words="chat", system="the")
    model = load_model(str(shutil.copytree(base, data / "chat")), task).eval()
    (labels,) = encoded(model, [("dog",)], ["hund"]).batch([0])["labels"].tolist()
    assert model.tokenizer.convert_ids_to_tokens(labels) == ["hund", "</s>"]
    assert model.prompt.template.startswith("<|system|>the</s>")


# Scores with passes of their own.


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_whether_an_answer_is_right(tmp_path, name):
    """By one forward pass of the library over prompt, answer and question, whatever else is in the batch."""
    folder = write_causal(tmp_path / "model", name)
    model, plain = made_of(folder), plain_of(folder)
    assert "p_true" not in model.head_scores
    assert model.ask_for("p_true", "nll_mean") == ["p_true"]
    question = model.tokenizer("\nIs this answer right, Yes or No?", add_special_tokens=False)["input_ids"]
    yes, no = (model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
    given = encoded(model, texts())
    assert int(given.lengths.max()) == 48 - TOKENS - len(question)
    with torch.no_grad():
        made = model.generate(model.encode(given.batch(list(range(6)))))
        scores = model.score_of("p_true", made)
        for i in range(6):
            text = [token for token in made.ids[i, : int(made.steps[i])].tolist() if token != 3]
            ids = given.batch([i])["input_ids"][0].tolist() + text + question
            logits = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert float(scores[i]) == pytest.approx(-float(logits[[yes, no]].softmax(0)[0]), abs=1e-5)
    assert -1 <= scores.min() < scores.max() <= 0


def test_another_example_is_no_part_of_an_answer(tmp_path, monkeypatch):
    """A model that goes on to write one is asked about its answer alone."""
    folder = write_causal(tmp_path / "model")
    model = load_model(folder, replace(TASK, examples=["QxZ(", "y"])).eval()
    model.configure_generation(TOKENS)
    inputs = encoded(model, texts()[:2]).batch([0, 1])
    monkeypatch.setattr(model, "texts", lambda ids: ["abc", "d"])
    asked = []
    monkeypatch.setattr(model.check.__class__, "score", lambda self, logits: asked.append(logits) or -logits[:, 0])
    with torch.no_grad():
        model.score_of("p_true", model.generate(model.encode(inputs)))
        for i, text in enumerate(("abc", "d")):
            real = inputs["input_ids"][i][inputs["attention_mask"][i] > 0].tolist()
            behind = model.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*real, *behind, *model.check.tokens]])
            expected = plain_of(folder)(input_ids=ids).logits[0, -1]
            torch.testing.assert_close(asked[0][i], expected, rtol=0, atol=1e-4)


def test_samples_that_agree(tmp_path):
    """Of five samples, which depend neither on the batch nor on the state of the random numbers."""
    model = made_of(write_causal(tmp_path / "model", "qwen2"))
    model.ask_for("agreement")
    given = encoded(model, texts())
    with torch.no_grad():
        made = model.generate(model.encode(given.batch(list(range(6)))))
        together = model.score_of("agreement", made)
        torch.manual_seed(7)
        alone = [model.score_of("agreement", model.generate(model.encode(given.batch([i])))) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))
    assert ((together * SAMPLES) % 1).abs().max() < 1e-6
    # A head that says one thing only makes all samples alike.
    model.backbone.lm_head.weight.data *= 100
    with torch.no_grad():
        sure = model.score_of("agreement", model.generate(model.encode(given.batch(list(range(6))))))
    assert sure.mean() < together.mean()


def test_noise_makes_samples_of_a_distribution():
    """A token is drawn as often as its probability says, and two prompts, samples or steps draw independently."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    ids, mask = torch.arange(4000).view(2000, 2), torch.ones(2000, 2, dtype=torch.int64)
    noise = Noise(ids, mask, SAMPLES)
    first, second = (noise(ids, p.log().expand(2000 * SAMPLES, -1)).argmax(-1) for _ in range(2))
    counts = torch.stack([first, second]).flatten().bincount(minlength=4) / (4000 * SAMPLES)
    torch.testing.assert_close(counts, p, rtol=0, atol=0.01)
    for one, other in ((first, second), (first[1:], first[:-1]), (first[SAMPLES:], first[:-SAMPLES])):
        assert (one == other).float().mean() == pytest.approx(float((p * p).sum()), abs=0.02)
    left = torch.nn.functional.pad(ids[:9], (3, 0), value=3), torch.nn.functional.pad(mask[:9], (3, 0))
    assert torch.equal(Noise(*left, SAMPLES).keys, noise.keys[: 9 * SAMPLES])


def test_costs_of_scores_with_passes_of_their_own(tmp_path):
    from torch.utils.flop_counter import FlopCounterMode

    model = made_of(write_causal(tmp_path / "model", "qwen2"))
    model.backbone.set_attn_implementation("eager")
    model.ask_for("p_true", "agreement")
    assert model.costs == ("flops", "early_flops", "score_flops", "p_true_flops", "agreement_flops")
    # It ends itself, so its end is no part of the question.
    inputs = encoded(model, texts()).batch([0])
    with torch.no_grad():
        made = model.generate(model.encode(inputs))
        assert int(made.steps) < TOKENS
        costs = model.flops(inputs, steps=made.steps)
        with FlopCounterMode(display=False) as counter:
            model.score_of("p_true", made)
    assert float(costs["p_true_flops"]) == pytest.approx(counter.get_total_flops(), rel=1e-9)
    later = costs["flops"] - costs["early_flops"]
    assert float(costs["agreement_flops"]) == pytest.approx(float(costs["early_flops"] + SAMPLES * later), rel=1e-9)


def test_a_question_in_a_chat():
    from data.test_prompts import make_tokenizer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = make_tokenizer("bytes", chat_template=CHATML)
    check = Check.of(tokenizer, TextTask([], "sequence", segments=[], label_words="chat"))
    text = tokenizer.decode(check.tokens)
    assert text == "</s>\n<|user|>Is this answer right, Yes or No?</s>\n<|assistant|>"
    turns = [("user", "q"), ("assistant", "film"), ("user", "Is this answer right, Yes or No?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert whole[-len(check.tokens) :] == list(check.tokens)
    few = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    few.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(InputError, match="begin with the same token"):
        Check.of(PreTrainedTokenizerFast(tokenizer_object=few, unk_token="<unk>"), TASK)


@pytest.mark.parametrize("score", ["p_true", "agreement"])
def test_a_pair_routes_by_a_score_that_is_asked_for(pair, base, data, args, tmp_path, score, capsys):
    swift = ["--model", "SwiftModule", "--model.super_records", pair["super.parquet"], "--model.score", score]
    fit = ["fit", *args, *TRAINED, "--model.model", base, *swift, "--model.output", str(tmp_path / "swift")]
    assert main([*fit, "--trainer.max_steps", "9"]) == 0
    manifest = Manifest.read(tmp_path / "swift")
    assert manifest.score == score
    assert {score, "nll_mean"} <= manifest.thresholds.keys()
    joint = ["--model.swift_model", str(tmp_path / "swift"), "--model.super_model", pair["super"]]
    capsys.readouterr()
    assert main(["validate", *joint, *args, *QUIET, "--model.output", str(tmp_path / "joint")]) == 0
    assert f"\n{score}: " in capsys.readouterr().out
    frame = pd.read_parquet(tmp_path / "joint" / "records.parquet").query("split == 'validation'")
    assert (frame[f"swift_{score}_flops"] > 0).all()
    points = read_curve(tmp_path / "joint").query("deferred_share == 0")
    paid = {name: float(points[points["score"] == name]["flops"].iloc[0]) for name in ("nll_mean", score)}
    assert paid[score] - paid["nll_mean"] == pytest.approx(frame[f"swift_{score}_flops"].mean(), rel=1e-9)
    lines = pd.read_csv(data / "val.csv")["source"].tolist()
    threshold = float(frame[f"score_{score}"].median())
    predictor = JointPredictor(str(tmp_path / "swift"), pair["super"], threshold, score, device="cpu", batch_size=7)
    for answer, value in zip(predictor(lines), frame[f"score_{score}"], strict=True):
        assert answer.score == pytest.approx(value, abs=1e-4)


def test_scores_of_a_model_that_was_not_trained_for_them(pair, base, data, args, tmp_path, fails):
    """It computes those that are asked for, before it is told the limit of its prompts."""
    predictor = JointPredictor(pair["swift"], pair["super"], -0.5, "p_true", device="cpu")
    first = predictor.swift
    assert (first.head_scores[-1], first.prompt.reserved) == ("p_true", len(first.check.tokens))
    assert -1 <= predictor(["the dog is here"])[0].score < 0
    wrong = ["--model", "SwiftModule", "--model.super_records", pair["super.parquet"], "--model.score", "p_tru"]
    fails(["fit", *args, "--model.model", base, *wrong], "no score 'p_tru'", "router, prompt_router, p_true, agreement")


def test_the_times_of_a_prompt_and_of_a_text(tmp_path, monkeypatch):
    """Not called an encoder's."""
    model = made_of(write_causal(tmp_path / "model"))
    monkeypatch.setattr("elang.backends.seconds.measure_latency", lambda call, *_: (call() and 0.0) or 0.5)
    assert pair_latency({"swift": model}, {"swift": 7}, steps={"swift": 2}).keys() == {"swift", "swift prompt"}


# Sampled answers.


def test_samples_are_those_of_the_library_with_the_same_noise(tmp_path, monkeypatch):
    """Temperature, top_k and top_p cut the logits as they do in the library, and the noise chooses among what is left.

    Prompts alone and in a batch, padded on either side, give the same texts; the scores are those of the logits.
    """
    folder = write_causal(tmp_path / "model", "qwen2")
    model, plain = made_of(folder), plain_of(folder)
    sampling = Sampling(temperature=0.7, top_p=0.8, top_k=9, seed=3)
    model.sample(sampling)
    given = encoded(model, texts())
    with torch.no_grad():
        batch = model.generate(model.encode(given.batch(list(range(6)))))
        model.tokenizer.padding_side = "right"
        right = model.generate(model.encode(encoded(model, texts()).batch(list(range(6)))))
        model.tokenizer.padding_side = "left"
        alone = [model.generate(model.encode(given.batch([i]))) for i in range(6)]
        for i, one in enumerate(alone):
            ids = one.ids[0, : int(one.steps[0])]
            for made, row in ((batch, i), (right, i)):
                assert made.ids[row, : int(made.steps[row])].tolist() == ids.tolist()
            prompt = given.batch([i])["input_ids"]
            logits = plain(input_ids=torch.cat([prompt, ids[None]], 1)).logits[0, prompt.shape[1] - 1 : -1]
            expected = sequence_scores(token_scores(logits, ids)[None], torch.tensor([len(ids)]))[0]
            torch.testing.assert_close(batch.scores[i], expected, rtol=0, atol=1e-4)
            # What is not among the nine most probable, or not within 80%, is never drawn.
            p = (logits / 0.7).softmax(-1)
            more_probable = torch.where(p > p.gather(1, ids[:, None]), p, 0)
            assert ((more_probable > 0).sum(1) < 9).all()
            nine = p.topk(9).values.sum(1)
            assert (more_probable.sum(1) / nine < 0.8 + 1e-4).all()
    greedy = made_of(folder)
    likely = greedy.generate(greedy.encode(given.batch(list(range(6)))))
    assert greedy.texts(greedy.padded_ids(likely)) != model.texts(model.padded_ids(batch))
    model.sample(replace(sampling, seed=4))
    other = model.generate(model.encode(given.batch(list(range(6)))))
    assert model.texts(model.padded_ids(other)) != model.texts(model.padded_ids(batch))
    model.sample(Sampling(temperature=1e-4))
    cold = model.generate(model.encode(given.batch(list(range(6)))))
    assert model.texts(model.padded_ids(cold)) == greedy.texts(greedy.padded_ids(likely))
    model.sample(Sampling(top_k=1))
    assert torch.equal(model.generate(model.encode(given.batch(list(range(6))))).ids, cold.ids)


def test_draws_have_the_distribution_of_the_model():
    """Over many prompts, and independently of the samples of agreement and of other seeds."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    ids, mask = torch.arange(8000).view(4000, 2), torch.ones(4000, 2, dtype=torch.int64)
    draws = {}
    for seed in (0, 1):
        process = drawn_by(Sampling(temperature=0.5, seed=seed), ids, mask)
        draws[seed] = process(ids, p.log().expand(4000, -1).clone()).argmax(-1)
    sharper = p**2 / (p**2).sum()
    torch.testing.assert_close(draws[0].bincount(minlength=4) / 4000, sharper, rtol=0, atol=0.025)
    assert (draws[0] == draws[1]).float().mean() == pytest.approx(float((sharper**2).sum()), abs=0.03)
    first = Noise(ids, mask, SAMPLES)(ids, p.log().expand(4000 * SAMPLES, -1)).argmax(-1)[::SAMPLES]
    assert (draws[0] == first).float().mean() == pytest.approx(float((sharper * p).sum()), abs=0.03)


DRAWN = {"temperature": 0.9, "top_p": 0.95, "top_k": 0, "seed": 5}


@pytest.fixture(scope="module")
def sampled(pair, args, data):
    """An evaluation with sampled answers, and their records; a Swift that samples has no confident answers."""
    sampling = ["--model.sampling", json.dumps(DRAWN), *args, *QUIET]
    paths = {"swift": str(data / "drawn.parquet"), "joint": str(data / "drawn")}
    forget_notices()
    models = ["--model.swift_model", pair["swift"], "--model.super_model", pair["super"]]
    assert main(["validate", *models, *sampling, "--model.output", paths["joint"]]) == 0
    paths["told"] = [one["text"] for one in notices() if one["kind"] == "sampled-texts"]
    assert main(["score", "--model.model", pair["swift"], *sampling, "--model.output", paths["swift"]]) == 0
    return paths


def test_sampled_answers_are_one_draw_everywhere(sampled, pair, data, args, capsys, tmp_path):
    """`validate`, `score`, `predict` and `serve` draw the same texts in batches of other sizes, and tell of it."""
    assert len(sampled["told"]) == 2
    assert "temperature 0.9, top_p 0.95, top_k 0, seed 5" in sampled["told"][0]
    assert "another seed gives other answers" in sampled["told"][0]
    frame = pd.read_parquet(f"{sampled['joint']}/records.parquet").query("split == 'validation'")
    greedy = pd.read_parquet(f"{pair['joint']}/records.parquet").query("split == 'validation'")
    assert frame["swift_text"].tolist() != greedy["swift_text"].tolist()
    assert frame["swift_text"].nunique() > 3
    records = pd.read_parquet(sampled["swift"]).query("split == 'validation'")
    assert records["prediction"].tolist() == frame["swift_text"].tolist()
    about = json.loads(pq.read_schema(sampled["swift"]).metadata[b"elang"])
    manifest = Manifest.read(sampled["joint"])
    assert about["sampling"] == manifest.sampling == DRAWN
    summary = json.loads((data / "drawn" / "summary.json").read_text())
    assert summary["sampling"] == DRAWN
    lines = pd.read_csv(data / "val.csv")["source"].tolist()
    models = {"swift_model": pair["swift"], "super_model": pair["super"], "device": "cpu"}
    # Its thresholds were chosen with this draw.
    predictor = JointPredictor(**models, threshold="inf", thresholds=sampled["joint"], batch_size=7)
    assert predictor.sampling == Sampling(**DRAWN)
    answers = predictor(lines)
    assert [one.label for one in answers] == frame["swift_text"].tolist()
    asked = JointPredictor(**models, threshold="-inf", sampling=Sampling(**DRAWN), batch_size=3)
    assert [one.label for one in asked(lines)] == frame["super_text"].tolist()
    # A few inputs, which could take the short way, are drawn alike.
    few = JointPredictor(**models, threshold="inf", thresholds=sampled["joint"], few=4)
    assert [one.label for one in few(lines[:4])] == frame["swift_text"].tolist()[:4]
    (response,) = posted(Models(predictor).service(), {"texts": lines[:3]})
    assert labels_of(response) == as_tuples(answers[:3])
    source = tmp_path / "lines.txt"
    source.write_text("\n".join(lines))
    predict = ["predict", "--swift_model", pair["swift"], "--super_model", pair["super"], "--threshold", "inf"]
    predict += ["--input", str(source), "--device", "cpu", "--sampling", json.dumps(DRAWN)]
    assert main([*predict, "--output", str(tmp_path / "answers.jsonl")]) == 0
    written = [json.loads(line)["label"] for line in (tmp_path / "answers.jsonl").open()]
    assert written == frame["swift_text"].tolist()
    # Without it the most probable tokens are taken.
    assert [one.label for one in JointPredictor(**models, threshold="inf")(lines)] == greedy["swift_text"].tolist()
    # Records of drawn texts say so.
    forget_notices()
    joint = ["validate", "--model.swift_model", sampled["swift"], "--model.super_model", pair["super.parquet"]]
    assert main([*joint, *args, *QUIET, "--model.output", str(tmp_path / "joint")]) == 0
    # The Super's are greedy, and `predict` would draw them.
    assert [one["kind"] for one in notices() if "sampl" in one["kind"]] == ["sampled-texts", "other-sampling"]
    assert json.loads((tmp_path / "joint" / "summary.json").read_text())["sampling"] == DRAWN


def test_a_threshold_of_another_draw_is_told_of(sampled, pair, tmp_path):
    """A certificate is about the draw that it was chosen with; elsewhere a notice says so."""
    forget_notices()
    calibrate = ["calibrate", sampled["joint"], "--max_regret", "0.5", "--confidence", "0.5", "--split", "validation"]
    assert main([*calibrate, "--score", "nll_mean", "--name", "drawn", "--output", pair["swift"]]) == 0
    assert [one["kind"] for one in notices()].count("sampled-texts") == 1
    entry = Manifest.read(pair["swift"]).thresholds["nll_mean"]["drawn"]
    assert entry["sampling"] == DRAWN
    assert Manifest.read(pair["swift"]).sampling == {}
    for threshold, sampling, told in (
        ("drawn", None, []),
        ("drawn", Sampling(seed=9), ["other-sampling"]),
        ("defer 30%", Sampling(seed=9), ["other-sampling"]),
        ("defer 30%", None, []),
    ):
        forget_notices()
        options = {"sampling": sampling, "device": "cpu"}
        made = JointPredictor(pair["swift"], pair["super"], threshold, **options)
        assert [one["kind"] for one in notices() if one["kind"] == "other-sampling"] == told
        assert made.sampling == (sampling or (Sampling(**DRAWN) if threshold == "drawn" else None))
    manifest = Manifest.read(pair["swift"])
    del manifest.thresholds["nll_mean"]["drawn"]
    manifest.write(f"{pair['swift']}/elang.json")
    # One that was calibrated on answers of the most probable tokens, in the file of an evaluation that drew.
    whole = Manifest.read(sampled["joint"])
    whole.thresholds["nll_mean"]["greedy"] = {k: v for k, v in entry.items() if k not in ("sampling", "denial")}
    whole.denial = "nothing is saved"
    whole.write(tmp_path / "elang.json")
    for threshold, drawn, denied in (("greedy", None, 0), ("parity", Sampling(**DRAWN), 1)):
        forget_notices()
        options = {"thresholds": str(tmp_path), "device": "cpu"}
        assert JointPredictor(pair["swift"], pair["super"], threshold, "nll_mean", **options).sampling == drawn
        assert [one["kind"] for one in notices()].count("denied-pair") == denied


def test_a_swift_that_saves_little_is_told_before_training(pair, args, tmp_path):
    """By the Super's recorded costs, as if it wrote texts of the same lengths."""
    forget_notices()
    swift = ["--model", "SwiftModule", "--model.model", pair["super"], "--model.super_records", pair["super.parquet"]]
    fit = ["fit", *swift, *args, *TRAINED, "--model.output", str(tmp_path / "swift"), "--model.distill_weight", "0"]
    assert main([*fit, "--trainer.max_steps", "1", "--model.hard", "error"]) == 0
    (said,) = [one["text"] for one in notices() if one["kind"] == "little-to-save"]
    assert said.startswith("The Swift takes 100% of the Super's FLOPs")


def test_sampling_is_refused_where_nothing_is_drawn(pair, args, base_model, fails, data):
    for wrong, why in (
        ({"temperature": 0}, "above 0"),
        ({"top_p": 1.5}, "top_p of sampling must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k of sampling must be a whole number from 0"),
    ):
        score = ["score", "--model.model", pair["swift"], "--model.output", str(data / "none.parquet")]
        fails([*score, *args, "--model.sampling", json.dumps(wrong)], why)
    beams = ["--model.num_beams", "2", "--model.sampling", json.dumps(DRAWN)]
    joint = ["validate", "--model.swift_model", pair["super.parquet"], "--model.super_model", pair["super"], *args]
    fails([*joint, "--model.output", str(data / "none"), *beams[2:]], "records are not drawn anew")
    fails([*score, *args, *beams], "--model.sampling draws one text")
    with pytest.raises(InputError, match="Sampled answers are for decoder-only language models"):
        JointPredictor(str(base_model), None, "inf", sampling=Sampling())
    for wrong in ({"temperature": -1}, {"top_k": 2.5}, {"heat": 1}, {"seed": "1"}):
        Manifest([], sampling=wrong).write(data / "wrong.json")
        with pytest.raises(InputError, match="'sampling'"):
            Manifest.read(data / "wrong.json")


def test_asked_scores_are_kept_in_records(pair, args, data, tmp_path, fails):
    """By `score`, with their costs; a pair of records has them, costed, as the pair of models has."""
    asked = ["--model.asked_scores", "[p_true, agreement]"]
    records = str(tmp_path / "swift.parquet")
    assert main(["score", "--model.model", pair["swift"], "--model.output", records, *args, *QUIET, *asked]) == 0
    frame = pd.read_parquet(records).query("split == 'validation'")
    assert (frame[["p_true_flops", "agreement_flops"]] > 0).all(axis=None)
    both = {}
    for name, models in {"models": (pair["swift"], pair["super"]), "records": (records, pair["super.parquet"])}.items():
        joint = ["validate", "--model.swift_model", models[0], "--model.super_model", models[1], *args, *QUIET]
        assert main([*joint, *(asked if name == "models" else []), "--model.output", str(tmp_path / name)]) == 0
        both[name] = pd.read_parquet(tmp_path / name / "records.parquet").query("split == 'validation'")
        curve = read_curve(tmp_path / name)
        assert {"p_true", "agreement"} <= {*curve["score"]}
    for column in ("score_p_true", "score_agreement", "swift_p_true_flops", "swift_agreement_flops"):
        ours, theirs = (torch.tensor(both[name][column].tolist()) for name in ("models", "records"))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert both["records"]["score_p_true"].tolist() == pytest.approx(frame["p_true"].tolist())
    backend = RecordedBackend(records, TASK)
    assert {"p_true", "agreement"} <= {*backend.score_names}
    joint = ["validate", "--model.swift_model", pair["super.parquet"], "--model.super_model", pair["super"], *args]
    fails([*joint, "--model.output", str(tmp_path / "none"), *asked], "has no score 'p_true', which only its model")
    # Parts of one run have the same.
    parts = ["score", "--model.model", pair["swift"], "--model.output", str(tmp_path / "parts.parquet"), *args, *QUIET]
    parts += ["--model.parts", "2", "--model.part"]
    assert main([*parts, "0", *asked]) == 0
    fails([*parts, "0"], "'asked_scores': ['p_true', 'agreement']", "Delete them")
    # A file of others may not know what they cost; then the cost of the pair is not known.
    del frame["p_true_flops"]
    frame.to_parquet(tmp_path / "bare.parquet")
    records = RecordedBackend(str(tmp_path / "bare.parquet"), TASK).splits["validation"]
    assert records.asked_flops("p_true").isnan().all()
    t5 = str(write_seq2seq(tmp_path / "t5"))
    score = ["score", "--model.model", t5, "--model.output", str(tmp_path / "t5.parquet"), *args, *QUIET]
    fails([*score, *asked], "has no score 'p_true'")
