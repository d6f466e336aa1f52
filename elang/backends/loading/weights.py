"""Whether a model's files held the weights that it needs; what they lack, the library draws at random."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from elang.backends.loading.padding import has_decoder
from elang.errors import InputError, listed
from elang.notices import notice

# Buffers of earlier versions of the library, which are computed today.
_COMPUTED = re.compile(r"(position_ids|rotary_emb\.inv_freq|masked_bias|attn\.bias|attention\.bias)$")
# Zeros unless something was trained into them; a model without a language-model head has none.
_ZEROS = {"final_logits_bias"}
_FLOATS = ("F64", "F32", "F16", "BF16")
_WRAPPERS = {"_orig_mod.": "torch.compile", "module.": "DistributedDataParallel"}
_NAMED = 4
_OTHER_TASKS = ("ForTokenClassification", "ForQuestionAnswering")
_MODULES = "modules.json"
_SETFIT = ("model_head.pkl", "model_head.joblib", "model_head.skops", "config_setfit.json")


def check_weights(model: Any, info: dict[str, Any], path: str, fine_tune: bool, cut: bool = False) -> list[str]:
    """Refuse a model with weights that its files did not hold; when fine-tuning, only its head may be new.

    Args:
        model: What ``from_pretrained`` made.
        info: What it tells with ``output_loading_info``, mismatched sizes being ignored.
        path: The model's, for messages.
        fine_tune: The head may be new, or of another size; a notice says so.
        cut: Layers were left out because they were asked to be.

    Returns:
        The names of the weights that are new.

    Raises:
        InputError: Naming the weights; when fine-tuning, also those that are not finite.
    """
    missing: set[str] = set(info["missing_keys"]) - _ZEROS
    sizes = {name: (tuple(theirs), tuple(ours)) for name, theirs, ours in info["mismatched_keys"]}
    unexpected = {name for name in info["unexpected_keys"] if not _COMPUTED.search(name)}
    left_over = set() if cut else _further_layers(unexpected, model)
    unexpected = {name for name in unexpected if not (cut and name in _further_layers({name}, model))}
    head = {name for name in missing | sizes.keys() if fine_tune and _of_head(name, model)}
    if lacking := sorted(missing - head):
        raise InputError(
            f"{_lacks(path, lacking, len(model.state_dict()), unexpected)} {_remedy(path, missing, unexpected, model)}"
        )
    if wrong := sorted(sizes.keys() - head):
        theirs, ours = sizes[wrong[0]]
        raise InputError(
            f"The weights of '{path}' do not fit its config.json: '{wrong[0]}' has the shape {theirs}, and {ours} is "
            f"needed{f'; so it is with {len(wrong) - 1} more' if len(wrong) > 1 else ''}. Give a complete model."
        )
    if not fine_tune and (other := _other_head(unexpected, model)):
        raise InputError(
            f"'{path}' has the head of another task ({other}), so its answers to this one would mean nothing. "
            "Fine-tune it with `elang fit`."
        )
    # At the end of a training it would look as if that had diverged.
    if fine_tune and (odd := next((n for n, w in model.named_parameters() if not w.sum().isfinite()), None)):
        raise InputError(f"The weights '{odd}' of '{path}' are NaN or infinite. Give a model whose training converged.")
    if left_over:
        raise InputError(
            f"'{path}' holds the weights of more layers than its config.json names: {_some(left_over)}. Set "
            "the number of layers in config.json to that of the weights"
            + (", or set --model.layers to keep only the first ones." if fine_tune else ".")
        )
    if head:
        dropped = f" What '{path}' holds for other tasks is dropped: {_some(unexpected)}." if unexpected else ""
        notice("new-head", f"The head is new and starts from random weights: {_some(head)}.{dropped}")
    elif unexpected:
        notice("unused-weights", f"'{path}' holds weights that are not used: {_some(unexpected)}.")
    return sorted(head)


def check_precision(folder: Path, path: str) -> None:
    """Refuse weights that were quantized: read as they are they would count in steps that no one knows.

    Args:
        folder: With the model's files.
        path: The model's, for messages.

    Raises:
        InputError: Naming the weights.
    """
    from safetensors import safe_open

    found: dict[str, str] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 - no dict
    odd = {name: kind for name, kind in found.items() if kind not in _FLOATS and not _COMPUTED.search(name)}
    if odd:
        raise InputError(
            f"The files of '{path}' hold {len(odd)} weights as {', '.join(sorted(set(odd.values())))}: {_some(odd)}. "
            "They seem to be quantized, which is not supported. Give the model in float32, bfloat16 or float16."
        )


def check_state(model: Any, state: dict[str, Any], path: str, remedy: str) -> None:
    """Refuse a checkpoint whose weights are not exactly those that the model has.

    Args:
        model: What the weights are to be loaded into.
        state: The weights by their names.
        path: The checkpoint's, for messages.
        remedy: What to do instead: a sentence.

    Raises:
        InputError: Naming the weights.
    """
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), state.keys() - own.keys()
    if missing:
        raise InputError(f"{_lacks(path, missing, len(own), unexpected)} {remedy}")
    if unexpected:
        raise InputError(
            f"The checkpoint '{path}' does not fit the model that it describes: it also holds {_some(unexpected)}. "
            f"{remedy}"
        )
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise InputError(
                f"The checkpoint '{path}' does not fit the model that it describes: '{name}' has the shape "
                f"{tuple(value.shape)}, and {tuple(own[name].shape)} is needed. {remedy}"
            )


def check_parts(path: str, fine_tune: bool) -> None:
    """Look for what a folder holds beside a model: other libraries' poolings and classifiers.

    Raises:
        InputError: If it is to be used as a finished model, and its classifier is such a part.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    setfit = [name for name in _SETFIT if (folder / name).is_file()]
    modules = [_MODULES] if (folder / _MODULES).is_file() else []
    if not setfit and not modules:
        return
    kind = "SetFit" if setfit else "sentence-transformers"
    if not (folder / "config.json").is_file():
        inner = sorted(p.parent.name for p in folder.glob("*/config.json") if list(p.parent.glob("*.safetensors")))
        where = f"Give the folder of its encoder, '{folder / inner[0]}'." if inner else "It holds no encoder."
        raise InputError(f"'{path}' is a folder of {kind} without a config.json of its own. {where}")
    parts = [*setfit, *modules, *sorted(p.name for p in folder.glob("[0-9]_*") if p.is_dir())]
    if setfit and not fine_tune:
        raise InputError(
            f"'{path}' is a SetFit model: its classifier ({listed(setfit)}) is not part of the weights, and elang does "
            "not load it (a pickle can run code). Fine-tune the folder with `elang fit`, or answer with SetFit and "
            "give the answers as records."
        )
    never = " A pickle is never loaded." if any(name.endswith((".pkl", ".joblib")) for name in setfit) else ""
    notice(
        "dropped-parts",
        f"'{path}' is a {kind} folder: its transformer is used, and its other parts ({listed(parts)}) are not.{never}",
    )


