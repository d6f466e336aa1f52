"""Captured CUDA graphs for small batches, and attention for batches of many shapes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from elang.errors import first_line
from elang.notices import notice


@contextmanager
def any_shape() -> Iterator[None]:
    """Disable cuDNN's attention, which plans anew for each shape of a batch, on the host, for up to seconds.

    Batches of texts have hundreds of shapes. Flash and memory-efficient attention need no plan.
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
        """Disable cuDNN's attention."""
        if self._cudnn_before is None:
            self._cudnn_before = torch.backends.cuda.cudnn_sdp_enabled()
            torch.backends.cuda.enable_cudnn_sdp(False)

    def teardown(self, stage: str) -> None:
        """Restore the setting from before."""
        if self._cudnn_before is not None:
            torch.backends.cuda.enable_cudnn_sdp(self._cudnn_before)
            self._cudnn_before = None


# Takes what the pass before it left; returns a table of results, ``(B, K)``, and what the next pass takes.
Pass = Callable[[Any], tuple[Tensor, Any]]
# The inputs' column, int64 ``(B,)``, that is 0 for texts that need not be generated.
WANTED = "wanted"
# Settings that leave greedy decoding as it is; those of beams and samples have no effect on it.
_GREEDY_SETTINGS = {
    *("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id", "max_new_tokens", "num_beams"),
    *("do_sample", "temperature", "top_k", "top_p", "use_cache", "output_attentions", "output_hidden_states"),
    *("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty"),
    *("return_dict_in_generate", "output_scores", "transformers_version", "_from_model_config"),
}
_STEPS = (64, 16), (128, 32), (10**9, 64)
_WARM_UP = 3


def is_greedy(settings: Any) -> bool:
    """Whether a generation configuration asks for one beam and changes nothing about greedy decoding."""
    given = {name for name, value in settings.to_diff_dict().items() if value is not None}
    return (settings.num_beams or 1) == 1 and not given - _GREEDY_SETTINGS


