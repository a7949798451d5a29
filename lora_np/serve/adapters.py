"""Load adapters by name, and keep a limited number of them in memory.

The least recently used (LRU) adapter is removed first. An adapter that a request uses is never removed. Adapters can be
loaded only from folders that are named when the server starts.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from ..nn import BASE
from ..peft import PeftModel
from ..peft.files import CONFIG, WEIGHTS

MAX_NAME = 128  # characters of an adapter's name
SHOWN_NAMES = 20  # names in an error message
# The names of a PeftModel's parameters contain the adapter's name, so the adapter's name has no "." and no "/".
ESCAPES = str.maketrans({"%": "%25", ".": "%2E", "/": "%2F"})


class UnknownAdapter(KeyError):
    """Raised if a request names an adapter that is not loaded.

    Examples
    --------
    >>> import lora_np as ln
    >>> server = ln.AdapterServer(ln.load_model("tiny"))
    >>> try:
    ...     server.submit([65], adapter="poet")
    ... except ln.serve.UnknownAdapter as error:
    ...     print(error.args[0])
    there is no model 'poet'; this server has __base__
    """


def check_adapter_name(name: str, base: str = BASE) -> None:
    """Raise ValueError if `name` cannot be the name of a served adapter. `base` is the served name of the base model.

    A name consists of printable characters, because names are sent in responses and written to a terminal. Half a
    surrogate pair cannot be encoded, and control characters change what a terminal shows.
    """
    if not name or len(name) > MAX_NAME or not name.isprintable():
        shown = f"{name[:MAX_NAME]!r}" + "…" * (len(name) > MAX_NAME)
        raise ValueError(f"the adapter name is {shown}; expected 1 to {MAX_NAME} printable characters")
    if name in (BASE, base):
        raise ValueError(f"{name!r} is the name of the base model; choose another name for the adapter")


class AdapterStore:
    """The adapters of one PeftModel, with a limit on the loaded adapters in memory.

    Adapters that `model` already contains always stay in memory and do not count towards the limit.

    Parameters
    ----------
    model : PeftModel
        The model into which the adapters are loaded.
    max_loras : int
        Largest number of loaded adapters in memory.
    folders : iterable of str or PathLike, optional
        Adapters may be loaded from these folders and their subfolders. By default no adapter can be loaded.

    Raises
    ------
    ValueError
        If `max_loras` is below 1, or if an adapter of the model cannot share a batch with other adapters.
    FileNotFoundError
        If a folder does not exist.

    Examples
    --------
    >>> import tempfile
    >>> import lora_np as ln
    >>> folder = tempfile.mkdtemp()
    >>> ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=2)).save_pretrained(folder)
    >>> store = ln.serve.AdapterStore(ln.PeftModel(ln.load_model("tiny").freeze()), max_loras=1, folders=[folder])
    >>> store.load("poet", folder)
    >>> store.load("keeper", folder)  # removes "poet" from memory, but not from the names
    >>> store.names(), list(store.loaded)
    (['poet', 'keeper'], ['keeper'])
    """

    def __init__(self, model: PeftModel, max_loras: int, folders: Iterable[str | os.PathLike[str]] = ()) -> None:
        if max_loras < 1:
            raise ValueError(f"max_loras = {max_loras}; expected at least 1")
        self.model, self.max_loras = model, max_loras
        self.roots = [Path(folder).resolve(strict=True) for folder in folders]
        self.permanent = list(model.peft_config)
        model.check_mixable(*self.permanent)
        self.base = BASE  # the base model's name for clients: see `reserve`
        self.registered: dict[str, Path] = {}  # name → folder, in memory or not
        self.unloading: dict[str, Path] = {}  # unloaded adapters that accepted requests still use
        self.loaded: OrderedDict[str, None] = OrderedDict()  # names in memory, the most recently used last

    def reserve(self, base: str) -> None:
        """Set the name of the base model for clients. No adapter may have this name.

        Parameters
        ----------
        base : str
            The name of the base model.

        Raises
        ------
        ValueError
            If an adapter has this name, or if the name of an adapter cannot be sent to clients.
        """
        for name in self.names():
            check_adapter_name(name, base)
        self.base = base

    def names(self) -> list[str]:
        """Return the names of all adapters that a request may use.

        Returns
        -------
        list of str
            The names of the adapters; the name of the base model is not included.
        """
        return [*self.permanent, *self.registered]

    def peft_name(self, name: str) -> str:
        """Return the PeftModel's name for the adapter that clients call `name`, such as "org/poet-v1.2".

        Parameters
        ----------
        name : str
            The adapter's name for clients, or `"__base__"`.

        Returns
        -------
        str
            The name with "%", "." and "/" encoded as in a URL. Adapters that the model already contained keep their name.
        """
        return name if name in self.permanent else name.translate(ESCAPES)

    def check(self, name: str) -> None:
        """Raise an error if a request may not use this adapter.

        Parameters
        ----------
        name : str
            The adapter's name, or `"__base__"` for the base model.

        Raises
        ------
        UnknownAdapter
            If there is no such adapter.
        """
        if name != BASE and name not in self.registered and name not in self.permanent:
            shown = f"{name[:MAX_NAME]!r}" + "…" * (len(name) > MAX_NAME)
            raise UnknownAdapter(f"there is no model {shown}; this server has {_list([self.base, *self.names()])}")

    def load(
        self,
        name: str,
        folder: str | os.PathLike[str],
        in_use: Collection[str] = (),
        roots: Iterable[str | os.PathLike[str]] | None = None,
    ) -> None:
        """Register an adapter, and load it into memory if there is room.

        If memory is full of adapters in use, the files of the new adapter are read later, for its first request. An error
        leaves the store unchanged.

        Parameters
        ----------
        name : str
            The name by which requests ask for the adapter.
        folder : str or PathLike
            The adapter's folder, absolute or relative to one of the allowed folders.
        in_use : collection of str, optional
            Names of adapters that must stay in memory.
        roots : iterable of str or PathLike, optional
            Allowed folders for this adapter alone, instead of the allowed folders of the store.

        Raises
        ------
        ValueError
            If the name is invalid or already exists, or if the folder is outside the allowed folders. The error is also
            raised if the adapter does not fit the base model, or cannot share a batch with other adapters.
        FileNotFoundError
            If the folder or one of its files does not exist.
        """
        check_adapter_name(name, self.base)
        if name in self.unloading:
            raise ValueError(f"adapter {name!r} was unloaded, but requests still use it; wait until they finish")
        if name in self.names():
            raise ValueError(f"an adapter {name!r} already exists; unload it first, or choose another name")
        own = None if roots is None else [Path(root).resolve(strict=True) for root in roots]
        self.registered[name] = self.resolve(folder, own)
        try:
            self.acquire(name, in_use)
        except Exception:
            del self.registered[name]
            raise

    def unload(self, name: str, in_use: Collection[str] = ()) -> None:
        """Remove an adapter's name, so that no new request can use it.

        Requests that were accepted earlier use the adapter until they finish.

        Parameters
        ----------
        name : str
            Name of a loaded adapter.
        in_use : collection of str, optional
            Names of adapters that must stay in memory.

        Raises
        ------
        UnknownAdapter
            If no adapter was loaded under this name.
        """
        if name not in self.registered:
            raise UnknownAdapter(
                f"no adapter {name!r} was loaded; adapters that can be unloaded: {_list(self.registered)}"
            )
        self.unloading[name] = self.registered.pop(name)
        self.remove_unused(in_use)

    def remove_unused(self, in_use: Collection[str]) -> None:
        """Remove from memory the adapters that were unloaded by name and that no request uses any more.

        Parameters
        ----------
        in_use : collection of str
            Names of the adapters that requests use.
        """
        for name in [name for name in self.unloading if name not in in_use]:
            del self.unloading[name]
            if name in self.loaded:
                self._evict(name)

    def acquire(self, name: str, in_use: Collection[str]) -> bool:
        """Load an adapter into memory if necessary, and mark the adapter as the most recently used.

        If memory is full, the new adapter replaces the least recently used adapter that no request uses.

        Parameters
        ----------
        name : str
            The adapter's name, or `"__base__"`.
        in_use : collection of str
            Names of adapters that must stay in memory.

        Returns
        -------
        bool
            True if the adapter is in memory, False if memory is full of adapters in use.

        Raises
        ------
        ValueError
            If the files have changed and no longer fit the model.
        OSError
            If the files cannot be read.
        """
        if name == BASE or name in self.permanent:
            return True
        if name not in self.loaded:
            if len(self.loaded) >= self.max_loras:
                idle = next((other for other in self.loaded if other not in in_use), None)
                if idle is None:
                    return False
                self._evict(idle)
            folder = self.registered[name] if name in self.registered else self.unloading[name]
            self.model.load_adapter(self.resolve(folder, [*self.roots, folder]), self.peft_name(name))
            self.loaded[name] = None
            try:
                self.model.check_mixable(self.peft_name(name))
            except Exception:
                self._evict(name)
                raise
        self.loaded.move_to_end(name)
        return True

    def _evict(self, name: str) -> None:
        del self.loaded[name]
        self.model.delete_adapter(self.peft_name(name))

    def resolve(self, folder: str | os.PathLike[str], roots: Sequence[Path] | None = None) -> Path:
        """Return the absolute path of an adapter's folder, after checking that it is inside an allowed folder.

        Parameters
        ----------
        folder : str or PathLike
            An absolute path, or a path relative to one of the allowed folders.
        roots : sequence of Path, optional
            The allowed folders; by default the allowed folders of the store.

        Returns
        -------
        Path
            The absolute path, with symbolic links resolved.

        Raises
        ------
        ValueError
            If the path contains `..` or, after symbolic links are followed, lies outside the allowed folders.
        FileNotFoundError
            If the folder does not exist.
        """
        path, roots = Path(folder), self.roots if roots is None else roots
        if ".." in path.parts or "\0" in str(path):
            raise ValueError(f"the path {str(folder)!r} must not contain '..' or a null character")
        for root in roots:
            found = _real(root / path)  # if `path` is absolute, `root` has no effect
            if not found.is_relative_to(root):
                continue
            for file in (found / CONFIG, found / WEIGHTS):
                if not _real(file).is_relative_to(root):
                    raise ValueError(f"{file} is a link to a file outside the allowed folders")
            if found.is_dir():
                return found
        if any(_real(root / path).is_relative_to(root) for root in roots):
            raise FileNotFoundError(f"no adapter in {str(folder)!r}: this folder does not exist")
        raise ValueError(f"{str(folder)!r} is outside the allowed folders, which are set when the server starts")

    def without_roots(self, message: str) -> str:
        """Return an error message for a client, with paths relative to the allowed folders.

        Parameters
        ----------
        message : str
            The message, which can contain absolute paths.

        Returns
        -------
        str
            The message without the paths of the allowed folders.
        """
        for root in self.roots:
            message = message.replace(str(root / "x")[:-1], "")
            message = message.replace(str(root), ".") if root.name else message  # "/" has no name
        return message


def _real(path: Path) -> Path:
    """Return the path without symbolic links. `Path.resolve` is not used, because it raises RuntimeError for a link to itself."""
    return Path(os.path.realpath(path))


def _list(names: Collection[str]) -> str:
    first = list(names)[:SHOWN_NAMES]
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return (", ".join(first) or "no adapters") + more
