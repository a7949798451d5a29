"""The tokenizers of GGUF files of Llama, Llama 3, Qwen, Phi-3 and Gemma, against transformers' own from the same file."""

from __future__ import annotations

import argparse
import inspect

import numpy as np
import pytest
from gguf_files import write
from oracle_models import transformers
from tokenizer_cases import TRICKY, metadata_for

from lora_np.files import open_gguf, tokenizer_from_gguf

tokenizers = pytest.importorskip("tokenizers")
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
SPECIAL = ["<unk>", "<s>", "</s>"]


def both(metadata, architecture, folder):
    """(ours, theirs) from one file."""
    sizes = {"context_length": 32, "embedding_length": 8, "block_count": 1, "feed_forward_length": 8}
    entries = {f"{architecture}.{key}": value for key, value in sizes.items()} | {
        f"{architecture}.attention.head_count": 2,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
    }
    entries |= {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in metadata.items()}
    write(folder / "model.gguf", {}, entries, architecture=architecture)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    with open_gguf(folder / "model.gguf") as stored:
        return tokenizer_from_gguf(stored.metadata), theirs


@pytest.mark.parametrize(("pre", "architecture"), [("llama-bpe", "llama"), ("qwen2", "qwen2"), ("qwen2", "qwen3")])
def test_byte_level_bpe_is_cut_as_in_transformers(pre, architecture, trained, tmp_path):
    ours, theirs = both(metadata_for(("gpt-2", trained[1]), pre=pre), architecture, tmp_path)
    for text in TRICKY:
        assert ours.encode(text).tolist() == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))


def sentencepiece_metadata():
    """A vocabulary with scores, as SentencePiece trains it: special tokens, bytes, characters and merged tokens."""
    backend = tokenizers.SentencePieceBPETokenizer()
    text = inspect.getsource(argparse) + "  12 3\n    x" * 50
    backend.train_from_iterator([text], vocab_size=600, min_frequency=2, show_progress=False, special_tokens=[])
    learned = [token for token, _ in sorted(backend.get_vocab().items(), key=lambda item: item[1])]
    tokens = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), *learned]
    kinds = [2, 3, 3] + [6] * 256 + [1] * len(learned)
    scores = [0.0] * 259 + [-float(i) for i in range(len(learned))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma2", "gemma3"])
def test_sentencepiece_is_cut_as_in_transformers(architecture, tmp_path):
    ours, theirs = both(sentencepiece_metadata(), architecture, tmp_path)
    for text in TRICKY:
        assert ours.encode(text).tolist() == theirs.encode(text), repr(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)), repr(text)
