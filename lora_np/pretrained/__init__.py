"""Models on disk: Hugging Face folders, GGUF files, bitsandbytes' 4-bit weights, and the one model that can be fetched."""

from .download import fetch, fetched
from .models import load_model, load_tokenizer, save_model

__all__ = ["fetch", "fetched", "load_model", "load_tokenizer", "save_model"]
