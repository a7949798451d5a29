"""Load and save models: Hugging Face folders, GGUF files and 4-bit weights of bitsandbytes. Download a model."""

from .download import fetch, fetched
from .models import load_model, load_tokenizer, save_model

__all__ = ["fetch", "fetched", "load_model", "load_tokenizer", "save_model"]
