"""Scores of generated texts: those of tokens as they are chosen, and two with passes of their own.

The latter are computed only where they are asked for: ``p_true`` is what the model says when it is asked whether its
answer is right, ``agreement`` whether several samples give the same answer. Sources: Kadavath et al., arXiv 2207.05221;
Wang et al., ICLR 2023 (self-consistency).
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from elang.data.prompts import Prompt
from elang.errors import InputError
from elang.method.scores import token_scores
from elang.tasks.sampling import Sampling
from elang.tasks.text_task import TextTask, escaped

SAMPLES = 5
_ASKED = "Is this answer right, Yes or No?"
# Of SplitMix64, as signed numbers.
_MIX = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15, 0x1E3779B97F4A7C15)


class TokenWatch:
    """Scores greedily chosen tokens while they are generated: a forward hook that sees each step's logits."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []
        self.logits: Tensor | None = None

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Score the last token, and keep the logits of the next one."""
        ids = kwargs["decoder_input_ids" if "decoder_input_ids" in kwargs else "input_ids"]
        self.take(ids[:, -1])
        self.logits = output.logits[:, -1]

    def take(self, chosen: Tensor) -> None:
        """Score the tokens that were chosen from the last logits."""
        if self.logits is not None:
            self.scores.append(token_scores(self.logits, chosen))


@dataclass(frozen=True)
class Check:
    """The question whether an answer is right, which follows the answer: its tokens, and those of Yes and No."""

    tokens: tuple[int, ...]
    words: tuple[int, int]

    @classmethod
    def of(cls, tokenizer: Any, task: TextTask) -> "Check":
        """The question in a chat, if the task is asked in one. Raises InputError if Yes and No begin alike."""
        text, lead = f"\n{_ASKED}", " "
        if task.label_words == "chat":
            answer = "\ue000answer\ue000"
            said = (("user", "question"), ("assistant", answer), ("user", _ASKED))
            turns = [{"role": role, "content": content} for role, content in said]
            how = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": False}
            text, lead = tokenizer.apply_chat_template(turns, **how).rpartition(answer)[2], ""
        yes, no = Prompt(escaped(text), (), lead).answer_tokens(tokenizer, ["Yes", "No"])
        if yes[0] == no[0]:
            raise InputError("'Yes' and 'No' begin with the same token, so this model has no score p_true.")
        return cls(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]), (yes[0], no[0]))

    def after(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Texts ``(B, L)`` and their mask with the question behind them."""
        tokens = torch.tensor(self.tokens, device=ids.device).expand(len(ids), -1)
        return torch.cat([ids, tokens], 1), torch.cat([mask, torch.ones_like(tokens)], 1)

    def score(self, logits: Tensor) -> Tensor:
        """Minus the probability of Yes, of Yes and No, ``(B,)``, from logits ``(B, V)``."""
        return -logits[:, list(self.words)].float().softmax(-1)[:, 0]


class Noise:
    """Gumbel noise on logits, so that the most probable token is a sample.

    It depends on the prompt, the number of the sample and the seed alone, so that a text does not depend on the batch.
    """

    def __init__(self, ids: Tensor, mask: Tensor, samples: int, seed: int | None = None) -> None:
        place = mask.cumsum(1)
        prompts = (_mixed(ids + _mixed(place)) * mask).sum(1)
        if seed is not None:
            # Answers are drawn independently of the samples that may have to agree with them.
            prompts = prompts + _mixed(ids.new_tensor(seed + 1))
        self.keys = _mixed(prompts[:, None] + torch.arange(samples, device=ids.device)).flatten()
        self.steps = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The logits ``(B, V)`` with noise."""
        self.steps += 1
        tokens = torch.arange(scores.shape[1], device=scores.device)
        numbers = _mixed(_mixed(self.keys + self.steps)[:, None] + tokens)
        uniform = ((numbers >> 12) & (1 << 51) - 1).double().add(0.5) / (1 << 51)
        return scores - uniform.log().neg().log().to(scores)


def drawn_by(sampling: Sampling, ids: Tensor, mask: Tensor) -> LogitsProcessorList:
    """What makes the most probable token of each step a sample, for prompts ``(B, L)``."""
    limits = [TemperatureLogitsWarper(float(sampling.temperature))]
    limits += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    limits += [TopPLogitsWarper(float(sampling.top_p))] if sampling.top_p < 1 else []
    return LogitsProcessorList([*limits, Noise(ids, mask, 1, sampling.seed)])


def _mixed(numbers: Tensor) -> Tensor:
    """Numbers that look random, int64, for numbers in a row (SplitMix64, with signed shifts)."""
    numbers = numbers * _MIX[2]
    for shift, factor in ((30, _MIX[0]), (27, _MIX[1])):
        numbers = (numbers ^ (numbers >> shift)) * factor
    return numbers ^ (numbers >> 31)


def disagreement(answers: list[Any], samples: int) -> list[float]:
    """One minus the share of the most frequent answer among each ``samples`` in a row; ``None`` is no answer.

    >>> disagreement(["a", "b", "a", "c", None, None], 3)
    [0.33333333333333337, 0.6666666666666667]
    """
    rows = [answers[start : start + samples] for start in range(0, len(answers), samples)]
    most = [max(Counter(answer for answer in row if answer is not None).values(), default=0) for row in rows]
    return [1 - count / samples for count in most]
