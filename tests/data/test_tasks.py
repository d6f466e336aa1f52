"""The task table on the benchmarks' own files and on the hub's rows: examples, prompts, metrics and submissions."""

import csv
import json
import random
import re
import shutil
from collections import Counter

import pandas as pd
import pytest
import torch
from benchmark_files import ALL_TASKS, GLUE_FOLDERS, SIZES, SUPERGLUE_FOLDERS, made_rows, write_benchmarks
from conftest import QUIET, write_model

from elang.data import benchmarks
from elang.data.benchmarks import TaskData
from elang.data.glue.files import answer_f1, read_rows, write_submission
from elang.data.glue.table import TASKS, find_tasks
from elang.errors import InputError
from elang.evaluation.pair import PairAnswers, pair_curves
from elang.method.deferral import route
from elang.method.quality.registry import QUALITIES

CLASSES = {
    "glue/cola": ["unacceptable", "acceptable"],
    "glue/sst2": ["negative", "positive"],
    "glue/mrpc": ["not_equivalent", "equivalent"],
    "glue/stsb": ["similarity"],
    "glue/qqp": ["not_duplicate", "duplicate"],
    "glue/mnli": ["entailment", "neutral", "contradiction"],
    "glue/mnli-mm": ["entailment", "neutral", "contradiction"],
    "glue/qnli": ["entailment", "not_entailment"],
    "glue/rte": ["entailment", "not_entailment"],
    "glue/wnli": ["not_entailment", "entailment"],
    "superglue/boolq": ["False", "True"],
    "superglue/cb": ["entailment", "contradiction", "neutral"],
    "superglue/copa": ["choice1", "choice2"],
    "superglue/multirc": ["False", "True"],
    "superglue/record": [str(i) for i in range(128)],
    "superglue/rte": ["entailment", "not_entailment"],
    "superglue/wic": ["False", "True"],
    "superglue/wsc": ["False", "True"],
}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Every task's files."""
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


def folder_of(files, task):
    return str(files / task.partition("/")[0])


# The hub's rows, by the code of its own scripts as read, and not by ours.


def mend_span(row, k):
    said, text = row[f"span{k}_text"], row["text"]
    if said not in text:
        lower = text.split()[row[f"span{k}_index"]][0].islower()
        said = (said[:1].lower() if lower else said[:1].upper()) + said[1:]
        row[f"span{k}_text"] = re.sub(r"\.+$", "", said)


def hub_frame(task, split):
    """A split as `datasets` gives it as a frame."""
    from datasets import Dataset

    rows = []
    for index, made in enumerate(made_rows(task, split)):
        if task == "superglue/multirc":
            rows += [
                {
                    "paragraph": made["text"],
                    "question": q["question"],
                    "answer": a["text"],
                    "idx": {"paragraph": made["idx"], "question": q["idx"], "answer": a["idx"]},
                    "label": a["label"],
                }
                for q in made["questions"]
                for a in q["answers"]
            ]
        elif task == "superglue/record":
            entities = list({made["text"][a : b + 1] for a, b in made["entities"]})
            random.Random(index).shuffle(entities)
            rows += [
                {
                    "passage": made["text"],
                    "query": q["query"],
                    "entities": entities,
                    "answers": sorted(set(q["answers"])),
                    "idx": {"passage": made["idx"], "query": q["idx"]},
                }
                for q in made["queries"]
            ]
        else:
            row = dict(made)
            if task == "superglue/wsc":
                mend_span(row, 1)
                mend_span(row, 2)
            rows.append({**row, "idx": index})
    return Dataset.from_list(rows).to_pandas()


@pytest.fixture
def hub(monkeypatch):
    """The hub, offline."""
    asked = []

    def read_frame(split, name, config):
        short = "wsc" if config == "wsc.fixed" else config
        half = re.fullmatch(r"(validation|test)_(mis)?matched", split)
        task = f"{'superglue' if 'super_glue' in name else 'glue'}/{short}{'-mm' if half and half[2] else ''}"
        asked.append((split, name, config))
        return hub_frame(task, half[1] if half else split)

    monkeypatch.setattr(benchmarks, "read_frame", read_frame)
    return asked


def all_parts(examples):
    """Everything that is known of a split, as plain values that can be compared."""
    return {
        "texts": examples.texts,
        "id": examples.id.tolist(),
        "key": examples.key.tolist(),
        "label": examples.label.nan_to_num(-77.0).tolist(),
        "type": examples.label.dtype,
        "choices": examples.choices,
        "targets": {name: column.tolist() for name, column in examples.targets.items()},
    }


def test_the_table_has_every_task():
    assert list(TASKS) == ALL_TASKS
    assert {task.name for task in find_tasks("glue")} == {f"glue/{name}" for name in GLUE_FOLDERS}
    assert {task.name for task in find_tasks("superglue")} == {f"superglue/{name}" for name in SUPERGLUE_FOLDERS}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("task", ALL_TASKS)
