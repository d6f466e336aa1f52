"""What is kept of a batch that a model has answered: the columns of the table of answers, and their values."""

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.backends.candidates import sum_by_example
from elang.backends.cost.flops import FlopsConvention
from elang.backends.generator import Generated, Seq2Seq
from elang.backends.label_decoder import TextToText
from elang.backends.text_model import TextModel
from elang.data.tokens import IGNORED
from elang.method.token_scores import SEQUENCE_SCORES

Columns = dict[str, tuple[tuple[int, ...], torch.dtype]]


def answer_columns(model: TextModel, features: bool = False) -> Columns:
    """What :func:`answer_batch` finds out about an example: shapes and types, for an :class:`ExampleTable`."""
    value = model.task.kind.answer_type
    names = ["flops"]
    if isinstance(model, TextToText):
        names += ["early_flops", *(["score_flops"] if model.generate else [])]
    return (
        {"logits": ((len(model.label_names),), torch.float32), "prediction": ((), value), "tokens": ((), torch.int64)}
        | dict.fromkeys(names, ((), torch.float64))
        | dict.fromkeys(model.head_scores, ((), torch.float32))
        | _feature_columns(model, features)
    )


def _feature_columns(model: TextModel, features: bool) -> Columns:
    heads = model.routers if features else {}
    return {f"{name}_features": ((head.width,), torch.float32) for name, head in heads.items()}


def answer_batch(
    model: TextModel,
    inputs: dict[str, Tensor],
    order: list[int],
    temperature: float = 1.0,
    convention: FlopsConvention = "exact",
    fold: Tensor | None = None,
    features: bool = False,
) -> dict[str, Tensor]:
    """Answer a batch: logits and predictions in the data's class order, tokens, cost and the heads' scores.

    Args:
        model: The model.
        inputs: Its inputs.
        order: Where each of the data's classes stands among its logits.
        temperature: Of the scores.
        convention: How cost is counted.
        fold: Of examples that the router heads may have learned from.
        features: Also what each router head reads.
    """
    answer = model(inputs)
    scores = model.scores(answer, temperature, fold)
    prediction = answer.prediction
    if model.task.kind.chooses:
        place = torch.tensor(order, device=prediction.device).argsort()
        prediction = torch.where(prediction < 0, -1, place[prediction.clamp_min(0)])
    tokens = inputs["attention_mask"].sum(-1)
    if not model.text_to_text and "num_choices" in inputs:
        tokens = sum_by_example(tokens, inputs["num_choices"])
    return {
        "logits": answer.logits[:, order],
        "prediction": prediction,
        "tokens": tokens,
        **{name: cost.to(tokens.device) for name, cost in model.flops(inputs, convention, answer.steps).items()},
        **{name: scores[name] for name in model.head_scores},
        **({f"{name}_features": x for name, x in model.router_features(answer).items()} if features else {}),
    }


def generated_columns(model: Seq2Seq, features: bool = False, top_k: int = 0) -> Columns:
    """What :func:`generated_batch` finds out about an example."""
    columns: Columns = dict.fromkeys(("tokens", "steps"), ((), torch.int64))
    columns |= dict.fromkeys(("flops", "early_flops", "score_flops"), ((), torch.float64))
    columns |= dict.fromkeys(model.head_scores, ((), torch.float32))
    columns |= {"ids": ((model.max_new_tokens,), torch.int32), "scores": ((len(SEQUENCE_SCORES),), torch.float32)}
    columns |= _feature_columns(model, features)
    if top_k:
        places = (model.max_new_tokens, top_k)
        columns |= {"top_ids": (places, torch.int32), "top_log_probs": (places, torch.float32)}
    return columns


def padded_ids(model: Seq2Seq, made: Generated) -> Tensor:
    """Generated tokens up to the end of each text, and -1 behind it: ``(B, max_new_tokens)``."""
    place = torch.arange(made.ids.shape[1], device=made.ids.device)
    ids = made.ids.masked_fill(place >= made.steps[:, None], -1)
    return F.pad(ids, (0, model.max_new_tokens - ids.shape[1]), value=-1)


def generated_batch(
    model: Seq2Seq,
    inputs: dict[str, Tensor],
    convention: FlopsConvention = "exact",
    features: bool = False,
    top_k: int = 0,
    fold: Tensor | None = None,
) -> dict[str, Tensor]:
    """Generate a batch's texts: their tokens, padded with -1, steps, scores, cost.

    Args:
        model: The model.
        inputs: Its inputs.
        convention: How cost is counted.
        features: Also what each router head reads.
        top_k: Also so many of the most probable tokens at each place of the references, which distillation needs.
        fold: Of examples that the router heads may have learned from.
    """
    source = model.encode(inputs)
    made = model.generate(source)
    tokens = inputs["attention_mask"].sum(-1)
    scores = model.late_scores(source, made, fold) | model.early_scores(source, fold)
    found = {
        "tokens": tokens,
        "steps": made.steps,
        "ids": padded_ids(model, made),
        "scores": made.scores,
        **{name: cost.to(tokens.device) for name, cost in model.flops(inputs, convention, made.steps).items()},
        **{name: scores[name] for name in model.head_scores},
    }
    if features and model.routers:
        found |= {"router_features": model.after_features(source, made), "encoder_router_features": source.features}
    if top_k:
        # An example without a reference, of a test file, has one padded place.
        labels = inputs.get("labels", inputs["input_ids"].new_full((len(tokens), 1), IGNORED))
        best = model.logits(source, labels).float().log_softmax(-1).topk(top_k, -1)
        pad = (0, 0, 0, model.max_new_tokens - labels.shape[1])
        found["top_ids"] = F.pad(best.indices.masked_fill(labels[..., None] == IGNORED, -1), pad, value=-1)
        found["top_log_probs"] = F.pad(best.values, pad)
    return found
