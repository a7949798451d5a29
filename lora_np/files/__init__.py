"""Files of models: arrays (safetensors, GGUF), JSON settings and tokenizers. This package imports no model code."""

from .arrays import StoredArrays, load_arrays, open_arrays, save_arrays
from .durable import write_atomically, write_text
from .finite import check_finite
from .gguf_reader import open_gguf
from .huggingface import open_folder, read_json
from .locks import lock
from .pickled import read_pickled
from .text_stream import TextStream
from .tokenizer import ByteTokenizer, Tokenizer, VocabularyTokenizer
from .tokenizer_files import tokenizer_from_folder, tokenizer_from_gguf

__all__ = [
    "ByteTokenizer",
    "StoredArrays",
    "TextStream",
    "Tokenizer",
    "VocabularyTokenizer",
    "check_finite",
    "load_arrays",
    "lock",
    "open_arrays",
    "open_folder",
    "open_gguf",
    "read_json",
    "read_pickled",
    "save_arrays",
    "tokenizer_from_folder",
    "tokenizer_from_gguf",
    "write_atomically",
    "write_text",
]
