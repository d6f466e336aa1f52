"""Generated texts: the library's tokens, scores before and after the decoder, costs, and the pair end to end."""

import json
import math
import random
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import (
    QUIET,
    SOURCE_WORDS,
    devices,
    epochs,
    read_curve,
    split_args,
    write_model,
    write_parallel,
    write_seq2seq,
    write_splits,
)
from models.test_distributed import elang
from sacrebleu.metrics import BLEU, CHRF
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSeq2SeqLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    NllbTokenizer,
)

from elang import InputError, JointPredictor, Seq2SeqData, SwiftModule
from elang.backends.flops import flops_by_length, generation_flops
from elang.backends.generator import TextGenerator
from elang.backends.loading.checkpoints import save_model
from elang.backends.loading.load import load_model
from elang.backends.loading.padding import REFUSED
from elang.cli.verbs import main
from elang.method.scores import QUANTILES, SEQUENCE_SCORES, TOKEN_SCORES, sequence_scores, token_scores
from elang.models.objectives.objective import LossOptions, RecordedAnswers
from elang.models.objectives.texts import TextObjective
from elang.records.manifest import Manifest
from elang.records.reading import read_records
from elang.tasks.kinds import text_targets
from elang.tasks.text_task import TextTask

TASK = TextTask([], "sequence", segments=[], qualities=["bleu", "chrf"])
KINDS = ("t5", "marian", "bart")
TRAINED = [*QUIET, "--trainer.enable_checkpointing", "false", "--model.lr", "5e-3"]


# Scores of tokens and of texts.


def test_token_scores_by_hand():
    logits = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0)).double()
    chosen = torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(1))
    p = logits.softmax(-1)
    expected = {
        "free_energy": -logits.exp().sum(-1).log(),
        "max_softmax": -p.amax(-1),
        "entropy": -(p * p.log()).sum(-1),
        "nll": -p.gather(-1, chosen[..., None])[..., 0].log(),
        "margin": p.sort(-1).values[..., -2] - p.amax(-1),
    }
    found = token_scores(logits, chosen)
    for name, column in zip(TOKEN_SCORES, found.unbind(-1), strict=True):
        torch.testing.assert_close(column.double(), expected[name], atol=1e-5, rtol=1e-5)


def test_sequence_scores_by_a_loop():
    generator = torch.Generator().manual_seed(0)
    tokens, steps = torch.randn(9, 12, 5, generator=generator), torch.tensor([1, 2, 3, 4, 5, 6, 7, 11, 12])
    found = dict(zip(SEQUENCE_SCORES, sequence_scores(tokens, steps).unbind(1), strict=True))
    for row, count in enumerate(steps.tolist()):
        for k, name in enumerate(TOKEN_SCORES):
            own = tokens[row, :count, k]
            expected = {"mean": own.mean(), "sum": own.sum()}
            expected |= {q: -torch.quantile(-own, share) for q, share in QUANTILES.items()}
            for how, value in expected.items():
                assert float(found[f"{name}_{how}"][row]) == pytest.approx(float(value), abs=1e-5)


def test_what_pads_a_text_is_not_scored():
    tokens, steps = torch.randn(3, 6, 5), torch.tensor([1, 4, 6])
    padded = torch.cat([tokens, torch.full((3, 2, 5), math.nan)], 1)
    padded[0, 1:], padded[1, 4:] = math.nan, math.inf
    torch.testing.assert_close(sequence_scores(padded, steps), sequence_scores(tokens, steps))


def test_larger_is_harder_for_every_score():
    """A text of surer tokens, with larger logits for them, is the easier one."""
    chosen = torch.zeros(2, 3, dtype=torch.int64)
    logits = torch.zeros(2, 3, 5)
    logits[0, :, 0], logits[1, :, 0] = 9.0, 2.0
    sure, unsure = sequence_scores(token_scores(logits, chosen), torch.tensor([3, 3]))
    assert (unsure > sure).all()


