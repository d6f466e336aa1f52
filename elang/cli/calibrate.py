"""`elang calibrate`: a threshold with a promise for new inputs, chosen on records that no model was trained on."""

from pathlib import Path
from typing import Literal

from elang.cli.arguments import is_number
from elang.data.columns import columns_of
from elang.errors import InputError
from elang.evaluation.cautions import little_to_gain
from elang.evaluation.pair import BY_QUALITY, SHARES
from elang.evaluation.promises import Request, choose_entries, manifest_file
from elang.evaluation.report.words import meanings, speedup_text
from elang.evaluation.slices import read_slice
from elang.evaluation.statements import LEDGER, PROMISES, add_entries, keep_made, read_made
from elang.evaluation.summary import JointSummary
from elang.evaluation.summary_file import read_summary
from elang.evaluation.units import words_of
from elang.files import check_output_file
from elang.locks import locked
from elang.notices import notice
from elang.records.manifest import FILENAME, Manifest
from elang.terminal import say, say_table, say_wrapped, without_repeats

# A smaller amount cannot be certified on any data that fits on a disk.
_SMALLEST = 1e-9


def calibrate(
    joint: str,
    max_regret: list[float] | float | None = None,
    max_drop: list[float] | float | None = None,
    super_share: float | None = None,
    flops: float | None = None,
    latency: float | None = None,
    confidence: float = 0.95,
    score: list[str] | str | None = None,
    split: Literal["routing", "validation", "test"] | None = None,
    name: str = "certified",
    output: str | None = None,
    ledger: str | None = None,
) -> None:
    """Choose a threshold that keeps a promise on new inputs, and write it with its statement into ``elang.json``.

    Set the promise with exactly one of the first five options. Regret is the share of inputs for which the Swift's
    answer is used and wrong although the Super is right; the drop is how far the pair is below the Super. Bounds on
    these two are certificates that hold for any number of examples; shares and budgets promise nothing about quality.
    Several scores or amounts, as in ``--score max_softmax entropy``, are tested together as one attempt. Further
    attempts on the same examples cost confidence; the statement says how much is left.

    Args:
        joint: Folder that `elang validate` wrote: ``records.parquet`` and ``elang.json``.
        max_regret: Largest regret, such as 0.01.
        max_drop: Largest drop below the Super's mean (accuracy, or another value of an answer), such as 0.005.
        super_share: Share of inputs that the Super may answer.
        flops: FLOPs of the pair as a share of the Super's alone.
        latency: Mean seconds of an input at batch 1, by the latencies of `elang validate --model.latency true`.
        confidence: Of the promise.
        score: Which score routes; by default the Swift's own.
        split: Of the records. It must be held out from both models' training, and cannot be evaluated on afterwards. By
            default the routing slice or, for a router, which was fitted on that, the evaluation set.
        name: Of the threshold, for `elang predict --threshold NAME`; of several amounts each is added to it.
        output: Another ``elang.json``, or its folder, to add the threshold to, besides that of ``joint``: the Swift's.
            A .json file or a folder that does not exist is made, with the other thresholds of ``joint``.
        ledger: The file that counts attempts on each slice; by default ``slices.json`` beside ``joint``.
    """
    promises = {"max_regret": max_regret, "max_drop": max_drop}
    promises |= {"super_share": super_share, "flops": flops, "latency": latency}
    given = {kind: amount for kind, amount in promises.items() if amount is not None}
    if len(given) != 1:
        raise InputError(
            f"Give one of --max_regret, --max_drop, --super_share, --flops and --latency, not {len(given)} of them."
        )
    ((kind, amounts),) = given.items()
    targets = [float(amount) for amount in dict.fromkeys(amounts if isinstance(amounts, list) else [amounts])]
    _check_options(kind, targets, confidence=confidence, name=name)
    folder = Path(joint)
    summary = read_summary(folder)
    scores = list(dict.fromkeys(columns_of(score) or [summary.score]))
    part = split or (summary.evaluated_on if any("router" in name for name in scores) else "routing")
    manifests = _manifests(joint, output, summary)
    request = Request(kind, targets, scores, confidence=confidence, part=part, name=name)
    file = Path(ledger) if ledger else folder.resolve().parent / LEDGER
    _add_thresholds(request, summary, folder, manifests=manifests, ledger=file)


def _check_options(kind: str, targets: list[float], confidence: float, name: str) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"--confidence must be between 0 and 1, but it is {confidence}.")
    if not targets:
        raise InputError(f"--{kind} needs an amount.")
    bounds = "above 0" if kind == "latency" else "above 0 and below 1"
    for target in targets:
        if not (target > 0 and (kind == "latency" or target < 1)):
            raise InputError(f"--{kind} must be {bounds}, but it is {target}.")
        if kind in PROMISES and target < _SMALLEST:
            raise InputError(
                f"--{kind} must be at least {_SMALLEST:g}, but it is {target}: that takes too many examples."
            )
    if is_number(name) or not name.strip() or name in {*BY_QUALITY, *SHARES}:
        raise InputError(
            f"--name cannot be '{name}': `elang predict --threshold` reads a number as a threshold, and the names of "
            f"the thresholds that `elang validate` chooses are taken ({', '.join([*BY_QUALITY, *SHARES])})."
        )


