"""Router heads: ridge regression, cross-fitted, cautious; and the head on an encoder's output."""

import math

import pytest
import torch
from sklearn.linear_model import RidgeCV
from torch.nn.functional import cross_entropy, layer_norm

from elang.backends.encoder import EncoderHead, masked_mean
from elang.data.examples import fold_of
from elang.method.bootstrap import gain_area
from elang.method.router import FOLDS, RouterHead, expected_gain, logit_features, num_logit_features
from elang.method.scores import ROUTER_READS, all_scores


def inputs(n=64, width=32, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator), 3 * torch.randn(n, classes, generator=generator)


def folds(n, seed=0):
    return fold_of(keys(n, seed))


def keys(n, seed=0):
    return torch.randint(-(2**63), 2**63 - 1, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("classes", [2, 3, 8, 9])
def test_logit_features(classes):
    _, logits = inputs(classes=classes)
    found = logit_features(logits.requires_grad_(), classes)
    top = min(classes, 3)
    assert not found.requires_grad
    assert found.shape == (64, num_logit_features(classes))
    assert found.shape[1] == len(ROUTER_READS) + top + (classes if classes <= 8 else 0)
    for i, score in enumerate(all_scores(logits).values()):
        torch.testing.assert_close(found[:, i], score)
    torch.testing.assert_close(found[:, 6 : 6 + top], logits.sort(-1, descending=True).values[:, :top])
    if classes <= 8:
        torch.testing.assert_close(found[:, 6 + top :], logits.softmax(-1))


def test_logit_features_of_missing_choices():
    _, logits = inputs(classes=2)
    wide = torch.full((64, 5), -math.inf)
    wide[:, [1, 4]] = logits
    found, few = logit_features(wide, 5), logit_features(logits, 2)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, :8], few[:, :8])
    assert torch.equal(found[:, 8], logits.amin(-1))
    # A batch of examples that all have few choices need not be padded.
    narrow = logit_features(wide[:, :2].clone().fill_(1.0), 5)
    assert narrow.shape == found.shape
    only = logit_features(torch.tensor([[-math.inf, 2.0, -math.inf]]), 3)
    assert only.isfinite().all()
    assert only[0, 6:9].tolist() == [2.0, 2.0, 2.0]
    value = torch.randn(5, 1)
    assert torch.equal(logit_features(value, 1), value)


def test_a_head_is_ridge_regression():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 12, generator=generator).double() * torch.arange(1, 13)
    y = x[:, 0] - 0.1 * x[:, 5] + 3 + torch.randn(300, generator=generator)
    head = RouterHead(12)
    report = head.fit(x, y, folds(300))
    standard = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    reference = RidgeCV(alphas=(300 * torch.logspace(-6, 3, 37)).numpy()).fit(standard, y.numpy())
    expected = torch.tensor(reference.predict(standard)).float()
    torch.testing.assert_close(head(x), expected, atol=0.1, rtol=0.05)
    assert float((head(x) - y).square().mean()) < 1.2
    assert report["reads"] == "all features"
    assert report["examples"] == 300
    assert report["mean_gain"] == pytest.approx(float(y.mean()))


def test_without_a_lesson_it_says_the_mean():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 200, generator=generator), torch.randn(60, generator=generator) + 5
    head = RouterHead(200)
    head.fit(x, y, folds(60))
    fresh = head(torch.randn(400, 200, generator=generator))
    assert float(fresh.std()) < 0.5
    assert float(fresh.mean()) == pytest.approx(float(y.mean()), abs=0.2)
    # What never varies, and a single example, are no reason to fail.
    for features in (torch.ones(60, 3), torch.ones(1, 3)):
        head = RouterHead(3)
        head.fit(features, y[: len(features)], folds(len(features)))
        torch.testing.assert_close(head(features), y[: len(features)].mean().expand(len(features)))


def test_an_example_is_answered_by_a_fit_that_has_not_seen_it():
    generator = torch.Generator().manual_seed(0)
    x, y, key = torch.randn(100, 60, generator=generator), torch.randn(100, generator=generator), keys(100)
    fold = fold_of(key)
    assert set(fold.tolist()) == set(range(FOLDS))
    head, other = RouterHead(60), RouterHead(60)
    head.fit(x, y, fold)
    changed = y.clone()
    changed[7] += 100
    other.fit(x, changed, fold)
    # All fits share the slope and the mean that put them on the gain's scale; their order does not change.
    before, after = head(x, fold), other(x, fold)
    own = fold == fold[7]
    assert own.sum() > 10
    torch.testing.assert_close(before[own].argsort(), after[own].argsort())
    assert not torch.equal(before[~own].argsort(), after[~own].argsort())
    # In sample it would look as if there were something to learn.
    assert gain_area(head(x), y) > gain_area(before, y) + 0.2
    assert abs(float(gain_area(before, y))) < 0.4


