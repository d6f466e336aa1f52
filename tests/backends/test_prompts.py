"""Questions of one's own from a file, as of MMLU and GSM8K: asked with examples, answered, measured, routed."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import FAST, QUIET, split_args, write_splits, write_t5
from data.test_prompts import CHATML, make_tokenizer
from inference.test_serve import Models, posted

from backends.test_causal import word_tokenizer, write_causal
from backends.test_families import texts
from elang import JointPredictor
from elang.backends.causal_generator import CausalGenerator
from elang.backends.loading.load import load_model
from elang.cli.verbs import main
from elang.data.encoding import encode_examples
from elang.data.examples import Examples
from elang.data.text_classification import TextClassificationData
from elang.inference.speed import flops_of
from elang.method.scores import SEQUENCE_SCORES, sequence_scores
from elang.models.objectives.objective import LossOptions
from elang.models.objectives.texts import TextObjective
from elang.notices import Notice, forget_notices, notices
from elang.records.manifest import Manifest
from elang.records.reading import read_records
from elang.records.table import EXAMPLES, Records, write_records
from elang.tasks.text_task import TextTask

LETTERS = ["A", "B", "C", "D"]
WORDS = ["red", "green", "blue", "white", "black", "brown", "grey", "pink"]
COLUMNS = ["question", *LETTERS]
PROMPT = "{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nAnswer:"
DOCS = Path(__file__).parents[2] / "docs" / "language-models.md"


def write_config(path, **others):
    """Write the example of this name in the documentation, with other values in place of its own."""
    (text,) = [block for block in DOCS.read_text("utf-8").split("```") if block.startswith(f"yaml\n# {path.name}\n")]
    for name, value in others.items():
        lines = [line for line in text.splitlines() if line.strip().startswith(f"{name}: ")]
        assert len(lines) == 1
        text = text.replace(lines[0], f"{lines[0].partition(':')[0]}: {value}")
    path.write_text(text.removeprefix("yaml\n"))
    return ["--config", str(path)]


def write_llama(folder, tokenizer):
    """An untrained Llama with a tokenizer, whose answers differ."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer.save_pretrained(folder)
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, initializer_range=0.5, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An untrained Llama that reads whole words, with a chat template."""
    words = ["<s>", "</s>", "<unk>", "which", "is", "?", ".", ":", "Answer", *LETTERS, *WORDS]
    words += ["<|user|>", "<|assistant|>", "<|system|>"]
    return write_llama(tmp_path_factory.mktemp("prompts") / "base", word_tokenizer(words, 300))


def write_choices(path, rows, seed):
    rng = random.Random(seed)
    table = []
    for _ in range(rows):
        words = rng.sample(WORDS, 4)
        answer = rng.randrange(4)
        table.append([f"which is {words[answer]} ?", *words, LETTERS[answer]])
    pd.DataFrame(table, columns=[*COLUMNS, "answer"]).to_csv(path, index=False)


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("choices"), write_choices, 300, 40, ".csv")


@pytest.fixture(scope="module")
def args(choices):
    return [
        *split_args(choices, ".csv"),
        *("--data.text", "[question, A, B, C, D]", "--data.label", "answer", "--data.prompt", PROMPT),
    ]


def plain_answers(folder, texts):
    """The letter that the library's own model finds most probable after each text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    letters = tokenizer.convert_tokens_to_ids(LETTERS)
    answers = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            answers.append(LETTERS[int(model(input_ids=ids).logits[0, -1, letters].argmax())])
    return answers


def asked(task, path):
    """What a model is to read for each row of a file."""
    shown = "".join(f"{question} {answer}\n\n" for question, answer in zip(task[::2], task[1::2], strict=True))
    return [shown + PROMPT.format(**row) for row in pd.read_csv(path).to_dict("records")]


def kinds():
    return [one["kind"] for one in notices()]


def test_questions_with_choices_from_a_file(base, choices, tmp_path, capsys):
    """As with MMLU: one column for each choice, examples in front, the letters as label words."""
    output, files = tmp_path / "records.parquet", {"train": choices / "train.csv", "validation": choices / "val.csv"}
    config = write_config(tmp_path / "choices.yaml", **files, model=base, output=output)
    assert main(["score", *config, *QUIET]) == 0
    splits, about = read_records(str(output), LETTERS, "classification")
    examples = about[EXAMPLES]
    assert len(examples) == 10
    train = {PROMPT.format(**row): row["answer"] for row in pd.read_csv(choices / "train.csv").to_dict("records")}
    assert all(train[question] == answer for question, answer in zip(examples[::2], examples[1::2], strict=True))
    expected = plain_answers(base, asked(examples, choices / "val.csv"))
    assert [LETTERS[i] for i in splits["validation"].prediction.tolist()] == expected
    assert len(set(expected)) > 1
    right = sum(a == b for a, b in zip(expected, pd.read_csv(choices / "val.csv")["answer"], strict=True))
    assert f"validation: 40 examples, accuracy {right / 40:.4f}" in capsys.readouterr().out


