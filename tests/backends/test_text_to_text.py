"""Encoder-decoders that answer in words: the constrained decode, training, and the router before the decoder."""

import copy
import json
import math
import random
from itertools import pairwise
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import FAST, QUIET, VOCABULARY, epochs, read_curve, write_model, write_t5
from lightning.pytorch import Trainer
from models.test_distributed import elang
from safetensors.torch import load_file
from test_pitfalls import run_cli
from torch.nn.utils.rnn import pad_sequence

from elang import FinetuneModule, InputError, JointPredictor, SwiftModule
from elang.backends.answer_trie import AnswerTrie
from elang.backends.label_decoder import LabelDecoder
from elang.backends.loading.load import load_model
from elang.cli.verbs import main
from elang.data.batches import Reader
from elang.data.encoding import encode_examples
from elang.data.glue.table import TASKS
from elang.method.scores import BEFORE_DECODER, free_energy
from elang.models.objectives.labels import LabelObjective
from elang.models.objectives.objective import RecordedAnswers
from elang.records.manifest import Manifest
from elang.records.table import Records
from elang.tasks.text_task import TextTask

# Those that an encoder-decoder has.
BEFORE = [name for name in BEFORE_DECODER if name.startswith("encoder")]
TEXTS = [
    ("the film was good",),
    ("a very dull plot with a bad actor and a bad story and a bad scene",),
    ("superb",),
    ("great music",),
]
# Answers that share a beginning, on two levels; in the last set all of them do.
NESTED = [
    ["very good film", "very good plot", "very bad", "dull", "fine"],
    ["the film was good", "the film was bad", "the plot was a film", "the plot and a film"],
]


@pytest.fixture(scope="module")
def t5(tmp_path_factory, files):
    """An untrained T5 of two layers that has read the training file."""
    corpus = pd.read_csv(files[0])["text"].tolist()
    corpus += ["text: good bad", "0.1 2.3 4.5 6.7 8.9"] * 20
    return write_t5(tmp_path_factory.mktemp("t5") / "base", corpus)


