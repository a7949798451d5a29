"""The model: a Llama decoder, its configuration, its key/value cache, and text generation.

Reading order: config, cache, decoder, model, generation.
"""

from .cache import KeyValueCache
from .config import TransformerConfig
from .generation import generate
from .model import Transformer

__all__ = ["KeyValueCache", "Transformer", "TransformerConfig", "generate"]
