"""A router that reads the text before any model answers, and one that also reads the Swift's score.

Both predict what asking the Super gains. They are fitted on the rows that choose thresholds, where each row is scored
by a fit without it, so that thresholds can be chosen there, too; the other rows are scored by a fit to all of them.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.data.examples import fold_of
from elang.errors import InputError, need
from elang.evaluation.pair import PairAnswers
from elang.method.curve.exact import operating_curve
from elang.method.curve.points import Costs
from elang.method.quality.metric import mean_of_sums
from elang.method.router import FOLDS

TEXT, BOTH = "text_router", "text_score_router"
"""Names of the scores: from the text alone, and from the text and the Swift's score."""
_PENALTIES = (0.3, 3.0)
# The most frequent words and pairs of words: more cost time, and are rare.
_WORDS = 20_000
# Candidates for the score of the text above which the Swift is not asked, and costs at which they are compared.
_DIRECT, _COSTS = 20, 50
# Gains are from -1 to 1, so what goes straight to the Super ranks above all else.
_ABOVE = 2.0
_FEWEST = 20


class GainModel:
    """Predicts the gain from deferring: P(only the Super is right) - P(only the Swift is right), from -1 to 1.

    This is a logistic regression over the gains -1, 0 and 1 by scikit-learn. A gain between, of answers worth 0 to 1,
    counts as a part of the two gains around it.

    Args:
        texts: Whether features are texts, which TF-IDF of words and pairs of words describes; otherwise vectors.
        penalty: scikit-learn's ``C``; smaller is a stronger penalty.
    """

    def __init__(self, texts: bool, penalty: float = 1.0) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        words = {"sublinear_tf": True, "ngram_range": (1, 2), "token_pattern": r"\w+|[^\w\s]", "dtype": np.float32}
        self.describe = TfidfVectorizer(**words, max_features=_WORDS) if texts else StandardScaler()
        self.regression = LogisticRegression(C=penalty, max_iter=300, tol=1e-3)
        self.constant: float | None = None

    def fit(self, features: Any, gain: Tensor) -> "GainModel":
        """Learn from features, ``N`` texts or ``(N, D)``, and gains, ``(N,)`` in [-1, 1]."""
        x, size = self.describe.fit_transform(features), gain.abs()
        rows = torch.cat([torch.nonzero(size)[:, 0], torch.nonzero(size < 1)[:, 0]]).numpy()
        known = int((size > 0).sum())
        kind = np.concatenate([gain.sign().numpy()[rows[:known]], np.zeros(len(rows) - known)])
        weight = np.concatenate([size.numpy()[rows[:known]], (1 - size).numpy()[rows[known:]]])
        if len(np.unique(kind)) < 2:
            self.constant = float(gain.mean())
        else:
            self.regression.fit(x[rows], kind, sample_weight=weight)
        return self

    def __call__(self, features: Any) -> Tensor:
        """The predicted gains, float64 ``(N,)``; larger is harder."""
        if self.constant is not None:
            return torch.full((len(features),), self.constant, dtype=torch.float64)
        found = self.regression.predict_proba(self.describe.transform(features)) @ self.regression.classes_
        return torch.from_numpy(found.astype(np.float64))


@dataclass
class Routed:
    """What routers of a pair found.

    Attributes:
        score: Of each router, by name, float64 ``(N,)``, rows in the order of the given ones; larger is harder.
        kept: What the routers add to the Swift's cost of an input that it keeps, likewise.
        deferred: What a deferred input costs before the Super, likewise.
        text: The fitted model of the text alone.
        both: That of the text's prediction and the Swift's score, if the Swift has one.
        direct: The prediction of ``text`` above which the Swift is not asked by :data:`BOTH`; ``inf`` for none.
        about: How it was made, in words.
    """

    score: dict[str, Tensor]
    kept: dict[str, Tensor]
    deferred: dict[str, Tensor]
    text: GainModel
    both: GainModel | None
    direct: float
    about: str


