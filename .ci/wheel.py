"""Build the wheel, check it, install it in clean environments outside of the repository, and run every command there.

    python .ci/wheel.py

It needs a package index, and takes some minutes. Nothing is written in the repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOLVE = """
from pathlib import Path
from lora_np.exercises.exercise import exercises, with_solution
folder = Path("submissions", "anna")
folder.mkdir(parents=True)
for exercise in exercises():
    Path(folder, f"{exercise.source.stem}.py").write_text(with_solution(exercise.text), encoding="utf-8")
"""
TRAIN = """
import lora_np as ln
model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=2, target_modules="all-linear"))
batches = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=2, seq_len=16)
assert len(ln.train(model, batches, ln.AdamW(lr=1e-2), steps=2).rows) == 2
model.save_pretrained("adapter")
model.load_adapter("adapter", "again")
"""
ANSWERS = [
    f"submissions/anna/{i:02}_{name}.py" for i, name in ((1, "count_lora"), (3, "lora_backward"), (12, "mixed_lora"))
]
BARE = [  # with the core's dependencies alone: a command, its exit status, and a piece of what it prints
    ("params --model llama-2-7b --r 16 --target-modules all-linear", 0, "trainable params: 39,976,960"),
    ("memory --model llama-65b --method qlora --r 16 --seq 512", 0, "48 GB: fits"),
    ("generate --model tiny --raw Hello --max-new-tokens 5", 0, "5 tokens"),
    ("pretrain --steps 2 --output pretrained", 0, "nats per byte"),
    ("study", 0, "How much fits into a rank?"),
    ("exercises write answers --py", 0, "14 files written"),
    ("exercises check answers/01_count_lora.py", 1, "not written yet"),
    ("exercises write notebooks", 1, "pip install 'lora-np[course]'"),
    ("study ranks --quick", 1, "pip install 'lora-np[studies]'"),
    ("bench --only tiny", 1, "pip install 'lora-np[studies]'"),
    ("train --model tiny --data lighthouse --output keeper", 1, "pip install 'lora-np[models]'"),
    ("serve --model tiny", 1, "pip install 'lora-np[serve]'"),
    ("reproduce", 1, "pip install 'lora-np[course]'"),
]
EXTRAS = "models,course,studies,test,serve"
FULL = [
    ("train --model tiny --data lighthouse --steps 2 --max-length 128 --workers 2 --output keeper", 0, "2 steps in"),
    ("train --config keeper/train.toml --dry-run", 0, "time: about"),
    ("generate --model tiny --adapter keeper --raw Hello --max-new-tokens 5", 0, "5 tokens"),
    ("bench --only tiny --quick --no-compile --threads 1 --json tables --figures pictures", 0, "tokens/s"),
    ("exercises write notebooks", 0, "14 files written"),
    ("exercises check " + " ".join(ANSWERS), 0, "✓"),
    ("exercises grade submissions --csv grades.csv", 0, "12 of 12"),
    ("fetch --help", 0, "smollm2-135m"),
    ("notebooks write my-course", 1, "in a clone of the repository"),
    ("reproduce --full", 1, "in a clone of the repository"),
]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="lora_np-") as temporary:
        folder = Path(temporary).resolve()
        tools = environment(folder / "tools", ["build", "twine"])
        run([tools, "-m", "build", "--outdir", folder / "dist", ROOT], folder)
        files = list((folder / "dist").iterdir())
        run([tools, "-m", "twine", "check", "--strict", *files], folder)
        wheel = next(file for file in files if file.suffix == ".whl")
        for name, what, commands in (("bare", str(wheel), BARE), ("full", f"{wheel}[{EXTRAS}]", FULL)):
            python, work = environment(folder / name, [what]), folder / f"{name}-work"
            work.mkdir()
            run([python, "-c", TRAIN if name == "bare" else SOLVE], work)
            for line, status, shown in commands:
                command([python, "-m", "lora_np", *line.split()], work, status, shown)
        serve(python, work)
    print("the wheel works")


def environment(folder: Path, packages: list[str]) -> Path:
    """The Python of a new virtual environment with these packages."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], folder)
    return python


def run(words: list[str | Path], folder: Path) -> None:
    """Run a step in `folder`; if it fails, show what it printed and stop."""
    command(words, folder, 0, "")


def command(words: list[str | Path], folder: Path, status: int, shown: str) -> None:
    """Run a command in `folder`, without the repository on Python's path. It must end with `status` and print `shown`."""
    began = time.perf_counter()
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=clean(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    said = done.stdout + done.stderr
    line = " ".join(Path(word).name if isinstance(word, Path) else word for word in words[:12]).partition("\n")[0]
    if done.returncode != status or shown not in said or "Traceback" in said:
        sys.exit(f"{line}\nended with {done.returncode}, expected {status} and {shown!r}; it printed:\n{said}")
    print(f"{time.perf_counter() - began:6.1f} s  {line}", flush=True)


def clean() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LORA_NP_CACHE")}


def serve(python: Path, folder: Path) -> None:
    """Start the server, ask it once, and stop it."""
    words = [str(python), "-m", "lora_np", "serve", "--model", "tiny", "--adapter", "keeper=keeper", "--port", "0"]
    process = subprocess.Popen(words, cwd=folder, env=clean(), stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/models", timeout=60) as answer:
            models = answer.read().decode()
        if '"keeper"' not in models:
            sys.exit(f"serve does not list the adapter: {models}")
    finally:
        process.terminate()
        process.wait(60)
    print("          serve answers", flush=True)


if __name__ == "__main__":
    main()
