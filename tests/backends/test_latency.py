"""The short ways: T5's own forward pass, few inputs at a time, smaller precisions. Captured graphs need a GPU."""

import json
import random

import pytest
import torch
from conftest import FILLER, GOOD, devices, write_t5
from transformers import AutoModelForSeq2SeqLM, MT5Config, T5Config

from elang import InputError, JointPredictor
from elang.backends.fast.graphs import _WARM_UP, SmallBatches, padded_length
from elang.backends.fast.onnx import OnnxPath
from elang.backends.fast.t5 import T5Path, T5Steps
from elang.backends.loading.checkpoints import save_model
from elang.backends.loading.load import load_model
from elang.backends.network import InferenceOptions
from elang.cli.verbs import main
from elang.data.encoding import encode_examples, same_tokens, token_lists
from elang.inference.speed import differences
from elang.records.manifest import Manifest
from elang.tasks.text_task import TextTask

KINDS = {
    "t5": (T5Config, {}),
    "t5 1.1": (T5Config, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": (MT5Config, {"feed_forward_proj": "gated-gelu"}),
    "gelu": (T5Config, {"feed_forward_proj": "gelu"}),
}


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(3)
    return [" ".join(draw.choice(GOOD + FILLER) for _ in range(draw.randint(1, 20))) for _ in range(60)]


def random_t5(kind, spread):
    """A T5 of some kind whose weights are random by so much, norms and biases among them."""
    family, options = KINDS[kind]
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 6, "vocab_size": 50}
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(family(**sizes, decoder_start_token_id=0, **options)).eval()
    for weight in model.parameters():
        weight.data += spread * torch.randn_like(weight)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_short_path_of_t5_says_what_the_library_says(kind):
    model = random_t5(kind, 0.1)
    path = T5Path(model)
    ids = torch.randint(1, 50, (4, 13))
    mask = torch.ones_like(ids)
    mask[1, 5:] = mask[3, 1:] = 0
    with torch.inference_mode():
        hidden = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        found = path.encode(ids, mask)
        real = mask.bool()
        assert torch.allclose(found[real], hidden[real], atol=1e-4)
        # Several paths of several tokens, and the single token of most tasks.
        for shape in ((3, 4), (1, 1)):
            paths = torch.randint(1, 50, shape)
            said = [
                model(encoder_outputs=(hidden,), attention_mask=mask, decoder_input_ids=p.expand(4, -1)).logits
                for p in paths
            ]
            nodes = path.decode(found, mask, paths).flatten(1, 2)
            tokens = torch.randint(50, (nodes.shape[1], 7))
            expected = torch.stack(said, 1).flatten(1, 2).gather(2, tokens.expand(4, -1, -1))
            assert torch.allclose(path.logits(nodes, tokens), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_by_the_short_path_of_t5_are_the_librarys(kind):
    """Also behind the first room for keys and values, and where some have ended."""
    model = random_t5(kind, 0.2)
    ids = torch.randint(2, 50, (12, 13))
    mask = torch.ones_like(ids)
    mask[1, 5:] = mask[3, 1:] = 0
    plain = {"input_ids": ids, "attention_mask": mask, "do_sample": False}
    # What is said most ends a text, so that some end early and others never.
    said = model.generate(**plain, max_new_tokens=70, eos_token_id=[])[:, 1:]
    ends = [int(said[:, 3:].flatten().bincount().argmax()), 1]
    path = T5Path(model)
    with torch.inference_mode():
        hidden = path.encode(ids, mask)
        for most in (1, 20, 70):
            expected = model.generate(**plain, max_new_tokens=most, eos_token_id=ends)[:, 1:]
            found = T5Steps(path, most, start=0, ends=ends, pad=0, scored=False).all(hidden, mask)
            assert torch.equal(found.ids, expected)
            ended = torch.isin(expected, torch.tensor(ends))
            counts = torch.where(ended.any(1), ended.int().argmax(1) + 1, most)
            assert torch.equal(found.steps, counts)
        assert len(set(counts.tolist())) > 1
        # All of them end when none is wanted.
        steps = T5Steps(path, 1, start=0, ends=ends, pad=0, scored=True)
        texts = steps.begin(hidden, mask, torch.zeros(12, dtype=torch.int64))
        # As often as it is tried before it is captured.
        for _ in range(_WARM_UP + 1):
            steps.step(texts)
        assert not texts.steps.any()
        assert not texts.ids.any()
    # It reads the model's own weights, as long as they are its.
    assert path.current
    cross = model.decoder.block[1].layer[1].EncDecAttention
    cross.k.weight.data = cross.k.weight.data.clone()
    assert not path.current


@pytest.fixture(scope="module")
def t5_models(tmp_path_factory, texts):
    """A pair of untrained T5 models with heads; some answers branch at their second token."""
    folder = tmp_path_factory.mktemp("short")
    task = TextTask.of(["bad", "good", "so so"])
    base = str(write_t5(folder / "base", [*texts, "bad good so so text: "] * 2))
    for seed, name in enumerate(("swift", "super")):
        torch.manual_seed(seed)
        model = load_model(base, task, fine_tune=True, router=True)
        for weight in model.parameters():
            weight.data += 0.2 * torch.randn_like(weight)
        for head in model.routers.values():
            head.scale += 1
            head.weight += torch.randn(head.width) / head.width
        save_model(model, folder / name, Manifest(task.label_names, task.plain()))
    return str(folder / "swift"), str(folder / "super")


def like(found, expected):
    """The same answers, and the same scores but for the order of sums."""
    assert [(one.label, one.answered_by) for one in found] == [(one.label, one.answered_by) for one in expected]
    for name in ("score", "probability"):
        told, wanted = ([getattr(one, name) for one in answers] for answers in (found, expected))
        # Where everything is deferred there are no scores.
        assert [value is None for value in told] == [value is None for value in wanted]
        if None not in told:
            assert told == pytest.approx(wanted, abs=2e-4, rel=1e-4), name


@pytest.mark.parametrize("score", ["free_energy", "router", "encoder_energy", "encoder_router"])
def test_a_pair_answers_by_the_short_path_as_by_the_library(t5_models, texts, score):
    short = JointPredictor(*t5_models, "inf", score)
    assert short.swift.short_path is not None
    plain = JointPredictor(*t5_models, "inf", score)
    plain.swift.short_path = plain.super_.short_path = None
    ordered = sorted(one.score for one in plain(texts))
    for threshold in ("inf", "-inf", (ordered[29] + ordered[30]) / 2):
        short.threshold = plain.threshold = float(threshold)
        found = plain(texts)
        like(short(texts), found)
        few = JointPredictor(*t5_models, threshold, score, few=3)
        like([one for start in range(0, 60, 3) for one in few(texts[start : start + 3])], found)
        like([few([text])[0] for text in texts[:9]], found[:9])
    assert 0 < sum(one.answered_by == "super" for one in found) < 60


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("score", ["max_softmax", "router"])
@pytest.mark.parametrize("threshold", ["defer 30%", "inf", "-inf"])
def test_few_inputs_are_answered_as_many_are(pair, texts, score, threshold, device):
    models = str(pair["swift"]), str(pair["super"])
    plain = JointPredictor(*models, threshold, score, device="cpu")
    few = JointPredictor(*models, threshold, score, few=4, device=device)
    assert bool(few.runners["swift"].small_batches.graphs) == (device != "cpu")
    expected = plain(texts)
    like([one for start in range(0, 60, 4) for one in few(texts[start : start + 4])], expected)
    like([few([text])[0] for text in texts], expected)
    # More than few take the way of many.
    like(few(texts), expected)
    rows = few.rows(texts[:4])
    assert few.ask_super(rows) == plain.ask_super(rows)
    asked = zip(few.ask_swift(rows, keep=True), plain.ask_swift(rows, keep=True), strict=True)
    assert all(a[0] == b[0] and not a[2] for a, b in asked)
    assert JointPredictor(None, models[1], few=4, device=device).ask_super(rows) == plain.ask_super(rows)


def test_over_long_ones_are_cut_and_counted_when_there_are_few(pair, texts):
    models = str(pair["swift"]), str(pair["super"])
    plain, few = (JointPredictor(*models, "-1e9", few=n) for n in (0, 4))
    for one in (plain, few):
        for runner in one.runners.values():
            runner.max_length = 6
    for start in range(0, 20, 4):
        like(few(texts[start : start + 4]), plain(texts[start : start + 4]))
    assert few.truncated == plain.truncated > 0
    assert few.super_truncated == plain.super_truncated == few.truncated


def test_tokens_of_few_are_those_of_many(pair, texts):
    model = load_model(str(pair["swift"]))
    rows = [(text,) for text in texts[:8]]
    for limit in (64, 6):
        found, cut = token_lists(model.reader, model.task, rows, limit)
        expected = encode_examples(model.reader, model.task, rows, None, limit)
        assert cut == expected.texts.truncated
        # By the library alone, too.
        said = model.tokenizer([row[0] for row in rows], truncation=True, max_length=limit)
        assert [one["input_ids"] for one in found] == said["input_ids"]
        for i, one in enumerate(found):
            own = expected.texts.batch([i])
            assert one == {name: own[name][0].tolist() for name in one}
            assert {*one, "attention_mask"} == own.keys()


def test_tokens_are_shared_only_where_they_are_the_same(pair):
    first, second = (load_model(str(pair[name])).tokenizer for name in ("swift", "super"))
    assert same_tokens(first, second)
    # What is set for padding is set anew for every call.
    second(["a film", "a good film"], padding=True, truncation=True, max_length=3)
    assert same_tokens(first, second)
    runners = JointPredictor(str(pair["swift"]), str(pair["super"]), "inf").runners
    assert runners["super"].reads_like(runners["swift"])
    second.model_input_names = ["input_ids", "attention_mask"]
    assert not same_tokens(first, second)
    second.model_input_names = first.model_input_names
    second.backend_tokenizer.encode_special_tokens = True
    assert not same_tokens(first, second)


def test_over_long_ones_of_the_super_are_counted_once(pair, texts):
    counts = []
    for few in (0, 4):
        made = JointPredictor(str(pair["swift"]), str(pair["super"]), "inf", few=few)
        made.runners["super"].max_length = 6
        list(made.super_map(texts[:3], 3))
        counts.append(made.super_truncated)
    assert counts[0] == counts[1] > 0


def test_the_short_path_is_for_inference(t5_models, texts):
    made = JointPredictor(*t5_models, "inf", "free_energy")
    model = made.swift
    before = [one.score for one in made(texts[:5])]
    kept = model.short_path
    # A second predictor of the same object leaves the first one's weights where they are.
    JointPredictor(model, None, "inf")
    assert model.short_path is kept
    inputs = dict(model.tokenizer(["a good film"], return_tensors="pt").to(made.device))
    model.train()
    model(inputs, torch.tensor([1], device=made.device)).loss.backward()
    assert model.backbone.encoder.block[0].layer[0].SelfAttention.q.weight.grad is not None
    model.eval()
    with torch.no_grad():
        for weight in model.backbone.parameters():
            weight.data = weight.data * 1.5
    assert not kept.current
    again = JointPredictor(model, None, "inf", "free_energy")
    assert again.swift.short_path.current
    assert [s for _, s, _ in made.ask_swift([(t,) for t in texts[:5]])] != pytest.approx(before)
    with pytest.raises(InputError, match="is for models that are loaded here"):
        JointPredictor(model, None, dtype="bfloat16")


def test_padded_rows_and_lengths_change_nothing(pair, texts):
    """As a graph has them: more rows and tokens than there are."""
    predictor = JointPredictor(str(pair["swift"]), None, "inf", few=4)
    runner = predictor.runners["swift"]
    few, (tokens, _) = runner.small_batches, runner.token_lists([(t,) for t in texts[:3]])
    with torch.inference_mode():
        filled = torch.empty(3, 4, 48, dtype=torch.int64)
        few.fill(filled.numpy(), tokens)
        names = [*few.pad, "attention_mask"]
        inputs = dict(zip(names, filled.to(predictor.device), strict=True))
        table = predictor.swift.answer_batch(inputs, InferenceOptions(predictor.score)).table
        assert table.isfinite().all()
        assert torch.allclose(table[:3].T.cpu(), torch.tensor(few.first(tokens)), atol=1e-5)


def test_lengths_of_graphs():
    found = [padded_length(n, 300) for n in range(1, 301)]
    assert all(n <= length for n, length in enumerate(found, 1))
    assert found == sorted(found)
    assert sorted(set(found)) == [16, 32, 48, 64, 96, 128, 192, 256, 300]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_what_cannot_be_captured_runs_as_it_is(monkeypatch):
    """A model whose capture fails is run kernel by kernel, and that is said."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    passes = [lambda inputs: (inputs["input_ids"].sum(1, keepdim=True).double(), None)]
    with pytest.warns(UserWarning, match="The Swift cannot be captured"):
        few = SmallBatches(passes, {"input_ids": 0}, 2, 32, torch.device("cuda"), "The Swift")
    few.device = torch.device("cpu")
    assert few.first([{"input_ids": [1, 2, 3]}, {"input_ids": [4]}]) == [[6.0, 4.0]]


def test_half_the_bits(pair, texts, t5_models):
    """Weights are bfloat16, the classes' head and all scores float32, and what differs lies near the threshold."""
    models = str(pair["swift"]), str(pair["super"])
    half = JointPredictor(*models, "inf", dtype="bfloat16")
    types = {name: weight.dtype for name, weight in half.swift.backbone.named_parameters()}
    assert {t for name, t in types.items() if name.startswith("classifier")} == {torch.float32}
    assert {t for name, t in types.items() if not name.startswith("classifier")} == {torch.bfloat16}
    logits = half.swift(half.swift.tokenizer(["a good film"], return_tensors="pt").to(half.device)).logits
    assert logits.dtype == torch.float32
    # Not on the grid of bfloat16.
    assert not torch.equal(logits, logits.bfloat16().float())
    plain = JointPredictor(*models, "inf")
    scores = [[one.score for one in predictor(texts)] for predictor in (half, plain)]
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)
    found = differences(half, plain, texts, [0.3, 0.5])
    for one in found.values():
        assert one["distance"] < 0.05
        assert one["labels"] <= 6
    assert all(not any(one.values()) for one in differences(plain, plain, texts, [0.3]).values())
    t5 = JointPredictor(*t5_models, "inf", "free_energy", dtype="bfloat16")
    assert {weight.dtype for weight in t5.swift.backbone.parameters()} == {torch.bfloat16}
    expected = JointPredictor(*t5_models, "inf", "free_energy")(texts)
    assert [one.score for one in t5(texts)] == pytest.approx([one.score for one in expected], abs=1.0, rel=0.1)
    with pytest.raises(InputError, match="'t5' model overflows in float16"):
        JointPredictor(*t5_models, "inf", dtype="float16")
    with pytest.raises(InputError, match="dtype must be one of float32, bfloat16, float16, but it is 'int8'"):
        JointPredictor(*models, "inf", dtype="int8")
    with pytest.raises(InputError, match="few must be at least 0, but it is -1"):
        JointPredictor(*models, "inf", few=-1)


