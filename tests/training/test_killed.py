"""Tests of killed runs: a resumed run ends with the same bits as an uninterrupted run, and no file is ever partly written.

The run is a separate process. It pauses at certain moments and reports each one: a batch is requested, half of a file is
written, the whole file is written, the file is renamed. A test can kill the process at any of these moments. SIGKILL cannot
be caught.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import tomllib

import pytest

from lora_np.files import load_arrays

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")]

KILLED = -9  # the exit status: minus SIGKILL

MOMENTS = """
import os, sys
import lora_np as ln
import lora_np.files.arrays

def moment(name, of=""):
    print(name, os.path.basename(of).split(".")[0], flush=True)
    sys.stdin.readline()  # wait here to be killed or to continue

write, replace = lora_np.files.arrays._write, os.replace

def write_with_moments(path, arrays, metadata):
    write(path, arrays, metadata)
    whole = path.read_bytes()
    os.truncate(path, len(whole) // 2)
    moment("half", path)
    path.write_bytes(whole)
    moment("whole", path)

def replace_with_moment(old, new):
    replace(old, new)
    moment("renamed", new)

lora_np.files.arrays._write, os.replace = write_with_moments, replace_with_moment

class WithMoments:
    def __getitem__(self, i):
        moment("batch")
        return super().__getitem__(i)
"""

LIBRARY = """
class Batches(WithMoments, ln.data.Batches):
    pass

method, folder = sys.argv[1:]
model = ln.Transformer.random(ln.TransformerConfig(
    vocab_size=11, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=4, max_position_embeddings=32,
))
if method == "lora":
    model = ln.get_peft_model(model, ln.LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.3))
batches = Batches(np.arange(500) ** 2 % 11, batch_size=2, seq_len=6)
history = ln.train(
    model, batches, ln.AdamW(0.05), steps=20, schedule=ln.WarmupCosine(20, 2), max_grad_norm=1.0, accumulate=2,
    checkpoint=folder + "/checkpoint.safetensors", checkpoint_every=1, resume=True,
)
"""

COMMAND = """
sys.modules["matplotlib"] = None  # so that no time is needed for a picture
from lora_np import conversations
from lora_np.__main__ import main

class ConversationBatches(WithMoments, conversations.ConversationBatches):
    pass

conversations.ConversationBatches = ConversationBatches
sys.exit(main(sys.argv[1:]))
"""


class Run:
    """A process that runs `code` and writes to `folder`."""

    def __init__(self, code, arguments, folder):
        folder.mkdir(exist_ok=True)
        self.folder, self.said = folder, []
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"import numpy as np{MOMENTS}{code}", *arguments],
            env=os.environ
            | {"OPENBLAS_NUM_THREADS": "1"},  # BLAS threads wait by spinning, which is slow on a busy machine
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )

    def moments(self):
        """Yield each moment after checking that all files in the folder are complete; then let the process continue."""
        for line in self.process.stdout:
            if line.startswith(("batch", "half", "whole", "renamed")):
                self.check()
                yield line.strip()
                with contextlib.suppress(BrokenPipeError):  # the process was killed
                    print(file=self.process.stdin, flush=True)
            else:
                self.said.append(line)

    def check(self):
        for path in self.folder.iterdir():
            if path.suffix == ".safetensors":
                load_arrays(path)  # raises if a byte is missing or changed
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))

    def kill_at(self, moment, count):
        """Kill the process when `moment` occurs for the count-th time."""
        for seen in self.moments():
            count -= seen == moment
            if count == 0:
                self.process.kill()
                break
        self.end(KILLED)

    def kill_after(self, seconds):
        """Kill the process some time after its first moment, unless it has ended before."""
        moments = self.moments()
        next(moments)
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        for _ in moments:
            pass
        timer.cancel()
        self.end(0, KILLED)

    def finish(self):
        """Let the process run to its end."""
        for _ in self.moments():
            pass
        self.end(0)

    def end(self, *expected):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        status = self.process.wait()
        self.process.stdout.close()
        assert status in expected, f"the process ended with {status}; its output was:\n{''.join(self.said)}"
        self.check()


def content(path):
    """Return the exact content of a file, without times, which differ between runs."""
    if path.suffix == ".jsonl":
        return without_seconds(map(json.loads, path.read_text(encoding="utf-8").splitlines()))
    if path.suffix == ".toml":
        return tomllib.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    arrays, metadata = load_arrays(path)
    if "history" in metadata:
        metadata["history"] = without_seconds(json.loads(metadata["history"]))
        del metadata["lora_np.sha256"]  # the digest includes the times
    return {name: (x.dtype.str, x.shape, x.tobytes()) for name, x in arrays.items()}, metadata


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def contents(folder):
    left_out = ("SHA256SUMS",)  # contains a digest of the times
    return {path.name: content(path) for path in sorted(folder.iterdir()) if path.name not in left_out}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_killed_again_and_again_ends_with_the_same_bits(method, tmp_path):
    def run(name):
        return Run(LIBRARY, [method, str(tmp_path / name)], tmp_path / name)

    run("never killed").finish()
    draw = random.Random(method)
    kills = [(f"{moment} checkpoint", draw.randint(1, 3)) for moment in ("half", "whole", "renamed")]
    kills += [("batch", draw.randint(2, 7)), ("half checkpoint", 2)]
    draw.shuffle(kills)  # the run is killed several times before step 20
    for moment, count in kills:
        run("killed").kill_at(moment, count)
    run("killed").kill_after(draw.uniform(0, 0.05))
    run("killed").finish()
    killed, never = contents(tmp_path / "killed"), contents(tmp_path / "never killed")
    assert list(never) == ["checkpoint.safetensors"] and killed == never


def test_the_command_killed_again_and_again_ends_with_the_same_adapter(tmp_path):
    data = tmp_path / "data.jsonl"
    turns = [("Who?", "A keeper."), ("Where?", "At sea."), ("When?", "At dusk.")]
    messages = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in turns]
    data.write_text("\n".join(json.dumps({"messages": m}) for m in messages), encoding="utf-8")

    def run(name):
        options = ["--model", "tiny", "--r", "2", "--lora-dropout", "0.1", "--batch-size", "2", "--steps", "4"]
        options += ["--checkpoint-every", "1", "--resume", "--data", str(data), "--output", str(tmp_path / name)]
        return Run(COMMAND, ["train", *options], tmp_path / name)

    run("never killed").finish()
    kills = [("batch", 3), ("half checkpoint", 2), ("half adapter_model", 1), ("renamed adapter_model", 1)]
    for moment, count in [*kills, ("renamed adapter_config", 1)]:
        run("killed").kill_at(moment, count)
    names = {path.name for path in (tmp_path / "killed").iterdir()}
    assert {"adapter_model.safetensors", "checkpoint.safetensors"} <= names, (
        "the run must be killed between the two writes"
    )
    run("killed").finish()
    assert not list((tmp_path / "killed").glob("*.tmp")), "temporary files must be removed at the end"
    killed, never = contents(tmp_path / "killed"), contents(tmp_path / "never killed")
    assert list(never) == ["adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "train.toml"]
    assert killed == never
