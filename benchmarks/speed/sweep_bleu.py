"""Corpus BLEU and chrF at every threshold for WMT14's test size, against sacrebleu on the assembled texts.

Run ``python benchmarks/speed/sweep_bleu.py``. It fails where the sweep takes half a second or differs from sacrebleu.
"""

import random
import sys
import time
from pathlib import Path

import torch
from sacrebleu.metrics import BLEU, CHRF

from elang.method.curve.exact import operating_curve
from elang.method.curve.points import OperatingCurve
from elang.method.quality.texts import TEXT_METRICS

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

SENTENCES, THRESHOLDS, RUNS = 3_003, 100, 5
MAX_SECONDS = 0.5


def noisy(references: list[str], share: float, words: list[str], rng: random.Random) -> list[str]:
    """References with a share of their words replaced."""
    return [" ".join(rng.choice(words) if rng.random() < share else w for w in r.split()) for r in references]


def main() -> int:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvz", k=rng.randint(2, 9))) for _ in range(5_000)]
    # As long as the sentences of newstest2014.
    references = [" ".join(rng.choices(words, k=rng.randint(4, 46))) + " ." for _ in range(SENTENCES)]
    swift, super_ = noisy(references, 0.4, words, rng), noisy(references, 0.2, words, rng)
    score = torch.randn(SENTENCES, generator=torch.Generator().manual_seed(0))
    figures: dict[str, float | int] = {"sentences": SENTENCES, "threads": torch.get_num_threads()}
    missed = []
    for name, metric in (("bleu", BLEU(force=True)), ("chrf", CHRF())):
        statistics, value = TEXT_METRICS[name]
        start = time.perf_counter()
        a, b = statistics(swift, references), statistics(super_, references)
        once = time.perf_counter() - start
        figures[f"{name}: seconds for both models' statistics, once"] = once
        seconds = []
        for _ in range(RUNS):
            start = time.perf_counter()
            curve: OperatingCurve = operating_curve(score, a, b, value)
            seconds.append(time.perf_counter() - start)
        figures[f"{name}: operating points"] = len(curve)
        figures[f"{name}: seconds for the sweep"] = sorted(seconds)[RUNS // 2]
        chosen = torch.linspace(0, len(curve) - 1, THRESHOLDS).round().long().tolist()
        start, difference = time.perf_counter(), 0.0
        for point in chosen:
            deferred = (score.double() > curve.threshold[point]).tolist()
            mixed = [y if d else x for x, y, d in zip(swift, super_, deferred, strict=True)]
            found = metric.corpus_score(mixed, [references]).score
            difference = max(difference, abs(found - float(curve.quality[point])))
        anew = time.perf_counter() - start
        figures[f"{name}: seconds for sacrebleu at {THRESHOLDS} thresholds"] = anew
        figures[f"{name}: ratio to the sweep"] = anew / sorted(seconds)[RUNS // 2]
        figures[f"{name}: ratio to statistics and sweep"] = anew / (once + sorted(seconds)[RUNS // 2])
        figures[f"{name}: largest difference"] = difference
        if max(seconds) >= MAX_SECONDS:
            missed.append(f"the slowest sweep of {name} took {max(seconds):.2f} s, the bar is {MAX_SECONDS} s")
        if difference > 1e-6:
            missed.append(f"{name} differs from sacrebleu by {difference:.2g}")
    print("\n".join(f"{name:<52}{figure:>14.6g}" for name, figure in figures.items()))
    print(f"written to benchmarks/results/{write_result('sweep_bleu', figures, ('torch', 'sacrebleu')).name}")
    for line in missed:
        print(f"MISSED: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