# Generation.


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of each family that has learned enough for its texts to vary in length, by name."""
    folder = tmp_path_factory.mktemp("families")
    write_parallel(folder / "train", 304, 1)
    data = [(folder / f"train.{side}").read_text("utf-8").split("\n")[:-1] for side in ("en", "de")]
    found = {}
    for kind in KINDS:
        model = load_model(str(write_seq2seq(folder / kind, kind)), TASK).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        for step in range(150):
            rows = range(step * 16 % 288, step * 16 % 288 + 16)
            source, target = ([side[i] for i in rows] for side in data)
            inputs = dict(model.tokenizer(source, padding=True, return_tensors="pt"))
            labels = model.tokenizer(text_target=target, padding=True, return_tensors="pt").input_ids
            answer = model({**inputs, "labels": labels.masked_fill(labels == 0, -100)})
            answer.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found[kind] = model.eval()
        found[kind].limit_new_tokens(12)
    return found


def inputs_of(model, rows=17, seed=0):
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(SOURCE_WORDS, k=rng.randint(1, 9))) for _ in range(rows)]
    found = model.tokenizer(texts, padding=True, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("static", [False, True])
def test_tokens_are_the_librarys(models, kind, beams, static):
    """Each sentence alone, against a batch in any order."""
    model = models[kind]
    model.backbone.generation_config.num_beams = beams
    model.use_static_cache(static)
    inputs = inputs_of(model)
    order = torch.randperm(len(inputs["input_ids"]), generator=torch.Generator().manual_seed(1))
    made = model.generate(model.encode({name: column[order] for name, column in inputs.items()}))
    lengths = set()
    for place, row in enumerate(order.tolist()):
        real = int(inputs["attention_mask"][row].sum())
        alone = model.backbone.generate(
            input_ids=inputs["input_ids"][row : row + 1, :real],
            attention_mask=torch.ones(1, real, dtype=torch.int64),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=12,
        )[0, 1:]
        steps = int(made.steps[place])
        assert made.ids[place, :steps].tolist() == alone[:steps].tolist()
        assert (alone[steps:] == 0).all()
        lengths.add(steps)
    model.use_static_cache(False)
    assert len(lengths) > 1, "a test of lengths needs several"


def test_the_short_way_says_the_same_texts(models):
    model = models["t5"]
    model.backbone.generation_config.num_beams = 1
    with torch.inference_mode():
        source = model.encode(inputs_of(model))
        expected = model.generate(source)
    model.shorten()
    with torch.inference_mode():
        try:
            # Nothing but greedy texts is asked for.
            assert model.steps(True) is not None
            for option in ({"no_repeat_ngram_size": 2}, {"num_beams": 2}, {"suppress_tokens": [3]}):
                model.backbone.generation_config.update(**option)
                assert model.steps(True) is None
                model.backbone.generation_config.update(**dict.fromkeys(option))
            found = model.generate(source)
            longest = int(expected.steps.max())
            assert found.ids.shape == (17, longest)
            assert torch.equal(found.ids, expected.ids[:, :longest])
            assert torch.equal(found.steps, expected.steps)
            torch.testing.assert_close(found.scores, expected.scores, atol=2e-4, rtol=1e-4)
            assert not model.generate(source, scored=False).scores.any()
            # The settings of generation decide, as for the library: the start, several ends, what pads.
            own = model.backbone.generation_config
            said = {"decoder_start_token_id": 7, "eos_token_id": [1, 9], "pad_token_id": 5}
            before = {name: getattr(own, name) for name in said}
            own.update(**said)
            found = model.generate(source)
            model.short_path, path = None, model.short_path
            other = model.generate(source)
            model.short_path = path
            own.update(pad_token_id=None)
            assert model.steps(True).pad == 1
            own.update(decoder_start_token_id=[7] * 17)
            assert model.steps(True) is None
            own.update(**before)
            assert torch.equal(found.ids, other.ids[:, : found.ids.shape[1]])
            assert not torch.equal(found.ids[:, 0], expected.ids[:, 0])
            assert torch.equal(found.steps, other.steps)
            exact = model.generate(source, exactly=5)
            assert exact.ids.shape == (17, 5)
            assert (exact.steps == 5).all()
        finally:
            model.short_path = None
        assert model.steps(True) is None


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("score", ["nll_mean", "router", "encoder_router"])
def test_few_texts_are_those_of_many(mt_data, mt_pair, score, device):
    """By the steps that a GPU captures: one, some and none deferred, before and after the decoder."""
    texts = (mt_data / "val.en").read_text("utf-8").split("\n")[:24]
    plain = JointPredictor(mt_pair["swift"], mt_pair["super"], "inf", score, device="cpu")
    for model in (plain.swift, plain.super_):
        model.short_path = None
    ordered = sorted(one.score for one in plain(texts))
    for threshold in ("inf", "-inf", (ordered[11] + ordered[12]) / 2):
        plain.threshold = float(threshold)
        expected = plain(texts)
        few = JointPredictor(mt_pair["swift"], mt_pair["super"], threshold, score, few=3, device=device)
        assert few.runners["swift"].small_batches is not None
        assert bool(few.runners["swift"].small_batches.graphs) == (device != "cpu")
        found = [one for start in range(0, 24, 3) for one in few(texts[start : start + 3])]
        found += [few([text])[0] for text in texts[:5]]
        for one, other in zip(found, expected + expected[:5], strict=True):
            assert (one.label, one.answered_by) == (other.label, other.answered_by)
            assert one.score == (other.score and pytest.approx(other.score, abs=2e-4, rel=1e-4))
            # Of a whole text there is none that means the same for short and long ones.
            assert one.probability is None


@pytest.mark.parametrize("kind", KINDS)
def test_scores_as_it_goes_are_those_of_the_finished_text(models, kind):
    model = models[kind]
    model.backbone.generation_config.num_beams = 1
    source = model.encode(inputs_of(model))
    made = model.generate(source)
    again = sequence_scores(model._score(source, made.ids), made.steps)
    torch.testing.assert_close(made.scores, again, atol=2e-4, rtol=1e-4)
    # The most probable token has the largest probability of all, if it was not forced at the limit.
    ended = again[made.steps < model.max_new_tokens]
    # How many it learns to end depends on the processor's rounding.
    assert len(ended) > 0
    found = dict(zip(SEQUENCE_SCORES, ended.unbind(1), strict=True))
    torch.testing.assert_close(found["nll_q0"].neg().exp(), -found["max_softmax_q0"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_cost_of_generation_is_what_the_library_multiplies(models, kind):
    """Counted as it generates, with a cache and the attention whose products can be seen."""
    model = models[kind]
    config = model.backbone.config
    eager = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").eval()
    for beams in (1, 3):
        for length, steps in ((4, 1), (9, 7)):
            ids = torch.full((1, length), 7)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                eager.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    num_beams=beams,
                    do_sample=False,
                    max_new_tokens=steps,
                    min_new_tokens=steps,
                )
            x, s = torch.tensor([length]), torch.tensor([steps])
            counted = flops_by_length(config, x, part="encoder") + generation_flops(config, x, s, beams=beams)
            projected = counter.get_total_flops()
            # The library projects the source once for each beam, as we count it.
            assert float(counted) == pytest.approx(projected, rel=1e-9)


def test_language_codes(tmp_path):
    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"▁{w}" for w in SOURCE_WORDS)]
    tokenizer = NllbTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[])
    sides = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sides |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 40}
    config = M2M100Config(vocab_size=len(tokenizer), d_model=16, decoder_start_token_id=2, **sides)
    M2M100ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def load(*languages):
        return load_model(str(tmp_path), TextTask([], "sequence", segments=[], languages=list(languages)))

    model = load("eng_Latn", "deu_Latn").eval()
    assert model.tokenizer("dog").input_ids[0] == tokenizer.convert_tokens_to_ids("eng_Latn")
    assert model.tokenizer(text_target="dog").input_ids[0] == tokenizer.convert_tokens_to_ids("deu_Latn")
    made = model.generate(model.encode(dict(model.tokenizer(["dog"], return_tensors="pt"))))
    assert int(made.ids[0, 0]) == tokenizer.convert_tokens_to_ids("deu_Latn")
    with pytest.raises(InputError, match=r"language code 'de_Latn'\. Did you mean .*deu_Latn"):
        load("eng_Latn", "de_Latn")
    with pytest.raises(InputError, match="between many languages: set --data"):
        load()
    # The scores are those of the decisions, which the code is none of.
    steps = int(made.steps[0])
    tokens = model._score(model.encode(dict(tokenizer(["dog"], return_tensors="pt"))), made.ids)
    expected = sequence_scores(tokens[:, 1:], torch.tensor([steps - 1]))
    torch.testing.assert_close(made.scores, expected, atol=1e-4, rtol=1e-4)
    # A model without codes makes nothing of them: the other of the pair may.
    write_seq2seq(tmp_path / "t5")
    t5 = load_model(str(tmp_path / "t5"), TextTask([], "sequence", segments=[], languages=["eng_Latn", "deu_Latn"]))
    assert t5.backbone.generation_config.forced_bos_token_id is None


def test_a_decoder_that_starts_with_the_language(tmp_path):
    """mBART's targets end with their code, and its decoder starts with it."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"▁{w}" for w in SOURCE_WORDS)]
    tokenizer = MBartTokenizer(vocab=[(w, 0.0) for w in words])
    sides = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sides |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 40}
    code = int(tokenizer.convert_tokens_to_ids("ro_RO"))
    config = MBartConfig(vocab_size=len(tokenizer), d_model=16, decoder_start_token_id=code, **sides)
    MBartForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), TextTask([], "sequence", segments=[], languages=["en_XX", "de_DE"]))
    own = model.backbone.generation_config
    assert own.decoder_start_token_id == tokenizer.convert_tokens_to_ids("de_DE")
    assert own.forced_bos_token_id is None
    labels = model.tokenizer(text_target="dog", return_tensors="pt").input_ids
    assert int(labels[0, -1]) == own.decoder_start_token_id


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 4])
def test_unscored_texts_are_the_same(models, kind, beams):
    model = models[kind]
    model.backbone.generation_config.num_beams = beams
    source = model.encode(inputs_of(model))
    one, two = model.generate(source), model.generate(source, scored=False)
    assert torch.equal(one.ids, two.ids)
    assert torch.equal(one.steps, two.steps)
    assert not two.scores.any()


