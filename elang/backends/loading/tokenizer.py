"""Loads a tokenizer as its file describes it, and sets the language codes of models that translate."""

import difflib
from collections import Counter
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from elang.errors import InputError
from elang.notices import notice

# The library's own empty vocabularies have up to one token that is not special.
_FEWEST_WORDS = 2
# Tokenizers of these classes are what their tokenizer.json says.
_AS_WRITTEN = ("PreTrainedTokenizerFast", "TokenizersBackend")
_SAMPLE, _ALIKE = 400, 0.9


def load_tokenizer(name: str, options: dict[str, Any]) -> Any:
    """Load the tokenizer of a folder or hub id as its ``tokenizer.json`` describes it; the library may build another.

    Raises ValueError if it knows no words, OSError if there is none.
    """
    tokenizer = None
    try:
        file = cached_file(name, "tokenizer.json", **options)
    except OSError:
        file = None
    if file is None or get_tokenizer_config(name, **options).get("tokenizer_class") not in _AS_WRITTEN:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        generic = type(tokenizer) is PreTrainedTokenizerFast
        if file and not generic and _agreement(Tokenizer.from_file(file), tokenizer) < _ALIKE:
            notice(
                "tokenizer-as-written",
                f"The tokenizer class of '{name}', {type(tokenizer).__name__}, would split texts differently from its "
                "tokenizer.json: tokenizer.json is used. Set tokenizer_class in tokenizer_config.json to "
                "PreTrainedTokenizerFast.",
            )
            tokenizer = None
    if tokenizer is None:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name, **options)
    # If files are missing, the library makes a tokenizer of special tokens alone, to which all texts are the same.
    words = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    if len(words) < _FEWEST_WORDS:
        raise ValueError(f"its tokenizer's files are missing or empty: it knows {len(words)} tokens")
    return tokenizer


def _agreement(written: Tokenizer, other: Any) -> float:
    """The share of tokens on which another tokenizer agrees, in texts made of this one's words."""
    written.no_padding()
    written.no_truncation()
    special = {token.content for token in written.get_added_tokens_decoder().values()}
    known = sorted((i, word) for word, i in written.get_vocab().items() if word not in special)
    # A tokenizer's class may rightly treat capitals and accents in its own way.
    lower = [i for i, word in known if word.isascii() and word == word.lower()] or [i for i, _ in known]
    words = [written.decode([i]).strip() for i in lower[:: max(1, len(lower) // _SAMPLE)]]
    texts = [" ".join(words[i : i + 20]) for i in range(0, len(words), 20)]
    if not texts:
        return 1.0
    total = agreed = 0
    for text, other_ids in zip(texts, other(texts, add_special_tokens=False)["input_ids"], strict=True):
        ids = Counter(written.encode(text, add_special_tokens=False).ids)
        total += ids.total()
        agreed += (ids & Counter(other_ids)).total()
    return agreed / total if total else 1.0


def set_languages(backbone: Any, tokenizer: Any, languages: list[str]) -> None:
    """Set the source and target language of a multilingual model; other models ignore the codes."""
    multilingual = hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "tgt_lang")
    if not languages:
        if multilingual and tokenizer.tgt_lang is None:
            raise InputError(
                f"A '{backbone.config.model_type}' model translates between many languages: set "
                "--data.source_language and --data.target_language to its codes."
            )
        return
    if not multilingual:
        # The other model of a pair may need them.
        return
    known = language_codes(tokenizer)
    for code in languages:
        if code not in known:
            similar = difflib.get_close_matches(code, known, 3, 0.3)
            raise InputError(
                f"The tokenizer does not know the language code '{code}'. "
                + (f"Did you mean {' or '.join(similar)}? " if similar else "")
                + f"It knows {len(known)} codes, such as {', '.join(sorted(known)[:5])}."
            )
    tokenizer.src_lang, tokenizer.tgt_lang = languages
    target = known[languages[1]]
    if tokenizer(text_target="x")["input_ids"][0] == target:
        backbone.generation_config.forced_bos_token_id = target
    else:
        # The targets of some models (mBART) do not begin with the code: the decoder starts with it.
        backbone.config.decoder_start_token_id = target
        backbone.generation_config.decoder_start_token_id = target
        backbone.generation_config.forced_bos_token_id = None


def language_codes(tokenizer: Any) -> dict[str, int]:
    """The language codes of a tokenizer, with the token of each."""
    if codes := getattr(tokenizer, "lang_code_to_id", None):
        return dict(codes)
    special = getattr(tokenizer, "extra_special_tokens", None) or getattr(tokenizer, "additional_special_tokens", [])
    tokens = map(str, special.values() if isinstance(special, dict) else special)
    return {token.strip("_"): int(tokenizer.convert_tokens_to_ids(token)) for token in tokens}
