"""Texts as vectors, by any encoder: a sentence encoder, or that of a Swift."""

from typing import Any

import torch
from torch import Tensor

from elang.backends.encoder import masked_mean
from elang.backends.flops import FlopsPart, flops_by_length
from elang.backends.loading.hub import loading, locate, quiet
from elang.backends.loading.padding import has_decoder
from elang.backends.loading.tokenizer import load_tokenizer

_BATCH, _MAX_LENGTH = 32, 512


@torch.inference_mode()
def embed(path: str, texts: list[str]) -> tuple[Tensor, Tensor]:
    """The mean of an encoder's last hidden states, float32 ``(N, D)``, and the FLOPs of each text, float64 ``(N,)``.

    Args:
        path: A folder of ``transformers``, such as one that `elang fit` wrote, or a pinned hub id.
        texts: What to read; each is cut at 512 tokens, or at what the encoder takes.

    Raises InputError if the encoder cannot be loaded.
    """
    from transformers import AutoModel

    name, options = locate(path)
    with loading(path), quiet():
        model: Any = AutoModel.from_pretrained(name, dtype=torch.float32, **options).eval()
        tokenizer = load_tokenizer(name, options)
    encoder = model.get_encoder() if has_decoder(model.config) else model
    limit = min(_MAX_LENGTH, int(getattr(model.config, "max_position_embeddings", None) or _MAX_LENGTH))
    tokens = tokenizer(texts, truncation=True, padding=False, max_length=limit)["input_ids"]
    lengths = torch.tensor([len(one) for one in tokens])
    vectors: Tensor | None = None
    for rows in lengths.argsort(stable=True).split(_BATCH):
        ids = torch.zeros(len(rows), int(lengths[rows].max()), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows.tolist()):
            ids[place, : lengths[row]], mask[place, : lengths[row]] = torch.tensor(tokens[row]), 1
        pooled = masked_mean(encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
        if vectors is None:
            vectors = pooled.new_empty(len(texts), pooled.shape[1])
        vectors[rows] = pooled
    assert vectors is not None, "there are texts"
    part: FlopsPart = "encoder" if has_decoder(model.config) else "all"
    return vectors, flops_by_length(model.config, lengths, part=part)