@pytest.fixture(scope="module")
def family(t5):
    """Makes a tiny random model of each family, with its own way to wrap what it says."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        AutoModelForSeq2SeqLM,
        BartConfig,
        ByT5Tokenizer,
        MT5Config,
        PreTrainedTokenizerFast,
        T5Config,
    )

    small = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
    small |= {"vocab_size": 384, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    wide = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    words = ["<s>", "<pad>", "</s>", "<unk>", *VOCABULARY[5:]]

    def make(kind, answers, **options):
        torch.manual_seed(0)
        task = TextTask.of([str(i) for i in range(len(answers))], {"answers": answers})
        if kind == "t5":
            return load_model(str(t5), task, **options).eval()
        if kind == "bart":
            read = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
            read.pre_tokenizer = pre_tokenizers.Whitespace()
            read.post_processor = processors.TemplateProcessing(
                single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
            )
            special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=read, model_max_length=64, **special)
            ffn = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64}
            config = BartConfig(vocab_size=len(words), d_model=32, **wide, **ffn)
        else:
            # Byte by byte, "bad" and "b" differ late; the end of an answer is a branch, too.
            tokenizer = ByT5Tokenizer()
            config = (MT5Config if kind == "mt5" else T5Config)(**small)
        return LabelDecoder(AutoModelForSeq2SeqLM.from_config(config), tokenizer, task, **options).eval()

    return make


FAMILIES = ["t5", "mt5", "byt5", "bart"]


def inputs_of(model, texts, choices=None):
    """One batch of them all."""
    return encode_examples(model.reader, model.task, texts, choices, 256).batch(list(range(len(texts))))


def tokens_of(model, answers):
    return model.tokenizer(text_target=answers, padding=False)["input_ids"]


@torch.no_grad()
def constrained_decode(model, inputs, answers):
    """By hand: one call of the whole model for each node, which chooses among its branches alone.

    Returns the log probability of each answer, and the raw logits of the first choice.
    """
    start, size = model.backbone.config.decoder_start_token_id, len(inputs["input_ids"])
    found, first = torch.full((size, len(answers)), torch.nan), []

    def down(prefix, members, so_far):
        if len(members) == 1:
            found[:, members[0]] = so_far
            return
        said = torch.tensor([[start, *prefix]] * size)
        tokens = sorted({answers[i][len(prefix)] for i in members})
        z = model.backbone(**inputs, decoder_input_ids=said).logits[:, -1, tokens]
        if len(tokens) > 1:
            first.append(z)
        for k, token in enumerate(tokens):
            these = [i for i in members if answers[i][len(prefix)] == token]
            down([*prefix, token], these, so_far + z.log_softmax(-1)[:, k])

    down([], list(range(len(answers))), torch.zeros(size))
    return found, first[0]


def random_answers(seed):
    """Answers that are the leaves of a random tree, up to five tokens deep."""
    rng = random.Random(seed)

    def grow(prefix, depth):
        if depth == 0 or (prefix and rng.random() < 0.2):
            return [prefix]
        tokens = rng.sample(range(3, 40), rng.choice([1, 2, 2, 3]))
        return [answer for token in tokens for answer in grow([*prefix, token], depth - 1)]

    found = []
    while len(found) < 2:
        found = grow([7, 8] if seed % 3 == 0 else [], 5)
    rng.shuffle(found)
    return found


def check_decode(model, answers):
    inputs = inputs_of(model, TEXTS)
    expected, first = constrained_decode(model, inputs, answers)
    with torch.no_grad():
        logits = model(inputs).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.log_softmax(-1), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(free_energy(logits), -first.logsumexp(-1), atol=1e-5, rtol=1e-5)
    assert expected.exp().sum(-1).tolist() == pytest.approx([1] * len(TEXTS), abs=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_random_answers_are_decoded_as_by_hand(family, seed):
    model, answers = family("t5", ["good", "bad"]), random_answers(seed)
    model.trie = AnswerTrie.of(answers)
    model.task = TextTask.of([str(i) for i in range(len(answers))], {"answers": [str(a) for a in answers]})
    check_decode(model, answers)


@pytest.mark.parametrize("answers", [["good", "bad"], *NESTED])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_decodes_as_by_hand(family, kind, answers):
    model = family(kind, answers)
    check_decode(model, tokens_of(model, answers))


def test_the_cases_are_what_they_are_said_to_be(family):
    """Several branches on the way to one answer, answers after a common beginning, and a token that is forced."""
    assert family("t5", NESTED[0]).trie.taken.sum(-1).max() > 1
    assert min(family(kind, NESTED[1]).trie.node[0, 1] for kind in FAMILIES) >= 1
    assert family("bart", ["good", "bad"]).trie.node.tolist() == [[0, 1]]
    tries = [AnswerTrie.of(random_answers(seed)) for seed in range(12)]
    assert {trie.decoder[1] for trie in tries} >= {2, 5}
    assert {len(trie.paths) for trie in tries} >= {1, 2, 4}
    assert {int(trie.node[0, 1]) for trie in tries} >= {0, 2}


def test_answers_that_cannot_be_told_apart_are_refused(family, fails, t5, data_args):
    for answers in ([[5, 1], [5, 1]], [[5, 6], [7], [5]], [[5], []], [[5, 6], [5, 6, 1]]):
        with pytest.raises(InputError, match="have the same tokens, or one begins with another"):
            AnswerTrie.of(answers)
    with pytest.raises(InputError, match="at least 2 answers"):
        AnswerTrie.of([[5, 6]])
    with pytest.raises(InputError, match="have the same tokens"):
        family("bart", ["strange", "unknown"])
    fit = ["fit", "--model.model", t5, *data_args, *QUIET]
    fails([*fit, "--data.answers", "[good, good]"], "--data.answers", "have the same tokens")
    fails([*fit, "--data.answers", "[good]"], "2 classes", "--data.answers has 1")


class Calls:
    """Counts what a decoder is run over while it is watched."""

    def __init__(self, model):
        self.shapes = []
        self._hook = model.backbone.get_decoder().register_forward_hook(self._see, with_kwargs=True)
        self.path = model.short_path
        if self.path is not None:
            self.path.decode = self._decode

    def _see(self, module, args, kwargs, output):
        self.shapes.append(tuple(output.last_hidden_state.shape[:2]))

    def _decode(self, hidden, mask, ids):
        self.shapes.append((len(hidden) * len(ids), ids.shape[1]))
        return type(self.path).decode(self.path, hidden, mask, ids)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._hook.remove()
        if self.path is not None:
            del self.path.decode


@pytest.mark.parametrize(
    ("kind", "answers", "expected"),
    [("t5", ["good", "bad"], (1, 1)), ("bart", ["good", "bad"], (1, 2)), ("bart", NESTED[0], (1, 4))],
)
def test_the_decoder_runs_no_further_than_the_last_choice(family, kind, answers, expected):
    model = family(kind, answers)
    assert model.trie.decoder == expected
    with Calls(model) as calls, torch.no_grad():
        model(inputs_of(model, TEXTS))
    assert calls.shapes == [(len(TEXTS) * expected[0], expected[1])]


@pytest.mark.parametrize("answers", [["good", "bad"], NESTED[0]])
@pytest.mark.parametrize("kind", FAMILIES)
def test_answers_do_not_depend_on_the_batch(family, kind, answers):
    model = family(kind, answers)
    model.add_heads()
    model.eval()
    with torch.no_grad():
        together = model(inputs_of(model, TEXTS))
        scores = model.scores(together)
        for i, text in enumerate(TEXTS):
            alone = model(inputs_of(model, [text]))
            torch.testing.assert_close(alone.logits[0], together.logits[i], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(alone.early[0], together.early[i], atol=1e-5, rtol=1e-5)
            for name, values in model.scores(alone).items():
                torch.testing.assert_close(values[0], scores[name][i], atol=1e-5, rtol=1e-5)
    assert {*BEFORE, "router", "free_energy"} <= scores.keys()
    # Not because nothing depends on the text.
    assert together.logits[0].sub(together.logits[1]).abs().max() > 1e-3


def fit_heads(model):
    """To chance: there are weights, at least."""
    with torch.no_grad():
        features = model.router_features(model(inputs_of(model, TEXTS)))
    for name, head in model.routers.items():
        gain = torch.randn(len(TEXTS), generator=torch.Generator().manual_seed(0))
        head.fit(features[name], gain, torch.arange(len(TEXTS)) % 5)


def not_rounded(values):
    return values.dtype == torch.float32 and not torch.equal(values, values.bfloat16().float())


def test_a_model_that_was_first_asked_can_be_trained(family, monkeypatch):
    """Its answers go to another device with the inputs: what inference makes cannot be saved for a backward pass."""
    model = family("t5", ["good", "bad"])
    said = torch.zeros(2, 1, 384, device="meta", requires_grad=True)
    monkeypatch.setattr(model, "_decode", lambda *given, **more: SimpleNamespace(logits=said))
    monkeypatch.setattr(AnswerTrie, "answers", lambda self, z: z)
    encoded = SimpleNamespace(hidden=torch.zeros(2, 3, 32, device="meta"), mask=torch.ones(2, 3, device="meta"))
    with torch.inference_mode():
        model.label_logits(encoded, {})
    assert model.trie.paths.device.type == "meta"
    model.label_logits(encoded, {}).sum().backward()
    assert said.grad is not None


def test_logits_stay_float32_under_autocast(family, t5):
    model = family("t5", NESTED[0])
    model.add_heads()
    fit_heads(model)
    numbers = TextTask.of(["value"], {"problem": "regression", "answers": ["0.3", "1.7", "2.9"]})
    regression = load_model(str(t5), numbers).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        answer = model(inputs_of(model, TEXTS))
        values = regression(inputs_of(regression, TEXTS)).logits
    # Below the first choice the numbers are ours, and those of one choice may well be bf16's.
    assert not_rounded(answer.logits)
    assert not_rounded(answer.early)
    assert not_rounded(values)
    assert all(not_rounded(score) for score in model.scores(answer).values())


# Candidates of each example's own.

PASSAGES = [
    ("the film was good", "a very dull @placeholder", "film, plot, actor"),
    ("bad music", "the @placeholder was superb and the story fine", "music, the very dull story"),
    ("a scene with an actor", "@placeholder", "scene, actor, film, plot and story"),
]
CHOICES = [("film", "plot", "actor"), ("music", "the very dull story"), ("scene", "actor", "film", "plot and story")]
RECORD = TASKS["superglue/record"].text_task
COPA = TASKS["superglue/copa"].text_task
COPA_ROWS = [
    ("the film was good", "cause", "great music", "dull plot and a bad actor"),
    ("bad story", "effect", "superb", "awful"),
]


@torch.no_grad()
def test_own_candidates_are_scored_by_their_likelihood(t5):
    model = load_model(str(t5), RECORD).eval()
    logits = model(inputs_of(model, PASSAGES, CHOICES)).logits
    assert logits.shape == (3, 128)
    for i, (texts, candidates) in enumerate(zip(PASSAGES, CHOICES, strict=True)):
        prompt = model.tokenizer(RECORD.prompt_text(texts), return_tensors="pt")
        for k, candidate in enumerate(candidates):
            said = torch.tensor(tokens_of(model, [candidate]))
            likelihood = model.backbone(**prompt, labels=said).logits.log_softmax(-1).gather(2, said[..., None])
            assert float(logits[i, k]) == pytest.approx(float(likelihood.sum()), abs=1e-4)
        assert (logits[i, len(candidates) :] == -torch.inf).all()


@pytest.mark.parametrize("kind", ["encoder", "t5"])
def test_own_candidates_do_not_depend_on_the_batch(base_model, t5, kind):
    model = load_model(str(base_model if kind == "encoder" else t5), RECORD, fine_tune=True, router=True).eval()
    encoded = encode_examples(model.reader, RECORD, PASSAGES, CHOICES, 64)
    with torch.no_grad():
        whole = model(encoded.batch([0, 1, 2]))
        scores = model.scores(whole)
        assert all(torch.isfinite(s).all() for s in scores.values())
        for rows in ([2], [1, 0], [2, 0, 1]):
            some = model(encoded.batch(rows))
            assert torch.equal(some.logits == -torch.inf, whole.logits[rows] == -torch.inf)
            for i, c in enumerate(CHOICES[r] for r in rows):
                torch.testing.assert_close(
                    some.logits[i, : len(c)], whole.logits[rows[i], : len(c)], atol=1e-5, rtol=1e-5
                )
            for name, values in model.scores(some).items():
                torch.testing.assert_close(values, scores[name][rows], atol=1e-5, rtol=1e-5)
            assert torch.equal(some.prediction, whole.prediction[rows])
    assert (whole.prediction < torch.tensor([len(c) for c in CHOICES])).all()


@pytest.mark.parametrize(("task", "rows"), [(COPA, COPA_ROWS), (RECORD, PASSAGES)])
def test_an_encoder_weighs_its_candidates(base_model, task, rows):
    """One input a candidate, as by hand; its loss is that of the multiple-choice model of transformers."""
    from transformers import BertForMultipleChoice

    choices = task.choices_of(rows) or CHOICES
    model = load_model(str(base_model), task, fine_tune=True).eval()
    target = torch.tensor([1, 0, 3][: len(rows)])
    with torch.no_grad():
        answer = model(inputs_of(model, rows, choices), target)
        for i, (texts, candidates) in enumerate(zip(rows, choices, strict=True)):
            for k, candidate in enumerate(candidates):
                pair = task.segment_texts(texts, (candidate,))[0]
                one = model.backbone(**model.tokenizer(*pair, return_tensors="pt", padding=False)).logits
                assert one.shape == (1, 1)
                assert float(answer.logits[i, k]) == pytest.approx(float(one), abs=1e-5)
            assert (answer.logits[i, len(candidates) :] == -torch.inf).all()
    assert task is RECORD or answer.logits.shape == (2, 2)
    theirs = BertForMultipleChoice(model.backbone.config).eval()
    theirs.load_state_dict(model.backbone.state_dict())
    losses = []
    for i, (texts, candidates) in enumerate(zip(rows, choices, strict=True)):
        pairs = list(zip(*task.segment_texts(texts, candidates), strict=True))
        read = model.tokenizer(*map(list, pairs), return_tensors="pt", padding="longest")
        with torch.no_grad():
            losses.append(theirs(**{k: v[None] for k, v in read.items()}, labels=target[i : i + 1]).loss)
    assert float(answer.loss) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


@pytest.mark.parametrize("problem", ["classification", "regression"])
def test_an_encoders_loss_is_that_of_transformers(base_model, problem):
    task = TextTask.of(["a", "b", "c"] if problem == "classification" else ["value"], {"problem": problem})
    model = load_model(str(base_model), task, fine_tune=True).eval()
    target = torch.tensor([2, 0, 1, 1]) if problem == "classification" else torch.tensor([0.5, -2.0, 3.0, 1.0])
    inputs = inputs_of(model, TEXTS)
    with torch.no_grad():
        ours, theirs = model(inputs, target).loss, model.backbone(**inputs, labels=target).loss
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)


# Training.


def batch_of(module, texts, label, choices=None):
    """A training batch as the data module makes it."""
    inputs = inputs_of(module.classifier, texts, choices)
    place = torch.arange(len(texts))
    return {"id": place, "key": place, "label": torch.tensor(label), "targets": {}, "model": inputs}


@pytest.mark.parametrize("kind", ["classification", "regression", "own candidates"])
def test_the_training_loss_is_the_models_own(t5, kind):
    """Cross-entropy over the vocabulary of the tokenised answers, as transformers computes it."""
    if kind == "own candidates":
        names, task, texts, choices, label = RECORD.label_names, RECORD.plain(), PASSAGES, CHOICES, [2, 1, 3]
        said = [c[k] for c, k in zip(CHOICES, label, strict=True)]
    elif kind == "regression":
        names, choices, texts, label = ["value"], None, TEXTS, [0.31, 4.9, 2.05, 0.0]
        task = TextTask(names, "regression", answers=["0.0", "0.4", "2.0", "5.0"]).plain()
        said = ["0.4", "5.0", "2.0", "0.0"]
    else:
        names, choices, texts, label = ["no", "yes", "so"], None, TEXTS, [2, 0, 1, 2]
        task = TextTask(names, answers=["bad", "very good film", "very dull"]).plain()
        said = ["very dull", "bad", "very good film", "very dull"]
    module = FinetuneModule(str(t5), names, task)
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    batch = batch_of(module, texts, label, choices)
    ours = module.training_step(batch, 0).detach()
    ids = [torch.tensor(row) for row in tokens_of(module.classifier, said)]
    labels = pad_sequence(ids, batch_first=True, padding_value=-100)
    model = module.classifier
    prompts = model.tokenizer([model.task.prompt_text(t) for t in texts], padding=True, return_tensors="pt")
    assert float(ours) == pytest.approx(float(model.backbone(**prompts, labels=labels).loss.detach()), abs=1e-6)


def swift_module(model, names=("bad", "good"), task=None, **options):
    """A Swift with the answers of a made-up Super, which is right where the batch below makes the Swift wrong."""
    torch.manual_seed(1)
    module = SwiftModule(str(model), list(names), task, super_records="unused", **options)
    logits = torch.tensor([[3.0, -1.0], [-2.0, 1.0], [0.5, 0.2], [-1.0, 4.0]])
    answers = RecordedAnswers(None, {"train": Records(torch.arange(4), logits.argmax(-1), logits)})
    module.objective = objective_of(module, answers)
    return module


def objective_of(module, answers=None):
    """What a `fit` would set up."""
    return LabelObjective(module.task, module.loss_options, answers)


def gradients(module, label=(0, 1, 1, 0)):
    batch = batch_of(module, TEXTS, list(label))
    answer = module.classifier(batch["model"], batch["label"])
    torch.stack(list(module.loss(batch, answer).values())).sum().backward()
    return {name: p.grad for name, p in module.classifier.named_parameters()}


def test_the_heads_leave_the_backbone_alone(t5):
    """Distillation and margin of the head on the encoder's output reach the encoder only if asked to."""
    found = {
        name: gradients(swift_module(t5, **options))
        for name, options in {
            "none": {"router": False},
            "detached": {},
            "attached": {"detach_router": False},
        }.items()
    }
    assert all(g is not None for grads in found.values() for g in grads.values())
    backbone = [name for name in found["none"] if name.startswith("backbone.")]
    assert set(found["none"]) == set(backbone)
    for name in backbone:
        torch.testing.assert_close(found["detached"][name], found["none"][name], atol=1e-7, rtol=1e-5)
    heads = set(found["detached"]) - set(backbone)
    assert {name.split(".")[1] for name in heads} == {"encoder"}
    assert all(found["detached"][name].abs().max() > 0 for name in heads)
    changed = {n for n in backbone if not torch.allclose(found["attached"][n], found["none"][n], atol=1e-7)}
    assert changed
    # The decoder does not see the head on the encoder's output.
    assert all("encoder" in name or "shared" in name for name in changed)


