"""Examples in front of a prompt: which are drawn, how they are written, what is refused."""

import json
from collections import Counter

import pandas as pd
import pytest
import torch

from elang import InputError, Seq2SeqData
from elang.data.benchmarks import TaskData
from elang.data.examples import Examples
from elang.data.prompted import draw_examples
from elang.data.prompts import Prompt
from elang.data.text_classification import TextClassificationData
from elang.notices import Notice
from elang.records.manifest import Manifest
from elang.tasks.text_task import TextTask

from .test_prompts import ANSWERS, CHATML, ids_of, make_tokenizer, task_of

SHOWN = ["Review: a dull plot {sic}\nSentiment:", "negative", "Review: good\nSentiment:", "very good"]
NAMES = ["no", "so-so", "yes"]


@pytest.mark.parametrize("kind", ["bytes", "unigram", "pieces"])
@pytest.mark.parametrize(
    ("prompt", "gap"), [("Review: {text}\nSentiment:", " "), ("Review: {text}\n", ""), ("{text} good: ", " ")]
)
def test_examples_are_written_as_the_prompt_and_its_answer(kind, prompt, gap):
    """A blank line between them; the tokenizer's beginning once, in front of all."""
    tokenizer = make_tokenizer(kind)
    texts = ["a dull plot {sic}", "very good"]
    shown = [part for text, word in zip(texts, ANSWERS, strict=False) for part in (prompt.format(text=text), word)]
    made = Prompt.of(tokenizer, task_of(prompt, examples=shown))
    (row,) = made.token_lists(tokenizer, ["text"], [("the film was good",)], limit=300)[0]["input_ids"]
    whole = "".join(f"{prompt.format(text=t).rstrip(' ')}{gap}{a}\n\n" for t, a in zip(texts, ANSWERS, strict=False))
    whole += prompt.format(text="the film was good").rstrip(" ")
    assert row == [tokenizer.bos_token_id, *ids_of(tokenizer, whole)]
    for answer, tokens in zip(ANSWERS, made.answer_tokens(tokenizer, ANSWERS), strict=True):
        assert row + tokens == [tokenizer.bos_token_id, *ids_of(tokenizer, f"{whole}{gap}{answer}")]


def test_an_answer_that_brings_its_space():
    made = Prompt.of(make_tokenizer("bytes"), task_of(examples=["Review: x\nSentiment:", "\npositive"]))
    assert made.template == "Review: x\nSentiment:\npositive\n\nReview: {text}\nSentiment:"


def test_examples_of_a_chat_are_turns():
    tokenizer = make_tokenizer("bytes", chat_template=CHATML)
    made = Prompt.of(tokenizer, task_of(label_words="chat", system="Short.", examples=SHOWN))
    (row,) = made.token_lists(tokenizer, ["text"], [("good",)], limit=300)[0]["input_ids"]
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    said = ["Short.", *SHOWN, "Review: good\nSentiment:"]
    messages = [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]
    assert row == tokenizer.apply_chat_template(messages, add_generation_prompt=True, truncation=False)["input_ids"]
    (answer,) = made.answer_tokens(tokenizer, ["positive"])
    messages.append({"role": "assistant", "content": "positive"})
    whole = tokenizer.apply_chat_template(messages, truncation=False)["input_ids"]
    assert whole[: len(row) + len(answer)] == row + answer


@pytest.mark.parametrize("chat", ["", "chat"])
def test_of_a_long_prompt_the_text_is_cut_and_no_example(chat):
    tokenizer = make_tokenizer("bytes", chat_template=CHATML)
    made = Prompt.of(tokenizer, task_of(label_words=chat or "prompt", examples=SHOWN))
    (bare,) = made.token_lists(tokenizer, ["text"], [("",)], limit=300)[0]["input_ids"]
    lists, cut = made.token_lists(tokenizer, ["text"], [("good " * 50,)], limit=len(bare) + 2)
    assert (len(lists["input_ids"][0]), cut) == (len(bare) + 2, 1)
    assert "a dull plot {sic}\nSentiment:" in tokenizer.decode(lists["input_ids"][0])
    with pytest.raises(InputError, match=r"its 2 examples included, and 20 are allowed\. Give fewer --data\.examples"):
        made.token_lists(tokenizer, ["text"], [("good",)], limit=20)


