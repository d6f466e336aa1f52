"""AdamW and the learning rate's schedule: a linear rise, then a linear fall to 0."""

import math
from collections.abc import Iterable

import torch
from lightning.pytorch import Trainer
from torch import nn

from elang.errors import InputError
from elang.models.resuming import Plan
from elang.notices import notice, notices


def adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, trainer: Trainer) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, not on biases and norms."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    # Lightning does not clip the gradients of a fused optimizer in mixed precision.
    clipped = trainer.gradient_clip_val and "mixed" in str(trainer.precision)
    return torch.optim.AdamW(groups, lr=lr, fused=None if clipped else True)


def lr_factor(step: int, total: int, warmup: int) -> float:
    """The learning rate at a step as a share of its peak, which it reaches after ``warmup`` steps.

    >>> [round(lr_factor(step, 5, 2), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.67, 0.33, 0.0]
    """
    return min((step + 1) / warmup, max(0.0, (total - step) / max(1, total - warmup)))


class Schedule:
    """The learning rate of an optimizer of :func:`adamw` over all steps, including those before a resume.

    Args:
        optimizer: The optimizer.
        trainer: The trainer whose steps are counted.
        plan: The training's plan, if the data module is ours.
        warmup: Share of all steps in which the learning rate rises.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, trainer: Trainer, plan: Plan | None, warmup: float) -> None:
        self.trainer, self.plan = trainer, plan
        self._count_steps()

        # A function, because checkpoints would save the attributes of any other callable.
        def factor(step: int) -> float:
            return lr_factor(step + self._shift, self._total, max(1, round(warmup * self._total)))

        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def _count_steps(self) -> None:
        """Count the steps of the whole run, and refuse one whose end is not known in advance.

        ``trainer.estimated_stepping_batches`` would start the loader before a checkpoint is restored, and the first
        epoch of a resumed run would then have the order of epoch 0.
        """
        self._total, self._shift = self.plan.schedule(self.trainer) if self.plan is not None else (0, 0)
        if self._total > 0:
            return
        steps = self.trainer.estimated_stepping_batches
        if steps == math.inf:
            raise InputError(
                "The length of this training is not known in advance, so the learning rate cannot fall over it. Set "
                "--trainer.max_epochs or --trainer.max_steps."
            )
        self._total = int(steps)

    def resume(self, lr: float, weight_decay: float) -> None:
        """Set this run's options in place of the checkpoint's."""
        self._count_steps()
        scheduler = self.scheduler
        text = f"lr is {lr!r}, as given; the checkpoint has {scheduler.base_lrs[0]!r}"
        if scheduler.base_lrs[0] != lr and text not in [earlier["text"] for earlier in notices()]:
            notice("checkpoint-options", text)
        scheduler.base_lrs = [lr] * len(scheduler.base_lrs)
        for group, decay in zip(scheduler.optimizer.param_groups, (weight_decay, 0.0), strict=True):
            group |= {"initial_lr": lr, "weight_decay": decay}
            group["lr"] = lr * scheduler.lr_lambdas[0](scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
