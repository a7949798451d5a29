"""How long does a whole fine-tuning job take, from the shell's prompt to the saved adapter, here and with PEFT?

Each job is a separate process, which runs the script with_lora_np.py or with_peft.py. Both scripts start from the same
base model and the same new adapter in the same float32 folders. They train on the same batches of records of similar
length, with the same learning rates, clipping and loss on the answers. The jobs run in turns.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .... import LoraConfig, PeftModel, WarmupCosine, conversations, get_peft_model, load_model, load_tokenizer
from ....files import VocabularyTokenizer
from ....pretrained import save_model
from ....training import evaluate
from ...harness.table import Table, versions
from ...harness.turns import in_turns
from .. import machine
from ..benchmark import CompetitorFailed
from ..speed import CORES, SAME_LOSS, Say, oracles_installed, ratio_and_range

COMMAND = "python -m lora_np bench --job --json figures/data"
QUESTION = "How long does a fine-tuning job take, here and in PyTorch with PEFT?"
PHASES = ("import", "load", "train", "save")
OURS, PEFT = "ours", "PEFT"
SCRIPTS = {  # the arguments of Python; with_peft.py runs by its path, so that lora_np is not imported
    OURS: ("-m", "lora_np.studies.timing.job.with_lora_np"),
    PEFT: (str(Path(__file__).with_name("with_peft.py")),),
}
DATA = "lighthouse"
BATCH_SIZE, R, LORA_ALPHA, LEARNING_RATE, MAX_GRAD_NORM, SEED = 8, 8, 16, 3e-3, 1.0, 0
ROWS = (8, 4, 2)  # the sizes of PEFT's pieces of a batch that are tried, in records
TRIAL = 5  # steps of a trial, which also fills the system's file cache
# the largest relative difference between the losses of later steps, and between the held-out losses
SAME_LATER_LOSS = 0.001

Task = dict[str, Any]  # the settings of a job, which the scripts read from a JSON file


def job(model: str = "smollm2-135m", steps: int = 60, rounds: int = 3, threads: int = CORES, say: Say = print) -> Table:
    """Time the whole job of each competitor once per round, and compare the saved adapters.

    `model` is "smollm2-135m" or a Hugging Face folder with a tokenizer. The columns are `competitor`, `seconds`,
    `import_seconds`, `load_seconds`, `train_seconds`, `save_seconds`, `peak_bytes`, `heldout`, `rows`, `ratio`,
    `ratio_range`, `losses` and `rounds`. All seconds are medians over the rounds, and `rounds` has the seconds of each
    round. The phase "import" begins with the start of Python, and the phase "save" ends with the end of the process.
    `heldout` is the loss on the held-out answers, which this library computes for each saved adapter. PEFT computes at
    most `rows` records at once; `rows` is the value in `ROWS` that was fastest in short trials. `ratio` is the median
    over the rounds of the competitor's time divided by this library's time. If the losses of the jobs differ, `ratio`
    is None, and `say` is called with a message.
    """
    started = time.perf_counter()
    names = [OURS, *([PEFT] if oracles_installed(say) else [])]
    with tempfile.TemporaryDirectory(prefix="lora_np-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        task = prepared(model, steps, threads, folder)
        tried = {name: trials(name, task, folder, say) for name in names}
        tasks = {name: task | {"rows": min(found, key=found.__getitem__)} for name, found in tried.items() if found}
        say(f"{rounds} rounds of {' and '.join(tasks)}, {steps} steps each")
        running = {name: partial(run, name, chosen, folder) for name, chosen in tasks.items()}
        ran = in_turns(running, rounds, warm_up=0, rng=np.random.default_rng(0))
        heldout = {name: heldout_loss(task["base"], jobs[-1]["output"]) for name, jobs in ran.items()}
        before = heldout_loss(task["base"], task["adapter"])
        blas = {name: blas_of(name, threads) for name in ran}
    rows = []
    for name, jobs in ran.items():
        rows.append(row(name, jobs) | {"heldout": heldout[name], "rows": tasks[name]["rows"]})
        rows[-1] |= ratio_and_range([job["seconds"] for job in jobs], [job["seconds"] for job in ran[OURS]])
        if wrong := different(rows[0], rows[-1]):
            say(f"no ratio, because {name} computes a different result: {wrong}")
            rows[-1] |= {"ratio": None, "ratio_range": None}
    kept = ("batch_size", "lr", "warmup", "max_grad_norm", "seed", "steps")
    settings: dict[str, Any] = {"model": model, "data": DATA, "dtype": "float32", "target_modules": "all-linear"}
    settings |= {"r": R, "lora_alpha": LORA_ALPHA, "heldout_before": before, "group_by_length": True}
    settings |= {key: task[key] for key in kept}
    settings |= {"trial_seconds": {name: {str(n): s for n, s in found.items()} for name, found in tried.items()}}
    known = versions() | {name: version(name) for name in ("torch", "peft", "transformers") if PEFT in ran}
    settings |= machine.conditions(threads, rounds, blas)
    return Table("job", QUESTION, COMMAND, settings, rows, known, time.perf_counter() - started)


def prepared(model: str, steps: int, threads: int, folder: Path) -> Task:
    """Write the base model, a new adapter and the settings' batches into `folder`, and return the settings of the jobs."""
    base = Path(model)
    if not base.is_dir():
        base, tokenizer = folder / "base", load_tokenizer(model)
        if not isinstance(tokenizer, VocabularyTokenizer):
            raise ValueError(f"the tokenizer of {model} has no files, which transformers needs; choose another model")
        save_model(load_model(model, device="numpy"), base)
        tokenizer.save_pretrained(base)
    config = LoraConfig(r=R, lora_alpha=LORA_ALPHA, target_modules="all-linear")
    get_peft_model(load_model(base, device="numpy"), config, seed=SEED).save_pretrained(folder / "adapter")
    examples = conversations.read(DATA, load_tokenizer(base))
    batches = conversations.ConversationBatches(examples, BATCH_SIZE, SEED, group_by_length=True)
    schedule = WarmupCosine(steps, math.ceil(steps / 10))
    task: Task = {"base": str(base), "adapter": str(folder / "adapter"), "data": str(conversations.dataset(DATA))}
    task |= {"batch_size": BATCH_SIZE, "seed": SEED, "max_grad_norm": MAX_GRAD_NORM, "threads": threads}
    task |= {"lr": LEARNING_RATE, "steps": steps, "warmup": schedule.warmup}
    task |= {"batches": [batches.numbers(step) for step in range(steps)]}
    return task | {"rates": [LEARNING_RATE * schedule(step) for step in range(steps)]}