def test_expected_gain_is_the_mean_over_the_supers_labels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator)
    logits[0, 2] = -math.inf
    super_, swift = logits.argmax(-1), torch.randint(4, (6,), generator=generator)
    super_[3], swift[4] = -1, -1
    labels = torch.multinomial(logits.softmax(-1), 40_000, True, generator=generator)
    drawn = (labels == super_[:, None]).double().mean(1) - (labels == swift[:, None]).double().mean(1)
    torch.testing.assert_close(expected_gain(logits, super_, swift), drawn, atol=0.01, rtol=0)


def test_a_lesson_is_learned_from_and_put_on_the_gains_scale():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator)
    odds = (2 * x[:, 1] - 2).sigmoid().double()
    gain = (torch.rand(400, generator=generator) < odds).double()
    # The expected gain says it all, but three times as large.
    head, plain = RouterHead(3), RouterHead(3)
    candidates = {"score": [0], "all": [0, 1, 2]}
    report = head.fit(x, gain, folds(400), candidates, "score", expected=3 * odds)
    assert report["reads"] == "all"
    assert report["learned_from"] == "the Super's probabilities"
    assert report["areas"]["all"] > 0.9
    assert plain.fit(x, gain, folds(400), candidates, "score")["learned_from"] == "the gain"
    fresh = torch.randn(2000, 3, generator=generator)
    truth = (2 * fresh[:, 1] - 2).sigmoid()
    errors = [1 - torch.corrcoef(torch.stack([h(fresh), truth]))[0, 1] for h in (head, plain)]
    assert errors[0] < errors[1]
    said = head(fresh)
    assert float(said.mean()) == pytest.approx(float(truth.mean()), abs=0.03)
    line = torch.linalg.lstsq(torch.stack([said, torch.ones(2000)], 1), truth[:, None]).solution[0]
    assert 0.8 < float(line) < 1.25


def test_a_super_that_is_sure_and_wrong_does_not_choose_the_router():
    """Where the Super is certain and often wrong, its probabilities say that there is much to gain."""
    refused = 0
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(600, 2, generator=generator)
        sure = x[:, 1] > 0.8
        expected = torch.where(sure, 0.9, 0.2 * (x[:, 0]).sigmoid()).double()
        gain = (torch.rand(600, generator=generator) < 0.4 * (3 * x[:, 0] - 1).sigmoid()).double() * ~sure
        report = RouterHead(2).fit(x, gain, folds(600, seed), {"score": [0], "all": [0, 1]}, "score", expected=expected)
        assert report["areas"]["all"] > report["areas"]["score"]
        assert report["reads"] == "score"
        refused += "worse by right answers" in report["why"]
        assert report["areas_by_answers"]["all"] < report["areas_by_answers"]["score"]
    assert refused == 12


def test_folds_are_told_by_the_text_alone():
    key = keys(10_000)
    for folds in (2, 5, 7):
        fold = fold_of(key, folds)
        counts = fold.bincount(minlength=folds)
        assert len(counts) == folds
        assert counts.min() > 0.9 * 10_000 / folds
    assert torch.equal(fold_of(key[:50]), fold_of(key)[:50])


