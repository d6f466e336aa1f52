"""The heads: detached from the Swift, small, able to learn, steady in half precision."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, layer_norm

from elang.router import EncoderHead, RouterHead, logit_features, masked_mean
from elang.scores import entropy, free_energy, margin


def inputs(n=64, width=32, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator), 3 * torch.randn(n, classes, generator=generator)


def head(width=32, classes=3, seed=0):
    torch.manual_seed(seed)
    return RouterHead(width, classes)


def train(router, pooled, logits, target, steps=150):
    optimizer = torch.optim.AdamW(router.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(router(pooled, logits), target.float()).backward()
        optimizer.step()


def test_no_gradient_reaches_the_swift():
    pooled, logits = (x.requires_grad_() for x in inputs())
    router = head()
    router(pooled, logits).sum().backward()
    assert pooled.grad is None
    assert logits.grad is None
    # ... while every parameter of its own is trained.
    assert all(p.grad is not None and p.grad.any() for p in router.parameters())


def test_a_few_thousand_parameters():
    assert 1_000 < sum(p.numel() for p in head(384, 3).parameters()) < 10_000


@pytest.mark.parametrize("source", ["hidden state", "logits"])
def test_learns_a_separable_target(source):
    pooled, logits = inputs(2000)
    truth = pooled[:, 0] > 0 if source == "hidden state" else margin(logits) > -0.6
    if source == "hidden state":
        pooled[:, 0] += 2 * pooled[:, 0].sign()  # a gap between the two sides
    router = head()
    train(router, pooled[:1000], logits[:1000], truth[:1000])
    right = (router(pooled[1000:], logits[1000:]) > 0) == truth[1000:]
    assert 0.25 < truth.double().mean() < 0.75
    assert right.double().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype):
    pooled, logits = (30 * x for x in inputs())
    router = head()
    expected = router(pooled.to(dtype).float(), logits.to(dtype).float())
    found = router(pooled.to(dtype), logits.to(dtype))
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert torch.equal(found, expected)


def test_computes_in_float32_under_autocast():
    pooled, logits = inputs()
    router = head()
    with torch.autocast("cpu", torch.bfloat16):
        found = router(pooled, logits)
    assert torch.equal(found, router(pooled, logits))


def test_save_and_load(tmp_path):
    pooled, logits = inputs()
    router, other = head(seed=0), head(seed=1)
    train(router, pooled, logits, pooled[:, 0] > 0, steps=3)
    assert not torch.equal(other(pooled, logits), router(pooled, logits))
    torch.save(router.state_dict(), tmp_path / "router.pt")
    other.load_state_dict(torch.load(tmp_path / "router.pt", weights_only=True))
    assert torch.equal(other(pooled, logits), router(pooled, logits))


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_logit_features(classes):
    _, logits = inputs(classes=classes)
    features = logit_features(logits)
    top = min(classes, 3)
    assert features.shape == (64, 3 + top)
    torch.testing.assert_close(features[:, :3].T, torch.stack([free_energy(logits), entropy(logits), margin(logits)]))
    assert torch.equal(features[:, 3:], logits.sort(-1, descending=True).values[:, :top])


def test_masked_mean():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 6, 5, generator=generator)
    lengths = [6, 1, 4, 0]
    mask = torch.tensor([[1] * n + [0] * (6 - n) for n in lengths])
    found = masked_mean(hidden, mask)
    for row, n in enumerate(lengths):
        expected = hidden[row, :n].mean(0) if n else torch.zeros(5)
        torch.testing.assert_close(found[row], expected)


def test_logit_features_of_missing_choices():
    _, logits = inputs(classes=2)
    wide = torch.full((64, 5), -math.inf)
    wide[:, [1, 4]] = logits
    found = logit_features(wide)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, :5], logit_features(logits))
    assert torch.equal(found[:, 5], logits.amin(-1))
    only = logit_features(torch.tensor([[-math.inf, 2.0, -math.inf]]))
    torch.testing.assert_close(only, torch.tensor([[-2.0, 0.0, -1.0, 2.0, 2.0, 2.0]]))


def test_missing_choices_in_a_batch():
    pooled, logits = inputs(classes=4)
    logits[:32, 2:] = -math.inf
    router = head(classes=4)
    found = router(pooled, logits)
    assert found.isfinite().all()
    # A batch of examples that all have few choices need not be padded.
    torch.testing.assert_close(router(pooled[:32], logits[:32, :2]), found[:32])
    torch.testing.assert_close(
        router(pooled[:32], logits[:32, :1]), router(pooled[:32], logits[:32].index_fill(1, torch.tensor(1), -math.inf))
    )


def test_regression():
    pooled, value = inputs(2000, classes=1)
    assert torch.equal(logit_features(value), value)
    router = head(classes=1)
    truth = value[:, 0].abs() > 2
    train(router, pooled[:1000], value[:1000], truth[:1000])
    found = router(pooled[1000:], value[1000:])
    assert found.shape == (1000,)
    assert 0.25 < truth.double().mean() < 0.75
    assert ((found > 0) == truth[1000:]).double().mean() > 0.9


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
