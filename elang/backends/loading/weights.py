"""Whether a model's files hold the weights that it needs; the library would draw missing ones at random."""

import json
import math
import re
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from elang.backends.loading.padding import finds_last_by_padding, has_decoder
from elang.errors import InputError, listed
from elang.method.router import RouterHead
from elang.notices import notice

# Buffers in files of older versions of the library, which computes them today.
_COMPUTED = re.compile(r"(position_ids|rotary_emb\.inv_freq|masked_bias|attn\.bias|attention\.bias)$")
# Zeros unless they were trained; files without a language-model head lack them.
_ZEROS = {"final_logits_bias"}
_FLOATS = ("F64", "F32", "F16", "BF16")
_WRAPPERS = {"_orig_mod.": "torch.compile", "module.": "DistributedDataParallel"}
_NAMED = 4
_OTHER_TASKS = ("ForTokenClassification", "ForQuestionAnswering")
_MODULES = "modules.json"
_SETFIT = ("model_head.pkl", "model_head.joblib", "model_head.skops", "config_setfit.json")


def check_weights(
    model: Any, info: dict[str, Any], path: str, *, fine_tune: bool, cut: bool = False, whole: bool = False
) -> list[str]:
    """Refuse a model whose files lack weights; in fine-tuning its head may be new or of another size, with a notice.

    Args:
        model: The model that ``from_pretrained`` returned.
        info: What it returned with ``output_loading_info`` and ``ignore_mismatched_sizes``.
        path: The model's, for messages.
        fine_tune: Also refuses weights that are not finite.
        cut: Layers were left out on request.
        whole: It answers in words, by the head that it comes with.

    Returns the names of the weights that are new.
    """
    missing: set[str] = set(info["missing_keys"]) - _ZEROS
    sizes = {name: (tuple(theirs), tuple(ours)) for name, theirs, ours in info["mismatched_keys"]}
    unexpected = {name for name in info["unexpected_keys"] if not _COMPUTED.search(name)}
    further = _further_layers(unexpected, model)
    if cut:
        unexpected, further = unexpected - further, set()
    new_head = {name for name in missing | sizes.keys() if fine_tune and not whole and is_head(name, model)}
    if lacking := sorted(missing - new_head):
        raise InputError(
            f"{_lacks(path, lacking, len(model.state_dict()), unexpected=unexpected)} "
            f"{_remedy(path, missing, unexpected, model=model, whole=whole)}"
        )
    if wrong := sorted(sizes.keys() - new_head):
        theirs, ours = sizes[wrong[0]]
        others = f"; {len(wrong) - 1} more do not fit either" if len(wrong) > 1 else ""
        raise InputError(
            f"The weights of '{path}' do not fit its config.json: '{wrong[0]}' has the shape {theirs}, and {ours} is "
            f"needed{others}. Give a complete model."
        )
    if not fine_tune and (other := _other_head(unexpected, model)):
        raise InputError(
            f"'{path}' has the head of another task ({other}), so its answers to this one would mean nothing. "
            "Fine-tune it with `elang fit`."
        )
    # At the end of a training this would look like divergence.
    if fine_tune and (bad := next((n for n, w in model.named_parameters() if not w.sum().isfinite()), None)):
        raise InputError(f"The weights '{bad}' of '{path}' are NaN or infinite. Give a model whose training converged.")
    if further:
        raise InputError(
            f"'{path}' holds the weights of more layers than its config.json names: {_some(further)}. Set "
            "the number of layers in config.json to that of the weights"
            + (", or set --model.layers to keep only the first ones." if fine_tune else ".")
        )
    if new_head:
        dropped = f" What '{path}' holds for other tasks is dropped: {_some(unexpected)}." if unexpected else ""
        text = f"'{path}' has no head for this task: a new one starts from random weights, and learns in this training"
        notice("new-head", f"{text} ({_some(new_head)}).{dropped}")
    elif unexpected:
        notice("unused-weights", f"'{path}' holds weights that are not used: {_some(unexpected)}.")
    return sorted(new_head)


def python_command(code: str) -> str:
    """Code as a command for a shell, whatever the names in it are; it ends a message, without a full stop."""
    return f"python -c {shlex.quote(code)}"


