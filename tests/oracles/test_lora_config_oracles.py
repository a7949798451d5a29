"""Every field of PEFT's LoraConfig: a file with another value than the default loads here with PEFT's logits, or is refused
with a reason that PEFT proves.

A refusal is proven in one of two ways. If the setting changes the output: PEFT itself gives other logits, or cannot load the
file, when the setting is removed from the file. If the file is incomplete: PEFT itself gives other logits, or an error,
when it loads the file again.
"""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from oracle_adapters import logits_of
from oracle_models import SHAPES, base_pair, peft, torch

import lora_np as ln

safetensors_torch = pytest.importorskip("safetensors.torch")
variants = pytest.importorskip("peft.tuners.lora.config")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:unknown settings"),
]

Q_V = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
CHANGES, INCOMPLETE = "lora_np does not support", "is not in the file|are not in the file"


@dataclasses.dataclass(frozen=True)
class Case:
    """A value that PEFT saves, or that is written into PEFT's file (`edited`), and the reason of a refusal."""

    value: Any
    refused: str | None = None
    others: dict[str, Any] = dataclasses.field(default_factory=dict)
    edited: bool = False
    shapes: tuple[str, ...] = ("untied",)


BOTH = ("untied", "tied")
REGEX = r".*\.1\..*\.(q_proj|up_proj)$"
JUDGED = {
    "task_type": [Case("FEATURE_EXTRACTION")],
    "peft_type": [Case("LOHA", r"peft_type is 'LOHA'; expected 'LORA'", edited=True)],
    "auto_mapping": [Case({"base_model_class": "LlamaForCausalLM"}, edited=True)],
    "peft_version": [Case("0.7.0", edited=True), Case("99.0.0", edited=True)],
    "base_model_name_or_path": [Case("you/model", edited=True)],
    "revision": [Case("main", edited=True)],
    "inference_mode": [Case(True)],
    "r": [Case(5)],
    "target_modules": [
        Case(REGEX),
        Case("all-linear"),
        Case(["lm_head", "o_proj"], shapes=BOTH),
        Case(["embed_tokens", "o_proj"], others={"rank_pattern": {"embed_tokens": 3}, "use_rslora": True}, shapes=BOTH),
    ],
    "exclude_modules": [Case(["layers.0.self_attn.q_proj"]), Case(r".*layers\.1\..*v_proj")],
    "lora_alpha": [Case(3)],
    "lora_dropout": [Case(0.25)],
    "fan_in_fan_out": [Case(True)],
    "bias": [Case("all"), Case("lora_only")],
    "use_rslora": [Case(True)],
    "modules_to_save": [
        *(Case([name], shapes=BOTH) for name in ("lm_head", "embed_tokens", "norm", "o_proj", "1.input_layernorm")),
        Case(["embed_tokens", "lm_head"], shapes=BOTH),
        Case(["lm_head"], others={"target_modules": ["lm_head", "q_proj"]}),
        Case(["mlp"], r"modules_to_save selects model\.layers\.0\.mlp, a MLP; only lm_head, embed_tokens"),
    ],
    "init_lora_weights": [
        *(Case(value) for value in (False, "gaussian", "eva", "orthogonal", "mica")),
        *(Case(value, shapes=BOTH) for value in ("pissa", "olora")),
        Case("pissa", others={"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5}, "use_rslora": True}),
        *(Case(value, INCOMPLETE) for value in ("pissa_niter_3", "corda", "lora_ga", "loftq")),
    ],
    "layers_to_transform": [
        Case([1]),
        Case(0),
        Case([0], others={"target_modules": ["model.layers.1.mlp.up_proj", "q_proj"]}),
    ],
    "layers_pattern": [
        Case("layers", others={"layers_to_transform": [1]}),
        Case(["h", "layers"], others={"layers_to_transform": 0}),
    ],
    "rank_pattern": [Case({"v_proj": 4, r"^model\.layers\.(0|1)\..*q_proj": 3})],
    "alpha_pattern": [Case({"v_proj": 4, r"(0|1)\.self_attn\.q.*": 3})],
    "megatron_config": [Case({"hidden_size": 24}, CHANGES, edited=True)],
    "megatron_core": [Case("my.megatron")],
    "trainable_token_indices": [
        Case([1, 5], shapes=BOTH),
        Case({"embed_tokens": [0, 36]}, shapes=BOTH),
        Case({"lm_head": [3, 2]}, shapes=BOTH),
    ],
    "loftq_config": [Case({"loftq_bits": 4}, edited=True)],
    "eva_config": [Case(peft.EvaConfig(rho=3.0), others={"init_lora_weights": "eva"})],
    "corda_config": [Case(variants.CordaConfig())],
    "lora_ga_config": [Case(variants.LoraGAConfig())],
    "use_dora": [Case(True)],
    "velora_config": [Case(variants.VeloraConfig())],
    "alora_invocation_tokens": [Case([1, 2], CHANGES)],
    "use_qalora": [Case(True)],
    "qalora_group_size": [Case(8)],
    "monteclora_config": [Case(variants.MontecloraConfig())],
    "layer_replication": [Case([(0, 2), (1, 2)], CHANGES)],
    "runtime_config": [Case(peft.LoraRuntimeConfig(ephemeral_gpu_offload=True))],
    "lora_bias": [Case(True, CHANGES)],
    "target_parameters": [Case(["k_proj.weight"], CHANGES)],
    "use_bdlora": [Case(variants.BdLoraConfig(target_modules_bd_a=["q_proj", "v_proj"], nblocks=2), CHANGES)],
    "arrow_config": [Case({"top_k": 2}, CHANGES, edited=True)],
    "kasa_config": [Case(variants.KasaConfig(), CHANGES)],
    "ensure_weight_tying": [
        *(Case(True, others={"modules_to_save": [name]}, shapes=BOTH) for name in ("embed_tokens", "lm_head")),
        Case(True, others={"target_modules": ["embed_tokens", "q_proj"]}, shapes=BOTH),
        Case(True, others={"trainable_token_indices": [1, 5]}, shapes=BOTH),
        Case(True),
    ],
}
CASES = {
    f"{name} = {json.dumps(case.value, default=lambda x: type(x).__name__)}, {shape}, {i}": (name, case, shape)
    for name, cases in JUDGED.items()
    for i, case in enumerate(cases)
    for shape in case.shapes
}


def test_every_field_of_pefts_lora_config_is_judged():
    """A new version of PEFT with a new field fails here, until a person adds the field to the table."""
    assert {field.name for field in dataclasses.fields(peft.LoraConfig)} == set(JUDGED)


def fill_all(model, seed=5):
    """Random numbers in everything that PEFT trains, so that a part that is not loaded changes the logits."""
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        if any(part in name for part in (".lora_", "modules_to_save.", "trainable_tokens_delta.")):
            p.data.copy_(torch.from_numpy(rng.standard_normal(tuple(p.shape)) / 3))
    return model


def prepared(theirs, init):
    """Give the base what PEFT's initialisations "corda" and "lora_ga" need: eigenvectors and gradients of sample texts."""
    generator = torch.Generator().manual_seed(0)
    for name, module in theirs.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            out, in_ = module.weight.shape
            U, S, V = (torch.rand(shape, generator=generator) for shape in ((out, 2), (2,), (in_, 2)))
            if init == "corda":
                module.eigens = SimpleNamespace(U_WC=U, S_WC=S, V_WC=V)
            elif init == "lora_ga":
                module._peft_loraga_grad = torch.randn(out, in_, generator=generator)
    return theirs


def saved_by_peft(name, case, shape, folder):
    """Save an adapter with PEFT, and return its logits; None if PEFT itself cannot have this setting here."""
    theirs = base_pair(SHAPES[shape], np.float32)[1]
    settings = {"task_type": "CAUSAL_LM"} | Q_V | case.others | ({} if case.edited else {name: case.value})
    if case.value == "lora_ga":
        settings["lora_ga_config"] = variants.LoraGAConfig(direction="ArBr")
    adapted = fill_all(peft.get_peft_model(prepared(theirs, case.value), peft.LoraConfig(**settings)))
    adapted.save_pretrained(str(folder))
    if case.edited:
        edit(folder, **{name: case.value})
    return logits_of(adapted)


def edit(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def loaded_by_peft(shape, folder):
    """The logits of PEFT's model after loading the folder, or the error."""
    try:
        return logits_of(peft.PeftModel.from_pretrained(base_pair(SHAPES[shape], np.float32)[1], str(folder)))
    except Exception as error:
        return error


@pytest.mark.parametrize("what", CASES)
def test_a_field_of_peft_is_loaded_with_pefts_logits_or_refused_with_a_reason_that_peft_proves(what, tmp_path):
    name, case, shape = CASES[what]
    if case.value == "loftq":
        pytest.importorskip("scipy", reason="PEFT needs scipy for LoftQ")
    theirs = saved_by_peft(name, case, shape, tmp_path)
    ours, _ = base_pair(SHAPES[shape], np.float32)
    if case.refused is None:
        base = logits_of(ours)
        ours = ln.PeftModel.from_pretrained(ours, tmp_path)
        again = loaded_by_peft(shape, tmp_path)
        assert np.abs(again - theirs).max() <= 1e-5, "PEFT loads another model than it saved"
        assert np.abs(logits_of(ours) - again).max() <= 1e-4
        assert np.abs(logits_of(ours) - base).max() > 0.01, "the adapter does nothing, so this proves nothing"
        return
    with pytest.raises(ValueError, match=case.refused):
        ln.PeftModel.from_pretrained(ours, tmp_path)
    if case.refused == CHANGES:
        edit(tmp_path, **{name: None})  # PEFT without the setting
        if case.edited:
            theirs = loaded_with(name, case, shape, tmp_path)
    again = loaded_by_peft(shape, tmp_path)
    if case.refused in (CHANGES, INCOMPLETE):
        different = isinstance(theirs, Exception) or isinstance(again, Exception) or theirs.shape != again.shape
        assert different or np.abs(again - theirs).max() > 1e-3, "the reason is false: PEFT gives the same logits"


def loaded_with(name, case, shape, folder):
    """What PEFT does with the setting in the file."""
    edit(folder, **{name: case.value})
    found = loaded_by_peft(shape, folder)
    edit(folder, **{name: None})
    return found
