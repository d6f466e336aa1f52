"""How a family of models pads, and finds its answer in a padded batch.

Answers must not depend on the rest of a batch:

- padding is on the right, but on the left for families that answer at the last place;
- a classifier that looks for the last token before the padding (decoders do) gets the padding token that it expects;
- a family whose answers depend on the padding is refused. The families in :data:`CHECKED` are tested
  (tests/backends/test_families.py); a model of any other is tried when it is loaded.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.errors import InputError, first_line
from elang.notices import notice

# docs/models.md lists them, too.
CHECKED = frozenset(
    {
        *("albert", "bert", "big_bird", "camembert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra"),
        *("ernie", "longformer", "megatron-bert", "modernbert", "mpnet", "rembert", "roberta", "roformer"),
        *("squeezebert", "xlm", "xlm-roberta", "xlnet"),
        *("biogpt", "bloom", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox"),
        *("gptj", "llama", "mistral", "mixtral", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe"),
        *("smollm3", "stablelm", "starcoder2"),
        *("bart", "blenderbot", "blenderbot-small", "led", "longt5", "m2m_100", "marian", "mbart", "mt5", "mvp"),
        *("pegasus", "pegasus_x", "plbart", "prophetnet", "t5", "umt5", "bigbird_pegasus"),
    }
)
REFUSED = {
    "canine": "it reads characters and mixes padding into them",
    "convbert": "its convolutions mix padding into the last tokens",
    "fnet": "its Fourier transform mixes padding into all tokens",
    "fsmt": "its decoder sees later tokens when it runs without a cache",
    "funnel": "its encoder shortens the sequence, and mixes padding into short texts",
    "mobilebert": "it joins each token with the next one, even if that is padding",
    "mra": "it reads blocks of tokens that include padding",
    "nystromformer": "its landmarks are means that include padding",
    "reformer": "it puts tokens into buckets at random",
    "yoso": "it samples which tokens attend to which",
    "encoder-decoder": "it is two models put together, whose costs are not counted",
    "nllb-moe": "elang cannot read the outputs of a mixture of experts with a decoder",
    "switch_transformers": "elang cannot read the outputs of a mixture of experts with a decoder",
}
# They answer at the last place, and cannot be padded on the right.
_LEFT = frozenset({"xlnet"})
# Their positions start after the padding token's, so they have fewer than their table.
_OFFSET_POSITIONS = frozenset(
    {
        *("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "ibert"),
        *("roberta-prelayernorm", "xmod", "luke", "mluke", "esm", "lilt"),
    }
)
_POSITIONS = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len")
_TOLERANCE = 1e-3


def has_decoder(config: Any) -> bool:
    """Whether a model is an encoder with a decoder."""
    return bool(getattr(config, "is_encoder_decoder", False))


def check_family(config: Any, path: str) -> None:
    """Refuse a family whose answers would depend on the padding."""
    if why := REFUSED.get(config.model_type):
        raise InputError(
            f"'{path}' is a '{config.model_type}' model, which is not supported: {why}. docs/models.md lists the "
            "families that are."
        )


def settle_padding(config: Any, tokenizer: Any, path: str, fine_tune: bool = False, after_prompt: bool = False) -> None:
    """Make a configuration and a tokenizer agree on the padding, in place, before the model is built.

    In fine-tuning the token by which a classifier finds the last one may change. A decoder-only model that answers
    ``after_prompt`` goes by the mask, and is padded on the left.
    """
    tokenizer.padding_side = "left" if after_prompt or config.model_type in _LEFT else "right"
    if getattr(config, "attention_type", None) == "block_sparse":
        # For a batch shorter than its blocks the library switches to full attention, for good.
        config.attention_type = "original_full"
        notice(
            "full-attention",
            f"'{path}' attends to blocks of tokens, which would depend on the batch: full attention is used instead.",
        )
    if limit := positions(config):
        # Some tokenizers do not know the size of the position table.
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    inner = config if has_decoder(config) else config.get_text_config()
    size = inner.vocab_size
    # Added tokens do not count: they may be there for padding alone.
    if tokenizer.vocab_size > size or max(tokenizer("a")["input_ids"], default=0) >= size:
        raise InputError(
            f"The tokenizer of '{path}' has {tokenizer.vocab_size} tokens, and its model has embeddings for {size}. "
            "Give the tokenizer that the model was trained with."
        )
    if finds_last_by_padding(config) and not after_prompt:
        pad = _pad_token(inner, tokenizer, path, fine_tune=fine_tune)
        config.pad_token_id = inner.pad_token_id = pad
        if tokenizer.pad_token_id != pad:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
        return
    # The model reads the mask, so any token will do.
    pad = inner.pad_token_id
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= size:
        token = tokenizer.convert_ids_to_tokens(pad) if pad is not None and _is_special(pad, tokenizer) else None
        if token := token or tokenizer.eos_token or tokenizer.unk_token:
            tokenizer.pad_token = token
    # The embedding of a language model's padding token would not be trained.
    if pad is None and tokenizer.pad_token_id is not None and not after_prompt:
        config.pad_token_id = tokenizer.pad_token_id


def _is_special(token: int, tokenizer: Any) -> bool:
    return token in tokenizer.all_special_ids or token in tokenizer.added_tokens_decoder


def _pad_token(config: Any, tokenizer: Any, path: str, *, fine_tune: bool) -> int:
    """The padding token of a model that finds the last token by it."""
    ours, theirs, size = config.pad_token_id, tokenizer.pad_token_id, config.vocab_size
    if ours is None or not 0 <= ours < size:
        ours = _choose(tokenizer, size, path)
        token = tokenizer.convert_ids_to_tokens(ours)
        notice(
            "padding-token",
            f"The config.json of '{path}' names no padding token (pad_token_id): '{token}' ({ours}) is used, and kept "
            "in models that are made from it.",
        )
    elif ours != theirs:
        special = _is_special(ours, tokenizer)
        token = tokenizer.convert_ids_to_tokens(ours)
        both = f"config.json pads with {token!r} ({ours}), its tokenizer with {tokenizer.pad_token!r} ({theirs})"
        if special and theirs is not None:
            notice("padding-token", f"Of '{path}' {both}: the former is used, by which the model finds the end.")
        elif not special and fine_tune and theirs is not None and theirs < size:
            ours = theirs
            notice(
                "padding-token", f"Of '{path}' {both}: the latter is used, and kept in models that are made from it."
            )
        elif not special:
            raise InputError(
                f"Of '{path}' {both}, and the former is no special token, so texts may end with it. Set pad_token_id "
                "in config.json, or the tokenizer's pad_token, so that both name the same special token."
            )
    return int(ours)


def _choose(tokenizer: Any, size: int, path: str) -> int:
    """A special token to pad with, the tokenizer's if possible; preferably not the one that texts end with.

    A classifier without one takes the last token of all, which must stay the same.
    """
    named = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id]
    known = [i for i in [*named, *tokenizer.all_special_ids] if i is not None and 0 <= i < size]
    if not known:
        raise InputError(
            f"'{path}' has no padding token: set pad_token_id in its config.json, and pad_token in its tokenizer."
        )
    last = tokenizer("a", padding=False)["input_ids"][-1:]
    return int(next((i for i in known if i not in last), known[0]))


def finds_last_by_padding(config: Any) -> bool:
    """Whether a family's classifier finds the last token by the padding token, as decoders do."""
    from transformers import AutoModelForSequenceClassification

    if has_decoder(config):
        return False
    model = AutoModelForSequenceClassification._model_mapping.get(type(config), None)
    return model is not None and "pad_token_id" in inspect.unwrap(model.forward).__code__.co_names