def is_body(name: str, model: Any) -> bool:
    """Whether a weight is of the pretrained body; a pooler belongs to the head, for not every checkpoint has one."""
    return not _of_head(name, model)


def _of_head(name: str, model: Any) -> bool:
    prefix = f"{model.base_model_prefix}."
    if has_decoder(model.config):
        return False
    return not name.startswith(prefix) or name.removeprefix(prefix).startswith("pooler.")


def _further_layers(names: set[str], model: Any) -> set[str]:
    """Those that are weights of layers like the model's, but behind its last one."""
    if not names:
        return set()
    known = {re.sub(r"\.\d+\.", ".0.", name) for name in model.state_dict()}
    prefix = f"{model.base_model_prefix}."
    alike = {name: re.sub(r"\.\d+\.", ".0.", name) for name in names if re.search(r"\.\d+\.", f".{name}")}
    return {name for name, one in alike.items() if one in known or f"{prefix}{one}" in known}


def _other_head(unexpected: set[str], model: Any) -> str:
    """What tells that the head, whose weights may fit by chance, is another task's; nothing if it is this one's."""
    other = [*_OTHER_TASKS, *(["ForSequenceClassification"] if model.config.is_encoder_decoder else [])]
    named = [name for name in model.config.architectures or [] if name.endswith(tuple(other))]
    own = {name.rpartition(".")[0] for name in model.state_dict() if _of_head(name, model)}
    return ", ".join(named) or next((name for name in sorted(unexpected) if name.rpartition(".")[0] in own), "")


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:_NAMED]
    return listed(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")


def _lacks(path: str, lacking: list[str], total: int, unexpected: Collection[str]) -> str:
    said = f"'{path}' lacks {len(lacking)} of its {total} weights: {_some(lacking)}."
    return said + (f" It holds others instead: {_some(unexpected)}." if unexpected else "")


def _remedy(path: str, lacking: set[str], unexpected: set[str], model: Any) -> str:
    if prefix := _prefix(lacking, unexpected):
        maker = next((m for begin, m in _WRAPPERS.items() if prefix.startswith(begin)), None)
        inner = f"model.{prefix.split('.')[0]}.save_pretrained(...)"
        how = f", as {maker} leaves them: save the model inside it, `{inner}`." if maker else ": take it off."
        return f"All its names begin with '{prefix}'{how}"
    if (Path(path) / _MODULES).is_file():
        return "It is a sentence-transformers folder, which has no classifier. Fine-tune it with `elang fit`."
    if all(_of_head(name, model) for name in lacking):
        return "It is not a finished model of this task. Fine-tune it with `elang fit`."
    return "Give a complete model: one that the library saved as a whole."


def _prefix(lacking: set[str], unexpected: set[str]) -> str:
    """What stands before the names of all weights; nothing if they differ otherwise."""
    first = min(unexpected, default="")
    for name in lacking:
        if first.endswith(f".{name}"):
            prefix = first.removesuffix(name)
            if all(other.startswith(prefix) and other.removeprefix(prefix) in lacking for other in unexpected):
                return prefix
    return ""