def test_finished_texts_are_scored_in_parts(models, monkeypatch):
    model = models["bart"]
    source = model.encode(inputs_of(model))
    made = model.generate(source)
    whole = model._score(source, made.ids)
    monkeypatch.setattr("elang.backends.generation._CHUNK", made.ids.shape[1] * 40 * 3)
    torch.testing.assert_close(model._score(source, made.ids), whole, atol=1e-4, rtol=1e-4)


def test_options_of_beams_do_not_outlive_them(tmp_path):
    """A model that was made for beams is trained without, and can be saved."""
    folder = write_seq2seq(tmp_path / "bart", "bart")
    own = json.loads((folder / "generation_config.json").read_text())
    own |= {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0, "max_length": 142, "min_length": 1}
    (folder / "generation_config.json").write_text(json.dumps(own))
    assert load_model(str(folder), TASK).num_beams == 4
    model = load_model(str(folder), TASK, num_beams=1).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = model.generate(model.encode(inputs_of(model, rows=2)))
    assert made.ids.shape[1] <= 40
    save_model(model, tmp_path / "saved", Manifest([], TASK.plain()))
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved").generation_config
    assert (again.num_beams, again.max_new_tokens) == (1, 40)


def test_families_that_are_not_supported_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(REFUSED, "t5", "its decoder sees later tokens")
    with pytest.raises(InputError, match="is a 't5' model, which is not supported: its decoder sees later tokens"):
        load_model(str(write_seq2seq(tmp_path / "t5")), TASK)
    assert {"fsmt", "encoder-decoder"} <= REFUSED.keys()


# The pair, end to end.


@pytest.fixture(scope="module")
def mt_data(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("parallel"), write_parallel, 700, 61)


@pytest.fixture(scope="module")
def mt_args(mt_data):
    return [
        *("--data", "Seq2SeqData", *split_args(mt_data)),
        *("--data.source", "en", "--data.target", "de", "--data.max_target_length", "14"),
        *("--data.routing_fraction", "0.2", "--data.batch_size", "16", "--data.eval_batch_size", "8"),
    ]


@pytest.fixture(scope="module")
def swift_args(mt_data, mt_args):
    base = write_seq2seq(mt_data / "swift-base", "t5", layers=1)
    return ["--model", "SwiftModule", "--model.model", str(base), *mt_args, *TRAINED]


