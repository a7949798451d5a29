"""PeftModel: a frozen base model with adapters.

A PeftModel has the methods of a Transformer. Each call applies the active adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from .. import ops
from ..backend import Array
from ..nn import RAN_FROZEN, Context, Parameter
from ..transformer import KeyValueCache, Transformer, TransformerConfig
from ..transformer.model import LogitsCache, LossCache
from .config import PeftConfig
from .files import PREFIX
from .management import FACTORS, Folder
from .merging import MergeableModel
from .mixed import AdapterRows
from .prefix import PrefixEncoder, PrefixEncoderCache, check_prefix_of_past, extend_mask_over_prefix

# For the gradient of a prefix: its encoder, the encoder's cache, and the key/value cache that starts with the prefix
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
    """Freeze a model, add a new adapter, and return a PeftModel that can train the adapter.

    As in PEFT, the model is changed in place and shares its weights with the PeftModel. A direct call of `model` still
    uses no adapter. Call the PeftModel to use the adapter.

    Parameters
    ----------
    model : Transformer
        The base model, without adapters.
    peft_config : PeftConfig
        Configuration of the adapter. The class of the configuration selects the method.
    adapter_name : str
        Name of the adapter.
    seed : int
        Seed of the adapter's random numbers.
    adapter_dtype : dtype, optional
        Storage dtype of all adapters: "float16", "bfloat16" or the base's dtype (default). Adapters in 16 bits are
        upcast to float32 for each product, and their gradients are float32. During training, the optimizer updates a
        float32 copy of a 16-bit adapter and rounds this copy to 16 bits.

    Returns
    -------
    PeftModel
        The model with the adapter active and trainable.

    Raises
    ------
    ValueError
        If a target module matches no layer; the message lists the layer names.
    TypeError
        If `model` is not a Transformer, if `peft_config` is not a configuration, or if `adapter_dtype` is not one of
        the supported dtypes. After any of these errors, the model is unchanged.

    Examples
    --------
    >>> import lora_np as ln
    >>> peft_model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=4))
    >>> peft_model.print_trainable_parameters()
    trainable params: 8,960 || all params: 1,026,176 || trainable%: 0.8731
    """
    peft_model = PeftModel(model, adapter_dtype)
    peft_model.add_adapter(adapter_name, peft_config, seed)
    model.freeze()
    peft_model.set_adapter(adapter_name)
    return peft_model


class PeftModel(MergeableModel):
    """A frozen base model with adapters. `get_peft_model` and `PeftModel.from_pretrained` create a PeftModel.

    A PeftModel has the methods of a Transformer: `forward`, `loss`, `backward` and `named_parameters`. `peft_config`
    maps adapter names to configurations, and `active_adapter` is the name of the adapter that calls use. The adapters
    of one model can differ in method, size and layers.

    Parameters
    ----------
    model : Transformer
        The base model, without adapters.
    adapter_dtype : dtype, optional
        Storage dtype of all adapters; default: the base's dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import lora_np as ln
    >>> peft_model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=4))
    >>> tokens = np.zeros((2, 5), int)
    >>> loss, cache = peft_model.loss(tokens, tokens)
    >>> peft_model.backward(cache)
    >>> sum(p.grad is not None for _, p in peft_model.named_parameters())
    20
    """

    tokens_at_once = Transformer.tokens_at_once

    prompt_encoder: dict[str, PrefixEncoder]

    @classmethod
    def from_pretrained(
        cls,
        model: Transformer,
        model_id: Folder,
        adapter_name: str = "default",
        is_trainable: bool = False,
        adapter_dtype: DTypeLike | None = None,
    ) -> PeftModel:
        """Freeze a model, load a saved adapter, and make the adapter active. The model is changed in place.

        Parameters
        ----------
        model : Transformer
            The base model, without adapters.
        model_id : str or path
            Folder of an adapter that lora_np or PEFT wrote, or a .gguf file with a LoRA.
        adapter_name : str
            Name of the adapter.
        is_trainable : bool
            False: the adapter is frozen.
        adapter_dtype : dtype, optional
            As in `get_peft_model`.

        Returns
        -------
        PeftModel
            The model with the adapter.

        Raises
        ------
        FileNotFoundError, ValueError, TypeError
            In the same cases as in `get_peft_model` and `load_adapter`. After an error, the model is unchanged.
        """
        peft_model = cls(model, adapter_dtype)
        peft_model.load_adapter(model_id, adapter_name)
        model.freeze()
        peft_model.set_adapter(adapter_name, inference_mode=not is_trainable)
        return peft_model

    @property
    def config(self) -> TransformerConfig:
        """The configuration of the base model."""
        return self.model.config

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield all parameters with PEFT's names.

        An example is base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight.

        Yields
        ------
        (str, Parameter)
            Name and parameter.
        """
        for name, p in self.model.named_parameters():
            suffix = ".weight" if name.split(".")[-2] in FACTORS else ""
            yield PREFIX + name + suffix, p
        for adapter_name, encoder in self.prompt_encoder.items():
            for name, p in encoder.named_parameters():
                yield f"prompt_encoder.{adapter_name}.{name}", p

    def unfreeze(self) -> Self:
        """Raise RuntimeError, because some parameters must stay frozen (VeRA's A and B, LoRA-FA's A).

        Returns
        -------
        PeftModel
            Never returns.

        Raises
        ------
        RuntimeError
            Always.
        """
        raise RuntimeError(
            "unfreeze() would train parameters that the method keeps frozen. Use set_adapter(name) to train an adapter. For full "
            "fine-tuning, call merge_and_unload() first, then unfreeze() on the returned model"
        )

    def forward(
        self,
        tokens: Array,
        rng: np.random.Generator | None = None,
        past_key_values: KeyValueCache | None = None,
        attention_mask: Array | None = None,
        adapter_names: Sequence[str] | None = None,
    ) -> tuple[Array, PeftLogitsCache]:
        """Compute logits with the active adapter, or with one adapter per row.

        Parameters
        ----------
        tokens : ndarray of int, shape (b, t)
            Token ids.
        rng : numpy.random.Generator, optional
            Draws dropout masks. Default: no dropout.
        past_key_values : KeyValueCache, optional
            Keys and values of earlier tokens. With a prefix adapter, the cache starts with the adapter's prefix.
        attention_mask : ndarray of bool, shape (b, s), optional
            False for padding. The mask does not include the positions of a prefix.
        adapter_names : sequence of str, optional
            One adapter name per row, as in `adapter_rows`.

        Returns
        -------
        logits : ndarray, shape (b, t, v)
            Logits for the v tokens of the vocabulary.
        cache : tuple
            Values that `backward_from_logits` needs.

        Raises
        ------
        ValueError
            If `past_key_values` and this call use different prefixes, or if `adapter_rows` raises ValueError.
        """
        adapter = self.adapter_rows(adapter_names, len(tokens))
        past, prefix_call = self._start_prefix(past_key_values, len(tokens), adapter)
        if prefix_call is not None and attention_mask is not None:
            encoder, _, past = prefix_call
            v = len(encoder.embedding.weight.value)
            attention_mask = extend_mask_over_prefix(attention_mask, v, len(tokens), len(past) - v + tokens.shape[-1])
        context = Context(rng, adapter, attention_mask)
        logits, cache = self.model.forward(tokens, past_key_values=past, context=context)
        return logits, (cache, prefix_call)

    def loss(
        self,
        tokens: Array,
        targets: Array,
        rng: np.random.Generator | None = None,
        ignore_index: int = ops.IGNORE_INDEX,
        adapter_names: Sequence[str] | None = None,
    ) -> tuple[Array, PeftLossCache]:
        """Compute the mean cross-entropy with the active adapter, or with one adapter per row.

        Parameters
        ----------
        tokens, targets : ndarray of int, shape (b, t)
            Token ids, and the id of the next token at each position.
        rng : numpy.random.Generator, optional
            Draws dropout masks. Default: no dropout.
        ignore_index : int
            Positions with this target are not counted.
        adapter_names : sequence of str, optional
            One adapter name per row, as in `adapter_rows`.

        Returns
        -------
        loss : scalar
            Mean cross-entropy, in nats per token.
        cache : tuple
            Values that `backward` needs.
        """
        adapter = self.adapter_rows(adapter_names, len(tokens))
        past, prefix_call = self._start_prefix(None, len(tokens), adapter)
        context = Context(rng, adapter)
        loss, cache = self.model.loss(tokens, targets, ignore_index=ignore_index, context=context, past_key_values=past)
        return loss, (cache, prefix_call)

    @property
    def gradient_checkpointing(self) -> bool:
        """True if gradient checkpointing is on."""
        return self.model.gradient_checkpointing

    def gradient_checkpointing_enable(self) -> None:
        """Turn gradient checkpointing on, as in `Transformer.gradient_checkpointing_enable`.

        Examples
        --------
        >>> import lora_np as ln
        >>> peft_model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=4))
        >>> peft_model.gradient_checkpointing_enable()
        """
        self.model.gradient_checkpointing_enable()

    def gradient_checkpointing_disable(self) -> None:
        """Turn gradient checkpointing off.

        Examples
        --------
        >>> import lora_np as ln
        >>> peft_model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=4))
        >>> peft_model.gradient_checkpointing_disable()
        """
        self.model.gradient_checkpointing_disable()

    def backward(self, cache: PeftLossCache, dloss: float = 1.0) -> None:
        """Add the gradients of the loss to the trainable parameters.

        Parameters
        ----------
        cache : tuple
            From `loss`.
        dloss : float
            A factor that multiplies all gradients.

        Raises
        ------
        RuntimeError
            If an adapter is merged, because a forward pass with merged weights contains no bypass.
        """
        self._check_not_merged()
        model_cache, prefix_call = cache
        self.model.backward(model_cache, dloss)
        self._backward_prefix(prefix_call)

    def backward_from_logits(self, dlogits: Array, cache: PeftLogitsCache) -> None:
        """Add the gradients of a custom loss, given the gradient of the logits, to the trainable parameters.

        Parameters
        ----------
        dlogits : ndarray, shape (b, t, v)
            Gradient of the logits.
        cache : tuple
            From `forward`.

        Raises
        ------
        RuntimeError
            If an adapter is merged, because a forward pass with merged weights contains no bypass.
        """
        self._check_not_merged()
        model_cache, prefix_call = cache
        self.model.backward_from_logits(dlogits, model_cache)
        self._backward_prefix(prefix_call)

    def new_cache(self, rows: int, adapter: str | AdapterRows | None) -> KeyValueCache:
        """Return a key/value cache for generation.

        If the adapter has a prefix, the cache starts with this prefix.

        Parameters
        ----------
        rows : int
            Number of sequences.
        adapter : str, AdapterRows or None
            From `adapter_rows`.

        Returns
        -------
        KeyValueCache
            The cache.
        """
        past = KeyValueCache(self.config)
        self._start_prefix(past, rows, adapter)
        return past

    def _start_prefix(
        self, past: KeyValueCache | None, rows: int, adapter: str | AdapterRows | None
    ) -> tuple[KeyValueCache | None, PrefixCall | None]:
        """Insert the adapter's prefix into `past`, if `past` is empty.

        Return `past` and the values that `_backward_prefix` needs. Raises the same errors as `check_prefix_of_past`.
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

    def _backward_prefix(self, prefix_call: PrefixCall | None) -> None:
        """Take the gradient of the prefix from the key/value cache, and propagate this gradient through the encoder."""
        if prefix_call is not None:
            encoder, encoder_cache, past = prefix_call
            if encoder.trainable:
                if not past.trainable:
                    raise RuntimeError(RAN_FROZEN)
                encoder.backward(past.take_grad(), encoder_cache)

    def _check_not_merged(self) -> None:
        if self.merged:
            raise RuntimeError("the adapter is merged into the weights; call unmerge_adapter() before training it")

    # ---------------------------------------------------------------------------------------------- counting, disabling

    def get_base_model(self) -> Transformer:
        """Return the base model.

        The layers of the base model contain the adapters, but a direct call of the base model uses no adapter.

        Returns
        -------
        Transformer
            The base model.
        """
        return self.model

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Count parameters, including VeRA's frozen A and B. In PEFT, A and B are buffers and are not counted.

        Returns
        -------
        (int, int)
            The number of trainable parameters and the number of all parameters.
        """
        sizes = [(p.value.size, p.trainable) for _, p in self.named_parameters()]
        return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes)

    def print_trainable_parameters(self) -> None:
        """Print the number and the share of trainable parameters, in PEFT's format."""
        trainable, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}")

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Disable all adapters inside a `with` block, so that calls use the base model.

        After the block, the previous state is restored.

        Yields
        ------
        None
            Merged adapters are unmerged inside the block.
        """
        before, merged = (self.active_adapter, self.disabled), self.merged_adapters
        self.unmerge_adapter()
        self.active_adapter, self.disabled = None, True
        try:
            yield
        finally:
            self.active_adapter, self.disabled = before
            if merged:
                self.merge_adapter(merged)
