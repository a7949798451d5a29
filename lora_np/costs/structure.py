"""The structure of a model for one training step: its layers, which layers are trained, and which layers compute dx.

A block has two sublayers, the attention and the MLP. Both sublayers have the same structure, which Sublayer describes:

    x → norm → input layers → attention, or the MLP's activation → output layer → + x
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..peft.config import PeftConfig
from ..peft.cost import AdapterCost, PrefixCost


@dataclass(frozen=True)
class Layer:
    """A linear layer in a training step.

    Parameters
    ----------
    name : str
        Full name of the layer.
    out, in_ : int
        Shape of W, (out, in).
    trained : bool
        True if W itself is trained.
    adapter : AdapterCost or None
        Cost of the adapter in this layer, if there is one.
    trainable : bool
        True if W, a bias or a parameter of the adapter is trained.
    quantized : bool
        True if W is stored in four bits (or in another format that is not a Parameter) and decoded for each product.

    Examples
    --------
    >>> from lora_np import LoraConfig, costs
    >>> structure = costs.model_structure("llama-2-7b", LoraConfig(r=8))
    >>> layer = structure.layers()[0]
    >>> layer.name, layer.trained, layer.gradients
    ('model.layers.0.self_attn.q_proj', False, 65536)
    """

    name: str
    out: int
    in_: int
    trained: bool
    adapter: AdapterCost | None = None
    trainable: bool = False
    quantized: bool = False

    @property
    def keeps_x(self) -> bool:
        """True if the backward pass needs the layer's input x: for dW, or for an adapter that keeps x."""
        return self.trained or (self.adapter is not None and self.adapter.keeps_x)

    @property
    def gradients(self) -> int:
        """The number of trained parameters in W and in the adapter."""
        return self.out * self.in_ * self.trained + (self.adapter.gradients(self.out, self.in_) if self.adapter else 0)

    @property
    def largest_array(self) -> int:
        """The number of elements of the largest trained array."""
        adapter = self.adapter.largest_array(self.out, self.in_) if self.adapter else 0
        return max(self.out * self.in_ * self.trained, adapter)


@dataclass(frozen=True)
class Sublayer:
    """A sublayer of a block: a norm, its input layers and its output layer.

    Parameters
    ----------
    norm_trained : bool
        True if the norm is trained.
    input_layers : tuple of Layer
        The layers that read the norm's output: q_proj, k_proj and v_proj, or gate_proj and up_proj.
    output_layer : Layer
        The layer that writes to the residual stream: o_proj or down_proj.
    is_attention : bool
        True for the attention, False for the MLP.
    prefix_trained : bool
        True if this attention uses trained keys and values of a prefix.
    window : int or None
        Number of tokens in the sliding window of this attention; None without a window.
    softcapped : bool
        True if the attention scores have a soft cap.
    saved_per_token : int
        Number of floats per token that only some model families save: for norms of q and k, for a norm of the output,
        and for an MLP without a gate.
    head_norms_trained, output_norm_trained : bool
        True if the norms of q and k, or the norm of the sublayer's output, are trained.

    Examples
    --------
    >>> from lora_np import LoraConfig, costs
    >>> attention, mlp = costs.model_structure("llama-2-7b", LoraConfig(r=8)).blocks[0]
    >>> [layer.name.split(".")[-1] for layer in attention.input_layers], attention.trainable, mlp.trainable
    (['q_proj', 'k_proj', 'v_proj'], True, False)
    """

    norm_trained: bool
    input_layers: tuple[Layer, ...]
    output_layer: Layer
    is_attention: bool
    prefix_trained: bool = False
    window: int | None = None
    softcapped: bool = False
    saved_per_token: int = 0
    head_norms_trained: bool = False
    output_norm_trained: bool = False

    @property
    def input_layers_trainable(self) -> bool:
        """True if an input layer has a trained parameter."""
        return any(layer.trainable for layer in self.input_layers)

    @property
    def inner_trainable(self) -> bool:
        """True if the output layer must compute dx, because an input layer, a norm of q or k, or the prefix is trained."""
        return self.input_layers_trainable or self.head_norms_trained or self.prefix_trained

    @property
    def trainable(self) -> bool:
        """True if any part of the sublayer is trained."""
        inner = self.inner_trainable or self.output_layer.trainable
        return self.norm_trained or inner or self.output_norm_trained


