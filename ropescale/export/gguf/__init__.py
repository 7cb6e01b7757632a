"""GGUF, the format of llama.cpp and what is built on it: weights, tokenizer and rotation in one file."""
