"""``elang.json``: how to use a Swift, stored beside its weights."""

import json
import math
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from elang.errors import InputError, counted
from elang.files import plain, write_atomically
from elang.json_files import (
    MEASURED,
    OBJECT,
    OBJECTS,
    POSITIVE,
    TEXT,
    TEXTS,
    THRESHOLD,
    TRUTH,
    Check,
    check_fields,
    is_number,
    number,
    read_object,
    shown,
    whole,
)
from elang.method.curve.points import Point
from elang.method.scores import DEFAULT_SCORE
from elang.notices import notice, versions
from elang.records import DEFAULT_THRESHOLD
from elang.tasks.kind import KINDS
from elang.tasks.sampling import is_sampling

FILENAME = "elang.json"
_FORMAT, _LATER = 1, ("drop_overlap", "sampling", "denial")
_NAMED: Check = (
    "an object of scores with named entries",
    lambda v: isinstance(v, dict) and all(OBJECTS[1](named) for named in v.values()),
)
SAMPLING: Check = ("an object with temperature, top_p, top_k and seed, or an empty one", is_sampling)
# Checks of the fields of the file, of its task, and of each of its thresholds.
_FIELDS: dict[str, Check] = {
    "label_names": TEXTS,
    "task": ("an object of names and values, or null", lambda v: v is None or isinstance(v, dict)),
    "temperature": POSITIVE,
    **dict.fromkeys(("score", "weights_sha256", "denial"), TEXT),
    "routing_fraction": number(0, 1),
    "drop_overlap": TRUTH,
    **dict.fromkeys(("max_length", "max_target_length", "num_beams"), whole(1)),
    "sampling": SAMPLING,
    "router": OBJECTS,
    "chosen_on": OBJECT,
    "thresholds": _NAMED,
    "versions": OBJECT,
}
_TASK: dict[str, Check] = {
    "problem": (f"one of {', '.join(KINDS)}", lambda v: isinstance(v, str) and v in KINDS),
    **dict.fromkeys(("prompt", "label_words", "system", "extract"), TEXT),
    **dict.fromkeys(("label_names", "fields", "segments", "answers", "qualities", "choice_fields", "languages"), TEXTS),
    "examples": ("a list of prompts and answers by turns", lambda v: TEXTS[1](v) and len(v) % 2 == 0),
}
_ENTRY: dict[str, Check] = {
    "threshold": THRESHOLD,
    **dict.fromkeys(("rule", "chosen_on", "statement", "slice_sha256", "swift_sha256", "super_sha256"), TEXT),
    **dict.fromkeys(("slice_sketch", "denial", "cost"), TEXT),
    "sampling": SAMPLING,
    "temperature": POSITIVE,
    **dict.fromkeys(("num_examples", "attempts", "max_length"), whole(1)),
    **dict.fromkeys(("deferred_share", "quality", "speedup", "regretted", "p_value", "allowed_drop"), MEASURED),
    **dict.fromkeys(("max_regret", "max_drop", "confidence"), number(0)),
    "score_quantiles": (
        "a list of finite numbers",
        lambda v: isinstance(v, list) and bool(v) and all(map(is_number, v)),
    ),
}
# Fields that checking a statement needs.
_STATED = ("num_examples", "slice_sha256", "score_quantiles")


