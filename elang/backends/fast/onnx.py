"""An encoder by ONNX Runtime: the same answers, and on a CPU sooner where inputs are few."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elang.errors import InputError, need

# Float32 sums in another order; far below what moves a decision that is not on the threshold itself.
_TOLERANCE = 1e-3


class OnnxPath:
    """A classifier's backbone, exported when it is made, and run by ONNX Runtime on the CPU.

    Args:
        backbone: A sequence classifier of ``transformers``, float32, on the CPU, in evaluation mode.
        names: Its inputs, each int64 ``(B, L)``.

    Raises:
        InputError: If the extra ``onnx`` is not installed, the model cannot be exported, or the export says otherwise.
    """

    def __init__(self, backbone: Any, names: list[str]) -> None:
        need("onnx", "onnx", "onnxruntime", "onnx", "onnxscript")
        import onnxruntime

        self.names = names
        given = _example(backbone, names)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        kind = backbone.config.model_type
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = Path(folder) / "model.onnx"
            body = _Body(backbone, names).eval()
            expected = body(*given)
            try:
                with _quiet():
                    sizes = {0: torch.export.Dim("inputs", min=1), 1: torch.export.Dim("tokens", min=2)}
                    torch.onnx.export(
                        body,
                        given,
                        path,
                        input_names=names,
                        output_names=["logits", "hidden"],
                        dynamic_shapes=((sizes,) * len(names),),
                        dynamo=True,
                        verbose=False,
                    )
                self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:
                said = (str(error).strip().splitlines() or [""])[0]
                raise InputError(
                    f"A '{kind}' model cannot be exported to ONNX ({type(error).__name__}: {said}). Leave onnx out."
                ) from error
            # Two rows of other sizes, so that a size that was taken for fixed shows.
            some = tuple(x[1:, :-3] for x in given)
            for inputs, outputs in ((given, expected), (some, body(*some))):
                logits, hidden = self(dict(zip(names, inputs, strict=True)), hidden=True)
                pairs = zip((logits, hidden), outputs, strict=True)
                if any(a is None or not torch.allclose(a, b, atol=_TOLERANCE) for a, b in pairs):
                    raise InputError(f"A '{kind}' model answers otherwise once exported to ONNX. Leave onnx out.")

    def __call__(self, inputs: dict[str, Tensor], hidden: bool) -> tuple[Tensor, Tensor | None]:
        """Logits, float32 ``(B, C)``, and, where it is wanted, the last hidden state, ``(B, L, D)``."""
        given = {name: inputs[name].numpy() for name in self.names}
        found = [torch.from_numpy(x) for x in self.session.run(["logits", "hidden"] if hidden else ["logits"], given)]
        return found[0], found[1] if hidden else None


class _Body(nn.Module):
    """The backbone as a function of its inputs in order."""

    def __init__(self, backbone: Any, names: list[str]) -> None:
        super().__init__()
        self.backbone, self.names = backbone, names

    def forward(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        out = self.backbone(**dict(zip(self.names, given, strict=True)), output_hidden_states=True)
        return out.logits, out.hidden_states[-1]


def _example(backbone: Any, names: list[str]) -> tuple[Tensor, ...]:
    """Inputs of three texts, one of them padded."""
    ids = torch.arange(48).reshape(3, 16) % (backbone.config.vocab_size - 5) + 4
    mask = torch.ones_like(ids)
    ids[1, 9:], mask[1, 9:] = backbone.config.pad_token_id or 0, 0
    known = {"input_ids": ids, "attention_mask": mask}
    return tuple(known.get(name, torch.zeros_like(ids)) for name in names)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: it speaks of operators that no text model has, and of its own names."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