@pytest.mark.parametrize("router", [False, True])
def test_the_swifts_loss_by_hand(t5, router):
    """Of the constrained decode's logits, with heads or without; the head on the encoder's output learns the same."""
    from elang.method.losses import distillation, energy_margin_pairwise

    module = swift_module(t5, router=router, distill_weight=1.0, margin_weight=0.1)
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    batch = batch_of(module, TEXTS, [0, 1, 1, 0])
    total = module.training_step(batch, 0)
    answer = module.classifier(batch["model"], batch["label"])
    hard = (answer.prediction != batch["label"]) & (module.objective.columns["super_prediction"] == batch["label"])
    assert 0 < hard.sum() < 4
    expected = answer.loss
    for logits in [answer.logits, answer.early] if router else [answer.logits]:
        expected = expected + distillation(logits, module.objective.columns["super_logits"], 2.0)
        expected = expected + 0.1 * energy_margin_pairwise(free_energy(logits), hard)
    if router:
        expected = expected + F.cross_entropy(answer.early, batch["label"])
    assert float(total.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    parameters = list(module.classifier.parameters())
    for ours, by_hand in zip(*(torch.autograd.grad(x, parameters) for x in (total, expected)), strict=True):
        torch.testing.assert_close(ours, by_hand, atol=1e-6, rtol=1e-4)


def test_two_own_candidates_are_no_classes(t5):
    """Which of an example's own candidates is first says nothing: the encoder's head learns if the answer will do."""
    task = TextTask(["0", "1"], "choice", RECORD.fields, RECORD.segments, RECORD.prompt)
    options = {"distill_weight": 0.0, "margin_weight": 0.0, "hard": "error"}
    module = SwiftModule(str(t5), ["0", "1"], task.plain(), **options)
    choices = [("film", "plot"), ("music", "the very dull story"), ("scene", "actor")]
    batch = batch_of(module, PASSAGES, [0, 1, 1], choices)
    module.objective = objective_of(module)
    with torch.no_grad():
        answer = module.classifier(batch["model"], batch["label"])
        found = module.loss(batch, answer)
    assert answer.early.shape == answer.logits.shape
    assert set(found) == {"task", "encoder"}
    hard = answer.prediction != batch["label"]
    expected = F.cross_entropy(answer.early, hard.long())
    assert float(found["encoder"].detach()) == pytest.approx(float(expected), abs=1e-6)


def test_answers_are_read_as_targets(t5):
    """Some tokenizers write what is to be said otherwise than what is read."""
    asked = []
    model = load_model(str(t5), RECORD)

    class Spy:
        pad_token_id, pad_token_type_id, model_input_names = 0, 0, ["input_ids"]

        def __call__(self, **given):
            asked.append({name for name in ("text", "text_target") if given.get(name) is not None})
            return model.tokenizer(**given)

    encode_examples(Reader(Spy(), True), RECORD, PASSAGES, CHOICES, 256)
    assert asked == [{"text"}, {"text_target"}]


def test_checkpointing_activations_changes_no_gradient(t5):
    plain, again = (gradients(swift_module(t5, gradient_checkpointing=on)) for on in (False, True))
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-4)
    module = swift_module(t5, gradient_checkpointing=True)
    assert module.classifier.backbone.is_gradient_checkpointing
    runs = []
    # Within a block, for the hooks of the block itself may stay outside.
    within = module.classifier.backbone.get_encoder().block[0].layer[0]
    within.register_forward_pre_hook(lambda *_: runs.append(1))
    gradients(module)
    assert len(runs) == 2


