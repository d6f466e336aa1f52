"""FLOPs against closed forms and the paper's figures, and the cost of a pair."""

import math
import time
import weakref

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    MT5Config,
    OPTConfig,
    T5Config,
)

from elang import InputError
from elang.backends import flops as counted_flops
from elang.backends import seconds as timed
from elang.backends.flops import flops_by_length, generation_flops
from elang.backends.seconds import best_batch, measure_latency, measure_throughput
from elang.method.curve.points import Costs

TINYBERT = {"hidden_size": 312, "intermediate_size": 1200, "num_hidden_layers": 4, "num_attention_heads": 12}
SMALL = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
T5_LARGE = {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16}
T5_11B = T5_LARGE | {"d_kv": 128, "d_ff": 65536, "num_heads": 128}
T5_SMALL = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
BYT5_SMALL = T5_SMALL | {"num_decoder_layers": 1, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
BART_SMALL = {
    "vocab_size": 100, "d_model": 32, "max_position_embeddings": 64, "encoder_layers": 2, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 80,
}  # fmt: skip

# The paper's table: share kept by the Swift in per cent, and the speed-up in FLOPs.
PAPER = {
    "MNLI": (64, 2.4),
    "QNLI": (63, 2.4),
    "SST-2": (77, 3.5),
    "RTE": (56, 2.0),
    "MRPC": (68, 2.7),
    "CoLA": (60, 2.2),
    "QQP": (91, 7.0),
}
SWIFT_GFLOPS, SUPER_GFLOPS = 1.2, 21.8


def bert_flops(config, length, attention=True):
    """Two FLOPs a multiply-accumulate of every matrix product."""
    d = config.hidden_size
    layer = 4 * 2 * length * d * d + 2 * 2 * length * d * config.intermediate_size
    if attention:
        layer += 2 * 2 * length * length * d
    return config.num_hidden_layers * layer + 2 * d * d + 2 * d * config.num_labels


def count_flops(config, length, part="all", decoder=(1, 1)):
    """One input, without the law of its length."""
    return counted_flops._count(counted_flops._countable(config), length, part, decoder)


def t5_flops(config, length, part="all", decoder=(1, 1)):
    """The encoder, and the decoder with the language-model head over each of its paths."""
    d, inner, paths, tokens = config.d_model, config.d_kv * config.num_heads, *decoder
    feed_forward = (6 if config.is_gated_act else 4) * d * config.d_ff
    encoder = config.num_layers * (8 * length * d * inner + 4 * length**2 * inner + length * feed_forward)
    if part == "encoder":
        return encoder
    itself = 8 * tokens * d * inner + 4 * tokens**2 * inner
    across = 4 * tokens * d * inner + 4 * length * d * inner + 4 * tokens * length * inner
    layers = config.num_decoder_layers * (itself + across + tokens * feed_forward)
    return encoder + paths * (layers + tokens * 2 * d * config.vocab_size)


@pytest.mark.parametrize(
    ("config", "gflops"),
    [(BertConfig(), 22.35), (T5Config(**T5_LARGE), 92.6), (T5Config(**T5_11B), 1480.4)],
    ids=["BERT-Base", "T5-Large", "T5-11B"],
)
def test_known_models(config, gflops):
    digits = len(str(gflops).split(".")[1])
    assert round(count_flops(config, 128) / 1e9, digits) == gflops


@pytest.mark.parametrize("length", [1, 2, 17, 128, 512])
@pytest.mark.parametrize("shape", [TINYBERT, SMALL | {"num_labels": 3}, {"num_hidden_layers": 1}])
def test_bert_by_formula(shape, length):
    config = BertConfig(**shape)
    assert count_flops(config, length) == bert_flops(config, length)


def test_a_head_of_any_number_of_labels_is_counted_from_the_length_law():
    for labels in (1, 2, 7, 150):
        config = BertConfig(**SMALL, num_labels=labels)
        found = flops_by_length(config, torch.tensor([5, 90])).tolist()
        assert found == pytest.approx([bert_flops(config, 5), bert_flops(config, 90)], rel=1e-12)


@pytest.mark.parametrize("length", [1, 17, 300])
@pytest.mark.parametrize("decoder", [(1, 1), (3, 1), (1, 7), (5, 2)])
@pytest.mark.parametrize(
    "config", [T5Config(**T5_SMALL), T5Config(**BYT5_SMALL), MT5Config(**T5_SMALL)], ids=["T5", "ByT5", "mT5"]
)
def test_t5_by_formula(config, length, decoder):
    for part in ("all", "encoder"):
        assert count_flops(config, length, part, decoder) == t5_flops(config, length, part, decoder)


@pytest.mark.parametrize("part", ["all", "encoder"])
@pytest.mark.parametrize("shape", [T5_LARGE, T5_11B], ids=["T5-Large", "T5-11B"])
def test_large_t5_by_formula(shape, part):
    config = T5Config(**shape)
    lengths = [1, 128, 300]
    expected = [t5_flops(config, n, part, (2, 3)) for n in lengths]
    assert count_flops(config, 300, part, (2, 3)) == expected[-1]
    assert flops_by_length(config, torch.tensor(lengths), part=part, decoder=(2, 3)).tolist() == pytest.approx(
        expected, rel=1e-9
    )


@pytest.mark.parametrize("length", [1, 30, 64])
@pytest.mark.parametrize("tokens", [1, 5])
def test_bart_is_counted_as_its_plain_forward_runs(length, tokens):
    config = BartConfig(**BART_SMALL)
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").eval()
    found = {}
    for part, run in (("all", model), ("encoder", model.get_encoder())):
        inputs = {"input_ids": torch.ones(1, length, dtype=torch.long, device="meta")}
        if part == "all":
            inputs["decoder_input_ids"] = torch.ones(1, tokens, dtype=torch.long, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(**inputs)
        found[part] = counter.get_total_flops()
        assert count_flops(config, length, part, (1, tokens)) == found[part]
    assert 0 < found["encoder"] < found["all"]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    "config", [T5Config(**T5_SMALL), T5Config(**BYT5_SMALL), BartConfig(**BART_SMALL)], ids=["T5", "ByT5", "BART"]
)
def test_generation_by_formula(config, cached):
    """The decoder alone; with a cache the token at place ``t`` attends to ``t`` tokens."""
    t5 = isinstance(config, T5Config)
    inner = config.d_kv * config.num_heads if t5 else config.d_model
    # Weights of a layer that run once a token, and of what runs once a source token.
    feed_forward = (3 if config.is_gated_act else 2) * config.d_model * config.d_ff if t5 else 2 * 32 * 80
    once = 6 * config.d_model * inner + feed_forward
    layers, vocabulary = (config.num_decoder_layers if t5 else config.decoder_layers), config.vocab_size

    def expected(length, steps):
        seen = sum(range(1, steps + 1)) if cached else steps * steps
        products = layers * (steps * once + 2 * length * config.d_model * inner + 2 * inner * (seen + steps * length))
        return 2 * (products + steps * config.d_model * vocabulary)

    sizes = [(1, 1), (5, 2), (40, 17), (3, 60)]
    lengths, steps = (torch.tensor(column) for column in zip(*sizes, strict=True))
    for beams in (1, 3):
        found = generation_flops(config, lengths, steps, beams=beams, cached=cached)
        assert found.dtype == torch.float64
        assert found.tolist() == pytest.approx([beams * expected(*size) for size in sizes], rel=1e-9)
    assert generation_flops(config, lengths, steps).tolist() == pytest.approx(
        generation_flops(config, lengths, steps, "exact", 1, True).tolist(), rel=0
    )


def test_generation_in_the_papers_convention():
    config = T5Config(**T5_SMALL)
    x, s = torch.tensor([5, 50]), torch.tensor([3, 6])
    found = generation_flops(config, x, s, "paper", beams=2)
    one = flops_by_length(config, x, "paper", decoder=(1, 1)) - flops_by_length(config, x, "paper", "encoder")
    assert found.tolist() == (one * s * 2).tolist()


def test_unknown_words_are_refused():
    config, one = T5Config(**T5_SMALL), torch.tensor([5])
    with pytest.raises(InputError, match=r"Unknown FLOPs convention 'papers'; choose one of exact, paper\."):
        flops_by_length(config, one, "papers")
    with pytest.raises(InputError, match="Unknown FLOPs convention 'Exact'"):
        generation_flops(config, one, one, "Exact")
    with pytest.raises(InputError, match=r"Unknown part 'decoder'; choose one of all, encoder\."):
        flops_by_length(config, one, part="decoder")


def test_what_generates_nothing():
    one = torch.tensor([5])
    for config, beams, said in ((T5Config(**T5_SMALL), 0, "'t5' model with 0"), (BertConfig(**SMALL), 1, "'bert'.* 1")):
        with pytest.raises(InputError, match=rf"A {said} beams generates nothing"):
            generation_flops(config, one, one, beams=beams)


def test_a_decoder_that_is_not_global_is_not_counted_by_length(monkeypatch):
    count = counted_flops._count

    def cubic(model, length, part="all", decoder=(1, 1)):
        return count(model, length, part, decoder) + (length**3 * decoder[1] if part == "all" else 0)

    monkeypatch.setattr(counted_flops, "_count", cubic)
    counted_flops._decoder_law.cache_clear()
    one = torch.tensor([5])
    with pytest.raises(InputError, match=r"decoder of a 't5' model is not counted by length.*flops_convention paper"):
        generation_flops(T5Config(**T5_SMALL), one, one)
    counted_flops._decoder_law.cache_clear()


@pytest.mark.parametrize("convention", ["exact", "paper"])
@pytest.mark.parametrize("config", [T5Config(**T5_SMALL), BartConfig(**BART_SMALL)], ids=["T5", "BART"])
def test_a_deferred_input_costs_the_encoder_and_each_path_the_decoder_again(config, convention):
    lengths = torch.tensor([1, 40, 60])
    encoder = flops_by_length(config, lengths, convention, "encoder")
    # What the decoder would have run over is no part of it.
    assert encoder.tolist() == flops_by_length(config, lengths, convention, "encoder", (4, 9)).tolist()
    one = flops_by_length(config, lengths, convention) - encoder
    four = flops_by_length(config, lengths, convention, decoder=(4, 1)) - encoder
    together = flops_by_length(config, lengths, convention, decoder=(1, 4)) - encoder
    assert (one > 0).all()
    torch.testing.assert_close(four, 4 * one, rtol=1e-9, atol=0)
    if convention == "paper":
        assert together.tolist() == four.tolist()
    else:
        # Four tokens of one path share the keys and values of the encoder's states.
        assert ((one < together) & (together[-1:] < four[-1:])).all()


@pytest.mark.parametrize("convention", ["exact", "paper"])
def test_what_has_no_decoder_cannot_spare_it(convention):
    config, lengths = BertConfig(**SMALL), torch.tensor([8])
    with pytest.raises(InputError, match=r"part 'encoder': a bert model has no decoder"):
        flops_by_length(config, lengths, convention, "encoder")
    assert flops_by_length(config, lengths, convention, decoder=(3, 9)) == flops_by_length(config, lengths, convention)
    for decoder in ((0, 1), (1, 0)):
        with pytest.raises(InputError, match=rf"decoder \({decoder[0]}, {decoder[1]}\)"):
            flops_by_length(T5Config(**T5_SMALL), lengths, convention, decoder=decoder)


def test_the_trap_of_fused_attention_on_the_cpu():
    # torch counts fused attention as nothing there; BERT-Base at 128 would be 21.74.
    config = BertConfig(**SMALL)
    found = {}
    for attention in ("sdpa", "eager"):
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=torch.ones(1, 128, dtype=torch.long))
        found[attention] = counter.get_total_flops()
    assert found["sdpa"] == bert_flops(config, 128, attention=False)
    assert found["eager"] == bert_flops(config, 128) == count_flops(config, 128)
    assert round(bert_flops(BertConfig(), 128, attention=False) / 1e9, 2) == 21.74


