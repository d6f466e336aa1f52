"""What all prompts begin with is read once: answers and texts stay the same, and costs are those of what is read."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from backends.test_causal import BY_PATHS, FAMILIES, WORDS_OF, encoded, task_of, write_causal
from backends.test_families import texts
from elang.backends import shared_prefix
from elang.backends.causal_generator import CausalGenerator
from elang.backends.loading.load import load_model
from elang.backends.network import InferenceOptions
from elang.tasks.text_task import TextTask

SHARED = "Abcdefghijklmnopqrstuv"
# With the token in front of a text.
COUNT = len(SHARED) + 1
TEXTS = TextTask([], "sequence", segments=[], qualities=["exact_text"], prompt=SHARED + "{text}Z(")
TOKENS, LONGEST = 8, 96
ASKED = ("p_true", "agreement")
ROWS = list(range(6))


def made_of(folder, task, **options):
    model = load_model(folder, task, **options).eval()
    model.tokenizer.model_max_length = LONGEST
    if task is TEXTS:
        model.configure_generation(TOKENS, options.get("num_beams"))
    model.add_heads()
    return model


def words_of(folder, words="tree", **options):
    return made_of(folder, task_of(WORDS_OF[words], prompt=SHARED + "{text}Z("), **options)


def wide(name):
    """Positions for all that is read, and a window that all of it lies in."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "sliding_window")
    return {key: LONGEST + 4 for key in names if key in FAMILIES[name]}


class Reads:
    """Within, the places of each pass of a model: rows, and tokens that are read."""

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.shapes = []
        self.hook = self.model.backbone.get_input_embeddings().register_forward_hook(
            lambda module, args, output: self.shapes.append(tuple(output.shape[:2]))
        )
        return self.shapes

    def __exit__(self, *error):
        self.hook.remove()


def whole(model):
    """The same model, which reads all of each prompt."""
    model.prefix = shared_prefix.SharedPrefix(model.backbone.config, ())
    return model


@torch.no_grad()
@pytest.mark.parametrize(("name", "words"), [(n, "tree") for n in FAMILIES] + [("llama", "single"), ("gpt2", "single")])
def test_label_words_of_a_family(tmp_path, name, words):
    """In a batch, padded on either side, as each alone, as without; families whose answers go by places read all."""
    model = words_of(write_causal(tmp_path / "model", name, **wide(name)), words)
    given = encoded(model, texts())
    target = torch.tensor([0, 1, 2, 2, 1, 0])
    model(given.batch([0]))
    with Reads(model) as shapes:
        batch = model(given.batch(ROWS))
    longest = int(given.lengths.max())
    if name in BY_PATHS:
        assert not model.prefix.tokens
        assert shapes[0] == (6, longest)
    else:
        assert shapes == [(6, longest - COUNT + model.shape.nodes)]
    alone = [model(given.batch([i])) for i in ROWS]
    trained = model(given.batch(ROWS), target)
    model.tokenizer.padding_side = "right"
    right = model(encoded(model, texts()).batch(ROWS))
    model.tokenizer.padding_side = "left"
    expected = whole(model)(given.batch(ROWS), target)
    torch.testing.assert_close(trained.loss, expected.loss, rtol=0, atol=1e-5)
    for key in ("logits", "pooled"):
        value = getattr(expected, key)
        assert value.std(0).max() > 1e-2
        for other in (batch, right, trained):
            torch.testing.assert_close(getattr(other, key), value, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.cat([getattr(one, key) for one in alone]), value, rtol=0, atol=1e-5)


GREEDY = ["biogpt", "falcon", "gemma2", "gemma3_text", "gpt2", "gpt_bigcode", "llama", "mistral", "opt", "phi"]
GREEDY += ["qwen3_moe", "bloom", "mpt"]