@dataclass
class Manifest:
    """The contents of ``elang.json``.

    Attributes:
        label_names: Classes in the order of the logits.
        task: :meth:`elang.tasks.text_task.TextTask.plain` of its task; by default a classification of one text.
        score: The score that routes by default.
        temperature: Its temperature.
        weights_sha256: Hash of the weights that the thresholds belong to.
        routing_fraction: Share of the training file that was held out from training.
        drop_overlap: Whether evaluated texts were left out of the training file.
        max_length: Longest input in tokens that it was trained on.
        max_target_length: Longest generated text in tokens, in a ``sequence`` task.
        num_beams: Beams with which texts were generated when thresholds were chosen.
        sampling: How they were drawn, :meth:`elang.tasks.sampling.Sampling.plain`; empty if they were not.
        router: What each router head reads, and why: :meth:`elang.method.router.RouterHead.fit`.
        thresholds: ``{score: {name: entry}}``; an entry has ``threshold`` and how it was chosen.
        chosen_on: The examples on which entries without their own were chosen, and with which Super,
            :func:`elang.evaluation.slices.describe_slice`.
        denial: Why `elang validate` said that the pair is no success; empty if it did not.
        versions: Versions of the libraries that made it.
    """

    label_names: list[str]
    task: dict[str, Any] | None = None
    score: str = DEFAULT_SCORE
    temperature: float = 1.0
    weights_sha256: str = ""
    routing_fraction: float = 0.0
    drop_overlap: bool = False
    max_length: int = 512
    max_target_length: int = 128
    num_beams: int = 1
    sampling: dict[str, Any] = field(default_factory=dict)
    router: dict[str, dict[str, Any]] = field(default_factory=dict)
    thresholds: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    chosen_on: dict[str, Any] = field(default_factory=dict)
    denial: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        """Write to the file ``path``; infinities become strings, because JSON has none."""
        self.versions = versions()
        # Versions before these fields can read what does not need them.
        values = {name: v for name, v in asdict(self).items() if v or name not in _LATER}
        values = {"format": _FORMAT, **plain(values)}
        with write_atomically(path) as aside:
            aside.write_text(json.dumps(values, indent=2) + "\n", "utf-8")

    @classmethod
    def read(cls, path: str | Path) -> "Manifest":
        """Read the file ``path``, or the one in the folder ``path``; an ``InputError`` if it is missing or invalid."""
        path = Path(path)
        if path.is_dir():
            path = path / FILENAME
        try:
            data = read_object(path)
            if (version := data.pop("format", None)) != _FORMAT or isinstance(version, bool):
                raise ValueError(f"it has the format {shown(version)}, and this version knows {_FORMAT}")
            check_fields(data, _FIELDS, ("label_names",))
            task = data.get("task") or {}
            if unknown := task.keys() - _TASK.keys():
                raise ValueError(f"its task has the unknown '{min(unknown)}'")
            check_fields(task, _TASK, where="task.")
            for score, named in data.get("thresholds", {}).items():
                for name, entry in named.items():
                    stated = _STATED if "statement" in entry else ()
                    check_fields(entry, _ENTRY, ("threshold", *stated), f"thresholds.{score}.{name}.")
            return cls(**data)
        except FileNotFoundError as error:
            remedy = "`elang fit` and `elang validate` write it."
            raise InputError(f"There is no threshold file '{path}'. {remedy}") from error
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"'{path}' is not a threshold file of this version ({error}). Correct it, or make it again with "
                "`elang fit` or `elang validate`."
            ) from error

    def threshold(self, name: str, score: str | None = None) -> float:
        """The threshold called ``name`` (``1-SE``, ``99%``, ``defer 30%``) of a score, or an ``InputError``."""
        score = score or self.score
        known = self.thresholds.get(score, {})
        if name.startswith("read here, "):
            best = known_name(known, name.removeprefix("read here, "))
            instead = f"'{best}', which was chosen on held-out ones" if best in known else "a name of a held-out slice"
            raise InputError(
                f"The threshold '{name}' was chosen on the evaluated examples themselves, so it promises nothing for "
                f"new inputs and no file keeps it. Give {instead}, or a number: those of `elang validate` are under "
                "operating_points in its summary.json."
            )
        if name not in known:
            remedy = f"it has {', '.join(map(repr, known))}. Give one of these, or" if known else "it has none. Give"
            raise InputError(
                f"There is no threshold '{name}' for the score '{score}'; {remedy} a number. "
                "`elang validate` with a held-out slice makes the usual ones, `elang calibrate JOINT "
                "--max_regret 0.02 --output SWIFT` 'certified'."
            )
        return float(known[name]["threshold"])

    def resolve(self, name: str, score: str | None = None) -> tuple[str, float]:
        """The score and threshold that a name (``certified``, ``1-SE``, ``99%``) stands for.

        Without ``score`` it is the one that the name was calibrated for, else the Swift's own.

        Raises:
            InputError: If there is no such threshold, or it was calibrated for several scores, for another score or for
                another temperature.
        """
        calibrated = [key for key, named in self.thresholds.items() if "statement" in named.get(name, {})]
        scores = ", ".join(map(repr, calibrated))
        if score is None and len(calibrated) > 1:
            raise InputError(
                f"The threshold '{name}' was calibrated for {len(calibrated)} scores, {scores}. Choose one: --score."
            )
        if score is not None and calibrated and score not in calibrated:
            raise InputError(
                f"The threshold '{name}' was calibrated for {scores}, not for '{score}'. Leave --score out, or "
                f"calibrate it: `elang calibrate JOINT --score {score}`."
            )
        score = score or next(iter(calibrated), self.score)
        threshold, entry = self.threshold(name, score), self.thresholds[score][name]
        if entry.get("temperature", self.temperature) != self.temperature:
            raise InputError(
                f"The threshold '{name}' was calibrated with the temperature {entry['temperature']}, and the Swift has "
                f"{self.temperature}. Calibrate it again."
            )
        if (length := entry.get("max_length", self.max_length)) != self.max_length:
            notice(
                "other-max-length",
                f"The threshold '{name}' was calibrated with inputs cut at {length} tokens, and here they are cut at "
                f"{self.max_length}: longer inputs may get other scores.",
            )
        return score, threshold

    def warn_of_another_super(self, name: str, score: str, path: str, digest: Callable[[], str]) -> None:
        """Give a notice if a threshold was chosen with another Super than that at ``path``, or certified against it.

        ``digest`` hashes the Super's weights, or returns an empty text if they are unknown; it is called if needed.
        """
        if (entry := self.thresholds.get(score, {}).get(name)) is None:
            return
        known = str(entry.get("super_sha256", self.super_sha256) or "")
        if not known or not (current := digest()) or current == known:
            return
        others = f"another Super (weights {known[:12]}…) than '{path}' (weights {current[:12]}…)"
        if {"max_regret", "max_drop"} & entry.keys():
            notice(
                "promise-of-another-super",
                f"What the threshold '{name}' promises was certified against {others}, and may not hold with this one. "
                "Run `elang validate` and `elang calibrate` with it.",
                stacklevel=3,
            )
            return
        notice(
            "another-super",
            f"The threshold '{name}' was chosen with {others}: is it the right folder? If it is, train the Swift on "
            "its answers, or run `elang validate` with it and give its thresholds: --thresholds JOINT/elang.json.",
            stacklevel=3,
        )

    @property
    def super_sha256(self) -> str:
        """Hash of the Super's weights with whose answers router and thresholds were made; empty if unknown."""
        return str(self.chosen_on.get("super_sha256") or "")

    def check_whole(self, digest: str, path: str) -> None:
        """Raise an ``InputError`` if a model's weights are not those that the file was written with."""
        if self.weights_sha256 and digest and digest != self.weights_sha256:
            raise InputError(
                f"The weights of '{path}' are not those that its {FILENAME} was written for ({digest[:12]}…, not "
                f"{self.weights_sha256[:12]}…): they are damaged or were replaced. Make the model again."
            )

    def check_weights(self, digest: str, who: str, examples: list[str] | None = None) -> None:
        """Raise an ``InputError`` if the thresholds were chosen for other weights, or other examples in a prompt."""
        if self.weights_sha256 and digest != self.weights_sha256:
            raise InputError(
                f"The thresholds were chosen for another Swift (weights {self.weights_sha256[:12]}…) than {who} "
                f"(weights {digest[:12]}…), and scores of two models are not on one scale. Choose them again with "
                "`elang validate`."
            )
        if examples is not None and self.task is not None and examples != (shown := self.task.get("examples", [])):
            raise InputError(
                f"The thresholds were chosen with {counted(len(shown) // 2, 'examples')} in the prompt of {who}, and "
                f"here it is shown {len(examples) // 2} others, so its scores are on another scale. Give "
                "--data.examples and the training file as there, or choose thresholds again with `elang validate`."
            )


def known_name(named: Container[str], name: str = DEFAULT_THRESHOLD) -> str:
    """The name of a threshold; instead of the default ``parity``, where an earlier version chose these ``named`` ones.

    >>> known_name({"parity": {}, "99%": {}})
    'parity'
    """
    return "parity" if name == DEFAULT_THRESHOLD and name not in named and "parity" in named else name


def entry_speedup(entry: dict[str, Any]) -> float:
    """The Super's cost over the pair's at the threshold of an entry, on the slice that chose it; NaN if unknown."""
    speedup = float(entry.get("speedup") or math.nan)
    # Earlier versions ran the Swift also where everything is deferred, and counted it.
    return 1.0 if not math.isnan(speedup) and float(entry["threshold"]) == -math.inf else speedup


def threshold_entry(point: Point, rule: str, chosen_on: str, num_examples: int, **more: Any) -> dict[str, Any]:
    """One entry of :attr:`Manifest.thresholds`: a threshold and how it was chosen, with ``more`` that is known."""
    return {
        "threshold": point.threshold,
        "rule": rule,
        "chosen_on": chosen_on,
        "num_examples": num_examples,
        "deferred_share": point.deferred_share,
        "quality": point.quality,
        "speedup": point.speedup,
        **more,
    }