def convert_gguf(folder: Path, file: str) -> str:
    """The end of a message: the command that makes a plain folder of a GGUF file."""
    code = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"a, f = {json.dumps(str(folder))}, {json.dumps(file)}; "
        'm = M.from_pretrained(a, gguf_file=f, dtype="float32"); '
        'hasattr(m, "hf_quantizer") and m.hf_quantizer.remove_quantization_config(m); '
        'm.save_pretrained("FOLDER"); T.from_pretrained(a, gguf_file=f).save_pretrained("FOLDER")'
    )
    remedy = "Convert it, and compare its tokenizer with the original one"
    return f"{remedy}: pip install gguf accelerate && {python_command(code)}"


def _converted(path: Path | str, architectures: Any, load: str, save: str = "") -> str:
    """The command that loads a folder with the class that its configuration names, and saves it."""
    kind = architectures[0] if isinstance(architectures, list) and architectures else None
    kind = kind if isinstance(kind, str) and kind.isidentifier() else "AutoModel"
    return python_command(
        f"import transformers as t; a = {json.dumps(str(path))}; t.{kind}.from_pretrained(a{load}.save_pretrained("
        f'"FOLDER"{save}); t.AutoTokenizer.from_pretrained(a).save_pretrained("FOLDER")'
    )


def check_format(folder: Path, path: str) -> None:
    """Refuse a folder whose weights are a GGUF file or pickles, with the command that converts them."""
    if list(folder.glob("*.safetensors")):
        return
    if gguf := sorted(folder.glob("*.gguf")):
        raise InputError(f"'{path}' holds a GGUF file, not safetensors. {convert_gguf(folder, gguf[0].name)}")
    if pickles := sorted(folder.glob("pytorch_model*.bin")):
        try:
            architectures = json.loads((folder / "config.json").read_text("utf-8"))["architectures"]
        except (OSError, ValueError, LookupError, TypeError):
            architectures = None
        command = _converted(folder, architectures, ", use_safetensors=False)")
        raise InputError(
            f"The weights of '{path}' are pickles ({pickles[0].name}), not safetensors, and elang loads no pickles. "
            f"Convert them: {command}"
        )


def check_quantized(config: Any, path: str) -> None:
    """Refuse a model that is quantized by its configuration, with the command that converts it if there is one."""
    about = getattr(config, "quantization_config", None)
    if not about:
        return
    fields = about if isinstance(about, dict) else vars(about)
    method = str(fields.get("quant_method") or "").rpartition(".")[2].lower()
    remedy = "Give the model that it was made from, in float32, bfloat16 or float16"
    if "bitsandbytes" in method:
        command = _converted(path, config.architectures, ").dequantize()", ", save_original_format=False")
        remedy += f", or convert it: pip install bitsandbytes accelerate && {command}"
    raise InputError(
        f"'{path}' is quantized ({method or 'quantization_config'} in its config.json), which elang does not train or "
        f"run. {remedy}"
    )


