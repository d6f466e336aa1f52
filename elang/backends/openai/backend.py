"""A model behind an API of OpenAI's form as a backend: the Super of a pair, or its Swift by log-probabilities."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.backends.backend import Scored
from elang.backends.openai.client import Client
from elang.backends.openai.journal import Journal
from elang.backends.openai.labels import label_logits, match_label, text_scores
from elang.backends.openai.questions import Questions
from elang.backends.openai.replies import Reply, answer_of
from elang.backends.openai.settings import Settings
from elang.backends.openai.spending import Pace, Spending
from elang.backends.openai.telling import tell_answers, tell_failures
from elang.data.examples import Examples
from elang.errors import InputError, counted, listed, need
from elang.method.deferral import route
from elang.method.scores import QUANTILES, SEQUENCE_SCORES, TOKEN_SCORES
from elang.notices import notice
from elang.records.table import EXAMPLES, Records
from elang.tasks.kinds import answer_values, parse_value
from elang.tasks.sampling import Sampling
from elang.tasks.text_task import TextTask

# The scores of an answer without tokens, which is the hardest.
_HARDEST = {"nll": 100.0, "max_softmax": 0.0, "margin": 0.0}


class OpenAIBackend:
    """Asks a model behind an API for its answers (docs/super.md).

    Args:
        address: ``openai:MODEL@URL``, or a YAML file of :class:`elang.backends.openai.settings.Settings`.
        task: The task.
    """

    # What else a Swift of a pair is asked for: it is no folder of `elang fit`, and has no heads.
    manifest, head_scores = None, list[str]()

    def __init__(self, address: str, task: TextTask) -> None:
        need(f"'{address}'", "openai", "httpx")
        self.settings, self.task = Settings.of(address), task
        self.address = self.settings.address
        # Before anything else is computed.
        self.settings.headers_now()
        self.questions = Questions(self.settings, task)
        self.spending, self.pace = Spending(self.settings), Pace(self.settings)
        self.journal, self.temperature = Journal(), 1.0
        self._told = self._counted = False

    @property
    def label_names(self) -> list[str]:
        """The classes."""
        return self.task.label_names

    def ask_for(self, *names: str) -> list[str]:
        """No scores but :attr:`score_names`."""
        return []

    def drop_routers(self) -> None:
        """There are none."""

    def want_scores(self, temperature: float = 1.0) -> None:
        """Ask for log-probabilities, too: it is a Swift. The temperature is that of scores of labels."""
        self.temperature = temperature
        self.questions = replace(self.questions, scored=True)

    def limit_new_tokens(self, tokens: int) -> None:
        """Limit the length of texts, unless the settings do."""
        self.questions = replace(self.questions, text_tokens=tokens)

    def choose(
        self, sampling: Sampling | None, num_beams: int | None = None, asked_scores: Sequence[str] | None = None
    ) -> None:
        """Set how texts are chosen, as far as the API has it.

        Raises:
            InputError: For beams, a ``top_k`` that the settings do not have, sampling that they contradict, and scores
                with passes of their own.
        """
        if (num_beams or 1) > 1:
            raise InputError(
                f"OpenAI's API has no beams, so '{self.address}' cannot take num_beams {num_beams}. Leave it out: "
                "models here then have their own setting, and what the server has goes into 'body' (docs/super.md)."
            )
        if asked_scores:
            raise InputError(
                f"'{self.address}' is behind an API, which has no score '{asked_scores[0]}': only language models that "
                "run here have. Leave it out of --model.asked_scores."
            )
        self.questions = replace(self.questions, sampling=sampling)

    @property
    def drawn(self) -> dict[str, Any]:
        """How its texts are drawn (:meth:`elang.tasks.sampling.Sampling.plain`); empty if they are not."""
        return self.questions.drawn

    def limit_seconds(self, seconds: float) -> None:
        """Try no request again after so many seconds, nor wait longer for one, unless the settings say less."""
        settings = self.settings
        timeout, deadline = min(settings.timeout, seconds), min(settings.deadline or seconds, seconds)
        self.settings = replace(settings, timeout=timeout, deadline=deadline)
        self.questions = replace(self.questions, settings=self.settings)

    def keep_answers(self, path: str | Path) -> None:
        """Keep replies in a file as they arrive, and do not ask again for those that are in it."""
        self.journal = Journal(path)

    def forget_answers(self) -> None:
        """Delete that file."""
        self.journal.delete()

    def describe(self) -> dict[str, Any]:
        """What the records of its answers depend on, for their metadata."""
        # Answers there need not be those of the largest logit, nor any of the task's.
        about: dict[str, Any] = {"model": self.address, "generated": True, EXAMPLES: self.task.examples}
        prices = self.settings.prices
        about |= {"api": self.settings.api} | ({"prices": vars(prices)} if prices else {})
        return about | ({"sampling": self.drawn} if self.drawn else {})

    def replies(self, examples: Examples) -> list[Reply]:
        """The replies to examples; equal requests are sent once."""
        if not self._told:
            self._told = True
            self.questions.tell()
        bodies = [self.questions.body(texts) for texts in examples.texts]
        digests = [self.questions.digest(body) for body in bodies]
        client = Client(self.questions, self.spending, self.pace)
        # Without a file each call has its own: in a server several threads ask.
        with self.journal if self.journal.path is not None else Journal() as journal:
            if not self._counted:
                self._counted = True
                self.spending.begin(journal.kept)
            known = sum(digest in journal for digest in digests)
            if known and journal.path is not None:
                notice(
                    "answers-kept",
                    f"'{journal.path}' has the replies to {counted(known, 'inputs')}, not asked for again.",
                    recorded=False,
                )
            try:
                client.ask(dict(zip(digests, bodies, strict=True)), journal)
            except InputError as error:
                if journal.path is None or not len(journal):
                    raise
                kept = f"The answers so far are kept in '{journal.path}': run the same command again to continue."
                raise InputError(f"{error} {kept}") from None
            replies = [journal[digest] for digest in digests]
        tell_failures(self.address, client.failures, self.spending)
        return replies

    def answer(self, examples: Examples) -> Records:
        """Ask for the answers to examples; notices count those that are none, and what was tried again."""
        replies = self.replies(examples)
        kind = self.task.kind
        costs = self._costs(replies)
        if kind.generates:
            # As texts of a model that runs here.
            stop = self.task.next_example
            texts = [(reply.text.partition(stop)[0] if stop else reply.text).strip() for reply in replies]
            tell_answers(self.questions, replies, None)
            zeros = torch.zeros(len(replies), dtype=torch.int64)
            return Records(
                examples.id, zeros, key=examples.key, texts=texts, scores=self._text_scores(replies), **costs
            )
        answers = [answer_of(reply.text, self.settings.structured == "json_schema") for reply in replies]
        if not kind.chooses:
            values = answer_values(self.task.answers)
            read = [parse_value(answer.strip(), torch.nan) for answer in answers]
            tell_answers(self.questions, replies, [-1 if value != value else 0 for value in read])
            predicted = [min(values) if value != value else value for value in read]
            return Records(examples.id, torch.tensor(predicted, dtype=torch.float64), key=examples.key, **costs)
        labels = [match_label(answer, self.task.answers) for answer in answers]
        tell_answers(self.questions, replies, labels)
        logits = self._logits(replies, labels)
        return Records(examples.id, torch.tensor(labels, dtype=torch.int64), logits, key=examples.key, **costs)

    @property
    def score_names(self) -> tuple[str, ...]:
        """The scores that log-probabilities give."""
        if not self.task.kind.generates:
            return self.task.kind.scores
        return tuple(name for name in SEQUENCE_SCORES if name.rpartition("_")[0] in _HARDEST)

    def score(self, examples: Examples, score: str, threshold: float) -> Scored:
        """Ask for the answers with log-probabilities, and compute one of :attr:`score_names`."""
        if not self.questions.scored:
            self.want_scores()
        records = self.answer(examples)
        known = {}
        if records.logits is not None or records.scores is not None:
            known = self.task.kind.scores_of(records.logits, records.scores, self.temperature)
        if score not in known:
            raise InputError(
                f"{self.address} gives no log-probabilities that the score '{score}' could be computed from; there "
                f"{'is ' + listed(list(known)) if known else 'is no score at all'}."
            )
        return Scored.of(records, self.task.kind, known[score].tolist(), route(known[score], threshold).tolist())

    def _costs(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """The tokens of prompts and answers, where all are known, and the prices, NaN where they are not."""
        usages = [reply.usage for reply in replies]
        known = [usage for usage in usages if usage is not None]
        columns, prices = dict[str, Any](), self.settings.prices
        if known and len(known) == len(usages):
            for column, field in (("tokens", "input"), ("cached", "cached"), ("steps", "output")):
                columns[column] = torch.tensor([getattr(usage, field) for usage in known])
        if known and prices is not None:
            price = [torch.nan if usage is None else prices.of(usage) for usage in usages]
            columns["price"] = torch.tensor(price, dtype=torch.float64)
        return columns

    def _logits(self, replies: Sequence[Reply], labels: Sequence[int]) -> Tensor | None:
        """The log-probabilities of the labels, if the server gives them; of an answer without them all are equal."""
        if not self._check_tokens(replies):
            return None
        answers, even = self.task.answers, [0.0] * len(self.task.answers)
        if len(answers) > self.questions.top:
            notice(
                "partial-scores",
                f"{self.address} gives the {self.questions.top} most probable tokens, and there are {len(answers)} "
                "labels: those that it does not show share the probability that is left.",
            )
        pairs = zip(replies, labels, strict=True)
        rows = [even if reply.tokens is None else label_logits(reply.tokens, answers, i) for reply, i in pairs]
        return torch.tensor(rows)

    def _text_scores(self, replies: Sequence[Reply]) -> Tensor | None:
        """The scores of texts, NaN in the columns of those that log-probabilities do not give for all of them."""
        if not self._check_tokens(replies):
            return None
        hardest = torch.tensor([_HARDEST.get(name, torch.nan) for name in TOKEN_SCORES])
        hardest = hardest.repeat_interleave(len(QUANTILES) + 2)
        rows = [hardest if reply.tokens is None else text_scores(reply.tokens) for reply in replies]
        table = torch.stack(rows)
        table[:, table.isnan().any(0)] = torch.nan
        names = [
            name for name, column in zip(SEQUENCE_SCORES, table.unbind(1), strict=True) if not column.isnan().any()
        ]
        kinds = list(dict.fromkeys(name.rpartition("_")[0] for name in names))
        notice(
            "partial-scores",
            f"{self.address} gives log-probabilities, not logits: its texts have the scores {listed(kinds)}, and not "
            f"{listed([kind for kind in TOKEN_SCORES if kind not in kinds])}.",
        )
        return table

    def _check_tokens(self, replies: Sequence[Reply]) -> bool:
        """Whether there are log-probabilities; a notice says if they were asked for in vain, or are missing in part."""
        if not self.questions.scored and not self.questions.top:
            return False
        missing = sum(reply.tokens is None for reply in replies)
        if missing == len(replies):
            notice("partial-scores", f"{self.address} gives no log-probabilities, so its answers have no scores.")
            return False
        if missing:
            notice(
                "partial-scores",
                f"{self.address} gives no log-probabilities for {missing} of {len(replies)} answers: they count as the "
                "hardest.",
            )
        return True
