"""One page of an evaluation: its figures are the records', it needs nothing beside it, and its slider moves."""

import base64
import html
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import QUIET, asked_for, read_curve, write_data
from scipy import stats

from elang.cli.verbs import main
from elang.evaluation.report.folder import Evaluation
from elang.evaluation.report.words import area_difference
from elang.method.bootstrap import curve_interval, mcnemar
from elang.method.curve.exact import operating_curve
from elang.method.quality.registry import QUALITIES

SCREENS = [(1280, 900), (390, 844)]


@pytest.fixture(scope="module")
def joint(pair, joint_args, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "joint"
    assert main(["validate", "--model.output", str(folder), "--model.latency", "true", *joint_args]) == 0
    return folder


def page_of(*folders, out, **options):
    args = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    assert main(["report", *map(str, folders), "--output", str(out), *args]) == 0
    return out.read_text("utf-8")


class Page(HTMLParser):
    """The tags, their attributes and texts of a page that must be well-formed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_the_slider_has_the_curve(joint, tmp_path):
    page = Page(page_of(joint, out=tmp_path / "report.html", threshold="99%"))
    (section,) = page.all("section")
    slider = json.loads(section["data-curve"])
    curve = read_curve(joint).query("score == 'max_softmax'").reset_index(drop=True)
    shares = curve["deferred_share"].round(9)
    for share, quality, speedup, threshold in zip(
        slider["share"], slider["quality"], slider["speedup"], slider["threshold"], strict=True
    ):
        (row,) = curve.index[(shares - share).abs() < 1e-5]
        assert quality == pytest.approx(curve["accuracy"][row], rel=1e-5)
        assert speedup == pytest.approx(curve["speedup"][row], rel=1e-5)
        assert (
            threshold is None
            if math.isinf(curve["threshold"][row])
            else threshold == pytest.approx(curve["threshold"][row], rel=1e-5)
        )
    assert len(slider["share"]) == len(curve)
    # It starts where the page's threshold works.
    entry = json.loads((joint / "elang.json").read_text())["thresholds"]["max_softmax"]["99%"]
    frame = pd.read_parquet(joint / "records.parquet").query("split == 'validation'")
    deferred = (frame["score_max_softmax"] > float(entry["threshold"])).mean()
    assert slider["share"][slider["start"]] == pytest.approx(deferred, abs=1e-5)
    latency = json.loads((joint / "summary.json").read_text())["latency"]
    assert slider["times"]["batch 1"] == [latency["swift"]["batch 1"], latency["super"]["batch 1"]]


def test_the_page_needs_nothing_beside_it(joint, tmp_path):
    out = tmp_path / "some" / "report.html"
    text = page_of(joint, out=out)
    assert len(text) < 3_000_000
    page = Page(text)
    for tag, attrs in page.tags:
        for name in ("src", "href"):
            if name in attrs:
                assert attrs[name].startswith(("data:", "#")), (tag, attrs)
    assert "@import" not in text
    assert "url(" not in text
    # Each figure also lies beside the page, and has words for those who do not see it.
    images = page.all("img")
    assert len(images) == 3
    kept = sorted(path.name for path in (out.parent / "report_files").iterdir())
    assert [name.rsplit("-", 1)[1] for name in kept] == [
        *("curve.png", "curve.svg", "reliability.png", "reliability.svg", "scores.png", "scores.svg")
    ]
    for attrs in images:
        svg = base64.b64decode(attrs["src"].split(",", 1)[1])
        assert any((out.parent / "report_files" / name).read_bytes() == svg for name in kept)
        assert len(attrs["alt"]) > 20
    (field,) = page.all("input")
    assert field["id"] in [label["for"] for label in page.all("label")]
    assert page.all("html")[0]["lang"] == "en"


def test_breakdowns_are_the_records(joint, tmp_path):
    text = page_of(joint, out=tmp_path / "report.html", threshold="99%")
    frame = pd.read_parquet(joint / "records.parquet").query("split == 'validation'")
    entry = json.loads((joint / "elang.json").read_text())["thresholds"]["max_softmax"]["99%"]
    deferred = frame["score_max_softmax"] > float(entry["threshold"])
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))
    names = Evaluation(joint).label_names
    for i, name in enumerate(names):
        rows = frame["label"] == i
        right = [(frame[f"{who}_prediction"] == frame["label"])[rows].mean() for who in ("swift", "super")]
        pair = frame["swift_prediction"].where(~deferred, frame["super_prediction"])
        cells = [*right, (pair == frame["label"])[rows].mean(), deferred[rows].mean()]
        assert f"{name} {rows.sum()} " + " ".join(f"{100 * cell:.1f}%" for cell in cells) in plain
    missed = int((~deferred & (frame["gain"] > 0)).sum())
    needless = int((deferred & (frame["gain"] <= 0)).sum())
    for number, title in ((missed, "Kept, but the Super knew better"), (needless, "Deferred, but the Super was no")):
        part = plain[plain.index(title) :]
        assert (f" {number} of {len(frame)} inputs" in part) if number else "None." in part
    hardest = frame[deferred & (frame["gain"] <= 0)].sort_values("score_max_softmax", ascending=False)
    assert hardest["input"].iloc[0] in plain


def test_differences_of_areas_are_said(joint, tmp_path):
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page_of(joint, out=tmp_path / "report.html")))
    areas = json.loads((joint / "summary.json").read_text())["areas"]
    assert "area minus max_softmax" in plain
    for name in set(areas) - {"max_softmax"}:
        assert area_difference(areas[name]) in plain
        assert area_difference(areas[name]).startswith("=") == (
            areas[name]["difference_low"] <= 0 <= areas[name]["difference_high"]
        )
    assert area_difference(areas["max_softmax"]) == "="


def test_what_a_text_says_is_only_text(pair, joint_args, tmp_path):
    data = write_data(tmp_path / "dev.csv", 30, 9)
    frame = pd.read_csv(data)
    frame["text"] = [f"<script>alert({i})</script> ' \" & {text}" for i, text in enumerate(frame["text"])]
    frame.loc[0, "text"] = "good " * 300
    frame.to_csv(data, index=False)
    args = ["--model.swift_model", str(pair["swift"]), "--model.super_model", str(pair["super"]), *QUIET]
    folder = tmp_path / "<b>odd</b>"
    assert main(["validate", *args, "--data.validation", str(data), "--model.output", str(folder)]) == 0
    (folder / "elang.json").write_bytes((pair["swift"] / "elang.json").read_bytes())
    text = page_of(folder, out=tmp_path / "report.html", threshold="defer 50%")
    page = Page(text)
    assert len(page.all("script")) == 1
    assert not page.all("b")
    assert "alert(" in page.text["td"]
    assert "characters more" in text or "good good" not in text
    # They may also be left out.
    assert (
        main(["validate", *args, "--data.validation", str(data), "--model.output", str(folder), "--model.texts", "no"])
        == 0
    )
    assert "alert(" not in page_of(folder, out=tmp_path / "report.html", threshold="defer 50%")


def test_several_tasks_and_a_certificate(joint, tmp_path, capfd):
    other = tmp_path / "task" / "joint"
    shutil.copytree(joint, other)
    assert main(["calibrate", str(other), "--max_regret", "0.2", "--confidence", "0.8"]) == 0
    capfd.readouterr()
    text = page_of(joint, other, out=tmp_path / "report.html")
    said = " ".join(capfd.readouterr().out.split())
    answers = re.findall(r'<p class="answer">(.*)</p>', text)
    assert len(answers) == 2
    assert said.startswith(html.unescape(" ".join(answers)))
    page = Page(text)
    assert [s["id"] for s in page.all("section")] == [link["href"].removeprefix("#") for link in page.all("a")]
    statement = json.loads((other / "elang.json").read_text())["thresholds"]["max_softmax"]["certified"]["statement"]
    plain = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text)))
    assert plain.count(statement) == 1
    assert "Here: held" in plain
    assert "The chosen threshold: certified" in plain
    # Without a certificate the default threshold is.
    assert "The chosen threshold: 1-SE" in plain
    heads = ("held out, 1-SE", "held out, 99%", "read here, 1-SE")
    assert "".join(f'<th scope="col">{head}</th>' for head in heads) in text


def test_bad_reports(joint, tmp_path, fails):
    fails(["report", joint, "--output", tmp_path / "report.pdf"], ".html", "report.pdf")
    fails(["report", tmp_path, "--output", tmp_path / "r.html"], tmp_path, "no folder that `elang validate` wrote")
    fails(["report", joint, "--threshold", "half", "--output", tmp_path / "r.html"], "half", "99%")
    assert not (tmp_path / "r.html").exists()


def test_a_finite_threshold_that_defers_everything_pays_for_the_swift(joint, joint_args, tmp_path):
    values = json.loads((joint / "elang.json").read_text())
    values["thresholds"]["max_softmax"]["1-SE"]["threshold"] = -9.0
    (tmp_path / "elang.json").write_text(json.dumps(values))
    folder = tmp_path / "joint"
    args = ["--model.thresholds", str(tmp_path), "--model.output", str(folder)]
    assert main(["validate", *joint_args, *args]) == 0
    summary = json.loads((folder / "summary.json").read_text())["qualities"]["accuracy"]
    speedup = summary["super"]["cost"] / (summary["super"]["cost"] + summary["swift"]["cost"])
    page = page_of(folder, out=tmp_path / "report.html", threshold="1-SE")
    assert f"<dt>FLOPs speed-up</dt><dd>{speedup:.2f}x</dd>" in page


def test_a_black_box_super_has_no_costs(pair, joint, joint_args, data_args, tmp_path):
    frame = pd.read_parquet(pair["records"]).drop(columns=["logits", "flops", "tokens"])
    frame.to_csv(tmp_path / "super.csv", index=False)
    args = ["--model.swift_model", str(pair["swift"]), "--model.super_model", str(tmp_path / "super.csv")]
    folder = tmp_path / "joint"
    assert main(["validate", *args, *data_args, *QUIET, "--model.output", str(folder)]) == 0
    page = Page(page_of(folder, out=tmp_path / "report.html"))
    slider = json.loads(page.all("section")[0]["data-curve"])
    assert slider["by"] == 0
    assert set(slider["speedup"]) == {None}
    assert "NaN" not in page.all("section")[0]["data-curve"]


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews"])
def test_the_band_is_what_resampling_gives(name):
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (200,), generator=generator)
    swift, super_ = (torch.where(torch.rand(200, generator=generator) < p, label, 1 - label) for p in (0.75, 0.9))
    score = (torch.randn(200, generator=generator) * 5).round()
    quality = QUALITIES[name](2)
    a, b = (quality.statistics(answer, label) for answer in (swift, super_))
    shares, low, high = curve_interval(score, a, b, quality.value, points=9, times=300)
    curve = operating_curve(score, a, b, quality.value)
    from elang.method.bootstrap import resamples

    draws = resamples(200, 300)
    for place, share in enumerate(shares.tolist()):
        at = int((curve.deferred_share - share).abs().argmin())
        assert float(curve.deferred_share[at]) == pytest.approx(share)
        mixed = torch.where((score > curve.threshold[at])[:, None], b, a).double()
        values = quality.value(draws @ mixed)
        ends = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
        assert [float(low[place]), float(high[place])] == pytest.approx(ends.tolist(), abs=1e-9)
        assert float(low[place]) <= float(curve.quality[at]) <= float(high[place])


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (3, 4), (10, 1), (0, 6), (40, 41)])
def test_mcnemar_is_scipys_binomial_test(worse, better):
    expected = stats.binomtest(worse, worse + better).pvalue if worse + better else 1.0
    assert mcnemar(worse, better) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("screen", SCREENS, ids=["wide", "narrow"])
def test_the_page_in_a_browser(joint, tmp_path, screen, chrome):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    out = tmp_path / "report.html"
    page_of(joint, out=out, threshold="defer 10%")
    metrics = {"width": screen[0], "height": screen[1], "deviceScaleFactor": 1, "mobile": screen[0] < 500}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    chrome.get_log("performance")
    chrome.get(out.as_uri())

    def shown():
        return {e.get_attribute("data-show"): e.text for e in chrome.find_elements(By.CSS_SELECTOR, "[data-show]")}

    slider = chrome.find_element(By.CSS_SELECTOR, "input[type=range]")
    curve = json.loads(chrome.find_element(By.CSS_SELECTOR, ".pair").get_attribute("data-curve"))
    dot = chrome.find_element(By.CSS_SELECTOR, ".dot")
    before, place = shown(), dot.location
    assert before["share"] == f"{100 * curve['share'][curve['start']]:.1f}%"
    # By the keyboard alone.
    slider.send_keys(Keys.END)
    assert shown()["share"] == "100.0%"
    assert shown()["threshold"] == "defer all"
    assert dot.location != place
    slider.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert shown()["share"] == f"{100 * curve['share'][1]:.1f}%"
    assert shown()["quality"] == f"{curve['quality'][1]:.4f}"
    assert shown()["speedup"] == f"{curve['speedup'][1]:.2f}x"
    assert curve["share"][1] > 0
    swift, super_ = curve["times"]["batch 1"]
    time = chrome.find_element(By.CSS_SELECTOR, '[data-time="batch 1"]').text
    assert time == f"{1000 * (swift + curve['share'][1] * super_):.2f} ms"
    assert chrome.get_log("browser") == []
    asked = asked_for(chrome, out.as_uri())
    assert out.as_uri() in asked
    assert [url for url in asked if not url.startswith(("data:", out.as_uri()))] == []
    width, inner = chrome.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= inner
    # The mark lies on the picture.
    box = chrome.find_element(By.CSS_SELECTOR, ".plot img").rect
    for field in ("x", "y"):
        size = {"x": "width", "y": "height"}[field]
        assert box[field] <= dot.rect[field] + dot.rect[size] / 2 <= box[field] + box[size]
    picture = Path(tmp_path / f"{screen[0]}.png")
    chrome.save_screenshot(str(picture))
    assert picture.stat().st_size > 10_000


def damaged(name, folder, how):
    """A file of an evaluation, changed."""
    path = folder / name
    if isinstance(how, bytes):
        path.write_bytes(how)
    elif name.endswith(".json"):
        found = json.loads(path.read_text())
        *way, last = how[0].split("/")
        part = found
        for step in way:
            part = part[step]
        if how[1] is KeyError:
            del part[last]
        else:
            part[last] = how[1]
        path.write_text(json.dumps(found))
    else:
        frame = pd.read_csv(path) if name.endswith(".csv") else pd.read_parquet(path)
        frame = frame.drop(columns=how[0]) if how[1] is KeyError else frame.assign(**{how[0]: how[1]})
        if name.endswith(".csv"):
            frame.to_csv(path, index=False)
        else:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            pq.write_table(table.replace_schema_metadata(pq.read_schema(path).metadata), path)


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("curve.csv", b"a,b\n1,2\n", "no column 'score'"),
        ("curve.csv", b"", "curve.csv"),
        ("curve.csv", b"\xff\xfe", "curve.csv"),
        *(
            ("curve.csv", (name, KeyError), f"'{name}'")
            for name in ("threshold", "deferred_share", "accuracy", "flops")
        ),
        ("curve.csv", ("threshold", "x"), "'threshold'"),
        ("curve.csv", ("deferred_share", 2.0), "'deferred_share'"),
        ("curve.csv", ("score", "luck"), "max_softmax"),
        ("summary.json", b"[" * 100_000, "nested too deeply"),
        ("summary.json", b"[1]", "not an object"),
        ("summary.json", b'{"worth": NaN}', "NaN"),
        *(("summary.json", (name, KeyError), f"'{name}'") for name in ("score", "qualities", "evaluated_on")),
        ("summary.json", ("temperature", "x"), "temperature"),
        ("summary.json", ("qualities", []), "qualities"),
        ("summary.json", ("qualities", {"luck": {}}), "qualities"),
        ("summary.json", ("qualities/accuracy/swift", 3), "qualities.accuracy.swift"),
        ("summary.json", ("qualities/accuracy/scores/max_softmax/on_this_set/parity", KeyError), "on_this_set.parity"),
        ("summary.json", ("worth/largest", "much"), "worth.largest"),
        ("summary.json", ("cautions", [1]), "cautions"),
        ("summary.json", ("statements", [{}]), "statements.0.name"),
        ("summary.json", ("latency/swift/batch 1", None), "latency.swift.batch 1"),
        ("summary.json", ("qualities/accuracy/num_examples", 3), "records.parquet"),
        ("made.json", b"{", "made.json"),
        ("made.json", b"[" * 100_000, "nested too deeply"),
        ("made.json", ("versions", 3), "versions"),
        *(("records.parquet", (name, KeyError), name) for name in ("gain", "key", "score_max_softmax", "split")),
        ("records.parquet", ("gain", math.nan), "'gain' in rows"),
        ("records.parquet", ("label", 7), "'label' is none of the 2 classes"),
        ("records.parquet", ("swift_tokens", "x"), "'swift_tokens'"),
        ("records.parquet", ("swift_logits", 1.0), "logits"),
        ("elang.json", ("temperature", "x"), "temperature"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_damaged_evaluation_is_named(joint, tmp_path, fails, name, how, said):
    folder = shutil.copytree(joint, tmp_path / "joint")
    damaged(name, folder, how)
    fails(["report", folder, "--output", tmp_path / "r.html"], folder, said)
    assert not (tmp_path / "r.html").exists()
