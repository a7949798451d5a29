"""Which adapters there are: known by name and folder, as many of them in memory as there is room for.

What was used last stays longest (LRU), and what a request is using does not go. They come from the folders that the server
was started with, and from nowhere else.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Iterable
from pathlib import Path

from ..nn import BASE
from ..peft import PeftModel
from ..peft.files import CONFIG, WEIGHTS


class UnknownAdapter(KeyError):
    """There is no adapter of that name."""


class AdapterStore:
    """The adapters of one PeftModel. Those that it had before are always there; at most `max_loras` others are in memory.

    folders: where adapters may be loaded from, each with all below it.
    """

    def __init__(self, model: PeftModel, max_loras: int, folders: Iterable[str | os.PathLike[str]] = ()) -> None:
        if max_loras < 1:
            raise ValueError(f"max_loras = {max_loras}; expected at least 1")
        self.model, self.max_loras = model, max_loras
        self.allowed = [Path(folder).resolve(strict=True) for folder in folders]
        self.resident = list(model.peft_config)
        model.check_mixable(*self.resident)
        self.known: dict[str, Path] = {}  # name → folder
        self.leaving: dict[str, Path] = {}  # the same, unloaded while requests that were accepted still need them
        self.loaded: OrderedDict[str, None] = OrderedDict()  # the one used last is last

    def names(self) -> list[str]:
        """What a request may ask for, the base apart."""
        return [*self.resident, *self.known]

    def check(self, name: str) -> None:
        """Raises UnknownAdapter for a name that a request may not ask for."""
        if name != BASE and name not in self.known and name not in self.resident:
            raise UnknownAdapter(f"there is no adapter {name!r}; there are {self.names() or 'none'}")

    def load(self, name: str, folder: str | os.PathLike[str], in_use: Collection[str] = ()) -> None:
        """Make an adapter known, and read it if one in memory can make room, so that a damaged one is refused now.

        Raises ValueError for a name that is taken or impossible, a folder outside those allowed, one that does not fit the
        base or cannot share its product, FileNotFoundError where no adapter is; nothing has changed then.
        """
        if name in self.leaving:
            raise ValueError(f"the adapter {name!r} was unloaded, and requests still use it: wait for them to finish")
        if name in self.names():
            raise ValueError(f"there is an adapter {name!r} already: unload it first, or take another name")
        self.known[name] = self.inside(folder)
        try:
            self.acquire(name, in_use)
        except Exception:
            del self.known[name]
            raise

    def unload(self, name: str, in_use: Collection[str] = ()) -> None:
        """From now on there is no such adapter; requests that were accepted before keep it until they finish.

        Raises UnknownAdapter for a name that no folder was loaded under.
        """
        if name not in self.known:
            raise UnknownAdapter(f"no adapter {name!r} was loaded; there are {list(self.known) or 'none'}")
        self.leaving[name] = self.known.pop(name)
        self.sweep(in_use)

    def sweep(self, in_use: Collection[str]) -> None:
        """Forget those that were unloaded and that nobody uses any more."""
        for name in [name for name in self.leaving if name not in in_use]:
            del self.leaving[name]
            if name in self.loaded:
                self._evict(name)

    def acquire(self, name: str, in_use: Collection[str]) -> bool:
        """Have the adapter in memory, in the place of the one that was not used for longest. False where all are in use.

        Raises as PeftModel.load_adapter does where its folder has changed and holds none that fits.
        """
        if name == BASE or name in self.resident:
            return True
        if name not in self.loaded:
            if len(self.loaded) >= self.max_loras:
                idle = next((other for other in self.loaded if other not in in_use), None)
                if idle is None:
                    return False
                self._evict(idle)
            folder = self.known[name] if name in self.known else self.leaving[name]
            self.model.load_adapter(self.inside(folder), name)
            self.loaded[name] = None
            try:
                self.model.check_mixable(name)
            except ValueError:
                self._evict(name)
                raise
        self.loaded.move_to_end(name)
        return True

    def _evict(self, name: str) -> None:
        del self.loaded[name]
        self.model.delete_adapter(name)

    def inside(self, folder: str | os.PathLike[str]) -> Path:
        """The folder as an absolute path, once it and its files are known to lie where adapters may come from.

        A relative one counts from each allowed folder. Raises ValueError for `..` and for a link out, FileNotFoundError
        where it is not there.
        """
        path = Path(folder)
        if ".." in path.parts or "\0" in str(path):
            raise ValueError(f"the folder {str(folder)!r}: a path with .. is not taken")
        for root in self.allowed:
            found = (root / path).resolve()  # an absolute path is itself, wherever it starts from
            if not found.is_relative_to(root):
                continue
            for file in (found / CONFIG, found / WEIGHTS):
                if not file.resolve().is_relative_to(root):
                    raise ValueError(f"{file} is a link out of the folders that adapters may come from")
            if found.is_dir():
                return found
        if any((root / path).resolve().is_relative_to(root) for root in self.allowed):
            raise FileNotFoundError(f"no adapter in {str(folder)!r}: there is no such folder")
        raise ValueError(f"{str(folder)!r} is outside the folders that adapters may come from")
