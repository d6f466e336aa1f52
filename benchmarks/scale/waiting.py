"""How much processes wait for the one with the longest texts, in training: by padded words, without a model.

    python benchmarks/scale/waiting.py --data SST-2

SST-2 is a folder with train.tsv. A step lasts as long as its largest batch; what all batches have to do, over what they
would in that time, is the share of the processes' time that is used. Beside it: batches of any lengths in a step, as
one process takes them one after the other. Writes benchmarks/results/waiting.json.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch

from elang.data.batches import LengthBatches

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

BATCH = 32


def used(lengths: torch.Tensor, shares: list[list[list[int]]]) -> dict[str, float]:
    padded = torch.tensor([[len(b) * int(lengths[b].max()) for b in own] for own in shares], dtype=torch.float64)
    real = sum(int(lengths[batch].sum()) for own in shares for batch in own)
    return {"used": float(padded.mean(0).sum() / padded.amax(0).sum()), "padded to real": float(padded.sum() / real)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    frame = pd.read_csv(args.data / "train.tsv", sep="\t", quoting=3)
    # Words, and the tokens that a tokenizer adds.
    lengths = torch.tensor((frame["sentence"].str.split().map(len) + 2).to_numpy())
    alone = list(LengthBatches(lengths, BATCH, True))
    figures = {}
    for processes in (1, 2, 8, 64):
        ranks = range(processes)
        whole = len(alone) // processes * processes
        figures[str(processes)] = {
            "of like lengths": used(lengths, [list(LengthBatches(lengths, BATCH, True, r, processes)) for r in ranks]),
            "of any lengths": used(lengths, [alone[r:whole:processes] for r in ranks]),
        }
    for processes, found in figures.items():
        print(processes, found)
    print(f"written to {write_result('waiting', {'examples': len(lengths), 'batch': BATCH} | figures, ('torch',))}")


if __name__ == "__main__":
    main()