def test_the_same_examples_either_way(task, split, files, hub):
    own = TaskData(task, folder_of(files, task)).read(split)
    theirs = TaskData(task).read(split)
    assert len(hub) == 1
    assert all_parts(own) == all_parts(theirs)
    assert own.labelled == (split != "test")


def test_where_the_hub_is_asked(hub):
    """Data set, configuration and split; the pinned revision is the table's."""
    for task, wanted in {
        "glue/mnli": [("validation_matched", "mnli"), ("test_matched", "mnli")],
        "glue/mnli-mm": [("validation_mismatched", "mnli"), ("test_mismatched", "mnli")],
        "glue/sst2": [("validation", "sst2"), ("test", "sst2")],
        "superglue/wsc": [("validation", "wsc.fixed"), ("test", "wsc.fixed")],
    }.items():
        hub.clear()
        data = TaskData(task)
        for split in ("validation", "test"):
            data.read(split)
        assert [(split, config) for split, _, config in hub] == wanted
        name, _, revision = hub[0][1].partition("@")
        assert name == ("nyu-mll/glue" if task.startswith("glue") else "aps/super_glue")
        assert re.fullmatch("[0-9a-f]{40}", revision)


@pytest.mark.parametrize("task", [name for name in ALL_TASKS if name not in ("superglue/multirc", "superglue/record")])
def test_own_files_row_by_row(task, files):
    """Texts, labels and ids are those that were put into the files, whatever the files look like."""
    data = TaskData(task, folder_of(files, task))
    assert data.label_names == CLASSES[task]
    for split, size in SIZES.items():
        made, found = made_rows(task, split), data.read(split)
        assert len(found) == size
        assert found.id.tolist() == list(range(size))
        if task == "superglue/wsc":
            continue
        assert found.texts == [tuple(row[name] for name in data.text_task.fields) for row in made]
        unknown = float("nan") if task == "glue/stsb" else -1
        known = [unknown if row["label"] == -1 else row["label"] for row in made]
        assert torch.allclose(found.label.double(), torch.tensor(known).double(), equal_nan=True)
        if task == "superglue/copa":
            assert found.choices == [(row["choice1"], row["choice2"]) for row in made]
        else:
            assert found.choices is None
        assert found.targets == {}


def test_quirks_of_the_files(files):
    """That the files have what the benchmarks' have, so that the tests above mean something."""
    glue = files / "glue"
    assert (glue / "MRPC" / "train.tsv").read_bytes().startswith(b"\xef\xbb\xbfQuality\t")
    assert b"\r\n" in (glue / "MRPC" / "train.tsv").read_bytes()
    for name in ("MRPC/train.tsv", "QQP/train.tsv"):
        assert any(line.count('"') % 2 for line in (glue / name).read_text("utf-8").splitlines())
    assert (glue / "CoLA" / "train.tsv").read_text().startswith("gj04\t")
    assert (glue / "CoLA" / "test.tsv").read_text().startswith("index\tsentence\n")
    widths = {name: len((glue / "MNLI" / f"{name}.tsv").read_text().split("\n")[0].split("\t")) for name in MNLI_FILES}
    assert widths == MNLI_FILES


MNLI_FILES = {"train": 12, "dev_matched": 16, "dev_mismatched": 16, "test_matched": 10, "test_mismatched": 10}


def test_broken_lines_are_left_out_and_said_where_the_hub_does(files, recwarn):
    data = TaskData("glue/qqp", folder_of(files, "glue/qqp"))
    assert len(data.read("train")) == SIZES["train"]
    said = [str(w.message) for w in recwarn if "broken lines" in str(w.message)]
    assert len(said) == 1
    assert said[0].startswith("2 broken lines")
    assert said[0].endswith("first line 7.")


