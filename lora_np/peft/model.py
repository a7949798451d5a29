"""PeftModel: a frozen base with adapters in it, and the calls that add, choose, train, save and switch them off."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from .. import costs, ops
from ..backend import Array
from ..nn import RAN_FROZEN, Context, Parameter
from ..transformer import KeyValueCache, Transformer
from .checks import storage_dtype
from .files import CONFIG, PREFIX, WEIGHTS, naming, read_adapter, write_adapter
from .lora.layer import FACTORS
from .lora.mixed import AdapterRows
from .merge_calls import MergeCalls
from .mixed_calls import MixedCalls
from .prefix import PrefixEncoder, check_begun, see_the_prefix
from .registry import method_named, method_of
from .wrapper import Wrapper


def get_peft_model(
    model: Transformer, config: Any, adapter_name: str = "default", seed: int = 0, adapter_dtype: Any = None
) -> PeftModel:
    """Freeze `model`, put an adapter in, and return the PeftModel that trains it. The kind of `config` says which (methods.py).

    The model is changed in place, as in PEFT, and shares its weights with the PeftModel. Called directly it still
    answers as the base alone; call the PeftModel for the adapter. `seed` draws its numbers.

    `adapter_dtype` is what they are stored in: None, the base's dtype; or "float16" or "bfloat16", in memory and on disk
    half of float32. Computed is in float32 all the same: they are widened for each product, gradients are float32, and
    while it trains the optimizer keeps a float32 copy, which it updates and rounds into them.

    Raises ValueError for a target module that is not there (the message lists those that are), TypeError for a model or
    config of another kind or an `adapter_dtype` that does not go with the base's, before anything is changed.
    """
    peft_model = PeftModel(model, adapter_dtype)
    peft_model.add_adapter(adapter_name, config, seed)
    model.freeze()
    peft_model.set_adapter(adapter_name)
    return peft_model


class PeftModel(MergeCalls, MixedCalls):
    """The base and its adapters as one model, with the Transformer's own calls: forward, loss, backward, named_parameters.

    `peft_config[name]` is an adapter's configuration, `active_adapter` the name of the one that calls use, or None. Each has a
    method, a size and layers of its own. Made by `get_peft_model` with a new adapter, by `from_pretrained` with a saved one.
    `adapter_dtype` is what all of them are stored in; None means the base's dtype.
    """

    def __init__(self, model: Transformer, adapter_dtype: Any = None) -> None:
        if not isinstance(model, Transformer):
            raise TypeError(f"expected a Transformer without adapters, got {type(model).__name__}")
        if any(isinstance(m, Wrapper) for _, m in model.named_modules()):
            raise ValueError(
                "this model carries an adapter already: give its PeftModel another one with add_adapter or load_adapter, "
                "or merge_and_unload() it first"
            )
        self.model = model
        self.prompt_encoder: dict[str, PrefixEncoder] = {}  # what stands beside the base and not in it
        self.peft_config: dict[str, Any] = {}
        self.active_adapter: str | None = None
        self.disabled = False  # inside disable_adapter
        base = model.model.norm.weight.value.dtype
        self.adapter_dtype = None if adapter_dtype is None else storage_dtype(adapter_dtype, base)

    @classmethod
    def from_pretrained(
        cls,
        model: Transformer,
        folder: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        adapter_dtype: Any = None,
    ) -> PeftModel:
        """`model`, frozen, with the adapter that `save_pretrained` or PEFT wrote to `folder`: active, and trainable if asked.

        The model is changed in place. Raises as `get_peft_model` and `load_adapter` do, before anything is changed.
        """
        peft_model = cls(model, adapter_dtype)
        peft_model.load_adapter(folder, adapter_name)
        model.freeze()
        peft_model.set_adapter(adapter_name, inference_mode=not is_trainable)
        return peft_model

    @property
    def config(self) -> Any:
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
            "an adapter trains by set_adapter(name), over a frozen base; for full fine-tuning merge_and_unload() first"
        )

    def forward(
        self,
        tokens: Array,
        rng: np.random.Generator | None = None,
        past_key_values: KeyValueCache | None = None,
        attention_mask: Array | None = None,
        adapter_names: Sequence[str] | None = None,
    ) -> tuple[Array, Any]:
        """tokens (b, t) → logits (b, t, v), with the active adapter; arguments and gradients are those of `Transformer.forward`.

        A prefix begins the past, and an `attention_mask` does not cover it. `adapter_names`, one a row, is a mixed batch: see
        `adapter_rows`. Raises ValueError for a past that was begun with another prefix, or with none.
        """
        adapter = self.adapter_rows(adapter_names, len(tokens))
        past, begun = self._begin(past_key_values, len(tokens), adapter)
        if begun is not None and attention_mask is not None:
            v = len(begun[0].embedding.weight.value)
            attention_mask = see_the_prefix(attention_mask, v, len(tokens), len(past) - v + tokens.shape[-1])
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
    ) -> tuple[Array, Any]:
        """Mean cross-entropy in nats a token, with the active adapter or a mixed batch. `rng` turns dropout on."""
        adapter = self.adapter_rows(adapter_names, len(tokens))
        past, begun = self._begin(None, len(tokens), adapter)
        context = Context(rng, adapter)
        loss, cache = self.model.loss(tokens, targets, ignore_index=ignore_index, context=context, past_key_values=past)
        return loss, (cache, begun)

    def backward(self, cache: Any, dloss: float = 1.0) -> None:
        """Adds the gradients of the active adapter. Raises RuntimeError while merged: no bypass is in the forward then."""
        self._refuse_merged()
        cache, begun = cache
        self.model.backward(cache, dloss)
        self._end(begun)

    def backward_from_logits(self, dlogits: Array, cache: Any) -> None:
        """From `forward`'s cache and dlogits (b, t, v), for a loss of your own. Raises as `backward` does."""
        self._refuse_merged()
        cache, begun = cache
        self.model.backward_from_logits(dlogits, cache)
        self._end(begun)

    def new_cache(self, rows: int, adapter: str | AdapterRows | None) -> KeyValueCache:
        """What `generate` starts from: an empty cache, or one that begins with the adapter's prefix in each of `rows` rows."""
        return self._begin(KeyValueCache(self.config), rows, adapter)[0]

    def _begin(
        self, past: KeyValueCache | None, rows: int, adapter: str | AdapterRows | None
    ) -> tuple[KeyValueCache | None, Any]:
        """The call's past, begun with the adapter's prefix if it has one; and what `_end` needs for its gradient.

        Raises as `check_begun` does.
        """
        encoder = self.prompt_encoder.get(adapter)
        named = None if encoder is None else (adapter, encoder)
        check_begun(past, named)
        if encoder is None:
            return past, None
        past = KeyValueCache(self.config) if past is None else past
        prefix, encoder_cache = encoder.forward(self.model.model.norm.weight.value.dtype)
        if not len(past):
            past.begin(prefix, rows, encoder.trainable, named)
        return past, (encoder, encoder_cache, past)

    def _end(self, begun: Any) -> None:
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

    def add_adapter(self, adapter_name: str, config: Any, seed: int = 0) -> None:
        """Put a new adapter beside those that are there, frozen until `set_adapter` chooses it. `seed` draws its numbers.

        Two adapters of one seed and one configuration start with the same A: give each a seed of its own.

        Raises ValueError for a target module or a pattern that is not there, a name that is taken or impossible;
        TypeError for a config of another kind; RuntimeError while merged or disabled. Nothing has changed then.
        """
        self._check_new(adapter_name)
        method_of(config).add(self, adapter_name, config, seed)
        self._put(adapter_name, config)

    def load_adapter(self, folder: str | os.PathLike[str], adapter_name: str, is_trainable: bool = False) -> None:
        """Put the adapter that `save_pretrained` or PEFT wrote to `folder` beside those that are there.

        As in PEFT it is not active before `set_adapter(adapter_name)`, and frozen unless `is_trainable`. Its numbers,
        float16 and bfloat16 ones among them, take the `adapter_dtype`, or else the dtype of the base.

        Raises FileNotFoundError where no adapter is; ValueError for a name that is taken or impossible, a tensor with
        no place, a missing tensor, a wrong shape, a feature that is not here; RuntimeError while merged or disabled.
        The message names it, and nothing has changed then.
        """
        self._check_new(adapter_name)
        settings, arrays, training = read_adapter(folder)
        with naming(Path(folder) / CONFIG):
            method = method_named(settings.get("peft_type"))
            config = method.config(settings)
        with naming(Path(folder) / WEIGHTS):
            config = replace(config, **{key: training[key] for key in method.own if key in training})
            method.restore(self, adapter_name, config, arrays)
        self._put(adapter_name, config, is_trainable)

    def _put(self, adapter_name: str, config: Any, is_trainable: bool = False) -> None:
        self.peft_config[adapter_name] = config
        self._set_trainable(adapter_name, is_trainable)

    def save_pretrained(self, folder: str | os.PathLike[str], adapter_name: str = "default") -> None:
        """Write one adapter to `folder`, for `from_pretrained` and `load_adapter` here and in PEFT; merged or not.

        One that began as PiSSA is written for the base as it was before: as a LoRA of twice the rank (see pissa.py).

        Each file is whole or is not there, and an adapter that was in `folder` stays until the new one is complete.
        Raises ValueError for a name that is not there or a `folder` that is a file; RuntimeError for one that began as PiSSA
        where the base was quantised since.
        """
        self._check_name(adapter_name)
        config = self.peft_config[adapter_name]
        method = method_of(config)
        settings, arrays = method.settings(config, self.model), method.arrays(self, adapter_name)
        write_adapter(folder, settings, arrays, method.decisive, {key: getattr(config, key) for key in method.own})

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """From now on use this adapter. As in PEFT it becomes the only one that trains, or none does in `inference_mode`.

        Raises ValueError for a name that is not there, RuntimeError while another one is merged or all are disabled.
        """
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
        if (
            not isinstance(adapter_name, str)
            or adapter_name in ("", "__base__", *FACTORS)
            or set(adapter_name) & set("./")
        ):
            raise ValueError(
                f"{adapter_name!r} cannot name an adapter: a name has no . or /, is no tensor's, and __base__ means none"
            )
        self._check_idle()
        if self._residual:
            raise RuntimeError(
                "the base is what PiSSA left of it: save_pretrained, and load that beside others on the base"
            )

    def _check_idle(self) -> None:
        if self.merged:
            raise RuntimeError("an adapter is merged into the weights: unmerge_adapter() first")
        if self.disabled:
            raise RuntimeError("the adapters are disabled: leave `disable_adapter` first")

    # ---------------------------------------------------------------------------------------------- counting, disabling

    def print_trainable_parameters(self) -> None:
        """Print PEFT's line: trainable params: … || all params: … || trainable%: …

        But VeRA's frozen A and B are among all params here. In PEFT they are buffers, which it does not count.
        """
        print(costs.count(self))

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
