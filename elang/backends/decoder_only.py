"""What decoder-only language models share that answer after a prompt: how they read it, and that batches are safe."""

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from elang.backends.causal_passes import cache_name, chain_pass, padded_left, takes_any_mask
from elang.backends.loading.padding import CHECKED
from elang.backends.packing import check_packing
from elang.backends.shared_prefix import Rows, SharedPrefix
from elang.backends.text_model import TextModel
from elang.data.batches import Reader
from elang.data.encoding import pads_left
from elang.data.prompts import Prompt
from elang.errors import InputError
from elang.tasks.text_task import TextTask

# How far answers in a batch and alone may differ, in float32 and in half precision.
_TOLERANCE, _ROUGH = 1e-3, 5e-2


class DecoderOnly(TextModel):
    """Any ``AutoModelForCausalLM`` that answers after a prompt."""

    text_to_text = True

    def __init__(self, backbone: Any, tokenizer: Any, task: TextTask, *options: Any) -> None:
        super().__init__(backbone, tokenizer, task, *options)
        self.prompt = Prompt.of(tokenizer, task)
        self.prefix = SharedPrefix(backbone.config, self.prompt.beginning(tokenizer))

    @property
    def reader(self) -> Reader:
        """How it reads: with its own prompt."""
        return Reader(self.tokenizer, self.text_to_text, self.task, self.prompt)

    def prompts(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The tokens of a batch and their mask, both ``(B, L)``, padded on the left."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        return (ids, mask) if pads_left(self.tokenizer) else padded_left(ids, mask)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what was kept of the weights before a training is dropped."""
        if mode:
            self.prefix.forget()
        return super().train(mode)

    def check_packing(self) -> None:
        """Refuse a family in whose layers texts of one row cannot be kept apart."""
        check_packing(self.backbone.config)

    @property
    def room(self) -> int:
        """The most tokens that follow a prompt."""
        return self.prompt.reserved + self.max_new_tokens

    def split(self, ids: Tensor, mask: Tensor, room: int) -> Rows:
        """Prompts ``(B, L)`` that ``room`` tokens follow, without what all of them begin with, if it has been read.

        Not with gradients, nor where passes are compiled, captured, or run in step with other processes.
        """
        fixed = self.in_step or any(part._compiled_call_impl is not None for part in self.compiled_parts())
        fixed = fixed or (ids.is_cuda and torch.cuda.is_current_stream_capturing())
        if not self.prefix.tokens or self.training or torch.is_grad_enabled() or fixed:
            return Rows(ids, mask)
        return self.prefix.split(self.backbone, ids, mask, room)

    def counted(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The tokens of each prompt, and how many of them are read once for all inputs, int64 ``(B,)`` on the CPU.

        Of an input alone: a batch whose prompts share fewer tokens reads more.
        """
        ids, mask = self.prompts(inputs)
        return mask.sum(1).cpu(), self.prefix.counts(ids, mask, self.room).cpu()

    @property
    def packs(self) -> bool:
        """Whether several prompts share a row now."""
        return self.packing and self.training

    def after(self, ids: Tensor, mask: Tensor, chain: Tensor | None = None) -> Any:
        """The model over prompts ``(B, L)`` and, after each, a chain of tokens ``(B, T)``.

        The logits are those at the prompts' ends and at each token of the chain, ``(B, T + 1, V)``.
        """
        return self.run(self.split(ids, mask, 0 if chain is None else chain.shape[1]), chain)

    def run(self, rows: Rows, chain: Tensor | None = None, **more: Any) -> Any:
        """The same over what is left to read of prompts."""
        ids, mask, keep = rows.ids, rows.mask, 1
        if chain is not None:
            keep += chain.shape[1]
            ids, mask = torch.cat([ids, chain], 1), F.pad(mask, (0, chain.shape[1]), value=1)
        if rows.past is not None:
            more |= {cache_name(): rows.past, "use_cache": True}
        return chain_pass(self.backbone, ids, mask, keep=keep, **more)

    @abstractmethod
    def probe(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits that an answer to each prompt depends on, ``(B, ...)``."""

    @torch.no_grad()
    def check_batches(self) -> None:
        """Refuse a family, none of those that are tested, whose answers depend on what else is in a batch."""
        if self.backbone.config.model_type in CHECKED:
            return
        length = int(max(2, min(21, self.reader.limit(21))))
        size = self.backbone.config.get_text_config().vocab_size
        ids = torch.arange(5, 5 + 2 * length).remainder(size).reshape(2, length)
        mask = torch.ones_like(ids)
        mask[1, : length // 2] = 0
        training = self.training
        self.eval()
        try:
            batch = self.probe(ids, mask)[1:]
            alone = self.probe(ids[1:, length // 2 :], mask[1:, length // 2 :])
        except Exception as error:
            raise self._unsupported(f"cannot be run on a batch of texts ({type(error).__name__})") from error
        finally:
            self.train(training)
        tolerance = _TOLERANCE if self.backbone.dtype == torch.float32 else _ROUGH
        if not torch.allclose(alone, batch, rtol=0, atol=tolerance * float(alone.abs().max())):
            raise self._unsupported("has answers that depend on what else is in a batch")

    def _unsupported(self, why: str) -> InputError:
        return InputError(
            f"A '{self.backbone.config.model_type}' model {why}, so it is not supported. docs/language-models.md lists "
            "the families that are."
        )


def check_fixed_cache(config: Any, num_beams: int) -> None:
    """Refuse a cache of fixed size for beams, and for families that would write other texts with it, or none."""
    what = f"A '{config.model_type}' model"
    remedy = "leave out --model.static_cache."
    if num_beams > 1:
        raise InputError(
            f"{what} generates {num_beams} beams without a cache of fixed size: set --model.num_beams 1, or {remedy}"
        )
    # Some of the others count positions from the cache's size.
    if not takes_any_mask(config):
        raise InputError(f"{what} generates without a cache of fixed size: {remedy}")
