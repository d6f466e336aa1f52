"""Models without weights, on the meta device, whose operations are counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from elang.backends.loading.padding import has_decoder


def meta_model(config: Any, device: str = "meta", causal: bool = False) -> torch.nn.Module:
    """Build the model of ``config`` without weights, with the attention whose products can be counted."""
    import transformers

    config = type(config).from_dict(config.to_dict())
    config.use_cache = False
    kind = "Seq2SeqLM" if has_decoder(config) else "CausalLM" if causal else "SequenceClassification"
    auto = getattr(transformers, f"AutoModelFor{kind}")
    with torch.device(device):
        # The kernel that groups experts is not counted; products of each token with its experts are.
        config._experts_implementation = "batched_mm"
        model: torch.nn.Module = auto.from_config(config, attn_implementation="eager")
    # The counter follows parameters that are arguments of a module (DeBERTa-v2's positions) if they need gradients.
    return model.eval().requires_grad_(False)


@contextmanager
def without_values() -> Iterator[None]:
    """Within, there are no gradients, and autocast is off for the meta device, where the library asks for it.

    Versions such as 5.0.0 ask before they compute positions, and torch knows no autocast of that device.
    """
    known = torch.is_autocast_enabled

    def enabled(device_type: str | None = None) -> bool:
        return device_type != "meta" and (known() if device_type is None else known(device_type))

    torch.is_autocast_enabled = enabled
    try:
        with torch.no_grad():
            yield
    finally:
        torch.is_autocast_enabled = known
