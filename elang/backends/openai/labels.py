"""Which label an answer in words means, and what the probabilities of its tokens say of the others."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from elang.backends.openai.replies import Token
from elang.method.scores import QUANTILES, TOKEN_SCORES, sequence_scores

_AROUND = " \t\r\n\"'`*_.,:;!()[]{}<>\u201c\u201d\u2018\u2019\u00ab\u00bb\u3002"
# What a label that the most probable tokens do not show has at least.
_LEAST = 1e-12


def match_label(text: str, answers: Sequence[str]) -> int:
    """The index of the answer that a text means, or -1.

    The text must be an answer, apart from spaces, quotes, brackets, asterisks and full stops around it; or, if none is
    the same, one without regard to case. Otherwise exactly one answer must stand in it, as a whole word or phrase;
    one that is a part of another where it stands, as *entailment* is of *not entailment*, does not count.

    >>> texts = "**Entailment.**", "It is not entailment", "?"
    >>> [match_label(text, ["entailment", "not entailment"]) for text in texts]
    [0, 1, -1]
    """
    bare = text.strip(_AROUND)
    plain = [answer.strip(_AROUND) or answer.strip() for answer in answers]
    for fold in (str, str.casefold):
        same = [i for i, answer in enumerate(plain) if fold(answer) == fold(bare) or fold(answer) == fold(text.strip())]
        if len(same) == 1:
            return same[0]
    return _named(text, plain)


def _named(text: str, answers: list[str]) -> int:
    """The only answer that stands in a text as a whole word or phrase, or -1."""
    spans = []
    for i, answer in enumerate(answers):
        before, after = (r"(?<!\w)" if answer[:1].isalnum() else "", r"(?!\w)" if answer[-1:].isalnum() else "")
        found = re.finditer(f"{before}{re.escape(answer)}{after}", text, re.IGNORECASE) if answer else ()
        spans += [(match.start(), match.end(), i) for match in found]
    outer = {
        i
        for start, end, i in spans
        if not any(s <= start and end <= e and (s, e) != (start, end) for s, e, other in spans if other != i)
    }
    return outer.pop() if len(outer) == 1 else -1


def label_logits(tokens: list[Token], answers: Sequence[str], label: int) -> list[float]:
    """The log-probability of each answer by the tokens of one of them, and the most probable ones in their places.

    A place's tokens that an answer goes on with count for it; several that go on alike share them. Answers that none
    of the tokens begin share what is left. The ``label``, unless it is -1, has at least the largest value.

    >>> values = label_logits([("bad", -0.5, [("bad", -0.5), ("go", -1.0)])], ["good", "bad", "odd"], 1)
    >>> [round(value, 2) for value in values]
    [-1.0, -0.5, -3.67]
    """
    words = [answer.strip().casefold() for answer in answers]
    mass = [0.0] * len(words)
    written, log_prob, alive = "", 0.0, list(range(len(words)))

    def share(so_far: str, probability: float) -> None:
        goes_on = [i for i in alive if words[i].startswith(so_far)]
        for i in goes_on or [i for i in alive if so_far.startswith(words[i])]:
            mass[i] += probability / len(goes_on or alive)

    for text, value, top in tokens:
        for other, other_value in top:
            so_far = (written + other).lstrip().casefold()
            if other != text and so_far:
                share(so_far, math.exp(log_prob + other_value))
        written, log_prob = (written + text).lstrip(), log_prob + value
        so_far = written.casefold()
        alive = [i for i in alive if words[i].startswith(so_far) or so_far.startswith(words[i])]
        if len(alive) <= 1:
            break
    exact = [i for i in alive if words[i] == written.strip().casefold()]
    for i in exact or alive:
        mass[i] += math.exp(log_prob) / len(exact or alive)
    if unseen := [i for i, value in enumerate(mass) if value <= 0]:
        least = min([math.exp(value) for _, value in tokens[0][2]] or [1.0])
        left = max(_LEAST, min(least, (1 - sum(mass)) / len(unseen)))
        mass = [value if value > 0 else left for value in mass]
    logits = [math.log(value) for value in mass]
    if label >= 0:
        logits[label] = max(logits)
    return logits


def text_scores(tokens: list[Token]) -> Tensor:
    """The scores of a text, float32 ``(30,)``; NaN where they need more than log-probabilities.

    ``nll`` is that of each token, ``max_softmax`` the largest probability where a place's most probable token is given,
    ``margin`` that of the two most probable ones where both are. Free energy and entropy need all logits.
    """
    rows = []
    for _, value, top in tokens:
        given = sorted((math.exp(other) for _, other in top), reverse=True)
        first = -given[0] if given else math.nan
        margin = given[1] - given[0] if len(given) > 1 else math.nan
        known = {"nll": -value, "max_softmax": first, "margin": margin}
        rows.append([known.get(name, math.nan) for name in TOKEN_SCORES])
    table = torch.tensor(rows)
    missing = table.isnan().any(0)
    scores = sequence_scores(table.masked_fill(missing, 0.0)[None], torch.tensor([len(rows)]))[0]
    return scores.masked_fill(missing.repeat_interleave(len(QUANTILES) + 2), math.nan)
