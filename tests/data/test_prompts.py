"""How decoder-only models are asked: the tokens of prompts and of the answers after them, chats, long texts."""

import pytest

from elang.data.batches import Reader
from elang.data.benchmarks import TaskData
from elang.data.encoding import encode_examples, token_lists
from elang.data.fast_tokens import bare_tokens
from elang.data.prompts import Prompt
from elang.data.text_classification import TextClassificationData
from elang.errors import InputError
from elang.tasks.text_task import TextTask

CORPUS = ["Review: the film was good, very good.", "Sentiment: positive", "Sentiment: negative", "a dull plot"] * 5
ANSWERS = ["positive", "negative", "very good"]
CHATML = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content | trim + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system text here') }}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + '</s>' }}"
    "{% endif %}{% endfor %}"
)


def make_tokenizer(kind, around="<s> $A", **more):
    """A byte-level BPE (as GPT-2's, Qwen's), or a Unigram or a BPE of SentencePiece (as of Gemma and Llama 2)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>"]
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        learned = trainers.BpeTrainer(
            vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram() if kind == "unigram" else models.BPE(unk_token="<unk>"))
        tokenizer.decoder = decoders.Metaspace()
        options = {"special_tokens": special, "show_progress": False}
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        if kind == "unigram":
            learned = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", **options)
        else:
            learned = trainers.BpeTrainer(vocab_size=200, **options)
    tokenizer.train_from_iterator(CORPUS, learned)
    if kind == "pieces":
        # As Llama 2's is written: the text is one word, and begins with a space.
        tokenizer.pre_tokenizer = None
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    ids = [(token, tokenizer.token_to_id(token)) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    tokenizer.enable_truncation(5)  # as some files have it
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 200}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**names, **more})


def task_of(prompt="Review: {text}\nSentiment:", **more):
    fields = {"answers": ANSWERS, "prompt": prompt, "label_words": "prompt", **more}
    return TextTask.of(["p", "n", "v"], fields)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]


TEXTS = ["the film was good", " a dull plot.", "", "ü </s> {braces}"]


@pytest.mark.parametrize("around", ["<s> $A", "$A", "<s> $A </s>", "$A </s>"])
@pytest.mark.parametrize("kind", ["bytes", "unigram", "pieces"])
@pytest.mark.parametrize("prompt", ["Review: {text}\nSentiment:", "Sentiment: {text}", "Review: {text} good: "])
def test_prompt_and_answer_are_the_tokens_of_the_whole(kind, around, prompt):
    """One space between them, the tokenizer's beginning in front of all, and no end in between."""
    tokenizer = make_tokenizer(kind, around)
    task = task_of(prompt)
    made = Prompt.of(tokenizer, task)
    rows = made.token_lists(tokenizer, ["text"], [(text,) for text in TEXTS], limit=200)[0]["input_ids"]
    begins = [tokenizer.bos_token_id] * around.startswith("<s>")
    for text, row in zip(TEXTS, rows, strict=True):
        asked = prompt.format(text=text).removesuffix(" ") if prompt.endswith(" ") else prompt.format(text=text)
        assert row == [*begins, *ids_of(tokenizer, asked)]
        for answer, tokens in zip(ANSWERS, made.answer_tokens(tokenizer, ANSWERS), strict=True):
            if not text and prompt.endswith("{text}"):
                continue
            assert row + tokens == [*begins, *ids_of(tokenizer, f"{asked} {answer}")]
    assert made.lead == " "


@pytest.mark.parametrize("kind", ["bytes", "unigram", "pieces"])
@pytest.mark.parametrize("end", ["\n", "(", '"', "“", "\uff1a", "\u300c"])
def test_no_space_where_none_belongs(kind, end):
    tokenizer = make_tokenizer(kind)
    made = Prompt.of(tokenizer, task_of("Review: {text} good" + end))
    assert made.lead == ""
    for answer, tokens in zip(ANSWERS, made.answer_tokens(tokenizer, ANSWERS), strict=True):
        assert ids_of(tokenizer, f"a film good{end}{answer}")[-len(tokens) :] == tokens
    # An answer may bring its own.
    spaced = made.answer_tokens(tokenizer, [" positive"])[0]
    assert ids_of(tokenizer, f"a film good{end} positive")[-len(spaced) :] == spaced


