"""The curve of records on disk, against the one in memory."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import read_curve

from elang.cli.verbs import main
from elang.errors import InputError
from elang.evaluation import sweep as pieces
from elang.evaluation.database import Joint
from elang.evaluation.pair import FRACTIONS, HALF_POINT, SHARES
from elang.evaluation.sweep import swept
from elang.method.curve.exact import operating_curve
from elang.method.curve.points import Costs
from elang.method.curve.reading import area, at_best, at_drop, at_parity, at_share, random_curve
from elang.method.quality.registry import QUALITIES

pytest.importorskip("duckdb")
NAMES = ["a", "b", "c"]


def made(n, labels=3, levels=None, seed=0):
    """Joint records as `elang validate` writes them; with ``levels`` many examples have the same score."""
    draw = np.random.default_rng(seed)
    label = draw.integers(0, labels, n)
    score = draw.normal(size=n).astype(np.float32)
    if levels:
        score = np.round(score * levels).astype(np.float32) / levels

    def answers(right):
        return np.where(draw.random(n) < right, label, draw.integers(-1, labels, n))

    return pd.DataFrame(
        {
            "split": "validation",
            "id": np.arange(n),
            "label": label,
            "swift_prediction": answers(0.7 - 0.2 * (score > 0)),
            "super_prediction": answers(0.9),
            "swift_flops": draw.integers(1, 9, n) * 1e9,
            "super_flops": draw.integers(20, 90, n) * 1e9,
            "score_max_softmax": score,
            "score_energy": -score,
        }
    )


def written(frame, path, names=NAMES, **more):
    table = pa.Table.from_pandas(frame, preserve_index=False)
    about = {"format": 1, "label_names": names, "worth": {}} | more
    pq.write_table(table.replace_schema_metadata({"elang": json.dumps(about)}), path)
    return str(path)


def scattered(frame, folder, files=7, names=NAMES):
    """The rows in files at random."""
    where = np.random.default_rng(1).integers(0, files, len(frame))
    parts = [frame[where == i].sample(frac=1, random_state=i) for i in range(files)]
    return [written(part, folder / f"{i}.parquet", names) for i, part in enumerate(parts) if len(part)]


def in_memory(frame, name, metric):
    label, swift, super_ = (torch.tensor(frame[c]) for c in ("label", "swift_prediction", "super_prediction"))
    statistics = [metric.statistics(answer, label) for answer in (swift, super_)]
    score = torch.tensor(frame[f"score_{name}"].to_numpy())
    costs = Costs(*(torch.tensor(frame[c]) for c in ("swift_flops", "super_flops")))
    return operating_curve(score, *statistics, metric.value, costs), random_curve(*statistics, metric.value, costs)


def mean_errors(frame, curve):
    """Standard errors of the share of right answers minus the Super's, at every point of the curve."""
    frame = frame.sort_values("score_max_softmax", ascending=False, kind="stable")
    right = [frame[f"{model}_prediction"].to_numpy() == frame["label"].to_numpy() for model in ("swift", "super")]
    gain, n = right[1].astype(float) - right[0], len(frame)
    left = np.append(gain[::-1].cumsum()[::-1], 0.0)[curve.deferred] / n
    square = np.append((gain**2)[::-1].cumsum()[::-1], 0.0)[curve.deferred] / n
    return torch.tensor(np.sqrt((square - left**2) / n))


