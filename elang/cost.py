"""What an answer costs: FLOPs by token length, counted without weights, and measured latency.

Convention ``"exact"``: twice the multiply-accumulates of every matrix product, attention included, at the input's
true token length; element-wise work is not counted. An encoder-decoder is counted with one decoder step.
Convention ``"paper"``: twice the encoder's weights times 128 tokens, whatever the length, attention left out (a
decoder's weights count once); it reproduces the paper's tables.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

FlopsConvention = Literal["exact", "paper"]
PAPER_LENGTH = 128
_LONGEST_PROBE = 104


def _meta_model(config: Any, device: str = "meta") -> torch.nn.Module:
    """Build the model of ``config`` without weights, with the attention whose products can be counted."""
    import transformers

    config = type(config).from_dict(config.to_dict())
    kind = transformers.AutoModelForSequenceClassification
    if getattr(config, "is_encoder_decoder", False):
        kind = transformers.AutoModelForSeq2SeqLM
    with torch.device(device):
        model: torch.nn.Module = kind.from_config(config, attn_implementation="eager")
    return model.eval()


def count_flops(config: Any, length: int) -> int:
    """Count the FLOPs of one input under the exact convention.

    Args:
        config: A ``transformers`` configuration. One with ``is_encoder_decoder`` is counted as its encoder plus
            one decoder step with the language-model head; any other as a sequence classifier.
        length: Number of tokens, special ones included.

    Returns:
        FLOPs (two for each multiply-accumulate).
    """
    return _count(_countable(config), length)


def _countable(config: Any) -> torch.nn.Module:
    """The model on the meta device or, where it reads values as it runs (DeBERTa-v2), with weights on the CPU."""
    model = _meta_model(config)
    try:
        _count(model, 4)
    except RuntimeError as error:
        if "meta tensors" not in str(error):
            raise
        return _meta_model(config, "cpu")
    return model


def _count(model: torch.nn.Module, length: int) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.ones(1, length, dtype=torch.long, device=next(model.parameters()).device)
    # Without an attention mask: it adds no product, and its values cannot be read on the meta device.
    inputs = {"input_ids": ids}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids[:, :1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return int(counter.get_total_flops())


@lru_cache(maxsize=32)
def _length_law(config_json: str) -> tuple[Callable[[int], int], tuple[float, float, float] | None]:
    """Return a counter and, where FLOPs are a quadratic in the length, its coefficients."""
    import json

    from transformers import AutoConfig

    fields = json.loads(config_json)
    model = _countable(AutoConfig.for_model(fields.pop("model_type"), **fields))
    exact = lru_cache(maxsize=None)(lambda length: _count(model, length))
    top = min(_LONGEST_PROBE, (getattr(model.config, "max_position_embeddings", None) or _LONGEST_PROBE + 4) - 4)
    # A quadratic is exact where attention is global; the last length checks it.
    probes = (4, top // 2, top, 3 * top // 4)
    counted = [exact(length) for length in probes]
    powers = torch.tensor([[1.0, x, x * x] for x in probes], dtype=torch.float64)
    solved = torch.linalg.solve(powers[:3], torch.tensor(counted[:3], dtype=torch.float64))
    if abs(float(powers[3] @ solved) - counted[3]) > 1e-6 * counted[3]:
        return exact, None
    c0, c1, c2 = solved.tolist()
    return exact, (c0, c1, c2)


def _paper_flops(config: Any) -> float:
    """FLOPs of an input under the paper's convention, embeddings, pooler and head left out."""
    model: Any = _meta_model(config)
    total = 0.0
    for name, stack in model.base_model.named_children():
        if "embed" in name or name in ("shared", "pooler", "lm_head"):
            continue
        weights = sum(p.numel() for n, p in stack.named_parameters() if "embed_tokens" not in n)
        total += 2.0 * weights * (1 if name == "decoder" else PAPER_LENGTH)
    return total


def flops_by_length(config: Any, lengths: Tensor, convention: FlopsConvention = "exact") -> Tensor:
    """FLOPs of each input, from its token length.

    Args:
        config: A ``transformers`` configuration.
        lengths: True token lengths, padding not counted, shape ``(N,)``.
        convention: See the module.

    Returns:
        FLOPs, float64, shape ``(N,)``.
    """
    if convention == "paper":
        return torch.full(lengths.shape, _paper_flops(config), dtype=torch.float64)
    exact, law = _length_law(config.to_json_string(use_diff=False))
    x = lengths.double().cpu()
    if law is not None:
        return law[0] + law[1] * x + law[2] * x * x
    distinct, inverse = lengths.cpu().unique(return_inverse=True)
    return torch.tensor([exact(int(v)) for v in distinct], dtype=torch.float64)[inverse]


def expected_cost(swift: float, super_: float, deferred_share: float) -> float:
    """Mean cost of an input under the pair, ``c_swift + r * c_super``.

    >>> round(expected_cost(1.2, 21.8, 0.36), 2)
    9.05
    """
    return swift + deferred_share * super_


def speedup(swift: float, super_: float, deferred_share: float) -> float:
    """Cost of the Super alone over the cost of the pair.

    >>> round(speedup(1.2, 21.8, 0.36), 1)
    2.4
    """
    return super_ / expected_cost(swift, super_, deferred_share)


def measure_latency(call: Callable[[], object], min_seconds: float = 0.5) -> float:
    """Median wall-clock seconds of ``call``, warmed up and with the device synchronised.

    Args:
        call: Runs what is timed once.
        min_seconds: Total time to spend on it.
    """
    from torch.utils.benchmark import Timer

    for _ in range(3):
        call()
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=min_seconds).median)