def test_multirc_lays_passages_flat_and_groups_by_question(files):
    data = TaskData("superglue/multirc", folder_of(files, "superglue/multirc"))
    assert [len(data.read(split)) for split in SIZES] == [24, 12, 4]
    found = data.read("validation")
    passages = made_rows("superglue/multirc", "validation")
    flat = [(p, q, a) for p in passages for q in p["questions"] for a in q["answers"]]
    assert [t[1:] for t in found.texts] == [(q["question"], a["text"]) for _, q, a in flat]
    assert found.label.tolist() == [a["label"] for _, _, a in flat]
    # Questions of two passages have one number, and are two groups.
    assert found.targets["group"].tolist() == [i // 2 for i in range(12)]
    assert passages[0]["text"].startswith("<b>Sent 1: </b>")
    assert passages[0]["text"].endswith(".<br>")
    assert found.texts[0][0].startswith("Sent 1: ")
    assert " .Sent" not in found.texts[0][0]
    assert not re.search("[<>]", found.texts[0][0])


def test_record_weighs_every_candidate_against_every_answer(files):
    data = TaskData("superglue/record", folder_of(files, "superglue/record"))
    assert [len(data.read(split)) for split in SIZES] == [24, 12, 6]
    found = data.read("validation")
    queries = [(p, q) for p in made_rows("superglue/record", "validation") for q in p["queries"]]
    for i, (passage, query) in enumerate(queries):
        candidates = sorted({passage["text"][a : b + 1] for a, b in passage["entities"]})
        assert found.choices[i] == tuple(candidates)
        assert found.texts[i][2] == ", ".join(candidates)
        for k, said in enumerate(candidates):
            assert found.targets["answer_f1"][i, k] == pytest.approx(max(token_f1(said, a) for a in query["answers"]))
            assert found.targets["answer_exact"][i, k] == max(plain(said) == plain(a) for a in query["answers"])
        assert not found.targets["answer_f1"][i, len(candidates) :].any()
        best = candidates[int(found.label[i])]
        assert plain(best) in [plain(a) for a in query["answers"]]
    # "the US Army" is "US Army", and "Lopez" a part of "Ana Lopez".
    scores = found.targets["answer_f1"][0]
    assert scores[found.choices[0].index("Lopez")] == 1
    assert scores[found.choices[0].index("Ana Lopez")] == pytest.approx(2 / 3)
    test = data.read("test")
    assert test.label.tolist() == [-1] * 6
    assert not test.targets["answer_f1"].any()


def plain(text):
    return [w for w in re.sub(r"[^\w\s]", "", text.lower()).split() if w not in ("a", "an", "the")]


def token_f1(said, right):
    a, b = plain(said), plain(right)
    same = sum((Counter(a) & Counter(b)).values())
    return 0.0 if not same else 2 / (len(a) / same + len(b) / same)


# What models are asked.

PROMPTS = {
    "glue/cola": ({"sentence": "S"}, "cola sentence: S"),
    "glue/sst2": ({"sentence": "S"}, "sst2 sentence: S"),
    "glue/mrpc": ({"sentence1": "A", "sentence2": "B"}, "mrpc sentence1: A sentence2: B"),
    "glue/stsb": ({"sentence1": "A", "sentence2": "B"}, "stsb sentence1: A sentence2: B"),
    "glue/qqp": ({"question1": "A", "question2": "B"}, "qqp question1: A question2: B"),
    "glue/mnli": ({"premise": "P", "hypothesis": "H"}, "mnli hypothesis: H premise: P"),
    "glue/mnli-mm": ({"premise": "P", "hypothesis": "H"}, "mnli hypothesis: H premise: P"),
    "glue/qnli": ({"question": "Q", "sentence": "S"}, "qnli question: Q sentence: S"),
    "glue/rte": ({"sentence1": "A", "sentence2": "B"}, "rte sentence1: A sentence2: B"),
    "glue/wnli": ({"sentence1": "A", "sentence2": "B"}, "wnli sentence1: A sentence2: B"),
    "superglue/boolq": ({"passage": "P", "question": "Q"}, "boolq passage: P question: Q"),
    "superglue/cb": ({"premise": "P", "hypothesis": "H"}, "cb hypothesis: H premise: P"),
    "superglue/copa": (
        {"premise": "P", "question": "cause", "choice1": "A", "choice2": "B"},
        "copa choice1: A choice2: B premise: P question: cause",
    ),
    "superglue/multirc": (
        {"paragraph": "<b>Sent 1: </b>One.<br><b>Sent 2: </b>Two.<br>", "question": "Q", "answer": "A"},
        "multirc question: Q answer: A paragraph: Sent 1: One. Sent 2: Two. ",
    ),
    "superglue/record": (
        {
            "passage": 'Who?\n@highlight\nAnn\n@highlight\nsaid "no"\n@highlight\nBo',
            "query": "Q",
            "entities": ["Ann", "Bo"],
        },
        'record query: Q entities: Ann, Bo passage: Who? Ann. said "no" Bo',
    ),
    "superglue/rte": ({"premise": "P", "hypothesis": "H"}, "rte hypothesis: H premise: P"),
    "superglue/wic": (
        {"word": "W", "sentence1": "A", "sentence2": "B"},
        "wic sentence1: A sentence2: B word: W",
    ),
    "superglue/wsc": (
        {
            "text": "The actress was named Terpsichore , but she changed it to Tina a few years ago.",
            "span1_index": 11,
            "span1_text": "Tina",
            "span2_index": 9,
            "span2_text": "it",
        },
        "wsc text: The actress was named Terpsichore , but she changed # it # to * Tina * a few years ago.",
    ),
}
SEGMENTS = {
    "glue/cola": ("S",),
    "glue/sst2": ("S",),
    "glue/mnli": ("P", "H"),
    "glue/qnli": ("Q", "S"),
    "glue/rte": ("A", "B"),
    "superglue/boolq": ("P", "Q"),
    "superglue/wic": ("W: A", "B"),
    "superglue/multirc": ("Sent 1: One. Sent 2: Two. ", "Q A"),
    "superglue/wsc": (PROMPTS["superglue/wsc"][1].removeprefix("wsc text: "), "it is Tina"),
}


def texts_of(task, row):
    prepared = TASKS[task].prepare(row) if TASKS[task].prepare else row
    return tuple(prepared[name] for name in TASKS[task].fields)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_prompts_and_answers_of_text_to_text(task):
    row, wanted = PROMPTS[task]
    asked = TASKS[task].text_task
    assert asked.prompt_text(texts_of(task, row)) == wanted
    if task == "glue/stsb":
        assert asked.answers[:3] == ["0.0", "0.2", "0.4"]
        assert asked.answers[-2:] == ["4.8", "5.0"]
        assert len(asked.answers) == 26
    else:
        assert asked.answers == ([] if task == "superglue/record" else CLASSES[task])


@pytest.mark.parametrize("task", SEGMENTS)
def test_segments_of_an_encoder(task):
    assert TASKS[task].text_task.segment_texts(texts_of(task, PROMPTS[task][0])) == [SEGMENTS[task]]


def test_segments_of_candidates():
    copa, record = TASKS["superglue/copa"].text_task, TASKS["superglue/record"].text_task
    rows = [texts_of("superglue/copa", PROMPTS["superglue/copa"][0])]
    assert copa.choices_of(rows) == [("A", "B")]
    assert copa.segment_texts(rows[0], ("A", "B")) == [
        ("P What was the cause?", "A"),
        ("P What was the cause?", "B"),
    ]
    texts = texts_of("superglue/record", PROMPTS["superglue/record"][0])
    assert record.choices_of([texts]) is None
    assert record.segment_texts(texts, ("Ann", "Bo")) == [
        ('Who? Ann. said "no" Bo', "Q Ann"),
        ('Who? Ann. said "no" Bo', "Q Bo"),
    ]
    assert copa.num_outputs == record.num_outputs == TASKS["glue/stsb"].text_task.num_outputs == 1
    assert TASKS["glue/mnli"].text_task.num_outputs == 3


@pytest.mark.parametrize(
    ("text", "noun", "pronoun", "wanted"),
    [
        ("This is a test sentence .", (3, "test"), (0, "This"), "# This # is a * test * sentence ."),
        ("so the big cat, it sat.", (1, "the big cat"), (4, "it"), "so * the big cat *, # it # sat."),
        ('I saw him," she said', (0, "I"), (2, "him"), '* I * saw # him #," she said'),
        ("He asked the men because they ran", (2, "The men"), (5, "they"), "He asked * the men * because # they # ran"),
    ],
)
def test_wsc_marks(text, noun, pronoun, wanted):
    spans = {
        f"span{k}_{what}": value
        for k, s in ((1, noun), (2, pronoun))
        for what, value in zip(("index", "text"), s, strict=True)
    }
    marked = texts_of("superglue/wsc", {"text": text, **spans})[0]
    assert marked == wanted
    # The T5 library's own way, where the noun is written as in the text.
    for k, mark in ((1, "*"), (2, "#")):
        place = spans[f"span{k}_index"] + (2 if k == 2 and noun[0] < pronoun[0] else 0)
        said = noun[1][:1].lower() + noun[1][1:] if noun[1] == "The men" else (noun, pronoun)[k - 1][1]
        said = pronoun[1] if k == 2 else said
        text = re.sub(rf"^((?:\S+\s){{{place}}})({said})", rf"\1{mark} \2 {mark}", text)
    assert text == wanted


def test_wsc_of_the_benchmark_is_mended_as_on_the_hub(files):
    found = TaskData("superglue/wsc", folder_of(files, "superglue/wsc")).read("validation")
    assert [row[1] for row in found.texts[:5]] == ["the actor", "the plot", "the story", "scene", "the film"]
    assert found.texts[2][0].endswith("and * the story * was fine , so # it # was")
    assert found.texts[3][0].endswith("a * scene * and # it #.")


# Metrics.

QUALITIES_OF = {
    **{name: ["accuracy"] for name in ALL_TASKS},
    "glue/cola": ["matthews"],
    "glue/mrpc": ["accuracy", "f1"],
    "glue/qqp": ["accuracy", "f1"],
    "glue/stsb": ["pearson", "spearman"],
    "superglue/cb": ["accuracy", "f1_macro"],
    "superglue/multirc": ["f1", "exact_match"],
    "superglue/record": ["answer_f1", "answer_exact"],
}


def test_metrics_by_the_table():
    assert {name: list(task.qualities) for name, task in TASKS.items()} == QUALITIES_OF


def mixed_pair(task, files, problem):
    """A Swift and a Super that err now and then, with the task's own labels and targets, and a score with ties."""
    found = TaskData(task, folder_of(files, task)).read("train")
    n, g = len(found), torch.Generator().manual_seed(3)
    most = torch.tensor([len(c) for c in found.choices]) if found.choices else torch.full((n,), 2)
    guess = [(torch.rand(n, generator=g) * most).long() for _ in range(2)]
    swift = torch.where(torch.rand(n, generator=g) < 0.5, found.label, guess[0])
    super_ = torch.where(torch.rand(n, generator=g) < 0.8, found.label, guess[1])
    score = torch.randint(0, 9, (n,), generator=g).float()
    cost = torch.ones(n, dtype=torch.float64)
    return found, PairAnswers(
        found.id, found.key, found.label, swift, super_, {"s": score}, cost, 3 * cost, {}, None, found.targets, problem
    )


def multirc_by_hand(prediction, found):
    """F1 over all answer options, and the share of questions whose options are all right."""
    said, true = prediction.tolist(), found.label.tolist()
    hits = sum(a == b == 1 for a, b in zip(said, true, strict=True))
    groups = found.targets["group"].tolist()
    right = [
        all(a == b for a, b, of in zip(said, true, groups, strict=True) if of == one) for one in dict.fromkeys(groups)
    ]
    return {"f1": 2 * hits / (sum(said) + sum(true)), "exact_match": sum(right) / len(right)}


def record_by_hand(prediction, found, files):
    """The best over the right answers, averaged over the queries."""
    answers = [q["answers"] for p in made_rows("superglue/record", "train") for q in p["queries"]]
    said = [c[i] for c, i in zip(found.choices, prediction.tolist(), strict=True)]
    each = [(max(token_f1(s, a) for a in right), s, right) for s, right in zip(said, answers, strict=True)]
    exact = [max(plain(s) == plain(a) for a in right) for _, s, right in each]
    return {"answer_f1": sum(f for f, _, _ in each) / len(each), "answer_exact": sum(exact) / len(exact)}


@pytest.mark.parametrize(("task", "problem"), [("superglue/multirc", "classification"), ("superglue/record", "choice")])
def test_metrics_of_mixed_answers_at_every_threshold(task, problem, files):
    found, answers = mixed_pair(task, files, problem)
    values = set()
    for name in QUALITIES_OF[task]:
        quality = QUALITIES[name](len(CLASSES[task]))
        curve = pair_curves(answers, quality)["s"]
        assert len(curve) == len(answers.scores["s"].unique()) + 1
        for i in range(len(curve)):
            hard = route(answers.scores["s"], float(curve.threshold[i]))
            mixed = torch.where(hard, answers.super_, answers.swift)
            by_hand = multirc_by_hand(mixed, found) if "multirc" in task else record_by_hand(mixed, found, files)
            assert float(curve.quality[i]) == pytest.approx(by_hand[name], abs=1e-6)
            assert answers.quality_at(quality, "s", float(curve.threshold[i])) == pytest.approx(by_hand[name], abs=1e-6)
            values.add(round(by_hand[name], 4))
    assert len(values) > 5


# Real data: the samples that every task has, and four whole sets.

SAMPLES = {
    "BoolQ": (32, {"False": 0, "True": 1}),
    "CB": (32, {"entailment": 0, "contradiction": 1, "neutral": 2}),
    "COPA": (32, {"0": 0, "1": 1}),
    "MultiRC": (154, None),
    "RTE": (32, {"entailment": 0, "not_entailment": 1}),
    "ReCoRD": (32, None),
    "WSC": (32, {"False": 0, "True": 1}),
    "WiC": (32, {"False": 0, "True": 1}),
}


@pytest.mark.data
@pytest.mark.parametrize("name", SAMPLES)
def test_real_samples_of_superglue(name, real_data):
    folder = real_data / "data" / "superglue"
    task = f"superglue/{name.lower()}"
    size, classes = SAMPLES[name]
    data = TaskData(task, str(folder), ["train"])
    found = data.read("train")
    raw = [json.loads(line) for line in (folder / name / "train.jsonl").read_text("utf-8").splitlines()]
    assert len(raw) == 32
    assert len(found) == size
    assert found.labelled
    assert all(text for row in found.texts for text in row)
    if classes is not None:
        assert found.label.tolist() == [classes[str(row["label"])] for row in raw]
    if name == "MultiRC":
        assert int(found.targets["group"].max()) + 1 == sum(len(row["passage"]["questions"]) for row in raw)
    if name == "ReCoRD":
        right = {a["text"] for row in raw for q in row["qas"] for a in q["answers"]}
        best = [c[i] for c, i in zip(found.choices, found.label.tolist(), strict=True)]
        assert sum(one in right for one in best) >= 30
        assert not any("@highlight" in texts[0] for texts in found.texts)
        assert all("@placeholder" in texts[1] for texts in found.texts)
    if name == "WSC":
        for row, (marked, noun, pronoun) in zip(raw, found.texts, strict=True):
            assert noun in row["text"]
            assert f"* {noun} *" in marked
            assert f"# {pronoun} #" in marked
            assert re.sub(r"[*#] | [*#]", "", marked) == row["text"]


@pytest.mark.data
@pytest.mark.parametrize(
    ("task", "folder", "sizes", "ones"),
    [
        ("glue/sst2", "glue", {"train": 67349, "validation": 872}, {"train": 37569, "validation": 444}),
        ("glue/rte", "glue", {"train": 2490, "validation": 277}, {"train": 1241, "validation": 131}),
        ("glue/cola", "glue", {"train": 8551, "validation": 1043}, {"train": 6023, "validation": 721}),
        (
            "superglue/wic",
            "superglue/WiC-full",
            {"train": 5428, "validation": 638, "test": 1400},
            {"train": 2714, "validation": 319, "test": 700},
        ),
    ],
)
def test_real_sets_whole(task, folder, sizes, ones, real_data):
    where = real_data / "data" / folder
    data = TaskData(task, str(where))
    for split, size in sizes.items():
        found = data.read(split)
        assert len(found) == size
        assert int(found.label.sum()) == ones[split]
        if task == "glue/cola":
            rows = (where / "CoLA" / f"{'dev' if split == 'validation' else split}.tsv").read_text("utf-8").split("\n")
            assert [t[0] for t in found.texts] == [row.split("\t")[3] for row in rows if row]
        if task == "superglue/wic":
            path = where / f"{'dev' if split == 'validation' else split}.gold.txt"
            assert found.label.tolist() == ["FT".index(label) for label in path.read_text("utf-8").split()]
        if task == "glue/sst2":
            path = where / "SST-2" / f"{'dev' if split == 'validation' else split}.tsv"
            frame = pd.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False)
            assert found.label.tolist() == frame["label"].tolist()
            assert [t[0] for t in found.texts] == frame["sentence"].tolist()
    assert set(data.files) == set(sizes)