@pytest.mark.parametrize("quality", ["accuracy", "f1_macro", "matthews"])
@pytest.mark.parametrize(
    ("n", "levels", "rows"),
    [(1, None, 1 << 21), (2000, None, 300), (2000, 5, 64), (997, 1, 9), (100_000, None, 1 << 16)],
)
def test_it_is_the_curve_in_memory(quality, n, levels, rows, tmp_path, monkeypatch):
    """However the rows lie in files, and where equal scores are in several pieces."""
    monkeypatch.setattr(pieces, "ROWS", rows)
    frame, metric = made(n, levels=levels), QUALITIES[quality](3)
    curve, random = in_memory(frame, "max_softmax", metric)
    found = swept(Joint(scattered(frame, tmp_path)), "max_softmax", metric, points=101)
    # The in-memory curve has all points; the grid must be among them, and as fine as was asked.
    place = torch.searchsorted(curve.deferred, found.grid.deferred)
    assert curve.deferred[place].tolist() == found.grid.deferred.tolist()
    assert curve.threshold[place].tolist() == found.grid.threshold.tolist()
    assert found.grid.quality.tolist() == pytest.approx(curve.quality[place].tolist(), abs=1e-12)
    assert found.grid.cost.tolist() == pytest.approx(curve.cost[place].tolist(), rel=1e-12)
    assert found.grid.super_cost == pytest.approx(curve.super_cost, rel=1e-12)
    assert (found.grid.num_examples, found.grid.hardest) == (n, curve.hardest)
    assert found.grid.deferred[[0, -1]].tolist() == [0, n]
    steps = torch.linspace(0, n, min(101, n + 1), dtype=torch.float64).round()
    nearest = {int(curve.deferred[curve.deferred <= step].max()) for step in steps.tolist()}
    assert set(found.grid.deferred.tolist()) == nearest
    expected = {name: curve[at_parity(curve, fraction)] for name, fraction in FRACTIONS.items()}
    expected |= {name: curve[at_share(curve, share)] for name, share in SHARES.items()}
    expected["best"] = curve[at_best(curve)]
    expected["1-SE"] = curve[at_drop(curve, mean_errors(frame, curve).clamp_min(HALF_POINT))]
    assert found.points.keys() == expected.keys()
    for name, point in expected.items():
        assert vars(found.points[name]) == pytest.approx(vars(point), rel=1e-9), name
    assert found.area == pytest.approx(area(curve), rel=1e-9)
    assert found.random == pytest.approx(area(random), abs=2e-3)


def test_an_encoders_score_spares_the_decoder(tmp_path):
    frame = made(500).rename(columns={"score_energy": "score_encoder_energy"})
    frame["swift_early_flops"] = frame["swift_flops"] / 2
    records = Joint([written(frame, tmp_path / "r.parquet")])
    metric = QUALITIES["accuracy"](3)
    early = swept(records, "encoder_energy", metric).grid
    assert early.scored_cost == pytest.approx((frame["swift_early_flops"] + frame["super_flops"]).mean())
    late = swept(records, "max_softmax", metric).grid
    assert late.scored_cost == pytest.approx((frame["swift_flops"] + frame["super_flops"]).mean())
    # The Super alone.
    assert float(early.cost[-1]) == float(late.cost[-1]) == pytest.approx(frame["super_flops"].mean())
    assert early[len(early) - 1].speedup == 1


def test_scores_of_generated_answers_cost_beside_them(tmp_path):
    """As in an evaluation: on top of the Swift where its decoder runs, kept or deferred."""
    frame = made(500).rename(columns={"score_energy": "score_encoder_energy"})
    frame["swift_early_flops"], frame["swift_score_flops"] = frame["swift_flops"] / 2, frame["swift_flops"] / 4
    records = Joint([written(frame, tmp_path / "r.parquet")])
    metric = QUALITIES["accuracy"](3)
    late = swept(records, "max_softmax", metric).grid
    swift = frame["swift_flops"] * 1.25
    assert float(late.cost[0]) == pytest.approx(swift.mean())
    assert late.scored_cost == pytest.approx((swift + frame["super_flops"]).mean())
    early = swept(records, "encoder_energy", metric).grid
    assert float(early.cost[0]) == pytest.approx(frame["swift_flops"].mean())
    assert early.scored_cost == pytest.approx((frame["swift_early_flops"] + frame["super_flops"]).mean())


