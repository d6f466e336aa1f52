"""How answers are decoded: the trie of label words, language codes, the states of a batch."""
