"""Metrics of generated text: corpus BLEU and chrF, ROUGE-L, exact match, token accuracy, and those of short answers.

Each is a function of sums over sentences, from which :mod:`elang.method.curve` computes the curve over all thresholds.
BLEU and chrF equal sacrebleu's, whose sentence statistics are used. A pair's answer is one of two texts, the Swift's or
the Super's: the target of these metrics holds the statistics of both, ``(N, 2, S)``, and a prediction is the index of
the chosen one.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from elang.method.quality.metric import mean_of_sums

WordMetricName = Literal["bleu", "bleu_zh", "bleu_char", "chrf", "rouge_l", "exact_text", "token_accuracy"]
TextMetricName = Literal[WordMetricName, "exact_answer", "token_f1", "number_match"]
_BLEU_ORDER = 4
_CHRF_ORDER = 6
_CHRF_BETA = 2
_SAME_NUMBER = 1e-6


def bleu_statistics(texts: list[str], references: list[str], tokenize: str = "13a") -> Tensor:
    """Sentence statistics of corpus BLEU of ``N`` detokenised texts with a reference each, int32 ``(N, 10)``.

    Lengths of the text and its reference in tokens, matches of 1- to 4-grams, and their numbers in the text. The
    tokenizer is one of sacrebleu's: ``13a``, or ``zh`` and ``char`` for texts without blanks.
    """
    from sacrebleu.metrics.bleu import BLEU

    # force=True silences the warning about tokenized input, which would come for each of the two systems.
    statistics = BLEU(tokenize=tokenize, force=True)._extract_corpus_statistics(texts, [references])
    return torch.tensor(statistics, dtype=torch.int32).view(len(texts), 2 + 2 * _BLEU_ORDER)


def bleu_value(sums: Tensor) -> Tensor:
    """Corpus BLEU, 0 to 100, of summed statistics ``(..., 10)``, with sacrebleu's default (exponential) smoothing.

    The k-th n-gram order without a match counts as ``1 / 2^k`` match; without any match at all BLEU is 0. Source:
    Papineni et al., ACL 2002; Post, WMT 2018.
    """
    length, reference = sums[..., 0].double(), sums[..., 1].double()
    correct, total = sums[..., 2 : 2 + _BLEU_ORDER].double(), sums[..., 2 + _BLEU_ORDER :].double()
    unmatched = (correct == 0) & (total > 0)
    smoothed = torch.where(unmatched, 0.5 ** unmatched.cumsum(-1), correct)
    # An order for which the text is too short has precision 0, and so has the geometric mean.
    log_precision = torch.log(smoothed / total.clamp_min(1))
    brevity = (1 - reference / length.clamp_min(1e-12)).clamp_max(0.0)
    bleu = 100 * torch.exp(log_precision.mean(-1) + brevity)
    return torch.where((correct > 0).any(-1), bleu, 0.0)


def chrf_statistics(texts: list[str], references: list[str]) -> Tensor:
    """Sentence statistics of chrF, int32 ``(N, 18)``: numbers of 1- to 6-grams in text, reference and both."""
    from sacrebleu.metrics.chrf import CHRF

    statistics = CHRF()._extract_corpus_statistics(texts, [references])
    return torch.tensor(statistics, dtype=torch.int32).view(len(texts), 3 * _CHRF_ORDER)


def chrf_value(sums: Tensor) -> Tensor:
    """chrF2, 0 to 100, of summed statistics ``(..., 18)``; sentence chrF for those of a single sentence.

    F of the mean precision and recall over the orders that both texts have (Popović, WMT 2015, as in sacrebleu).
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
    """ROUGE-L, F over the longest common subsequence of words ([a-z0-9], for English), and 1: float64 ``(N, 2)``."""
    from torchmetrics.functional.text import rouge_score

    rows = [
        [float(rouge_score(text, reference, rouge_keys="rougeL")["rougeL_fmeasure"]), 1.0]
        for text, reference in zip(texts, references, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64).view(len(texts), 2)


def exact_text_statistics(texts: list[str], references: list[str]) -> Tensor:
    """Whether each text equals its reference, without blanks at the ends, and 1: int32 ``(N, 2)``."""
    rows = [[int(text.strip() == reference.strip()), 1] for text, reference in zip(texts, references, strict=True)]
    return torch.tensor(rows, dtype=torch.int32).view(len(texts), 2)


def token_accuracy_statistics(texts: list[str], references: list[str]) -> Tensor:
    """Numbers of words equal to the reference's at the same place, and in the longer text: int32 ``(N, 2)``."""
    rows = []
    for text, reference in zip(texts, references, strict=True):
        words, expected = text.split(), reference.split()
        rows.append([sum(a == b for a, b in zip(words, expected, strict=False)), max(len(words), len(expected))])
    return torch.tensor(rows, dtype=torch.int32).view(len(texts), 2)


def answer_words(text: str) -> list[str]:
    """The words of an answer as the evaluations of SQuAD and ReCoRD compare them.

    An answer of articles alone keeps them: it may be the choice "A".

    >>> answer_words("The  U.S. Army"), answer_words("A.")
    (['us', 'army'], ['a'])
    """
    words = "".join(c for c in text.lower() if c not in string.punctuation).split()
    return [word for word in words if word not in ("a", "an", "the")] or words


def answer_f1(answer: str, reference: str) -> float:
    """F1 of the words of an answer.

    >>> answer_f1("Barack Obama", "Obama")
    0.6666666666666666
    """
    a, b = answer_words(answer), answer_words(reference)
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b)) if common else float(a == b)


