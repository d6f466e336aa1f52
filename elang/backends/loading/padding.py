"""How a family of models pads and finds its answer in a padded batch: the one place that decides it.

Answers must not depend on what else is in a batch. Three things see to that:

- padding is on the right, but on the left for families that read their answer off the last place;
- a classifier that looks for the last token before the padding (decoders do) gets the padding token that it looks for;
- a family whose answers depend on the padding is refused by name. The families in :data:`CHECKED` are known to be
  right (tests/backends/test_families.py); of any other a model is tried when it is loaded.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from elang.errors import InputError, first_line
from elang.notices import notice

# As docs/models.md lists them.
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
    "fsmt": "its decoder sees later tokens where it is run without a cache",
    "funnel": "its encoder shortens the sequence, and mixes padding into short texts",
    "mobilebert": "it joins each token with the next one, be that padding",
    "mra": "it reads blocks of tokens, padding among them",
    "nystromformer": "its landmarks are means over padding, too",
    "reformer": "it puts tokens into buckets at random",
    "yoso": "it samples which tokens attend to which",
    "encoder-decoder": "it is two models put together, whose costs are not counted",
    "nllb-moe": "a mixture of experts with a decoder has outputs of its own",
    "switch_transformers": "a mixture of experts with a decoder has outputs of its own",
}
# They read their answer off the last place, and know no padding on the right.
_LEFT = frozenset({"xlnet"})
# Their positions begin behind that of the padding token, so that they have fewer than their table.
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
    """Refuse a family whose answers would depend on the padding.

    Raises:
        InputError: With its name.
    """
    if why := REFUSED.get(config.model_type):
        raise InputError(
            f"'{path}' is a '{config.model_type}' model, which is not supported: {why}. docs/models.md lists the "
            "families that are."
        )


def settle_padding(config: Any, tokenizer: Any, path: str, fine_tune: bool = False) -> None:
    """Make a configuration and a tokenizer agree on how to pad, in place, before the model is made.

    Args:
        config: Of the model.
        tokenizer: Its tokenizer.
        path: The model's, for messages.
        fine_tune: The model is to be trained, so that what it finds the last token by may change.

    Raises:
        InputError: If there is no token to pad with, the two that there are cannot be brought together, or the
            tokenizer has tokens that the model has not.
    """
    tokenizer.padding_side = "left" if config.model_type in _LEFT else "right"
    if getattr(config, "attention_type", None) == "block_sparse":
        # With fewer tokens than blocks are for the library takes full attention, too, and then goes on with it.
        config.attention_type = "original_full"
        notice(
            "full-attention",
            f"'{path}' attends to blocks of tokens, which would depend on the batch: full attention is used instead.",
        )
    _limit_length(config, tokenizer)
    inner = config if has_decoder(config) else config.get_text_config()
    size = inner.vocab_size
    # Tokens that were added, perhaps for padding alone, do not count.
    if tokenizer.vocab_size > size or max(tokenizer("a")["input_ids"], default=0) >= size:
        raise InputError(
            f"The tokenizer of '{path}' has {tokenizer.vocab_size} tokens, and its model has embeddings for {size}. "
            "Give the tokenizer that the model was trained with."
        )
    if _finds_last_by_padding(config):
        pad = _pad_token(inner, tokenizer, path, fine_tune)
        config.pad_token_id = inner.pad_token_id = pad
        if tokenizer.pad_token_id != pad:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    else:
        _settle_masked(config, tokenizer, inner.pad_token_id, size)


def _pad_token(config: Any, tokenizer: Any, path: str, fine_tune: bool) -> int:
    """The padding token of a model that finds the last token by it; see :func:`settle_padding`."""
    own, theirs, size = config.pad_token_id, tokenizer.pad_token_id, config.vocab_size
    if own is None or not 0 <= own < size:
        own = _choose(tokenizer, size, path)
        token = tokenizer.convert_ids_to_tokens(own)
        notice(
            "padding-token",
            f"The config.json of '{path}' names no padding token (pad_token_id): '{token}' ({own}) is used, and kept "
            "in what is written of it.",
        )
    elif own != theirs:
        special = own in tokenizer.all_special_ids or own in tokenizer.added_tokens_decoder
        token = tokenizer.convert_ids_to_tokens(own)
        both = f"config.json pads with {token!r} ({own}), its tokenizer with {tokenizer.pad_token!r} ({theirs})"
        if special and theirs is not None:
            notice("padding-token", f"Of '{path}' {both}: the former is used, for the model finds the end by it.")
        elif not special and fine_tune and theirs is not None and theirs < size:
            own = theirs
            notice("padding-token", f"Of '{path}' {both}: the latter is used, and kept in what is written of it.")
        elif not special:
            raise InputError(
                f"Of '{path}' {both}, and the former is no special token, so texts may end with it. Set pad_token_id "
                "in config.json, or the tokenizer's pad_token, so that both name the same special token."
            )
    return int(own)


def _settle_masked(config: Any, tokenizer: Any, own: int | None, size: int) -> None:
    """Of a family that goes by the mask any token will do, but there must be one."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= size:
        token = None if own is None else tokenizer.convert_ids_to_tokens(own)
        known = token is not None and (own in tokenizer.all_special_ids or own in tokenizer.added_tokens_decoder)
        token = token if known else tokenizer.eos_token or tokenizer.unk_token
        if token is not None:
            tokenizer.pad_token = token
    if own is None and tokenizer.pad_token_id is not None:
        config.pad_token_id = tokenizer.pad_token_id