def text_routers(
    features: Any, chose: PairAnswers, other: PairAnswers, cost: float | Tensor | None, score: str | None = None
) -> Routed:
    """Fit the routers of a pair, and score all rows: those of ``chose``, then those of ``other``.

    Args:
        features: A text for each row, or a vector, ``(N, D)``, rows likewise.
        chose: The answers to the rows that choose.
        other: The answers to the rows that show what was chosen.
        cost: Of the router for an input, or for each; ``None`` measures seconds.
        score: The Swift's score that the second router also reads; without one there is no second router.

    Raises:
        InputError: If there are too few rows, or scikit-learn is not installed.
    """
    need("A router before any answer", "router", "sklearn")
    n, gain = len(chose), chose.gain.double()
    if n < _FEWEST:
        raise InputError(f"A router needs {_FEWEST} rows that choose or more, and there are {n}. Give more rows.")
    texts = not isinstance(features, Tensor)
    if not texts:
        features = features.double().numpy()
    own, fold = features[:n], fold_of(chose.key if chose.unit is None else chose.unit, FOLDS)
    tried = {penalty: _cross_fit(own, gain, fold, texts, penalty) for penalty in _PENALTIES}
    penalty = min(tried, key=lambda each: float((tried[each] - gain).square().mean()))
    model = GainModel(texts, penalty).fit(own, gain)
    begin = time.perf_counter()
    found = torch.cat([tried[penalty], model(features[n:])])
    seconds = (time.perf_counter() - begin) / max(1, len(features) - n)
    each = torch.as_tensor(seconds if cost is None else cost, dtype=torch.float64).expand(len(features))
    swift = torch.cat([chose.swift_flops, other.swift_flops]).double()
    about = f"fitted on {n:,} rows; {1e3 * seconds:.2g} ms an input on this machine"
    routed = Routed({TEXT: found}, {TEXT: each}, {TEXT: each}, model, both=None, direct=math.inf, about=about)
    if score is not None:
        hard = torch.cat([chose.scores[score], other.scores[score]]).double()
        pairs = np.stack([found.numpy(), hard.numpy(), _rank(hard, hard[:n]).numpy()], 1)
        routed.both = GainModel(False).fit(pairs[:n], gain)
        after = torch.cat([_cross_fit(pairs[:n], gain, fold, False, 1.0), routed.both(pairs[n:])])
        routed.direct = _direct(found[:n], after[:n], chose, each[:n])
        straight = found > routed.direct
        routed.score[BOTH] = torch.where(straight, found + _ABOVE, after)
        routed.kept[BOTH], routed.deferred[BOTH] = each, each + torch.where(straight, 0.0, swift)
    return routed


def _cross_fit(features: Any, gain: Tensor, fold: Tensor, texts: bool, penalty: float) -> Tensor:
    """The prediction of each row by a fit to the rows of other folds."""
    found = gain.mean().repeat(len(gain))
    for number in fold.unique().tolist():
        inside = (fold == number).numpy()
        if not inside.all():
            part = GainModel(texts, penalty).fit(_take(features, ~inside), gain[~inside])
            found[inside] = part(_take(features, inside))
    return found


def _take(features: Any, rows: Any) -> Any:
    return features[rows] if isinstance(features, np.ndarray) else [features[row] for row in np.flatnonzero(rows)]


def _rank(values: Tensor, among: Tensor) -> Tensor:
    """The share of others at most as large: scores of any scale become comparable."""
    return torch.searchsorted(among.sort().values, values, right=True).double() / len(among)


def _direct(text: Tensor, after: Tensor, answers: PairAnswers, cost: Tensor) -> float:
    """The prediction from which on the Swift is not asked: the one with the best quality, on average over costs."""
    one = torch.ones_like(answers.gain)
    # Only differences count, so the Swift's answers are worth 0.
    kept, passed = (torch.stack([worth, one], 1) for worth in (torch.zeros_like(one), answers.gain))
    best, chosen = -math.inf, math.inf
    for threshold in [math.inf, *text.quantile(torch.linspace(1, 0, _DIRECT).double())[1:].tolist()]:
        straight = text > threshold
        costs = Costs(
            answers.swift_flops + cost, answers.super_flops, cost + torch.where(straight, 0.0, answers.swift_flops)
        )
        score = torch.where(straight, text + _ABOVE, after)
        curve = operating_curve(score, kept, passed, value=mean_of_sums, costs=costs)
        order = curve.cost.argsort(stable=True)
        reached = curve.quality[order].cummax(0).values
        within = torch.linspace(float(answers.swift_flops.mean()), float(answers.super_flops.mean()), _COSTS).double()
        places = torch.searchsorted(curve.cost[order].double(), within, right=True) - 1
        value = float(torch.where(places >= 0, reached[places.clamp_min(0)], 0.0).mean())
        if value > best + 1e-12:
            best, chosen = value, threshold
    return chosen
