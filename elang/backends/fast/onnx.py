"""An encoder run by ONNX Runtime: the same answers, faster on a CPU for few inputs."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elang.errors import InputError, first_line, need

# Float32 sums in another order; far below what changes a decision, except exactly at the threshold.
_TOLERANCE = 1e-3


class OnnxPath:
    """A classifier's backbone, float32 in evaluation mode, exported and run by ONNX Runtime on the CPU.

    Its inputs, by name, are int64 ``(B, L)``. Raises InputError if the extra ``onnx`` is not installed, the export
    fails, or its answers differ.
    """

    def __init__(self, backbone: Any, names: list[str]) -> None:
        need("onnx", "onnx", "onnxruntime", "onnx", "onnxscript")
        import onnxruntime

        self.names = names
        example = _example(backbone, names)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        family = backbone.config.model_type
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = Path(folder) / "model.onnx"
            body = _Body(backbone, names).eval()
            expected = body(*example)
            try:
                with _quiet():
                    sizes = {0: torch.export.Dim("inputs", min=1), 1: torch.export.Dim("tokens", min=2)}
                    torch.onnx.export(
                        body,
                        example,
                        path,
                        input_names=names,
                        output_names=["logits", "hidden"],
                        dynamic_shapes=((sizes,) * len(names),),
                        dynamo=True,
                        verbose=False,
                    )
                self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise InputError(
                    f"A '{family}' model cannot be exported to ONNX ({type(error).__name__}: {first_line(error)}). "
                    "Leave onnx out."
                ) from error
            # A second batch of another shape shows sizes that were taken as fixed.
            other = tuple(x[1:, :-3] for x in example)
            for inputs, outputs in ((example, expected), (other, body(*other))):
                logits, hidden = self(dict(zip(names, inputs, strict=True)), hidden=True)
                pairs = zip((logits, hidden), outputs, strict=True)
                if any(a is None or not torch.allclose(a, b, atol=_TOLERANCE) for a, b in pairs):
                    raise InputError(f"A '{family}' model gives other answers as ONNX. Leave onnx out.")

    def __call__(self, inputs: dict[str, Tensor], hidden: bool) -> tuple[Tensor, Tensor | None]:
        """Logits, float32 ``(B, C)``, and, if requested, the last hidden state, ``(B, L, D)``."""
        arrays = {name: inputs[name].numpy() for name in self.names}
        outputs = self.session.run(["logits", "hidden"] if hidden else ["logits"], arrays)
        logits, *states = [torch.from_numpy(x) for x in outputs]
        return logits, states[0] if hidden else None


class _Body(nn.Module):
    """The backbone as a function of its inputs in order."""

    def __init__(self, backbone: Any, names: list[str]) -> None:
        super().__init__()
        self.backbone, self.names = backbone, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        out = self.backbone(**dict(zip(self.names, inputs, strict=True)), output_hidden_states=True)
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
    """Silence the exporter's warnings, which are about operators that no text model has and its internals."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
