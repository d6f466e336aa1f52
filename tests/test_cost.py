"""FLOPs against closed forms and the paper's figures, and the cost of a pair."""

import math
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, BertConfig, T5Config

import elang.cost
from elang.cost import count_flops, expected_cost, flops_by_length, measure_latency, speedup

TINYBERT = {"hidden_size": 312, "intermediate_size": 1200, "num_hidden_layers": 4, "num_attention_heads": 12}
SMALL = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
T5_LARGE = {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16}
T5_11B = T5_LARGE | {"d_kv": 128, "d_ff": 65536, "num_heads": 128}
T5_SMALL = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}

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


def t5_flops(config, length):
    """The encoder, and one decoder step with the language-model head."""
    d, inner, d_ff = config.d_model, config.d_kv * config.num_heads, config.d_ff
    encoder = 8 * length * d * inner + 4 * length * length * inner + 4 * length * d * d_ff
    itself = 8 * d * inner + 4 * inner
    across = 4 * d * inner + 4 * length * d * inner + 4 * length * inner
    return config.num_layers * (encoder + itself + across + 4 * d * d_ff) + 2 * d * config.vocab_size


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


@pytest.mark.parametrize("length", [1, 17, 300])
@pytest.mark.parametrize("shape", [T5_SMALL, T5_LARGE])
def test_t5_by_formula(shape, length):
    config = T5Config(**shape)
    assert count_flops(config, length) == t5_flops(config, length)


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
    make = elang.cost._meta_model
    monkeypatch.setattr(elang.cost, "_meta_model", lambda config: built.append(make(config)) or built[-1])
    count_flops(config, 8)
    assert len(built) == 1
    assert all(tensor.is_meta for tensor in (*built[0].parameters(), *built[0].buffers()))


@pytest.mark.parametrize(
    "config",
    [BertConfig(**SMALL), BertConfig(**SMALL, max_position_embeddings=64), T5Config(**T5_SMALL)],
    ids=["BERT", "short BERT", "T5"],
)
def test_quadratic_law_at_lengths_not_counted_before(config):
    lengths = [n for n in (1, 3, 29, 50, 63, 111, 200, 509) if n <= getattr(config, "max_position_embeddings", n)]
    found = flops_by_length(config, torch.tensor(lengths))
    expected = torch.tensor([count_flops(config, n) for n in lengths], dtype=torch.float64)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_lengths_are_counted_one_by_one_where_no_quadratic_fits(monkeypatch):
    counted = []
    monkeypatch.setattr(elang.cost, "_count", lambda model, n: counted.append(n) or n**3)
    elang.cost._length_law.cache_clear()
    lengths = torch.tensor([7, 100, 7, 7, 1])
    assert flops_by_length(BertConfig(**SMALL), lengths).tolist() == [343, 1e6, 343, 343, 1]
    assert counted.count(7) == counted.count(100) == 1
    elang.cost._length_law.cache_clear()


def test_paper_convention():
    lengths = torch.tensor([3, 128, 500])
    for shape, gflops in (({}, SUPER_GFLOPS), (TINYBERT, SWIFT_GFLOPS)):
        found = flops_by_length(BertConfig(**shape), lengths, "paper") / 1e9
        assert [round(x, 1) for x in found.tolist()] == [gflops] * 3


def test_paper_convention_counts_a_decoder_once():
    c = T5Config(**T5_SMALL)
    attention, feed_forward = 4 * c.d_model * c.d_kv * c.num_heads, 2 * c.d_model * c.d_ff
    shared = c.relative_attention_num_buckets * c.num_heads + c.d_model  # position bias, last norm
    encoder = c.num_layers * (attention + feed_forward + 2 * c.d_model) + shared
    decoder = c.num_layers * (2 * attention + feed_forward + 3 * c.d_model) + shared
    assert flops_by_length(c, torch.tensor([9]), "paper").item() == 2 * 128 * encoder + 2 * decoder


def interval(value, half_width):
    return value - half_width, value + half_width


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
    costs = [expected_cost(SWIFT_GFLOPS, SUPER_GFLOPS, share) for share in shares]
    mean = sum(costs) / len(costs)
    reach = 0.05 + 0.005 * SUPER_GFLOPS + 0.05 * sum(shares) / len(shares)
    assert overlap(interval(mean, reach), interval(8.1, 0.05))
    assert round(mean, 1) == 8.1
    # The published 3.2 is the mean of the tasks' ratios; the ratio of the means is lower.
    published = [ratio for _, ratio in PAPER.values()]
    assert round(sum(published) / len(published), 1) == 3.2
    assert round(speedup(SWIFT_GFLOPS, SUPER_GFLOPS, sum(shares) / len(shares)), 1) == 2.7


def test_cost_at_the_ends():
    assert expected_cost(2.0, 10.0, 0.0) == 2.0
    assert expected_cost(2.0, 10.0, 1.0) == 12.0  # a deferred input has paid for the Swift too
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


def test_a_model_that_reads_values_is_counted_with_weights():
    """DeBERTa-v2 cannot run on the meta device."""
    from transformers import DebertaV2Config

    config = DebertaV2Config(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    found = flops_by_length(config, torch.tensor([10, 20]))
    assert 2 < found[1] / found[0] < 4
