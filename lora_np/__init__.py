"""LoRA from scratch in NumPy and CuPy: a real Transformer, with every gradient derived by hand and checked.

    import lora_np as ln

    model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    history = ln.train(model, ln.data.Batches(ln.data.corpus("code", "train")), ln.AdamW(lr=5e-3), steps=200)

Reading order, from the bottom up: backend, ops, nn, gradient_check, transformer, quantization, data, pretrained,
training, peft, costs, serve.
"""

from . import current_folder  # isort: skip  # noqa: F401 (before the imports below, which import NumPy)
from . import costs, data, ops, quantization
from .data import conversations
from .gradient_check import GradcheckResult, gradcheck, gradcheck_model
from .nn import Context, Embedding, Linear, Module, Parameter, RMSNorm
from .peft import AdaptedLinear, BottleneckConfig, LoraConfig, PeftModel, PrefixTuningConfig, VeraConfig, get_peft_model
from .peft.registry import METHODS
from .pretrained import fetch, load_model, load_tokenizer, save_model
from .quantization import QuantizedLinear, dequantize_model, quantize_model
from .serve import AdapterServer
from .training import SGD, AdamW, History, WarmupCosine, clip_grad_norm, evaluate, train
from .transformer import Transformer, TransformerConfig, generate

__version__: str  # computed by __getattr__
__all__ = [
    "SGD",
    "AdamW",
    "AdaptedLinear",
    "AdapterServer",
    "BottleneckConfig",
    "Context",
    "Embedding",
    "GradcheckResult",
    "History",
    "Linear",
    "LoraConfig",
    "Module",
    "Parameter",
    "PeftModel",
    "PrefixTuningConfig",
    "QuantizedLinear",
    "RMSNorm",
    "Transformer",
    "TransformerConfig",
    "VeraConfig",
    "WarmupCosine",
    "clip_grad_norm",
    "conversations",
    "costs",
    "data",
    "dequantize_model",
    "evaluate",
    "fetch",
    "generate",
    "get_peft_model",
    "gradcheck",
    "gradcheck_model",
    "load_model",
    "load_tokenizer",
    "ops",
    "quantization",
    "quantize_model",
    "save_model",
    "train",
]

REPLACEMENTS = {  # a name of PEFT, transformers or an earlier version → its replacement here
    "AutoModelForCausalLM": "load_model(name) or Transformer.from_pretrained(name)",
    "AutoTokenizer": "load_tokenizer(name)",
    "BitsAndBytesConfig": "quantize_model(model)",
    "PeftConfig": "LoraConfig(…)",
    "TaskType": 'LoraConfig(…, task_type="CAUSAL_LM")',
    "Trainer": "train(model, batches, AdamW(lr=…), steps=…)",
    "TrainingArguments": "train(model, batches, AdamW(lr=…), steps=…)",
    "ledger": "costs",
}


def __getattr__(name: str) -> object:
    """Return `__version__`, or the configuration class called `name`. Raise AttributeError for other names."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("lora-np")
        except PackageNotFoundError:  # the source tree, not installed
            return "0+unknown"
    for method in METHODS:
        if method.config_type.__name__ == name:
            return method.config_type
    raise AttributeError(
        f"lora_np has no attribute {name}" + (f"; use {REPLACEMENTS[name]}" if name in REPLACEMENTS else "")
    )