def test_a_prompt_needs_a_place_for_the_text():
    with pytest.raises(InputError, match=r"'Which one \{\{text\}\}\?' has no place for a text: put \{text\} into"):
        Prompt.of(make_tokenizer("bytes"), task_of("Which one {{text}}?"))
    assert task_of("{{a}} {text!r:>9}").prompt_fields == ["text"]


def test_a_chat():
    tokenizer = make_tokenizer("bytes", chat_template=CHATML)
    made = Prompt.of(tokenizer, task_of(label_words="chat", system="Be {brief}."))
    (row,) = made.token_lists(tokenizer, ["text"], [("a dull plot",)], limit=200)[0]["input_ids"]
    question = "Review: a dull plot\nSentiment:"
    messages = [{"role": "system", "content": "Be {brief}."}, {"role": "user", "content": question}]
    assert row == tokenizer.apply_chat_template(messages, add_generation_prompt=True, truncation=False)["input_ids"]
    assert (made.start, made.lead) == ((), "")
    (answer,) = made.answer_tokens(tokenizer, ["positive"])
    messages.append({"role": "assistant", "content": "positive"})
    whole = tokenizer.apply_chat_template(messages, truncation=False)["input_ids"]
    assert whole[: len(row) + len(answer)] == row + answer


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_a_chat_that_puts_a_space_before_the_answer(kind):
    tokenizer = make_tokenizer(kind, chat_template=INST)
    made = Prompt.of(tokenizer, task_of(label_words="chat"))
    (row,) = made.token_lists(tokenizer, ["text"], [("good",)], limit=200)[0]["input_ids"]
    messages = [{"role": "user", "content": "Review: good\nSentiment:"}, {"role": "assistant", "content": "positive"}]
    whole = tokenizer.apply_chat_template(messages, truncation=False)["input_ids"]
    assert row + made.answer_tokens(tokenizer, ["positive"])[0] == whole[:-1]
    with pytest.raises(InputError, match=r"cannot be filled .*no system text here.*without --data.system"):
        Prompt.of(tokenizer, task_of(label_words="chat", system="x"))


def test_a_chat_without_a_template():
    with pytest.raises(InputError, match=r"no chat template: leave out --data\.chat"):
        Prompt.of(make_tokenizer("bytes"), task_of(label_words="chat"))
    shouted = make_tokenizer("bytes", chat_template="{{ messages[0].content | upper }}")
    with pytest.raises(InputError, match="does not keep a message"):
        Prompt.of(shouted, task_of(label_words="chat"))


def test_a_chat_is_the_same_tomorrow_and_does_not_think():
    dated = "{{ strftime_now('%d') if date_string is not defined else date_string }}{{ messages[0].content }}"
    thinks = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    made = Prompt.of(make_tokenizer("bytes", chat_template=dated + thinks), task_of(label_words="chat"))
    assert made.template == "26 Jul 2024Review: {text}\nSentiment:<think></think>"


class Slow:
    """A tokenizer that does not tell where its tokens are: each letter is one."""

    is_fast, model_max_length, pad_token_id, padding_side = False, 100, 0, "left"
    model_input_names = ("input_ids",)

    def __call__(self, text, add_special_tokens=True, **options):
        if isinstance(text, str):
            return {"input_ids": [7, *map(ord, text), 8] if add_special_tokens else list(map(ord, text))}
        return {"input_ids": [self(one, add_special_tokens)["input_ids"] for one in text]}


