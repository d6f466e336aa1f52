"""The short way of decoder-only models: label words, and texts in a cache of fixed size. Graphs need a GPU."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from backends.test_causal import BY_PATHS, FAMILIES, WORDS_OF, task_of, write_causal
from backends.test_causal import encoded as encoded_words
from backends.test_causal_generation import TOKENS, encoded, made_of
from backends.test_families import texts
from elang.backends.fast.graphs import WANTED, SmallBatches
from elang.backends.loading.load import load_model
from elang.backends.network import InferenceOptions
from elang.data.encoding import pad_of, token_lists
from elang.method.scores import BEFORE_DECODER
from elang.tasks.sampling import Sampling

ANY_MASK = sorted(set(FAMILIES) - BY_PATHS)
# What waits for the device, or has a shape that the device decides.
WAITING = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "equal", "_unique2"}


class Captured(TorchDispatchMode):
    """Refuses what no graph can capture."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{name} cannot be captured"
        return func(*args, **(kwargs or {}))


@contextmanager
def capturing(monkeypatch):
    """As while a graph is captured."""
    with monkeypatch.context() as patch, Captured():
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        yield


def small_batches(model, score=None, **options):
    passes = model.short_way(InferenceOptions(score))
    assert passes is not None
    limit = model.reader.limit(60)
    return SmallBatches(passes, pad_of(model.tokenizer), 6, limit, torch.device("cpu"), "The Swift", **options)


def with_heads(model):
    model.add_heads()
    for head in model.routers.values():
        head.weight.normal_(generator=torch.Generator().manual_seed(0))
        head.scale.fill_(1)
    return model


@pytest.mark.parametrize("name", ANY_MASK)
@torch.inference_mode()
def test_texts_of_a_family(tmp_path, name):
    """Those of the library, with their scores; of inputs that need not be generated there are none."""
    model = with_heads(made_of(write_causal(tmp_path / "model", name)))
    rows = token_lists(model.reader, model.task, texts(), model.reader.limit(60))[0]
    inputs = encoded(model, texts()).batch(list(range(6)))
    # So that one text at least ends early.
    model.settings.eos_token_id = [3, int(model.generate(model.encode(inputs)).ids[1, 4])]
    made = model.generate(model.encode(inputs))
    assert int(made.steps[1]) <= 5
    expected = model.padded_ids(made)
    for score in (None, "nll_mean", "prompt_router", "router"):
        small = small_batches(model, score, tokens=TOKENS, left=True)
        (early,) = small.first(rows)
        kept = [i % 3 > 0 for i in range(6)] if score in BEFORE_DECODER else [True] * 6
        late, *ids = small.generate(kept)
        written = torch.tensor(ids).long().T
        assert written.shape == (6, TOKENS)
        for row, keep in enumerate(kept):
            steps = int(made.steps[row]) if keep else 0
            assert written[row, :steps].tolist() == expected[row, :steps].tolist()
            assert set(written[row, steps:].tolist()) <= {-1}
        if score is not None:
            value = torch.tensor(early if score in BEFORE_DECODER else late)
            torch.testing.assert_close(value, model.score_of(score, made).float(), rtol=0, atol=1e-4)


@torch.inference_mode()
def test_padding_is_no_part_of_a_text(tmp_path):
    """Also where generation_config.json pads with a token that stands in texts."""
    model = made_of(write_causal(tmp_path / "model"))
    inputs = encoded(model, texts()).batch(list(range(6)))
    model.settings.update(pad_token_id=40, eos_token_id=[3, int(model.generate(model.encode(inputs)).ids[1, 2])])
    made = model.generate(model.encode(inputs))
    assert int(made.steps[1]) <= 3 < TOKENS
    small = small_batches(model, "nll_mean", tokens=TOKENS, left=True)
    small.first(token_lists(model.reader, model.task, texts(), model.reader.limit(60))[0])
    ids = torch.tensor(small.generate([True] * 6)[1:]).long().T
    assert model.texts(ids) == model.texts(model.padded_ids(made))


@torch.inference_mode()
def test_a_step_may_be_tried_after_the_longest_prompt_of_a_short_text(tmp_path):
    """Before it is captured it runs several times, and learned positions end where prompt and text do."""
    model = made_of(write_causal(tmp_path / "model", "gpt2"))
    model.tokenizer.model_max_length = model.backbone.config.n_positions
    model.configure_generation(2)
    ids = torch.full((1, model.reader.limit(1000)), 7)
    assert ids.shape[1] + 2 == model.backbone.config.n_positions
    state = {"input_ids": ids, "attention_mask": torch.ones_like(ids), WANTED: torch.ones(1, dtype=torch.int64)}
    first, begin, step, last = model.short_way(InferenceOptions("nll_mean"))
    made, state = model.generate(model.encode(state)), begin(first(state)[1])[1]
    for _ in range(5):
        step(state)
    assert torch.equal(last(state)[0][:, 1:].long(), model.padded_ids(made))


@pytest.mark.parametrize("name", ANY_MASK)
@torch.inference_mode()
def test_a_graph_could_capture_it(tmp_path, name, monkeypatch):
    """Nothing in the passes waits for the device, of label words as of texts."""
    folder = write_causal(tmp_path / "model", name)
    for model in (made_of(folder, heads=True), load_model(folder, task_of(WORDS_OF["tree"])).eval()):
        rows = (encoded if model.max_new_tokens else encoded_words)(model, texts())
        state = rows.batch(list(range(6))) | {WANTED: torch.ones(6, dtype=torch.int64)}
        score = "nll_mean" if model.max_new_tokens else "max_softmax"
        for run in model.short_way(InferenceOptions(score)):
            # The first run moves constants.
            run(state)
            with capturing(monkeypatch):
                state = run(state)[1]


def test_what_has_no_short_way(tmp_path):
    """Beams, samples, strings that end texts, shared beginnings, scores with own passes, families without masks."""
    folder, options = write_causal(tmp_path / "model"), InferenceOptions("nll_mean")
    model = made_of(folder)
    assert model.short_way(options)
    assert made_of(folder, beams=3).short_way(options) is None
    assert model.short_way(InferenceOptions("p_true")) is None
    drawn = made_of(folder)
    drawn.sample(Sampling())
    assert drawn.short_way(options) is None
    model.prefix.tokens = tuple(range(20))
    assert model.short_way(options) is None
    model.prefix.tokens, model.stop = (), "\n\nQ"
    assert model.short_way(options) is None
    assert made_of(write_causal(tmp_path / "bloom", "bloom")).short_way(options) is None
