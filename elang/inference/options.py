"""The options that `predict`, `serve`, `bench` and Python share: how a pair routes, and how its models run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from elang.backends import DType
from elang.errors import InputError
from elang.records import DEFAULT_THRESHOLD
from elang.tasks.sampling import Sampling

if TYPE_CHECKING:
    import torch

# Tokens in a batch of the Swift and of the Super on a GPU, where small models need large batches.
_GPU_TOKENS = 65536, 16384
# On a CPU, for its caches, and for each of its threads.
_CPU_TOKENS, _THREAD_TOKENS = 512, 256
# Text with other characters, such as "1_0", is a name, though Python reads some as a number.
_NUMBER_CHARACTERS = re.compile(r"[\s!-^a-~]*", re.ASCII)
_YAML_INFINITY = re.compile(r"^([+-]?)\.(?:inf|Inf|INF)$")


@dataclass(frozen=True)
class PairOptions:
    """How a pair routes, and how its models run.

    Args:
        threshold: Name of a threshold in ``elang.json`` (``1-SE``, ``99%``, ``defer 30%``), also as the table of
            `elang validate` has it (``held out, 99%``), or a number: inputs that score above it go to the Super. Also
            ``inf`` and ``-inf``. A Swift of an earlier version has no ``1-SE``, and ``parity`` is used.
        score: The score that routes; by default the one that the named threshold was calibrated for, else the Swift's.
        thresholds: Another threshold file, as `elang validate` writes it.
        device: By default a GPU if there is one.
        batch_size: Inputs in a batch at most; by default only their tokens count.
        tokens: Tokens in a batch of the Swift, with padding; by default what suits the device.
        super_tokens: The same for the Super.
        few: Up to this many inputs at a time take the short way, for latency: captured graphs on a GPU, for which
            loading takes longer. Of texts only those that T5, mT5 and most decoder-only models generate without beams;
            not where each input has candidates of its own.
        dtype: Precision of both models' weights; scores are float32 in any, but thresholds that were chosen in float32
            are met only approximately.
        compile: Compile both models with ``torch.compile``, for any shapes, at the first inputs; T5 then runs by the
            library's own forward pass.
        super_int8: Keep the matrices of the Super's layers as int8 (torchao; the extra ``int8``), for a card that it is
            too large for; computations stay in ``dtype``.
        onnx: Run both encoders by ONNX Runtime (the extra ``onnx``), on a CPU, in float32.
        sampling: Draw texts instead of the most probable tokens, as ``"{temperature: 0.7, top_p: 0.9, seed: 1}"``; by
            default as when the threshold was chosen.

    Raises:
        InputError: If a value is out of range, or ``onnx`` does not go with the others.
    """

    threshold: str | float = DEFAULT_THRESHOLD
    score: str | None = None
    thresholds: str | None = None
    device: str | None = None
    batch_size: int | None = None
    tokens: int | None = None
    super_tokens: int | None = None
    few: int = 0
    dtype: DType = "float32"
    compile: bool = False
    super_int8: bool = False
    onnx: bool = False
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        for name, smallest in (("batch_size", 1), ("tokens", 1), ("super_tokens", 1), ("few", 0)):
            size = getattr(self, name)
            if size is not None and size < smallest:
                raise InputError(f"{name} must be at least {smallest}, but it is {size}.")
        if self.dtype not in get_args(DType):
            raise InputError(f"dtype must be one of {', '.join(get_args(DType))}, but it is {self.dtype!r}.")
        if isinstance(self.threshold, str):
            object.__setattr__(self, "threshold", self.threshold.removeprefix("held out, "))
        as_number(self.threshold)

    def place(self) -> torch.device:
        """The device of both models; refuses ``onnx`` where it does not go with it or with other options."""
        import torch

        device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.onnx and (device.type != "cpu" or self.dtype != "float32" or self.compile or self.super_int8):
            raise InputError("onnx runs on the CPU in float32; leave it out, or device, dtype, compile and super_int8.")
        return device

    def budgets(self, device: torch.device) -> tuple[int, int]:
        """Tokens in a batch of the Swift and of the Super on a device."""
        import torch

        swift, super_ = _GPU_TOKENS
        if device.type == "cpu":
            swift = super_ = max(_CPU_TOKENS, _THREAD_TOKENS * torch.get_num_threads())
        return self.tokens or swift, self.super_tokens or super_


def as_number(threshold: str | float) -> float | None:
    """A threshold as a number, which must not be NaN; ``None`` if it is a name."""
    if isinstance(threshold, str):
        threshold = _YAML_INFINITY.sub(r"\1inf", threshold)
        if not _NUMBER_CHARACTERS.fullmatch(threshold):
            return None
    try:
        number = float(threshold)
    except ValueError:
        return None
    if math.isnan(number):
        raise InputError("The threshold is NaN; give a number, inf, -inf, or a name such as 1-SE.")
    return number
