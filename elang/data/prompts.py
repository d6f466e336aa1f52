"""How a decoder-only language model is asked: examples, the prompt, a chat template around them, and words after it."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any

from elang.data.fast_tokens import bare_tokens as _tokens
from elang.errors import InputError, first_line
from elang.notices import notice
from elang.tasks.text_task import TextTask, escaped

# Private characters stand for the question and the answer in a chat template.
_QUESTION, _ANSWER = "\ue000question\ue000", "\ue000answer\ue000"
# Some chat templates would write today's date, and so ask differently tomorrow, or let the model think first.
_CHAT = {"tokenize": False, "enable_thinking": False, "date_string": "26 Jul 2024"}
_QUOTES = "\"'`"


@dataclass(frozen=True)
class Prompt:
    """How a model is asked.

    Attributes:
        template: Of the whole input: the task's examples and its prompt, in a chat within the chat template. It ends
            without a space.
        start: The tokens that the tokenizer puts in front of a text. A chat template writes its own.
        lead: What stands between the prompt and an answer: a space, or nothing.
        reserved: Tokens of the model's context that answers need.
        examples: How many examples the template has.
    """

    template: str
    start: tuple[int, ...]
    lead: str
    reserved: int = 0
    examples: int = 0

    @classmethod
    def of(cls, tokenizer: Any, task: TextTask, turns: Sequence[tuple[str, str]] = ()) -> "Prompt":
        """The prompt of a task for a tokenizer's model, in a chat after ``turns``, each a role and what was said.

        Raises InputError if it has no placeholder, or for a chat without a template.
        """
        task.check_prompt()
        if task.label_words == "chat":
            template, lead = _chat_template(tokenizer, task, turns)
            stripped = template.rstrip(" ")
            return cls(stripped, (), " " if stripped != template else lead, examples=len(task.example_pairs))
        # What it puts behind a text would stand between the prompt and the answer.
        bare, whole = _tokens(tokenizer, ["a"])[0], list(tokenizer("a", padding=False)["input_ids"])
        places = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
        return replace(cls.written(task), start=tuple(whole[: places[0]]) if places and bare else ())

    @classmethod
    def written(cls, task: TextTask) -> "Prompt":
        """The prompt of a task as one text, without a chat, for whatever tokenizer. Raises InputError as :meth:`of`."""
        task.check_prompt()
        # A space belongs to the answer: most vocabularies have words with the space before them.
        stripped = task.prompt.rstrip(" ")
        lead = " " if stripped != task.prompt else _lead(_end_of(task.prompt))
        shown = [question.rstrip(" ") + _led(lead, answer) for question, answer in task.example_pairs]
        before = escaped("".join(f"{text}\n\n" for text in shown))
        return cls(before + stripped, (), lead, examples=len(shown))

    def text(self, fields: Sequence[str], texts: Sequence[str]) -> str:
        """The prompt of an example, as text."""
        return self._fill(dict(zip(fields, texts, strict=True)))[0]

    def reserving(self, tokens: int) -> "Prompt":
        """The same prompt, with room for this many tokens of an answer."""
        return replace(self, reserved=tokens)

    def beginning(self, tokenizer: Any) -> tuple[int, ...]:
        """The tokens of what stands before the first field; the last ones may join with what follows them."""
        text = ""
        for literal, name, _, _ in Formatter().parse(self.template):
            text += literal
            if name is not None:
                break
        return (*self.start, *_tokens(tokenizer, [text])[0])

    def answer_tokens(self, tokenizer: Any, answers: list[str]) -> list[list[int]]:
        """The tokens of each answer as they follow the prompt."""
        words = [_led(self.lead, answer) for answer in answers]
        end = _end_of(self.template)
        # What stands before an answer can change its tokens: many tokenizers mark the beginning of a text as a space.
        for before in (end if end.strip() else f"a{end}", "a", "a\n"):
            prompt, *whole = _tokens(tokenizer, [before, *(before + word for word in words)])
            if all(ids[: len(prompt)] == prompt for ids in whole):
                return [ids[len(prompt) :] for ids in whole]
        return _tokens(tokenizer, words)

    def token_lists(
        self, tokenizer: Any, fields: Sequence[str], texts: list[tuple[str, ...]], *, limit: int
    ) -> tuple[dict[str, list[list[int]]], int]:
        """The tokens of each prompt, and how many were too long: their texts are cut, the template stays whole."""
        room = limit - len(self.start)
        rows = [dict(zip(fields, values, strict=True)) for values in texts]
        ids = _tokens(tokenizer, [self._fill(row)[0] for row in rows])
        long = [i for i, tokens in enumerate(ids) if len(tokens) > room]
        cut = self._cut_tokens if tokenizer.is_fast else self._cut_letters
        for i in long:
            ids[i] = cut(tokenizer, rows[i], room)
        return {"input_ids": [[*self.start, *tokens] for tokens in ids]}, len(long)

    def _fill(self, row: dict[str, str]) -> tuple[str, list[tuple[int, int]]]:
        """The text of a prompt, and where the texts of its fields stand in it."""
        text, spans = "", []
        for literal, name, spec, conversion in Formatter().parse(self.template):
            text += literal
            if name is not None:
                blank = f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
                start = len(text)
                text += blank.format(**row)
                spans.append((start, len(text)))
        return text, spans

    def _cut_tokens(self, tokenizer: Any, row: dict[str, str], room: int) -> list[int]:
        """The tokens of a prompt without the last ones of its longest text."""
        text, spans = self._fill(row)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, padding=False, verbose=False)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        inside = [[i for i, (a, b) in enumerate(offsets) if start <= a < b <= end] for start, end in spans]
        dropped: set[int] = set()
        for _ in range(len(ids) - room):
            longest = max(inside, key=len)
            if not longest:
                raise self._too_long(len(ids) - len(dropped), room)
            dropped.add(longest.pop())
        return [token for i, token in enumerate(ids) if i not in dropped]

    def _cut_letters(self, tokenizer: Any, row: dict[str, str], room: int) -> list[int]:
        """The same for a tokenizer that does not tell where its tokens are: the text is cut, not its tokens."""
        row = {name: text for name, text in row.items() if f"{{{name}" in self.template}
        while len(ids := _tokens(tokenizer, [self._fill(row)[0]])[0]) > room:
            longest = max(row, key=lambda name: len(row[name]))
            if not row[longest]:
                raise self._too_long(len(ids), room)
            row[longest] = row[longest][: -(len(ids) - room)]
        return ids

    def _too_long(self, tokens: int, room: int) -> InputError:
        shown = f", its {self.examples} examples included" if self.examples else ""
        remedy = "Give fewer --data.examples, shorten" if self.examples else "Shorten"
        allowed = max(0, room + len(self.start))
        return InputError(
            f"The prompt takes {tokens + len(self.start)} tokens without any text{shown}, and {allowed} are allowed. "
            f"{remedy} --data.prompt (or --data.system), or raise --data.max_length. If the limit is the model's "
            "context, of which answers get their part first, shorten these: --data.max_target_length, --data.answers."
        )


def tell_examples(shown: dict[str, list[str]]) -> None:
    """Give a notice if the models of a pair, by their names, are shown other examples in their prompts."""
    if len(set(map(tuple, shown.values()))) > 1:
        counts = ", ".join(f"{who} {len(examples) // 2}" for who, examples in shown.items())
        notice(
            "other-examples",
            f"Not all models are shown the same examples in their prompts ({counts}). `elang predict` shows those of "
            "the Swift to a Super that `elang fit` has not written. --data.examples gives all the same.",
        )


def turn_end(tokenizer: Any) -> int | None:
    """The token that ends an assistant's turn in the tokenizer's chat template, if there is one."""
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    after = tokenizer.apply_chat_template(turns, **_CHAT).rpartition(_ANSWER)[2].strip()
    ids = _tokens(tokenizer, [after])[0]
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def _end_of(template: str) -> str:
    """What a template has behind its last field."""
    text = ""
    for literal, name, _, _ in Formatter().parse(template):
        text = "" if name is not None else text + literal
    return text


def _led(lead: str, answer: str) -> str:
    """An answer as it follows its prompt; it may bring its own space."""
    return answer if answer[:1].isspace() else lead + answer


def _lead(end: str) -> str:
    """A space, unless what stands before the answer is itself one, or opens something, or is of a script without."""
    if not end:
        return " "
    opens = end[-1] in _QUOTES or unicodedata.category(end[-1]) in ("Ps", "Pi")
    return "" if end[-1].isspace() or opens or unicodedata.east_asian_width(end[-1]) in "WF" else " "


def _chat_template(tokenizer: Any, task: TextTask, turns: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """The template of a chat around the prompt, and what it puts before the answer."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("This model's tokenizer has no chat template: leave out --data.chat, or give a chat model.")
    messages = [{"role": "system", "content": task.system}] if task.system else []
    for question, answer in task.example_pairs:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages += [{"role": role, "content": content} for role, content in turns]
    messages.append({"role": "user", "content": _QUESTION})
    try:
        asked: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **_CHAT)
        reply = {"role": "assistant", "content": _ANSWER}
        answered: str = tokenizer.apply_chat_template([*messages, reply], **_CHAT)
    except Exception as error:
        raise InputError(
            f"The tokenizer's chat template cannot be filled ({type(error).__name__}: {first_line(error)})."
            + (" Try without --data.system." if task.system else " Leave out --data.chat.")
        ) from error
    before, mark, after = asked.partition(_QUESTION)
    if not mark or _QUESTION in after:
        raise InputError("The tokenizer's chat template does not keep a message as it is. Leave out --data.chat.")
    lead = answered.removeprefix(asked).partition(_ANSWER)[0] if answered.startswith(asked) else ""
    return escaped(before) + task.prompt + escaped(after), lead if lead.isspace() else ""
