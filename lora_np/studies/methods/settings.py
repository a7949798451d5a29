"""The settings of the compared methods. Tables and pictures use the same names.

All methods with a ΔW use the same rank and the same layers as LoRA, so that only the method differs. Houlsby's two
adapters per block have the width m at which they train about 3 % of the parameters, as in the lesson. Pfeiffer's
adapter has the same width m.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from ... import AdamW, LoraConfig, PeftModel, Transformer, get_peft_model, quantize_model
from ...costs import houlsby_parameters
from ...peft import BottleneckConfig, PrefixTuningConfig, VeraConfig

R, VIRTUAL_TOKENS, HOULSBY_SHARE, LORA_PLUS = 8, 20, 0.03, {"lora_B": 16.0}


@dataclass(frozen=True)
class Method:
    """How a method prepares a base for training.

    `config` is the adapter's configuration; None trains all weights. `quant_type` is the code to which the base's
    linear layers are quantised first. `lr_ratio` is passed to `AdamW`.
    """

    label: str
    config: Any = None
    quant_type: str | None = None
    lr_ratio: Mapping[str, float] = field(default_factory=dict)

    def model(self, base: Transformer, seed: int) -> Transformer | PeftModel:
        """Return `base`, prepared in place: all weights are trainable, or `base` is frozen and has a new adapter."""
        if self.config is None:
            return base
        if self.quant_type:
            base = quantize_model(base, self.quant_type)
        config = self.config
        if isinstance(config, BottleneckConfig):
            config = BottleneckConfig(bottleneck_size=bottleneck_size(base), placement=config.placement)
        return get_peft_model(base, config, seed=seed)

    def optimizer(self, lr: float) -> AdamW:
        """Return AdamW without weight decay."""
        return AdamW(lr=lr, weight_decay=0.0, lr_ratio=self.lr_ratio)

    def how(self) -> str:
        """Return the settings that differ from their defaults as one line of JSON.

        This line identifies a finished run.
        """
        chosen = {"quant_type": self.quant_type, "lr_ratio": dict(self.lr_ratio)}
        if self.config is not None:
            given = {f.name: getattr(self.config, f.name) for f in fields(self.config)}
            usual = {f.name: f.default for f in fields(self.config) if f.default is not MISSING}
            chosen |= {k: v for k, v in given.items() if v != usual.get(k, type(v)())}
            chosen["is"] = type(self.config).__name__
        return json.dumps({k: v for k, v in chosen.items() if v}, sort_keys=True)


def lora(alpha_over_r: float, **options: Any) -> LoraConfig:
    """Return the configuration of LoRA with rank R in all linear layers and α = alpha_over_r·R."""
    return LoraConfig(r=R, lora_alpha=alpha_over_r * R, target_modules="all-linear", **options)


def methods(alpha_over_r: float = 8) -> dict[str, Method]:
    """Return the methods by name: first full fine-tuning, LoRA and LoRA's variants, then the methods without a ΔW."""
    s = alpha_over_r
    return {
        "full": Method("full fine-tuning"),
        "lora": Method("LoRA", lora(s)),
        "qlora": Method("QLoRA", lora(s), quant_type="nf4"),
        "rslora": Method("rsLoRA", lora(s, use_rslora=True)),
        "dora": Method("DoRA", lora(s, use_dora=True)),
        "pissa": Method("PiSSA", lora(s, init_lora_weights="pissa")),
        "lora-fa": Method("LoRA-FA", lora(s, freeze_A=True)),
        "lora+": Method("LoRA+", lora(s), lr_ratio=LORA_PLUS),
        "vera": Method("VeRA", VeraConfig(target_modules="all-linear")),
        "prefix": Method("prefix tuning", PrefixTuningConfig(num_virtual_tokens=VIRTUAL_TOKENS)),
        "prefix-mlp": Method(
            "prefix with MLP", PrefixTuningConfig(num_virtual_tokens=VIRTUAL_TOKENS, prefix_projection=True)
        ),
        "houlsby": Method("Houlsby adapters", BottleneckConfig()),
        "pfeiffer": Method("Pfeiffer adapters", BottleneckConfig(placement="pfeiffer")),
    }


METHODS = methods()


def bottleneck_size(base: Transformer, share: float = HOULSBY_SHARE) -> int:
    """Return the width m at which two adapters per block train about `share` of the base's parameters.

    Each adapter has 2md + d + m parameters, where d is the width of the model.
    """
    wanted, d = share * sum(p.value.size for _, p in base.named_parameters()), base.config.hidden_size
    places = 2 * base.config.num_hidden_layers
    return min(range(1, d + 1), key=lambda m: abs(places * houlsby_parameters(d, m) - wanted))
