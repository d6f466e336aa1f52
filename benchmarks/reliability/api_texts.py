"""Greedy texts of a language model in process, and how those of a server that has the same weights compare."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elang.backends.loading.load import load_model
from elang.backends.openai.replies import Reply
from elang.data.encoding import encode_examples
from elang.data.seq2seq import Seq2SeqData
from elang.tasks.text_task import TextTask

CHAT = "Name the topic of this question to a bank in a few words.\n\n{text}"

LOOKED_AT = 20
PARTED = "between the two most probable tokens where texts part, nats"


@dataclass
class Own:
    """What the model in process reads and writes: of each text the prompt's tokens, and those of the answer."""

    task: TextTask
    texts: list[tuple[str, ...]]
    model: Any
    prompts: list[list[int]]
    answers: list[list[int]]

    def written(self, place: int) -> list[int]:
        """An answer's tokens without the end."""
        ends = {*self.model.end_tokens, self.model.end}
        return [token for token in self.answers[place] if token not in ends]

    @torch.inference_mode()
    def log_probabilities(self, place: int) -> torch.Tensor:
        """Of all tokens at each place of an answer, its end included, ``(T, V)``."""
        prompt, answer = self.prompts[place], self.answers[place]
        logits = self.model.backbone(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 :]
        return logits.float().log_softmax(-1)  # type: ignore[no-any-return]


def texts_here(path: str, source: Path, tokens: int, kept: Path) -> Own:
    """Answers of at most so many tokens to the texts of a table, in float32; they are kept in a file."""
    data = Seq2SeqData(validation=str(source), prompt=CHAT, chat=True, max_target_length=tokens)
    task, texts = data.text_task, data.examples("validation").texts
    model: Any = load_model(path, task).eval()
    model.configure_generation(tokens)
    given = encode_examples(model.reader, task, texts, None, model.reader.limit(256, tokens))
    prompts, answers = dict[int, list[int]](), dict[int, list[int]]()
    if kept.is_file():
        return Own(task, list(texts), model, **json.loads(kept.read_text()))
    for part in given.lengths.argsort().split(16):
        with torch.inference_mode():
            ids = model.padded_ids(model.generate(model.encode(given.batch(part.tolist())), scored=False))
        for place, row in zip(part.tolist(), ids.tolist(), strict=True):
            prompts[place] = given.batch([place])["input_ids"][0].tolist()
            answers[place] = [token for token in row if token >= 0]
    order = range(len(texts))
    lists = {"prompts": [prompts[i] for i in order], "answers": [answers[i] for i in order]}
    kept.write_text(json.dumps(lists))
    return Own(task, list(texts), model, **lists)


def compared(own: Own, replies: list[Reply]) -> dict[str, Any]:
    """How many texts are equal, and what else the server says of them; of others, how near the two tokens were."""
    tokenizer = own.model.tokenizer
    equal, counted, prompts, with_tokens, same_tokens = 0, 0, 0, 0, 0
    margins, differences = list[float](), list[float]()
    for place, reply in enumerate(replies):
        ids, text = own.written(place), tokenizer.decode(own.answers[place], skip_special_tokens=True)
        if reply.usage is not None:
            prompts += reply.usage.input == len(own.prompts[place])
        if reply.text != text:
            theirs = [*tokenizer(reply.text, add_special_tokens=False)["input_ids"], own.model.end]
            pairs = enumerate(zip(own.answers[place], theirs, strict=False))
            first = next((i for i, (one, other) in pairs if one != other), 0)
            top = own.log_probabilities(place)[first].topk(2).values
            margins.append(round(float(top[0] - top[1]), 5))
            continue
        equal += 1
        if reply.usage is not None:
            counted += reply.usage.output in (len(ids), len(own.answers[place]))
        if reply.tokens is not None:
            with_tokens += 1
            said = reply.tokens[: len(ids)]
            same_tokens += [token for token, _, _ in said] == [tokenizer.decode([token]) for token in ids]
            if with_tokens <= LOOKED_AT:
                values = own.log_probabilities(place)[range(len(ids)), ids].tolist()
                differences += [abs(value - other) for value, (_, other, _) in zip(values, said, strict=False)]
    found: dict[str, Any] = {
        "texts": len(replies),
        "equal to the text in process": equal,
        "of these, usage counts their tokens": counted,
        "usage counts the prompt's tokens in process": prompts,
        "with log-probabilities": sum(reply.tokens is not None for reply in replies),
    }
    if margins:
        found[PARTED] = sorted(margins)
    if differences:
        found["equal token for token"] = same_tokens
        found[f"largest difference of a token's log-probability, {LOOKED_AT} texts"] = round(max(differences), 5)
    return found
