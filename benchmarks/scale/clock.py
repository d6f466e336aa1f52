"""A callback that counts tokens and seconds of each process, for gpus.py."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import wait_for_gpu


class Clock(Callback):
    """Real tokens and seconds of this process after its first batches, written at the end.

    Args:
        path: Where; the process's number is added.
        skip: Batches that are not counted.
    """

    def __init__(self, path: str, skip: int = 10) -> None:
        self.path, self.skip, self.tokens, self.seen, self.start = path, skip, [], 0, 0.0

    def _tick(self, batch: dict[str, Any]) -> None:
        self.seen += 1
        if self.seen == self.skip + 1:
            wait_for_gpu()
            self.start = time.perf_counter()
        if self.seen > self.skip and not batch["repeated"]:
            inputs = next(value for value in batch.values() if isinstance(value, dict) and "attention_mask" in value)
            self.tokens.append(inputs["attention_mask"].sum())

    def _write(self, trainer: Any) -> None:
        wait_for_gpu()
        seconds = time.perf_counter() - self.start
        found = {"tokens": int(sum(self.tokens)), "seconds": seconds, "batches": len(self.tokens)}
        if (accuracy := trainer.callback_metrics.get("validation/accuracy")) is not None:
            found["accuracy"] = float(accuracy)
        Path(f"{self.path}.{trainer.global_rank}").write_text(json.dumps(found))

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
        """Count a batch."""
        self._tick(batch)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Write."""
        self._write(trainer)

    def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, number: int, loader: int = 0) -> None:
        """Count a batch of an evaluation."""
        if not trainer.training:
            self._tick(batch)

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        """Write, before anything is gathered."""
        if not trainer.training:
            self._write(trainer)