@pytest.mark.parametrize("kind", ["t5", "encoder"])
def test_compile_reaches_all_of_the_backbone(base_model, t5, monkeypatch, kind):
    """Every call of the backbone goes through `torch.compile`, the encoder's own before a decoder, too."""
    seen, asked = [], []

    def fake(call, **options):
        asked.append(options)

        def compiled(*args, **kwargs):
            seen.append(type(call.__self__).__name__)
            return call(*args, **kwargs)

        return compiled

    monkeypatch.setattr(torch, "compile", fake)
    module = swift_module(t5 if kind == "t5" else base_model, compile=True)
    module.classifier.eval()
    plain = swift_module(t5 if kind == "t5" else base_model)
    plain.classifier.eval()
    plain.classifier.load_state_dict(module.classifier.state_dict())
    a, b = gradients(module), gradients(plain)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    backbone = type(module.classifier.backbone).__name__
    # Encoder, then the decoder with the answers and with the branches.
    assert seen == (["T5Stack", backbone, backbone] if kind == "t5" else [backbone])
    assert all(options == {"dynamic": True} for options in asked)


def test_half_of_the_layers(t5, family, tmp_path):
    task = TextTask.of(["bad", "good"])
    whole, half = load_model(str(t5), task).backbone, load_model(str(t5), task, fine_tune=True, layers=1).backbone
    for stack in ("encoder", "decoder"):
        assert len(getattr(whole, stack).block) == 2
        assert len(getattr(half, stack).block) == 1
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in half.state_dict().items())
    bart = family("bart", ["good", "bad"])
    bart.backbone.save_pretrained(tmp_path)
    bart.tokenizer.save_pretrained(tmp_path)
    half = load_model(str(tmp_path), task, fine_tune=True, layers=1).backbone
    assert (len(half.get_encoder().layers), len(half.get_decoder().layers)) == (1, 1)
    with pytest.raises(InputError, match="2 layers"):
        load_model(str(t5), task, fine_tune=True, layers=3)


