"""Attention that is ready for a batch of any shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from elang.errors import first_line
from elang.notices import notice


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


# What is wanted of a model, as a table ``(B, K)``, and what its next pass takes.
Pass = Callable[[Any], tuple[Tensor, Any]]
# The inputs' column, int64 ``(B,)``, that is 0 where nobody waits for a text to be generated.
WANTED = "wanted"
_STEPS = (64, 16), (128, 32), (10**9, 64)
_WARM_UP = 3


def padded_length(length: int, limit: int) -> int:
    """The next length that there is a graph for: every 16 tokens to 64, every 32 to 128, then every 64.

    >>> [padded_length(n, 200) for n in (1, 17, 65, 129, 199)]
    [16, 32, 96, 192, 200]
    """
    step = next(step for end, step in _STEPS if length <= end)
    return min(limit, -(-length // step) * step)


class Graph:
    """The passes of a model over inputs of one shape.

    Args:
        passes: The model's; each takes what the one before it has left.
        names: Of the columns of tokens.
        rows: Inputs.
        length: Tokens of each.
        device: A GPU.
        pool: Memory that all graphs share, for no two of them run at a time.
    """

    def __init__(
        self, passes: list[Pass], names: list[str], rows: int, length: int, device: torch.device, pool: Any
    ) -> None:
        columns = [*names, "attention_mask"]
        self.host = torch.zeros(len(columns), rows, length, dtype=torch.int64).pin_memory()
        self.host[-1] = 1
        self.array = self.host.numpy()
        # Kept, for the graph knows its address alone.
        self.given = self.host.to(device)
        self.wanted_host = torch.ones(rows, dtype=torch.int64).pin_memory()
        self.wanted = self.wanted_host.to(device)
        state: Any = dict(zip(columns, self.given, strict=True))
        if len(passes) > 2:
            state[WANTED] = self.wanted
        self.device, self.graphs, self.tables = device, [], []
        for number, one in enumerate(passes):
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    said = one(state)[0]
            torch.cuda.current_stream(device).wait_stream(stream)
            host = torch.zeros_like(said, device="cpu").pin_memory()
            graph = torch.cuda.CUDAGraph()
            # Both copies are a part of it, for each launch takes as long as a layer.
            # The stream is named, for torch's own is of the first device that anything was captured on.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                if number == 0:
                    self.given.copy_(self.host, non_blocking=True)
                if number == 1 and len(passes) > 2:
                    self.wanted.copy_(self.wanted_host, non_blocking=True)
                table, state = one(state)
                host.copy_(table, non_blocking=True)
            # The next pass is tried on what this one leaves.
            graph.replay()
            # An empty graph is no error, and the first pass says the same each time.
            if number == 0 and not torch.allclose(said, table, rtol=1e-2, atol=1e-2, equal_nan=True):
                raise RuntimeError("its graph says otherwise than the model")
            self.graphs.append(graph)
            self.tables.append(host.numpy())

    def replay(self, number: int, count: int) -> list[list[float]]:
        """Run a pass, the first one on what :attr:`host` holds; the columns of its table."""
        with torch.cuda.device(self.device):
            self.graphs[number].replay()
            torch.cuda.current_stream().synchronize()
        return _columns(self.tables[number][:count])

    def repeat(self, number: int, most: int) -> None:
        """Run a pass again and again until its table, which only falls, is zero.

        Each is launched before it is known what the one before it has found, so one may be in vain.
        """
        with torch.cuda.device(self.device):
            done = [torch.cuda.Event(), torch.cuda.Event()]
            for count in range(most):
                self.graphs[number].replay()
                done[count % 2].record()
                if count:
                    done[1 - count % 2].synchronize()
                    if not self.tables[number].any():
                        break


class SmallBatches:
    """Runs a model's passes over small batches, one graph a shape where it is on a GPU.

    Args:
        passes: Each takes what the one before it has left, the first one the model's inputs. Of a model that generates
            texts these are four: up to the decoder, to the first token, one token (its table tells which texts have not
            ended), and the end; its inputs have the column :data:`WANTED`.
        pad: The columns of tokens and what pads each, as :attr:`elang.data.batches.EncodedTexts.pad` has them.
        most: Inputs at a time.
        limit: Tokens of an input at most.
        device: Where the model is; on a GPU all shapes are captured here.
        who: The model, in a warning.
        tokens: Of a text that it generates, at most.
        left: Texts are padded on the left.
    """

    def __init__(
        self,
        passes: list[Pass],
        pad: dict[str, int],
        most: int,
        limit: int,
        device: torch.device,
        who: str,
        tokens: int = 0,
        left: bool = False,
    ) -> None:
        self.passes, self.pad, self.limit, self.device, self.tokens = passes, pad, limit, device, tokens
        self.left = left
        self.graphs: dict[tuple[int, int], Graph] = {}
        self._last: Any = None
        if device.type != "cuda":
            return
        pool = torch.cuda.graph_pool_handle()
        rows = [2**i for i in range((most - 1).bit_length() + 1)]
        lengths = sorted({padded_length(n, limit) for n in range(1, limit + 1)})
        try:
            for shape in [(r, length) for r in reversed(rows) for length in reversed(lengths)]:
                with torch.cuda.device(device):
                    self.graphs[shape] = Graph(passes, list(pad), *shape, device, pool)
        except Exception as error:
            # A model that asks the device something on its way cannot be captured.
            self.graphs.clear()
            torch.cuda.synchronize(device)
            reason = first_line(error)
            notice("graph-not-captured", f"{who} cannot be captured as a graph, and runs kernel by kernel: {reason}.")

    def first(self, tokens: list[dict[str, list[int]]]) -> list[list[float]]:
        """The K columns of the first pass's table over B inputs."""
        count, longest = len(tokens), max(len(one["input_ids"]) for one in tokens)
        graph = self.graphs.get((1 << (count - 1).bit_length(), padded_length(max(1, longest), self.limit)))
        if graph is None:
            columns = torch.empty(len(self.pad) + 1, count, longest, dtype=torch.int64)
            self.fill(columns.numpy(), tokens)
            names = [*self.pad, "attention_mask"]
            inputs = dict(zip(names, columns.to(self.device), strict=True))
            if len(self.passes) > 2:
                inputs[WANTED] = self._wanted = torch.ones(count, dtype=torch.int64, device=self.device)
            table, self._last = self.passes[0](inputs)
            return _columns(table)
        self._last = graph
        self.fill(graph.array, tokens)
        return graph.replay(0, count)

    def second(self, count: int) -> list[list[float]]:
        """The same of the second pass, over the inputs that the first one was run over."""
        if isinstance(self._last, Graph):
            return self._last.replay(1, count)
        return _columns(self.passes[1](self._last)[0])

    def generate(self, wanted: list[bool]) -> list[list[float]]:
        """Generate a text for each wanted input; the columns of the last pass's table."""
        if isinstance(graph := self._last, Graph):
            graph.wanted_host.zero_()
            graph.wanted_host[: len(wanted)] = torch.tensor(wanted)
            graph.replay(1, 0)
            graph.repeat(2, self.tokens)
            return graph.replay(3, len(wanted))
        self._wanted.copy_(torch.tensor(wanted))
        state = self.passes[1](self._last)[1]
        for _ in range(self.tokens):
            if not self.passes[2](state)[0].any():
                break
        return _columns(self.passes[3](state)[0])

    def fill(self, array: Any, tokens: list[dict[str, list[int]]]) -> None:
        """Write tokens and their mask, padded, into an int64 array ``(columns, rows, length)``."""
        mask, length = array[-1], array.shape[2]
        for number, one in enumerate(tokens):
            empty = length - len(one["input_ids"])
            before, behind = (empty, 0) if self.left else (0, empty)
            for column, (name, pad) in zip(array, self.pad.items(), strict=False):
                column[number] = [pad] * before + one[name] + [pad] * behind
            mask[number] = 0
            mask[number, before : length - behind] = 1
        # Rows that stand for nothing have a token, for attention to none is no number.
        array[:, len(tokens) :] = 0
        mask[len(tokens) :, 0] = 1


def _columns(table: Any) -> list[list[float]]:
    """The columns of a table, a tensor or an array."""
    columns: list[list[float]] = table.T.tolist()
    return columns
