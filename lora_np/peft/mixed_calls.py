"""PeftModel's calls for mixed batches: which adapter each row uses, and which adapters can share one product with the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..nn import Module
from ..transformer import Transformer
from .lora.mixed import AdapterRows, check_names
from .placement import lora_layers
from .registry import method_of


class MixedCalls(Module):
    """The part of PeftModel that gives rows their adapters; how a layer then computes them is in mixed.py."""

    model: Transformer
    peft_config: dict[str, Any]
    active_adapter: str | None

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
        if self._residual:  # found by a walk through the model, which is done once
            raise ValueError(
                "PiSSA left only a part of the base here, so there is no mixed batch: save it, and load that"
            )

    @property
    def _residual(self) -> bool:
        return any(layer.start is not None for layer in lora_layers(self.model).values())
