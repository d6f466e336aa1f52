"""SIGTERM in a training on several processes."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, distributed

_ASKED, _CAME = "_broadcast_sigterm_tensor", "_sigterm_notifier_fn"


class LateStop:
    """Stops all processes at the same batch once SIGTERM has come to one, a batch later than Lightning would.

    Lightning asks before each batch and waits for the answer, so for all that a GPU has to do before it, and the GPU
    then stands still until the host has brought the next batch. The answer of the batch before has long been there.
    And a process of Lightning's tells the others from within its signal handler, in the middle of whatever they are
    exchanging, or leaves while the others wait for it.

    Args:
        trainer: Whose loop asks.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.came = trainer, False
        self._told: Tensor | None = None
        self._arrived: Any = None

    def on_signal(self, signum: int, frame: Any) -> None:
        """Note SIGTERM, and hand it on to the processes that this one has started."""
        launcher: Any = self.trainer.strategy.launcher
        if not self.came and launcher is not None:
            launcher.kill(signum)
        self.came = True
        # An evaluation exchanges nothing before its end.
        self.trainer._signal_connector.received_sigterm = not self.trainer.training

    def __call__(self) -> None:
        """Ask once more, and hear what was said the last time.

        Raises:
            SIGTERMException: In all processes.
        """
        if self._told is not None:
            if self._arrived is not None:
                self._arrived.synchronize()
            if self._told.item():
                raise SIGTERMException
        device = self.trainer.strategy.root_device
        said = torch.full((1,), float(self.came), device=device)
        distributed.all_reduce(said, distributed.ReduceOp.MAX)
        self._told = said
        if device.type == "cuda":
            # From the device's own memory it could only be read behind all that came after.
            self._told = torch.empty(1, pin_memory=True).copy_(said, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()


def stop_late(trainer: Trainer) -> None:
    """Let a trainer's processes hear of SIGTERM by :class:`LateStop`, where Lightning would wait."""
    loop: Any = trainer.fit_loop.epoch_loop
    signals: Any = trainer._signal_connector
    if trainer.world_size > 1 and hasattr(loop, _ASKED) and hasattr(signals, _CAME):
        late = LateStop(trainer)
        setattr(loop, _ASKED, late)
        setattr(signals, _CAME, late.on_signal)
