"""The model: a decoder, its configuration, its key/value cache, and text generation.

`config`, `cache`, `decoder` and `model` describe Llama. `families` lists the differences of the other families. `fused`
(Phi-3), `gemma` and `gpt2` contain the classes of these families, and `build` chooses the classes for a model.

Reading order: families, config, cache, decoder, fused, gemma, gpt2, build, model, generation.
"""

from .cache import KeyValueCache
from .config import TransformerConfig
from .generation import generate
from .model import Transformer

__all__ = ["KeyValueCache", "Transformer", "TransformerConfig", "generate"]
