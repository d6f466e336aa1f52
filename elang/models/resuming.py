"""Stopping a training at SIGTERM, and resuming it from a checkpoint, perhaps with other options or data."""

import hashlib
import os
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, distributed

from elang.backends.loading.checkpoints import CHECKPOINT_KEY
from elang.data.examples import Examples
from elang.errors import InputError
from elang.notices import notice

RANDOM_KEY = "elang_random"


@dataclass
class Plan:
    """What the learning rate schedule and the order of the data depend on. Checkpoints contain it.

    Attributes:
        batches: Batches per process and epoch.
        accumulated: Batches per step.
        shift: Steps by which the schedule is ahead of the steps taken: 0 unless their size changed.
        options: Values of options, under the names that messages use.
        routing_fraction: Share of the training file that is held out.
        fold: The part of the rest that is left out, if any.
        examples: Hash of the training examples in their order.
        evaluated: Hash of the validation examples in their order.
    """

    batches: int
    accumulated: int
    shift: int
    options: dict[str, Any]
    routing_fraction: float
    fold: list[int] | None
    examples: str
    evaluated: str

    @classmethod
    def of(cls, trainer: Trainer, data: Any) -> "Plan":
        """The plan of a trainer that is about to fit a data module."""
        trained = [data.examples(split) for split in ("train", "transfer") if split in data.splits]
        evaluated = [data.examples("validation")] if "validation" in data.splits else []
        names = ("max_epochs", "max_steps", "limit_train_batches", "accumulate_grad_batches")
        options = {f"--trainer.{name}": getattr(trainer, name) for name in names}
        options |= {"--data.batch_size": data.batch_size, "the number of processes": trainer.world_size}
        options |= {"--data.routing_fraction": data.routing_fraction, "the number of texts": sum(map(len, trained))}
        options |= {f"--data.{name}": getattr(data, name) for name in ("max_length", "max_target_length")}
        options |= {"--seed_everything": os.environ.get("PL_GLOBAL_SEED")}
        return cls(
            batches=batches_per_epoch(trainer, data),
            accumulated=trainer.accumulate_grad_batches,
            shift=0,
            options=options,
            routing_fraction=data.routing_fraction,
            fold=list(data.fold) if data.fold else None,
            examples=_hash(trained),
            evaluated=_hash(evaluated),
        )

    @property
    def _steps_per_epoch(self) -> int:
        return -(-self.batches // self.accumulated)

    def schedule(self, trainer: Trainer) -> tuple[int, int]:
        """The length of the schedule in steps, and how far it is ahead of the steps that were taken."""
        steps = self._steps_per_epoch * (1 if trainer.max_epochs is None else trainer.max_epochs)
        # Whatever ends first; max_steps counts the steps that were really taken.
        if trainer.max_steps > 0 and not 0 < steps - self.shift <= trainer.max_steps:
            return trainer.max_steps, 0
        return steps, self.shift

    def resume(self, checkpoint: dict[str, Any], trainer: Trainer, scheduled: bool) -> None:
        """Find the checkpoint's place in this plan. A notice lists what differs from the checkpoint's own plan.

        ``scheduled`` says whether the learning rate follows this plan.

        Raises:
            InputError: If this plan does not have that place, or holds out examples that were trained on.
        """
        earlier: dict[str, Any] | None = checkpoint[CHECKPOINT_KEY].get("plan")
        loop, steps_done = checkpoint["loops"]["fit_loop"], int(checkpoint["global_step"])
        epochs, batch = loop["epoch_progress"]["current"]["ready"], loop["epoch_loop.batch_progress"]
        within = 0 if batch["is_last_batch"] else batch["current"]["ready"]
        epochs -= bool(within)
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs < epochs:
            raise InputError(
                f"--trainer.max_epochs {trainer.max_epochs} is less than the {epochs} epochs that the checkpoint has "
                "completed. Raise it, or resume from an earlier checkpoint."
            )
        differences = ""
        if earlier is not None:
            self._check_held_out(earlier)
            self.shift, differences = earlier["shift"], self._differences(earlier)
            if within and earlier["batches"] != self.batches:
                raise InputError(
                    f"The checkpoint was written after batch {within} of {earlier['batches']} of an epoch, which now "
                    f"has {self.batches} ({differences}): some texts would be left out or come twice. Resume with the "
                    "same options, or from a checkpoint that was written at the end of an epoch."
                )
        if earlier is None or (earlier["batches"], earlier["accumulated"]) != (self.batches, self.accumulated):
            self.shift = epochs * self._steps_per_epoch + within // self.accumulated - steps_done
        if earlier is None and self.shift:
            differences = f"other steps than the {steps_done} of the checkpoint"
        if differences:
            total, shift = self.schedule(trainer)
            consequence = (
                " The learning rate continues from its place in the schedule and reaches 0 after the "
                f"{max(0, total - shift - steps_done)} steps that are left."
            )
            notice("resumed-differently", f"Training resumes with {differences}.{consequence if scheduled else ''}")

    def _differences(self, earlier: dict[str, Any]) -> str:
        pairs = [(name, value, earlier["options"].get(name)) for name, value in self.options.items()]
        differences = [f"{name} {new} (in the checkpoint: {old})" for name, new, old in pairs if new != old]
        differences += ["other training examples"] if self.examples != earlier["examples"] else []
        differences += ["other validation examples"] if self.evaluated != earlier["evaluated"] else []
        return ", ".join(differences)

    def _check_held_out(self, earlier: dict[str, Any]) -> None:
        """Refuse to hold out examples that were trained on."""
        if self.routing_fraction > earlier["routing_fraction"]:
            raise InputError(
                f"--data.routing_fraction is {self.routing_fraction}, but the checkpoint was trained with "
                f"{earlier['routing_fraction']}: part of the slice was trained on. Give --data.routing_fraction "
                f"{earlier['routing_fraction']} or less."
            )
        if self.fold != earlier["fold"]:
            new, old = ("/".join(map(str, fold)) if fold else None for fold in (self.fold, earlier["fold"]))
            raise InputError(
                f"--data.fold is {new}, but the checkpoint was trained with {old}: the part that is left out was "
                "trained on. Give the same fold, or train anew."
            )


def batches_per_epoch(trainer: Trainer, data: Any) -> int:
    """How many batches of a data module each process takes in an epoch, as ``limit_train_batches`` says."""
    limit, batches = trainer.limit_train_batches, len(data.train_dataloader())
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _hash(parts: list[Examples]) -> str:
    columns = [column for part in parts for column in (part.key, part.label)]
    return hashlib.sha256(b"".join(column.numpy().tobytes() for column in columns)).hexdigest()


def check_checkpoint(checkpoint: dict[str, Any], module: str, label_names: list[str], fitting: bool) -> None:
    """Refuse a checkpoint that is not of this module's class and these labels, or that ``fitting`` cannot resume."""
    about: dict[str, Any] = checkpoint.get(CHECKPOINT_KEY, {"class": "something else"})
    if about["class"] != module:
        raise InputError(
            f"The checkpoint is of another class: {about['class']}, not {module}. Give its path as "
            "--model.swift_model or --model.super_model of JointModule instead of --ckpt_path."
        )
    if about["label_names"] != label_names:
        raise InputError(
            f"The checkpoint has the labels {about['label_names']}, the data has {label_names}. Resume with "
            "the data that it was trained on."
        )
    # A checkpoint in parts has both elsewhere.
    if fitting and "state_dict" in checkpoint and "optimizer_states" not in checkpoint:
        raise InputError(
            "The checkpoint has weights only (save_weights_only), so a training cannot be resumed from it. Give one "
            "that was saved with the optimizer's states."
        )


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the random number generators of the CPU and of a GPU."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random(state: dict[str, Tensor] | None, trainer: Trainer, device: torch.device) -> None:
    """Continue a checkpoint's random numbers, so that a resumed run ends like one that was not stopped."""
    # They are the first process's: with them, all processes would drop the same activations.
    if state is None or trainer.world_size > 1:
        return
    torch.set_rng_state(state["cpu"].cpu())
    if not getattr(trainer.train_dataloader, "persistent_workers", False):
        # The loader would draw this number now, but Lightning made it draw before the state was restored.
        torch.empty((), dtype=torch.int64).random_()
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


# Where Lightning checks for SIGTERM before each batch, and its signal handler.
_CHECK, _HANDLER = "_broadcast_sigterm_tensor", "_sigterm_notifier_fn"


class SharedStop:
    """Stops all processes at the same batch after one got SIGTERM, one batch later than Lightning does.

    Lightning exchanges the signal before each batch and waits for the result, so the GPU idles. Here the result of the
    previous batch's exchange is read, which arrived long before. Lightning also exchanges within its signal handler, in
    the middle of other exchanges, or ends one process while the others wait for it.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.received = trainer, False
        self._result: Tensor | None = None
        self._arrived: Any = None

    def on_signal(self, signum: int, frame: Any) -> None:
        """Remember SIGTERM, and send it to the processes that this one has started."""
        launcher: Any = self.trainer.strategy.launcher
        if not self.received and launcher is not None:
            launcher.kill(signum)
        self.received = True
        # An evaluation exchanges nothing before its end.
        self.trainer._signal_connector.received_sigterm = not self.trainer.training

    def __call__(self) -> None:
        """Raise ``SIGTERMException`` if a process got SIGTERM before the last exchange, and start the next one."""
        if self._result is not None:
            if self._arrived is not None:
                self._arrived.synchronize()
            if self._result.item():
                raise SIGTERMException
        device = self.trainer.strategy.root_device
        flag = torch.full((1,), float(self.received), device=device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        self._result = flag
        if device.type == "cuda":
            # Reading the device's own memory would wait for all that was queued after it.
            self._result = torch.empty(1, pin_memory=True).copy_(flag, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()


def stop_together(trainer: Trainer) -> None:
    """Handle SIGTERM by :class:`SharedStop` where there are several processes."""
    loop: Any = trainer.fit_loop.epoch_loop
    signals: Any = trainer._signal_connector
    if trainer.world_size > 1 and hasattr(loop, _CHECK) and hasattr(signals, _HANDLER):
        stop = SharedStop(trainer)
        setattr(loop, _CHECK, stop)
        setattr(signals, _HANDLER, stop.on_signal)
