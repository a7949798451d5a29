"""LoRA from scratch in NumPy and CuPy: a real Transformer, every gradient derived by hand and proven.

    import lora_np as ln

    model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    history = ln.train(model, ln.data.Batches(ln.data.corpus("code", "train")), ln.AdamW(lr=5e-3), steps=200)

Read it from the bottom up: backend, ops, gradcheck, nn, transformer, pretrained, optim, train, peft, serve.
"""

from . import conversations, data, ledger, ops, quantization
from .fetch import fetch
from .generate import generate
from .gradcheck import GradcheckResult, gradcheck, gradcheck_model
from .nn import Context, Embedding, Linear, Module, Parameter, RMSNorm
from .optim import SGD, AdamW, WarmupCosine, clip_grad_norm
from .peft import BottleneckConfig, LoraConfig, LoraLinear, PeftModel, PrefixTuningConfig, VeraConfig, get_peft_model
from .pretrained import load_model, load_tokenizer, save_model
from .quantized_linear import QuantizedLinear, dequantize_model, quantize_model
from .serve import AdapterServer
from .train import History, evaluate, train
from .transformer import Transformer
from .transformer_config import TransformerConfig

__all__ = [
    "SGD",
    "AdamW",
    "AdapterServer",
    "BottleneckConfig",
    "Context",
    "Embedding",
    "GradcheckResult",
    "History",
    "Linear",
    "LoraConfig",
    "LoraLinear",
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
    "data",
    "dequantize_model",
    "evaluate",
    "fetch",
    "generate",
    "get_peft_model",
    "gradcheck",
    "gradcheck_model",
    "ledger",
    "load_model",
    "load_tokenizer",
    "ops",
    "quantization",
    "quantize_model",
    "save_model",
    "train",
]