def test_a_decoder_without_a_first_token_is_refused(family):
    model = family("byt5", ["good", "bad"])
    model.backbone.config.decoder_start_token_id = None
    with pytest.raises(InputError, match="decoder_start_token_id"):
        LabelDecoder(model.backbone, model.tokenizer, model.task)


# A whole pair.

STILL = ["--model.weight_decay", "0", "--model.warmup", "0"]


@pytest.fixture(scope="module")
def t5_pair(tmp_path_factory, t5, data_args):
    """A trained T5, its records, and a Swift of its first layers: paths by name."""
    root = tmp_path_factory.mktemp("t5_pair")
    paths = {name: str(root / name) for name in ("super", "super.parquet", "swift")}
    fit = ["fit", *data_args, *FAST, "--trainer.default_root_dir", str(root)]
    options = [*epochs(8), "--model.lr", "3e-3", "--data.batch_size", "8"]
    assert main([*fit, "--model.model", str(t5), "--model.output", paths["super"], *options]) == 0
    score = ["score", "--model.model", paths["super"], "--model.output", paths["super.parquet"]]
    assert main([*score, *data_args, *QUIET]) == 0
    swift = ["--model", "SwiftModule", "--model.model", str(t5), "--model.layers", "1"]
    swift += ["--model.super_records", paths["super.parquet"], "--model.score", "encoder_router"]
    assert main([*fit, *swift, "--model.output", paths["swift"], *epochs(3)]) == 0
    return paths