def test_the_command_line(joint_args, tmp_path, capsys):
    """Two halves of an evaluation give what the whole does."""
    assert main(["validate", *joint_args, "--model.output", str(tmp_path / "joint")]) == 0
    frame = pd.read_parquet(tmp_path / "joint" / "records.parquet")
    about = pq.read_schema(tmp_path / "joint" / "records.parquet").metadata
    for name, part in (("one", frame[frame["id"] % 3 == 0]), ("two", frame[frame["id"] % 3 > 0])):
        (tmp_path / name).mkdir()
        table = pa.Table.from_pandas(part, preserve_index=False).replace_schema_metadata(about)
        pq.write_table(table, tmp_path / name / "records.parquet")
    assert {"weights", "temperature", "flops_convention", "worth"} <= json.loads(about[b"elang"]).keys()
    capsys.readouterr()
    args = ["sweep", str(tmp_path / "two"), str(tmp_path / "one"), "--output", str(tmp_path / "swept")]
    assert main([*args, "--score", '["max_softmax", "free_energy"]']) == 0
    assert "accuracy on 61 examples of validation" in capsys.readouterr().out
    whole = json.loads((tmp_path / "joint" / "summary.json").read_text())["qualities"]["accuracy"]
    found = json.loads((tmp_path / "swept" / "summary.json").read_text())
    assert found["num_examples"] == 61
    for name in ("max_softmax", "free_energy"):
        expected = whole["scores"][name]["on_this_set"]
        for point, values in found["scores"][name]["points"].items():
            assert values.pop("threshold") == expected[point].pop("threshold")
            assert values == pytest.approx(expected[point], rel=1e-9), point
    one = [*args[:3], "--output", str(tmp_path / "single"), "--score", "free_energy"]
    assert main(one) == 0
    assert list(json.loads((tmp_path / "single" / "summary.json").read_text())["scores"]) == ["free_energy"]
    curve = read_curve(tmp_path / "swept")
    assert list(curve) == ["score", "threshold", "deferred", "deferred_share", "accuracy", "flops", "speedup"]
    assert curve.query("score == 'free_energy'")["accuracy"].iloc[-1] == pytest.approx(whole["super"]["quality"])


