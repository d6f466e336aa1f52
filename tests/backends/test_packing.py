"""Several texts in one row of a training batch: the loss and all gradients are those of a row for each text."""

import pytest
import torch

from backends.test_causal import BY_PATHS, WORDS_OF, encoded, task_of, write_causal
from backends.test_causal_generation import encoded as encoded_texts
from backends.test_causal_generation import made_of
from backends.test_families import texts
from elang import FinetuneModule, InputError
from elang.backends import packing
from elang.backends.loading.load import load_model
from elang.data.encoding import encode_examples
from elang.tasks.text_task import TextTask

WAYS = [(name, way) for name in ("llama", "qwen2", "gpt2", "gemma3_text") for way in ("sdpa", "eager")]
MORE = [("gemma2", "eager"), ("qwen3_moe", "sdpa"), ("falcon", "sdpa")]
REFERENCES = ["abc", "x", "hello", "", "zz", "moretokensthanareallowed"]


def set_up(model, packed, attention="sdpa", checkpointing=False):
    """A model in training, without chance."""
    model.backbone.set_attn_implementation(attention)
    options = {"freeze_embeddings": False, "checkpointing": checkpointing, "compiled": False}
    model.prepare_training(0.0, **options, packing=packed)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def shapes_of(model):
    """What the model reads from now on: the shapes of its tokens, of its masks, and of its logits."""
    seen = []

    def note(module, args, kwargs, output):
        mask = kwargs["attention_mask"]
        mask = next(iter(mask.values())) if isinstance(mask, dict) else mask
        seen.append((tuple(kwargs["input_ids"].shape), mask.ndim, output.logits.shape[0] * output.logits.shape[1]))

    model.backbone.register_forward_hook(note, with_kwargs=True)
    return seen


def trained(model, batch, target, **options):
    """The loss, the answer, and the gradients of a weighted sum of loss and logits."""
    model.zero_grad()
    answer = model(batch, target, **options)
    weights = torch.linspace(0.1, 1, answer.logits.shape[-1])
    used = answer.logits if target is None or answer.logits.ndim == 2 else answer.logits[batch["labels"] >= 0]
    total = answer.loss + (used.float().log_softmax(-1) * weights).mean() * options.get("want_logits", True)
    total.backward()
    return answer.loss.detach(), used.detach(), [weight.grad.clone() for weight in model.backbone.parameters()]