def trials(name: str, task: Task, folder: Path, say: Say) -> dict[int, float]:
    """Run a few steps for each size of a piece, and return the seconds of training for each size.

    This library has one trial, because it chooses its pieces itself. If PEFT fails, the function returns an empty
    dictionary and calls `say` with the error.
    """
    steps = min(TRIAL, task["steps"])
    short: Task = {"steps": steps, "warmup": min(steps, task["warmup"])}
    short |= {key: task[key][:steps] for key in ("batches", "rates")}
    found = {}
    for rows in ROWS if name == PEFT else (BATCH_SIZE,):
        try:
            found[rows] = run(name, task | short | {"rows": rows}, folder)["train"]
        except CompetitorFailed as error:
            if name == OURS:
                raise
            say(f"left out: {error}")
            return {}
        say(f"trial of {name}, {rows} records at once: {found[rows]:.1f} s for {steps} steps")
    return found


def run(name: str, task: Task, folder: Path) -> dict[str, Any]:
    """Run one job; return the seconds of each phase and in total, the peak memory, the losses and the output folder."""
    place = Path(tempfile.mkdtemp(dir=folder))
    task = task | {"output": str(place / "output")}
    (place / "task.json").write_text(json.dumps(task), encoding="utf-8")
    stamps, losses, peak = [time.perf_counter()], None, None
    with (
        (place / "log").open("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            [sys.executable, *SCRIPTS[name], str(place / "task.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=machine.in_environment(task["threads"]),
            encoding="utf-8",
        ) as process,
    ):
        assert process.stdout is not None and process.stdin is not None
        try:
            for line in process.stdout:
                if line.strip() == PHASES[min(len(stamps), len(PHASES)) - 1]:
                    stamps.append(time.perf_counter())
                elif line.startswith("["):  # the last line
                    losses, peak = json.loads(line), machine.resident_memory(process.pid).get("peak")
                    break
            process.stdin.close()
            code = process.wait()
        except BaseException:  # also KeyboardInterrupt: no job outlives the study
            process.kill()
            raise
        stamps.append(time.perf_counter())
        if code or losses is None:
            log.seek(0)
            last = (log.read().strip().splitlines() or ["the process wrote no message"])[-1]
            raise CompetitorFailed(f"the job of {name} ended with code {code}: {last}")
    phases = dict(zip(PHASES, np.diff(stamps).tolist(), strict=True))
    return phases | {"seconds": stamps[-1] - stamps[0], "peak": peak, "losses": losses, "output": task["output"]}


def heldout_loss(base: str, adapter: str) -> float:
    """Return the loss on the held-out answers, in nats per token, of a base model with a saved adapter."""
    model = PeftModel.from_pretrained(load_model(base, device="numpy"), adapter)
    examples = conversations.read(DATA, load_tokenizer(base), split="heldout")
    return evaluate(model, conversations.heldout_batches(examples, BATCH_SIZE))


def blas_of(name: str, threads: int) -> dict[str, Any]:
    """Return the name, the kernel and the threads of a competitor's BLAS, found in a process with the job's environment."""
    what = "numpy_blas" if name == OURS else "torch_blas"
    code = f"import json; from lora_np.studies.timing import machine; print(json.dumps(machine.{what}()))"
    environment = machine.in_environment(threads)
    told = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(told.stdout.splitlines()[-1])


def row(name: str, jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a competitor's row without the ratio: medians over the rounds, and the losses of the last round."""
    median = {key: statistics.median(job[key] for job in jobs) for key in ("seconds", *PHASES)}
    peaks = [job["peak"] for job in jobs]
    found: dict[str, Any] = {"competitor": name, "seconds": median["seconds"]}
    found |= {f"{phase}_seconds": median[phase] for phase in PHASES}
    found |= {"peak_bytes": None if None in peaks else statistics.median(peaks), "losses": jobs[-1]["losses"]}
    return found | {"rounds": [job["seconds"] for job in jobs]}


def different(ours: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return a description if two jobs differ in the loss of a step or in the held-out loss, otherwise "".

    The losses of the first step must agree up to rounding. Later losses must agree to 0.1 %, because each update makes the
    rounding errors larger.
    """
    for i, (here, there) in enumerate(zip(ours["losses"], other["losses"], strict=True)):
        if not abs(here - there) <= (SAME_LOSS if i == 0 else SAME_LATER_LOSS * here):  # NaN differs from every number
            return f"the loss of step {i + 1} is {here} here and {there} there"
    if not abs(ours["heldout"] - other["heldout"]) <= SAME_LATER_LOSS * ours["heldout"]:
        return f"the held-out loss is {ours['heldout']} here and {other['heldout']} there"
    return ""