# Bad input.


@pytest.mark.parametrize(
    ("said", "near"),
    [
        ("RTE", ["glue/rte", "superglue/rte"]),
        ("glue/rtee", ["glue/rte"]),
        ("sst-2", ["glue/sst2"]),
        ("boolQ", ["superglue/boolq"]),
        ("MNLI-mm", ["glue/mnli-mm"]),
        ("super_glue", ["superglue"]),
        ("glue/sts-b", ["glue/stsb"]),
        ("super_glue/BoolQ", ["superglue/boolq"]),
        ("rtee", ["glue/rte", "superglue/rte"]),
    ],
)
def test_misspelt_names_suggest_the_nearest(said, near):
    with pytest.raises(InputError) as error:
        find_tasks(said)
    suggested = str(error.value).split("Did you mean ")[1].split("?")[0].split(" or ")
    assert f"'{said}'" in str(error.value)
    assert suggested[: len(near)] == near


def test_a_name_like_none():
    with pytest.raises(InputError, match=r"There is no task 'xyzzy'\. There are glue/cola"):
        find_tasks("xyzzy")


@pytest.fixture
def copied(files, tmp_path):
    """A copy of the files, to be spoiled."""
    shutil.copytree(files, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("task", "file", "line", "text", "words"),
    [
        ("glue/rte", "RTE/train.tsv", 4, "3\tonly", ["Line 5", "2 fields where 4", "RTE/train.tsv"]),
        ("glue/cola", "CoLA/train.tsv", 2, "gj04\t1\tx", ["Line 3", "3 fields where 4"]),
        ("glue/rte", "RTE/train.tsv", 4, "3\ta\tb\tmaybe", ["unknown label 'maybe'", "row 3", "'entailment'"]),
        ("glue/stsb", "STS-B/dev.tsv", 1, "0\tn\tM\t2\t0\tx\tx\ta\tb\thigh", ["label 'high'", "row 0"]),
        (
            "glue/rte",
            "RTE/train.tsv",
            0,
            "index\tsentence1\tsentence3\tlabel",
            ["'sentence2'", "row 0", "one of glue/rte"],
        ),
        ("superglue/cb", "CB/train.jsonl", 1, '{"premise": "a"', ["Line 2", "CB/train.jsonl", "JSONDecodeError"]),
        ("superglue/cb", "CB/train.jsonl", 1, '{"premise": "a", "label": "neutral"}', ["'hypothesis'", "CB"]),
        ("superglue/cb", "CB/train.jsonl", 1, "[1]", ["Line 2", "CB/train.jsonl"]),
        (
            "superglue/cb",
            "CB/train.jsonl",
            1,
            '{"premise": null, "hypothesis": "b", "label": "neutral"}',
            ["no 'premise' in row 1"],
        ),
        ("superglue/multirc", "MultiRC/train.jsonl", 0, '{"passage": {"text": ""}}', ["Line 1", "'questions'"]),
        ("superglue/record", "ReCoRD/train.jsonl", 2, '{"qas": [], "idx": 1}', ["Line 3", "ReCoRD/train.jsonl"]),
        (
            "superglue/wsc",
            "WSC/train.jsonl",
            0,
            '{"text": "a b", "idx": 0, "target": {"span1_index": 9, "span1_text": "C", "span2_index": 0, '
            '"span2_text": "a"}}',
            ["Line 1", "WSC/train.jsonl"],
        ),
    ],
)
def test_bad_rows_are_named(copied, task, file, line, text, words):
    path = copied / task.partition("/")[0] / file
    lines = path.read_text("utf-8-sig").split("\n")
    lines[line] = text
    path.write_text("\n".join(lines), "utf-8")
    data = TaskData(task, folder_of(copied, task))
    with pytest.raises(InputError) as error:
        data.read("validation" if "dev" in file else "train")
    for word in words:
        assert word in str(error.value)