def test_where_the_next_example_begins():
    assert task_of(examples=SHOWN).next_example == "\n\nReview:"
    assert task_of(label_words="chat", examples=SHOWN).next_example == ""
    assert task_of().next_example == ""


def test_examples_are_part_of_the_task(tmp_path):
    task = task_of(examples=SHOWN)
    assert TextTask.of(task.label_names, task.plain()) == task
    assert "examples" not in task_of().plain()
    Manifest(["p", "n", "v"], task.plain()).write(tmp_path / "elang.json")
    assert Manifest.read(tmp_path).task["examples"] == SHOWN
    values = json.loads((tmp_path / "elang.json").read_text())
    values["task"]["examples"] = SHOWN[:3]
    (tmp_path / "elang.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="a list of prompts and answers by turns"):
        Manifest.read(tmp_path)


@pytest.fixture
def table(tmp_path):
    """Training texts of three classes, 120, 60 and 3 of them, each twice, and a validation file."""
    rows = [(f"text {i} {{x}}", NAMES[0] if i < 120 else NAMES[1] if i < 180 else NAMES[2]) for i in range(183)]
    pd.DataFrame(rows * 2, columns=["text", "label"]).to_csv(tmp_path / "train.csv", index=False)
    pd.DataFrame(rows[::-1], columns=["text", "label"]).to_csv(tmp_path / "turned.csv", index=False)
    pd.DataFrame([("new", "no")], columns=["text", "label"]).to_csv(tmp_path / "val.csv", index=False)
    return tmp_path


def of_table(folder, **options):
    given = {"train": str(folder / "train.csv"), "validation": str(folder / "val.csv"), "examples": 6, **options}
    return TextClassificationData(**{name: value for name, value in given.items() if value is not None})


def test_what_is_drawn(table):
    """Equally many of each class, no text twice, none that is held out; the same whatever the rows' order."""
    data = of_table(table, prompt="{text} ?", answers=["No", "So so", "Yes"])
    task = data.text_task
    pairs = task.example_pairs
    assert task.label_words == "prompt"
    assert sorted(answer for _, answer in pairs) == ["No"] * 2 + ["So so"] * 2 + ["Yes"] * 2
    assert {answer for _, answer in pairs[:3]} == {"No", "So so", "Yes"}
    assert len({question for question, _ in pairs}) == 6
    of_text = dict(zip(data.examples("train").texts, data.examples("train").label.tolist(), strict=True))
    for question, answer in pairs:
        assert task.answers[of_text[(question.removesuffix(" ?"),)]] == answer
    same = of_table(table, prompt="{text} ?", answers=["No", "So so", "Yes"], train=str(table / "turned.csv"))
    assert same.text_task.examples == task.examples
    other = of_table(table, prompt="{text} ?", answers=["No", "So so", "Yes"], examples_seed=1).text_task
    assert other.examples != task.examples
    fewer = of_table(table, prompt="{text} ?", answers=["No", "So so", "Yes"], examples=4).text_task
    assert fewer.examples == task.examples[:8]


def test_what_is_held_out_is_not_drawn(table):
    drawn = set()
    for fold in ("0/2", "1/2"):
        data = of_table(table, examples=30, routing_fraction=0.5, fold=fold, prompt="{text}")
        held_out = {text for split in ("routing", "fold") for (text,) in data.examples(split).texts}
        questions = {question for question, _ in data.text_task.example_pairs}
        assert len(questions) == 30
        assert not questions & held_out
        drawn |= questions
    assert len(drawn) == 60


def test_a_class_that_is_too_small_is_filled_up(table):
    data = of_table(table, examples=20, routing_fraction=0)
    answers = [answer for _, answer in data.text_task.example_pairs]
    assert sorted(answers.count(name) for name in NAMES) == [3, 8, 9]
    assert answers.count("yes") == 3


def test_a_module_may_ask_for_its_labels_while_it_reads(table):
    class Renamed(TextClassificationData):
        def read(self, source):
            examples = super().read(source)
            assert self.label_names == self.text_task.answers == NAMES
            return examples

    data = Renamed(str(table / "train.csv"), examples=6)
    assert data.text_task.examples == of_table(table, validation=None).text_task.examples


def test_what_cannot_be_drawn(table):
    with pytest.raises(InputError, match=r"drawn from the training file, which is not given\. Set --data\.train"):
        of_table(table, train=None)
    with pytest.raises(InputError, match="must be 0"):
        of_table(table, examples=-1)
    with pytest.raises(InputError, match=r"examples 500 is more than the \d+ different training texts .*Ask for fewer"):
        _ = of_table(table, examples=500).text_task
    examples = of_table(table).examples("train")
    examples.label[:] = -1
    with pytest.raises(InputError, match="is more than the 0 different training texts with an answer"):
        draw_examples(examples, task_of(), 2, seed=0, where="x")
    with pytest.raises(InputError, match=r"needs answers in words.* give --data\.answers"):
        draw_examples(examples, TextTask(["value"], "regression"), 2, seed=0, where="x")


def test_examples_of_a_regression_have_the_nearest_value(tmp_path):
    rows = {"text": ["a", "b", "c"], "label": [0.2, 2.4, 9.0]}
    pd.DataFrame(rows).to_csv(tmp_path / "train.csv", index=False)
    options = {"problem": "regression", "answers": ["0", "2.5", "5"], "routing_fraction": 0, "prompt": "{text}"}
    task = TextClassificationData(str(tmp_path / "train.csv"), examples=3, **options).text_task
    assert dict(task.example_pairs) == {"a": "0", "b": "2.5", "c": "5"}


def test_examples_of_texts(tmp_path):
    rows = [{"q": f"What is {i} + 1 ?", "a": f"It is {i + 1}.\n#### {i + 1}"} for i in range(40)] + [
        {"q": "?", "a": ""}
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"source": "q", "target": "a", "prompt": "Question: {text}\nAnswer:", "routing_fraction": 0}
    data = Seq2SeqData(str(path), examples=40, **options)
    task = data.text_task
    assert dict(task.example_pairs) == {f"Question: {row['q']}\nAnswer:": row["a"] for row in rows[:40]}
    assert (task.label_words, task.system, data.batch_size) == ("", "", 32)
    chat = Seq2SeqData(str(path), chat=True, system="Reason.", **options).text_task
    assert (chat.label_words, chat.system, chat.examples) == ("chat", "Reason.", [])
    assert not {"label_words", "system", "examples", "extract"} & Seq2SeqData(str(path), **options).task_fields.keys()
    with pytest.raises(InputError, match="is more than the 40 different training texts with an answer"):
        _ = Seq2SeqData(str(path), examples=41, **options).text_task
    with pytest.raises(InputError, match=r"set --data\.chat true"):
        Seq2SeqData(str(path), system="Reason.", **options)
    with pytest.raises(InputError, match=r"has no place for a text: put \{text\} into --data\.prompt"):
        _ = Seq2SeqData(str(path), **{**options, "prompt": "Translate."}).text_task


def test_examples_of_a_benchmark(tmp_path):
    lines = [f"a{i} film\t{i % 2}" for i in range(60)]
    (tmp_path / "train.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    data = TaskData("glue/sst2", folder=str(tmp_path), splits=["train"], examples=4)
    task = data.text_task
    assert sorted(answer for _, answer in task.example_pairs) == sorted(task.answers * 2)
    assert all(question.startswith(task.prompt.partition("{")[0]) for question, _ in task.example_pairs)


def test_every_text_is_drawn_about_equally_often():
    examples = Examples.of([(f"text {i}",) for i in range(50)], torch.zeros(50, dtype=torch.int64))
    counts = Counter()
    for seed in range(400):
        counts.update(draw_examples(examples, task_of("{text}"), 5, seed=seed, where="x")[::2])
    assert len(counts) == 50
    assert max(counts.values()) < 100


def test_references_without_an_answer(tmp_path):
    path = tmp_path / "val.jsonl"
    rows = [{"source": "x", "target": "#### 1"}, {"source": "y", "target": "none"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(Notice, match=r"extract number finds no answer in 1 of 2 references of .*, the first in row 1"):
        Seq2SeqData(validation=str(path), extract="number").examples("validation")
    with pytest.raises(InputError, match=r"finds no answer in any reference .* the first of which is '#### 1'"):
        Seq2SeqData(validation=str(path), extract="choice").examples("validation")