@pytest.fixture(scope="module")
def t5_joint_args(t5_pair, data_args):
    models = ["--model.swift_model", t5_pair["swift"], "--model.super_model", t5_pair["super"]]
    return [*models, *data_args, *QUIET]


@pytest.fixture(scope="module")
def t5_joint(tmp_path_factory, t5_joint_args):
    folder = tmp_path_factory.mktemp("t5_joint")
    assert main(["validate", *t5_joint_args, "--model.output", str(folder)]) == 0
    return folder


@pytest.fixture
def t5_swift_args(t5, t5_pair, data_args, tmp_path):
    model = ["--model", "SwiftModule", "--model.model", str(t5), "--model.super_records", t5_pair["super.parquet"]]
    model += ["--model.output", str(tmp_path / "model"), "--model.layers", "1"]
    return [*model, *data_args, *QUIET, "--trainer.default_root_dir", str(tmp_path)]


def test_a_t5_learns_the_task(t5_pair, files):
    frame = pd.read_parquet(t5_pair["super.parquet"]).query("split == 'validation'")
    truth = pd.read_csv(files[1])["label"]
    assert (frame["prediction"].to_numpy() == truth.to_numpy()).mean() > 0.8


def test_its_folder_answers_in_plain_transformers(t5_pair, files):
    """What it generates freely is what the constrained decode chose."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(t5_pair["super"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(t5_pair["super"])
    texts = [f"text: {text}" for text in pd.read_csv(files[1])["text"]]
    ids = model.generate(**tokenizer(texts, return_tensors="pt", padding=True), max_new_tokens=6, do_sample=False)
    frame = pd.read_parquet(t5_pair["super.parquet"]).query("split == 'validation'")
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == frame["prediction"].tolist()


def test_every_parameter_moves(t5_swift_args, monkeypatch):
    """By its gradient, there being no weight decay."""
    before = {}

    def remember(self):
        before.update({n: p.detach().clone() for n, p in self.named_parameters()})

    monkeypatch.setattr(SwiftModule, "on_train_start", remember)
    model = run_cli("fit", *t5_swift_args, *STILL, "--trainer.max_steps", "1").model
    after = dict(model.named_parameters())
    assert {n.split(".")[2] for n in after if "heads" in n} == {"encoder"}
    assert not {n for n, p in after.items() if torch.equal(p, before[n])}


def test_resuming_ends_with_the_same_weights(t5_swift_args, tmp_path):
    every = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_top_k": -1}}
    args = [*t5_swift_args, "--model.lr", "0.002", "--trainer.max_epochs", "2"]
    args += ["--trainer.callbacks", json.dumps([every])]
    run_cli("fit", *args)
    names = ("model.safetensors", "router.safetensors")
    at_once = {k: v for name in names for k, v in load_file(tmp_path / "model" / name).items()}
    run_cli("fit", *args, "--ckpt_path", next(tmp_path.rglob("epoch=0*.ckpt")))
    resumed = {k: v for name in names for k, v in load_file(tmp_path / "model" / name).items()}
    assert {n: float((resumed[n] - v).abs().max()) for n, v in at_once.items()} == dict.fromkeys(at_once, 0.0)


def test_a_checkpoint_can_be_the_swift(t5_swift_args, t5_joint_args, t5_pair, tmp_path):
    run_cli("fit", *t5_swift_args, "--trainer.max_steps", "4", "--model.lr", "0.002")
    frames = []
    for swift in (tmp_path / "model", next(tmp_path.rglob("*.ckpt"))):
        args = [str(swift) if a == t5_pair["swift"] else a for a in t5_joint_args]
        assert main(["validate", *args, "--model.output", str(tmp_path / "joint")]) == 0
        frames.append(pd.read_parquet(tmp_path / "joint" / "records.parquet"))
    # The router heads are fitted at the end of all training.
    routers = ["score_router", "score_encoder_router"]
    assert {f"score_{name}" for name in BEFORE} | set(routers) <= set(frames[0])
    assert not set(routers) & set(frames[1])
    costs = ["swift_flops", "swift_early_flops"]
    other = [frame.drop(columns=[*routers, *costs], errors="ignore") for frame in frames]
    pd.testing.assert_frame_equal(*other, check_exact=True)


def test_gradients_of_two_batches_are_averaged(t5_swift_args, monkeypatch):
    """With accumulation each step takes the mean over its batches, and the schedule counts steps, not batches."""
    seen, compared, rates = [], [], []
    step = SwiftModule.training_step

    def watched(self, batch, batch_idx):
        seen.append(batch)
        return step(self, batch, batch_idx)

    def compare(self, optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
        other = copy.deepcopy(self.classifier)
        other.zero_grad()
        for batch in seen:
            answer = other(batch["model"], batch["label"])
            (torch.stack(list(self.loss_of(other, batch, answer))).sum() / 2).backward()
        seen.clear()
        for (name, p), q in zip(self.classifier.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-4, msg=name)
        compared.append(len(compared))

    def loss_of(self, classifier, batch, answer):
        own, self.classifier = self.classifier, classifier
        try:
            return list(self.loss(batch, answer).values())
        finally:
            self.classifier = own

    monkeypatch.setattr(SwiftModule, "training_step", watched)
    monkeypatch.setattr(SwiftModule, "loss_of", loss_of, raising=False)
    monkeypatch.setattr(SwiftModule, "on_before_optimizer_step", compare)
    args = [*t5_swift_args, "--trainer.accumulate_grad_batches", "2", "--trainer.max_epochs", "1"]
    cli = run_cli("fit", *args, "--trainer.limit_train_batches", "10", "--model.lr", "0.001")
    assert cli.trainer.global_step == len(compared) == 5
    # Up in the first step, then down to the last fifth of the way.
    assert rates == pytest.approx([0.001, 0.001, 0.00075, 0.0005, 0.00025])


# The router before the decoder.


def encoder_flops(model, tokens):
    """Matrix products of a T5's encoder by formula, and of the heads that decide before its decoder."""
    c = model.backbone.config
    inner = c.num_heads * c.d_kv
    layer = 2 * 4 * tokens * c.d_model * inner + 2 * 2 * tokens * tokens * inner + 2 * 2 * tokens * c.d_model * c.d_ff
    # The router's features are standardised, too.
    heads = sum(p.numel() for p in model.heads["encoder"].parameters()) + 2 * model.heads["encoder_router"].width
    return c.num_layers * layer + 2 * heads