def _choose(tokenizer: Any, size: int, path: str) -> int:
    """A token to pad with: the tokenizer's own, or another special one; rather none that texts end with.

    A classifier without one takes the last token of all, and is to take the same now.
    """
    named = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id]
    known = [i for i in [*named, *tokenizer.all_special_ids] if i is not None and 0 <= i < size]
    if not known:
        raise InputError(
            f"'{path}' has no padding token: set pad_token_id in its config.json, and pad_token in its tokenizer."
        )
    last = tokenizer("a", padding=False)["input_ids"][-1:]
    return int(next((i for i in known if i not in last), known[0]))


def _finds_last_by_padding(config: Any) -> bool:
    """Whether a family's classifier looks for the last token by the padding token, as decoders do."""
    from transformers import AutoModelForSequenceClassification

    if has_decoder(config):
        return False
    mapping = AutoModelForSequenceClassification._model_mapping
    kind = mapping.get(type(config), None)
    return kind is not None and "pad_token_id" in inspect.unwrap(kind.forward).__code__.co_names


def positions(config: Any) -> int | None:
    """How many tokens a model has positions for; ``None`` where there is no limit."""
    for name in _POSITIONS:
        found = getattr(config, name, None) or getattr(config.get_text_config(), name, None)
        if isinstance(found, int) and found > 0:
            return found - (config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0)
    return None


def _limit_length(config: Any, tokenizer: Any) -> None:
    """Keep texts within the position table, which some tokenizers do not know of."""
    if limit := positions(config):
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)


@torch.no_grad()
def check_padding(backbone: Any, tokenizer: Any, path: str) -> None:
    """Try whether a model of a family that is not in :data:`CHECKED` answers alike in a batch and alone.

    Raises:
        InputError: With the family's name.
    """
    kind = backbone.config.model_type
    if kind in CHECKED:
        return
    length = int(min(21, tokenizer.model_max_length))
    size = getattr(backbone.config.get_text_config(), "vocab_size", 2 * length)
    ids = torch.arange(5, 5 + 2 * length).remainder(size).reshape(2, length)
    mask, short = torch.ones_like(ids), max(1, length // 3)
    left = tokenizer.padding_side == "left"
    empty = slice(0, length - short) if left else slice(short, length)
    real = slice(length - short, length) if left else slice(0, short)
    ids[1, empty], mask[1, empty] = tokenizer.pad_token_id or 0, 0
    try:
        alone = _logits(backbone, ids[1:, real], mask[1:, real])
        batch = _logits(backbone, ids, mask)[1:]
    except Exception as error:
        raise InputError(
            f"'{path}' is a '{kind}' model, and it cannot be run on a batch of texts ({type(error).__name__}: "
            f"{first_line(error)}). docs/models.md lists the families that are supported."
        ) from error
    if not torch.allclose(alone, batch, rtol=0, atol=_TOLERANCE * float(alone.abs().max())):
        raise InputError(
            f"'{path}' is a '{kind}' model, whose answers depend on what else is in a batch, so that it is not "
            "supported. docs/models.md lists the families that are."
        )


def _logits(backbone: Any, ids: Tensor, mask: Tensor) -> Tensor:
    more = {}
    if has_decoder(backbone.config):
        more = {"decoder_input_ids": ids.new_full((len(ids), 1), backbone.config.decoder_start_token_id or 0)}
    found: Tensor = backbone(input_ids=ids, attention_mask=mask, **more).logits
    return found.flatten(1).float()