@pytest.mark.parametrize(("name", "beams"), [*((n, 1) for n in GREEDY), ("gemma2", 3), ("gpt2", 3), ("qwen3_moe", 3)])
def test_texts_of_a_family(tmp_path, name, beams):
    """The same tokens and scores, also those with passes of their own."""
    model = made_of(write_causal(tmp_path / "model", name, **wide(name)), TEXTS, num_beams=beams)
    model.ask_for(*ASKED)
    given = encoded(model, texts())
    with torch.no_grad():
        made = [[model.generate(model.encode(given.batch(rows))) for rows in (ROWS, [0], [4])]]
        scores = [[model.score_of(key, made[0][0]) for key in ASKED]]
        assert (model.prefix._state is None) == (name in BY_PATHS)
        model.tokenizer.padding_side = "right"
        right = model.generate(model.encode(encoded(model, texts()).batch(ROWS)))
        model.tokenizer.padding_side = "left"
        whole(model)
        made.append([model.generate(model.encode(given.batch(rows))) for rows in (ROWS, [0], [4])])
        scores.append([model.score_of(key, made[1][0]) for key in ASKED])
    for ours, theirs in zip([*made[0], right], [*made[1], made[1][0]], strict=True):
        assert torch.equal(ours.steps, theirs.steps)
        assert torch.equal(ours.ids, theirs.ids)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.encoded.pooled, theirs.encoded.pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-5)


def counted(run, model, inputs):
    """The FLOPs of a run, once what is shared has been read."""
    run(model, inputs)
    with FlopCounterMode(display=False) as counter:
        run(model, inputs)
    return pytest.approx(counter.get_total_flops(), rel=1e-3)


def countable(model):
    """The same model without heads, with attention and experts that are counted."""
    model.backbone.set_attn_implementation("eager")
    model.backbone.config._experts_implementation = "batched_mm"
    model.heads.clear()
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3_moe", "gpt2", "bloom"])
def test_costs_are_those_of_what_is_read(tmp_path, name):
    """Of label words and of texts, with all their scores: the keys that are kept cost attention, but no reading."""
    folder = write_causal(tmp_path / "model", name, **wide(name))
    for words in ("tree", "single"):
        model = countable(words_of(folder, words))
        given = encoded(model, texts())
        costs = model.flops(given.batch([0, 5]))["flops"].tolist()
        for row, cost in zip((0, 5), costs, strict=True):
            assert cost == counted(lambda model, inputs: model(inputs), model, given.batch([row]))
        assert (float(whole(model).flops(given.batch([5]))["flops"]) > 1.2 * costs[1]) == (name not in BY_PATHS)

    def written(model, inputs):
        return model.generate(model.encode(inputs), exactly=TOKENS)

    for beams in (1, 3):
        model = countable(made_of(folder, TEXTS, num_beams=beams))
        model.ask_for("p_true")
        inputs = encoded(model, texts()).batch([3])
        costs = {key: float(cost) for key, cost in model.flops(inputs, steps=torch.tensor([TOKENS])).items()}
        assert costs["early_flops"] == counted(lambda m, inputs: m.begin(m.encode(inputs)), model, inputs)
        assert costs["flops"] + costs["score_flops"] == counted(written, model, inputs)
        made = written(model, inputs)
        made.ids[:, -1], made.steps[:] = model.end, TOKENS
        assert costs["p_true_flops"] == counted(CausalGenerator._p_true, model, made)


def test_a_deferred_prompt_pays_for_what_is_read(tmp_path):
    """Those that are kept go on from the same keys and values."""
    model = made_of(write_causal(tmp_path / "model", **wide("llama")), TEXTS)
    for head in model.routers.values():
        head.weight.normal_(generator=torch.Generator().manual_seed(0))
        head.scale.fill_(1)
    inputs = encoded(model, texts()).batch(ROWS)
    with torch.inference_mode():
        scores = model.answer_columns(inputs, [0])["prompt_router"]
        limit = float(scores.sort().values[2:4].mean())
        with Reads(model) as shapes:
            ours = model.answer_batch(inputs, InferenceOptions("prompt_router", limit))
        assert shapes[0] == (6, inputs["input_ids"].shape[1] - COUNT)
        assert set(shapes[1:]) == {(3, 1)}
        theirs = whole(model).answer_batch(inputs, InferenceOptions("prompt_router", limit))
    assert ours.texts == theirs.texts
    assert ours.texts.count(None) == 3