def test_a_deferred_input_pays_for_the_encoder_and_its_head_alone(t5_joint, t5_pair):
    frame = pd.read_parquet(t5_joint / "records.parquet").query("split == 'validation'")
    curve = read_curve(t5_joint)
    swift = load_model(t5_pair["swift"])
    early = frame["swift_tokens"].map(lambda tokens: encoder_flops(swift, tokens))
    assert (early < frame["swift_flops"]).all()
    assert {f"score_{name}" for name in ("free_energy", "router", *BEFORE)} <= set(frame)
    for score in ("free_energy", "router", *BEFORE):
        points = curve[curve["score"] == score]
        assert len(points) > 20
        for row in points.itertuples():
            deferred = frame[f"score_{score}"] > row.threshold
            answer = frame["super_prediction"].where(deferred, frame["swift_prediction"])
            assert row.accuracy == pytest.approx((answer == frame["label"]).mean(), abs=1e-9)
            paid = frame["swift_flops"].where(~deferred, early) if score in BEFORE else frame["swift_flops"]
            # Where everything is deferred whatever its score, no Swift runs.
            paid = paid * (row.threshold > -math.inf)
            assert row.flops == pytest.approx((paid + deferred * frame["super_flops"]).mean(), rel=1e-9)


@pytest.mark.parametrize("score", BEFORE)
def test_the_predictor_spares_the_decoder(t5_joint, t5_pair, files, score):
    """It decides as the evaluation did, answers the same, and runs the Swift's decoder for the kept alone."""
    frame = pd.read_parquet(t5_joint / "records.parquet").query("split == 'validation'")
    texts = pd.read_csv(files[1])["text"].tolist()
    values = sorted(frame[f"score_{score}"].unique())[15:46]
    gaps = [(b - a, (a + b) / 2) for a, b in pairwise(values)]
    threshold = max(gaps)[1]
    deferred = (frame[f"score_{score}"] > threshold).tolist()
    predictor = JointPredictor(t5_pair["swift"], t5_pair["super"], threshold, score, batch_size=7)
    with Calls(predictor.swift) as calls:
        found = predictor(texts)
    assert 0 < sum(deferred) < len(texts)
    assert [p.answered_by == "super" for p in found] == deferred
    names = ["bad", "good"]
    expected = frame["super_prediction"].where(deferred, frame["swift_prediction"])
    assert [p.label for p in found] == [names[i] for i in expected]
    assert [p.score for p in found] == pytest.approx(
        frame[f"score_{score}"].tolist(), abs=1e-4
    )  # batches of other sizes
    paths, tokens = predictor.swift.trie.decoder
    assert sum(rows for rows, _ in calls.shapes) == paths * (len(texts) - sum(deferred))
    assert {length for _, length in calls.shapes} == {tokens}
    nothing = JointPredictor(t5_pair["swift"], t5_pair["super"], "-1e9", score)
    with Calls(nothing.swift) as calls:
        assert {p.answered_by for p in nothing(texts)} == {"super"}
    assert calls.shapes == []


def test_the_swifts_own_score_and_named_threshold(t5_joint, t5_pair, files):
    """`fit --model.score encoder_router` is what the predictor and the report route by."""
    assert json.loads((t5_joint / "summary.json").read_text())["score"] == "encoder_router"
    assert Manifest.read(t5_joint).thresholds == Manifest.read(t5_pair["swift"]).thresholds
    predictor = JointPredictor(t5_pair["swift"], t5_pair["super"], "defer 30%")
    assert predictor.score == "encoder_router"
    assert predictor.threshold == Manifest.read(t5_pair["swift"]).threshold("defer 30%", "encoder_router")


