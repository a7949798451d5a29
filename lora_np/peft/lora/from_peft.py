"""Convert LoRA files of PEFT to the form of this library.

Each line of the table shows a form of PEFT and the corresponding form of this library:

    file of PEFT                                        here
    base_model.model.….lora_A.poet.weight               the same key without the adapter's name
    init_lora_weights="pissa" or "olora"                LoRA of rank 2r: PEFT subtracts B₀A₀ from the base when it loads the file
    trainable_token_indices, the rows of an embedding   modules_to_save: the embedding with these rows
    bias="all" for a base without biases                bias="none"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...backend import to_host
from ...quantization import Quantized4bit
from ...transformer import Transformer
from ..files import PREFIX
from ..placement import adaptable_layers, is_tied
from ..trained_copy import embedding_name, modules_to_copy
from . import pissa
from .config import LoraConfig

# Initialisations of PEFT that draw only A and B, and leave the base as it was
BASE_UNCHANGED = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# Initialisations that change the base, and why PEFT cannot repeat the change from the adapter's file
NOT_REPEATABLE = {
    "pissa_niter_": "the base was changed by random numbers, which are not in the file",
    "corda": "the base was changed with the help of sample texts, which are not in the file",
    "lora_ga": "the base was changed with the help of gradients, which are not in the file",
    "loftq": "the base was replaced by a quantised base, which is not in the file",
}
NAMED_FACTOR = re.compile(r"(?P<stem>.*\.lora_[AB])\.(?P<name>.+)(?P<rest>\.weight)")
NAMED_MAGNITUDE = re.compile(r"(?P<stem>.*\.lora_magnitude_vector)\.(?P<name>.+?)(\.weight)?(?P<rest>)")
NAMED_MODULE = re.compile(r"(?P<stem>.*)\.modules_to_save\.(?P<name>[^.]+)(?P<rest>\.weight)")
LONGEST_KEY = 500  # characters
TRAINING_ONLY = re.compile(r"\.lora_(velora_embed$|monteclora_sampler\.)")  # tensors that PEFT uses only in training
TOKENS = ".token_adapter.trainable_tokens_delta"


def convert(
    settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray], model: Transformer
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the settings and the tensors of a file in the forms that this library uses.

    Raises ValueError if the file needs a base that is not in the file.
    """
    made, found = dict(settings), without_adapter_name(arrays)
    if made.get("velora_config") or made.get("monteclora_config"):
        found = {key: x for key, x in found.items() if not TRAINING_ONLY.search(key)}
    if made.get("bias") in ("all", "lora_only"):
        if biases := [key for key in found if key.endswith(".bias") and ".lora_" not in key]:
            raise ValueError(
                f"bias is {made['bias']!r} and the file contains {biases[0]}; trained biases are not supported"
            )
        made["bias"] = "none"
    if made.pop("trainable_token_indices", None) is not None:
        made, found = with_trained_rows(made, found, settings["trainable_token_indices"], model)
    if any(".lora_embedding_A" in key for key in found):
        made, found = with_adapted_embedding(made, found, model)
    if made.pop("ensure_weight_tying", False):
        made, found = with_tied_copies(made, found, model)
    init = made.get("init_lora_weights")
    for name, reason in NOT_REPEATABLE.items():
        if isinstance(init, str) and init.startswith(name):
            raise ValueError(
                f"init_lora_weights is {init!r}: {reason}. Save the adapter again in PEFT with "
                "save_pretrained(path_initial_model_for_weight_conversion=…), or merge it in PEFT"
            )
    if init in ("pissa", "olora"):
        return with_initial_factors(made | {"init_lora_weights": True}, found, init, model)
    return made | ({"init_lora_weights": True} if init in BASE_UNCHANGED[3:] else {}), found


