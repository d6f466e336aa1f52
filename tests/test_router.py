"""The router head: detached from the Swift, small, able to learn, steady in half precision."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from elang.router import RouterHead, logit_features, masked_mean
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