def test_fused_attention_in_the_configuration_is_not_used_and_not_changed():
    config = BertConfig(**SMALL, attn_implementation="sdpa")
    before = config.to_dict()
    assert count_flops(config, 50) == bert_flops(config, 50)
    assert config._attn_implementation == "sdpa"
    assert config.to_dict() == before


@pytest.mark.parametrize("config", [BertConfig(**SMALL), T5Config(**T5_SMALL)], ids=["BERT", "T5"])
def test_no_weights_are_allocated(monkeypatch, config):
    built = []
    make = counted_flops.meta_model
    monkeypatch.setattr(counted_flops, "meta_model", lambda config: built.append(make(config)) or built[-1])
    count_flops(config, 8)
    assert len(built) == 1
    assert all(tensor.is_meta for tensor in (*built[0].parameters(), *built[0].buffers()))


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(**SMALL),
        BertConfig(**SMALL, max_position_embeddings=64),
        T5Config(**T5_SMALL),
        BartConfig(**BART_SMALL),
    ],
    ids=["BERT", "short BERT", "T5", "BART"],
)
def test_quadratic_law_at_lengths_not_counted_before(config):
    lengths = [n for n in (1, 3, 29, 50, 63, 111, 200, 509) if n <= getattr(config, "max_position_embeddings", n)]
    found = flops_by_length(config, torch.tensor(lengths))
    expected = torch.tensor([count_flops(config, n) for n in lengths], dtype=torch.float64)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_lengths_are_counted_one_by_one_where_no_quadratic_fits(monkeypatch):
    counted = []
    monkeypatch.setattr(counted_flops, "_count", lambda model, n, *_: counted.append(n) or n**3)
    counted_flops._length_law.cache_clear()
    lengths = torch.tensor([7, 100, 7, 7, 1])
    found = flops_by_length(BertConfig(**SMALL), lengths)
    assert found.dtype == torch.float64
    assert found.tolist() == [343, 1e6, 343, 343, 1]
    assert counted.count(7) == counted.count(100) == 1
    counted_flops._length_law.cache_clear()


