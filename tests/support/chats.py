"""Conversations to train on, and a model's template and tokenizer to read them with."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

import pytest

SMOLLM2 = (  # SmolLM2's own template, which adds a system message of its own where there is none
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat(*texts: str, system: str | None = None) -> dict[str, Any]:
    """A record in which user and assistant take turns."""
    turns = [
        {"role": role, "content": text} for role, text in zip(("user", "assistant") * len(texts), texts, strict=False)
    ]
    return {"messages": ([] if system is None else [{"role": "system", "content": system}]) + turns}


RECORDS = {
    "one turn": chat("Who are you?", "A lighthouse keeper."),
    "with a system message": chat("Hi", "Good evening, friend.", system="Be polite."),
    "three turns": chat("One?", "1.", "Two?", "That is 2.\nOr II.", "Three?", "3"),
    "an answer with spaces around": chat("Indent it", "    return 1\n"),
    "an answer that begins with newlines": chat("Paragraph", "\n\nHere.", "Again", "\nThere."),
    "an answer that is not English": chat("日本?", "日本語と中文 😀"),
    "an answer that spells the end-of-turn token": chat("How do you stop?", "With <|im_end|> at the end.", "Ah", "Yes"),
}


def byte_pairs(add_bos: bool = False) -> Any:
    """A small tokenizer of the kind that SmolLM2 has: byte-level BPE with ChatML's special tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([inspect.getsource(argparse) + "\n\n" * 99], trainer)
    if add_bos:
        backend.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return backend
