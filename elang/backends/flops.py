"""FLOPs by token length, counted on a model without weights.

Convention ``"exact"``: twice the multiply-accumulates of every matrix product, attention included, at the input's
true token length; element-wise work is not counted. Of a mixture of experts each token costs those that it is sent to.
A family that cannot be counted is estimated as twice its weights for each token, and a notice says so.
Convention ``"paper"``, which reproduces the paper's tables: twice the encoder's weights times 128 tokens, whatever the
length, without attention; a decoder's weights count once for each of its tokens.

An encoder-decoder costs its encoder, its decoder over ``(paths, tokens)`` and the language-model head, or, for an input
that is deferred before the decoder runs, its encoder alone.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from elang.backends.loading.padding import has_decoder, positions
from elang.errors import InputError, first_line
from elang.notices import notice

FlopsConvention = Literal["exact", "paper"]
FlopsPart = Literal["all", "encoder"]
PAPER_LENGTH = 128
_LONGEST_PROBE = 104
# Weights of a model that is made on the CPU to be counted, at most.
_MOST_WEIGHTS = 10**9


def _meta_model(config: Any, device: str = "meta") -> torch.nn.Module:
    """Build the model of ``config`` without weights, with the attention whose products can be counted."""
    import transformers

    config = type(config).from_dict(config.to_dict())
    config.use_cache = False
    kind = transformers.AutoModelForSequenceClassification
    if has_decoder(config):
        kind = transformers.AutoModelForSeq2SeqLM
    with torch.device(device):
        # Experts as products of each token with its own, for the kernel that groups them is not counted.
        config._experts_implementation = "batched_mm"
        model: torch.nn.Module = kind.from_config(config, attn_implementation="eager")
    # The counter follows parameters that are handed to a module (DeBERTa-v2's positions) if they need gradients.
    return model.eval().requires_grad_(False)


def _check_known(what: str, value: str, kind: Any) -> None:
    if value not in get_args(kind):
        raise InputError(f"Unknown {what} '{value}'; choose one of {', '.join(get_args(kind))}.")


def _check_part(config: Any, part: FlopsPart, decoder: tuple[int, int]) -> None:
    _check_known("part", part, FlopsPart)
    if part == "encoder" and not has_decoder(config):
        raise InputError(f"part 'encoder': a {config.model_type} model has no decoder to spare; use part 'all'.")
    if min(decoder) < 1:
        raise InputError(f"decoder {decoder}: it runs over at least 1 path of 1 token; for none use part 'encoder'.")


def count_flops(config: Any, length: int, part: FlopsPart = "all", decoder: tuple[int, int] = (1, 1)) -> int:
    """Count the FLOPs of one input under the exact convention.

    Args:
        config: A ``transformers`` configuration, counted as a sequence classifier if it is not an encoder-decoder.
        length: Number of tokens, special ones included.
        part: See :func:`flops_by_length`, as for the errors.
        decoder: See :func:`flops_by_length`.

    Returns:
        FLOPs (two for each multiply-accumulate).
    """
    _check_part(config, part, decoder)
    return _count(_countable(config), length, part, decoder)


def _countable(config: Any) -> torch.nn.Module:
    """The model on the meta device or, where it reads values as it runs (DeBERTa-v2), with weights on the CPU."""
    model = _meta_model(config)
    try:
        _count(model, 4)
    except Exception:
        if sum(p.numel() for p in model.parameters()) > _MOST_WEIGHTS:
            raise
        model = _meta_model(config, "cpu")
    return model


def _count(model: Any, length: int, part: FlopsPart = "all", decoder: tuple[int, int] = (1, 1)) -> int:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers.modeling_outputs import BaseModelOutput

    # Without an attention mask: it adds no product, and its values cannot be read on the meta device.
    ids = torch.ones(1, length, dtype=torch.long, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if not has_decoder(model.config):
            model(input_ids=ids)
        else:
            states = model.get_encoder()(input_ids=ids).last_hidden_state
            if part == "all":
                # The encoder is paid once; every path projects its states to keys and values again.
                encoded = BaseModelOutput(last_hidden_state=states.expand(decoder[0], -1, -1))
                model(encoder_outputs=encoded, decoder_input_ids=ids.new_ones(decoder), use_cache=False)
    return int(counter.get_total_flops())


def _config_of(config_json: str) -> Any:
    """The configuration from its text, which caches can be keyed by."""
    from transformers import AutoConfig

    fields = json.loads(config_json)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


@lru_cache(maxsize=32)
def _length_law(
    config_json: str, part: FlopsPart, decoder: tuple[int, int]
) -> tuple[Callable[[int], int], tuple[float, float, float] | None, str]:
    """Return a counter and, where FLOPs are a quadratic in the length, its coefficients; or why they are estimated."""
    config = _config_of(config_json)
    try:
        model = _countable(config)
        exact = lru_cache(maxsize=None)(lambda length: _count(model, length, part, decoder))
        top = min(_LONGEST_PROBE, (positions(model.config) or _LONGEST_PROBE + 4) - 4)
        # A quadratic is exact where attention is global; the last length checks it.
        probes = (4, top // 2, top, 3 * top // 4)
        counted = [exact(length) for length in probes]
    except Exception as error:
        encoder, rest = _stack_weights(config_json)
        fixed = 2.0 * rest * decoder[0] * decoder[1] if part == "all" else 0.0
        reason = f"{type(error).__name__}: {first_line(error)}"
        return lambda length: int(fixed + 2 * encoder * length), (fixed, 2.0 * encoder, 0.0), reason
    powers = torch.tensor([[1.0, x, x * x] for x in probes], dtype=torch.float64)
    solved = torch.linalg.solve(powers[:3], torch.tensor(counted[:3], dtype=torch.float64))
    if abs(float(powers[3] @ solved) - counted[3]) > 1e-6 * counted[3]:
        return exact, None, ""
    c0, c1, c2 = solved.tolist()
    return exact, (c0, c1, c2), ""


def check_cost(config: Any, generates: bool = False) -> None:
    """Find out how the FLOPs of a model are counted, before anything else is paid for; they are then known.

    A notice says where they are only estimated.

    Args:
        config: A ``transformers`` configuration.
        generates: It generates texts.

    Raises:
        InputError: If the decoder's attention is not global.
    """
    config_json = config.to_json_string(use_diff=False)
    _, _, reason = _length_law(config_json, "all", (1, 1))
    if generates and not reason:
        _decoder_law(config_json)
    if reason:
        notice(
            "estimated-flops",
            f"The FLOPs of a '{config.model_type}' model cannot be counted ({reason}): they are estimated as twice its "
            "weights for each token.",
        )


@lru_cache(maxsize=32)
def _stack_weights(config_json: str) -> tuple[int, int]:
    """Weights of the encoder (of a whole classifier) and of the decoder; embeddings, pooler and head left out."""
    config = _config_of(config_json)
    model: Any = _meta_model(config)
    encoder = decoder = 0
    for name, stack in model.base_model.named_children():
        if "embed" in name or name in ("shared", "pooler", "lm_head"):
            continue
        # The stacks of T5 and BART hold embeddings of their own.
        own = [p for n, p in stack.named_parameters() if not n.startswith(("embed", "layernorm_embedding"))]
        weights = sum(p.numel() for p in own)
        if name == "decoder" and has_decoder(config):
            decoder += weights
        else:
            encoder += weights
    return encoder, decoder


def flops_by_length(
    config: Any,
    lengths: Tensor,
    convention: FlopsConvention = "exact",
    part: FlopsPart = "all",
    decoder: tuple[int, int] = (1, 1),
) -> Tensor:
    """FLOPs of each input, from its token length.

    Args:
        config: A ``transformers`` configuration.
        lengths: True token lengths of what the encoder reads, padding not counted, shape ``(N,)``.
        convention: See the module.
        part: Of an encoder-decoder, ``"all"`` (encoder, decoder, language-model head) or ``"encoder"``: what an input
            costs that is deferred before the decoder runs. Anything else has ``"all"`` only.
        decoder: ``(paths, tokens)``: over how many token sequences an encoder-decoder runs its decoder for one input,
            and of how many tokens each. Label words that differ in their first token are scored by ``(1, 1)``, others
            take a path each; ``tokens`` generated with a cache are ``(1, tokens)``, in which a token's attention to
            later ones, a sliver of the cost, is counted too. Other models make no use of it.

    Returns:
        FLOPs, float64, shape ``(N,)``.

    Raises:
        InputError: If the convention or the part is unknown, the part is the encoder of a model without a decoder, or
            a number of ``decoder`` is under 1.
    """
    _check_known("FLOPs convention", convention, FlopsConvention)
    _check_part(config, part, decoder)
    config_json = config.to_json_string(use_diff=False)
    if convention == "paper":
        encoder_weights, decoder_weights = _stack_weights(config_json)
        flops = 2.0 * PAPER_LENGTH * encoder_weights
        if part == "all":
            flops += 2.0 * decoder_weights * decoder[0] * decoder[1]
        return torch.full(lengths.shape, flops, dtype=torch.float64)
    exact, law, _ = _length_law(config_json, part, decoder)
    x = lengths.double().cpu()
    if law is not None:
        return law[0] + law[1] * x + law[2] * x * x
    distinct, inverse = lengths.cpu().unique(return_inverse=True)
    return torch.tensor([exact(int(v)) for v in distinct], dtype=torch.float64)[inverse]


@lru_cache(maxsize=32)
def _decoder_law(config_json: str) -> tuple[float, float, float, float]:
    """FLOPs of a decoder over ``s`` tokens beside ``x`` source tokens: factors of ``s``, ``s^2``, ``x`` and ``s x``.

    Raises:
        InputError: If they do not explain the count, as of attention that is not global.
    """
    _, _, reason = _length_law(config_json, "all", (1, 1))
    if reason:
        # Estimated, as there.
        return 2.0 * _stack_weights(config_json)[1], 0.0, 0.0, 0.0
    model: Any = _countable(_config_of(config_json))
    # The last one checks the law.
    probes = ((8, 2), (8, 9), (24, 2), (24, 9), (16, 16))
    terms = torch.tensor([[s, s * s, x, s * x] for x, s in probes], dtype=torch.float64)
    counted = [float(_count(model, x, "all", (1, s)) - _count(model, x, "encoder")) for x, s in probes]
    law = torch.linalg.solve(terms[:4], torch.tensor(counted[:4], dtype=torch.float64))
    if abs(float(terms[4] @ law) - counted[4]) > 1e-6 * counted[4]:
        raise InputError(
            f"The decoder of a '{model.config.model_type}' model is not counted by length: its attention is not "
            "global. Take --model.flops_convention paper."
        )
    a, b, c, d = law.tolist()
    return a, b, c, d


def generation_flops(
    config: Any,
    lengths: Tensor,
    steps: Tensor,
    convention: FlopsConvention = "exact",
    beams: int = 1,
    cached: bool = True,
) -> Tensor:
    """FLOPs of an encoder-decoder's decoder and language-model head over what it generated, the encoder left out.

    Args:
        config: A ``transformers`` configuration with ``is_encoder_decoder``.
        lengths: Tokens of each source, shape ``(N,)``.
        steps: Decoder steps of each, shape ``(N,)``.
        convention: See the module.
        beams: Hypotheses that are decoded side by side, each of as many steps.
        cached: Step by step with a cache, so that a token attends to itself and earlier ones; else all at once, as
            when a finished text is scored.

    Returns:
        FLOPs, float64, shape ``(N,)``.

    Raises:
        InputError: If the convention is unknown, the model has no decoder, there are no beams, or the decoder's
            attention is not global.
    """
    _check_known("FLOPs convention", convention, FlopsConvention)
    if not has_decoder(config) or beams < 1:
        raise InputError(f"A '{config.model_type}' model with {beams} beams generates nothing.")
    config_json = config.to_json_string(use_diff=False)
    x, s = lengths.double().cpu(), steps.double().cpu()
    if convention == "paper":
        return 2.0 * _stack_weights(config_json)[1] * beams * s
    token, square, source, both = _decoder_law(config_json)
    attended = s * (s + 1) / 2 if cached else s * s
    return beams * (token * s + square * attended + source * x + both * s * x)


def decoder_flops(config: Any, lengths: Tensor, tokens: Tensor, convention: FlopsConvention = "exact") -> Tensor:
    """FLOPs of a decoder over a path of so many tokens for inputs of such lengths, all ``(B,)``, in float64."""
    flops = -flops_by_length(config, lengths, convention, "encoder")
    for size in tokens.unique().tolist():
        these = tokens == size
        flops[these] += flops_by_length(config, lengths[these], convention, "all", (1, size))
    return flops