def test_paper_convention():
    lengths = torch.tensor([3, 128, 500])
    for shape, gflops in (({}, SUPER_GFLOPS), (TINYBERT, SWIFT_GFLOPS)):
        found = flops_by_length(BertConfig(**shape), lengths, "paper") / 1e9
        assert found.dtype == torch.float64
        assert [round(x, 1) for x in found.tolist()] == [gflops] * 3


def test_paper_convention_counts_a_decoder_once_a_token():
    c = T5Config(**T5_SMALL)
    attention, feed_forward = 4 * c.d_model * c.d_kv * c.num_heads, 2 * c.d_model * c.d_ff
    shared = c.relative_attention_num_buckets * c.num_heads + c.d_model  # position bias, last norm
    encoder = c.num_layers * (attention + feed_forward + 2 * c.d_model) + shared
    decoder = c.num_layers * (2 * attention + feed_forward + 3 * c.d_model) + shared
    length = torch.tensor([9])
    assert flops_by_length(c, length, "paper").item() == 2 * 128 * encoder + 2 * decoder
    assert flops_by_length(c, length, "paper", "encoder").item() == 2 * 128 * encoder
    assert flops_by_length(c, length, "paper", "all", (3, 5)).item() == 2 * 128 * encoder + 2 * decoder * 15


