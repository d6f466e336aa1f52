"""Metrics of generated text: corpus BLEU and chrF, ROUGE-L, exact match, token accuracy.

Each is a function of sums over sentences. The statistics of BLEU and chrF are sacrebleu's own, and so is the metric
that their sums give; the sums are what the curve over all thresholds is made of (:mod:`elang.method.curve`). A pair's
answer to an example is one of two texts, the Swift's or the Super's: the target of these metrics holds the statistics
of both, ``(N, 2, S)``, and a prediction says which was taken.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

_BLEU_ORDER = 4
_CHRF_ORDER = 6
_CHRF_BETA = 2


def bleu_statistics(texts: list[str], references: list[str], tokenize: str = "13a") -> Tensor:
    """Sentence statistics of corpus BLEU, int32 ``(N, 10)``.

    Lengths of the text and its reference in tokens, matches of 1- to 4-grams, and their numbers in the text.

    Args:
        texts: What was generated, detokenised, ``N``.
        references: One each.
        tokenize: sacrebleu's tokenizer: ``13a``, or ``zh`` and ``char`` for texts without blanks.
    """
    from sacrebleu.metrics.bleu import BLEU

    # The metric's own warning about tokenized input has no place where there are two systems.
    found = BLEU(tokenize=tokenize, force=True)._extract_corpus_statistics(texts, [references])
    return torch.tensor(found, dtype=torch.int32).view(len(texts), 2 + 2 * _BLEU_ORDER)


def bleu_value(sums: Tensor) -> Tensor:
    """Corpus BLEU, 0 to 100, of summed statistics ``(..., 10)``, with sacrebleu's default (exponential) smoothing.

    The k-th n-gram order without a match counts as ``1 / 2^k`` match; without any match at all BLEU is 0.

    Source:
        Papineni et al., ACL 2002; Post, WMT 2018.
    """
    length, reference = sums[..., 0].double(), sums[..., 1].double()
    correct, total = sums[..., 2 : 2 + _BLEU_ORDER].double(), sums[..., 2 + _BLEU_ORDER :].double()
    unmatched = (correct == 0) & (total > 0)
    smoothed = torch.where(unmatched, 0.5 ** unmatched.cumsum(-1), correct)
    # An order that the text is too short for has precision 0, and so has the geometric mean.
    log_precision = torch.log(smoothed / total.clamp_min(1))
    brevity = (1 - reference / length.clamp_min(1e-12)).clamp_max(0.0)
    bleu = 100 * torch.exp(log_precision.mean(-1) + brevity)
    return torch.where((correct > 0).any(-1), bleu, 0.0)


def chrf_statistics(texts: list[str], references: list[str]) -> Tensor:
    """Sentence statistics of chrF, int32 ``(N, 18)``.

    For 1- to 6-grams of characters their number in the text, in the reference, and in both.

    Args:
        texts: What was generated, ``N``.
        references: One each.
    """
    from sacrebleu.metrics.chrf import CHRF

    found = CHRF()._extract_corpus_statistics(texts, [references])
    return torch.tensor(found, dtype=torch.int32).view(len(texts), 3 * _CHRF_ORDER)


def chrf_value(sums: Tensor) -> Tensor:
    """chrF2, 0 to 100, of summed statistics ``(..., 18)``; of a single sentence's, sentence chrF.

    Source:
        Popović, WMT 2015, as sacrebleu computes it: F of the mean precision and recall over the orders that both
        sides have.
    """
    ours, theirs, both = sums.double().unflatten(-1, (_CHRF_ORDER, 3)).unbind(-1)
    present = (ours > 0) & (theirs > 0)
    orders = present.sum(-1).clamp_min(1)
    precision = (both / ours.clamp_min(1)).where(present, 0.0).sum(-1) / orders
    recall = (both / theirs.clamp_min(1)).where(present, 0.0).sum(-1) / orders
    factor = _CHRF_BETA**2
    f: Tensor = 100 * (1 + factor) * precision * recall / (factor * precision + recall).clamp_min(1e-300)
    return f


def rouge_l_statistics(texts: list[str], references: list[str]) -> Tensor:
    """ROUGE-L of each text, F over the longest common subsequence of words, and 1: float64 ``(N, 2)``.

    The usual normalisation, which is torchmetrics' too, keeps ``a`` to ``z`` and digits alone: it is one for English.
    """
    from torchmetrics.functional.text import rouge_score

    found = [
        float(rouge_score(text, reference, rouge_keys="rougeL")["rougeL_fmeasure"])
        for text, reference in zip(texts, references, strict=True)
    ]
    earned = torch.tensor(found, dtype=torch.float64)
    return torch.stack([earned, torch.ones_like(earned)], -1)


def exact_text_statistics(texts: list[str], references: list[str]) -> Tensor:
    """Whether each text is its reference, blanks at the ends aside, and 1: int32 ``(N, 2)``."""
    same = [text.strip() == reference.strip() for text, reference in zip(texts, references, strict=True)]
    return torch.tensor([[int(one), 1] for one in same], dtype=torch.int32).view(len(texts), 2)


def token_accuracy_statistics(texts: list[str], references: list[str]) -> Tensor:
    """Words that stand where the reference has them, and the longer one's number of words: int32 ``(N, 2)``."""
    rows = []
    for text, reference in zip(texts, references, strict=True):
        ours, theirs = text.split(), reference.split()
        rows.append([sum(a == b for a, b in zip(ours, theirs, strict=False)), max(len(ours), len(theirs))])
    return torch.tensor(rows, dtype=torch.int32).view(len(texts), 2)


def mean_value(sums: Tensor) -> Tensor:
    """Amount over number, of sums ``(..., 2)``; 0 where there is nothing."""
    amount, number = sums[..., 0].double(), sums[..., 1].double()
    return torch.where(number > 0, amount / number.clamp_min(1e-300), 0.0)


TEXT_METRICS: dict[str, tuple[Callable[[list[str], list[str]], Tensor], Callable[[Tensor], Tensor]]] = {
    "bleu": (bleu_statistics, bleu_value),
    "bleu_zh": (partial(bleu_statistics, tokenize="zh"), bleu_value),
    "bleu_char": (partial(bleu_statistics, tokenize="char"), bleu_value),
    "chrf": (chrf_statistics, chrf_value),
    "rouge_l": (rouge_l_statistics, mean_value),
    "exact_text": (exact_text_statistics, mean_value),
    "token_accuracy": (token_accuracy_statistics, mean_value),
}
"""For each metric the statistics of texts with their references, and its value of their sums."""


def signature(name: str) -> str:
    """The signature that makes a BLEU or chrF comparable, sacrebleu's own; of other metrics the name.

    >>> signature("bleu").split("|tok")[0]
    'nrefs:1|case:mixed|eff:no'
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if not name.startswith(("bleu", "chrf")):
        return name
    metric = CHRF() if name == "chrf" else BLEU(tokenize=name.removeprefix("bleu").lstrip("_") or "13a")
    metric.corpus_score(["x"], [["x"]])
    return str(metric.get_signature())


def worth_metric(name: str) -> str:
    """The metric that says what one text is worth: chrF in place of BLEU, which is mostly smoothing there."""
    return "chrf" if name.startswith("bleu") else name