def test_broken_lines_of_a_test_file_are_refused(copied, tmp_path):
    """Answers to it are counted from the first line on; what is left out would shift them."""
    path = copied / "glue" / "QQP" / "test.tsv"
    path.write_text("id\tquestion1\tquestion2\n7\ta\tb\n9\tonly\n", "utf-8")
    with pytest.raises(InputError, match=r"Line 3 of .*test\.tsv' has 2 fields where 3 are needed"):
        TaskData("glue/qqp", str(copied / "glue")).read("test")
    path.write_text("id\tquestion1\tquestion2\n7\ta\tb\n9\tc\td\n", "utf-8")
    rows = TaskData("glue/qqp", str(copied / "glue")).rows("test")
    write_submission(TASKS["glue/qqp"], rows, ["duplicate", "not_duplicate"], tmp_path / "QQP.tsv")
    assert (tmp_path / "QQP.tsv").read_text() == "index\tprediction\n7\t1\n9\t0\n"


def test_long_lines_go_as_on_the_hub(copied):
    path = copied / "glue" / "QQP" / "train.tsv"
    lines = path.read_text("utf-8").split("\n")
    before = TaskData("glue/qqp", str(copied / "glue")).rows("train")
    path.write_text("\n".join([lines[0], lines[1] + "\tmore", *lines[2:]]), "utf-8")
    assert TaskData("glue/qqp", str(copied / "glue")).rows("train") == before