@dataclass(frozen=True)
class ModelStructure:
    """Everything that determines the FLOPs and the memory of a training step, except the number of tokens.

    Parameters
    ----------
    name : str
        Name of the model, or of its class.
    hidden : int
        Width d of the residual stream.
    heads, kv_heads, head_dim : int
        Number of query heads, number of key/value heads, and number of features per head.
    vocabulary : int
        Number of tokens in the vocabulary.
    embedding_trained : bool
        True if the token embedding is trained.
    blocks : tuple of (Sublayer, Sublayer)
        The attention and the MLP of each block, in forward order.
    norm_trained : bool
        True if the final norm is trained.
    head : Layer
        The output head.
    prefix : PrefixCost or None
        Cost of the prefix, if the active adapter is a prefix; otherwise None.
    rotary_floats : int
        Number of floats per position in the tables of cosines and sines.
    capped_logits : bool
        True if the logits have a soft cap.
    saved_once : int
        Number of floats that are saved once per step, for any number of tokens: the vectors 1 + w of all norms in
        Gemma.
    learned_positions : bool
        True if the model has a position embedding; the forward pass then saves the positions.
    head_in_blocks : bool
        True if the output head and the loss are computed in blocks of rows as soon as there are many logits.

    Examples
    --------
    >>> from lora_np import costs
    >>> structure = costs.model_structure("llama-2-7b")
    >>> len(structure.blocks), len(structure.layers()), structure.embedding_trained
    (32, 225, True)
    """

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    embedding_trained: bool
    blocks: tuple[tuple[Sublayer, Sublayer], ...]
    norm_trained: bool
    head: Layer
    prefix: PrefixCost | None = None
    rotary_floats: int = 0
    capped_logits: bool = False
    saved_once: int = 0
    learned_positions: bool = False
    head_in_blocks: bool = False

    @property
    def virtual_tokens(self) -> int:
        """The number of virtual tokens of the prefix; 0 without a prefix."""
        return self.prefix.v if self.prefix else 0

    def with_arrays_of(self, model: ModelStructure) -> ModelStructure:
        """Return a copy of this structure that takes two things from another model: the sliding windows, and the arrays
        that only some model families save.

        Parameters
        ----------
        model : ModelStructure
            A model with the same blocks.

        Returns
        -------
        ModelStructure
            The new structure.
        """

        def with_arrays(mine: Sublayer, other: Sublayer) -> Sublayer:
            kept = other.window, other.softcapped, other.saved_per_token
            return replace(mine, window=kept[0], softcapped=kept[1], saved_per_token=kept[2])

        pairs = zip(self.blocks, model.blocks, strict=True)
        return replace(
            self,
            blocks=tuple((with_arrays(a, x), with_arrays(b, y)) for (a, b), (x, y) in pairs),
            rotary_floats=model.rotary_floats,
            capped_logits=model.capped_logits,
            saved_once=model.saved_once,
            learned_positions=model.learned_positions,
        )

    def sublayers(self) -> list[tuple[Sublayer, bool]]:
        """Return each sublayer, and whether its input layers must compute dx.

        A layer computes dx only if a parameter between the embedding and this layer is trained.

        Returns
        -------
        list of (Sublayer, bool)
            The sublayers in forward order, from the embedding to the output head.
        """
        below, found = self.embedding_trained, []
        for sublayer in (sublayer for block in self.blocks for sublayer in block):
            found.append((sublayer, below or sublayer.norm_trained))
            below = below or sublayer.trainable
        return found

    def layers(self) -> list[Layer]:
        """Return every linear layer.

        Returns
        -------
        list of Layer
            The layers in forward order; the output head is the last.
        """
        sublayers = [sublayer for sublayer, _ in self.sublayers()]
        return [layer for s in sublayers for layer in (*s.input_layers, s.output_layer)] + [self.head]

    @property
    def trainable_below_the_head(self) -> bool:
        """True if a parameter below the output head is trained, so that the head must compute dx."""
        inner = any(sublayer.trainable for sublayer, _ in self.sublayers())
        return self.embedding_trained or self.norm_trained or inner


def check_cost_known(config: PeftConfig, adapters: dict[str, AdapterCost], prefix: PrefixCost | None) -> None:
    """Raise ValueError if the configuration's method defines neither a layer cost nor a prefix cost."""
    if not adapters and prefix is None:
        raise ValueError(
            f"the method of a {type(config).__name__} does not define the cost of a training step, or it adapts no "
            "layer of this model. For a model in memory, costs.count(model) counts the parameters"
        )
