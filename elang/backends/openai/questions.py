"""What is sent to an API for an example: messages or a prompt, and how the answer is limited to the labels."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from elang.backends.openai.settings import Settings
from elang.data.prompts import Prompt
from elang.errors import InputError
from elang.notices import notice
from elang.tasks.sampling import Sampling
from elang.tasks.text_task import TextTask

# Of top log-probabilities; the most that OpenAI gives.
_MOST = {"chat": 20, "completions": 5}
_SAMPLING = ("temperature", "top_p", "top_k", "seed")
# Tokens of an answer beside those of its label, of which each is at least a byte.
_MORE_TOKENS = 8
_JSON_TOKENS = 24


@dataclass(frozen=True)
class Questions:
    """Makes the requests of a task.

    ``scored`` asks for log-probabilities, ``text_tokens`` is a text's length, ``sampling`` draws texts.
    """

    settings: Settings
    task: TextTask
    scored: bool = False
    text_tokens: int = 128
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        task, kind = self.task, self.task.kind
        who = self.settings.address
        task.check_prompt()
        if not kind.generates and not task.answers:
            raise InputError(
                f"'{who}' answers in words, and this {task.problem} task has none that all examples share. Set "
                "--data.answers, or give a model with a head."
            )
        if self.settings.api == "completions" and (task.label_words == "chat" or task.system):
            raise InputError(
                f"--data.chat and --data.system are for 'api: chat', and the settings of '{who}' ask for completions. "
                "Leave them out, or change 'api'."
            )
        if self.scored and self.settings.structured == "json_schema":
            raise InputError(
                f"The scores of '{who}' would be those of JSON: for a Swift set 'structured' to choice, guided_choice "
                "or no."
            )

        self._check_sampling()

    def _check_sampling(self) -> None:
        """Refuse what the API or the settings do not draw texts by."""
        how, body, who = self.sampling, self.settings.body, self.settings.address
        if how is None:
            return
        if not self.task.kind.generates:
            raise InputError(f"Sampled answers are texts, and '{who}' answers with labels here. Leave sampling out.")
        if how.top_k and body.get("top_k") != how.top_k:
            raise InputError(
                f"OpenAI's API has no top_k. If the server of '{who}' has one, set it in the settings, too, as body: "
                f"{{top_k: {how.top_k}}}; otherwise leave it out of the sampling."
            )
        for name in ("temperature", "top_p", "seed"):
            if name in body and body[name] != getattr(how, name):
                raise InputError(
                    f"The sampling has the {name} {getattr(how, name)}, and 'body' in the settings of '{who}' has "
                    f"{body[name]}. Leave one of them out."
                )

    @property
    def drawn(self) -> dict[str, Any]:
        """How texts are drawn, by the sampling or the settings, as :meth:`Sampling.plain`; empty if they are not."""
        asked = {"temperature": 0} | self._sampled() | self.settings.body
        if (
            not self.task.kind.generates
            or not isinstance(asked["temperature"], int | float)
            or not asked["temperature"]
        ):
            return {}
        return Sampling(**{name: asked[name] for name in _SAMPLING if asked.get(name) is not None}).plain()

    def _sampled(self) -> dict[str, Any]:
        """The fields that the sampling gives a request."""
        if self.sampling is None:
            return {}
        fields = {"temperature": self.sampling.temperature, "seed": self.sampling.seed}
        return fields | ({"top_p": self.sampling.top_p} if self.sampling.top_p < 1 else {})

    @property
    def url(self) -> str:
        """Where the requests go."""
        return f"{self.settings.url}/{'chat/completions' if self.settings.api == 'chat' else 'completions'}"

    @property
    def top(self) -> int:
        """The number of most probable tokens that is asked for at each place."""
        if self.settings.logprobs is not None:
            return self.settings.logprobs
        return _MOST[self.settings.api] if self.scored else 0

    @cached_property
    def system(self) -> str:
        """The system text of a chat: the task's, or where nothing says how a model is asked, that labels are wanted."""
        if self.task.system or self.task.label_words or self.task.kind.generates:
            return self.task.system
        return "Answer with exactly one of these, and nothing else:\n" + "\n".join(self.task.answers)

    def tell(self) -> None:
        """Give a notice about what is asked beside the user's own prompt."""
        if self.settings.api == "chat" and self.system != self.task.system:
            notice(
                "label-words",
                f"'{self.settings.address}' answers in the words {self.task.answers[:8]} after the prompt "
                f"{self.task.prompt!r}, and its system text lists them. With --data.chat true and your own "
                "--data.prompt it gets these alone.",
            )

    @cached_property
    def _prompt(self) -> Prompt:
        return Prompt.written(self.task)

    @property
    def max_tokens(self) -> int:
        """The most tokens of an answer."""
        if self.settings.max_tokens is not None:
            return self.settings.max_tokens
        if self.task.kind.generates:
            return self.text_tokens
        longest = max(len(answer.encode()) for answer in self.task.answers)
        return longest + (_JSON_TOKENS if self.settings.structured == "json_schema" else _MORE_TOKENS)

    def body(self, texts: Sequence[str]) -> dict[str, Any]:
        """The body of the request for an example."""
        body: dict[str, Any] = {"model": self.settings.model, "temperature": 0, "max_tokens": self.max_tokens}
        body |= self._sampled()
        if self.settings.api == "chat":
            body["messages"] = self._messages(self.task.prompt_text(tuple(texts)))
            body |= {"logprobs": True, "top_logprobs": self.top} if self.top or self.scored else {}
        else:
            body["prompt"] = self._prompt.text(self.task.fields, texts)
            body |= {"logprobs": self.top} if self.top or self.scored else {}
            body |= {"stop": [self.task.next_example]} if self.task.next_example else {}
        body |= self._structured()
        if "max_completion_tokens" in self.settings.body:
            del body["max_tokens"]
        return {name: value for name, value in (body | self.settings.body).items() if value is not None}

    def _messages(self, question: str) -> list[dict[str, str]]:
        turns = [("system", self.system)] if self.system else []
        for asked, answer in self.task.example_pairs:
            turns += [("user", asked), ("assistant", answer)]
        return [{"role": role, "content": text} for role, text in (*turns, ("user", question))]

    def _structured(self) -> dict[str, Any]:
        """The fields that leave the server no other answers than the labels."""
        how, answers = self.settings.structured, self.task.answers
        if how == "no" or self.task.kind.generates:
            return {}
        if how == "json_schema":
            enum = {"type": "string", "enum": answers}
            schema: dict[str, Any] = {"type": "object", "properties": {"answer": enum}, "required": ["answer"]}
            schema["additionalProperties"] = False
            named = {"name": "answer", "strict": True, "schema": schema}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        return {"structured_outputs": {"choice": answers}} if how == "choice" else {"guided_choice": answers}

    def digest(self, body: dict[str, Any]) -> str:
        """A hash of a request and where it goes: equal ones have the same answer."""
        text = json.dumps([self.url, body], sort_keys=True, ensure_ascii=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