@pytest.fixture(scope="module")
def mt_pair(mt_data, mt_args, swift_args):
    """A trained Super with beams, its records, a Swift of another size: paths by name."""
    paths = {name: str(mt_data / name) for name in ("super", "super.parquet", "swift", "joint")}
    base = str(write_seq2seq(mt_data / "super-base", "t5"))
    super_ = ["--model.model", base, "--model.output", paths["super"], *epochs(16)]
    assert main(["fit", *super_, "--model.num_beams", "2", "--model.label_smoothing", "0.1", *mt_args, *TRAINED]) == 0
    score = ["score", "--model.model", paths["super"], "--model.output", paths["super.parquet"]]
    assert main([*score, "--model.top_k", "4", *mt_args, *QUIET]) == 0
    swift = ["--model.super_records", paths["super.parquet"], "--model.output", paths["swift"]]
    swift += ["--model.margin_weight", "0.1", "--model.score", "encoder_router", *epochs(3)]
    assert main(["fit", *swift_args, *swift, "--model.distill", "token"]) == 0
    joint = ["--model.swift_model", paths["swift"], "--model.super_model", paths["super"]]
    assert main(["validate", *joint, "--model.output", paths["joint"], *mt_args, *QUIET]) == 0
    return paths


@pytest.fixture(scope="module")
def joint(mt_pair):
    """The evaluation's records and summary."""
    records = pd.read_parquet(f"{mt_pair['joint']}/records.parquet")
    with open(f"{mt_pair['joint']}/summary.json", encoding="utf-8") as file:
        return records, json.load(file)


def references(mt_data, split="val"):
    return (mt_data / f"{split}.de").read_text("utf-8").split("\n")[:-1]


def test_the_super_learned(joint):
    summary = joint[1]["qualities"]["bleu"]
    assert summary["super"]["quality"] > 30
    assert summary["swift"]["quality"] < summary["super"]["quality"] - 5


def test_curves_are_sacrebleus_on_the_assembled_text(mt_data, mt_pair, joint):
    records = joint[0].query("split == 'validation'")
    curve = read_curve(mt_pair["joint"])
    rng = random.Random(0)
    for score in ("nll_mean", "free_energy_q10", "router", "encoder_router", "entropy_sum"):
        points = curve[curve["score"] == score]
        for _ in range(10):
            point = points.iloc[rng.randrange(len(points))]
            mixed = records["super_text"].where(records[f"score_{score}"] > point["threshold"], records["swift_text"])
            for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
                expected = metric.corpus_score(mixed.tolist(), [references(mt_data)]).score
                assert point[name] == pytest.approx(expected, abs=1e-6)