def test_numbered_choices(choices, tmp_path):
    """As MMLU is published: the answer is a number from 0."""
    frame = pd.read_csv(choices / "train.csv")
    frame["answer"] = frame["answer"].map(LETTERS.index)
    frame.to_csv(tmp_path / "train.csv", index=False)
    options = {"text": COLUMNS, "label": "answer", "prompt": PROMPT, "answers": LETTERS}
    data = TextClassificationData(str(tmp_path / "train.csv"), **options)
    assert data.text_task.label_names == ["0", "1", "2", "3"]
    assert data.text_task.answers == LETTERS


def test_an_encoder_reads_two_texts():
    data = TextClassificationData("x.csv", text=COLUMNS, label_names=["0", "1"])
    segments = data.text_task.segment_texts(("which ?", "red", "blue", "grey", "pink"))
    assert segments == [("which ?", "A: red B: blue C: grey D: pink")]
    spaced = TextClassificationData("x.csv", text=["a b", "c", "d"], label_names=["0", "1"]).text_task
    assert spaced.fields == ["text1", "text2", "text3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base, args):
    """A model that was trained with three examples, as a folder."""
    folder = tmp_path_factory.mktemp("trained")
    fit = ["fit", *args, *FAST, "--model.model", base, "--model.output", str(folder / "model")]
    assert main([*fit, "--data.examples", "3", "--trainer.max_steps", "2"]) == 0
    return str(folder / "model")


def test_a_trained_model_keeps_its_examples(trained, base, choices, args, tmp_path):
    """Its folder, its records, a prediction and a server ask alike, with the training file or without."""
    examples = Manifest.read(trained).task["examples"]
    assert len(examples) == 6
    val = choices / "val.csv"
    expected = plain_answers(trained, asked(examples, val))
    rows = list(pd.read_csv(choices / "val.csv")[COLUMNS].itertuples(index=False, name=None))
    predictor = JointPredictor(None, trained, device="cpu")
    assert [one.label for one in predictor(rows)] == expected
    score = ["score", "--model.model", trained, *QUIET, "--model.output", str(tmp_path / "records.parquet")]
    for given in (args, args[2:], [*args, "--data.examples", "3"]):
        assert main([*score, *given]) == 0
        splits, about = read_records(str(tmp_path / "records.parquet"), LETTERS, "classification")
        assert about[EXAMPLES] == examples
        assert [LETTERS[i] for i in splits["validation"].prediction.tolist()] == expected
    for others in (["--data.examples", "2"], ["--data.examples", "3", "--data.examples_seed", "1"]):
        with pytest.warns(Notice, match=r"trained with 3 examples in its prompt and is shown these, not the \d others"):
            assert main([*score, *args, *others]) == 0
        assert read_records(str(tmp_path / "records.parquet"), LETTERS, "classification")[1][EXAMPLES] == examples
    # As the Super of a Swift that was trained without.
    plain = tmp_path / "plain"
    fit = ["fit", *args, *FAST, "--model.model", base, "--model.output", str(plain), "--trainer.max_steps", "1"]
    assert main(fit) == 0
    for swift, super_, shown in ((plain, trained, expected), (trained, plain, plain_answers(plain, asked([], val)))):
        pair = JointPredictor(str(swift), str(super_), "-inf", device="cpu")
        assert [one.label for one in pair(rows)] == shown


def test_examples_are_read_once_and_charged_to_no_input(trained, choices, args, tmp_path):
    """In the records, from which thresholds are chosen, as in `bench`; the answers go on from what was read."""
    rows = list(pd.read_csv(choices / "val.csv")[COLUMNS].itertuples(index=False, name=None))
    predictor = JointPredictor(None, trained, device="cpu")
    costs, answers = flops_of(predictor, predictor.super_, rows)["flops"], [one.label for one in predictor(rows)]
    prefix = predictor.super_.prefix
    assert prefix._layers[0][0].shape[2] == len(prefix.tokens) > 30
    score = ["score", "--model.model", trained, *args, *QUIET, "--model.output", str(tmp_path / "records.parquet")]
    assert main(score) == 0
    records = read_records(str(tmp_path / "records.parquet"), LETTERS, "classification")[0]["validation"]
    torch.testing.assert_close(records.flops[records.id.argsort()], costs)
    prefix.tokens = ()
    assert [one.label for one in predictor(rows)] == answers
    assert (flops_of(predictor, predictor.super_, rows)["flops"] > 1.5 * costs).all()


def test_an_untrained_model_keeps_its_examples_in_a_folder(base, choices, args, tmp_path):
    """No step of training is taken: it answers as it was published, after the same prompt everywhere."""
    fit = ["fit", *args, *FAST, "--model.model", base, "--model.output", str(tmp_path / "model")]
    assert main([*fit, "--data.examples", "3", "--trainer.max_steps", "0"]) == 0
    examples = Manifest.read(tmp_path / "model").task["examples"]
    assert len(examples) == 6
    rows = list(pd.read_csv(choices / "val.csv")[COLUMNS].itertuples(index=False, name=None))
    answers = JointPredictor(None, str(tmp_path / "model"), device="cpu")(rows)
    assert [one.label for one in answers] == plain_answers(base, asked(examples, choices / "val.csv"))
    # As a Swift it gets its router and thresholds.
    records = str(tmp_path / "super.parquet")
    score = ["score", "--model.model", str(tmp_path / "model"), *args, *QUIET, "--model.output", records]
    assert main(score) == 0
    swift = ["--model", "SwiftModule", "--model.super_records", records, "--model.output", str(tmp_path / "swift")]
    assert main([*fit, *swift, "--data.examples", "2", "--trainer.max_steps", "0"]) == 0
    manifest = Manifest.read(tmp_path / "swift")
    assert "router" in manifest.thresholds
    assert len(manifest.task["examples"]) == 4


def test_records_of_other_examples_are_not_mixed_up_silently(base, args, tmp_path):
    paths = {}
    for name, more in (("none", []), ("two", ["--data.examples", "2"])):
        paths[name] = str(tmp_path / f"{name}.parquet")
        score = ["score", "--model.model", base, *args, *more, *QUIET, "--model.output", paths[name]]
        assert main(score) == 0
    joint = ["validate", *args, *QUIET, "--model.output", str(tmp_path / "joint")]
    forget_notices()
    assert main([*joint, "--model.swift_model", paths["none"], "--model.super_model", paths["none"]]) == 0
    assert "other-examples" not in kinds()
    assert main([*joint, "--model.swift_model", paths["none"], "--model.super_model", paths["two"]]) == 0
    told = json.loads((tmp_path / "joint" / "made.json").read_text())["notices"]
    (text,) = [one["text"] for one in told if one["kind"] == "other-examples"]
    assert f"('{paths['none']}' 0, '{paths['two']}' 2)" in text
    # A Swift that learns from a Super with other examples.
    swift = ["fit", "--model", "SwiftModule", *args, *FAST, "--model.model", base, "--trainer.max_steps", "1"]
    for name, number in (("none", 0), ("two", 1)):
        forget_notices()
        output = ["--model.super_records", paths[name], "--model.output", str(tmp_path / f"swift-{name}")]
        assert main([*swift, *output]) == 0
        assert kinds().count("other-examples") == number


def test_thresholds_are_for_the_examples_that_they_were_chosen_with(base, trained, args, tmp_path, fails):
    joint = ["validate", *args, *QUIET, "--model.swift_model", base, "--model.super_model", base]
    assert main([*joint, "--data.examples", "2", "--model.output", str(tmp_path / "two")]) == 0
    again = [*joint, "--model.thresholds", str(tmp_path / "two"), "--model.output", str(tmp_path / "again")]
    assert main([*again, "--data.examples", "2"]) == 0
    fails(again, "chosen with 2 examples in the prompt", "here it is shown 0 others", "--data.examples")
    # Of a finished model they are its own, whatever the data say.
    own = ["validate", *args, *QUIET, "--model.swift_model", trained, "--model.super_model", trained]
    assert main([*own, "--model.output", str(tmp_path / "own")]) == 0
    assert Manifest.read(tmp_path / "own").task["examples"] == Manifest.read(trained).task["examples"]
    assert JointPredictor(trained, trained, thresholds=str(tmp_path / "own"), device="cpu").threshold < float("inf")


def test_bad_examples(base, choices, args, tmp_path, fails):
    score = ["score", "--model.model", base, *QUIET, "--model.output", str(tmp_path / "records.parquet")]
    fails([*score, *args[2:], "--data.examples", "2"], "drawn from the training file", "Set --data.train")
    fails([*score, *args, "--data.examples", "5000"], "--data.examples 5000 is more than the", "Ask for fewer")
    fails([*score, *args, "--data.examples", "14"], "its 14 examples included", "fewer --data.examples")
    many = [*args, "--data.examples", "40", "--data.max_length", "2000"]
    fails([*score, *many], "its 40 examples included", "299 are allowed", "fewer --data.examples")
    fails([*score, *args, "--data.examples", "2", "--data.label_words", "false"], "leave out --data.label_words false")
    fails([*score, *args[:-1], "Which is it ?"], "has no place for a text", "--data.prompt")


def test_a_chat_is_shown_its_examples_as_turns(base, choices, args, tmp_path):
    fit = ["fit", *args, *FAST, "--model.model", base, "--trainer.max_steps", "1"]
    assert main([*fit, "--data.chat", "true", "--data.examples", "2", "--model.output", str(tmp_path / "model")]) == 0
    model = load_model(str(tmp_path / "model"))
    examples = model.task.examples
    row = pd.read_csv(choices / "val.csv").iloc[0]
    said = [*examples, PROMPT.format(**row)]
    messages = [{"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(said)]
    expected = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    lists, _ = model.prompt.token_lists(model.tokenizer, model.task.fields, [tuple(row[COLUMNS])], limit=300)
    assert lists["input_ids"] == [expected]


def test_an_encoder_decoder_tells_that_it_reads_no_examples(choices, args, tmp_path):
    base = str(write_t5(tmp_path / "t5", (choices / "train.csv").read_text().splitlines()))
    forget_notices()
    score = ["score", "--model.model", base, *args, *QUIET, "--model.output", str(tmp_path / "records.parquet")]
    assert main([*score, "--data.examples", "2"]) == 0
    (text,) = [one["text"] for one in notices() if one["kind"] == "other-examples"]
    assert "reads its input alone, without the 2 examples" in text


# Generated answers.


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """Questions as of GSM8K, and the answers of two models to them."""
    folder = tmp_path_factory.mktemp("sums")
    rng = random.Random(0)
    rows = {
        name: [(rng.randrange(2000), rng.randrange(9)) for _ in range(n)] for name, n in (("train", 80), ("val", 40))
    }
    splits = {"swift": {}, "super": {}}
    for name, numbers in rows.items():
        lines = [{"question": f"What is {a} + {b} ?", "answer": f"We add {b}.\n#### {a + b:,}"} for a, b in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        key = Examples.of([(line["question"],) for line in lines], torch.zeros(len(lines))).key
        source = {"train": "train", "val": "validation"}[name]
        for who in splits:
            texts = []
            for i, (a, b) in enumerate(numbers):
                right = f"It is {a + b}.0 in all." if i % 2 else f"so {a + b:,}\n\nand more"
                wrong = "I do not know" if i % 5 == 0 else f"It is {a - b - 1}"
                texts.append(right if (who == "super" and i % 10) or i % 4 == 0 else wrong)
            n = torch.arange(len(texts))
            scores = torch.rand(len(texts), len(SEQUENCE_SCORES), generator=torch.Generator().manual_seed(0))
            flops = torch.full((len(texts),), 1.0 if who == "swift" else 9.0, dtype=torch.float64)
            splits[who][source] = Records(n, torch.zeros_like(n), key=key, texts=texts, scores=scores, flops=flops)
    for who, records in splits.items():
        write_records(folder / f"{who}.parquet", records, [])
    return folder, splits


def sums_args(folder, output):
    files = {"train": folder / "train.jsonl", "validation": folder / "val.jsonl"}
    config = write_config(output / "sums.yaml", **files)
    return [*config, "--data.qualities", "[number_match, exact_text]", "--data.routing_fraction", "0.4"]


def test_questions_with_worked_answers_from_a_file(sums, tmp_path, capsys):
    """As with GSM8K: numbers are compared, what has none is wrong and counted, and a threshold can be certified."""
    folder, _ = sums
    pair = ["--model.swift_model", str(folder / "swift.parquet"), "--model.super_model", str(folder / "super.parquet")]
    joint = tmp_path / "joint"
    run = ["validate", *sums_args(folder, tmp_path), *pair, *QUIET, "--model.output", str(joint)]
    assert main(run) == 0
    summary = json.loads((joint / "summary.json").read_text())
    frame = pd.read_parquet(joint / "records.parquet").query("split == 'validation'")
    lines = [json.loads(line) for line in (folder / "val.jsonl").read_text().splitlines()]
    expected = [line["answer"].split("#### ")[1].replace(",", "") for line in lines]
    for who in ("swift", "super"):
        answers = [None if pd.isna(answer) else answer for answer in frame[f"{who}_answer"]]
        right = [a is not None and float(a) == float(b) for a, b in zip(answers, expected, strict=True)]
        assert 0 < sum(right) < 40
        quality = summary["qualities"]["number_match"][who]["quality"]
        assert quality == pytest.approx(sum(right) / 40)
        missing = answers.count(None)
        text = f"in {missing} of the 40 texts of the {who.capitalize()} no answer is found"
        assert missing
        assert any(text in caution for caution in summary["cautions"])
    numbers, texts = (summary["qualities"][name]["super"]["quality"] for name in ("number_match", "exact_text"))
    assert texts < numbers
    assert summary["worth"] == {"largest": 1.0, "unit": "number_match, from 0 to 1"}
    assert (frame["gain"] == 1).any()
    assert "no answer is found (--data.extract)" in " ".join(capsys.readouterr().out.split())
    assert main(["calibrate", str(joint), "--max_regret", "0.5", "--confidence", "0.6"]) == 0
    # No line equals the first one of a worked answer.
    assert main([*run, "--data.extract", "first_line"]) == 0
    assert json.loads((joint / "summary.json").read_text())["qualities"]["number_match"]["super"]["quality"] == 0


def test_answers_of_predict_and_of_score(sums, tmp_path):
    """The text stays, and the answer in it comes beside it; `score` counts texts without one."""
    folder, _ = sums
    corpus = (folder / "train.jsonl").read_text().splitlines()
    base = str(write_t5(tmp_path / "base", corpus))
    args = [*sums_args(folder, tmp_path), "--data.max_target_length", "4", "--data.extract", "#### (-?[0-9,]+)"]
    fit = ["fit", *args, *FAST, "--model.model", base, "--model.output", str(tmp_path / "model")]
    forget_notices()
    assert main([*fit, "--trainer.max_steps", "40"]) == 0
    assert "no-answer-found" not in kinds()
    score = ["score", "--model.model", str(tmp_path / "model"), *args, *QUIET]
    assert main([*score, "--model.output", str(tmp_path / "records.parquet")]) == 0
    told = [one["text"] for one in notices() if one["kind"] == "no-answer-found"]
    assert any("finds no answer in 40 of 40 texts on 'validation'" in text for text in told)
    assert Manifest.read(tmp_path / "model").task["extract"] == "#### (-?[0-9,]+)"
    values = json.loads((tmp_path / "model" / "elang.json").read_text())
    values["task"]["extract"] = r"^(.{2})"
    (tmp_path / "model" / "elang.json").write_text(json.dumps(values))
    run = ["predict", "--swift_model", str(tmp_path / "model"), "--super_model", str(tmp_path / "model")]
    run += ["--input", str(folder / "val.jsonl"), "--text", "question", "--output", str(tmp_path / "answers.jsonl")]
    assert main([*run, "--threshold", "inf", "--score", "nll_mean"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    assert [row["answer"] for row in rows] == [row["label"][:2].strip() if row["label"][1:] else None for row in rows]
    assert sum(row["answer"] is not None for row in rows) > 20, [row["label"] for row in rows]
    # The same in Python and in a server's reply.
    predictor = JointPredictor(str(tmp_path / "model"), str(tmp_path / "model"), "inf", "nll_mean", device="cpu")
    questions = pd.read_json(folder / "val.jsonl", lines=True)["question"].tolist()
    answers = predictor(questions)
    assert [one.answer for one in answers] == [row["answer"] for row in rows]
    assert "answer=" not in repr(answers[0])
    (response,) = posted(Models(predictor).service(), {"texts": questions[:20]})
    assert [one["answer"] for one in response.json()["answers"]] == [row["answer"] for row in rows[:20]]


def test_a_text_ends_where_the_next_example_would_begin(tmp_path):
    """Its tokens up to there, alone and in a batch; the answer is what stands before, and costs no more."""
    task = TextTask([], "sequence", segments=[], prompt="Q{text}Z(")
    model = load_model(write_causal(tmp_path / "model"), task).eval()
    model.configure_generation(10)
    given = encode_examples(model.reader, task, texts(), None, model.reader.limit(60))
    with torch.no_grad():
        free = model.generate(model.encode(given.batch(list(range(6)))))
        said = model.texts(model.padded_ids(free))
        stop = next(text[2:4] for text in said if text[2:4] and text[2:4] not in text[:3])
        model.stop = stop
        batch = model.generate(model.encode(given.batch(list(range(6)))))
        alone = [model.generate(model.encode(given.batch([i]))) for i in range(6)]
    stopped = 0
    for i, text in enumerate(said):
        place = text.find(stop)
        steps = int(free.steps[i]) if place < 0 else place + 2
        stopped += place >= 0
        scores = model._score(model.encode(given.batch([i])), free.ids[i : i + 1, :steps])
        for made, row in ((batch, i), (alone[i], 0)):
            assert int(made.steps[row]) == steps
            assert made.ids[row, :steps].tolist() == free.ids[i, :steps].tolist()
            assert model.texts(model.padded_ids(made))[row] == text.partition(stop)[0]
            torch.testing.assert_close(
                made.scores[row], sequence_scores(scores, torch.tensor([steps]))[0], atol=1e-4, rtol=0
            )
        assert alone[i].ids.shape[1] == steps
    assert stopped > 0
    costs = [model.flops(given.batch([0]), steps=made.steps[:1])["flops"].item() for made in (free, batch)]
    assert (costs[1] < costs[0]) == (stop in said[0])
    # Chosen among beams it may be longer; what follows is left out.
    model.configure_generation(10, 3)
    with torch.no_grad():
        made = model.generate(model.encode(given.batch(list(range(6)))))
    assert not any(stop in text for text in model.texts(model.padded_ids(made)))


def test_what_deferring_gains_is_counted_in_answers(tmp_path, monkeypatch):
    """The router of a Swift learns from what is found in both texts, not from the texts."""
    task = TextTask([], "sequence", segments=[], prompt="Q{text}Z(", extract="number", qualities=["number_match"])
    model = load_model(write_causal(tmp_path / "model"), task)
    monkeypatch.setattr(CausalGenerator, "texts", lambda self, ids: ["It is 7.", "none", "8"])
    data = SimpleNamespace(references=lambda split, ids: ["so #### 7", "#### 1,000", "#### 8"])
    super_ = Records(torch.arange(3), torch.zeros(3), texts=["none", "about 1000.0", "#### 8"])
    objective = TextObjective(model, LossOptions(), None, 4)
    _, gain, _ = objective.gain({"id": torch.arange(3), "ids": torch.zeros(3, 1)}, super_, data, "number_match")
    assert gain.tolist() == [-1, 1, 0]


def test_samples_agree_by_the_answer_in_them(tmp_path, monkeypatch):
    task = TextTask([], "sequence", segments=[], prompt="Q{text}Z(", extract="number")
    model = load_model(write_causal(tmp_path / "model"), task).eval()
    model.configure_generation(4)
    given = encode_examples(model.reader, task, [("ab",), ("cd",)], None, 30)
    made = [*("It is 7", "so 7.0", "#### 7", "7", "8"), *("none", "no", "7", "none", "")]
    monkeypatch.setattr(CausalGenerator, "texts", lambda self, ids: made)
    with torch.no_grad():
        answer = model.generate(model.encode(given.batch([0, 1])))
        assert model.score_of("agreement", answer).tolist() == pytest.approx([0.4, 0.8])


def test_questions_are_generated_after_examples(sums, tmp_path):
    """A language model is asked with them, greedily and in a chat, and its folder keeps them."""
    folder, _ = sums
    tokenizer = make_tokenizer("bytes", model_max_length=2000, chat_template=CHATML)
    base = write_llama(tmp_path / "base", tokenizer)
    args = [*sums_args(folder, tmp_path), "--data.examples", "2", "--data.max_target_length", "4"]
    for chat in ("false", "true"):
        output = tmp_path / f"model-{chat}"
        fit = ["fit", *args, *FAST, "--model.model", base, "--model.output", str(output), "--data.chat", chat]
        assert main([*fit, "--trainer.max_steps", "1"]) == 0
        model = load_model(str(output))
        assert isinstance(model, CausalGenerator)
        assert len(model.task.examples) == 4
        assert model.task.example_pairs[0][1] in model.prompt.template
        assert model.stop == ("" if chat == "true" else "\n\nQuestion:")