def assert_same(packed, plain):
    for ours, theirs in zip((packed[0], packed[1]), (plain[0], plain[1]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(packed[2], plain[2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize(("name", "attention"), WAYS + MORE)
def test_label_words(tmp_path, name, attention):
    """With the labels' logits, which distillation and margins learn from, and without; answers of one token, and more.

    A window of the layers lies within a text.
    """
    window = {"sliding_window": 4} if name.startswith("gemma") else {}
    folder = write_causal(tmp_path / "model", name, **window)
    for words in ("tree", "single"):
        models = [set_up(load_model(folder, task_of(WORDS_OF[words]), fine_tune=True), on, attention) for on in (1, 0)]
        batch = encoded(models[0], texts()).batch(list(range(6)))
        target = torch.tensor([0, 1, 2, 2, 1, 0])
        seen = [shapes_of(model) for model in models]
        for wanted in (True, False):
            assert_same(*(trained(model, batch, target, want_logits=wanted) for model in models))
        rows = [shape[0][0] for shape in seen[0]]
        assert max(rows) < 6 == min(shape[0][0] for shape in seen[1])
        assert all(shape[1] == 4 for shape in seen[0])


@pytest.mark.parametrize(("name", "attention"), WAYS)
def test_generated_texts(tmp_path, name, attention):
    """References of all lengths follow their prompts at once; none of a text's padding gets logits."""
    folder = write_causal(tmp_path / "model", name)
    models = [set_up(made_of(folder, fine_tune=True), on, attention) for on in (True, False)]
    batch = encoded_texts(models[0], texts(), REFERENCES).batch(list(range(6)))
    seen = shapes_of(models[0])
    assert_same(*(trained(model, batch, torch.zeros(6)) for model in models))
    (((rows, width), mask, logits),) = seen
    assert rows < 6
    assert mask == 4
    assert width == int((batch["attention_mask"].sum(1) + (batch["labels"] >= 0).sum(1)).max()) - 1
    assert logits == int((batch["labels"] >= 0).sum())


def test_checkpoints_of_activations(tmp_path):
    folder = write_causal(tmp_path / "model")
    results = []
    for on in (True, False):
        model = set_up(load_model(folder, task_of(WORDS_OF["tree"]), fine_tune=True), on, checkpointing=True)
        batch = encoded(model, texts()).batch(list(range(6)))
        results.append(trained(model, batch, torch.tensor([0, 1, 2, 2, 1, 0])))
    assert_same(*results)


def test_only_training_is_packed(tmp_path):
    """Evaluation, and the router head that is fitted after training, read one text a row."""
    model = set_up(load_model(write_causal(tmp_path / "model"), task_of(WORDS_OF["tree"]), fine_tune=True), True).eval()
    model.add_heads()
    batch, seen = encoded(model, texts()).batch(list(range(6))), shapes_of(model)
    with torch.no_grad():
        answer = model(batch, torch.zeros(6, dtype=torch.int64))
    assert seen[0][0][0] == len(answer.pooled) == 6
    hooks = model.backbone.get_output_embeddings()._forward_pre_hooks
    model.train()(batch, torch.zeros(6, dtype=torch.int64))
    assert seen[1][0][0] < 6
    assert not hooks


@pytest.mark.parametrize("name", ["bloom", *sorted(BY_PATHS - {"bloom"})])
def test_families_that_are_refused(tmp_path, name):
    folder, task = write_causal(tmp_path / "model", name), task_of(WORDS_OF["single"])
    with pytest.raises(InputError, match=f"cannot keep the texts of one row apart in a '{name.split()[0]}' model"):
        FinetuneModule(folder, task.label_names, task.plain(), packing=True)


@pytest.mark.parametrize(("name", "attention"), WAYS)
def test_a_head_on_the_last_token(tmp_path, name, attention):
    """Whatever side is padded; candidates of an example are texts of their own."""
    folder, task = write_causal(tmp_path / "model", name), TextTask.of(["a", "b", "c"])
    models = [set_up(load_model(folder, task, fine_tune=True), on, attention) for on in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    batch = encode_examples(models[0].reader, task, texts(), None, 40).batch(list(range(6)))
    seen = shapes_of(models[0])
    results = [trained(model, batch, torch.tensor([0, 1, 2, 2, 1, 0])) for model in models]
    assert_same(*results)
    assert results[0][1].std(0).min() > 1e-2
    assert seen[0][0][0] < 6
    assert not models[0].backbone.score._forward_hooks
    with pytest.raises(InputError, match="Hidden states are not distilled"):
        models[0].return_states()


def test_encoders_are_refused(tmp_path, base_model):
    task = TextTask.of(["a", "b"])
    with pytest.raises(InputError, match=r"packing is for decoder-only .* reads one text in each row"):
        FinetuneModule(str(base_model), task.label_names, task.plain(), packing=True)


def test_it_is_not_compiled(tmp_path):
    folder, task = write_causal(tmp_path / "model"), task_of(WORDS_OF["single"])
    with pytest.raises(InputError, match=r"--model\.compile would compile anew"):
        FinetuneModule(folder, task.label_names, task.plain(), packing=True, compile=True)


def test_rows_are_as_long_as_the_longest_text():
    row, start = packing.rows_of([7, 2, 3, 10, 1, 4, 5])
    places = [(r, s, s + n) for r, s, n in zip(row, start, [7, 2, 3, 10, 1, 4, 5], strict=True)]
    assert max(end for _, _, end in places) == 10
    assert len({(r, place) for r, s, end in places for place in range(s, end)}) == 32
    assert max(row) == 3