def positions(config: Any) -> int | None:
    """How many tokens a model has positions for; ``None`` if there is no limit."""
    for name in _POSITIONS:
        size = getattr(config, name, None) or getattr(config.get_text_config(), name, None)
        if isinstance(size, int) and size > 0:
            return size - (config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0)
    return None


@torch.no_grad()
def check_padding(backbone: Any, tokenizer: Any, path: str) -> None:
    """Check that a model of a family outside :data:`CHECKED` answers alike in a batch and alone."""
    family = backbone.config.model_type
    if family in CHECKED:
        return
    length = int(min(21, tokenizer.model_max_length))
    short = max(1, length // 3)
    size = getattr(backbone.config.get_text_config(), "vocab_size", 2 * length)
    ids = torch.arange(5, 5 + 2 * length).remainder(size).reshape(2, length)
    mask, part = torch.ones_like(ids), ids[1:, :short]
    padding = (length - short, 0) if tokenizer.padding_side == "left" else (0, length - short)
    ids = torch.cat([ids[:1], F.pad(part, padding, value=tokenizer.pad_token_id or 0)])
    mask = torch.cat([mask[:1], F.pad(mask[1:, :short], padding)])
    try:
        alone = _logits(backbone, part, torch.ones_like(part))
        batch = _logits(backbone, ids, mask)[1:]
    except Exception as error:
        raise InputError(
            f"'{path}' is a '{family}' model, and it cannot be run on a batch of texts ({type(error).__name__}: "
            f"{first_line(error)}). docs/models.md lists the families that are supported."
        ) from error
    if not torch.allclose(alone, batch, rtol=0, atol=_TOLERANCE * float(alone.abs().max())):
        raise InputError(
            f"'{path}' is a '{family}' model, whose answers depend on what else is in a batch, so it is not "
            "supported. docs/models.md lists the families that are."
        )


def _logits(backbone: Any, ids: Tensor, mask: Tensor) -> Tensor:
    decoder = {}
    if has_decoder(backbone.config):
        decoder = {"decoder_input_ids": ids.new_full((len(ids), 1), backbone.config.decoder_start_token_id or 0)}
    logits: Tensor = backbone(input_ids=ids, attention_mask=mask, **decoder).logits
    return logits.flatten(1).float()