def test_paper_convention_leaves_out_the_embeddings_of_bart():
    c = BartConfig(**BART_SMALL)
    d = c.d_model
    attention, norm = 4 * (d * d + d), 2 * d
    encoder = c.encoder_layers * (attention + 2 * d * c.encoder_ffn_dim + c.encoder_ffn_dim + d + 2 * norm)
    decoder = c.decoder_layers * (2 * attention + 2 * d * c.decoder_ffn_dim + c.decoder_ffn_dim + d + 3 * norm)
    assert flops_by_length(c, torch.tensor([9]), "paper").item() == 2 * 128 * encoder + 2 * decoder


def test_paper_convention_counts_a_classifier_on_a_decoder_at_all_tokens():
    c = OPTConfig(
        vocab_size=50, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    layer = 4 * (16 * 16 + 16) + 2 * 16 * 32 + 32 + 16 + 2 * 32
    assert flops_by_length(c, torch.tensor([9]), "paper").item() == 2 * 128 * (2 * layer + 32)


def test_a_law_is_that_of_all_models_of_a_shape(monkeypatch):
    """Whatever their folders and labels are called, but not however many labels there are."""
    made = []
    make = counted_flops._countable
    monkeypatch.setattr(counted_flops, "_countable", lambda config: made.append(1) or make(config))
    counted_flops._length_law.cache_clear()
    found = []
    for folder, labels in (("swift", ("no", "yes")), ("super", ("bad", "good")), ("other", ("a", "b", "c"))):
        config = BertConfig(**SMALL, id2label=dict(enumerate(labels)), name_or_path=folder)
        assert config.to_json_string(use_diff=False).count(folder) == 1
        found += flops_by_length(config, torch.tensor([5])).tolist()
        assert found[-1] == pytest.approx(bert_flops(config, 5), rel=1e-12)
    assert found[0] == found[1] < found[2]
    assert len(made) == 2


def test_a_configuration_is_built_once(monkeypatch):
    built = []
    make = counted_flops.meta_model
    monkeypatch.setattr(counted_flops, "meta_model", lambda config: built.append(1) or make(config))
    counted_flops._length_law.cache_clear()
    counted_flops._stack_weights.cache_clear()
    for convention in ("exact", "paper"):
        built.clear()
        for length in (5, 6):
            flops_by_length(T5Config(**T5_SMALL), torch.tensor([length]), convention, decoder=(2, 1))
        assert len(built) == 1


def interval(value, half_width):
    return value - half_width, value + half_width


def cost(swift, super_, share):
    kept, deferred = Costs(torch.tensor([swift]).double(), torch.tensor([super_]).double()).kept_and_deferred
    return float(torch.lerp(kept, deferred, share))


def speedup(swift, super_, share):
    return super_ / cost(swift, super_, share)


def overlap(one, two):
    return max(one[0], two[0]) <= min(one[1], two[1])


@pytest.mark.parametrize("task", PAPER)
def test_speedups_of_the_paper(task):
    kept, published = PAPER[task]
    swift_low, swift_high = interval(SWIFT_GFLOPS, 0.05)
    super_low, super_high = interval(SUPER_GFLOPS, 0.05)
    share_low, share_high = interval(1 - kept / 100, 0.005)
    # It grows with the Super's cost, and falls with the Swift's and with the share deferred.
    reachable = speedup(swift_high, super_low, share_high), speedup(swift_low, super_high, share_low)
    assert overlap(reachable, interval(published, 0.05))
    assert reachable[1] - reachable[0] < 0.15 * published


def test_averages_of_the_paper():
    shares = [1 - kept / 100 for kept, _ in PAPER.values()]
    costs = [cost(SWIFT_GFLOPS, SUPER_GFLOPS, share) for share in shares]
    mean = sum(costs) / len(costs)
    reach = 0.05 + 0.005 * SUPER_GFLOPS + 0.05 * sum(shares) / len(shares)
    assert overlap(interval(mean, reach), interval(8.1, 0.05))
    assert round(mean, 1) == 8.1
    # The published 3.2 is the mean of the tasks' ratios; the ratio of the means is lower.
    published = [ratio for _, ratio in PAPER.values()]
    assert round(sum(published) / len(published), 1) == 3.2
    assert round(speedup(SWIFT_GFLOPS, SUPER_GFLOPS, sum(shares) / len(shares)), 1) == 2.7


def test_cost_at_the_ends():
    assert cost(2.0, 10.0, 0.0) == 2.0
    assert cost(2.0, 10.0, 1.0) == 12.0  # a deferred input has paid for the Swift too
    assert speedup(2.0, 10.0, 0.0) == 5.0
    assert speedup(2.0, 10.0, 1.0) < 1


def test_latency_is_seconds_of_one_call():
    calls = []

    def call():
        calls.append(1)
        time.sleep(0.002)

    found = measure_latency(call, min_seconds=0.02)
    assert 0.002 <= found < 0.02
    assert len(calls) > 5
    assert math.isfinite(found)


def test_latency_waits_for_the_device(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: seen.append("wait"))
    measure_latency(lambda: seen.append("call"), min_seconds=1e-4)
    assert seen[0] == seen[-1] == "wait"
    assert seen.count("wait") > 5


def test_a_long_call_is_not_repeated_for_nothing(monkeypatch):
    calls = []
    monkeypatch.setattr(timed, "_LONG_CALL", 0.01)
    measure_latency(lambda: calls.append(time.sleep(0.03)), min_seconds=0.02)
    assert len(calls) == 4


@pytest.fixture
def measured(monkeypatch):
    """Runs measure_throughput on given seconds per input by batch size; also says which sizes were tried."""

    def run(per_input, **options):
        tried = []

        def make(size):
            tried.append(size)
            return lambda: per_input[size] * size

        monkeypatch.setattr(timed, "measure_latency", lambda call, min_seconds: call())
        return measure_throughput(make, **options), tried

    return run


@pytest.mark.parametrize(
    ("per_input", "tried"),
    [
        ((1.0, 0.5, 0.25, 0.12), 4),  # always better: to the last size
        ((1.0, 0.5, 0.6, 0.7, 0.1), 4),  # worse twice in a row
        ((1.0, 0.99, 0.985, 0.1), 3),  # by less than 2% twice in a row
        ((1.0, 0.99, 1.1, 0.1), 3),  # one of each
        ((1.0, 0.99, 0.5, 0.495, 0.3), 5),  # never twice in a row
        ((1.0, 2.0, 1.5, 0.1), 3),  # better than the last size is not better than the best
        ((1.0,), 1),
    ],
)
def test_batches_grow_as_long_as_it_pays(measured, per_input, tried):
    sizes = [2**i for i in range(len(per_input))]
    by_size = dict(zip(sizes, per_input, strict=True))
    found, seen = measured(by_size, sizes=sizes)
    assert seen == sizes[:tried]
    assert found == pytest.approx({size: by_size[size] for size in seen})
    least = min(found.values())
    assert best_batch(found) == (min(size for size in found if found[size] == least), least)


def test_default_batches(measured):
    sizes = [2**i for i in range(10)]
    found, _ = measured({size: 1 / size for size in sizes})
    assert list(found) == sizes
    assert best_batch(found) == (512, found[512])


def test_batches_grow_until_memory_is_out(monkeypatch):
    calls, freed = [], []

    class Call:
        def __init__(self, size):
            # Nothing of the last size may be alive when the next one is made.
            assert not any(call() for call in calls)
            calls.append(weakref.ref(self))
            self.size = size

        def __call__(self):
            if self.size > 2:
                raise torch.OutOfMemoryError("no memory")
            time.sleep(1e-4)  # a time per input that halves

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(any(call() for call in calls)))
    found = measure_throughput(Call, min_seconds=1e-3)
    assert list(found) == [1, 2]
    assert all(seconds > 0 for seconds in found.values())
    assert len(calls) == 3
    assert freed == [False]

    calls.clear()
    with pytest.raises(torch.OutOfMemoryError):
        measure_throughput(Call, sizes=(4, 8))
    assert len(calls) == 1


def test_other_errors_of_a_call_are_raised():
    def make(size):
        return lambda: [][size]

    with pytest.raises(IndexError):
        measure_throughput(make)


def test_a_model_that_reads_values_is_counted_with_weights():
    """DeBERTa-v2 cannot run on the meta device."""
    from transformers import DebertaV2Config

    config = DebertaV2Config(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    found = flops_by_length(config, torch.tensor([10, 20]))
    assert 2 < found[1] / found[0] < 4


def test_models_without_weights_know_no_autocast():
    """Older versions of the library ask for that of their device before they compute positions; torch would raise."""
    known = torch.is_autocast_enabled
    with counted_flops.without_values(), torch.autocast("cpu", torch.bfloat16):
        assert not torch.is_autocast_enabled("meta")
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_grad_enabled()
    assert torch.is_autocast_enabled is known
    assert torch.is_grad_enabled()