@pytest.mark.parametrize("task", ["superglue/boolq", "superglue/multirc", "superglue/record"])
def test_passages_are_whole_on_one_side(files, task):
    examples = TaskData(task, folder_of(files, task)).read("train")
    passages = [texts[0] for texts in examples.texts]
    units = dict(zip(passages, examples.unit.tolist(), strict=True))
    assert [units[passage] for passage in passages] == examples.unit.tolist()
    assert len(set(units.values())) == len(units)


@pytest.mark.parametrize("content", [b"", b"index\tsentence1\tsentence2\tlabel\n", b"\xff\xfe"])
def test_files_without_rows(copied, content):
    (copied / "glue" / "RTE" / "train.tsv").write_bytes(content)
    with pytest.raises(InputError, match=r"has no rows|cannot be read"):
        TaskData("glue/rte", str(copied / "glue")).read("train")


def test_missing_folder_and_splits(files, tmp_path):
    with pytest.raises(InputError, match=r"no files of glue/rte in .*nowhere.*RTE/train.tsv"):
        TaskData("glue/rte", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"no split \['dev'\]; there are train, validation, test"):
        TaskData("glue/rte", str(files / "glue"), ["dev"])
    # The benchmark's folder or the task's own.
    own = TaskData("glue/rte", str(files / "glue" / "RTE"))
    assert own.files == TaskData("glue/rte", str(files / "glue")).files
    (tmp_path / "RTE").mkdir()
    shutil.copy(files / "glue" / "RTE" / "dev.tsv", tmp_path / "RTE")
    assert list(TaskData("glue/rte", str(tmp_path)).files) == ["validation"]


