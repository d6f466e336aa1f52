"""`elang report`: an evaluation as one HTML page that needs nothing beside it."""

import base64
import io
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.bootstrap import curve_interval, lost_to_super
from elang.columns import exact_floats, numbers, read_parquet, vectors
from elang.errors import InputError
from elang.json_files import OBJECT, TEXT, Check, check_fields, read_object
from elang.manifest import FILENAME, Manifest
from elang.outputs import check_output_file, say, written_aside
from elang.quality import QUALITIES, Quality
from elang.records import read_about
from elang.report import COLORS, EVALUATION_FILES, plain_texts, said_against
from elang.scores import route
from elang.statements import CONDITIONS, check_statements
from elang.summary import read_summary

_STEPS = 400
_BAND_POINTS, _RESAMPLES = 101, 1000
_MADE: dict[str, Check] = {
    "command": TEXT,
    "seed": ("a text, or null", lambda v: v is None or isinstance(v, str)),
    "versions": OBJECT,
}
_MOST_TEXTS, _MOST_CHARACTERS, _MOST_CLASSES = 15, 400, 200


def report(joint: list[str], output: str = "report.html", threshold: str | None = None) -> None:
    """Put evaluations onto one HTML page, with every figure beside it as PNG and SVG.

    The page needs no network and no other file: the curve with its interval, a slider over all thresholds, the scores
    of right and wrong answers, a reliability diagram, costs, breakdowns by class and length, and the inputs that are
    deferred without need or kept without right.

    Args:
        joint: Folders that `elang validate` wrote; of several, a table of all comes first.
        output: The page. Figures go into a folder beside it, named like it.
        threshold: Name of the threshold that the page is about; by default ``certified`` where there is one, else
            ``99%``, else the one that reaches the Super on the set itself.

    Raises:
        InputError: If a folder is not an evaluation.
    """
    from jinja2 import Environment, PackageLoader

    path = Path(output)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"The page must be an .html file, but --output is '{output}'.")
    check_output_file(path, [Path(folder) / name for folder in joint for name in EVALUATION_FILES])
    evaluations = [Evaluation(Path(folder)) for folder in joint]
    names = [one.name for one in evaluations]
    beside = path.with_name(f"{path.stem}_files")
    sections = []
    for place, one in enumerate(evaluations):
        label = one.name if names.count(one.name) == 1 else f"{one.name} {place + 1}"
        sections.append(_section(one, label, threshold, beside))
    page = Environment(loader=PackageLoader("elang"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = page.get_template("report.html").render(sections=sections)
    with written_aside(path) as aside:
        aside.write_text(html, "utf-8")
    say(f"The report is {path}; its figures are in {beside}/ as PNG and SVG.")


@dataclass
class Evaluation:
    """What `elang validate` left in a folder.

    Attributes:
        folder: The folder.
    """

    folder: Path

    def __post_init__(self) -> None:
        self.summary = read_summary(self.folder)
        self.score: str = self.summary["score"]
        self.quality_name: Any = next(iter(self.summary["qualities"]))
        for name, read in (
            ("records.parquet", self._read_records),
            ("curve.csv", self._read_curves),
            ("made.json", self._read_made),
        ):
            try:
                read(self.folder / name)
            except InputError:
                raise
            except Exception as error:  # whatever the readers say of a damaged file
                raise InputError(
                    f"'{self.folder / name}' is not what `elang validate` wrote ({error}). Run `elang validate` again."
                ) from error

    def _read_records(self, path: Path) -> None:
        frame, _ = read_parquet(path)
        self.label_names: list[str] = read_about(path).get("label_names", [])
        self.frame = frame[frame["split"] == self.summary["evaluated_on"]].reset_index(drop=True)
        wanted = self.found["num_examples"]
        if len(self.frame) != wanted:
            raise ValueError(f"it has {len(self.frame)} rows of '{self.summary['evaluated_on']}', not {wanted}")
        for name in (
            "id",
            "key",
            f"score_{self.score}",
            "gain",
            *(["swift_tokens"] if "swift_tokens" in frame else []),
        ):
            if name not in self.frame:
                raise ValueError(f"it has no column '{name}'")
            numbers(self.frame, name, str(path), whole=name in ("id", "key"))
        if self.quality is not None and self.labels is not None:
            for name, column in zip(("label", "swift_prediction", "super_prediction"), self.labels, strict=True):
                if not len(self.label_names) > int(column.max()) or int(column.min()) < -(name != "label"):
                    raise ValueError(f"a '{name}' is none of the {len(self.label_names)} classes")
        if "swift_logits" in self.frame:
            first = self.frame["swift_logits"].iloc[0]
            size = len(first) if hasattr(first, "__len__") else 0
            self.logits = torch.from_numpy(vectors(self.frame, "swift_logits", size, str(path), missing=True))

    def _read_curves(self, path: Path) -> None:
        import pandas as pd

        self.curves = pd.read_csv(path, **exact_floats())
        named = ["threshold", "deferred_share", *self.summary["qualities"], "flops", "speedup"]
        for name in ("score", *named):
            if name not in self.curves:
                raise ValueError(f"it has no column '{name}'")
            if name != "score" and self.curves[name].dtype.kind not in "if" and len(self.curves):
                raise ValueError(f"its column '{name}' has values that are no numbers")
        share, threshold = self.curve["deferred_share"], self.curve["threshold"]
        if not len(self.curve) or not (share.between(0, 1).all() and share.is_monotonic_increasing):
            raise ValueError(f"it has no curve of the score '{self.score}' whose 'deferred_share' rises from 0 to 1")
        if not threshold.is_monotonic_decreasing:
            raise ValueError(f"the 'threshold' of '{self.score}' does not fall")

    def _read_made(self, path: Path) -> None:
        self.made: dict[str, Any] = read_object(path) if path.exists() else {}
        check_fields(self.made, _MADE, tuple(_MADE) if self.made else ())

    @property
    def name(self) -> str:
        """The folder's own name, or that of the task that it is in: of the first folder upwards that says something."""
        names = reversed(self.folder.resolve().parts[1:])
        return next((name for name in names if name not in ("joint", "runs")), self.folder.name)

    @property
    def found(self) -> dict[str, Any]:
        """The first quality's part of the summary."""
        part: dict[str, Any] = self.summary["qualities"][self.quality_name]
        return part

    def column(self, name: str) -> Tensor:
        """A column of the records."""
        return torch.tensor(self.frame[name].to_numpy())

    @cached_property
    def routed(self) -> Tensor:
        """The score that routes, ``(N,)``."""
        return self.column(f"score_{self.score}")

    @cached_property
    def gain(self) -> Tensor:
        """How much more the Super's answer is worth, of 1, ``(N,)``."""
        return self.column("gain").double() / float(self.summary["worth"]["largest"] or 1.0)

    @cached_property
    def labels(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Label, Swift's and Super's prediction, where these are classes."""
        names = ("label", "swift_prediction", "super_prediction")
        if not all(name in self.frame and self.frame[name].dtype.kind == "i" for name in names):
            return None
        return self.column("label"), self.column("swift_prediction"), self.column("super_prediction")

    @cached_property
    def quality(self) -> Quality | None:
        """The metric, if it is a function of sums over the examples' labels."""
        if self.labels is None:
            return None
        quality = QUALITIES[self.quality_name](len(self.label_names))
        return quality if quality.whole is None and quality.by_group is None and quality.target == "label" else None

    @cached_property
    def curve(self) -> Any:
        """The routing score's curve, a row for each threshold."""
        return self.curves[self.curves["score"] == self.score].reset_index(drop=True)

    def row_at(self, threshold: float) -> int:
        """The row of the curve where a pair with this threshold works."""
        if threshold >= float(self.routed.max()):
            return 0
        return min(int((self.curve["threshold"] > threshold).sum()), len(self.curve) - 1)

    @cached_property
    def manifest(self) -> Manifest | None:
        """The folder's thresholds."""
        path = self.folder / FILENAME
        return Manifest.read(path) if path.is_file() else None

    @property
    def statements(self) -> list[dict[str, Any]]:
        """What was promised of thresholds, and what became of it here."""
        found: list[dict[str, Any]] = self.summary.get("statements", [])
        if self.manifest is None:
            return found
        scores = {self.score: self.routed}
        own = check_statements(
            self.manifest,
            self.column("key"),
            scores,
            self.gain,
            self.summary.get("weights", {}).get("super", ""),
            self.column("unit") if "unit" in self.frame else None,
            {what: self.summary[what] for what in CONDITIONS if what in self.summary},
        )
        return own or found

    def chosen(self, wanted: str | None) -> tuple[str, float]:
        """The name of the threshold that the page is about, and its value."""
        # Those that were reported on, and those that have come into the folder since.
        known: dict[str, Any] = dict(self.found["scores"][self.score]["held_out"])
        known |= self.manifest.thresholds.get(self.score, {}) if self.manifest else {}
        if wanted is not None and wanted not in known:
            named = self.manifest.thresholds if self.manifest else {}
            others = [score for score in named if wanted in named[score]]
            raise InputError(
                f"'{self.folder}' has no threshold '{wanted}' for '{self.score}', which routes; there are "
                f"{', '.join(known) or 'none'}."
                + (f" '{wanted}' is one of {', '.join(map(repr, others))}." if others else "")
            )
        name = wanted or next((name for name in ("certified", "99%") if name in known), None)
        if name is not None:
            return name, float(known[name]["threshold"])
        return "parity, read here", float(self.found["scores"][self.score]["on_this_set"]["parity"]["threshold"])


def _section(one: Evaluation, label: str, wanted: str | None, beside: Path) -> dict[str, Any]:
    """What the template shows of one evaluation."""
    name, threshold = one.chosen(wanted)
    deferred = route(one.routed, threshold)
    with plain_texts():
        figures = [_curve_figure(one, name, threshold), _score_figure(one, threshold), _reliability_figure(one)]
    drawn = [_keep(figure, beside, f"{label}-{figure['name']}") for figure in figures if figure is not None]
    at = one.row_at(threshold)
    steps = np.linspace(0, len(one.curve) - 1, min(len(one.curve), _STEPS)).round().astype(int)
    rows = np.unique([*steps, at])
    curve = one.curve.iloc[rows]
    latency = one.summary.get("latency", {})
    times = {
        what: (latency["swift"][what], latency["super"][what])
        for what in ("batch 1", "at best batch")
        if {"swift", "super"} <= latency.keys()
    }
    slider = {
        "threshold": [_rounded(v) for v in curve["threshold"]],
        "share": [_rounded(v) for v in curve["deferred_share"]],
        "quality": [_rounded(v) for v in curve[one.quality_name]],
        "flops": [_rounded(v) for v in curve["flops"]],
        "speedup": [_rounded(v) for v in curve["speedup"]],
        "times": times,
        "start": int(np.searchsorted(rows, at)),
        "x": drawn[0]["x"],
        "y": drawn[0]["y"],
        "by": drawn[0]["by"],
    }
    return {
        "label": label,
        "id": "".join(c if c.isalnum() else "-" for c in label),
        "summary": one.summary,
        "found": one.found,
        "quality": one.quality_name,
        "score": one.score,
        "point": _point(one, name, threshold, deferred),
        "figures": drawn,
        "slider": slider,
        "scores": _scores(one),
        "times": [{"name": name, **found} for name, found in latency.items()],
        "classes": _classes(one, deferred),
        "lengths": _lengths(one, deferred),
        "needless": _texts(one, deferred & (one.gain <= 0), one.routed),
        "missed": _texts(one, ~deferred & (one.gain > 0), -one.routed),
        "statements": one.statements,
        "made": one.made,
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _point(one: Evaluation, name: str, threshold: float, deferred: Tensor) -> dict[str, Any]:
    """The chosen point, and how sure its difference to the Super is."""
    row = one.curve.iloc[one.row_at(threshold)]
    found = {
        "name": name,
        "share": float(deferred.double().mean()),
        "quality": float(row[one.quality_name]),
        "speedup": float(row["speedup"]),
        "same_slice": any(s["name"] == name and s["score"] == one.score and s["same_slice"] for s in one.statements),
    }
    # What the pair loses to the Super, by examples that are drawn again.
    return found | lost_to_super((one.gain * ~deferred)[:, None])[0]


def _scores(one: Evaluation) -> list[dict[str, Any]]:
    """Every score's area and points."""
    rows = []
    for name, found in one.found["scores"].items():
        points = {"held out, 99%": found["held_out"].get("99%"), "read here, parity": found["on_this_set"]["parity"]}
        against = said_against(one.summary.get("areas", {}).get(name, {}))
        rows.append(
            {"name": name, "area": found["area"], "against": against, "points": points, "chosen": name == one.score}
        )
    return rows


def _rates(one: Evaluation, rows: Tensor, deferred: Tensor) -> dict[str, Any]:
    assert one.labels is not None
    label, swift, super_ = (column[rows] for column in one.labels)
    pair = torch.where(deferred[rows], super_, swift)
    right = [float((answer == label).double().mean()) for answer in (swift, super_, pair)]
    return {
        "number": len(label),
        "swift": right[0],
        "super": right[1],
        "pair": right[2],
        "deferred": float(deferred[rows].double().mean()),
    }


def _classes(one: Evaluation, deferred: Tensor) -> list[dict[str, Any]]:
    """Right answers and deferrals of each class."""
    if one.labels is None or not one.label_names or len(one.label_names) > _MOST_CLASSES:
        return []
    label = one.labels[0]
    rows = [(name, (label == i).nonzero().squeeze(1)) for i, name in enumerate(one.label_names)]
    return [{"name": name, **_rates(one, found, deferred)} for name, found in rows if len(found)]


def _lengths(one: Evaluation, deferred: Tensor) -> list[dict[str, Any]]:
    """The same by quarters of the input's length."""
    if one.labels is None or "swift_tokens" not in one.frame:
        return []
    tokens = one.column("swift_tokens")
    edges = sorted({int(v) for v in tokens.double().quantile(torch.tensor([0, 0.25, 0.5, 0.75, 1]).double())})
    rows = []
    for low, high in pairwise(edges):
        last = high == edges[-1]
        chosen = ((tokens >= low) & ((tokens < high) | last)).nonzero().squeeze(1)
        if len(chosen):
            rows.append({"name": f"{low} to {high if last else high - 1} tokens", **_rates(one, chosen, deferred)})
    return rows


def _texts(one: Evaluation, chosen: Tensor, order: Tensor) -> dict[str, Any]:
    """Some inputs, the most certain ones first."""
    rows = chosen.nonzero().squeeze(1)
    rows = rows[order[rows].argsort(descending=True, stable=True)]
    shown = []
    for row in rows[:_MOST_TEXTS].tolist():
        found = one.frame.iloc[row]
        text = str(found.get("input", f"row {found['id']}"))
        more = len(text) - _MOST_CHARACTERS
        shown.append(
            {
                "id": int(found["id"]),
                "text": text if more <= 0 else text[:_MOST_CHARACTERS] + f" … and {more} characters more",
                "score": float(one.routed[row]),
                "label": _named(one, found.get("label")),
                "swift": str(found.get("swift_text", _named(one, found.get("swift_prediction")))),
                "super": str(found.get("super_text", _named(one, found.get("super_prediction")))),
            }
        )
    return {"number": len(rows), "shown": shown}


def _named(one: Evaluation, value: Any) -> str:
    if value is None:
        return ""
    whole = isinstance(value, int | np.integer)
    return one.label_names[int(value)] if whole and 0 <= int(value) < len(one.label_names) else f"{value}"


def _figure(width: float = 7.0, height: float = 4.2) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _curve_figure(one: Evaluation, name: str, threshold: float) -> dict[str, Any]:
    """Quality over compute, or over the deferred share where a black-box Super's cost is not known."""
    figure = _figure()
    axis = figure.subplots()
    found, cost = one.found, one.found["super"]["cost"]
    by_cost = all(c is not None and math.isfinite(c) for c in (cost, found["swift"]["cost"]))
    for score in dict.fromkeys(["random", "oracle", "max_softmax", one.score]):
        curve = one.curves[one.curves["score"] == score]
        if not len(curve):
            continue
        x = curve["flops"] / cost if by_cost else curve["deferred_share"]
        style: dict[str, Any] = {"color": COLORS.get(score, "#666666"), "linewidth": 1.2, "label": score}
        if score in ("random", "oracle"):
            style |= {"color": "#767676", "linestyle": ":" if score == "random" else "--"}
        if score == one.score:
            style |= {"linewidth": 2.6, "zorder": 5}
        axis.plot(x, curve[one.quality_name], **style)
    said = f"{one.quality_name} of the pair over {'compute' if by_cost else 'the deferred share'}, with {one.score}"
    if one.quality is not None and one.labels is not None:
        swift, super_ = (one.quality.statistics(answer, one.labels[0]) for answer in one.labels[1:])
        shares, low, high = curve_interval(one.routed, swift, super_, one.quality.value, _BAND_POINTS, _RESAMPLES)
        own = one.curve
        x = np.interp(shares, own["deferred_share"], own["flops"] / cost) if by_cost else shares
        axis.fill_between(x, low, high, color=COLORS.get(one.score, "#666666"), alpha=0.15, linewidth=0)
        said += "; the band is its 95% bootstrap interval"
    axis.axhline(found["super"]["quality"], color="black", linewidth=0.8)
    axis.annotate("Super", (0.005, found["super"]["quality"]), xycoords=("axes fraction", "data"), va="bottom")
    axis.plot([found["swift"]["cost"] / cost if by_cost else 0], [found["swift"]["quality"]], "s", color="black")
    axis.annotate(
        "Swift",
        (found["swift"]["cost"] / cost if by_cost else 0, found["swift"]["quality"]),
        xytext=(6, -12),
        textcoords="offset points",
    )
    axis.set_xlabel("compute, as a share of the Super's FLOPs" if by_cost else "share deferred to the Super")
    axis.set_ylabel(one.quality_name)
    axis.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    # Where data lies in the picture, so that the slider's mark can be put there.
    figure.canvas.draw()
    box = axis.get_window_extent()
    width, height = figure.canvas.get_width_height()
    (x0, x1), (y0, y1) = axis.get_xlim(), axis.get_ylim()
    return {
        "figure": figure,
        "name": "curve",
        "alt": said,
        "caption": f"{said}. The mark is at the slider's threshold, at first '{name}'.",
        "x": [box.x0 / width, box.x1 / width, x0, x1],
        "y": [box.y0 / height, box.y1 / height, y0, y1],
        "by": cost if by_cost else 0,
    }


def _score_figure(one: Evaluation, threshold: float) -> dict[str, Any]:
    """The scores of inputs by what the Super could do for them."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter, SymmetricalLogLocator

    figure = _figure(7.0, 3.2)
    axis = figure.subplots()
    score = one.routed.double()
    if one.labels is not None:
        right = one.labels[1] == one.labels[0]
        groups = {"the Swift is right": right, "the Swift is wrong": ~right}
    else:
        groups = {"the Super is no better": one.gain <= 0, "the Super is better": one.gain > 0}
    low, high = score.quantile(0.001).item(), score.quantile(0.999).item()
    bins = np.linspace(low, high if high > low else low + 1, 41)
    for (what, rows), color in zip(groups.items(), ("#0072B2", "#D55E00"), strict=True):
        values = score[rows].clamp(bins[0], bins[-1]).numpy()
        axis.hist(values, bins, histtype="stepfilled", alpha=0.55, color=color, label=f"{what} ({len(values):,})")
    if math.isfinite(threshold):
        axis.axvline(threshold, color="black", linewidth=1.2, label="threshold")
    axis.set_yscale("symlog", linthresh=10)
    few = axis.get_ylim()[1] < 10
    wanted = MaxNLocator(integer=True) if few else SymmetricalLogLocator(base=10, linthresh=10, subs=(1, 2, 5))
    axis.yaxis.set_major_locator(wanted)
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set_xlabel(f"{one.score} (larger is harder)")
    axis.set_ylabel("inputs")
    axis.legend(fontsize=9)
    said = f"Histograms of {one.score}: " + " and ".join(groups)
    line = "; the line is the threshold" if math.isfinite(threshold) else ""
    caption = f"{said}{line}. The vertical axis is logarithmic from 10."
    return {"figure": figure, "name": "scores", "alt": said, "caption": caption}


def _reliability_figure(one: Evaluation) -> dict[str, Any] | None:
    """How often the Swift is right where it says that it is so sure."""
    if one.labels is None or "swift_logits" not in one.frame:
        return None
    probability = one.logits.float().softmax(-1)
    sure = probability.amax(-1).double()
    right = (one.labels[1] == one.labels[0]).double()
    bins = (sure * 10).long().clamp_max(9)
    count = torch.bincount(bins, minlength=10)
    filled = count > 0
    said, true = (torch.bincount(bins, weights=v, minlength=10)[filled] / count[filled] for v in (sure, right))
    error = float(((said - true).abs() * count[filled]).sum() / len(sure))
    figure = _figure(4.2, 4.2)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="#767676", linestyle=":")
    axis.plot(said.numpy(), true.numpy(), color="#0072B2", linewidth=1)
    axis.scatter(said.numpy(), true.numpy(), 15 + 150 * (count[filled] / len(sure)).numpy(), color="#0072B2")
    axis.set_xlabel("the Swift's largest probability")
    axis.set_ylabel("share of right answers")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.25)
    alt = f"Reliability diagram of the Swift; expected calibration error {error:.3f}"
    return {
        "figure": figure,
        "name": "reliability",
        "alt": alt,
        "caption": f"{alt}, in ten bins of equal width; larger dots have more inputs.",
    }


def _keep(drawn: dict[str, Any], beside: Path, stem: str) -> dict[str, Any]:
    """Write a figure as PNG and SVG, and as what the page has in it."""
    beside.mkdir(parents=True, exist_ok=True)
    figure = drawn.pop("figure")
    for kind in ("png", "svg"):
        data = io.BytesIO()
        figure.savefig(data, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
        with written_aside(beside / f"{''.join(c if c.isalnum() or c in '-_' else '-' for c in stem)}.{kind}") as aside:
            aside.write_bytes(data.getvalue())
    drawn["image"] = "data:image/svg+xml;base64," + base64.b64encode(data.getvalue()).decode()
    return drawn