def test_evaluations_of_separate_files(tmp_path, monkeypatch):
    """Each counts its examples from 0; docs/scale.md gives them ids of their own."""
    monkeypatch.chdir(tmp_path)
    parts = [made(300, seed=seed) for seed in (1, 2)]
    for number, part in enumerate(parts, 1):
        Path(f"joint-{number}").mkdir()
        written(part, f"joint-{number}/records.parquet", temperature=1.0)
    with pytest.raises(InputError, match="each example one id over all files"):
        Joint(["joint-1", "joint-2"])
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text("utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(snippet, {})
    whole = pd.concat(parts, ignore_index=True).assign(id=range(600))
    found = swept(Joint(["joint-1.parquet", "joint-2.parquet"]), "max_softmax", QUALITIES["accuracy"](3))
    expected = swept(Joint([written(whole, "whole.parquet")]), "max_softmax", QUALITIES["accuracy"](3))
    assert found.points == expected.points


def test_names_of_files_say_nothing_of_their_rows(tmp_path):
    """DuckDB would read columns off folders, and take brackets for a pattern."""
    frame, metric = made(300).assign(split="it's"), QUALITIES["accuracy"](3)
    for name in ("label=1", "j[1]", "j1", "what?"):
        (tmp_path / name).mkdir()
        written(frame if name != "j1" else frame.head(7), tmp_path / name / "records.parquet")
    expected = in_memory(frame, "max_softmax", metric)[0]
    for name in ("label=1", "j[1]", "what?"):
        records = Joint([str(tmp_path / name)], "it's")
        assert records.count == 300
        assert records.qualities(metric) == (float(expected.quality[0]), float(expected.quality[-1]))


def test_costs_that_are_not_known(tmp_path):
    """Of a black box; half known, a mean would be wrong."""
    frame = made(300)
    frame.loc[:9, "super_flops"] = np.nan
    found = swept(Joint([written(frame, tmp_path / "r.parquet")]), "max_softmax", QUALITIES["accuracy"](3))
    assert np.isnan(found.grid.super_cost)
    assert found.grid.cost.isnan().all()
    assert found.points["parity"].quality > 0.5


def test_what_cannot_be_swept(tmp_path, fails):
    frame = made(40)
    good = written(frame, tmp_path / "good.parquet")
    more = written(frame.assign(id=frame["id"] + 39), tmp_path / "more.parquet")
    fails(["sweep", good, more], "1 of 80 examples of 'validation'", "more than once")
    far = written(frame.assign(id=frame["id"] + 10**12), tmp_path / "far.parquet")
    fails(["sweep", good, far, far], "40 of 120 examples")
    fails(["sweep", str(tmp_path / "none.parquet")], "no file", "none.parquet")
    fails(["sweep", good, "--score", "[magic]"], "no score 'magic'", "max_softmax")
    fails(["sweep", good, "--split", "test"], "no split 'test'", "validation")
    fails(["sweep", good, "--quality", "bleu"], "'bleu' cannot be swept", "accuracy")
    fails(["sweep", good, "--points", "1"], "at least 2 points")
    other = written(frame, tmp_path / "other.parquet", ["a", "b", "d"])
    fails(["sweep", good, other], "other.parquet", "'d'")
    rest = frame.assign(id=frame["id"] + 40)
    for name, said in (
        ("Super's weights", [{"weights": {"swift": "ab", "super": hash_}} for hash_ in ("cd", "ef")]),
        ("temperature", [{"temperature": 1.0}, {"temperature": 2.0}]),
        ("convention of costs", [{"flops_convention": "exact"}, {"flops_convention": "paper"}]),
    ):
        parts = [
            written(part, tmp_path / f"part{i}.parquet", **one)
            for i, (part, one) in enumerate(zip((frame, rest), said, strict=True))
        ]
        fails(["sweep", good, *parts], "part1.parquet", "part0.parquet", f"differ in their {name}")
    (tmp_path / "damaged.parquet").write_bytes((tmp_path / "good.parquet").read_bytes()[:-9])
    fails(["sweep", str(tmp_path / "damaged.parquet")], "cannot be read")
    lacking = written(frame.drop(columns="label"), tmp_path / "lacking.parquet")
    fails(["sweep", lacking], "lack the columns ['label']")
    fails(["sweep", good, "--memory", "lots"], "--memory 'lots'", "2GB")
    missing = written(
        frame.assign(super_prediction=frame["super_prediction"].where(frame["id"] > 1)), tmp_path / "m.parquet"
    )
    fails(["sweep", missing], "2 values of 'super_prediction'", "missing")
    regression = written(frame.assign(label=frame["label"] + 0.5), tmp_path / "regression.parquet")
    fails(["sweep", regression], "'label' of the records is of the kind DOUBLE", "regression")
    fractions = written(frame.assign(id=frame["id"] + 0.5), tmp_path / "fractions.parquet")
    fails(["sweep", fractions], "'id' of the records is of the kind DOUBLE", "whole numbers")
    nowhere = written(frame.assign(split=frame["split"].where(frame["id"] > 1)), tmp_path / "nowhere.parquet")
    fails(["sweep", nowhere], "split of some rows is missing")
    for cost in (np.inf, -1.0):
        odd = written(
            frame.assign(super_flops=frame["super_flops"].where(frame["id"] != 3, cost)), tmp_path / "o.parquet"
        )
        fails(["sweep", odd], "1 values of 'super_flops'", "first id 3")
    frame.loc[3, "score_max_softmax"] = np.nan
    fails(["sweep", written(frame, tmp_path / "nan.parquet")], "1 of 40 scores 'max_softmax'", "not finite")
    fails(["sweep", written(frame.assign(label=3), tmp_path / "label.parquet")], "none of the 3 classes")