def test_wic_with_unequal_files(real_data, tmp_path):
    for name in ("dev.data.txt", "dev.gold.txt"):
        shutil.copy(real_data / "data" / "superglue" / "WiC-full" / name, tmp_path)
    gold = tmp_path / "dev.gold.txt"
    gold.write_text("T\n")
    with pytest.raises(InputError, match=r"has 638 lines, but .* has 1 labels"):
        TaskData("superglue/wic", str(tmp_path)).read("validation")
    gold.unlink()
    assert not TaskData("superglue/wic", str(tmp_path)).read("validation").labelled
    (tmp_path / "dev.data.txt").write_text("board\tN\t2-2\tRoom and board .\n")
    with pytest.raises(InputError, match=r"Line 1 of .* has 4 fields where 5"):
        TaskData("superglue/wic", str(tmp_path)).read("validation")


def test_unlabelled_and_misnamed_on_the_command_line(fails, files, tmp_path):
    model = str(write_model(tmp_path / "model", labels=("entailment", "not_entailment")))
    pair = ["--model.swift_model", model, "--model.super_model", model, "--model.output", str(tmp_path / "joint")]
    data = ["--data", "TaskData", "--data.folder", str(files / "glue"), *QUIET]
    fails(
        ["test", *pair, *data, "--data.task", "glue/rte"], "RTE/test.tsv", "without labels", "elang predict", "--task"
    )
    fails(["validate", *pair, *data, "--data.task", "glue"], "'glue' is a benchmark", "glue/cola", "glue/wnli")
    fails(["validate", *pair, *data, "--data.task", "glue/rtee"], "glue/rtee", "Did you mean glue/rte")
    assert not (tmp_path / "joint").exists()