@pytest.mark.parametrize("kind", ["bytes", "unigram", "pieces", "slow"])
def test_of_a_long_prompt_the_text_is_cut(kind):
    """Of two texts the longer one; the template stays, and its end above all."""
    tokenizer = Slow() if kind == "slow" else make_tokenizer(kind)
    fields = {"fields": ["text", "other"], "segments": ["{text}", "{other}"]}
    made = Prompt.of(tokenizer, task_of("{text} | {other}\nSentiment:", **fields))
    long, short = "the film was good, very good " * 20, "a dull plot"
    lists, cut = made.token_lists(tokenizer, ["text", "other"], [(long, short), (short, short)], limit=45)
    first, second = lists["input_ids"]
    assert cut == 1
    assert len(first) == 45 or (kind == "slow" and len(first) <= 45)
    said = "".join(map(chr, first[1:])) if kind == "slow" else tokenizer.decode(first[len(made.start) :])
    assert said.strip().startswith("the film was good")
    if kind in ("slow", "bytes"):
        assert said.endswith("| a dull plot\nSentiment:")
    # Both end with the other text, which is whole, and what comes after it.
    assert first[-8:] == second[-8:]
    assert first[: len(made.start)] == second[: len(made.start)] == list(made.start)
    with pytest.raises(InputError, match=r"The prompt takes \d+ tokens without any text, and 5 are allowed"):
        made.token_lists(tokenizer, ["text", "other"], [(long, short)], limit=5)
    # Answers may take more than the context.
    with pytest.raises(InputError, match=r"and 0 are allowed\. .* the model's context, .* --data\.max_target_length"):
        made.token_lists(tokenizer, ["text", "other"], [(long, short)], limit=-12)


def test_answers_have_room_in_the_context():
    tokenizer = make_tokenizer("bytes", model_max_length=40)
    prompt = Prompt.of(tokenizer, task_of()).reserving(6)
    reader = Reader(tokenizer, True, task_of(), prompt)
    assert (reader.limit(256), reader.limit(20)) == (34, 20)
    given = encode_examples(reader, task_of(), [("good " * 50,), ("good",)], None, reader.limit(256))
    assert given.lengths.tolist()[0] == 34
    assert given.texts.truncated == 1
    few, cut = token_lists(reader, task_of(), [("good " * 50,)], 34)
    assert cut == 1
    assert few[0]["input_ids"] == given.batch([0])["input_ids"][0].tolist()


def test_what_asks_for_label_words(files):
    def asked(**options):
        task = TextClassificationData(train=str(files[0]), **options).text_task
        return task.label_words, task.system, task.prompt

    assert asked() == ("", "", "text: {text}")
    assert asked(prompt="{text}?") == ("prompt", "", "{text}?")
    assert asked(answers=["no", "yes"])[0] == "prompt"
    assert asked(prompt="{text}?", label_words=False)[0] == ""
    assert asked(label_words=True) == ("prompt", "", "text: {text}\nlabel:")
    assert asked(chat=True, system="Short.") == ("chat", "Short.", "text: {text}\nlabel:")
    assert asked(examples=2)[0] == "prompt"
    for options in ({"chat": True}, {"examples": 2}):
        with pytest.raises(InputError, match=r"leave out --data\.label_words false"):
            asked(label_words=False, **options)
    with pytest.raises(InputError, match=r"set --data\.chat true"):
        asked(system="Be brief.")


def test_benchmarks_bring_their_prompts():
    task = TaskData("glue/rte", label_words=True).text_task
    assert task.label_words == "prompt"
    assert Prompt.of(make_tokenizer("bytes"), task).template == task.prompt
    assert TaskData("glue/rte", chat=True, system="Short.").text_task.system == "Short."
    assert TaskData("glue/rte").text_task.label_words == ""


def test_tasks_of_before_are_written_as_before():
    assert not {"label_words", "system"} & TextTask.of(["a", "b"]).plain().keys()
    task = task_of(label_words="chat", system="x")
    assert TextTask.of(task.label_names, task.plain()) == task


@pytest.mark.parametrize("kind", ["bytes", "unigram", "pieces"])
def test_tokens_are_those_of_the_library(kind):
    """They come from the tokenizer's backend, also if its file cuts or pads; one with a method of its own is asked."""
    tokenizer, asked = make_tokenizer(kind), []
    texts = [*CORPUS[:4], "", " a  b ", "</s>x"]
    options = {"add_special_tokens": False, "padding": False, "truncation": False}
    expected = [list(ids) for ids in tokenizer(texts, **options)["input_ids"]]
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)

    class Own(type(tokenizer)):
        def __call__(self, *args, **options):
            asked.append(args)
            return super().__call__(*args, **options)

    assert bare_tokens(tokenizer, texts) == expected
    tokenizer.__class__ = Own
    assert bare_tokens(tokenizer, texts) == expected
    assert len(asked) == 1
