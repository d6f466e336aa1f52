"""Metrics with state: over batches, over processes, and the trap that they avoid."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torchmetrics.classification import BinaryAUROC

from elang.errors import InputError
from elang.method.curve.exact import operating_curve
from elang.method.quality.registry import QUALITIES
from elang.metrics import ExampleTable, RoutingCurve

COLUMNS = {"label": ((), torch.int64), "logits": ((3,), torch.float32)}
ALL = {"id": ((), torch.int64), **COLUMNS}
ADDITIVE = ("accuracy", "f1", "f1_macro", "matthews", "pearson")
BEFORE_UPDATE = "ignore:The ``compute`` method of metric:UserWarning"


def answers(n, classes=3, seed=0):
    """Scores with ties, and the predictions and targets, as keyword arguments of an update."""
    generator = torch.Generator().manual_seed(seed)
    swift, super_, target = torch.randint(classes, (3, n), generator=generator)
    score = torch.randn(n, generator=generator).mul(4).round() / 4
    return {
        "score": score,
        "swift": swift,
        "super_": torch.where(score > 0, target, super_),
        "target": target,
    }


def rows(n):
    """Columns of an example table, in a shuffled order."""
    generator = torch.Generator().manual_seed(n)
    ids = torch.randperm(n, generator=generator)
    return {"id": ids, "label": ids % 7, "logits": ids[:, None] + torch.tensor([0.25, 0.5, 0.75])}


def part(columns, start, stop):
    return {name: column[start:stop] for name, column in columns.items()}


def check_curve(found, data, quality):
    """The curve is the one of all data at once."""
    made = QUALITIES[quality](3 if quality != "f1" else 2)
    a, b = (made.statistics(data[name], data["target"]) for name in ("swift", "super_"))
    expected = operating_curve(data["score"], a, b, made.value)
    assert found.num_examples == len(data["score"])
    assert torch.equal(found.deferred, expected.deferred)
    assert torch.equal(found.threshold, expected.threshold)
    torch.testing.assert_close(found.quality, expected.quality, rtol=0, atol=1e-12)


def check_table(found, n):
    """Every row of ``rows(n)``, once, by id."""
    ids = torch.arange(n)
    assert found.keys() == {"id", "label", "logits"}
    assert torch.equal(found["id"], ids)
    assert torch.equal(found["label"], ids % 7)
    assert torch.equal(found["logits"], ids[:, None] + torch.tensor([0.25, 0.5, 0.75]))
    assert {name: x.dtype for name, x in found.items()} == {n: kind for n, (_, kind) in ALL.items()}


@pytest.mark.parametrize("batch", [1, 8, 100])
@pytest.mark.parametrize("quality", ADDITIVE)
def test_curve_over_batches(quality, batch):
    data = answers(37, 2 if quality == "f1" else 3)
    metric = RoutingCurve(2 if quality == "f1" else 3, quality)
    for start in range(0, 37, batch):
        metric.update(**part(data, start, start + batch))
    check_curve(metric.compute(), data, quality)


@pytest.mark.parametrize("quality", sorted(set(QUALITIES) - set(ADDITIVE)))
def test_metrics_that_need_more_than_labels_are_refused(quality):
    with pytest.raises(InputError, match="JointModule"):
        RoutingCurve(3, quality)


def test_curve_after_reset_and_of_nothing():
    metric = RoutingCurve(3)
    metric.update(**answers(5, seed=1))
    metric.compute()
    metric.reset()
    data = answers(9)
    metric.update(**data)
    check_curve(metric.compute(), data, "accuracy")


@pytest.mark.filterwarnings(BEFORE_UPDATE)
def test_curve_of_nothing():
    with pytest.raises(InputError, match="at least one example"):
        RoutingCurve(3).compute()


def test_unknown_quality():
    with pytest.raises(InputError, match="accuracy"):
        RoutingCurve(3, "acuracy")


@pytest.mark.parametrize("batch", [1, 8, 100])
def test_table_is_in_the_order_of_the_data(batch):
    table = ExampleTable(COLUMNS)
    for start in range(0, 37, batch):
        table.update(**part(rows(37), start, start + batch))
    check_table(table.compute(), 37)


def test_table_refuses_an_example_counted_twice():
    table = ExampleTable(COLUMNS)
    table.update(**rows(5))
    table.update(**part(rows(5), 2, 3))
    with pytest.raises(InputError, match=f"Example {int(rows(5)['id'][2])} was counted twice"):
        table.compute()


@pytest.mark.filterwarnings(BEFORE_UPDATE)
def test_table_of_nothing():
    found = ExampleTable(COLUMNS).compute()
    assert {name: (tuple(x.shape[1:]), x.dtype) for name, x in found.items()} == ALL
    assert not len(found["id"])


def test_table_checks_what_it_is_given():
    table, good = ExampleTable(COLUMNS), rows(4)
    with pytest.raises(ValueError, match="were declared"):
        table.update(id=good["id"], label=good["label"])
    with pytest.raises(ValueError, match="were declared"):
        table.update(**good, more=good["id"])
    with pytest.raises(ValueError, match="logits"):
        table.update(**good | {"logits": good["logits"][:, :2]})
    with pytest.raises(ValueError, match="label"):
        table.update(**good | {"label": good["label"][:3]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_table_keeps_no_gradient_and_casts(dtype):
    table = ExampleTable(COLUMNS)
    good = rows(4)
    table.update(**good | {"logits": good["logits"].to(dtype).requires_grad_()})
    found = table.compute()["logits"]
    assert found.dtype == torch.float32
    assert not found.requires_grad


def auroc_from_curve(curve):
    """AUROC of a score for the Swift's errors, read off the curve of a Super that is always right."""
    wrong = 1 - curve.quality[0]
    area = torch.trapezoid(curve.quality, curve.deferred_share)
    return float((area - (1 - wrong)) / wrong - wrong / 2) / float(1 - wrong)