def quantized(model):
    """Names of the weights that are int8, with a scale for each row."""
    found = set()
    for name, weight in model.backbone.named_parameters():
        if hasattr(weight, "qdata"):
            assert weight.qdata.dtype == torch.int8
            assert weight.scale.numel() == weight.shape[0]
            found.add(name)
    return found


@pytest.mark.parametrize("few", [0, 2])
def test_the_supers_matrices_as_int8(pair, texts, t5_models, few):
    """Of its layers alone: neither heads nor embeddings, nor the Swift."""
    models = str(pair["swift"]), str(pair["super"])
    small, plain = (JointPredictor(*models, "-inf", super_int8=int8, few=few) for int8 in (True, False))
    linear = {n: m for n, m in plain.super_.backbone.named_modules() if isinstance(m, torch.nn.Linear)}
    matrices = {f"{name}.weight" for name in linear if name != "classifier"}
    assert quantized(small.super_) == matrices
    assert quantized(small.swift) == quantized(plain.super_) == set()
    assert [one.label for one in small(texts[:2])] == [one.label for one in plain(texts[:2])]
    inputs = small.super_.tokenizer(texts, return_tensors="pt", padding=True).to(small.device)
    with torch.inference_mode():
        a, b = (predictor.super_(inputs).logits for predictor in (small, plain))
    assert not torch.equal(a, b)
    assert torch.allclose(a, b, atol=0.05)
    t5, expected = (JointPredictor(*t5_models, "-inf", "free_energy", super_int8=int8) for int8 in (True, False))
    assert t5.super_.short_path is None
    assert quantized(t5.super_)
    assert not [name for name in quantized(t5.super_) if name.startswith(("lm_head", "shared"))]
    pairs = zip(t5(texts), expected(texts), strict=True)
    assert sum(one.label == other.label for one, other in pairs) > 0.8 * len(texts)
    alone = JointPredictor(None, models[1], super_int8=True)
    assert quantized(alone.super_) == matrices