def number_in(text: str) -> float | None:
    """The number that a text is, with or without currency, percent and thousands separators; ``None`` for others.

    >>> number_in("$1,000."), number_in("7 apples")
    (1000.0, None)
    """
    text = text.strip().rstrip(".").replace("\u2212", "-")
    digits = re.sub(r"^([-+]?)[$€£]|%$|,(?=\d{3}(?!\d))", r"\1", text)
    try:
        value = float(digits) if "_" not in digits else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _same_number(text: str, reference: str) -> float:
    a, b = number_in(text), number_in(reference)
    return float(a is not None and b is not None and math.isclose(a, b, rel_tol=_SAME_NUMBER))


def _each_answer(score: Callable[[str, str], float], texts: list[str], references: list[str]) -> Tensor:
    """The score of each text against its reference, and 1: float64 ``(N, 2)``."""
    rows = [[score(text, reference), 1.0] for text, reference in zip(texts, references, strict=True)]
    return torch.tensor(rows, dtype=torch.float64).view(len(texts), 2)


TEXT_METRICS: dict[str, tuple[Callable[[list[str], list[str]], Tensor], Callable[[Tensor], Tensor]]] = {
    "bleu": (bleu_statistics, bleu_value),
    "bleu_zh": (partial(bleu_statistics, tokenize="zh"), bleu_value),
    "bleu_char": (partial(bleu_statistics, tokenize="char"), bleu_value),
    "chrf": (chrf_statistics, chrf_value),
    "rouge_l": (rouge_l_statistics, mean_of_sums),
    "exact_text": (exact_text_statistics, mean_of_sums),
    "token_accuracy": (token_accuracy_statistics, mean_of_sums),
    "exact_answer": (partial(_each_answer, lambda a, b: float(answer_words(a) == answer_words(b))), mean_of_sums),
    "token_f1": (partial(_each_answer, answer_f1), mean_of_sums),
    "number_match": (partial(_each_answer, _same_number), mean_of_sums),
}
"""For each metric its statistics of texts and references, and its value of their sums."""


def signature(name: str) -> str:
    """The sacrebleu signature of a BLEU or chrF, which makes it comparable; the name of other metrics.

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


def full_mark(name: str) -> float:
    """The best value of a metric: 100 for BLEU and chrF, 1 for all others."""
    return 100.0 if name.startswith(("bleu", "chrf")) else 1.0


def worth_metric(name: str) -> str:
    """The metric for the worth of one text: chrF in place of BLEU, which is mostly smoothing there."""
    return "chrf" if name.startswith("bleu") else name