def padded_length(length: int, limit: int) -> int:
    """The next length that has a graph: every 16 tokens to 64, every 32 to 128, then every 64.

    >>> [padded_length(n, 200) for n in (1, 17, 65, 129, 199)]
    [16, 32, 96, 192, 200]
    """
    step = next(step for end, step in _STEPS if length <= end)
    return min(limit, -(-length // step) * step)


class Graph:
    """A model's passes over the columns of inputs of one shape (inputs, tokens of each), captured on a GPU.

    All graphs share a pool of memory, because only one runs at a time.
    """

    def __init__(
        self, passes: list[Pass], names: list[str], shape: tuple[int, int], *, device: torch.device, pool: Any
    ) -> None:
        columns, generates = [*names, "attention_mask"], len(passes) > 2
        self.host = torch.zeros(len(columns), *shape, dtype=torch.int64).pin_memory()
        self.host[-1] = 1
        self.array = self.host.numpy()
        # An attribute, because the graph only knows its address.
        self.inputs = self.host.to(device)
        self.wanted_host = torch.ones(shape[0], dtype=torch.int64).pin_memory()
        self.wanted = self.wanted_host.to(device)
        state: Any = dict(zip(columns, self.inputs, strict=True))
        if generates:
            state[WANTED] = self.wanted
        self.device, self.graphs, self.tables = device, [], []
        for number, run in enumerate(passes):
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    expected = run(state)[0]
            torch.cuda.current_stream(device).wait_stream(stream)
            host = torch.zeros_like(expected, device="cpu").pin_memory()
            graph = torch.cuda.CUDAGraph()
            # Both copies are captured, too: a launch takes as long as a layer.
            # The default stream would be of the first device that anything was captured on.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                if number == 0:
                    self.inputs.copy_(self.host, non_blocking=True)
                if number == 1 and generates:
                    self.wanted.copy_(self.wanted_host, non_blocking=True)
                table, state = run(state)
                host.copy_(table, non_blocking=True)
            # The next pass is tried on what this one leaves.
            graph.replay()
            # An empty graph is no error. Only the first pass gives the same table each time.
            if number == 0 and not torch.allclose(expected, table, rtol=1e-2, atol=1e-2, equal_nan=True):
                raise RuntimeError("its graph and the model give different results")
            self.graphs.append(graph)
            self.tables.append(host.numpy())

    def replay(self, number: int, count: int) -> list[list[float]]:
        """Run a pass, the first one on :attr:`host`, and return the columns of its table."""
        with torch.cuda.device(self.device):
            self.graphs[number].replay()
            torch.cuda.current_stream().synchronize()
        return _columns(self.tables[number][:count])

    def repeat(self, number: int, limit: int) -> None:
        """Run a pass repeatedly until its table, which only decreases, is zero.

        Each run is launched before the result of the previous one is known, so the last one may be superfluous.
        """
        with torch.cuda.device(self.device):
            done = [torch.cuda.Event(), torch.cuda.Event()]
            for count in range(limit):
                self.graphs[number].replay()
                done[count % 2].record()
                if count:
                    done[1 - count % 2].synchronize()
                    if not self.tables[number].any():
                        break


class SmallBatches:
    """Runs a model's passes over small batches, on a GPU by one graph per shape.

    A model that generates texts has four passes: up to the decoder, to the first token, one token (its table is 1 for
    texts that have not ended), and the end; its inputs have the column :data:`WANTED`.

    Args:
        passes: The first one takes the model's inputs.
        pad: The columns of tokens and what pads each (:attr:`elang.data.batches.EncodedTexts.pad`).
        size: The most inputs at a time.
        limit: The most tokens of an input.
        device: The model's; on a GPU all shapes are captured here.
        who: Names the model in a notice.
        tokens: The most tokens of a text that is generated.
        left: Pad texts on the left.
    """

    def __init__(
        self,
        passes: list[Pass],
        pad: dict[str, int],
        size: int,
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
        rows = [2**i for i in range((size - 1).bit_length() + 1)]
        lengths = sorted({padded_length(n, limit) for n in range(1, limit + 1)})
        try:
            for shape in [(r, length) for r in reversed(rows) for length in reversed(lengths)]:
                with torch.cuda.device(device):
                    self.graphs[shape] = Graph(passes, list(pad), shape, device=device, pool=pool)
        except Exception as error:
            # A model that reads values from the device while it runs cannot be captured.
            self.graphs.clear()
            torch.cuda.synchronize(device)
            reason = first_line(error)
            notice("graph-not-captured", f"{who} cannot be captured as a graph, and runs kernel by kernel: {reason}.")

    def first(self, tokens: list[dict[str, list[int]]]) -> list[list[float]]:
        """Run the first pass over B inputs, and return the K columns of its table."""
        count, longest = len(tokens), max(len(row["input_ids"]) for row in tokens)
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
        """Run the second pass over the same inputs, and return the columns of its table."""
        if isinstance(self._last, Graph):
            return self._last.replay(1, count)
        return _columns(self.passes[1](self._last)[0])

    def generate(self, wanted: list[bool]) -> list[list[float]]:
        """Generate a text for each wanted input, and return the columns of the last pass's table."""
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
        for number, row in enumerate(tokens):
            empty = length - len(row["input_ids"])
            before, after = (empty, 0) if self.left else (0, empty)
            for column, (name, pad) in zip(array, self.pad.items(), strict=False):
                column[number] = [pad] * before + row[name] + [pad] * after
            mask[number] = 0
            mask[number, before : length - after] = 1
        # Unused rows get one token: attention to none is NaN.
        array[:, len(tokens) :] = 0
        mask[len(tokens) :, 0] = 1


def _columns(table: Any) -> list[list[float]]:
    columns: list[list[float]] = table.T.tolist()
    return columns
