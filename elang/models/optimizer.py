"""AdamW and its schedule: the learning rate rises linearly, and then falls to 0."""

import math
from collections.abc import Iterable

import torch
from lightning.pytorch import Trainer
from torch import nn

from elang.errors import InputError
from elang.models.resuming import Plan, rate
from elang.notices import notice, notices


def adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, trainer: Trainer) -> torch.optim.AdamW:
    """AdamW for a trainer's steps, with weight decay on matrices only: not on biases and norms."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    # Lightning does not clip the gradients of a fused optimizer in mixed precision.
    clipped = trainer.gradient_clip_val and "mixed" in str(trainer.precision)
    return torch.optim.AdamW(groups, lr=lr, fused=None if clipped else True)


class Schedule:
    """The learning rate over all steps of a training, including those of runs that it resumes.

    Args:
        optimizer: Made by :func:`adamw`.
        trainer: Whose steps are counted.
        plan: Of the training, where the data module is ours.
        warmup: Share of all steps in which the learning rate rises.

    Attributes:
        scheduler: For Lightning, which has to call it at each step.

    Raises:
        InputError: If the training has no end that is known beforehand.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, trainer: Trainer, plan: Plan | None, warmup: float) -> None:
        self.trainer, self.plan = trainer, plan
        self._count_steps()

        # A function, which checkpoints leave out; they would keep the attributes of anything else that is called.
        def factor(step: int) -> float:
            return rate(step + self._shift, self._steps, max(1, round(warmup * self._steps)))

        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def _count_steps(self) -> None:
        """Find out how many steps the whole run takes, over which the learning rate falls.

        ``trainer.estimated_stepping_batches`` would start the loader before a checkpoint is restored, and the first
        epoch after a resume would then come in the order of epoch 0.
        """
        self._steps, self._shift = self.plan.total(self.trainer) if self.plan is not None else (0, 0)
        if self._steps > 0:
            return
        steps = self.trainer.estimated_stepping_batches
        if steps == math.inf:
            raise InputError(
                "This training has no end that is known beforehand, over which the learning rate could fall. Set "
                "--trainer.max_epochs or --trainer.max_steps."
            )
        self._steps = int(steps)

    def resume(self, lr: float, weight_decay: float) -> None:
        """Go on with this run's options, where a checkpoint brought another run's."""
        self._count_steps()
        scheduler = self.scheduler
        text = f"lr is {lr!r}, as given; the checkpoint has {scheduler.base_lrs[0]!r}"
        if scheduler.base_lrs[0] != lr and text not in [one["text"] for one in notices()]:
            notice("checkpoint-options", text)
        scheduler.base_lrs = [lr] * len(scheduler.base_lrs)
        for group, decay in zip(scheduler.optimizer.param_groups, (weight_decay, 0.0), strict=True):
            group |= {"initial_lr": lr, "weight_decay": decay}
            group["lr"] = lr * scheduler.lr_lambdas[0](scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
