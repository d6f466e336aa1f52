"""How answers are decoded: the trie of label words, language codes."""
