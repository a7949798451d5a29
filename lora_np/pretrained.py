"""From files to a Transformer and back: a folder with config.json and model.safetensors, as Hugging Face lays it out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .backend import device_module, to_host
from .files import load_arrays, save_arrays, write_atomically
from .transformer import Transformer, TransformerConfig

EMBEDDED = Path(__file__).parent / "assets"  # the models that come with the package: "tiny"


def load_model(name: str | os.PathLike[str], dtype: Any = np.float32, device: str = "auto") -> Transformer:
    """The model `name`: "tiny", the base that comes with the package, or the path of a folder that `save_model` wrote.

    Every parameter starts trainable: `train` it as it is for full fine-tuning, or give it to `get_peft_model`.
    `device` is "cupy", "numpy", or "auto": the GPU when one answers, unless LORA_NP_DEVICE says otherwise.

    Raises FileNotFoundError naming what exists, ValueError for a damaged file or another architecture, KeyError for
    weights that do not fit the configuration, RuntimeError where cupy was asked for and no GPU answers.
    """
    device_module(device)  # raises before anything is read
    folder = EMBEDDED / name if (EMBEDDED / name / "config.json").is_file() else Path(name)
    if not (folder / "config.json").is_file():
        embedded = sorted(p.parent.name for p in EMBEDDED.glob("*/config.json"))
        raise FileNotFoundError(
            f"no model {str(name)!r}: the package has {embedded}, and {folder / 'config.json'} is not there"
        )
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("expected a JSON object")
        config = TransformerConfig.from_dict(settings)
    except ValueError as error:  # no text, no JSON, another architecture, a size that is missing or impossible
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    arrays, _ = load_arrays(folder / "model.safetensors")
    return Transformer.empty(config, dtype).load_state_dict(arrays).to(device)


def save_model(model: Transformer, folder: str | os.PathLike[str]) -> None:
    """Write config.json and model.safetensors, each whole or not at all. Raises TypeError for a model with adapters."""
    if not isinstance(model, Transformer):
        raise TypeError(
            f"save_model takes a Transformer, got {type(model).__name__}; merge_and_unload() an adapter first"
        )
    arrays = {name: to_host(x) for name, x in model.state_dict().items()}
    save_arrays(Path(folder) / "model.safetensors", arrays, {"format": "pt"})
    text = json.dumps(model.config.to_dict(), indent=2) + "\n"
    write_atomically(Path(folder) / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
