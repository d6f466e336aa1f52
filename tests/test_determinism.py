"""The same seed gives the same weights; batches, order and their like change no decision."""

import json

import pandas as pd
import pytest
from conftest import FAST, QUIET

from elang.cli.verbs import main


def swift_weights(output, base_model, pair, data_args, *more):
    args = ["fit", "--model", "SwiftModule", "--model.model", str(base_model), "--model.output", str(output)]
    args += ["--model.super_records", str(pair["records"]), "--model.layers", "1", "--model.margin_weight", "0.1"]
    assert main([*args, *data_args, *FAST, "--trainer.max_epochs", "1", *more]) == 0
    return [(output / name).read_bytes() for name in ("model.safetensors", "router.safetensors")]


def test_a_seed_gives_the_same_weights_bit_for_bit(base_model, pair, data_args, tmp_path):
    """On a CPU and one process, also if another number of workers reads the data."""
    runs = {"first": [], "again": [], "workers": ["--data.num_workers", "2"], "other": ["--seed_everything", "7"]}
    found = {name: swift_weights(tmp_path / name, base_model, pair, data_args, *more) for name, more in runs.items()}
    assert found["first"] == found["again"] == found["workers"]
    assert found["first"] != found["other"]
    thresholds = [json.loads((tmp_path / name / "elang.json").read_text())["thresholds"] for name in ("first", "again")]
    assert thresholds[0] == thresholds[1]


@pytest.fixture(scope="module")
def by_key(pair, data_args, files, tmp_path_factory):
    """Evaluates the pair with the validation rows in some order, in batches of a size: records by the texts' keys."""
    folder = tmp_path_factory.mktemp("grid")

    def run(order, batch_size):
        out = folder / f"{order}-{batch_size}"
        rows = pd.read_csv(files[1])
        rows = (
            rows.iloc[::-1]
            if order == "reversed"
            else rows.sample(frac=1, random_state=3)
            if order == "mixed"
            else rows
        )
        rows.to_csv(f"{out}.csv", index=False)
        args = list(data_args)
        args[args.index("--data.validation") + 1] = f"{out}.csv"
        args[args.index("--data.eval_batch_size") + 1] = str(batch_size)
        models = ["--model.swift_model", str(pair["swift"]), "--model.super_model", str(pair["super"])]
        assert main(["validate", *models, *args, *QUIET, "--model.output", str(out)]) == 0
        frame = pd.read_parquet(out / "records.parquet").drop(columns="id").sort_values(["split", "key"])
        return frame.reset_index(drop=True), json.loads((out / "summary.json").read_text())

    return run


@pytest.mark.parametrize(
    ("order", "batch_size"), [("as it is", 1), ("as it is", 64), ("reversed", 7), ("mixed", 1), ("mixed", 16)]
)
def test_neither_order_nor_batches_change_a_decision(order, batch_size, by_key):
    (expected, before), (found, now) = by_key("as it is", 8), by_key(order, batch_size)
    exact = ["split", "key", "label", "swift_prediction", "super_prediction", "swift_flops", "super_flops", "gain"]
    pd.testing.assert_frame_equal(found[exact], expected[exact], check_exact=True)
    for name in [column for column in expected if column.startswith("score_")]:
        # What a router reads is standardised: of a Swift that says nearly the same of all, the last bit becomes large.
        near = 1e-3 if name == "score_router" else 1e-5
        assert found[name].to_numpy() == pytest.approx(expected[name].to_numpy(), abs=near), name
        score = name.removeprefix("score_")
        chosen = [summary["qualities"]["accuracy"]["scores"][score]["held_out"] for summary in (before, now)]
        assert chosen[0].keys() == chosen[1].keys()
        for threshold in chosen[0]:
            a, b = (float(entry[threshold]["threshold"]) for entry in chosen)
            assert a == pytest.approx(b, abs=near)
            # Of the slice's examples whose scores are as good as equal, rounding says which one is the threshold.
            clear = ~expected[name].between(min(a, b) - 4e-7, max(a, b) + 4e-7) | (a == b)
            assert clear.mean() > 0.9, (name, threshold)
            assert ((expected[name] > a) == (found[name] > b))[clear].all(), (name, threshold)
    assert found["input"].tolist() == expected["input"].tolist()
