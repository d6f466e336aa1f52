"""How much processes wait for the one with the longest texts, in training: by padded tokens, without a model.

    python benchmarks/waiting.py --data SST-2

SST-2 is a folder with train.tsv. A step lasts as long as its largest batch; what all batches have to do, over what they
would in that time, is the share of the processes' time that is used. Writes benchmarks/results/waiting.json.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from common import write_result

from elang.data.batches import LengthBatches

BATCH = 32


def used(lengths: torch.Tensor, processes: int) -> dict[str, float]:
    shares = [list(LengthBatches(lengths, BATCH, True, rank, processes)) for rank in range(processes)]
    padded = torch.tensor([[len(b) * int(lengths[b].max()) for b in own] for own in shares], dtype=torch.float64)
    real = sum(int(lengths[batch].sum()) for own in shares for batch in own)
    return {"used": float(padded.mean(0).sum() / padded.amax(0).sum()), "padded to real": float(padded.sum() / real)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    frame = pd.read_csv(args.data / "train.tsv", sep="\t", quoting=3)
    # Words, and what a tokenizer adds.
    lengths = torch.tensor((frame["sentence"].str.split().map(len) + 2).to_numpy())
    figures = {str(processes): used(lengths, processes) for processes in (1, 2, 8, 64)}
    for processes, found in figures.items():
        print(processes, found)
    print(f"written to {write_result('waiting', {'examples': len(lengths), 'batch': BATCH} | figures, ('torch',))}")


if __name__ == "__main__":
    main()