# What the benchmarks take.

HEADER = "index\tprediction"
SUBMISSIONS = {
    "glue/cola": ("CoLA.tsv", ["unacceptable", "acceptable"], ["0", "1"]),
    "glue/sst2": ("SST-2.tsv", ["negative", "positive"], ["0", "1"]),
    "glue/mrpc": ("MRPC.tsv", ["not_equivalent", "equivalent"], ["0", "1"]),
    "glue/stsb": ("STS-B.tsv", [2.5, -0.25, 5.75], ["2.500", "0.000", "5.000"]),
    "glue/qqp": ("QQP.tsv", ["not_duplicate", "duplicate"], ["0", "1"]),
    "glue/mnli": ("MNLI-m.tsv", ["neutral", "entailment"], ["neutral", "entailment"]),
    "glue/mnli-mm": ("MNLI-mm.tsv", ["contradiction", "neutral"], ["contradiction", "neutral"]),
    "glue/qnli": ("QNLI.tsv", ["entailment", "not_entailment"], ["entailment", "not_entailment"]),
    "glue/rte": ("RTE.tsv", ["entailment", "not_entailment"], ["entailment", "not_entailment"]),
    "glue/wnli": ("WNLI.tsv", ["not_entailment", "entailment"], ["0", "1"]),
    "superglue/boolq": ("BoolQ.jsonl", ["True", "False"], ["true", "false"]),
    "superglue/cb": ("CB.jsonl", ["neutral", "entailment"], ["neutral", "entailment"]),
    "superglue/copa": ("COPA.jsonl", ["choice2", "choice1"], [1, 0]),
    "superglue/rte": ("RTE.jsonl", ["entailment", "not_entailment"], ["entailment", "not_entailment"]),
    "superglue/wic": ("WiC.jsonl", ["True", "False"], ["true", "false"]),
    "superglue/wsc": ("WSC.jsonl", ["True", "False"], ["True", "False"]),
    "superglue/multirc": ("MultiRC.jsonl", ["True", "False"], None),
    "superglue/record": ("ReCoRD.jsonl", ["Zoë", "Lopez"], None),
}


@pytest.mark.parametrize("source", ["own files", "hub"])
@pytest.mark.parametrize("task", ALL_TASKS)
def test_submissions_read_back(task, source, files, hub, tmp_path):
    data = TaskData(task, folder_of(files, task) if source == "own files" else None)
    rows = data.rows("test")
    name, said, forms = SUBMISSIONS[task]
    answers = [said[i % len(said)] for i in range(len(rows))]
    path = tmp_path / name
    write_submission(data.task, rows, answers, path)
    lines = path.read_text("utf-8").splitlines()
    if task.startswith("glue/"):
        wanted = [f"{i}\t{forms[i % len(said)]}" for i in range(len(rows))]
        assert lines == [HEADER, *wanted]
    elif task == "superglue/record":
        queries = [q["idx"] for p in made_rows(task, "test") for q in p["queries"]]
        assert "Zoë" in lines[0]
        assert list(map(json.loads, lines)) == [{"idx": q, "label": said[i % 2]} for i, q in enumerate(queries)]
    elif task == "superglue/multirc":
        assert list(map(json.loads, lines)) == [
            {
                "idx": 0,
                "passage": {
                    "questions": [
                        {"idx": 0, "answers": [{"idx": 0, "label": 1}, {"idx": 1, "label": 0}]},
                        {"idx": 1, "answers": [{"idx": 2, "label": 1}, {"idx": 3, "label": 0}]},
                    ]
                },
            }
        ]
    else:
        assert list(map(json.loads, lines)) == [{"idx": i, "label": forms[i % 2]} for i in range(len(rows))]


def test_a_submission_needs_an_answer_for_every_row(files, tmp_path):
    data = TaskData("glue/rte", str(files / "glue"))
    with pytest.raises(ValueError, match="shorter"):
        write_submission(data.task, data.rows("test"), ["entailment"], tmp_path / "RTE.tsv")
    assert not list(tmp_path.iterdir())


def test_rows_keep_the_test_files_own_numbers(copied, tmp_path):
    """A test file may begin elsewhere or be in another order."""
    path = copied / "glue" / "RTE" / "test.tsv"
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([lines[0], *(f"{50 - i}{line[1:]}" for i, line in enumerate(lines[1:]))]), "utf-8")
    task = TASKS["glue/rte"]
    write_submission(task, read_rows(task, "test", str(path)), ["entailment"] * 6, tmp_path / "RTE.tsv")
    assert [line.split("\t")[0] for line in (tmp_path / "RTE.tsv").read_text().splitlines()[1:]] == [
        str(50 - i) for i in range(6)
    ]


def test_answers_of_record_are_compared_by_their_words():
    assert answer_f1("the U.S. Army", "US army") == 1.0
    assert answer_f1("Ana Lopez", "Lopez") == pytest.approx(2 / 3)
    assert answer_f1("a", "the") == 0.0
