"""The files of GLUE and SuperGLUE as the benchmarks give them, with rows made up here.

:func:`made_rows` gives the rows plainly, with texts by the hub's names and labels as class indices (-1 where hidden);
the writers below put them into the official files, quirks included.
"""

import json
import random
from pathlib import Path

from conftest import BAD, FILLER, GOOD

SIZES = {"train": 24, "validation": 12, "test": 6}
# Labels by the official files' own words, in the order of the hub's class indices.
NLI = ["entailment", "not_entailment"]
MNLI = ["entailment", "neutral", "contradiction"]
CB = ["entailment", "contradiction", "neutral"]
PAIRS = {
    "glue/mrpc": ("sentence1", "sentence2", 2),
    "glue/qqp": ("question1", "question2", 2),
    "glue/mnli": ("premise", "hypothesis", 3),
    "glue/mnli-mm": ("premise", "hypothesis", 3),
    "glue/qnli": ("question", "sentence", 2),
    "glue/rte": ("sentence1", "sentence2", 2),
    "glue/wnli": ("sentence1", "sentence2", 2),
    "superglue/boolq": ("question", "passage", 2),
    "superglue/cb": ("premise", "hypothesis", 3),
    "superglue/rte": ("premise", "hypothesis", 2),
}
GLUE_FOLDERS = {"cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "qqp": "QQP", "mnli": "MNLI"}
GLUE_FOLDERS |= {"mnli-mm": "MNLI", "qnli": "QNLI", "rte": "RTE", "wnli": "WNLI"}
SUPERGLUE_FOLDERS = {"boolq": "BoolQ", "cb": "CB", "copa": "COPA", "multirc": "MultiRC", "record": "ReCoRD"}
SUPERGLUE_FOLDERS |= {"rte": "RTE", "wic": "WiC", "wsc": "WSC"}
# SuperGLUE has an RTE, too.
ALL_TASKS = [*(f"glue/{name}" for name in GLUE_FOLDERS), *(f"superglue/{name}" for name in SUPERGLUE_FOLDERS)]


def words(rng, label):
    """A sentence with a word of sentiment at its place."""
    found = rng.choices(FILLER, k=rng.randint(3, 9))
    found.insert(rng.randrange(len(found)), rng.choice(GOOD if label == 0 else BAD))
    return " ".join(found)


def made_rows(task, split):
    """The rows of a task's split: plain ones, or passages (MultiRC, ReCoRD)."""
    if (task, split) == ("glue/mnli-mm", "train"):
        task = "glue/mnli"
    rng = random.Random(f"{task} {split}")
    makers = {
        "glue/stsb": _stsb,
        "superglue/copa": _copa,
        "superglue/multirc": _multirc,
        "superglue/record": _record,
        "superglue/wic": _wic,
        "superglue/wsc": _wsc,
    }
    if task in ("glue/cola", "glue/sst2"):
        # SST-2's sentences end in a space.
        end = " " if task == "glue/sst2" else "."
        rows = [{"sentence": words(rng, i % 2) + end, "label": i % 2} for i in range(SIZES[split])]
    elif task in PAIRS:
        first, second, classes = PAIRS[task]
        labels = [i % classes for i in range(SIZES[split])]
        rows = [{first: words(rng, y), second: words(rng, i % 2), "label": y} for i, y in enumerate(labels)]
        rows[1][first] = 'a "superb film" , " said the actor'
        rows[2][second] = '" the plot was café-like \\n , NA'
        if task == "glue/qqp":
            rows[3][second] = ""
    else:
        rows = makers[task](rng, split)
    if split == "test":
        rows = [_hidden(row) for row in rows]
    return rows


def _hidden(row):
    """Without what is to be found out."""
    if "questions" in row:
        hide = [{**q, "answers": [{**a, "label": -1} for a in q["answers"]]} for q in row["questions"]]
        return {**row, "questions": hide}
    if "queries" in row:
        return {**row, "queries": [{**q, "answers": []} for q in row["queries"]]}
    return {**row, "label": -1.0 if isinstance(row["label"], float) else -1}


def _stsb(rng, split):
    texts = [(words(rng, 0), words(rng, i % 2)) for i in range(SIZES[split])]
    values = [0.0, 5.0, 2.6, 3.25, 1.333, 4.0]
    return [{"sentence1": a, "sentence2": b, "label": values[i % 6]} for i, (a, b) in enumerate(texts)]


def _copa(rng, split):
    return [
        {
            "premise": words(rng, 0),
            "choice1": words(rng, i % 2),
            "choice2": words(rng, 1 - i % 2),
            "question": ("cause", "effect")[i // 2 % 2],
            "label": i % 2,
        }
        for i in range(SIZES[split])
    ]


def _wic(rng, split):
    return [
        {"word": FILLER[i % 12], "sentence1": words(rng, i % 2), "sentence2": words(rng, 0), "label": i % 2}
        for i in range(SIZES[split])
    ]


def _wsc(rng, split):
    rows = []
    for i in range(SIZES[split]):
        before = rng.choices(FILLER, k=i % 4)
        # The third's noun is written otherwise in the text, the fourth's pronoun ends in a full stop, the fifth's is
        # first.
        text, noun, pronoun = [
            (["the", "actor", "was", "good", "and", "it", "was", "bad"], (0, "the actor"), (5, "it")),
            (["the", "plot", "was", "bad", ",", "for", "he", "was", "dull"], (0, "the plot"), (6, "he")),
            (["and", "the", "story", "was", "fine", ",", "so", "it", "was"], (1, "The story."), (7, "it")),
            (["a", "scene", "and", "it."], (1, "scene"), (3, "it")),
            (["as", "it", "was", "dull", ",", "the", "film", "was", "poor"], (5, "the film"), (1, "it")),
        ][i % 5]
        rows.append(
            {
                "text": " ".join([*before, *text]),
                "span1_index": noun[0] + len(before),
                "span1_text": noun[1],
                "span2_index": pronoun[0] + len(before),
                "span2_text": pronoun[1],
                "label": i % 2,
            }
        )
    return rows


def _multirc(rng, split):
    passages = []
    for p in range(SIZES[split] // 4 or 1):
        lines = "".join(f"<b>Sent {k + 1}: </b>{words(rng, p % 2)} .<br>" for k in range(3))
        questions = [
            # Questions are numbered anew in every passage.
            {"idx": q, "question": words(rng, q), "answers": [_option(rng, p, q, a) for a in range(2)]}
            for q in range(2)
        ]
        passages.append({"idx": p, "text": lines, "questions": questions})
    return passages


def _option(rng, p, q, a):
    return {"idx": 2 * q + a, "text": words(rng, a), "label": (p + q + a) % 2}


def _record(rng, split):
    passages = []
    for p in range(SIZES[split] // 3):
        names = ["Ana Lopez", "Bo Chen", "Lopez", "US Army", "the US Army", "Zoë"][: 4 + p % 3]
        rng.shuffle(names)
        text = ""
        entities = []
        for k, name in enumerate([*names, names[0]]):
            text += rng.choice(FILLER) + " "
            entities.append((len(text), len(text) + len(name) - 1))
            text += name + (".\n@highlight\n" if k == 1 else "\n@highlight\n" if k == 2 else " ")
        right = [["Lopez"], ["US Army", "the US Army"], [names[0], names[0]]]
        queries = [
            {"idx": 3 * p + q, "query": f"{words(rng, q)} @placeholder was", "answers": right[q]} for q in range(3)
        ]
        passages.append({"idx": p, "text": text, "entities": entities, "queries": queries})
    return passages


def _tsv(path, header, rows, end="\n", mark=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ([header] if header else []) + rows
    path.write_bytes((mark + "".join(("\t".join(map(str, line))) + end for line in lines)).encode("utf-8"))


def _cola(path, split, rows):
    if split == "test":
        _tsv(path, ["index", "sentence"], [[i, r["sentence"]] for i, r in enumerate(rows)])
    else:
        _tsv(path, None, [["gj04", r["label"], "" if r["label"] else "*", r["sentence"]] for r in rows])


def _sst2(path, split, rows):
    if split == "test":
        _tsv(path, ["index", "sentence"], [[i, r["sentence"]] for i, r in enumerate(rows)])
    else:
        _tsv(path, ["sentence", "label"], [[r["sentence"], r["label"]] for r in rows])


def _mrpc(path, split, rows):
    first = "index" if split == "test" else "Quality"
    lines = [
        [i if split == "test" else r["label"], 70 + i, 90 + i, r["sentence1"], r["sentence2"]]
        for i, r in enumerate(rows)
    ]
    header = [first, "#1 ID", "#2 ID", "#1 String", "#2 String"]
    _tsv(path, header, lines, "\r\n", "" if split == "test" else "\ufeff")


def _sts(path, split, rows):
    header = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"]
    lines = [
        [i, "news", "MSR", "2012", f"{i:04}", "none", "none", r["sentence1"], r["sentence2"], f"{r['label']:.3f}"]
        for i, r in enumerate(rows)
    ]
    if split == "test":
        _tsv(path, header, [line[:-1] for line in lines])
    else:
        _tsv(path, [*header, "score"], lines)


def _qqp(path, split, rows):
    if split == "test":
        lines = [[i, r["question1"], r["question2"]] for i, r in enumerate(rows)]
        _tsv(path, ["id", "question1", "question2"], lines)
        return
    lines = [[900 + i, 1, 2, r["question1"], r["question2"], r["label"]] for i, r in enumerate(rows)]
    if split == "train":
        # A line break within a question made two short lines of one.
        lines[5:5] = [[990, 3, 4, "why is the"], ["film dull ?", "is it ?", 0]]
    _tsv(path, ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"], lines)


def _mnli(path, split, rows):
    parses = ["sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse"]
    header = ["index", "promptID", "pairID", "genre", *parses, "sentence1", "sentence2"]
    lines = [
        [i, 31, f"31{i}", "fiction", "( a", "( b", "(ROOT", "(ROOT", r["premise"], r["hypothesis"]]
        for i, r in enumerate(rows)
    ]
    if split != "test":
        votes = [f"label{k + 1}" for k in range(1 if split == "train" else 5)]
        header += [*votes, "gold_label"]
        for line, r in zip(lines, rows, strict=True):
            # The first annotator says otherwise.
            line += [MNLI[(r["label"] + 1) % 3], *[MNLI[r["label"]]] * len(votes)]
    _tsv(path, header, lines)


def _indexed(first, second, labels):
    def write(path, split, rows):
        lines = [[i, r[first], r[second], labels[r["label"]]] for i, r in enumerate(rows)]
        if split == "test":
            _tsv(path, ["index", first, second], [line[:-1] for line in lines])
        else:
            _tsv(path, ["index", first, second, "label"], lines)

    return write


_GLUE = {
    "glue/cola": _cola,
    "glue/sst2": _sst2,
    "glue/mrpc": _mrpc,
    "glue/stsb": _sts,
    "glue/qqp": _qqp,
    "glue/mnli": _mnli,
    "glue/mnli-mm": _mnli,
    "glue/qnli": _indexed("question", "sentence", NLI),
    "glue/rte": _indexed("sentence1", "sentence2", NLI),
    "glue/wnli": _indexed("sentence1", "sentence2", [0, 1]),
}


def _json_row(task, index, row):
    label = row.get("label", -1)
    known = {} if label == -1 else {"label": label}
    texts = {name: value for name, value in row.items() if name != "label"}
    if task == "superglue/multirc":
        questions = [
            {
                "question": q["question"],
                "answers": [{name: v for name, v in a.items() if name != "label" or v != -1} for a in q["answers"]],
                "idx": q["idx"],
            }
            for q in row["questions"]
        ]
        return {"idx": row["idx"], "version": 1.1, "passage": {"text": row["text"], "questions": questions}}
    if task == "superglue/record":
        spans = [{"start": a, "end": b} for a, b in row["entities"]]
        queries = [
            {"query": q["query"], "idx": q["idx"]}
            | ({"answers": [{"start": 0, "end": 1, "text": a} for a in q["answers"]]} if q["answers"] else {})
            for q in row["queries"]
        ]
        return {
            "source": "Daily mail",
            "passage": {"text": row["text"], "entities": spans},
            "qas": queries,
            "idx": row["idx"],
        }
    if task == "superglue/wsc":
        target = {name: texts.pop(name) for name in list(texts) if name.startswith("span")}
        return {**texts, "target": target, "idx": index} | ({"label": bool(label)} if known else {})
    if task in ("superglue/boolq", "superglue/wic"):
        known = {"label": bool(label)} if known else {}
    elif task in ("superglue/cb", "superglue/rte"):
        known = {"label": (CB if task.endswith("cb") else NLI)[label]} if known else {}
    return {**texts, "idx": index, **known}


def write_benchmarks(root: Path) -> Path:
    """Write every task's files as ``root/glue/RTE/train.tsv`` and ``root/superglue/RTE/train.jsonl``."""
    for task, write in _GLUE.items():
        folder = root / "glue" / GLUE_FOLDERS[task.partition("/")[2]]
        half = {"glue/mnli": "_matched", "glue/mnli-mm": "_mismatched"}.get(task, "")
        for split, stem in (("train", "train"), ("validation", f"dev{half}"), ("test", f"test{half}")):
            write(folder / f"{stem}.tsv", split, made_rows(task, split))
    for name, where in SUPERGLUE_FOLDERS.items():
        folder = root / "superglue" / where
        folder.mkdir(parents=True)
        for split, stem in (("train", "train"), ("validation", "val"), ("test", "test")):
            rows = [_json_row(f"superglue/{name}", i, r) for i, r in enumerate(made_rows(f"superglue/{name}", split))]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{stem}.jsonl").write_text(text, "utf-8")
    return root
