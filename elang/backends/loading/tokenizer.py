"""Loading a tokenizer as its file has it."""

from collections import Counter
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from elang.notices import notice

# The library's own empty vocabularies have up to one token that is not special.
_FEWEST_WORDS = 2
# Classes of tokenizers that are what their tokenizer.json says.
_AS_WRITTEN = ("PreTrainedTokenizerFast", "TokenizersBackend")
_SAMPLE, _ALIKE = 400, 0.9


def load_tokenizer(name: str, options: dict[str, Any]) -> Any:
    """Load a tokenizer as its ``tokenizer.json`` has it: for some families the library builds another of its words.

    Args:
        name: A folder or a hub id.
        options: What else the library is to be told.

    Raises:
        ValueError: If it knows no words.
        OSError: If there is none.
    """
    found = None
    file = _tokenizer_file(name, options)
    if file is None or get_tokenizer_config(name, **options).get("tokenizer_class") not in _AS_WRITTEN:
        found = AutoTokenizer.from_pretrained(name, **options)
        own = type(found) is not PreTrainedTokenizerFast
        if file and own and _agreement(Tokenizer.from_file(file), found) < _ALIKE:
            notice(
                "tokenizer-as-written",
                f"'{name}' names a tokenizer that would split texts otherwise than its tokenizer.json does, "
                f"{type(found).__name__}: tokenizer.json is used. Set tokenizer_class in tokenizer_config.json to "
                "PreTrainedTokenizerFast.",
            )
            found = None
    if found is None:
        found = PreTrainedTokenizerFast.from_pretrained(name, **options)
    # Where its files are missing the library makes one of special tokens alone, to which all texts are the same.
    words = set(found.get_vocab().values()) - set(found.all_special_ids)
    if len(words) < _FEWEST_WORDS:
        raise ValueError(f"its tokenizer's files are missing or empty: it knows {len(words)} tokens")
    return found


def _tokenizer_file(name: str, options: dict[str, Any]) -> str | None:
    try:
        found: str | None = cached_file(name, "tokenizer.json", **options)
    except OSError:
        return None
    return found


def _agreement(written: Tokenizer, other: Any) -> float:
    """The share of tokens of texts made of a tokenizer's own words on which another one agrees."""
    written.no_padding()
    written.no_truncation()
    special = {token.content for token in written.get_added_tokens_decoder().values()}
    known = sorted((i, word) for word, i in written.get_vocab().items() if word not in special)
    # What options of a tokenizer's class may rightly change, as capitals and accents, is left out.
    plain = [i for i, word in known if word.isascii() and word == word.lower()] or [i for i, _ in known]
    plain = plain[:: max(1, len(plain) // _SAMPLE)]
    words = [written.decode([i]).strip() for i in plain]
    texts = [" ".join(words[i : i + 20]) for i in range(0, len(words), 20)]
    if not texts:
        return 1.0
    pairs = [
        [Counter(one) for one in (written.encode(text, add_special_tokens=False).ids, ids)]
        for text, ids in zip(texts, other(texts, add_special_tokens=False)["input_ids"], strict=True)
    ]
    total = sum(first.total() for first, _ in pairs)
    return sum((first & second).total() for first, second in pairs) / total if total else 1.0
