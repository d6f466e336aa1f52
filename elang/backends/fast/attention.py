"""Attention that is ready for a batch of any shape."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def any_shape() -> Iterator[None]:
    """Leave cuDNN's attention out.

    It is planned anew for each shape of a batch, on the host, for up to seconds, and batches of texts have hundreds of
    shapes. Flash and memory-efficient attention, which stand in, need no plan.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


class AnyShape:
    """For a LightningModule: :func:`any_shape` from ``setup`` to ``teardown``, backward passes included."""

    _cudnn_before: bool | None = None

    def setup(self, stage: str) -> None:
        """Leave it out."""
        if self._cudnn_before is None:
            self._cudnn_before = torch.backends.cuda.cudnn_sdp_enabled()
            torch.backends.cuda.enable_cudnn_sdp(False)

    def teardown(self, stage: str) -> None:
        """Allow what was allowed before."""
        if self._cudnn_before is not None:
            torch.backends.cuda.enable_cudnn_sdp(self._cudnn_before)
            self._cudnn_before = None
