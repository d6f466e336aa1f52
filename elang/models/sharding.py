"""Models that fit no single device: weights in parts over all processes (FSDP2)."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from typing_extensions import override

from elang.backends.text_model import TextModel
from elang.errors import InputError


class ShardedStrategy(ModelParallelStrategy):
    """Fully sharded data parallelism (FSDP2): each process holds a part of weights, gradients and optimizer states.

    ``--trainer.strategy sharded``, or by its class where it is given arguments.

    Args:
        save_distributed_checkpoint: Each process writes its part of a checkpoint, which is then a folder. Such a folder
            holds pickles: go on from none but your own. By default one file, put together by the first process.
        process_group_backend: By default the device's own.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, process_group_backend: str | None = None) -> None:
        super().__init__(1, 1, save_distributed_checkpoint, process_group_backend)

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @override
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint, one in parts only where such are asked for.

        Raises:
            InputError: Of a folder, which holds pickles.
        """
        if Path(checkpoint_path).is_dir() and not self._save_distributed_checkpoint:
            raise InputError(
                f"'{checkpoint_path}' is a checkpoint in parts, which holds pickles, and these can run code. If it is "
                "your own, give the strategy by its class, elang.ShardedStrategy, with save_distributed_checkpoint "
                "true."
            )
        return super().load_checkpoint(checkpoint_path, weights_only)


StrategyRegistry.register("sharded", ShardedStrategy, description="Fully sharded data parallelism")


def check_strategy(trainer: Trainer) -> None:
    """Refuse ways to spread a model that its parts are not made for.

    Raises:
        InputError: Naming those that there are.
    """
    known = (SingleDeviceStrategy, DDPStrategy, ShardedStrategy)
    if not isinstance(trainer.strategy, known):
        raise InputError(
            f"--trainer.strategy {type(trainer.strategy).__name__} is not supported. Take ddp, or, for a model that "
            "fits no single device, sharded (FSDP)."
        )


class Sharded:
    """A model whose weights are in parts over the processes, and how they come together again.

    All processes must run it equally often, for each run of a layer gathers its weights.

    Args:
        model: What is taken apart, in place.
        mesh: The processes.
    """

    def __init__(self, model: TextModel, mesh: Any) -> None:
        self.model = model
        weights = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
        # What is known beforehand is not copied: neither weights nor what never changes.
        self._empty = copy.deepcopy(model, {**weights, id(model.tokenizer): model.tokenizer})
        for block in blocks(model.backbone):
            fully_shard(block, mesh=mesh)
        # What is gathered together is of one precision; a head may stay in float32.
        kinds = Counter[Any]()
        for weight in model.parameters():
            kinds[weight.dtype] += weight.numel()
        for module in list(model.modules()):
            own = {weight.dtype for weight in module.parameters(recurse=False)}
            if own and own != {kinds.most_common(1)[0][0]}:
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if hasattr(model, "encode"):
            # Texts are generated without a call of the whole.
            register_fsdp_forward_method(model, "encode")
        model.keep_in_step()

    def gather(self, everywhere: bool) -> TextModel | None:
        """The whole model: on the device of every process, or in the memory of the first one's host."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=not everywhere)
        state = get_model_state_dict(self.model, options=options)
        if not state:
            return None
        self._empty.load_state_dict(state, assign=True)
        self._empty.backbone.tie_weights()
        first: Any = next(iter(state.values()))
        return self._empty.to(first.device)


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """The layers of a model's stacks, each once: what is gathered at a time."""
    found: dict[str, nn.Module] = {}
    for name, module in backbone.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if isinstance(module, nn.ModuleList) and len(module) > 0 and not inside:
            found |= {f"{name}.{i}": layer for i, layer in enumerate(module)}
    return list(found.values())