def test_what_is_kept_goes_with_the_weights(tmp_path):
    """Never with gradients or in training; computed anew after a change of the weights, which training makes."""
    model = words_of(write_causal(tmp_path / "model", **wide("llama")))
    inputs = encoded(model, texts()).batch(ROWS)
    full = 6, inputs["input_ids"].shape[1] + model.shape.nodes
    with Reads(model) as shapes:
        model(inputs)
        with torch.no_grad():
            model.train()(inputs)
    assert shapes == [full] * 2
    assert model.prefix._state is None
    model.eval()
    with torch.inference_mode():
        before = model(inputs).logits
    kept = model.prefix._layers
    with torch.no_grad():
        model(inputs)
        assert model.prefix._layers is kept
        # In place, as by an optimizer or by a file of weights.
        for weight in model.backbone.parameters():
            weight.mul_(1.1)
        after = model(inputs).logits
        assert model.prefix._layers is not kept
        torch.testing.assert_close(after, whole_logits(model, inputs), rtol=0, atol=1e-5)
        assert (after - before).abs().max() > 1e-2
        model.cast(torch.bfloat16)
        assert model(inputs).logits.isfinite().all()
        assert model.prefix._layers[0][0].dtype == torch.bfloat16
    loss = model.float()(inputs, torch.zeros(6, dtype=torch.int64)).loss
    loss.backward()
    with torch.no_grad():
        model(inputs)
    assert model.prefix._layers
    model.train()
    assert not model.prefix._layers


@torch.no_grad()
def test_a_batch_does_not_go_through_all_modules(tmp_path, monkeypatch):
    """Only what follows a change does, also of one that puts another module in a layer's place."""
    model = words_of(write_causal(tmp_path / "model", **wide("llama"))).eval()
    inputs, passed = encoded(model, texts()).batch(ROWS), []
    walk, count = torch.nn.Module.named_modules, len(list(model.backbone.modules()))

    def counted(module, *args, **options):
        for each in walk(module, *args, **options):
            passed.append(each)
            yield each

    monkeypatch.setattr(torch.nn.Module, "named_modules", counted)
    model(inputs)
    kept = model.prefix._layers
    assert len(passed) > count
    passed.clear()
    model(inputs)
    assert model.prefix._layers is kept
    # The first one tells the device.
    assert len(passed) < count / 2
    layer = model.backbone.model.layers[0].mlp
    layer.up_proj = copy.deepcopy(layer.up_proj)
    layer.up_proj.weight.data *= 2
    after = model(inputs).logits
    assert model.prefix._layers is not kept
    torch.testing.assert_close(after, whole_logits(model, inputs), rtol=0, atol=1e-5)


def whole_logits(model, inputs):
    prefix, model.prefix = model.prefix, shared_prefix.SharedPrefix(model.backbone.config, ())
    logits = model(inputs).logits
    model.prefix = prefix
    return logits


@torch.no_grad()
def test_half_precision(tmp_path):
    """Rounding apart, also where Lightning casts."""
    model = words_of(write_causal(tmp_path / "model", **wide("llama")))
    inputs = encoded(model, texts()).batch(ROWS)
    exact = model(inputs).logits
    with torch.autocast("cpu", torch.bfloat16):
        kept, cast = model.prefix._layers, model(inputs).logits
        assert model.prefix._layers is not kept
        plain = whole_logits(model, inputs)
    torch.testing.assert_close(model(inputs).logits, exact, rtol=0, atol=0)
    rough = float((plain - exact).abs().max())
    assert 0 < float((cast - exact).abs().max()) < 2 * rough


