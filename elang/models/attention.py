"""Attention that is ready for a batch of any shape."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def any_shape() -> Iterator[None]:
    """Leave cuDNN's attention out: it is planned anew for each shape, on the host, for up to seconds.

    Batches of texts have hundreds of shapes. Flash and memory-efficient attention, which stand in, need no plan.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


class AnyShape:
    """For a LightningModule: :func:`any_shape` from ``setup`` to ``teardown``, backward passes included."""

    _until_teardown: ExitStack | None = None

    def setup(self, stage: str) -> None:
        """Enter."""
        if self._until_teardown is None:
            self._until_teardown = ExitStack()
            self._until_teardown.enter_context(any_shape())

    def teardown(self, stage: str) -> None:
        """Leave."""
        if self._until_teardown is not None:
            self._until_teardown.close()
            self._until_teardown = None