def test_energies_never_pass_for_logits():
    # torchmetrics squashes a batch whose values leave [0, 1] and leaves another as it is.
    energy, wrong = torch.tensor([-1.0, 0.3, 0.1, 0.6]), torch.tensor([0, 0, 1, 1])
    theirs, ours = BinaryAUROC(), RoutingCurve(2)
    for batch in (slice(0, 2), slice(2, 4)):
        theirs.update(energy[batch], wrong[batch])
        right = torch.zeros_like(wrong[batch])
        ours.update(energy[batch], wrong[batch], right, right)
    assert float(theirs.compute()) == pytest.approx(0.50)  # wrong: that is the trap
    assert auroc_from_curve(ours.compute()) == pytest.approx(0.75)
    monotone = BinaryAUROC()
    monotone.update(energy.argsort().argsort() / 4, wrong)
    assert float(monotone.compute()) == pytest.approx(0.75)


def on_one_process(rank, sizes, folder):
    """Take this process's share, in batches of 3, and compare what all gather with all data at once."""
    world, total = len(sizes), sum(sizes)
    start_at, limit = f"file://{folder}/init", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=start_at, rank=rank, world_size=world, timeout=limit)
    assert dist.get_world_size() == world
    start = sum(sizes[:rank])
    table, curves = ExampleTable(COLUMNS), {name: RoutingCurve(3, name) for name in ("accuracy", "pearson")}
    for at in range(start, start + sizes[rank], 3):
        stop = min(at + 3, start + sizes[rank])
        table.update(**part(rows(total), at, stop))
        for curve in curves.values():
            curve.update(**part(answers(total), at, stop))
    check_table(table.compute(), total)
    for name, curve in curves.items():
        check_curve(curve.compute(), answers(total), name)
    assert sum(len(batch) for batch in table.column_id) == sizes[rank]  # only its own rows are kept
    dist.destroy_process_group()
    Path(folder, f"done-{rank}").touch()


@pytest.mark.parametrize("sizes", [(7, 4), (0, 5, 8)])
def test_over_processes(sizes, tmp_path):
    code = "import sys, test_metrics as t; t.on_one_process(int(sys.argv[1]), [*map(int, sys.argv[3:])], sys.argv[2])"
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, (rank, tmp_path, *sizes))], env=environment, forked=True
        )
        for rank in range(len(sizes))
    ]
    assert [process.wait(120) for process in started] == [0] * len(sizes)
    assert sorted(p.name for p in tmp_path.glob("done-*")) == [f"done-{rank}" for rank in range(len(sizes))]
