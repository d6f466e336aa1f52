"""A training that goes on from a checkpoint: what has changed since, and which steps of the schedule are left."""

import hashlib
import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, distributed

from elang.backends.loading.checkpoints import CHECKPOINT_KEY
from elang.data.examples import Examples
from elang.errors import InputError
from elang.notices import notice

RANDOM = "elang_random"


@dataclass
class Plan:
    """What the steps of a training and their data depend on. A checkpoint keeps it.

    Attributes:
        batches: Batches that a process takes in an epoch.
        accumulated: How many of them make a step.
        shift: How far the schedule is ahead of the steps that were taken: 0 unless steps became longer or shorter.
        options: By the names that a message gives them.
        routing_fraction: Share of the training file that is held out.
        fold: Which part of the rest is left out, if any.
        examples: Hash of the examples that are trained on, in their order.
        evaluated: The same of those that are evaluated on.
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
        limit, batches = trainer.limit_train_batches, len(data.train_dataloader())
        trained = [data.examples(split) for split in ("train", "transfer") if split in data.splits]
        evaluated = [data.examples("validation")] if "validation" in data.splits else []
        names = ("max_epochs", "max_steps", "limit_train_batches", "accumulate_grad_batches")
        options = {f"--trainer.{name}": getattr(trainer, name) for name in names}
        options |= {"--data.batch_size": data.batch_size, "the number of processes": trainer.world_size}
        options |= {"--data.routing_fraction": data.routing_fraction, "the number of texts": sum(map(len, trained))}
        options |= {f"--data.{name}": getattr(data, name) for name in ("max_length", "max_target_length")}
        options |= {"--seed_everything": os.environ.get("PL_GLOBAL_SEED")}
        return cls(
            batches=min(batches, limit) if isinstance(limit, int) else int(batches * limit),
            accumulated=trainer.accumulate_grad_batches,
            shift=0,
            options=options,
            routing_fraction=data.routing_fraction,
            fold=list(data.fold) if data.fold else None,
            examples=_digest(trained),
            evaluated=_digest(evaluated),
        )

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return -(-self.batches // self.accumulated)

    def total(self, trainer: Trainer) -> tuple[int, int]:
        """The length of the schedule in steps, and how far it is ahead of the steps that were taken."""
        epochs = self.steps * (1 if trainer.max_epochs is None else trainer.max_epochs)
        # What ends first; a limit of steps counts those that were really taken.
        if trainer.max_steps > 0 and not 0 < epochs - self.shift <= trainer.max_steps:
            return trainer.max_steps, 0
        return epochs, self.shift

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    def go_on(
        self, checkpoint: dict[str, Any], earlier: dict[str, Any] | None, trainer: Trainer, scheduled: bool
    ) -> None:
        """Find the place of a checkpoint in this plan, and tell what differs from the plan that it was made by.

        Args:
            checkpoint: All of it.
            earlier: The plan that it keeps, if it does.
            trainer: Whose fit goes on.
            scheduled: Whether the learning rate follows this plan.

        Raises:
            InputError: If nothing would be trained in a sensible way: of a place that this plan does not have, or with
                a held-out slice that was trained on.
        """
        loop = checkpoint["loops"]["fit_loop"]
        epochs, batch = loop["epoch_progress"]["current"]["ready"], loop["epoch_loop.batch_progress"]
        within = 0 if batch["is_last_batch"] else batch["current"]["ready"]
        epochs -= bool(within)
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs < epochs:
            raise InputError(
                f"--trainer.max_epochs {trainer.max_epochs} is less than the {epochs} epochs that the checkpoint has "
                "behind it. Raise it, or go on from an earlier checkpoint."
            )
        self.shift = earlier["shift"] if earlier else 0
        if earlier is not None:
            self._check(earlier)
            if within and earlier["batches"] != self.batches:
                raise InputError(
                    f"The checkpoint was written after batch {within} of {earlier['batches']} of an epoch, which now "
                    f"has {self.batches} ({self._differences(earlier)}): some texts would be left out or come twice. "
                    "Go on with the same options, or from a checkpoint that was written at the end of an epoch."
                )
        if earlier is None or (earlier["batches"], earlier["accumulated"]) != (self.batches, self.accumulated):
            self.shift = epochs * self.steps + within // self.accumulated - int(checkpoint["global_step"])
        if earlier is not None:
            different = self._differences(earlier)
        else:
            different = f"other steps than the {checkpoint['global_step']} of the checkpoint" if self.shift else ""
        if different:
            total, shift = self.total(trainer)
            left = total - shift - int(checkpoint["global_step"])
            rest = (
                f" The learning rate goes on from its place in the schedule and reaches 0 after the {max(0, left)} "
                "steps that are left."
            )
            notice("resumed-differently", f"Training goes on with {different}.{rest if scheduled else ''}")

    def _differences(self, earlier: dict[str, Any]) -> str:
        theirs = earlier["options"]
        pairs = [(name, value, theirs.get(name)) for name, value in self.options.items()]
        said = [f"{name} {own} (in the checkpoint: {was})" for name, own, was in pairs if own != was]
        said += ["other training examples"] if self.examples != earlier["examples"] else []
        said += ["other validation examples"] if self.evaluated != earlier["evaluated"] else []
        return ", ".join(said)

    def _check(self, earlier: dict[str, Any]) -> None:
        """Refuse to hold out what was trained on."""
        if self.routing_fraction > earlier["routing_fraction"]:
            raise InputError(
                f"--data.routing_fraction is {self.routing_fraction}, but the checkpoint was trained with "
                f"{earlier['routing_fraction']}: part of the slice was trained on. Give --data.routing_fraction "
                f"{earlier['routing_fraction']} or less."
            )
        if self.fold != earlier["fold"]:
            own, was = ("/".join(map(str, fold)) if fold else None for fold in (self.fold, earlier["fold"]))
            raise InputError(
                f"--data.fold is {own}, but the checkpoint was trained with {was}: the part that is left out was "
                "trained on. Give the same, or train anew."
            )


def _digest(parts: list[Examples]) -> str:
    """Hash of the texts and labels of some examples."""
    columns = [column for part in parts for column in (part.key, part.label)]
    return hashlib.sha256(b"".join(column.numpy().tobytes() for column in columns)).hexdigest()


def rate(step: int, total: int, rise: int) -> float:
    """The share of the peak learning rate at a step: it rises for so many steps, and then falls linearly to 0.

    >>> [round(rate(step, 5, 2), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.67, 0.33, 0.0]
    """
    return min((step + 1) / rise, max(0.0, (total - step) / max(1, total - rise)))


def check_checkpoint(checkpoint: dict[str, Any], module: str, label_names: list[str]) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Args:
        checkpoint: All of it.
        module: Name of the class that it is loaded into.
        label_names: Those of the data.

    Raises:
        InputError: If it is of another class or of other labels.
    """
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
    return about


def check_resumable(checkpoint: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint without the optimizer's states.

    Raises:
        InputError: Of one that has weights only.
    """
    # One in parts has both elsewhere.
    if "state_dict" in checkpoint and "optimizer_states" not in checkpoint:
        raise InputError(
            "The checkpoint has weights only (save_weights_only), so a training cannot go on from it. Give one "
            "that was saved with the optimizer's states."
        )


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the random number generators of the CPU and of a GPU."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random(state: dict[str, Tensor] | None, trainer: Trainer, device: torch.device) -> None:
    """Go on with the random numbers of a checkpoint, so that a resumed run ends as one that was not stopped."""
    # They are the first process's; shared, all would drop the same activations.
    if state is None or trainer.world_size > 1:
        return
    torch.set_rng_state(state["cpu"].cpu())
    if not getattr(trainer.train_dataloader, "persistent_workers", False):
        # The loader would draw this now, but did so earlier where Lightning resumes; lasting workers once only.
        torch.empty((), dtype=torch.int64).random_()
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


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