def _add_thresholds(
    request: Request, summary: JointSummary, folder: Path, *, manifests: dict[Path, Manifest], ledger: Path
) -> None:
    """Choose thresholds, print what they promise, and add them to the threshold files."""
    read_made(folder / "made.json")
    slices = {score: read_slice(folder, request.part, score) for score in request.scores}
    fractions = [manifest.routing_fraction for manifest in manifests.values()]
    entries = choose_entries(request, slices, summary, folder=folder, ledger=ledger, fractions=fractions)
    first = slices[request.scores[0]]
    if repeated := first.rows - len(first.key):
        notice(
            "repeated-examples",
            f"Rows of '{request.part}' that repeat another one's text: {repeated:,} of {first.rows:,}. Each text "
            "counts once, because a promise needs independent examples.",
        )
    if caution := little_to_gain(first.gain, first.worth, first.bounded):
        say_wrapped(f"Caution: {caution}.")
    for (score, name), entry in entries.items():
        say_wrapped(f"{score}, '{name}': {entry['statement']}" if len(entries) > 1 else entry["statement"])
    if len(entries) > 1:
        rows, notes = without_repeats(
            [
                [f"{score}: {name}", f"{entry['deferred_share']:.1%}", speedup_text(entry["speedup"])]
                for (score, name), entry in entries.items()
            ]
        )
        head = ["threshold", "deferred", "speed-up"]
        notes += meanings(head, cost=words_of(first.convention).name)
        say_table("What they do on these examples", head, rows, notes)
    say_wrapped(f"Chosen on {first.units:,} {first.noun} of the split '{request.part}' of {folder}/.")
    for path, known in manifests.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent):
            if not path.is_file():
                beside = (path.parent / "config.json").is_file()
                use = "" if beside else f" No model is beside it: give it to `elang predict` as --thresholds {path}."
                say(f"{path} is a new file.{use}")
            # Another calibration may have added its own in the meantime.
            manifest = Manifest.read(path) if path.is_file() else known
            add_entries(manifest, path, entries, swift=summary.weights.get("swift", ""))
            manifest.write(path)
            say(*(f"It is the threshold '{name}' of '{score}' in {path}." for score, name in entries))
            if path == manifest_file(folder):
                keep_made(folder / "made.json")


def _output_file(output: str) -> Path:
    """The threshold file that an output names, which may be a folder; neither has to be there."""
    path = Path(output)
    if path.exists():
        return manifest_file(path)
    if path.suffix not in ("", ".json"):
        raise InputError(
            f"There is no --output '{output}', and it would be made only if it ended in .json, a file, or had no "
            "ending, a folder. Correct it, or make the folder."
        )
    return path if path.suffix else path / FILENAME


def _manifests(joint: str, output: str | None, summary: JointSummary) -> dict[Path, Manifest]:
    """The threshold files to add to: the evaluation's own, if it has one, and the one given as ``output``.

    An output that is not there begins as the evaluation's own, or as the Swift's.
    """
    own = manifest_file(joint)
    paths = [own] if own.is_file() else []
    manifests = {path: Manifest.read(path) for path in paths}
    if output is not None and (path := _output_file(output)) not in manifests:
        source = next((one for one in (path, own, Path(summary.swift_model) / FILENAME) if one.is_file()), None)
        if source is None:
            raise InputError(
                f"There is no threshold file '{path}', and none to begin it with: neither '{joint}' nor the Swift, "
                f"'{summary.swift_model}', has one. Give the Swift's folder as --output."
            )
        check_output_file(path, [joint] if source != path else [])
        manifests[path] = Manifest.read(source)
    if not manifests:
        raise InputError(f"'{joint}' has no {FILENAME}. Name the Swift's with --output.")
    weights = summary.weights.get("swift", "")
    for path, manifest in manifests.items():
        if weights and manifest.weights_sha256 not in ("", weights):
            raise InputError(
                f"'{path}' is of another Swift (weights {manifest.weights_sha256[:12]}…) than the one of '{joint}', "
                f"'{summary.swift_model}' (weights {weights[:12]}…). Give that one's folder as --output."
            )
        if manifest.temperature != summary.temperature:
            raise InputError(
                f"'{path}' is for the temperature {manifest.temperature}, and the records' scores are of "
                f"{summary.temperature}. Run `elang validate` with --model.temperature {manifest.temperature}."
            )
    return manifests
