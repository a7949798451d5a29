"""python -m lora_np train: an adapter for a real language model, or all of its weights, from a file of conversations.

What lies in the output folder while it trains is checkpoint.safetensors, by which `--resume` goes on after whatever stopped
it; and with `--overwrite` an empty file, "overwriting", as long as what was there before is not replaced. When the adapter
(or, with `--full`, the model) is there and whole, both are removed, and history.json keeps the losses.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..data.conversations import Example
from ..files import ByteTokenizer, Tokenizer, VocabularyTokenizer, write_atomically
from ..nn import Module
from ..quantization import QUANT_TYPES
from ..training import History
from .methods import DEFAULT, METHODS, add_method, check_options, configuration, learning_rates

HELP = "fine-tune a language model on your own questions and answers"
MAX_LENGTH = 1024

CHECKPOINT, HISTORY, OVERWRITING = "checkpoint.safetensors", "history.json", "overwriting"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
MODEL = ("config.json", "model.safetensors")
UNFINISHED = re.compile(r".+\.[0-9a-f]{32}\.tmp")  # what a process that was killed while writing leaves behind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        default="smollm2-135m",
        help="as in load_model: a name, a Hugging Face folder, a .gguf file (default %(default)s)",
    )
    add(
        "--data",
        required=True,
        metavar="FILE.jsonl",
        help='records to learn from, or "lighthouse", which the package has',
    )
    add("--heldout", metavar="FILE.jsonl", help="records to measure on, before and after (lighthouse has its own)")
    add("--output", type=Path, required=True, metavar="FOLDER", help="where the adapter goes")
    add(
        "--quantize",
        choices=QUANT_TYPES,
        help="keep the frozen base in four bits (QLoRA, with LoRA); the adapter then loads on either base",
    )
    add_method(parser)
    training = parser.add_argument_group("training")
    length = training.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, default=3, metavar="N", help="times through the data (default 3)")
    length.add_argument("--steps", type=int, metavar="N", help="updates, instead of epochs")
    number = training.add_argument
    number("--batch-size", type=int, default=8, metavar="N", help="records a batch (default 8)")
    number("--accumulate", type=int, default=1, metavar="N", help="batches an update (default 1)")
    number(
        "--max-length", type=int, metavar="N", help=f"tokens of a record; longer ones are cut (default {MAX_LENGTH})"
    )
    begin = ", ".join(f"{name} {choice.lr:g}" for name, choice in METHODS.items())
    number("--lr", type=float, help=f"where nothing is said, one to begin a search with, not the best: {begin}")
    number(
        "--warmup",
        type=int,
        metavar="N",
        help="steps until the full lr, which then falls as a cosine (default a tenth)",
    )
    number("--weight-decay", type=float, default=0.0, metavar="X", help="(default 0)")
    number(
        "--workers",
        type=int,
        metavar="N",
        help="threads that share a batch (default one a core; with --full 2; on a GPU 1)",
    )
    number("--max-grad-norm", type=float, default=1.0, metavar="X", help="(default 1)")
    number("--seed", type=int, default=0, metavar="N", help="of A, of the records' order and of dropout (default 0)")
    number("--eval-every", type=int, metavar="N", help="also measure on the held-out records every so many steps")
    number("--checkpoint-every", type=int, default=20, metavar="N", help="steps (default 20)")
    again = training.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true", help="go on from the output folder's checkpoint, if there is one"
    )
    again.add_argument("--overwrite", action="store_true", help="replace what the output folder holds")


def run(arguments: argparse.Namespace) -> None:
    from .. import costs
    from ..data import conversations
    from ..peft import get_peft_model
    from ..pretrained import load_model, load_tokenizer
    from ..quantization import quantize_model
    from ..training import AdamW, WarmupCosine, train
    from ..training.loop import check_run

    arguments.method = arguments.method or DEFAULT  # not argparse's, which would let it stand beside --full
    if _is_finished(arguments):
        print(f"{arguments.output} is finished; --overwrite would train it again")
        return
    check_options(arguments)
    config, (lr, lr_ratio) = configuration(arguments), learning_rates(arguments)
    base, tokenizer = load_model(arguments.model), load_tokenizer(arguments.model)
    prefix = getattr(config, "num_virtual_tokens", 0)
    examples, heldout = _read(arguments, tokenizer, base.config.max_position_embeddings, prefix)
    batches = conversations.ConversationBatches(examples, arguments.batch_size, arguments.seed)
    steps = _steps(arguments, len(examples))
    warmup = math.ceil(steps / 10) if arguments.warmup is None else arguments.warmup
    optimizer = AdamW(lr, weight_decay=arguments.weight_decay, lr_ratio=lr_ratio)
    schedule = WarmupCosine(steps, warmup)
    if config is not None and arguments.quantize:
        quantize_model(base, arguments.quantize)
    model = base if config is None else get_peft_model(base, config, seed=arguments.seed)

    print(costs.count(model))
    print(f"{arguments.data}: {_described(examples)}")
    if heldout:
        print(f"held out: {_described(heldout)}")
    each = f"{arguments.batch_size} records" + (f" × {arguments.accumulate}" if arguments.accumulate > 1 else "")
    print(f"{steps} steps of {each}, {optimizer}, {warmup} steps of warm-up, then a cosine to 0", flush=True)

    checkpoint, workers = arguments.output / CHECKPOINT, _workers(arguments, model)
    checked = {
        "max_grad_norm": arguments.max_grad_norm,
        "accumulate": arguments.accumulate,
        "heldout": conversations.heldout_batches(heldout, arguments.batch_size) if heldout else None,
        "eval_every": arguments.eval_every,
        "checkpoint_every": arguments.checkpoint_every,
    }
    check_run(steps, **checked)  # a run that is refused takes nothing away
    _clear(arguments)
    try:
        history = train(
            model,
            batches,
            optimizer,
            steps,
            schedule=schedule,
            checkpoint=checkpoint,
            resume=arguments.resume,
            seed=arguments.seed,
            workers=workers,
            progress="lines",
            **checked,
        )
    except KeyboardInterrupt:
        if checkpoint.exists():
            print(f"the same command with --resume goes on from {checkpoint}", file=sys.stderr)
        raise
    _save(model, tokenizer, history, arguments)
    (arguments.output / OVERWRITING).unlink(missing_ok=True)
    checkpoint.unlink()  # only now is nothing left to lose
    print(history)
    print(f"{arguments.output} holds the {'model' if _full(arguments) else 'adapter'}. Try it:")
    print(f"    {_command(arguments, tokenizer)}")


# ------------------------------------------------------------------------------------------------------- what is asked


def _is_finished(arguments: argparse.Namespace) -> bool:
    """Whether `--resume` finds nothing left to do. Raises FileExistsError where the output folder holds something to lose."""
    output, checkpoint = arguments.output, arguments.output / CHECKPOINT
    ours, others = (MODEL, ADAPTER) if _full(arguments) else (ADAPTER, MODEL)
    if output.is_file():
        raise FileExistsError(f"{output} is a file; --output takes a folder")
    for name in others:
        if (output / name).exists():
            raise FileExistsError(f"{output / name} exists, which is something else: give another --output")
    if arguments.overwrite:
        return False
    if checkpoint.exists():
        if arguments.resume:
            return False
        raise FileExistsError(
            f"{checkpoint} is of an unfinished run: --resume goes on with it, --overwrite starts again"
        )
    there = [name for name in ours if (output / name).exists()]
    old = (output / OVERWRITING).exists()  # --overwrite was stopped before its first checkpoint
    if there and not (arguments.resume and (old or len(there) == len(ours))):
        raise FileExistsError(f"{output / there[0]} exists: --overwrite replaces it, or give another --output")
    return bool(there) and not old


def _full(arguments: argparse.Namespace) -> bool:
    """Whether a model is trained and saved, and no adapter."""
    return arguments.method == "full"


def _steps(arguments: argparse.Namespace, records: int) -> int:
    for name in ("epochs", "batch_size", "accumulate"):
        if not 0 < getattr(arguments, name) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(arguments, name)}; expected a number above 0")
    if arguments.steps is not None:
        return arguments.steps
    return math.ceil(arguments.epochs * records / (arguments.batch_size * arguments.accumulate))


def _workers(arguments: argparse.Namespace, model: Module) -> int:
    """How many threads share a batch: what was asked for, or one a core of a CPU."""
    if arguments.workers is not None:
        if arguments.workers < 1:
            raise ValueError(f"--workers {arguments.workers}; expected at least 1")
        return arguments.workers
    on_cpu = all(isinstance(p.value, np.ndarray) for _, p in model.named_parameters())
    cores = min(os.cpu_count() or 1, arguments.batch_size) if on_cpu else 1
    if cores > 1 and find_spec("threadpoolctl") is None:
        print("one thread: several need threadpoolctl; pip install 'lora-np[studies]'", file=sys.stderr)
        return 1
    return min(cores, 2) if _full(arguments) else cores  # each holds a copy of all gradients


def _read(
    arguments: argparse.Namespace, tokenizer: Tokenizer, limit: int, prefix: int
) -> tuple[list[Example], list[Example]]:
    """The records to learn from, and the held-out ones, which may be none. What they warn of goes to stderr, a line each."""
    from ..data.conversations import read

    room, after = limit - prefix, f" after a prefix of {prefix}" if prefix else ""
    max_length = min(MAX_LENGTH, room) if arguments.max_length is None else arguments.max_length
    if max_length > room or room < 2:
        raise ValueError(f"--max-length {max_length}: this model takes at most {room} tokens{after}")
    heldout = _heldout(arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        examples = read(arguments.data, tokenizer, max_length)
        others = read(heldout, tokenizer, max_length, split="heldout") if heldout else []
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return examples, others


def _heldout(arguments: argparse.Namespace) -> str | None:
    """The held-out records' file or name: what was given, or that of a data set which has its own."""
    from ..data.conversations import dataset_names

    return arguments.heldout or (arguments.data if arguments.data in dataset_names() else None)