def test_int8_needs_torchao_and_a_folder(pair, monkeypatch):
    models = str(pair["swift"]), str(pair["super"])
    with pytest.raises(InputError, match="super_int8 is for models that are loaded here"):
        JointPredictor(models[0], load_model(models[1]), "inf", super_int8=True)
    monkeypatch.setattr("elang.errors.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"elang-joint\[int8\]"):
        JointPredictor(*models, "inf", super_int8=True)


@pytest.mark.parametrize(("score", "few"), [("max_softmax", 0), ("router", 2)])
def test_onnx_says_the_same(pair, texts, score, few):
    """Many, few and one; the router reads the hidden state."""
    models = str(pair["swift"]), str(pair["super"])
    plain = JointPredictor(*models, "inf", score, device="cpu")
    ordered = sorted(one.score for one in plain(texts))
    plain.threshold = (ordered[29] + ordered[30]) / 2
    fast = JointPredictor(*models, plain.threshold, score, device="cpu", few=few, onnx=True)
    assert fast.swift.onnx_path is not None
    assert fast.super_.onnx_path is not None
    # The weights are not read any more.
    for model in (fast.swift, fast.super_):
        for weight in model.backbone.parameters():
            weight.data.fill_(float("nan"))
    for some in (texts, texts[:2], texts[:1]):
        like(fast(some), plain(some))


def test_an_export_that_says_otherwise_is_refused(pair, monkeypatch):
    model = load_model(str(pair["swift"])).eval()
    call = OnnxPath.__call__
    monkeypatch.setattr(OnnxPath, "__call__", lambda *given, **more: (call(*given, **more)[0] + 0.01, None))
    with pytest.raises(InputError, match="'bert' model gives other answers as ONNX"):
        model.export()
    monkeypatch.setattr(torch.onnx, "export", lambda *given, **more: 1 / 0)
    with pytest.raises(InputError, match=r"'bert' model cannot be exported to ONNX \(ZeroDivisionError"):
        model.export()


def test_onnx_is_for_encoders_on_a_cpu(pair, t5_models, monkeypatch):
    models = str(pair["swift"]), str(pair["super"])
    for wrong in ({"dtype": "bfloat16"}, {"compile": True}, {"super_int8": True}):
        with pytest.raises(InputError, match="onnx runs on the CPU in float32"):
            JointPredictor(*models, "inf", onnx=True, **wrong)
    with pytest.raises(InputError, match="onnx is for encoders, and this model is a 't5'"):
        JointPredictor(*t5_models, "inf", device="cpu", onnx=True)
    monkeypatch.setattr("elang.errors.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"elang-joint\[onnx\]"):
        JointPredictor(*models, "inf", device="cpu", onnx=True)


def test_both_models_are_compiled(pair, t5_models, monkeypatch):
    """Compilation itself is the library's."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: calls.append((self, given)))
    calls = []
    made = JointPredictor(str(pair["swift"]), str(pair["super"]), "inf", compile=True)
    assert {one for one, _ in calls} == {made.swift.backbone, made.super_.backbone}
    assert all(given == {"dynamic": True} for _, given in calls)
    # What is compiled is what is called.
    assert JointPredictor(*t5_models, "inf", compile=True).swift.short_path is None


def test_bench_one_by_one_and_in_bfloat16(pair, files, tmp_path, capsys):
    args = ["bench", "--swift_model", str(pair["swift"]), "--super_model", str(pair["super"]), "--few", "1"]
    args += ["--input", str(files[1]), "--text", "[text]", "--repeats", "1", "--single", "3", "--shares", "[0.5]"]
    assert main([*args, "--dtype", "bfloat16", "--output", str(tmp_path / "b.json")]) == 0
    assert "answered otherwise than in float32" in capsys.readouterr().out.replace("\n", " ")
    found = json.loads((tmp_path / "b.json").read_text())
    assert (found["dtype"], found["super_int8"]) == ("bfloat16", False)
    assert found["differences"]["defer 50%"].keys() == {"labels", "decisions", "distance"}
    assert found["passes"]["defer 50%"]["one by one"]["median"] > 0
    assert main([*args, "--super_int8", "true", "--output", str(tmp_path / "c.json")]) == 0
    found = json.loads((tmp_path / "c.json").read_text())
    assert (found["dtype"], found["super_int8"]) == ("float32", True)
    # The Swift routes, and is as it was.
    assert found["differences"]["defer 50%"]["decisions"] == 0
