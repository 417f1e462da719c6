"""Attention over a prefix trie, three ways that agree: a dense mask, FlexAttention's block mask, no mask at all."""
