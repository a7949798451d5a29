"""Import optional packages where they are needed; if a package is missing, the error names the extra to install.

    with extra("models", "a tokenizer"):
        from tokenizers import Tokenizer

The extras and their packages are in pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtra(ImportError):
    """The error for an optional package that is not installed."""


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Return a context manager in which optional packages are imported.

    Parameters
    ----------
    name : str
        The extra in pyproject.toml that lists the packages: "models", "course", "studies", …
    what : str
        The feature that needs the packages, as the subject of the error message, for example "a tokenizer".

    Raises
    ------
    MissingExtra
        If a package is not installed. The message is one line with the command that installs the package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        raise MissingExtra(f"{what} needs {package}; run pip install 'lora-np[{name}]'", name=error.name) from None
