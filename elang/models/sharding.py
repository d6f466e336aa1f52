"""Models that do not fit on one device: the processes share their weights (FSDP2)."""

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

    ``--trainer.strategy sharded``, or the class path to give arguments.

    Args:
        save_distributed_checkpoint: Each process writes its part of a checkpoint, which is then a folder with pickles:
            resume only from your own. By default the first process gathers the parts and writes one file.
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
        """Load a checkpoint. Refuse one in parts, which are pickles, unless this strategy writes such checkpoints."""
        if Path(checkpoint_path).is_dir() and not self._save_distributed_checkpoint:
            raise InputError(
                f"'{checkpoint_path}' is a checkpoint in parts, which holds pickles, and these can run code. If it is "
                "your own, give the strategy by its class, elang.ShardedStrategy, with save_distributed_checkpoint "
                "true."
            )
        return super().load_checkpoint(checkpoint_path, weights_only)


StrategyRegistry.register("sharded", ShardedStrategy, description="Fully sharded data parallelism")


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that the modules do not support."""
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | ShardedStrategy):
        raise InputError(
            f"--trainer.strategy {type(trainer.strategy).__name__} is not supported. Take ddp, or, for a model that "
            "does not fit on one device, sharded (FSDP)."
        )


class Sharded:
    """A model whose weights are sharded, in place, over a mesh of processes, and how to gather them again.

    All processes must run the model equally often, because each run of a layer gathers its weights.
    """

    def __init__(self, model: TextModel, mesh: Any) -> None:
        self.model = model
        weights = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
        # With a memo, so that neither the weights nor the tokenizer are copied.
        self._empty = copy.deepcopy(model, {**weights, id(model.tokenizer): model.tokenizer})
        for layer in stacked_layers(model.backbone):
            fully_shard(layer, mesh=mesh)
        # Weights that are gathered together must have one precision, but a head may stay in float32.
        sizes = Counter[Any]()
        for weight in model.parameters():
            sizes[weight.dtype] += weight.numel()
        for module in list(model.modules()):
            dtypes = {weight.dtype for weight in module.parameters(recurse=False)}
            if dtypes and dtypes != {sizes.most_common(1)[0][0]}:
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if hasattr(model, "encode"):
            # Generation calls this without calling the whole model.
            register_fsdp_forward_method(model, "encode")
        model.sync_generation()

    def gather(self, everywhere: bool) -> TextModel | None:
        """The whole model: on every process's device, or only in the first process's memory (the others get None)."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=not everywhere)
        state = get_model_state_dict(self.model, options=options)
        if not state:
            return None
        self._empty.load_state_dict(state, assign=True)
        self._empty.backbone.tie_weights()
        weight: Any = next(iter(state.values()))
        return self._empty.to(weight.device)


def stacked_layers(backbone: nn.Module) -> list[nn.Module]:
    """The layers of a model's stacks, without the layers inside them."""
    layers: dict[str, nn.Module] = {}
    for name, module in backbone.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer in layers)
        if isinstance(module, nn.ModuleList) and not nested:
            layers |= {f"{name}.{i}": layer for i, layer in enumerate(module)}
    return list(layers.values())