def gains(n, signal, seed=0):
    """Features of which the first is a plain score, and the gain that the second tells more of, or not."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    odds = x[:, 0] + signal * x[:, 1] - 1.5
    return x, (torch.rand(n, generator=generator) < odds.sigmoid()).double()


CANDIDATES = {"score": [0], "all": [0, 1, 2, 3, 4, 5]}


def test_more_is_read_where_it_helps():
    x, y = gains(1500, 2.0)
    head = RouterHead(6)
    report = head.fit(x, y, folds(1500), CANDIDATES, "score")
    assert report["reads"] == "all"
    assert report["areas"]["all"] > report["areas"]["score"]
    assert report["better_by_at_least"] > 0
    fresh, gain = gains(3000, 2.0, seed=1)
    assert gain_area(head(fresh), gain) > gain_area(fresh[:, 0], gain) + 0.1
    # Expected gains, on the scale of what came.
    said = head(fresh)
    for low, high in ((0.0, 0.5), (0.5, 1.0)):
        part = (said >= said.quantile(low)) & (said <= said.quantile(high))
        assert float(said[part].mean()) == pytest.approx(float(gain[part].mean()), abs=0.05)


def test_the_simple_score_is_kept_where_the_slice_cannot_tell():
    for seed in range(5):
        x, y = gains(150, 0.0, seed)
        head = RouterHead(6)
        report = head.fit(x, y, folds(150, seed), CANDIDATES, "score")
        assert report["reads"] == "score"
        assert "by chance" in report["why"] or report["areas"]["score"] >= report["areas"]["all"]
        # The order is exactly the score's, on the slice, too.
        fresh = gains(200, 0.0, 9)[0]
        assert torch.equal(head(fresh).argsort(), fresh[:, 0].argsort())
        assert torch.equal(head(x, folds(150, seed)).argsort(), x[:, 0].argsort())


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_nothing_to_choose_by(gain):
    x, _ = gains(40, 0.0)
    head = RouterHead(6)
    report = head.fit(x, torch.full((40,), gain), folds(40), CANDIDATES, "score")
    assert report["reads"] == "score"
    assert "nothing to gain" in report["why"]
    assert torch.equal(head(x).argsort(), x[:, 0].argsort())
    assert head(x).isfinite().all()


def test_a_score_that_points_the_wrong_way_keeps_its_order():
    x, _ = gains(400, 0.0)
    head = RouterHead(6)
    head.fit(x, (x[:, 0] < 0).double(), folds(400), {"score": [0]}, "score")
    assert torch.equal(head(x).argsort(), x[:, 0].argsort())


def test_a_wide_hidden_state_does_not_drown_the_scores():
    generator = torch.Generator().manual_seed(0)
    x, y = gains(400, 0.0)
    wide = torch.cat([x[:, :1], torch.randn(400, 500, generator=generator)], 1)
    fresh, gain = gains(2000, 0.0, seed=1)
    fresh = torch.cat([fresh[:, :1], torch.randn(2000, 500, generator=generator)], 1)
    areas = []
    for hidden in (500, 0):
        head = RouterHead(501, hidden)
        head.fit(wide, y, folds(400))
        areas.append(float(gain_area(head(fresh), gain)))
    assert areas[0] > areas[1] + 0.1


def test_heads_keep_their_precision():
    head = RouterHead(3).bfloat16()
    x, y = torch.randn(50, 3), torch.randn(50)
    head.fit(x, y, folds(50))
    assert head.weight.dtype == torch.float32
    expected = RouterHead(3)
    expected.fit(x, y, folds(50))
    torch.testing.assert_close(head(x), expected(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(x), expected(x))
    assert head.bfloat16()(x).dtype == torch.float32


def test_save_and_load(tmp_path):
    x, y = gains(100, 1.0)
    head, other = RouterHead(6), RouterHead(6)
    head.fit(x, y, folds(100))
    assert head.fitted
    assert not other.fitted
    torch.save(head.state_dict(), tmp_path / "router.pt")
    other.load_state_dict(torch.load(tmp_path / "router.pt", weights_only=True))
    assert torch.equal(other(x), head(x))
    assert torch.equal(other(x, folds(100)), head(x, folds(100)))
    assert other.fitted


def test_masked_mean():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 6, 5, generator=generator)
    lengths = [6, 1, 4, 0]
    mask = torch.tensor([[1] * n + [0] * (6 - n) for n in lengths])
    found = masked_mean(hidden, mask)
    for row, n in enumerate(lengths):
        expected = hidden[row, :n].mean(0) if n else torch.zeros(5)
        torch.testing.assert_close(found[row], expected)


def encoder_head(width=32, classes=3, seed=0):
    torch.manual_seed(seed)
    return EncoderHead(width, classes)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_encoder_head_is_a_norm_and_a_linear_layer(classes):
    pooled, _ = inputs()
    made = encoder_head(classes=classes)
    expected = layer_norm(pooled, (32,)) @ made.out.weight.T + made.out.bias
    assert made(pooled).shape == (64, classes)
    torch.testing.assert_close(made(pooled), expected)
    assert sum(p.numel() for p in made.parameters()) == 2 * 32 + 33 * classes


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_into_the_encoder(detach):
    pooled, logits = inputs()
    pooled.requires_grad_()
    made = encoder_head()
    cross_entropy(made(pooled, detach=detach), logits.argmax(-1)).backward()
    assert (pooled.grad is None) == detach
    assert detach or pooled.grad.any()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())


def test_the_encoder_is_left_alone_unless_asked():
    pooled, _ = inputs()
    encoder_head()(pooled.requires_grad_()).sum().backward()
    assert pooled.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_encoder_head_computes_in_float32(dtype):
    pooled, _ = inputs()
    made = encoder_head()
    with torch.autocast("cpu", torch.bfloat16):
        found = made(30 * pooled.to(dtype))
    assert found.dtype == torch.float32
    assert torch.equal(found, made((30 * pooled.to(dtype)).float()))
    made.to(torch.bfloat16)
    assert made(pooled).dtype == torch.float32


def test_encoder_head_learns():
    pooled, _ = inputs(2000)
    truth = pooled[:, :3].argmax(-1)
    made = encoder_head()
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        cross_entropy(made(pooled[:1000]), truth[:1000]).backward()
        optimizer.step()
    assert (made(pooled[1000:]).argmax(-1) == truth[1000:]).double().mean() > 0.9