def without_adapter_name(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays without the adapter's name in their keys, if all keys contain the same name.

    The keys of a state_dict of PEFT contain this name. A state_dict also contains the unchanged weights of the modules
    in `modules_to_save`; these weights are left out.
    """
    named = (NAMED_FACTOR, NAMED_MAGNITUDE, NAMED_MODULE)
    short = [key for key in arrays if len(key) < LONGEST_KEY]  # the regular expression is slow for a long key
    matches = dict.fromkeys(arrays) | {
        key: next(filter(None, (pattern.fullmatch(key) for pattern in named)), None) for key in short
    }
    unnamed = [key for key, match in matches.items() if match is None and ".lora_" in key]
    names = {match["name"] for match in matches.values() if match is not None}
    if unnamed or len(names) != 1:
        return dict(arrays)
    kept = {key: x for key, x in arrays.items() if ".original_module." not in key}
    return {(match["stem"] + match["rest"] if (match := matches[key]) else key): x for key, x in kept.items()}


def with_trained_rows(
    settings: dict[str, Any], arrays: dict[str, np.ndarray], indices: Any, model: Transformer
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Replace the trained rows of an embedding by the whole embedding.

    As in PEFT, a tied head without its own trained rows gets the rows of the embedding.
    """
    embedding = embedding_name(model)
    rows_of = indices if isinstance(indices, dict) else {embedding: indices}
    saved = copied_modules(settings)
    tied = is_tied(model, embedding) and f"{PREFIX}lm_head{TOKENS}" not in arrays
    for key in [key for key in arrays if key.endswith(TOKENS)]:
        delta, path = arrays.pop(key), key.removeprefix(PREFIX).removesuffix(TOKENS)
        rows = next((rows for name, rows in rows_of.items() if path.endswith(name)), None)
        module = modules_to_copy(model, (path,)).get(path)
        if module is None or rows is None:
            raise ValueError(f"unexpected tensor {key}; trainable_token_indices is {indices!r}")
        W = to_host(module.weight.value).copy()
        if delta.shape != (len(rows), W.shape[1]) or not all(type(i) is int and 0 <= i < len(W) for i in rows):
            raise ValueError(
                f"{key} has shape {delta.shape} for the tokens {rows}; expected one row of {W.shape[1]} numbers for each "
                f"token, and tokens below {len(W)}"
            )
        W = W.astype(np.result_type(W, delta))
        W[rows] = delta
        for name in ("lm_head", embedding) if path == embedding and tied else (path,):
            arrays[f"{PREFIX}{name}.weight"] = W
            saved.append(name)
    return settings | {"modules_to_save": saved}, arrays


def with_adapted_embedding(
    settings: dict[str, Any], arrays: dict[str, np.ndarray], model: Transformer
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Replace the LoRA of the embedding E (v, d) by the whole embedding, E + s·(B A)ᵀ, with A (r, v) and B (d, r)."""
    embedding = embedding_name(model)
    config = plain_config(settings).for_layer(embedding)
    A, B = (arrays.pop(f"{PREFIX}{embedding}.lora_embedding_{factor}", np.empty(0)) for factor in "AB")
    if others := [key for key in arrays if ".lora_embedding_" in key]:
        raise ValueError(f"unexpected tensor {others[0]}; among the embeddings, only {embedding} can have a LoRA")
    E = to_host(model.model.embed_tokens.weight.value)
    if A.shape != (config.r, len(E)) or B.shape != (E.shape[1], config.r) or config.use_dora:
        raise ValueError(
            f"the LoRA of {embedding} has the shapes {A.shape} and {B.shape}; expected {(config.r, len(E))} and "
            f"{(E.shape[1], config.r)}, without DoRA"
        )
    arrays[f"{PREFIX}{embedding}.weight"] = E + config.scaling * (B @ A).T
    return settings | {"modules_to_save": [*copied_modules(settings), embedding]}, arrays


def copied_modules(settings: Mapping[str, Any]) -> list[str]:
    """Return `modules_to_save` of a file as a list. Raises TypeError if the value is not a list."""
    saved = settings.get("modules_to_save") or []
    if not isinstance(saved, list):
        raise TypeError(f"modules_to_save = {saved!r}; expected a list of module names")
    return saved


def plain_config(settings: Mapping[str, Any]) -> LoraConfig:
    """Return a LoraConfig with all settings of a file that are fields of LoraConfig, except `modules_to_save`."""
    known = {key: settings[key] for key in LoraConfig.__dataclass_fields__ if settings.get(key) is not None}
    return LoraConfig(
        **{**known, "inference_mode": False, "fan_in_fan_out": False, "modules_to_save": None, "task_type": None}
    )


def with_tied_copies(
    settings: dict[str, Any], arrays: dict[str, np.ndarray], model: Transformer
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Copy the trained embedding to a tied head, or the trained head to the embedding: `ensure_weight_tying` of PEFT.

    PEFT recognises an embedding by the name `embed_tokens`, so PEFT does not copy a trained `wte` to the head of GPT-2.
    """
    tied = embedding_name(model), "lm_head"
    keys = [f"{PREFIX}{name}.weight" for name in tied]
    weights = [arrays[key] for key in keys if key in arrays]
    known = tuple(f"{PREFIX}{name}." for name in tied if name.endswith(("embed_tokens", "lm_head")))
    if not any(key.startswith(known) for key in arrays):
        return settings, arrays
    if not (is_tied(model, "lm_head") and weights and copied_modules(settings)):
        return settings, arrays
    saved = [*copied_modules(settings), *tied]
    others = {
        key: x for key, x in arrays.items() if not key.startswith(f"{PREFIX}lm_head.lora_")
    }  # a tied LoRA of the head
    return settings | {"modules_to_save": saved}, {**dict.fromkeys(keys, weights[0]), **others}


def with_initial_factors(
    settings: dict[str, Any], arrays: dict[str, np.ndarray], init: str, model: Transformer
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return a LoRA of rank 2r for the original base, with the same outputs as the file's adapter in PEFT.

    When PEFT loads the file, it subtracts s·B₀A₀ from each weight W. For PiSSA, this product is the principal part of
    W. For OLoRA, this product is Q_r R_r of the QR decomposition W = Q R. So ΔW = s·(B A − B₀A₀) = s·[B, −B₀] [A; A₀].
    """
    config, found = plain_config(settings), dict(arrays)
    for name, base in adaptable_layers(model).items():
        keys = [f"{PREFIX}{name}.lora_{factor}.weight" for factor in "AB"]
        if not all(key in arrays for key in keys):
            continue  # not a targeted layer; the check of the file names a missing tensor
        own = config.for_layer(name)
        if isinstance(base.weight.value, Quantized4bit) or own.r > min(base.out_features, base.in_features):
            raise ValueError(
                f"init_lora_weights is {init!r}: PEFT changes the weight of {name} when it loads this adapter. The weight must "
                f"be unquantised and have at least r = {own.r} rows and columns"
            )
        W = to_host(base.weight.value).astype(np.float64)
        A0, B0 = principal_factors(W, own.r, own.scaling) if init == "pissa" else first_factors(W, own.r)
        A, B = (arrays[key] for key in keys)
        if A.shape != A0.shape or B.shape != B0.shape:
            raise ValueError(f"{keys[0]} has shape {A.shape} and {keys[1]} has shape {B.shape}; expected rank {own.r}")
        found[keys[0]], found[keys[1]] = np.concatenate([A, A0]), np.concatenate([B, -B0], axis=1)
    doubled = pissa.converted_config(replace(config, base_model_name_or_path=None))
    changed = {key: getattr(doubled, key) for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern")}
    return settings | changed, found


def principal_factors(W: np.ndarray, r: int, scaling: float) -> tuple[np.ndarray, np.ndarray]:
    """Return A₀ (r, in) and B₀ (out, r) whose product s·B₀A₀ is the principal part of W (out, in), as in PiSSA.

    The left singular vectors of W are the eigenvectors of W Wᵀ, and the right singular vectors are the eigenvectors of
    Wᵀ W. Computing the eigenvectors takes less time than an SVD. With U_r from W Wᵀ, the principal part is U_r U_rᵀ W;
    with V_r from Wᵀ W, it is W V_r V_rᵀ.
    """
    wide = W.shape[0] <= W.shape[1]
    _, vectors = np.linalg.eigh(W @ W.T if wide else W.T @ W)  # in ascending order
    P = vectors[:, -r:]
    A0, B0 = (P.T @ W, P) if wide else (P.T, W @ P)
    return A0, B0 / scaling


def first_factors(W: np.ndarray, r: int) -> tuple[np.ndarray, np.ndarray]:
    """Return R_r (r, in) and Q_r (out, r) of the QR decomposition W = Q R, as in OLoRA.

    Q_r is the factor Q of the first r columns of W, and R_r = Q_rᵀ W.
    """
    Q, _ = np.linalg.qr(W[:, :r])
    return Q.T @ W, Q
