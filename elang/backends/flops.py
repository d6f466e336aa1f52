"""FLOPs by token length, counted on a model without weights.

Convention ``"exact"``: two FLOPs per multiply-accumulate of every matrix product, attention included, at the input's
true token length; element-wise work is not counted. In a mixture of experts a token costs the experts that it uses.
A family that cannot be counted is estimated at twice its weights per token, with a notice.
Convention ``"paper"``, which reproduces the paper's tables: twice the encoder's weights times 128 tokens, whatever the
length, without attention; a decoder's weights count once for each of its tokens.

An encoder-decoder costs its encoder, its decoder over ``(paths, tokens)`` and the language-model head.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from elang.backends.loading.padding import finds_last_by_padding, has_decoder, positions
from elang.backends.weightless import meta_model, without_values
from elang.errors import InputError, first_line
from elang.notices import notice

FlopsConvention = Literal["exact", "paper"]
FlopsPart = Literal["all", "encoder"]
PAPER_LENGTH = 128
_LONGEST_PROBE = 104
# A model that has to be built on the CPU to be counted has at most this many weights.
_CPU_WEIGHTS = 10**9


def _check_known(what: str, value: str, names: Any) -> None:
    if value not in get_args(names):
        raise InputError(f"Unknown {what} '{value}'; choose one of {', '.join(get_args(names))}.")


def _countable(config: Any) -> torch.nn.Module:
    """The model on the meta device or, if it reads values as it runs (DeBERTa-v2), with weights on the CPU."""
    model = meta_model(config)
    try:
        _count(model, 4)
    except Exception:
        if sum(p.numel() for p in model.parameters()) > _CPU_WEIGHTS:
            raise
        model = meta_model(config, "cpu")
    return model


def _count(model: Any, length: int, part: FlopsPart = "all", decoder: tuple[int, int] = (1, 1)) -> int:
    """The FLOPs of one input; the arguments are those of :func:`flops_by_length`."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers.modeling_outputs import BaseModelOutput

    # An attention mask adds no product. Its values cannot be read on the meta device, which encoders may do; without
    # one, decoders would read positions.
    ids = torch.ones(1, length, dtype=torch.long, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, without_values():
        if not has_decoder(model.config):
            model(input_ids=ids, attention_mask=torch.ones_like(ids) if finds_last_by_padding(model.config) else None)
        else:
            states = model.get_encoder()(input_ids=ids).last_hidden_state
            if part == "all":
                # The encoder runs once; every path projects its output to keys and values again.
                encoded = BaseModelOutput(last_hidden_state=states.expand(decoder[0], -1, -1))
                model(encoder_outputs=encoded, decoder_input_ids=ids.new_ones(decoder), use_cache=False)
    return int(counter.get_total_flops())


def flops_key(config: Any) -> str:
    """A configuration without its names, as JSON: the key of the caches.

    A model's folder and its labels' names change no FLOPs, the number of labels does.
    """
    fields = json.loads(config.to_json_string(use_diff=False)) | {"num_labels": config.num_labels}
    return json.dumps({n: v for n, v in fields.items() if n not in ("_name_or_path", "id2label", "label2id")})


def _config_of(config_json: str) -> Any:
    """Rebuild a configuration from the key of the caches."""
    from transformers import AutoConfig

    fields = json.loads(config_json)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


@lru_cache(maxsize=32)
def _length_law(
    config_json: str, part: FlopsPart, decoder: tuple[int, int]
) -> tuple[Callable[[int], int], list[float] | None, str]:
    """A counter; the coefficients if FLOPs are quadratic in the length; the reason if they are only estimated."""
    config = _config_of(config_json)
    try:
        model = _countable(config)
        exact = lru_cache(maxsize=None)(lambda length: _count(model, length, part, decoder))
        top = min(_LONGEST_PROBE, (positions(model.config) or _LONGEST_PROBE + 4) - 4)
        # A quadratic is exact for global attention; the last length checks it.
        probes = (4, top // 2, top, 3 * top // 4)
        counted = [exact(length) for length in probes]
    except Exception as error:
        encoder, rest = _stack_weights(config_json)
        fixed = 2.0 * rest * decoder[0] * decoder[1] if part == "all" else 0.0
        reason = f"{type(error).__name__}: {first_line(error)}"
        return lambda length: int(fixed + 2 * encoder * length), [fixed, 2.0 * encoder, 0.0], reason
    return exact, _solved([[1.0, x, x * x] for x in probes], counted), ""


def causal_law(
    config_json: str, run: Callable[[Any, Tensor], object], *, longest: int, added: int
) -> tuple[list[float], str]:
    """Coefficients of a decoder-only model's FLOPs by the prompt's length, and the reason if they are only estimated.

    ``run`` takes the model and a prompt; it reads ``added`` more tokens, of which ``longest`` take places of their own.
    """
    from torch.utils.flop_counter import FlopCounterMode

    config = _config_of(config_json)
    top = min(_LONGEST_PROBE, (positions(config) or _LONGEST_PROBE + longest + 4) - longest - 4)
    probes = (4, top // 2, top, 3 * top // 4)
    counted = []
    try:
        model: Any = meta_model(config, causal=True)
        for length in probes:
            with FlopCounterMode(display=False) as counter, without_values():
                run(model, torch.ones(1, length, dtype=torch.long, device="meta"))
            counted.append(counter.get_total_flops())
        if (law := _solved([[1.0, x, x * x] for x in probes], counted)) is None:
            raise ValueError("they are not quadratic in the length")
    except Exception as error:
        weights = causal_weights(config_json)
        return [2.0 * weights * added, 2.0 * weights, 0.0], f"{type(error).__name__}: {first_line(error)}"
    return law, ""


@lru_cache(maxsize=32)
def causal_weights(config_json: str) -> int:
    """Weights of a decoder-only language model without embeddings and head."""
    model: Any = meta_model(_config_of(config_json), causal=True)
    outside = {model.get_output_embeddings()} | {m for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    return sum(p.numel() for m in set(model.modules()) - outside for p in m.parameters(recurse=False))


def _solved(terms: list[list[float]], counted: list[int]) -> list[float] | None:
    """Coefficients of the terms that give the counts; ``None`` if they do not give the last one, which is a check."""
    matrix, values = torch.tensor(terms, dtype=torch.float64), torch.tensor(counted, dtype=torch.float64)
    law = torch.linalg.solve(matrix[:-1], values[:-1])
    coefficients: list[float] = law.tolist()
    return None if abs(float(matrix[-1] @ law) - counted[-1]) > 1e-6 * counted[-1] else coefficients


def check_cost(config: Any, generates: bool = False) -> None:
    """Work out how a model's FLOPs are counted, before anything expensive runs; a notice tells if they are estimated.

    Raises InputError for a model that generates and whose decoder's attention is not global.
    """
    config_json = flops_key(config)
    _, _, reason = _length_law(config_json, "all", (1, 1))
    if generates and not reason:
        _decoder_law(config_json)
    tell_estimated(config, reason)


def tell_estimated(config: Any, reason: str) -> None:
    """A notice, if there is a reason why a model's FLOPs are only estimated."""
    if reason:
        notice(
            "estimated-flops",
            f"The FLOPs of a '{config.model_type}' model cannot be counted ({reason}): they are estimated as twice its "
            "weights for each token.",
        )


@lru_cache(maxsize=32)
def _stack_weights(config_json: str) -> tuple[int, int]:
    """Weights of the encoder (or of a whole classifier) and of the decoder, without embeddings, pooler and head."""
    config = _config_of(config_json)
    model: Any = meta_model(config)
    encoder = decoder = 0
    for name, stack in model.base_model.named_children():
        if "embed" in name or name in ("shared", "pooler", "lm_head"):
            continue
        # The stacks of T5 and BART contain embeddings.
        counted = [p for n, p in stack.named_parameters() if not n.startswith(("embed", "layernorm_embedding"))]
        weights = sum(p.numel() for p in counted)
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
    """FLOPs of each input, float64 ``(N,)``.

    Args:
        config: A ``transformers`` configuration, counted as a sequence classifier if it is not an encoder-decoder.
        lengths: Token lengths of the (encoder's) input without padding, ``(N,)``.
        convention: See the module.
        part: ``"encoder"`` is the cost of an input that is deferred before an encoder-decoder's decoder runs.
        decoder: ``(paths, tokens)``: how many token sequences the decoder runs over for one input, and the tokens of
            each. Label words that differ in their first token take ``(1, 1)``, others one path each; generation with a
            cache takes ``(1, tokens)``, which also counts attention to later tokens, a tiny part.

    Raises InputError if the convention or the part is unknown or there is no such part.
    """
    _check_known("FLOPs convention", convention, FlopsConvention)
    _check_known("part", part, FlopsPart)
    if part == "encoder" and not has_decoder(config):
        raise InputError(f"part 'encoder': a {config.model_type} model has no decoder to leave out; use part 'all'.")
    if min(decoder) < 1:
        raise InputError(f"decoder {decoder}: it needs at least 1 path of 1 token; for none use part 'encoder'.")
    config_json = flops_key(config)
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
def _decoder_law(config_json: str) -> list[float]:
    """Factors of ``s``, ``s^2``, ``x``, ``s x`` in the FLOPs of a decoder over ``s`` tokens and ``x`` source tokens."""
    _, _, reason = _length_law(config_json, "all", (1, 1))
    if reason:
        return [2.0 * _stack_weights(config_json)[1], 0.0, 0.0, 0.0]
    model: Any = _countable(_config_of(config_json))
    probes = ((8, 2), (8, 9), (24, 2), (24, 9), (16, 16))
    counted = [_count(model, x, "all", (1, s)) - _count(model, x, "encoder") for x, s in probes]
    law = _solved([[s, s * s, x, s * x] for x, s in probes], counted)
    if law is None:
        raise InputError(
            f"The decoder of a '{model.config.model_type}' model is not counted by length: its attention is not "
            "global. Take --model.flops_convention paper."
        )
    return law


def generation_flops(
    config: Any,
    lengths: Tensor,
    steps: Tensor,
    convention: FlopsConvention = "exact",
    beams: int = 1,
    cached: bool = True,
) -> Tensor:
    """FLOPs of an encoder-decoder's decoder and language-model head, without the encoder, float64 ``(N,)``.

    A source has ``lengths`` tokens and its text took ``steps``, both ``(N,)``, on each of the ``beams``. ``cached`` is
    step by step, so that a token attends to itself and earlier ones; otherwise all tokens are decoded at once, as when
    a finished text is scored. Raises InputError if there is no decoder, or its attention is not global.
    """
    _check_known("FLOPs convention", convention, FlopsConvention)
    if not has_decoder(config) or beams < 1:
        raise InputError(f"A '{config.model_type}' model with {beams} beams generates nothing.")
    config_json = flops_key(config)
    x, s = lengths.double().cpu(), steps.double().cpu()
    if convention == "paper":
        return 2.0 * _stack_weights(config_json)[1] * beams * s
    token, square, source, both = _decoder_law(config_json)
    attended = s * (s + 1) / 2 if cached else s * s
    return beams * (token * s + square * attended + source * x + both * s * x)


def decoder_flops(config: Any, lengths: Tensor, tokens: Tensor, convention: FlopsConvention = "exact") -> Tensor:
    """FLOPs of a decoder over one path for inputs of these lengths and numbers of tokens, all ``(B,)``, in float64."""
    flops = -flops_by_length(config, lengths, convention, "encoder")
    for size in tokens.unique().tolist():
        rows = tokens == size
        flops[rows] += flops_by_length(config, lengths[rows], convention, "all", (1, size))
    return flops