def test_every_score_is_there_and_both_placements(joint):
    records, summary = joint
    scores = {c.removeprefix("score_") for c in records if c.startswith("score_")}
    assert scores == {*SEQUENCE_SCORES, "router", "encoder_router"}
    assert summary["signatures"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    lengths = summary["lengths"]
    assert lengths["generated"].keys() == scores
    # A sum of positive terms grows with them.
    assert lengths["generated"]["nll_sum"] > lengths["generated"]["nll_mean"]
    assert lengths["generated"]["free_energy_sum"] < -0.5
    assert 0.1 < lengths["decoder_share"] < 0.95


def test_a_deferral_before_the_decoder_saves_it(mt_pair, joint):
    records = joint[0].query("split == 'validation'")
    curve = read_curve(mt_pair["joint"])
    model = load_model(mt_pair["swift"])
    lengths, steps = (torch.tensor(records[f"swift_{name}"].to_numpy()) for name in ("tokens", "steps"))
    early = flops_by_length(model.backbone.config, lengths, part="encoder") + model._head_flops("encoder_router")
    decoder = generation_flops(model.backbone.config, lengths, steps)
    torch.testing.assert_close(
        torch.tensor(records["swift_flops"].to_numpy()), early + decoder + model._head_flops("router")
    )
    super_cost = records["super_flops"].mean()
    for score, paid in (("encoder_router", early.numpy()), ("nll_mean", records["swift_flops"].to_numpy())):
        *_, before, last = curve[curve["score"] == score].itertuples()
        hard = records[f"score_{score}"].to_numpy() > before.threshold
        kept = np.where(hard, paid, records["swift_flops"])
        assert before.flops == pytest.approx(kept.mean() + (hard * records["super_flops"]).mean())
        # Where everything is deferred whatever its score, no Swift runs.
        assert (last.deferred_share, last.flops) == (1, pytest.approx(super_cost))
    assert joint[1]["lengths"]["decoder_share"] == pytest.approx(1 - float(early.sum()) / records["swift_flops"].sum())


def test_beams_cost_what_they_are(mt_pair, joint):
    records = joint[0].query("split == 'validation'")
    config = load_model(mt_pair["super"]).backbone.config
    lengths, steps = (torch.tensor(records[f"super_{name}"].to_numpy()) for name in ("tokens", "steps"))
    expected = flops_by_length(config, lengths, part="encoder") + generation_flops(config, lengths, steps, beams=2)
    torch.testing.assert_close(torch.tensor(records["super_flops"].to_numpy()), expected)


def test_the_folder_is_plain_transformers(mt_pair):
    model = AutoModelForSeq2SeqLM.from_pretrained(mt_pair["super"])
    assert model.generation_config.num_beams == 2
    manifest = Manifest.read(mt_pair["swift"])
    assert manifest.task["problem"] == "sequence"
    assert manifest.max_target_length == 14
    assert {"parity", "99%", "defer 10%"} <= manifest.thresholds["encoder_router"].keys()


def test_records_come_back(mt_pair, mt_data):
    splits, about = read_records(mt_pair["super.parquet"], [], "sequence")
    assert {name: len(found.id) for name, found in splits.items()} == {"train": 700, "validation": 61}
    assert about["num_beams"] == 2
    train = splits["train"]
    assert train.top_ids.shape[2] == 4
    tokenizer = load_model(mt_pair["super"]).tokenizer
    for row, text in list(enumerate(references(mt_data, "train")))[:50]:
        assert int((train.top_ids[row, :, 0] >= 0).sum()) == len(tokenizer(text).input_ids)
        real = train.top_log_probs[row][train.top_ids[row] >= 0]
        assert (real <= 0).all()


def test_two_processes_score_as_one(mt_pair, mt_args, tmp_path):
    joint = ["--model.swift_model", mt_pair["swift"], "--model.super_model", mt_pair["super"], *mt_args, *QUIET]
    # In batches of 64 there is one for validation, so the other process has none.
    for n in (1, 2):
        elang("validate", *joint, "--data.eval_batch_size", 64, "--model.output", tmp_path / str(n), processes=n)
    one, two = (pd.read_parquet(tmp_path / n / "records.parquet") for n in "12")
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    summaries = [(tmp_path / n / "summary.json").read_text() for n in "12"]
    assert summaries[0] == summaries[1]


def test_two_processes_train_with_every_term(mt_pair, swift_args, tmp_path):
    records = ["--model.super_records", mt_pair["super.parquet"], "--model.distill", "token"]
    steps = ["--trainer.max_steps", "4"]
    elang("fit", *swift_args, *records, *steps, "--model.output", tmp_path / "swift", processes=2)
    heads = load_model(str(tmp_path / "swift")).heads
    assert all(bool(head.weight.any()) for head in heads.values())


@pytest.mark.parametrize("score", ["nll_mean", "router", "encoder_router"])
def test_the_predictor_answers_as_evaluated(mt_data, mt_pair, joint, score):
    records = joint[0].query("split == 'validation'")
    threshold = float(records[f"score_{score}"].median())
    predictor = JointPredictor(mt_pair["swift"], mt_pair["super"], threshold, score)
    found = predictor((mt_data / "val.en").read_text("utf-8").split("\n")[:-1])
    near = (records[f"score_{score}"] - threshold).abs().to_numpy() < 1e-4
    for row, (answer, close) in enumerate(zip(found, near, strict=True)):
        said = records.iloc[row]
        assert answer.score == pytest.approx(said[f"score_{score}"], abs=2e-3)
        if not close:
            deferred = said[f"score_{score}"] > threshold
            assert answer.answered_by == ("super" if deferred else "swift")
            assert answer.label == said["super_text" if deferred else "swift_text"]
    assert {answer.answered_by for answer in found} == {"swift", "super"}


def test_deferred_inputs_are_not_decoded_by_the_swift(mt_pair, monkeypatch):
    decoded = []
    generate = TextGenerator.generate

    def spied(self, source, *args, **options):
        decoded.append((self, len(source.hidden)))
        return generate(self, source, *args, **options)

    monkeypatch.setattr(TextGenerator, "generate", spied)
    predictor = JointPredictor(mt_pair["swift"], mt_pair["super"], "-1e9", "encoder_router")
    assert [one.answered_by for one in predictor(["the dog ."] * 3)] == ["super"] * 3
    assert [model is predictor.super_ for model, _ in decoded] == [True]


def test_a_served_decoder_runs_late_for_what_the_super_left(mt_pair):
    from inference.test_serve import Models, posted

    from elang.inference.serving.schema import Limits

    predictor = JointPredictor(mt_pair["swift"], mt_pair["super"], "-1e9", "encoder_router", device="cpu")
    texts = ["a dog runs .", "the man sees a cat ."]
    rows = predictor.rows(texts)
    assert [(label, hard) for label, _, hard in predictor.ask_swift(rows)] == [(None, True)] * 2
    kept = [label for label, _, _ in predictor.ask_swift(rows, keep=True)]
    assert all(isinstance(label, str) for label in kept)
    models = Models(predictor, super_takes=9)
    (response,) = posted(models.service(Limits(deadline=6)), {"texts": texts})
    assert response.status_code == 200, response.text
    assert [a["label"] for a in response.json()["answers"]] == kept
    assert {a["fallback"] for a in response.json()["answers"]} == {"timeout"}
    assert models.asked == {"swift": 2, "super": 1}


def test_the_page_of_generated_texts(joint, mt_pair, tmp_path):
    from evaluation.test_page import Page

    out = tmp_path / "report.html"
    assert main(["report", str(mt_pair["joint"]), "--output", str(out)]) == 0
    page = Page(out.read_text("utf-8"))
    # Neither classes nor probabilities.
    assert len(page.all("img")) == 2
    slider = json.loads(page.all("section")[0]["data-curve"])
    assert slider["quality"][-1] == pytest.approx(joint[1]["qualities"]["bleu"]["super"]["quality"], rel=1e-4)
    assert main(["calibrate", str(mt_pair["joint"]), "--max_regret", "0.9", "--split", "routing"]) == 2
    # By default the evaluation set, for a router routes.
    assert main(["calibrate", str(mt_pair["joint"]), "--max_regret", "0.9"]) == 0
    entry = json.loads(Path(mt_pair["joint"], "elang.json").read_text())["thresholds"]["encoder_router"]["certified"]
    assert "of an answer's worth (chrf, from 0 to 1) is lost" in entry["statement"]
    # The Super can be served alone.
    texts = ["a dog runs .", "the man sees a cat ."]
    alone, both = JointPredictor(None, mt_pair["super"]), JointPredictor(mt_pair["swift"], mt_pair["super"])
    assert alone.ask_super(alone.rows(texts)) == both.ask_super(both.rows(texts))


def test_predict_keeps_empty_lines_in_place(mt_pair, tmp_path):
    (tmp_path / "in.txt").write_text("the dog .\n\na cat sees .\n", "utf-8")
    args = ["--swift_model", mt_pair["swift"], "--super_model", mt_pair["super"], "--threshold", "inf"]
    assert main(["predict", *args, "--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 3
    assert {row["answered_by"] for row in rows} == {"swift"}


def test_texts_from_anywhere_are_a_super(mt_data, mt_pair, mt_args, joint, tmp_path):
    """A black box gives a table of texts; even a Swift may be records, if they have scores."""
    table = pd.DataFrame({"id": range(61), "prediction": references(mt_data)})
    table.loc[3, "prediction"] = ""
    table.to_csv(tmp_path / "super.csv", index=False)
    args = ["--model.super_model", str(tmp_path / "super.csv"), "--model.super_flops", "1e9", *mt_args, *QUIET]
    assert (
        main(["validate", "--model.swift_model", mt_pair["swift"], "--model.output", str(tmp_path / "a"), *args]) == 0
    )
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())["qualities"]["bleu"]
    expected = BLEU().corpus_score(table["prediction"].tolist(), [references(mt_data)]).score
    assert summary["super"] == {"quality": pytest.approx(expected), "cost": 1e9}
    swift = str(tmp_path / "swift.parquet")
    assert main(["score", "--model.model", mt_pair["swift"], "--model.output", swift, *mt_args, *QUIET]) == 0
    assert main(["validate", "--model.swift_model", swift, "--model.output", str(tmp_path / "b"), *args]) == 0
    again = json.loads((tmp_path / "b" / "summary.json").read_text())["qualities"]["bleu"]
    assert again["scores"]["nll_mean"]["on_this_set"] == summary["scores"]["nll_mean"]["on_this_set"]


def test_distillation_from_texts(mt_pair, swift_args, tmp_path):
    table = pd.read_parquet(mt_pair["super.parquet"])[["split", "id", "prediction"]]
    table.to_json(tmp_path / "super.jsonl", orient="records", lines=True)
    args = [*swift_args, "--model.super_records", str(tmp_path / "super.jsonl"), "--trainer.max_steps", "3"]
    assert main(["fit", *args, "--model.distill", "sequence", "--model.output", str(tmp_path / "swift")]) == 0
    assert Manifest.read(tmp_path / "swift").thresholds["router"]["parity"]["num_examples"] > 20


def test_a_swift_without_a_super_learns_its_own_errors(swift_args, tmp_path):
    args = [*swift_args, "--model.distill_weight", "0", "--model.hard", "error", "--trainer.max_steps", "3"]
    assert main(["fit", *args, "--model.output", str(tmp_path / "swift")]) == 0
    assert Manifest.read(tmp_path / "swift").thresholds["router"].keys() == {
        f"defer {share}%" for share in (10, 20, 30, 50)
    }


def test_a_checkpoint_can_be_a_swift(mt_pair, mt_args, swift_args, tmp_path):
    run = ["--trainer.enable_checkpointing", "true", "--trainer.default_root_dir", str(tmp_path)]
    options = ["--model.super_records", mt_pair["super.parquet"], "--trainer.max_steps", "2", "--model.num_beams", "3"]
    assert main(["fit", *swift_args, *options, *run, "--model.output", str(tmp_path / "swift")]) == 0
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    loaded = load_model(str(checkpoint))
    assert loaded.num_beams == 3
    # Router heads are fitted when training is over.
    assert loaded.head_scores == []
    folder = load_model(str(tmp_path / "swift"))
    assert folder.head_scores == ["router", "encoder_router"]
    for name, weights in loaded.backbone.state_dict().items():
        torch.testing.assert_close(weights, folder.backbone.state_dict()[name])


def test_all_metrics_of_texts(mt_pair, mt_args, mt_data, tmp_path):
    quality = ["--model.quality", "[rouge_l, exact_text, token_accuracy]"]
    pair = ["--model.swift_model", mt_pair["swift"], "--model.super_model", mt_pair["super"], *quality]
    assert main(["validate", *pair, "--model.output", str(tmp_path / "j"), *mt_args, *QUIET]) == 0
    records = pd.read_parquet(tmp_path / "j" / "records.parquet").query("split == 'validation'")
    exact = [a == b for a, b in zip(records["super_text"], references(mt_data), strict=True)]
    summary = json.loads((tmp_path / "j" / "summary.json").read_text())
    assert summary["qualities"]["exact_text"]["super"]["quality"] == pytest.approx(sum(exact) / 61)
    targets = text_targets(["rouge_l"], references(mt_data), records["super_text"].tolist())
    mean = float(targets["rouge_l"][:, 0, 0].mean())
    assert summary["qualities"]["rouge_l"]["super"]["quality"] == pytest.approx(mean)


def test_latency_is_of_texts_of_the_usual_length(mt_pair, mt_args, tmp_path, monkeypatch):
    monkeypatch.setattr("elang.backends.seconds.measure_latency", lambda call, *_: (call() and 0.0) or 0.5)
    timed = set()
    generate = TextGenerator.generate

    def spied(self, source, exactly=None, scored=True):
        if exactly is not None:
            timed.add((exactly, scored))
        return generate(self, source, exactly, scored)

    monkeypatch.setattr(TextGenerator, "generate", spied)
    pair = ["--model.swift_model", mt_pair["swift"], "--model.super_model", mt_pair["super"]]
    args = [*pair, "--model.latency", "true", "--model.output", str(tmp_path / "j")]
    assert main(["validate", *args, *mt_args, *QUIET]) == 0
    summary = json.loads((tmp_path / "j" / "summary.json").read_text())
    assert summary["latency"].keys() == {"swift", "swift encoder", "super", "super encoder"}
    frame = pd.read_parquet(tmp_path / "j" / "records.parquet").query("split == 'validation'")
    expected = {(int(frame[f"{role}_steps"].quantile(0.5, "lower")), role == "swift") for role in ("swift", "super")}
    assert timed == expected


def test_default_weights_and_scores_of_texts(mt_data, mt_pair):
    task = Manifest.read(mt_pair["swift"]).task
    module = SwiftModule(str(mt_data / "swift-base"), [], task, super_records=mt_pair["super.parquet"])
    assert module.loss_options == LossOptions(distill_weight=1)
    assert module.score == "nll_mean"


def test_bad_pairs(mt_pair, mt_args, mt_data, swift_args, fails, tmp_path):
    encoder = str(write_model(tmp_path / "bert"))
    out = ["--model.output", str(tmp_path / "out")]
    fails(["fit", "--model.model", encoder, *out, *mt_args, *QUIET], "without a decoder", "encoder-decoder (T5")
    joint = ["validate", "--model.swift_model", mt_pair["swift"], "--model.super_model", mt_pair["super"], *out]
    fails([*joint, "--model.quality", "accuracy", *mt_args, *QUIET], "'accuracy' is not a metric for a", "bleu")
    fails(["fit", *swift_args[2:4], *out, *mt_args, *QUIET, "--model.quality", "f1"], "'f1' is not a metric")
    single = ["validate", "--model", "FinetuneModule", "--model.model", mt_pair["super"], *mt_args, *QUIET]
    fails([*single, "--data.prompt", "translate: {text}"], "was trained with the prompt '{text}'", "translate:")
    early = ["--model.super_records", mt_pair["super.parquet"], "--model.score", "encoder_router"]
    fails(
        ["fit", *swift_args, *out, *early, "--data.routing_fraction", "0"],
        "'encoder_router' is learned on a slice of the training file",
        "set --data.routing_fraction above 0",
    )
    records = ["--model.super_records", mt_pair["super.parquet"], "--data.routing_fraction", "0.3"]
    fails(["fit", *swift_args, *out, *records], "was trained with 0.2")
    bare = tmp_path / "bare.jsonl"
    pd.read_parquet(mt_pair["super.parquet"])[["split", "id", "prediction"]].to_json(bare, orient="records", lines=True)
    fails(
        ["fit", *swift_args, *out, "--model.super_records", str(bare), "--model.distill", "token"],
        "elang score --model.top_k",
        "--model.distill sequence",
    )
    swift = ["validate", "--model.swift_model", str(bare), "--model.super_model", mt_pair["super"], *out]
    fails([*swift, *mt_args, *QUIET], "no scores of their tokens", "elang score")
    alone = ["--model.distill_weight", "0", "--model.hard", "error", "--model.label_smoothing", "1"]
    fails(["fit", *swift_args, *out, *alone], "label_smoothing 1.0 must be in [0, 1)")
    fails(["score", "--model.model", mt_pair["super"], "--model.num_beams", "0", *mt_args, *QUIET], "at least 1")
    (mt_data / "t.en").write_text("the dog .\n", "utf-8")
    test = ["--data.test", str(mt_data / "t")]
    fails(["test", *joint[1:], *mt_args, *test, *QUIET], "without labels", "elang predict")
    assert not (tmp_path / "out").exists()


def test_what_is_cut_is_counted(mt_pair, mt_args, tmp_path):
    args = ["--model.model", mt_pair["super"], "--model.output", str(tmp_path / "r.parquet"), *mt_args, *QUIET]
    with pytest.warns(UserWarning, match="were cut") as caught:
        assert main(["score", *args, "--data.max_target_length", "4", "--data.max_length", "5"]) == 0
    said = [str(one.message) for one in caught]
    for words in (("inputs of 'validation'", "longer than 5 tokens"), ("references of 'validation'", "longer than 4")):
        assert any(all(word in line for word in words) for line in said), said
    assert any("on 'validation' reached the limit of 4 tokens" in line for line in said), said


def test_without_a_slice_there_are_no_heads(mt_pair, swift_args, tmp_path):
    records = ["--model.super_records", mt_pair["super.parquet"], "--trainer.max_steps", "2"]
    args = [*swift_args, *records, "--data.routing_fraction", "0", "--model.score", "nll_mean"]
    assert main(["fit", *args, "--model.output", str(tmp_path / "swift")]) == 0
    assert Manifest.read(tmp_path / "swift").thresholds == {}
    assert not load_model(str(tmp_path / "swift")).heads


def test_tokens_of_another_tokenizer_are_refused(mt_pair, swift_args, fails, tmp_path):
    frame = pd.read_parquet(mt_pair["super.parquet"])
    frame["top_ids"] = [row[4:] for row in frame["top_ids"]]
    frame["top_log_probs"] = [row[4:] for row in frame["top_log_probs"]]
    table = pa.Table.from_pandas(frame, preserve_index=False)
    metadata = pq.read_schema(mt_pair["super.parquet"]).metadata
    pq.write_table(table.replace_schema_metadata({b"elang": metadata[b"elang"]}), tmp_path / "super.parquet")
    args = [*swift_args, "--model.super_records", str(tmp_path / "super.parquet"), "--model.distill", "token"]
    fails(["fit", *args, "--model.output", str(tmp_path / "swift")], "references of other lengths", "distill sequence")
    assert not (tmp_path / "swift").exists()


def test_one_model_is_evaluated(mt_pair, mt_args, joint, capsys):
    args = ["validate", "--model", "FinetuneModule", "--model.model", mt_pair["super"], *mt_args, *QUIET]
    assert main([*args, "--model.quality", "chrf"]) == 0
    expected = joint[1]["qualities"]["chrf"]["super"]["quality"]
    assert f"chrf on 61 examples of validation: {expected:.4f}" in capsys.readouterr().out


def test_two_families_with_tokenizers_of_their_own(mt_pair, mt_data, mt_args, swift_args, tmp_path):
    """A Marian Super numbers the words otherwise; the Swift learns from its texts."""
    base = str(write_seq2seq(tmp_path / "marian", "marian", backwards=True))
    super_ = ["--model.model", base, "--model.output", str(tmp_path / "super"), *epochs(2)]
    assert main(["fit", *super_, *mt_args, *TRAINED]) == 0
    score = ["score", "--model.model", str(tmp_path / "super"), "--model.output", str(tmp_path / "super.parquet")]
    assert main([*score, "--model.top_k", "2", "--model.static_cache", "true", *mt_args, *QUIET]) == 0
    swift = [*swift_args, "--model.super_records", str(tmp_path / "super.parquet"), "--trainer.max_steps", "20"]
    assert main(["fit", *swift, "--model.output", str(tmp_path / "swift")]) == 0
    pair = ["--model.swift_model", str(tmp_path / "swift"), "--model.super_model", str(tmp_path / "super")]
    assert main(["validate", *pair, "--model.output", str(tmp_path / "joint"), *mt_args, *QUIET]) == 0
    records = pd.read_parquet(tmp_path / "joint" / "records.parquet").query("split == 'validation'")
    kept = read_records(tmp_path / "super.parquet", [], "sequence")[0]["validation"]
    assert records["super_text"].tolist() == kept.texts
    predictor = JointPredictor(str(tmp_path / "swift"), str(tmp_path / "super"), "-inf")
    assert [one.label for one in predictor(["the dog .", "a cat sees ."])] != ["", ""]
    # Its tokens are other words, though as many: they neither teach nor tell what is hard.
    data = Seq2SeqData(str(mt_data / "train"), source="en", target="de", max_target_length=14)
    module = SwiftModule(str(tmp_path / "marian"), [], data.task_fields, str(tmp_path / "super.parquet"))
    assert module.classifier.vocabulary == load_model(str(tmp_path / "super")).vocabulary
    assert module.classifier.vocabulary != load_model(mt_pair["swift"]).vocabulary
    records, about = read_records(tmp_path / "super.parquet", [], "sequence")
    swift = load_model(mt_pair["swift"])
    answers = RecordedAnswers("it", records, about["vocabulary"])
    for source in ("sequence", "token"):
        options = LossOptions(distill_weight=1.0, distill=source, margin_weight=0.1)
        if source == "sequence":
            assert not TextObjective(swift, options, answers, 14).with_tokens
            continue
        with pytest.raises(InputError, match="another vocabulary"):
            TextObjective(swift, options, answers, 14)


def test_no_more_is_generated_than_there_are_positions(models):
    """The tables of Marian and BART end at 40."""
    for kind, most in (("t5", 100), ("marian", 40), ("bart", 40)):
        model = models[kind]
        model.limit_new_tokens(100)
        assert model.max_new_tokens == most
        model.backbone.generation_config.num_beams = 1
        made = model.generate(model.encode(inputs_of(model, rows=2)), exactly=model.max_new_tokens)
        assert made.ids.shape[1] == most
        model.limit_new_tokens(12)


def test_a_file_without_references_is_scored(mt_pair, mt_args, mt_data, tmp_path):
    (mt_data / "bare.en").write_text("the dog .\na cat sees .\n", "utf-8")
    args = ["--data.test", str(mt_data / "bare"), "--model.top_k", "3", "--model.output", str(tmp_path / "r.parquet")]
    assert main(["score", "--model.model", mt_pair["super"], *mt_args, *QUIET, *args]) == 0
    splits, _ = read_records(tmp_path / "r.parquet", [], "sequence")
    assert len(splits["test"].texts) == 2
    assert splits["test"].top_ids is None
    assert splits["train"].top_ids.shape == (700, 10, 3)


def test_each_model_keeps_its_own_prompt(mt_pair, mt_args, joint, tmp_path):
    pair = ["--model.swift_model", mt_pair["swift"], "--model.super_model", mt_pair["super"]]
    args = ["validate", *pair, "--model.output", str(tmp_path / "joint"), *mt_args, *QUIET, "--data.prompt={text}: dog"]
    assert main(args) == 0
    again = pd.read_parquet(tmp_path / "joint" / "records.parquet")
    assert again["super_text"].tolist() == joint[0]["super_text"].tolist()


def test_a_suite_knows_the_scores_of_texts(fails):
    fails(["suite", "x", "--score", "nll_mean"], "needs its YAML file")
    fails(["suite", "x", "--score", "nll_q99"], "no score 'nll_q99'", "nll_q10")


def test_thresholds_are_for_the_beams_that_they_were_chosen_with(mt_pair, mt_args, tmp_path):
    pair = ["--model.swift_model", mt_pair["swift"], "--model.super_model", mt_pair["super"], "--model.num_beams", "2"]
    assert main(["validate", *pair, "--model.output", str(tmp_path / "joint"), *mt_args, *QUIET]) == 0
    chosen = JointPredictor(mt_pair["swift"], mt_pair["super"], "defer 30%", thresholds=str(tmp_path / "joint"))
    assert chosen.swift.num_beams == 2
    assert JointPredictor(mt_pair["swift"], mt_pair["super"], "defer 30%").swift.num_beams == 1


def test_the_limit_is_the_datas_without_validation(mt_pair, swift_args, tmp_path, monkeypatch):
    widths = set()
    generate = TextGenerator.generate

    def spied(self, source, *args, **options):
        widths.add(self.max_new_tokens)
        return generate(self, source, *args, **options)

    monkeypatch.setattr(TextGenerator, "generate", spied)
    records = ["--model.super_records", mt_pair["super.parquet"], "--trainer.max_steps", "1"]
    args = [*swift_args, *records, "--trainer.limit_val_batches", "0", "--model.output", str(tmp_path / "swift")]
    assert main(["fit", *args]) == 0
    assert widths == {14}