def test_two_processes_train_and_evaluate_as_one(t5_swift_args, t5_joint_args, tmp_path):
    """Plain DDP: every parameter of every head takes part in every step, and the records are one process's."""
    for n in (1, 2):
        elang("validate", *t5_joint_args, "--model.output", tmp_path / str(n), processes=n)
    one, two = (pd.read_parquet(tmp_path / n / "records.parquet") for n in "12")
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert (tmp_path / "1" / "curve.csv").read_text() == (tmp_path / "2" / "curve.csv").read_text()
    options = ["--trainer.max_steps", "3", "--trainer.enable_checkpointing", "false"]
    elang("fit", *t5_swift_args, *options, processes=2)
    heads = load_file(tmp_path / "model" / "router.safetensors")
    assert {name.partition(".")[0] for name in heads} == {"router", "encoder", "encoder_router"}
    assert "encoder_router" in Manifest.read(tmp_path / "model").thresholds


# Models that others trained.


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, t5_pair):
    """The trained T5 as anyone's: without our file."""
    import shutil

    folder = shutil.copytree(t5_pair["super"], tmp_path_factory.mktemp("foreign") / "t5")
    (folder / "elang.json").unlink()
    return str(folder)


def test_a_foreign_t5_answers_what_the_data_asks(foreign, t5_pair, data_args, tmp_path, fails):
    out = str(tmp_path / "records.parquet")
    score = ["score", "--model.model", foreign, "--model.output", out, *data_args, *QUIET]
    assert main([*score, "--data.prompt", "text: {text}", "--data.answers", "[bad, good]"]) == 0
    ours, theirs = pd.read_parquet(t5_pair["super.parquet"]), pd.read_parquet(out)
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    # Other words for the same labels, other answers.
    assert main([*score, "--data.answers", "[dull, superb]"]) == 0
    assert not pd.read_parquet(out)["logits"].equals(ours["logits"])
    with pytest.raises(InputError, match=r"without elang\.json"):
        JointPredictor(foreign, t5_pair["super"])
    found = JointPredictor(t5_pair["swift"], foreign, "-inf")(["the film was great"])
    assert found == JointPredictor(t5_pair["swift"], t5_pair["super"], "-inf")(["the film was great"])
    fails(["predict", "--swift_model", foreign, "--super_model", foreign], "elang fit", "without elang.json")


@pytest.mark.parametrize("verb", ["score", "validate", "validate one"])
@pytest.mark.parametrize("other", ["prompt", "answers"])
def test_a_t5_is_not_asked_otherwise_than_it_was_trained(
    t5_pair, t5_joint_args, data_args, fails, tmp_path, verb, other
):
    one = ["--model.model", t5_pair["super"], *data_args, *QUIET]
    args = {
        "score": ["score", *one],
        "validate": ["validate", *t5_joint_args],
        "validate one": ["validate", "--model", "FinetuneModule", *one],
    }[verb]
    if other == "prompt":
        options, words = ["--data.prompt", "review: {text}"], ["review: {text}"]
    else:
        options, words = ["--data.answers", "[dull, superb]"], ["dull", "superb"]
    fails([*args, *options], "was trained with the prompt 'text: {text}'", "--data.prompt", *words)


def test_answers_follow_their_labels(t5_pair, files, tmp_path):
    """Data that counts its classes the other way round gets the same answers."""
    data = ["--data.validation", str(files[1]), *QUIET]
    frames = []
    for names, said in (("[bad, good]", "[bad, good]"), ("[good, bad]", "[good, bad]")):
        out = str(tmp_path / "records.parquet")
        options = ["--data.label_names", names, "--data.answers", said]
        assert main(["score", "--model.model", t5_pair["super"], "--model.output", out, *data, *options]) == 0
        frames.append(pd.read_parquet(out))
    assert frames[0]["prediction"].equals(frames[1]["prediction"])
    flipped = [list(row[::-1]) for row in frames[1]["logits"]]
    assert [list(row) for row in frames[0]["logits"]] == flipped


def test_a_model_of_another_problem_is_refused(t5, base_model, tmp_path):
    """A regression has one output and nothing to compare; a fine-tuned model knows what it was made for."""
    numbers = TextTask(["value"], "regression", answers=["0.0", "1.0"])
    from elang.backends.loading.checkpoints import save_model

    for kind, base in (("t5", t5), ("encoder", base_model)):
        model = load_model(str(base), numbers, fine_tune=True)
        save_model(model, tmp_path / kind, Manifest(["value"], task=numbers.plain()))
        assert load_model(str(tmp_path / kind)).task == numbers
        with pytest.raises(InputError, match="trained for a regression, but the data is a classification"):
            load_model(str(tmp_path / kind), TextTask.of(["bad", "good"]))
    other = TextTask(["value"], "regression", answers=["0.0", "2.0"])
    with pytest.raises(InputError, match="was trained with"):
        load_model(str(tmp_path / "t5"), other)
    assert load_model(str(tmp_path / "encoder"), other).task.problem == "regression"


def test_a_tiny_cross_entropy_by_hand():
    """Two steps of a choice, worked out: the first by raw logits, the second by its share."""
    trie = AnswerTrie.of([[3, 1], [4, 5, 1], [4, 6, 1]])
    z = torch.zeros(1, 1, 2, 8)
    z[0, 0, 0, [3, 4]] = torch.tensor([1.0, 2.0])
    z[0, 0, 1, [5, 6]] = torch.tensor([0.5, -0.5])
    share = F.log_softmax(torch.tensor([0.5, -0.5]), -1)
    expected = torch.tensor([[1.0, 2.0 + share[0], 2.0 + share[1]]])
    torch.testing.assert_close(trie.label_logits(z), expected)


def test_write_model_is_not_text_to_text(tmp_path):
    """An encoder takes no prompt, whatever the task says of one."""
    model = load_model(str(write_model(tmp_path / "m", labels=("bad", "good"))))
    assert not model.reader.text_to_text
    assert model.head_scores == []
