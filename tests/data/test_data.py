"""Slices by hash, batches that every process agrees on, and the file formats."""

from itertools import chain

import pandas as pd
import pytest
import torch

from elang.data.batches import LengthBatches, Repeated
from elang.data.examples import content_key, in_slice
from elang.data.text_classification import TextClassificationData
from elang.errors import InputError
from elang.inference.inputs import read_inputs


@pytest.mark.parametrize("n", [1, 2, 13, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_takes_every_example_once(n, world_size):
    """Lightning's own sampler would count 13 examples as 14 on 2 processes."""
    lengths = torch.randint(3, 40, (n,), generator=torch.Generator().manual_seed(n))
    samplers = [LengthBatches(lengths, 4, False, rank, world_size) for rank in range(world_size)]
    shares = [list(sampler) for sampler in samplers]
    # A sharded model has to be run equally often by all.
    assert {len(sampler) for sampler in samplers} == {len(share) for share in shares} == {len(shares[0])}
    own = [batch for share in shares for batch in share if not isinstance(batch, Repeated)]
    assert sorted(row for batch in own for row in batch) == list(range(n))
    assert sorted(own) == sorted(LengthBatches(lengths, 4, False))


@pytest.mark.parametrize("n", [1, 13, 500])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_gives_every_process_equally_many_batches(n, world_size):
    lengths = torch.randint(3, 40, (n,), generator=torch.Generator().manual_seed(n))
    samplers = [LengthBatches(lengths, 4, True, rank, world_size) for rank in range(world_size)]
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])}
    assert {row for share in shares for batch in share for row in batch} == set(range(n))
    for sampler in samplers:
        sampler.set_epoch(1)
    if n > 20:
        assert [list(sampler) for sampler in samplers] != shares


@pytest.mark.parametrize("n", [3, 500, 5001])
def test_the_batches_of_a_step_are_of_like_lengths(n):
    """The process with the longest texts is waited for by all others."""
    lengths = torch.randint(3, 103, (n,), generator=torch.Generator().manual_seed(n))

    def epoch(number, **options):
        return list(LengthBatches(lengths, 4, True, current_epoch=lambda _: number, **options))

    steps = list(zip(*(epoch(0, rank=rank, world_size=4) for rank in range(4)), strict=True))
    # As if one process had taken all batches of each step.
    alone = epoch(0, accumulated=4)
    assert [batch for step in steps for batch in step][: len(alone)] == alone
    assert sorted(row for batch in alone for row in batch) == list(range(n))
    if n < 16:
        return
    longest = torch.tensor([[max(lengths[row] for row in batch) for batch in step] for step in steps]).double()
    assert longest.mean() / longest.amax(1).mean() > 0.85
    # Other examples come together in another epoch, and other ones in the last step, which may be a smaller one.
    first, again = (
        [{*chain(*batches[i : i + 4])} for i in range(0, n // 4, 4)] for batches in (alone, epoch(1, accumulated=4))
    )
    assert max(len(one & other) for one in first[:20] for other in again) <= 10
    last = [float(lengths[[*chain(*epoch(i, accumulated=4)[n // 16 * 4 :])]].double().mean()) for i in range(40)]
    assert 35 < sum(last) / len(last) < 70


def test_lightning_leaves_the_sampler_alone():
    from torch.utils.data import DistributedSampler

    assert isinstance(LengthBatches(torch.ones(3), 1, False), DistributedSampler)


def test_the_slice_depends_on_the_text_alone(files, tmp_path):
    data = TextClassificationData(train=str(files[0]), routing_fraction=0.25)
    routing, train = data.examples("routing"), data.examples("train")
    assert len(routing) + len(train) == 240
    assert set(routing.id.tolist()).isdisjoint(train.id.tolist())
    assert 30 < len(routing) < 90
    shuffled = pd.read_csv(files[0]).sample(frac=1, random_state=0)
    shuffled.to_csv(tmp_path / "shuffled.csv", index=False)
    again = TextClassificationData(train=str(tmp_path / "shuffled.csv"), routing_fraction=0.25)
    assert set(again.examples("routing").texts) == set(routing.texts)
    smaller = TextClassificationData(train=str(files[0]), routing_fraction=0.1)
    assert set(smaller.examples("routing").texts) < set(routing.texts)


def test_keys_are_the_same_on_every_machine():
    assert content_key(("a good film",)) == -1838946216585745341
    keys = torch.tensor([content_key((str(i),)) for i in range(20_000)])
    assert in_slice(keys, 0.1).double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert not in_slice(keys, 0.0).any()
    assert in_slice(keys, 1.0).all()


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_formats_agree(files, tmp_path, suffix):
    frame = pd.read_csv(files[1])
    path = tmp_path / f"data.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(path)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    a, b = (TextClassificationData(validation=str(p)).examples("validation") for p in (files[1], path))
    assert a.texts == b.texts
    assert torch.equal(a.key, b.key)
    assert torch.equal(a.label, b.label)


@pytest.mark.parametrize("labels", [["0", "1"], ["negative", "positive"]])
def test_numbers_and_names_both_label(tmp_path, labels):
    rows = "\n".join(f"text {i},{labels[i % 2]}" for i in range(4))
    (tmp_path / "x.csv").write_text(f"text,label\n{rows}\n")
    data = TextClassificationData(validation=str(tmp_path / "x.csv"), label_names=["negative", "positive"])
    assert data.examples("validation").label.tolist() == [0, 1, 0, 1]


def test_numeric_labels_sort_as_numbers(tmp_path):
    rows = "\n".join(f"text {i},{i}" for i in range(12))
    (tmp_path / "x.csv").write_text(f"text,label\n{rows}\n")
    assert TextClassificationData(validation=str(tmp_path / "x.csv")).label_names == [str(i) for i in range(12)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("problem", ["classification", "regression"])
def test_a_table_without_rows_is_said_to_have_none(tmp_path, suffix, problem):
    """Also where the labels are read first, to find the names of the classes."""
    path = tmp_path / f"x.{suffix}"
    frame = pd.DataFrame({"text": [], "label": []}, dtype=str)
    frame.to_parquet(path) if suffix == "parquet" else frame.to_csv(path, sep=",\t"[suffix == "tsv"], index=False)
    with pytest.raises(InputError, match=r"x\.\w+' is an empty data set: it has a header but no rows"):
        TextClassificationData(str(path), problem=problem).examples("train")
    with pytest.raises(InputError, match="no rows"):
        list(read_inputs(str(path), ["text"]))
    with pytest.raises(InputError, match="no column 'question'"):
        TextClassificationData(str(path), problem=problem, text="question", label="question").examples("train")
