"""What is said of the replies of an API: which are no answers, cut, or of another model, and what was tried again."""

from collections import Counter
from collections.abc import Sequence

from elang.backends.openai.client import TOO_LONG, told_failures
from elang.backends.openai.questions import Questions
from elang.backends.openai.replies import LACKS, Reply, answer_of
from elang.backends.openai.spending import Spending
from elang.errors import counted
from elang.notices import notice

_WHAT = {
    "refused": "refused an answer",
    "too_long": "too long for the model",
    "unmatched": "without one of the labels",
    **LACKS,
}


def tell_answers(questions: Questions, replies: Sequence[Reply], labels: Sequence[int] | None) -> None:
    """Give notices about replies that are no answers, or cut, or of another model."""
    address = questions.settings.address
    counts = Counter[str]()
    strange = ""
    for place, reply in enumerate(replies):
        if reply.refused or reply.finish == TOO_LONG:
            counts["refused" if reply.refused else "too_long"] += 1
        elif reply.lack:
            counts[reply.lack] += 1
        elif labels is not None and labels[place] < 0:
            counts["unmatched"] += 1
            strange = strange or reply.text[:60] or "an empty text"
    if counts:
        told = ", ".join(f"{count} {_WHAT[name]}" for name, count in counts.items())
        shown = f" (first: {strange!r})" if strange else ""
        meant = "are empty" if labels is None else "name no label, and count as wrong"
        lowest = "" if questions.task.kind.chooses or labels is None else ": the lowest value takes their place"
        notice(
            "no-answer",
            f"Of {counted(len(replies), 'answers')} of {address}, {told}{shown}: these {meant}{lowest}.",
        )
    or_length = ", or --data.max_target_length" if questions.task.kind.generates else ""
    if cut := sum(reply.finish == "length" for reply in replies):
        notice(
            "cut-answers",
            f"{cut} of {counted(len(replies), 'answers')} of {address} reached the limit of "
            f"{questions.max_tokens} tokens and may be cut. Raise 'max_tokens' in the settings{or_length}. A model "
            "that thinks first needs many more, or must be told not to think.",
        )
    _tell_models(questions, replies)
    _tell_structure(questions, replies)


def _tell_structure(questions: Questions, replies: Sequence[Reply]) -> None:
    """Give a notice if the server leaves other answers than it was told to: some ignore a field they do not know."""
    how, answers = questions.settings.structured, questions.task.answers
    if how == "no" or questions.task.kind.generates:
        return
    whole = [one.text for one in replies if one.text and one.finish not in ("length", TOO_LONG)]
    free = [text for text in whole if not _is_of_form(text, how == "json_schema", answers)]
    if free:
        older = " vLLM does so with guided_choice from version 0.12 on: set 'choice'." if how == "guided_choice" else ""
        notice(
            "free-answers",
            f"{len(free)} of {counted(len(replies), 'answers')} of {questions.settings.address} are not of the form "
            f"that 'structured: {how}' asks for (first: {free[0][:60]!r}): the server seems to ignore it.{older}",
        )


def _is_of_form(text: str, as_json: bool, answers: Sequence[str]) -> bool:
    """Whether a text is one of the answers, in JSON or as it is; one that is no JSON would be read as it is."""
    return answer_of(text, as_json).strip() in answers and (not as_json or text.strip() not in answers)


def _tell_models(questions: Questions, replies: Sequence[Reply]) -> None:
    """Give a notice if the server names another model than the one that was asked, unless it is a version of it."""
    asked, address = questions.settings.model, questions.settings.address
    others = Counter(reply.model for reply in replies if reply.model and not reply.model.startswith(asked))
    if others:
        named = ", ".join(f"'{name}' ({counted(count, 'answers')})" for name, count in others.most_common(3))
        notice("another-model", f"{address} says that another model has answered: {named}.")


def tell_failures(address: str, failures: dict[str, int], spending: Spending) -> None:
    """Give a notice of what was tried again, and how often the server has not said what an answer took."""
    if failures:
        notice("asked-again", f"{address} was asked again after {told_failures(failures)}.", recorded=False)
    if count := spending.unreported:
        spending.unreported = 0
        notice(
            "no-usage",
            f"{address} does not say what {counted(count, 'answers')} took: their prices are not "
            "recorded, nor any tokens of this set, and a budget counts them by an estimate.",
        )
