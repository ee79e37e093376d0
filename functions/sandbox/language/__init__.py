"""Checks of language models: tokenizer, chat template, generated text."""