# ------------------------------------------------------------------------------------------------------ what comes out


def _described(examples: list[Example]) -> str:
    tokens, counted = sum(len(e.tokens) for e in examples), sum(int(e.counts.sum()) for e in examples)
    return f"{len(examples):,} records, {tokens:,} tokens, of which {counted:,} count: the answers"


def _clear(arguments: argparse.Namespace) -> None:
    """Take away what a killed process left half-written under another name and, to start again, the old checkpoint.

    What else is there stays until it is replaced; that it is to be replaced is noted in the folder.
    """
    for path in arguments.output.glob("*.tmp"):
        if UNFINISHED.fullmatch(path.name):
            real = path.is_dir() and not path.is_symlink()  # older versions left a file
            shutil.rmtree(path) if real else path.unlink()
    if arguments.overwrite and arguments.output.exists():
        (arguments.output / OVERWRITING).touch()
        (arguments.output / CHECKPOINT).unlink(missing_ok=True)


def _save(model: Any, tokenizer: Tokenizer, history: History, arguments: argparse.Namespace) -> None:
    """Each file is whole or not there; and as long as the checkpoint is, `--resume` writes them again."""
    from ..pretrained import save_model

    text = json.dumps(history.rows, indent=1) + "\n"
    write_atomically(arguments.output / HISTORY, lambda path: path.write_text(text, encoding="utf-8", newline="\n"))
    if not _full(arguments):
        model.save_pretrained(arguments.output)
        return
    if isinstance(tokenizer, VocabularyTokenizer):  # one of bytes has no files
        tokenizer.save_pretrained(arguments.output)
    save_model(model, arguments.output)


def _command(arguments: argparse.Namespace, tokenizer: Tokenizer) -> str:
    """What to type to ask the new model a question of the held-out records, or of the data where there are none."""
    from ..data.conversations import dataset

    heldout = _heldout(arguments)
    path = dataset(heldout, "heldout") if heldout else dataset(arguments.data)
    with path.open(encoding="utf-8-sig") as file:
        record = json.loads(next(line for line in file if line.strip()))
    model = [str(arguments.output)] if _full(arguments) else [arguments.model, "--adapter", str(arguments.output)]
    model += ["--quantize", arguments.quantize] if arguments.quantize else []
    words = ["python", "-m", "lora_np", "generate", "--model", *model]
    if "prompt" in record:
        words += ["--raw", record["prompt"]]
    else:
        said = {message["role"]: message["content"] for message in reversed(record["messages"])}  # the first of each
        words += ["--system", said["system"]] if "system" in said else []
        words += ["--chat"] if isinstance(tokenizer, ByteTokenizer) else []  # else that is what generate does
        words += [said["user"]] if "user" in said else []
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