def check_precision(folder: Path, path: str) -> None:
    """Refuse a folder of quantized weights: without their scales they mean nothing."""
    from safetensors import safe_open

    types: dict[str, str] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            types |= {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 - no dict
    quantized = {name: kind for name, kind in types.items() if kind not in _FLOATS and not _COMPUTED.search(name)}
    if quantized:
        raise InputError(
            f"The files of '{path}' hold {len(quantized)} weights as {', '.join(sorted(set(quantized.values())))}: "
            f"{_some(quantized)}. They seem to be quantized, which is not supported. Give the model in float32, "
            "bfloat16 or float16."
        )


def num_weights(folder: Path) -> int:
    """The number of weights in the files of a folder, from their headers alone; 0 where there are none."""
    from safetensors import safe_open

    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            count += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118 - no dict
    return count


def check_state(model: Any, state: dict[str, Any], path: str, remedy: str) -> None:
    """Refuse the weights of a checkpoint, by name, unless they are exactly the model's; earlier heads are widened."""
    for name, module in model.named_modules():
        if isinstance(module, RouterHead):
            module.widen(state, f"{name}.")
    needed = model.state_dict()
    missing, unexpected = sorted(needed.keys() - state.keys()), state.keys() - needed.keys()
    if missing:
        raise InputError(f"{_lacks(path, missing, len(needed), unexpected=unexpected)} {remedy}")
    problem = f"it also holds {_some(unexpected)}" if unexpected else ""
    for name, value in state.items():
        if not problem and value.shape != needed[name].shape:
            problem = f"'{name}' has the shape {tuple(value.shape)}, and {tuple(needed[name].shape)} is needed"
    if problem:
        raise InputError(f"The checkpoint '{path}' does not fit the model that it describes: {problem}. {remedy}")


def check_parts(path: str, fine_tune: bool) -> None:
    """Notice poolings and classifiers of other libraries in a folder; refuse a finished model that needs them."""
    folder = Path(path)
    setfit = [name for name in _SETFIT if (folder / name).is_file()]
    modules = [_MODULES] if (folder / _MODULES).is_file() else []
    if not setfit and not modules:
        return
    library = "SetFit" if setfit else "sentence-transformers"
    if not (folder / "config.json").is_file():
        inner = sorted(p.parent.name for p in folder.glob("*/config.json") if list(p.parent.glob("*.safetensors")))
        where = f"Give the folder of its encoder, '{folder / inner[0]}'." if inner else "It holds no encoder."
        raise InputError(f"'{path}' is a folder of {library} without a config.json of its own. {where}")
    if setfit and not fine_tune:
        raise InputError(
            f"'{path}' is a SetFit model: its classifier ({listed(setfit)}) is not part of the weights, and elang does "
            "not load it (a pickle can run code). Fine-tune the folder with `elang fit`, or answer with SetFit and "
            "give the answers as records."
        )
    parts = [*setfit, *modules, *sorted(p.name for p in folder.glob("[0-9]_*") if p.is_dir())]
    pickled = any(name.endswith((".pkl", ".joblib")) for name in setfit)
    notice(
        "dropped-parts",
        f"'{path}' is a {library} folder: its transformer is used, and its other parts ({listed(parts)}) are not."
        + (" A pickle is never loaded." if pickled else ""),
    )


def is_head(name: str, model: Any) -> bool:
    """Whether a weight is outside the pretrained body; so is a pooler, because some checkpoints have none."""
    prefix = f"{model.base_model_prefix}."
    if has_decoder(model.config):
        return False
    return not name.startswith(prefix) or name.removeprefix(prefix).startswith("pooler.")


def _further_layers(names: set[str], model: Any) -> set[str]:
    """The names of weights in layers like the model's, but after its last one."""
    known = {re.sub(r"\.\d+\.", ".0.", name) for name in model.state_dict()} if names else set()
    prefix = f"{model.base_model_prefix}."
    first = {name: re.sub(r"\.\d+\.", ".0.", name) for name in names if re.search(r"\.\d+\.", f".{name}")}
    return {name for name, alike in first.items() if alike in known or f"{prefix}{alike}" in known}


def _other_head(unexpected: set[str], model: Any) -> str:
    """A sign that the head, whose weights may fit by chance, is another task's; empty if there is none."""
    other = [*_OTHER_TASKS, *(["ForSequenceClassification"] if model.config.is_encoder_decoder else [])]
    named = [name for name in model.config.architectures or [] if name.endswith(tuple(other))]
    modules = {name.rpartition(".")[0] for name in model.state_dict() if is_head(name, model)}
    return ", ".join(named) or next((name for name in sorted(unexpected) if name.rpartition(".")[0] in modules), "")


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:_NAMED]
    return listed(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")


def _lacks(path: str, lacking: list[str], total: int, *, unexpected: Collection[str]) -> str:
    message = f"'{path}' lacks {len(lacking)} of its {total} weights: {_some(lacking)}."
    return message + (f" It holds others instead: {_some(unexpected)}." if unexpected else "")


def _remedy(path: str, lacking: set[str], unexpected: set[str], *, model: Any, whole: bool) -> str:
    if prefix := _common_prefix(lacking, unexpected):
        wrapper = next((w for begin, w in _WRAPPERS.items() if prefix.startswith(begin)), None)
        inner = f"model.{prefix.split('.')[0]}.save_pretrained(...)"
        how = f", added by {wrapper}: save the model inside it, `{inner}`." if wrapper else ": take it off."
        return f"All its names begin with '{prefix}'{how}"
    if (Path(path) / _MODULES).is_file():
        return "It is a sentence-transformers folder, which has no classifier. Fine-tune it with `elang fit`."
    if not whole and all(is_head(name, model) for name in lacking):
        words = " Untrained, a language model can answer in label words: --data.label_words true."
        return "It is not a finished model of this task. Fine-tune it with `elang fit`." + (
            words if finds_last_by_padding(model.config) else ""
        )
    return "Give a complete model, saved by the library."


def _common_prefix(lacking: set[str], unexpected: set[str]) -> str:
    """The prefix by which all unexpected names differ from lacking ones; empty if there is none."""
    first = min(unexpected, default="")
    for name in lacking:
        if first.endswith(f".{name}"):
            prefix = first.removesuffix(name)
            if all(other.startswith(prefix) and other.removeprefix(prefix) in lacking for other in unexpected):
                return prefix
    return ""