@torch.no_grad()
def test_a_window(tmp_path):
    """Prompts that end beyond it are read whole, a batch with one of them, too, and cost so."""
    model = words_of(write_causal(tmp_path / "model", "gemma2", **wide("gemma2") | {"sliding_window": 44}))
    given = encoded(model, texts())
    room = 44 - model.prompt.reserved
    assert (given.lengths > room).tolist() == [False] * 4 + [True] * 2
    shorter, all_ = given.batch([0, 1, 2, 3]), given.batch(ROWS)
    costs = model.flops(all_)["flops"]
    with Reads(model) as shapes:
        ours, more = model(shorter).logits, model(all_).logits
    nodes = model.shape.nodes
    assert [length for _, length in shapes] == [COUNT, int(given.lengths[3]) - COUNT + nodes, 60 + nodes]
    whole(model)
    torch.testing.assert_close(ours, model(shorter).logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(more, model(all_).logits, rtol=0, atol=1e-5)
    assert (model.flops(all_)["flops"] > costs).tolist() == [True] * 4 + [False] * 2
    narrow = words_of(write_causal(tmp_path / "narrow", "gemma2", max_position_embeddings=LONGEST))
    assert len(narrow.prefix.tokens) < shared_prefix.LEAST


@torch.no_grad()
def test_prompts_that_share_less(tmp_path):
    """As where a tokenizer joins the last letter with the text: what all of a batch share is what is not read."""
    model = words_of(write_causal(tmp_path / "model", **wide("llama")))
    given = encoded(model, texts())
    inputs = given.batch(ROWS)
    lengths = given.lengths.tolist()
    for row, same in ((0, 20), (3, 18)):
        inputs["input_ids"][row, inputs["input_ids"].shape[1] - lengths[row] + same] = 50
    shared = model.counted(inputs)[1].tolist()
    assert shared == [20, COUNT, COUNT, 18, COUNT, COUNT]
    with Reads(model) as shapes:
        ours = model(inputs).logits
    assert shapes[1] == (6, max(lengths) - 18 + model.shape.nodes)
    torch.testing.assert_close(ours, whole_logits(model, inputs), rtol=0, atol=1e-5)
    inputs["input_ids"][2, -lengths[2]] = 50
    with Reads(model) as shapes:
        model(inputs)
    assert shapes == [(6, max(lengths) + model.shape.nodes)]


@torch.no_grad()
def test_a_prompt_that_is_nothing_more(tmp_path):
    """Its last token is read, because the answer follows it."""
    model = made_of(
        write_causal(tmp_path / "model", **wide("llama")), task_of(WORDS_OF["tree"], prompt=SHARED + "{text}")
    )
    inputs = encoded(model, [("",), ("abc",)]).batch([0, 1])
    assert model.counted(inputs)[1].tolist() == [COUNT - 1, COUNT]
    torch.testing.assert_close(model(inputs).logits, whole_logits(model, inputs), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("how", ["compiled", "in step", "short", "static"])
def test_where_it_is_not_used(tmp_path, how):
    prompt = SHARED[:10] + "{text}Z(" if how == "short" else SHARED + "{text}Z("
    model = made_of(
        write_causal(tmp_path / "model", **wide("llama")),
        TEXTS if how == "static" else task_of(["a", "b"], prompt=prompt),
    )
    inputs = encoded(model, texts()).batch(ROWS)
    if how == "compiled":
        model.backbone.compile(backend="eager")
    elif how == "in step":
        model.sync_generation()
    elif how == "static":
        model.use_static_cache(True)
    if how == "compiled":
        assert model.split(inputs["input_ids"], inputs["attention_mask"], 0).past is None
    elif how == "static":
        model.begin(model.encode(inputs))
    else:
        model(inputs)
    assert model.prefix._state is None


def test_what_stands_before_the_first_field(tmp_path):
    """Braces of examples are text, and in a chat the template's beginning is shared."""
    model = made_of(
        write_causal(tmp_path / "model", **wide("llama")), task_of(["a", "b"], prompt="Ab{{c}}d{text}Z{text}(")
    )
    assert model.prompt.beginning(model.tokenizer) == (2, *model.tokenizer("Abcd", add_special_tokens=False).input_ids)
