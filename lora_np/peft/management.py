"""AdapterManager: adds, loads, saves and deletes the adapters of a base model, and selects the adapters of a call."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..nn import BASE, Parameter, check_names
from ..transformer import Transformer
from .config import PeftConfig, storage_dtype
from .files import CONFIG, WEIGHTS, name_file_in_errors, read_adapter, write_adapter
from .lora.gguf import read_gguf
from .method import AdapterHost
from .mixed import AdapterRows
from .placement import adapted_layers
from .registry import method_named, method_of

FACTORS = ("lora_A", "lora_B", "lora_magnitude_vector")  # parameters that PEFT calls ….<adapter>.weight
Folder = str | os.PathLike[str]


class AdapterManager(AdapterHost):
    """A frozen base model and its adapters.

    `active_adapter` is the name of the adapter that calls use, or None.
    """

    def __init__(self, model: Transformer, adapter_dtype: DTypeLike | None = None) -> None:
        if not isinstance(model, Transformer):
            raise TypeError(f"expected a Transformer without adapters, got {type(model).__name__}")
        if adapted_layers(model):
            raise ValueError(
                "this model has adapters already; add another adapter to the PeftModel with add_adapter or load_adapter, or call "
                "merge_and_unload() first"
            )
        base = model.model.norm.weight.value.dtype
        super().__init__(model, None if adapter_dtype is None else storage_dtype(adapter_dtype, base))
        self.active_adapter: str | None = None
        self.disabled = False  # True inside disable_adapter

    @property
    def active_adapters(self) -> list[str]:
        """The active adapter in a list, as in PEFT; the list is empty if no adapter is active."""
        return [] if self.active_adapter is None else [self.active_adapter]

    @property
    def merged_adapters(self) -> tuple[str, ...]:
        """The names of the merged adapters."""
        return next((layer.merged for layer in adapted_layers(self.model).values() if layer.merged), ())

    @property
    def merged(self) -> bool:
        """True if an adapter is merged."""
        return bool(self.merged_adapters)

    # ------------------------------------------------------------------------------------------------ several adapters

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, seed: int = 0) -> None:
        """Add a new adapter. The new adapter is frozen and not active until `set_adapter` selects it.

        Two adapters with the same seed and configuration start with the same A. Use a different seed for each adapter.

        Parameters
        ----------
        adapter_name : str
            A new name, without "." and "/".
        peft_config : PeftConfig
            Configuration of the adapter. The class of the configuration selects the method.
        seed : int
            Seed of the adapter's random numbers.

        Raises
        ------
        ValueError
            If a target module or a pattern matches no layer, or if the adapter name is already used or invalid.
        TypeError
            If `peft_config` is not a configuration.
        RuntimeError
            If an adapter is merged, or if the adapters are disabled. After any of these errors, the model is unchanged.
        """
        self._check_new(adapter_name)
        method_of(peft_config).add(self, adapter_name, peft_config, seed)
        self._register(adapter_name, peft_config)

    def load_adapter(self, model_id: Folder, adapter_name: str, is_trainable: bool = False) -> None:
        """Add a saved adapter. As in PEFT, the loaded adapter is not active until `set_adapter` selects it.

        Parameters
        ----------
        model_id : str or path
            Folder that `save_pretrained` or PEFT wrote, or a .gguf file with a LoRA.
        adapter_name : str
            A new name for the adapter.
        is_trainable : bool
            False: the adapter is frozen.

        Raises
        ------
        FileNotFoundError
            If the folder contains no adapter.
        ValueError
            If the adapter name is already used or invalid, if a tensor is unexpected, missing or of a wrong shape, or
            if the file uses an unsupported feature.
        RuntimeError
            If an adapter is merged, or if the adapters are disabled. After any of these errors, the model is unchanged.

        Notes
        -----
        Tensors are converted to the `adapter_dtype` of the PeftModel, by default the dtype of the base model.
        """
        self._check_new(adapter_name)
        settings: Mapping[str, Any]
        arrays: Mapping[str, np.ndarray]
        gguf = Path(model_id).suffix == ".gguf"
        settings, arrays, training = read_gguf(model_id, self.model.config) if gguf else read_adapter(model_id)
        with name_file_in_errors(Path(model_id) / ("" if gguf else CONFIG)):
            method = method_named(settings.get("peft_type"))
            settings, arrays = method.convert(settings, arrays, self.model)
            config = method.config(settings)
        with name_file_in_errors(Path(model_id) / ("" if gguf else WEIGHTS)):
            config = replace(config, **{key: training[key] for key in method.extra_fields if key in training})
            method.restore(self, adapter_name, config, arrays)
        self._register(adapter_name, config, is_trainable)

    def _register(self, adapter_name: str, config: PeftConfig, is_trainable: bool = False) -> None:
        self.peft_config[adapter_name] = config
        self._set_trainable(adapter_name, is_trainable)

    def save_pretrained(
        self,
        save_directory: Folder,
        adapter_name: str | None = None,
        *,
        selected_adapters: Sequence[str] | None = None,
    ) -> None:
        """Write adapters to disk, in PEFT's format. Merged adapters can be saved too.

        As in PEFT, the adapter "default" is written into `save_directory`, and each other adapter into a subfolder with
        its name. An adapter with PiSSA initialisation is saved for the original base, as a LoRA of twice the rank (see
        lora/pissa.py). Files are replaced atomically, so an older adapter in the folder remains until the files of the
        new adapter are complete.

        Parameters
        ----------
        save_directory : str or path
            Folder to write.
        adapter_name : str, optional
            Write only this adapter, directly into `save_directory`.
        selected_adapters : sequence of str, optional
            Names of the adapters to write. Default: all adapters.

        Raises
        ------
        ValueError
            If an adapter does not exist, if `selected_adapters` is empty, or if the path of a folder is an existing
            file. Also if a number of an adapter is complex, NaN or infinite, because `load_adapter` refuses such a
            file.
        RuntimeError
            If the base changed after PiSSA initialisation, for example because the base was quantised. After any of
            these errors, no file has been written.

        Notes
        -----
        The folder contains the adapter and not the base. To get the same outputs again, load the adapter into a model
        with the same base weights. If `quantize_model` changed the base of this model, call `quantize_model` with the
        same settings before `PeftModel.from_pretrained`.
        """
        if adapter_name is not None:
            folders = {adapter_name: Path(save_directory)}
        else:
            names = list(self.peft_config) if selected_adapters is None else unique(selected_adapters)
            folders = {name: Path(save_directory) / ("" if name == "default" else name) for name in names}
        for name in folders or ["default"]:
            self._check_name(name)
        if selected_adapters is not None and not folders:
            raise ValueError("selected_adapters is empty; give the names of the adapters to save")
        for folder in folders.values():
            if folder.is_file():
                raise ValueError(f"{folder} is a file; an adapter is saved as a folder")
        tensors = {}
        for name in folders:  # before anything is written
            tensors[name] = method_of(self.peft_config[name]).arrays(self, name)
            check_tensors(name, tensors[name])
        for name, folder in folders.items():
            config = self.peft_config[name]
            method = method_of(config)
            extra = {key: getattr(config, key) for key in method.extra_fields}
            write_adapter(folder, method.settings(config, self.model), tensors[name], method.recorded_fields, extra)

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Make an adapter active. As in PEFT, this adapter becomes the only trainable adapter.

        Parameters
        ----------
        adapter_name : str
            Name of the adapter.
        inference_mode : bool
            True: this adapter is frozen, like all other adapters.

        Raises
        ------
        ValueError
            If the adapter does not exist, or if several names are given.
        RuntimeError
            If another adapter is merged, or if the adapters are disabled.
        """
        if not isinstance(adapter_name, str):
            raise ValueError(
                f"set_adapter({adapter_name!r}): only one adapter can be active; add_weighted_adapter combines several into one, "
                "merge_adapter([…]) merges several, and adapter_names selects one per row of a batch"
            )
        self._check_name(adapter_name)
        if adapter_name != self.active_adapter:
            self._check_idle()
        self.active_adapter = adapter_name
        for name in self.peft_config:
            self._set_trainable(name, name == adapter_name and not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter.

        If the deleted adapter was active, the first remaining adapter in alphabetical order becomes active, as in PEFT.
        A warning names the new active adapter.

        Parameters
        ----------
        adapter_name : str
            Name of the adapter.

        Raises
        ------
        ValueError
            If the adapter does not exist.
        RuntimeError
            If an adapter is merged, or if the adapters are disabled.
        """
        self._check_name(adapter_name)
        self._check_idle()
        method_of(self.peft_config[adapter_name]).delete(self, adapter_name)
        del self.peft_config[adapter_name]
        if adapter_name == self.active_adapter:
            self.active_adapter = None
            if self.peft_config:
                self.set_adapter(min(self.peft_config))
                warnings.warn(
                    f"{adapter_name!r} was active and is deleted; the active adapter is now {self.active_adapter!r}",
                    stacklevel=2,
                )

    def adapter_parameters(self, adapter_name: str | None = None) -> Iterator[Parameter]:
        """Yield the parameters of the adapters, including frozen parameters.

        Parameters
        ----------
        adapter_name : str, optional
            Yield only the parameters of this adapter. Default: the parameters of all adapters.

        Yields
        ------
        Parameter
            The next parameter. Each parameter of an adapter is yielded only once.
        """
        for name in self.peft_config if adapter_name is None else [adapter_name]:
            yield from method_of(self.peft_config[name]).parameters(self, name)

    def _set_trainable(self, adapter_name: str, trainable: bool) -> None:
        method_of(self.peft_config[adapter_name]).set_trainable(self, adapter_name, trainable)

    # --------------------------------------------------------------------------------------------------------- checks

    def _check_name(self, adapter_name: str) -> None:
        if adapter_name not in self.peft_config:
            raise ValueError(f"there is no adapter {adapter_name!r}; this model has {list(self.peft_config) or 'none'}")

    def _check_new(self, adapter_name: str) -> None:
        if adapter_name in self.peft_config:
            raise ValueError(f"the adapter {adapter_name!r} exists already; call delete_adapter, or use another name")
        if not isinstance(adapter_name, str) or adapter_name in ("", BASE, *FACTORS) or set(adapter_name) & set("./"):
            raise ValueError(
                f"invalid adapter name {adapter_name!r}; expected a text without '.' or '/', other than __base__, "
                f"{', '.join(FACTORS)}"
            )
        self._check_idle()
        if self._pissa_started:
            raise RuntimeError(
                "an adapter with PiSSA initialisation has changed the base, so no second adapter can be added; call "
                "save_pretrained, then load the folder into a PeftModel of the original base"
            )

    def _check_idle(self) -> None:
        if self.merged:
            raise RuntimeError("an adapter is merged into the weights; call unmerge_adapter() first")
        if self.disabled:
            raise RuntimeError("the adapters are disabled; leave the block `with disable_adapter()` first")

    # --------------------------------------------------------------------------------------------------- mixed batches

    def adapter_rows(self, adapter_names: Sequence[str] | None, rows: int) -> str | AdapterRows | None:
        """Return the value of `Context.adapter` for a call.

        Parameters
        ----------
        adapter_names : sequence of str or None
            One adapter name per row; the name "__base__" selects the base model. None selects the active adapter for
            all rows.
        rows : int
            Number of rows of the batch.

        Returns
        -------
        str, AdapterRows or None
            The name of the active adapter, the AdapterRows of a mixed batch, or None for the base model.

        Raises
        ------
        ValueError
            If the number of names differs from `rows`, if an adapter does not exist, or if an adapter cannot be in a
            mixed batch.
        RuntimeError
            If an adapter is merged, or if the adapters are disabled.
        """
        if adapter_names is None:
            return self.active_adapter
        names = check_names(adapter_names, rows, list(self.peft_config))
        self._check_idle()
        self.check_mixable(*set(names))
        return AdapterRows(names)

    def check_mixable(self, *adapter_names: str) -> None:
        """Raise ValueError for an adapter whose rows cannot share a batch with rows of other adapters.

        Parameters
        ----------
        *adapter_names : str
            Names of adapters; unknown names are ignored.
        """
        for name in adapter_names:
            if (config := self.peft_config.get(name)) is not None:
                method_of(config).check_mixable(name, config)

    @property
    def _pissa_started(self) -> bool:
        """True if an adapter was initialised by PiSSA in this model.

        The model can then have no other adapter.
        """
        return any(getattr(config, "init_lora_weights", None) == "pissa" for config in self.peft_config.values())


def check_tensors(adapter_name: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError if a tensor of an adapter contains numbers that `load_adapter` refuses."""
    for key, x in tensors.items():
        if x.dtype.kind == "c":
            raise ValueError(f"{adapter_name!r}: {key} is complex; call astype('float32') before save_pretrained")
        if not np.isfinite(x).all():
            raise ValueError(
                f"{adapter_name!r}: {key} contains NaN or infinity, so the adapter cannot be loaded again; load the last good "
                "adapter or checkpoint, and train with a smaller learning rate"
            )


def unique(names: str | Iterable[str]) -> list[str]:
    """Return the names as a list without duplicates."""
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))
