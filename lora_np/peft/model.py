"""PeftModel: a frozen base with adapters in it, and the calls that add, choose, train, save and switch them off."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from .. import ops
from ..backend import Array
from ..nn import BASE, RAN_FROZEN, Context, Parameter, check_names
from ..transformer import KeyValueCache, Transformer, TransformerConfig
from ..transformer.model import LogitsCache, LossCache
from . import merging
from .adapter import AdaptedLinear
from .combination import Combination, MergeReport, check_combinable, combine_adapters
from .config import PeftConfig, storage_dtype
from .files import CONFIG, PREFIX, WEIGHTS, name_file_in_errors, read_adapter, write_adapter
from .lora.config import LoraConfig
from .lora.layer import LoraAdapter
from .lora.method import LoraMethod
from .method import AdapterHost
from .mixed import AdapterRows
from .placement import adapted_layers, remove
from .prefix import PrefixEncoder, PrefixEncoderCache, check_prefix_of_past, extend_mask_over_prefix
from .registry import method_named, method_of

FACTORS = ("lora_A", "lora_B", "lora_magnitude_vector")  # parameters that PEFT calls ….<adapter>.weight
Folder = str | os.PathLike[str]
# A prefix's encoder with its own cache, and the past that it began: what its gradient needs
PrefixCall: TypeAlias = tuple[PrefixEncoder, PrefixEncoderCache | None, KeyValueCache]
PeftLogitsCache: TypeAlias = tuple[LogitsCache, PrefixCall | None]
PeftLossCache: TypeAlias = tuple[LossCache, PrefixCall | None]


def get_peft_model(
    model: Transformer,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    seed: int = 0,
    adapter_dtype: DTypeLike | None = None,
) -> PeftModel:
    """Freeze `model`, add an adapter, and return the PeftModel that trains it. The class of `peft_config` chooses the method.

    The model is changed in place, as in PEFT, and shares its weights with the PeftModel. Called directly it still
    answers as the base alone; call the PeftModel for the adapter. `seed` draws the adapter's numbers.

    `adapter_dtype` is what adapters are stored in: None, the base's dtype; or "float16" or "bfloat16", half of float32 in
    memory and on disk. They are then widened to float32 for each product, gradients are float32, and while the adapter
    trains the optimizer keeps a float32 copy, which it updates and rounds into it.

    Raises ValueError for a target module that is not there (the message lists those that are), TypeError for a model or
    config of another kind or an `adapter_dtype` that does not go with the base's, before anything is changed.
    """
    peft_model = PeftModel(model, adapter_dtype)
    peft_model.add_adapter(adapter_name, peft_config, seed)
    model.freeze()
    peft_model.set_adapter(adapter_name)
    return peft_model


class PeftModel(AdapterHost):
    """The base and its adapters as one model, with the Transformer's own calls: forward, loss, backward, named_parameters.

    `peft_config[name]` is the configuration of an adapter. `active_adapter` is the name of the adapter that calls use, or
    None. Adapters can differ in method, size and layers. `get_peft_model` makes a PeftModel with a new adapter,
    `from_pretrained` with a saved adapter. `adapter_dtype` is the storage dtype of all adapters; None means the base's
    dtype.
    """

    prompt_encoder: dict[str, PrefixEncoder]

    def __init__(self, model: Transformer, adapter_dtype: DTypeLike | None = None) -> None:
        if not isinstance(model, Transformer):
            raise TypeError(f"expected a Transformer without adapters, got {type(model).__name__}")
        if adapted_layers(model):
            raise ValueError(
                "this model carries an adapter already: give its PeftModel another one with add_adapter or load_adapter, "
                "or merge_and_unload() it first"
            )
        base = model.model.norm.weight.value.dtype
        super().__init__(model, None if adapter_dtype is None else storage_dtype(adapter_dtype, base))
        self.active_adapter: str | None = None
        self.disabled = False  # inside disable_adapter

    @classmethod
    def from_pretrained(
        cls,
        model: Transformer,
        model_id: Folder,
        adapter_name: str = "default",
        is_trainable: bool = False,
        adapter_dtype: DTypeLike | None = None,
    ) -> PeftModel:
        """`model`, frozen, with the adapter in the folder `model_id`, written here or by PEFT: active, and trainable if asked.

        The model is changed in place. Raises as `get_peft_model` and `load_adapter` do, before anything is changed.
        """
        peft_model = cls(model, adapter_dtype)
        peft_model.load_adapter(model_id, adapter_name)
        model.freeze()
        peft_model.set_adapter(adapter_name, inference_mode=not is_trainable)
        return peft_model

    @property
    def config(self) -> TransformerConfig:
        """The base's TransformerConfig."""
        return self.model.config

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Under PEFT's names: base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight, …"""
        for name, p in self.model.named_parameters():
            suffix = ".weight" if name.split(".")[-2] in FACTORS else ""
            yield PREFIX + name + suffix, p
        for adapter_name, encoder in self.prompt_encoder.items():
            for name, p in encoder.named_parameters():
                yield f"prompt_encoder.{adapter_name}.{name}", p

    def unfreeze(self) -> Self:
        """Raise RuntimeError: it would let what its method froze train too, VeRA's A or LoRA-FA's, which has no gradient."""
        raise RuntimeError(
            "unfreeze() would train what the method keeps frozen: set_adapter(name) trains an adapter; for full fine-tuning "
            "merge_and_unload() first, then unfreeze() the model that it returns"
        )

    def forward(
        self,
        tokens: Array,
        rng: np.random.Generator | None = None,
        past_key_values: KeyValueCache | None = None,
        attention_mask: Array | None = None,
        adapter_names: Sequence[str] | None = None,
    ) -> tuple[Array, PeftLogitsCache]:
        """tokens (b, t) → logits (b, t, v), with the active adapter; arguments and gradients are those of `Transformer.forward`.

        A prefix begins the past, and an `attention_mask` does not cover it. `adapter_names`, one a row, is a mixed batch: see
        `adapter_rows`. Raises ValueError for a past that was begun with another prefix, or with none.
        """
        adapter = self.adapter_rows(adapter_names, len(tokens))
        past, begun = self._start_prefix(past_key_values, len(tokens), adapter)
        if begun is not None and attention_mask is not None:
            encoder, _, past = begun
            v = len(encoder.embedding.weight.value)
            attention_mask = extend_mask_over_prefix(attention_mask, v, len(tokens), len(past) - v + tokens.shape[-1])
        context = Context(rng, adapter, attention_mask)
        logits, cache = self.model.forward(tokens, past_key_values=past, context=context)
        return logits, (cache, begun)

    def loss(
        self,
        tokens: Array,
        targets: Array,
        rng: np.random.Generator | None = None,
        ignore_index: int = ops.IGNORE_INDEX,
        adapter_names: Sequence[str] | None = None,
    ) -> tuple[Array, PeftLossCache]:
        """Mean cross-entropy in nats a token, with the active adapter or a mixed batch. `rng` turns dropout on."""
        adapter = self.adapter_rows(adapter_names, len(tokens))
        past, begun = self._start_prefix(None, len(tokens), adapter)
        context = Context(rng, adapter)
        loss, cache = self.model.loss(tokens, targets, ignore_index=ignore_index, context=context, past_key_values=past)
        return loss, (cache, begun)

    def backward(self, cache: PeftLossCache, dloss: float = 1.0) -> None:
        """Adds the gradients of the active adapter. Raises RuntimeError while merged: no bypass is in the forward then."""
        self._refuse_merged()
        model_cache, begun = cache
        self.model.backward(model_cache, dloss)
        self._backward_prefix(begun)

    def backward_from_logits(self, dlogits: Array, cache: PeftLogitsCache) -> None:
        """From `forward`'s cache and dlogits (b, t, v), for a loss of your own. Raises as `backward` does."""
        self._refuse_merged()
        model_cache, begun = cache
        self.model.backward_from_logits(dlogits, model_cache)
        self._backward_prefix(begun)

    def new_cache(self, rows: int, adapter: str | AdapterRows | None) -> KeyValueCache:
        """What `generate` starts from: an empty cache, or one that begins with the adapter's prefix in each of `rows` rows."""
        past = KeyValueCache(self.config)
        self._start_prefix(past, rows, adapter)
        return past

    def _start_prefix(
        self, past: KeyValueCache | None, rows: int, adapter: str | AdapterRows | None
    ) -> tuple[KeyValueCache | None, PrefixCall | None]:
        """The call's past, begun with the adapter's prefix if it has one; and what `_end` needs for its gradient.

        Raises as `check_prefix_of_past` does.
        """
        if not isinstance(adapter, str) or (encoder := self.prompt_encoder.get(adapter)) is None:
            check_prefix_of_past(past, None)
            return past, None
        named = adapter, encoder
        check_prefix_of_past(past, named)
        past = KeyValueCache(self.config) if past is None else past
        prefix, encoder_cache = encoder.forward(self.model.model.norm.weight.value.dtype)
        if not len(past):
            past.begin(prefix, rows, encoder.trainable, named)
        return past, (encoder, encoder_cache, past)

    def _backward_prefix(self, begun: PrefixCall | None) -> None:
        """The gradient of the prefix: what came back to the past, through the encoder."""
        if begun is not None:
            encoder, encoder_cache, past = begun
            if encoder.trainable:
                if not past.trainable:
                    raise RuntimeError(RAN_FROZEN)
                encoder.backward(past.take_grad(), encoder_cache)

    def _refuse_merged(self) -> None:
        if self.merged:
            raise RuntimeError("the adapter is merged into the weights: unmerge_adapter() before training it")

    # ------------------------------------------------------------------------------------------------ several adapters

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, seed: int = 0) -> None:
        """Put a new adapter beside those that are there, frozen until `set_adapter` chooses it. `seed` draws its numbers.

        Two adapters of one seed and one configuration start with the same A: give each a seed of its own.

        Raises ValueError for a target module or a pattern that is not there, a name that is taken or impossible;
        TypeError for a config of another kind; RuntimeError while merged or disabled. Nothing has changed then.
        """
        self._check_new(adapter_name)
        method_of(peft_config).add(self, adapter_name, peft_config, seed)
        self._put(adapter_name, peft_config)

    def load_adapter(self, model_id: Folder, adapter_name: str, is_trainable: bool = False) -> None:
        """Add the adapter in the folder `model_id`, written by `save_pretrained` or by PEFT, to those that are there.

        As in PEFT it is not active before `set_adapter(adapter_name)`, and frozen unless `is_trainable`. Its numbers,
        float16 and bfloat16 ones among them, take the `adapter_dtype`, or else the dtype of the base.

        Raises FileNotFoundError where no adapter is; ValueError for a name that is taken or impossible, a tensor with
        no place, a missing tensor, a wrong shape, a feature that is not here; RuntimeError while merged or disabled.
        The message names it, and nothing has changed then.
        """
        self._check_new(adapter_name)
        settings, arrays, training = read_adapter(model_id)
        with name_file_in_errors(Path(model_id) / CONFIG):
            method = method_named(settings.get("peft_type"))
            config = method.config(settings)
        with name_file_in_errors(Path(model_id) / WEIGHTS):
            config = replace(config, **{key: training[key] for key in method.extra_fields if key in training})
            method.restore(self, adapter_name, config, arrays)
        self._put(adapter_name, config, is_trainable)

    def _put(self, adapter_name: str, config: PeftConfig, is_trainable: bool = False) -> None:
        self.peft_config[adapter_name] = config
        self._set_trainable(adapter_name, is_trainable)

    def save_pretrained(
        self,
        save_directory: Folder,
        adapter_name: str | None = None,
        *,
        selected_adapters: Sequence[str] | None = None,
    ) -> None:
        """Write adapters for `from_pretrained` and `load_adapter` here and in PEFT; merged or not.

        All of them, or the `selected_adapters`: "default" goes into `save_directory` itself, each other one into a subfolder
        of its name, as in PEFT. With `adapter_name` this one goes into `save_directory` itself. An adapter that began as
        PiSSA is written for the base as it was before: as a LoRA of twice the rank (see lora/pissa.py).

        Each file is whole or is not there, and an adapter that was in a folder stays until the new one is complete.
        Raises ValueError for a name that is not there, or a folder that is a file; RuntimeError for one that began as PiSSA
        where the base was quantised since.
        """
        if adapter_name is not None:
            folders = {adapter_name: Path(save_directory)}
        else:
            names = list(self.peft_config) if selected_adapters is None else _each_once(selected_adapters)
            folders = {name: Path(save_directory) / ("" if name == "default" else name) for name in names}
        for name in folders or ["default"]:
            self._check_name(name)
        if selected_adapters is not None and not folders:
            raise ValueError("selected_adapters is empty: name the adapters to save")
        for folder in folders.values():
            if folder.is_file():
                raise ValueError(f"{folder} is a file; an adapter is saved as a folder")
        for name, folder in folders.items():
            config = self.peft_config[name]
            method = method_of(config)
            settings, arrays = method.settings(config, self.model), method.arrays(self, name)
            write_adapter(
                folder,
                settings,
                arrays,
                method.recorded_fields,
                {key: getattr(config, key) for key in method.extra_fields},
            )

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """From now on use this adapter. As in PEFT it becomes the only one that trains, or none does in `inference_mode`.

        Raises ValueError for a name that is not there or several, RuntimeError while another one is merged or all are disabled.
        """
        if not isinstance(adapter_name, str):
            raise ValueError(
                f"set_adapter({adapter_name!r}): one adapter is active at a time; add_weighted_adapter makes one of several, "
                "merge_adapter([…]) merges several, and adapter_names gives each row of a batch its own"
            )
        self._check_name(adapter_name)
        if adapter_name != self.active_adapter:
            self._check_idle()
        self.active_adapter = adapter_name
        for name in self.peft_config:
            self._set_trainable(name, name == adapter_name and not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Take one adapter out. If it was active, the first by name of those that remain now is, with a warning, as in PEFT.

        Raises ValueError for a name that is not there, RuntimeError while merged or disabled.
        """
        self._check_name(adapter_name)
        self._check_idle()
        method_of(self.peft_config[adapter_name]).delete(self, adapter_name)
        del self.peft_config[adapter_name]
        if adapter_name == self.active_adapter:
            self.active_adapter = None
            if self.peft_config:
                self.set_adapter(min(self.peft_config))
                warnings.warn(f"{adapter_name!r} was the active adapter; now {self.active_adapter!r} is", stacklevel=2)

    def adapter_parameters(self, adapter_name: str | None = None) -> Iterator[Parameter]:
        """The parameters of one adapter, or of all: what is here besides the base, whether it trains or not."""
        for name in self.peft_config if adapter_name is None else [adapter_name]:
            yield from method_of(self.peft_config[name]).parameters(self, name)

    def _set_trainable(self, adapter_name: str, trainable: bool) -> None:
        method_of(self.peft_config[adapter_name]).set_trainable(self, adapter_name, trainable)

    def _check_name(self, adapter_name: str) -> None:
        if adapter_name not in self.peft_config:
            raise ValueError(f"there is no adapter {adapter_name!r}; this model has {list(self.peft_config) or 'none'}")

    def _check_new(self, adapter_name: str) -> None:
        if adapter_name in self.peft_config:
            raise ValueError(f"there is an adapter {adapter_name!r} already; delete_adapter it, or take another name")
        if not isinstance(adapter_name, str) or adapter_name in ("", BASE, *FACTORS) or set(adapter_name) & set("./"):
            raise ValueError(
                f"{adapter_name!r} cannot name an adapter; expected a text without '.' or '/' that is not __base__ or one of "
                f"{', '.join(FACTORS)}"
            )
        self._check_idle()
        if self._pissa_started:
            raise RuntimeError(
                "an adapter that began as PiSSA has changed the base, so no second adapter can be added: save_pretrained, then "
                "load the folder into a PeftModel of the original base"
            )

    def _check_idle(self) -> None:
        if self.merged:
            raise RuntimeError("an adapter is merged into the weights: unmerge_adapter() first")
        if self.disabled:
            raise RuntimeError("the adapters are disabled: leave `disable_adapter` first")

    # ---------------------------------------------------------------------------------------------- counting, disabling

    @property
    def active_adapters(self) -> list[str]:
        """The active adapter in a list, as PEFT has it; empty where none is."""
        return [] if self.active_adapter is None else [self.active_adapter]

    def get_base_model(self) -> Transformer:
        """The Transformer inside, with the adapters in its layers; called directly it answers as the base alone."""
        return self.model

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(how many parameters are trainable, how many there are). VeRA's frozen A and B are counted; in PEFT they are buffers."""
        sizes = [(p.value.size, p.trainable) for _, p in self.named_parameters()]
        return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes)

    def print_trainable_parameters(self) -> None:
        """Print PEFT's line: trainable params: … || all params: … || trainable%: …"""
        trainable, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}")

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """`with peft_model.disable_adapter():` runs the base alone; afterwards everything is as before, errors included."""
        before, merged = (self.active_adapter, self.disabled), self.merged_adapters
        self.unmerge_adapter()
        self.active_adapter, self.disabled = None, True
        try:
            yield
        finally:
            self.active_adapter, self.disabled = before
            if merged:
                self.merge_adapter(merged)

    # --------------------------------------------------------------------------------------------------- mixed batches

    def adapter_rows(self, adapter_names: Sequence[str] | None, rows: int) -> str | AdapterRows | None:
        """What a call takes as its adapter: the active one, or one for each of `rows` rows, "__base__" for none.

        Raises as PEFT does, ValueError for another number of names or one that is not there; and RuntimeError while merged
        or disabled.
        """
        if adapter_names is None:
            return self.active_adapter
        names = check_names(adapter_names, rows, list(self.peft_config))
        self._check_idle()
        self.check_mixable(*set(names))
        return AdapterRows(names)

    def check_mixable(self, *adapter_names: str) -> None:
        """Raise ValueError for an adapter whose rows cannot share a batch with those of others."""
        for name in adapter_names:
            if (config := self.peft_config.get(name)) is not None:
                method_of(config).check_mixable(name, config)
        if self._pissa_started:
            raise ValueError(
                "an adapter that began as PiSSA has changed the base, so there is no mixed batch: save_pretrained, then load the "
                "folder into a PeftModel of the original base"
            )

    @property
    def _pissa_started(self) -> bool:
        """Whether an adapter began as PiSSA here. It is then the only adapter."""
        return any(getattr(config, "init_lora_weights", None) == "pissa" for config in self.peft_config.values())

    # --------------------------------------------------------------------------------------------------------- merging

    def lora_layers(self) -> list[AdaptedLinear]:
        """Every layer that has a LoRA adapter, in forward order."""
        layers = adapted_layers(self.model).values()
        return [layer for layer in layers if any(isinstance(a, LoraAdapter) for a in layer.adapters.values())]

    @property
    def merged_adapters(self) -> tuple[str, ...]:
        """The adapters whose ΔW is added into the base's weights."""
        return next((layer.merged for layer in adapted_layers(self.model).values() if layer.merged), ())

    @property
    def merged(self) -> bool:
        """Whether any adapter is merged."""
        return bool(self.merged_adapters)

    @property
    def mergeable(self) -> bool:
        """Whether the active adapter is a change of weights, which `merge_adapter` can add into them."""
        return self.active_adapter is not None and method_of(self.peft_config[self.active_adapter]).mergeable

    def merge_adapter(self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """W ← W + Σ ΔW over these adapters, by default the active one: now a forward costs what the base costs.

        Until `unmerge_adapter` a call with one of them answers with all, and a call with another is refused. Adapters already
        merged stay merged. With DoRA among them each weight is kept as it was, until then: as much memory again.
        Raises ValueError for a name that is not there or of a method that changes no weights or, with `safe_merge`, a sum that
        is not finite, before anything has changed; RuntimeError while others are merged, all are disabled or none is active,
        or where the base is quantised.
        """
        if self.disabled:
            raise RuntimeError("the adapter is disabled: leave `disable_adapter` before merging it")
        if adapter_names is None:
            adapter_names = self.merged_adapters or self.active_adapters
        names = _each_once(adapter_names)
        if not names:
            raise RuntimeError("no adapter is active: choose the one to merge with set_adapter")
        for name in names:
            self._check_mergeable(name)
        merging.merge(self.model, names, safe=safe_merge and not self.merged)

    def unmerge_adapter(self) -> None:
        """W ← W − Σ ΔW: back to base and bypass, up to rounding (about 1e-7 of W in float32); after DoRA to the bit."""
        for layer in adapted_layers(self.model).values():
            layer.unmerge()

    def merge_and_unload(self, safe_merge: bool = False, adapter_names: Sequence[str] | None = None) -> Transformer:
        """Merge for good and take all adapters out: a plain Transformer of the base's shape. This PeftModel then has none.

        The arguments and errors are those of `merge_adapter`.
        """
        self.merge_adapter(adapter_names, safe_merge)
        return self._empty()

    def unload(self) -> Transformer:
        """Take all adapters out without merging them: the base as it was. This PeftModel then has none.

        Raises RuntimeError while adapters are disabled, or where the base was quantised after PiSSA took a part out of it.
        """
        self.unmerge_adapter()
        self._check_idle()
        for name, config in self.peft_config.items():
            method_of(config).delete(self, name)
        return self._empty()

    def _empty(self) -> Transformer:
        remove(self.model)
        self.prompt_encoder.clear()
        self.peft_config.clear()
        self.active_adapter = None
        return self.model

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        density: float | None = None,
        majority_sign_method: Literal["total", "frequency"] = "total",
        seed: int = 0,
    ) -> MergeReport:
        """Make a new adapter of several, as near to ΔW = Σ wᵢΔWᵢ as the type comes; the report says how near.

        The types and their options are in `Combination`, whose defaults these are. The new adapter has s = 1 and is frozen
        until `set_adapter` chooses it; those it was made of stay.

        Raises ValueError for a name that is not there, taken or impossible, weights that are not one finite number an
        adapter, an option that is out of range or means nothing to this type, ranks that differ and may not; RuntimeError
        while merged or disabled. Nothing has changed then.
        """
        self._check_new(adapter_name)
        if isinstance(adapters, str) or not len(adapters) or len(adapters) != len(weights):
            raise ValueError(f"adapters {adapters!r}, weights {weights!r}; expected lists of one length, at least 1")
        for name, weight in zip(adapters, weights, strict=True):
            self._check_mergeable(name)
            check_combinable(name, self.peft_config[name])
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {name!r} is {weight}; expected a finite number")
        how = Combination(combination_type, svd_rank, svd_clamp, density, majority_sign_method, seed)
        pairs = [(name, float(weight)) for name, weight in zip(adapters, weights, strict=True)]
        configs = {name: config for name, config in self.peft_config.items() if isinstance(config, LoraConfig)}
        config, made, report = combine_adapters(self.model, configs, pairs, how, self.adapter_dtype)
        LoraMethod().insert(self, adapter_name, made.items())
        self._put(adapter_name, config)
        return report

    def _check_mergeable(self, adapter_name: str) -> None:
        self._check_name(adapter_name)
        config = self.peft_config[adapter_name]
        if not method_of(config).mergeable:
            raise ValueError(
                f"{adapter_name!r} has a {type(config).__name__}: it is no change of weights, and cannot be merged"
            )


def _each_once(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))
