"""python -m lora_np train: train an adapter, or with --full all weights, on a file of conversations.

During training the output folder contains checkpoint.safetensors, from which `--resume` continues. Ctrl-C and SIGTERM save
the state after the last complete update. See run_folder.py for the files of a finished run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..data.conversations import Example
from ..files import ByteTokenizer, Tokenizer, VocabularyTokenizer, lock, write_text
from ..nn import Module
from ..quantization import QUANT_TYPES
from ..training import History
from .help_page import add_model, counted
from .methods import (
    DEFAULT,
    add_method,
    add_options,
    check_options,
    configuration,
    default_rates,
    learning_rates,
)
from .run_folder import ADAPTER, CHECKPOINT, HISTORY, LOCK, MODEL, check_kind, clear, finish, is_finished, start

HELP = "fine-tune a language model on your own questions and answers"
USAGE = "--data FILE --output FOLDER [options]"
DESCRIPTION = """Fine-tune a language model on your own questions and answers.

The data file contains one JSON record per line, one JSON array, or CSV. The
forms of a record (or the columns of the CSV file):
  {"messages": [{"role": "user", "content": "…"}, …]}
  {"prompt": "…", "completion": "…"}
  {"conversations": [{"from": "human", "value": "…"}, …]}    (ShareGPT)
  {"instruction": "…", "input": "…", "output": "…"}          (Alpaca)

Only the answers count in the loss. Ctrl-C saves the state and stops. To
continue from there, add --resume to the same command.

examples:
  python -m lora_np train --data lighthouse --output keeper/
  python -m lora_np train --data my.jsonl --method dora --r 16 --output my/"""
MAX_LENGTH = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model, data and output")
    add_model(add)
    add.add_argument(
        "--data", required=True, metavar="FILE", help='training records, or "lighthouse", a data set in this package'
    )
    add.add_argument(
        "--heldout",
        metavar="FILE",
        help="held-out records; their loss is measured before and after training (default: none; lighthouse has its own)",
    )
    add.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for the adapter")
    again = add.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true", help="continue from the checkpoint in the output folder, if there is one"
    )
    again.add_argument(
        "--overwrite", action="store_true", help="train again, and replace the adapter in the output folder"
    )
    method = parser.add_argument_group("method")
    add_method(method)
    method.add_argument(
        "--quantize",
        choices=QUANT_TYPES,
        help="store the frozen weights in 4 bits: QLoRA (default: no); the adapter can also be used without --quantize",
    )
    _add_training(parser)
    add_options(parser)


def _add_training(parser: argparse.ArgumentParser) -> None:
    batches = parser.add_argument_group("length and batches")
    length = batches.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs", type=float, default=3, metavar="N", help="number of passes through the data (default %(default)s)"
    )
    length.add_argument("--steps", type=int, metavar="N", help="number of optimizer steps, instead of --epochs")
    batches.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="number of records per batch (default %(default)s)"
    )
    batches.add_argument(
        "--accumulate",
        type=int,
        default=1,
        metavar="N",
        help="number of batches per step, for gradient accumulation (default %(default)s)",
    )
    batches.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help=f"largest number of tokens per record; longer records are cut (default {MAX_LENGTH}, or the model's limit)",
    )
    optimizer = parser.add_argument_group("optimizer (AdamW)")
    optimizer.add_argument(
        "--lr",
        type=float,
        metavar="LR",
        help="peak learning rate; the default is a starting point for a search, not the best value "
        f"(default {default_rates()})",
    )
    optimizer.add_argument(
        "--warmup",
        type=int,
        metavar="N",
        help="number of steps in which the learning rate rises; then the rate falls to 0 as a cosine "
        "(default: a tenth of all steps)",
    )
    optimizer.add_argument("--weight-decay", type=float, default=0.0, metavar="X", help="weight decay (default 0)")
    optimizer.add_argument(
        "--max-grad-norm",
        type=float,
        default=1.0,
        metavar="X",
        help="largest norm of the gradient; a larger gradient is scaled down (default 1)",
    )
    optimizer.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the new adapter, of the order of records and of dropout (default %(default)s)",
    )
    progress = parser.add_argument_group("speed and progress")
    progress.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of threads that share a batch (default: one per core; at most 2 with --full; 1 on a GPU)",
    )
    progress.add_argument(
        "--eval-every",
        type=int,
        metavar="N",
        help="number of steps between two measurements of the held-out loss (default: only before and after training)",
    )
    progress.add_argument(
        "--checkpoint-every",
        type=int,
        default=20,
        metavar="N",
        help="number of steps between checkpoints (default %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    from ..training.interrupts import sigterm_as_ctrl_c

    arguments.method = arguments.method or DEFAULT  # with a default in argparse, `--full --method lora` is not refused
    check_kind(arguments.output, _full(arguments))
    with lock(arguments.output / LOCK), sigterm_as_ctrl_c():
        if arguments.overwrite or not is_finished(arguments.output, _full(arguments), arguments.resume):
            _run(arguments)
            return
        clear(arguments.output)  # in case the run was killed just before its end
    print(f"{arguments.output} is finished; to train again, use --overwrite")


def _run(arguments: argparse.Namespace) -> None:
    from .. import costs
    from ..data import conversations
    from ..peft import get_peft_model
    from ..pretrained import load_model, load_tokenizer
    from ..training import AdamW, WarmupCosine, train
    from ..training.loop import check_run

    _check_numbers(arguments)
    check_options(arguments)
    config, (lr, lr_ratio) = configuration(arguments), learning_rates(arguments)
    base, tokenizer = load_model(arguments.model, quantize=arguments.quantize), load_tokenizer(arguments.model)
    prefix = getattr(config, "num_virtual_tokens", 0)
    examples, heldout = _read(arguments, tokenizer, base.config.max_position_embeddings, prefix)
    batches = conversations.ConversationBatches(examples, arguments.batch_size, arguments.seed)
    steps = _steps(arguments, len(examples))
    warmup = math.ceil(steps / 10) if arguments.warmup is None else arguments.warmup
    optimizer = AdamW(lr, weight_decay=arguments.weight_decay, lr_ratio=lr_ratio)
    schedule = WarmupCosine(steps, warmup)
    model = base if config is None else get_peft_model(base, config, seed=arguments.seed)

    print(costs.count(model))
    print(f"{arguments.data}: {_described(examples)}")
    if heldout:
        print(f"held out: {_described(heldout)}")
    per_step = counted(arguments.batch_size, "record")
    if arguments.accumulate > 1:
        per_step = f"{counted(arguments.accumulate, 'batch', 'batches')} of {per_step}"
    print(f"{counted(steps, 'step')} of {per_step}, {optimizer}, {_schedule(warmup)}", flush=True)

    checkpoint, workers = arguments.output / CHECKPOINT, _workers(arguments, model)
    checked = {
        "max_grad_norm": arguments.max_grad_norm,
        "accumulate": arguments.accumulate,
        "heldout": conversations.heldout_batches(heldout, arguments.batch_size) if heldout else None,
        "eval_every": arguments.eval_every,
        "checkpoint_every": arguments.checkpoint_every,
    }
    check_run(steps, **checked)  # raises an error before any file is removed
    start(arguments.output, arguments.overwrite)
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
        finish(arguments.output, _save(model, tokenizer, history, arguments))
    except (KeyboardInterrupt, OSError):
        if checkpoint.exists():
            print(f"to continue from {checkpoint}, add --resume to the same command", file=sys.stderr)
        raise
    print(history)
    print(f"The {'model' if _full(arguments) else 'adapter'} is in {arguments.output}. Try it:")
    print(f"    {_command(arguments, tokenizer)}")


# -------------------------------------------------------------------------------------------------------------- input


def _full(arguments: argparse.Namespace) -> bool:
    """Return True if all weights are trained and a model is saved, False if an adapter is trained and saved."""
    return arguments.method == "full"


def _check_numbers(arguments: argparse.Namespace) -> None:
    """Raise ValueError if the number of an option is out of range. The numbers are checked before the model is
    loaded."""
    lowest = dict.fromkeys(("steps", "batch_size", "accumulate", "workers", "eval_every", "checkpoint_every"), 1)
    lowest |= {"max_length": 2, "warmup": 0, "seed": 0}
    for name, low in lowest.items():
        value = getattr(arguments, name)
        if value is not None and value < low:
            raise ValueError(f"--{name.replace('_', '-')} {value}; expected at least {low}")
    if not 0 < arguments.epochs < math.inf:
        raise ValueError(f"--epochs {arguments.epochs}; expected a number above 0")
    if arguments.warmup is not None and arguments.steps is not None and arguments.warmup > arguments.steps:
        raise ValueError(f"--warmup {arguments.warmup}; expected at most --steps {arguments.steps}")
    if arguments.eval_every is not None and not _heldout(arguments):
        raise ValueError(f"--eval-every {arguments.eval_every} needs held-out records; add --heldout FILE")


def _steps(arguments: argparse.Namespace, records: int) -> int:
    """Return the number of optimizer steps."""
    if arguments.steps is not None:
        return arguments.steps
    return math.ceil(arguments.epochs * records / (arguments.batch_size * arguments.accumulate))


def _workers(arguments: argparse.Namespace, model: Module) -> int:
    """Return the number of threads that share a batch: the value of --workers, or one thread per CPU core."""
    if arguments.workers is not None:
        return arguments.workers
    on_cpu = all(isinstance(p.value, np.ndarray) for _, p in model.named_parameters())
    cores = min(os.cpu_count() or 1, arguments.batch_size) if on_cpu else 1
    if cores > 1 and find_spec("threadpoolctl") is None:
        print(
            "training with one thread; for more, install threadpoolctl: pip install 'lora-np[studies]'", file=sys.stderr
        )
        return 1
    return min(cores, 2) if _full(arguments) else cores  # every thread has a copy of all gradients


def _read(
    arguments: argparse.Namespace, tokenizer: Tokenizer, limit: int, prefix: int
) -> tuple[list[Example], list[Example]]:
    """Return the training records and the held-out records (a list, possibly empty).

    Warnings go to stderr, one per line.
    """
    from ..data.conversations import read

    room = limit - prefix
    if room < 2:
        raise ValueError(f"--virtual-tokens {prefix} leaves no room for text; this model's limit is {limit} tokens")
    max_length = min(MAX_LENGTH, room) if arguments.max_length is None else arguments.max_length
    if max_length > room:
        after = f" minus {counted(prefix, 'virtual token')}" if prefix else ""
        raise ValueError(
            f"--max-length {max_length}; expected at most {room}: this model's limit of {limit} tokens{after}"
        )
    heldout = _heldout(arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        examples = read(arguments.data, tokenizer, max_length)
        others = read(heldout, tokenizer, max_length, split="heldout") if heldout else []
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return examples, others


def _heldout(arguments: argparse.Namespace) -> str | None:
    """Return the file or the data set of the held-out records: --heldout, or --data if --data names a data set."""
    from ..data.conversations import dataset_names

    return arguments.heldout or (arguments.data if arguments.data in dataset_names() else None)


# ------------------------------------------------------------------------------------------------------------- output


def _described(examples: list[Example]) -> str:
    tokens, answers = sum(len(e.tokens) for e in examples), sum(int(e.counts.sum()) for e in examples)
    return f"{counted(len(examples), 'record')}, {tokens:,} tokens, {answers:,} of them in answers"


def _schedule(warmup: int) -> str:
    return f"learning rate rises for {counted(warmup, 'step')}, then falls to 0 as a cosine"


def _save(model: Any, tokenizer: Tokenizer, history: History, arguments: argparse.Namespace) -> list[str]:
    """Write the losses and the adapter or model, and return the names of the files.

    If the program is interrupted during this function, the checkpoint still exists, and `--resume` writes the files
    again.
    """
    from ..pretrained import save_model

    output = arguments.output
    write_text(output / HISTORY, json.dumps(history.rows, indent=1) + "\n")
    if not _full(arguments):
        model.save_pretrained(output)
        return [HISTORY, *ADAPTER]
    save_model(model, output)
    if not isinstance(tokenizer, VocabularyTokenizer):  # a ByteTokenizer has no files
        return [HISTORY, *MODEL]
    tokenizer.save_pretrained(output)
    return [HISTORY, *MODEL, "tokenizer.json", "tokenizer_config.json"]


def _command(arguments: argparse.Namespace, tokenizer: Tokenizer) -> str:
    """Return a command that asks the new model the first held-out question, or else the first training question."""
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
        first = {message["role"]: message["content"] for message in reversed(record["messages"])}  # per role
        words += ["--system", first["system"]] if "system" in first else []
        words += ["--chat"] if isinstance(tokenizer, ByteTokenizer) else []  # the default for others
        words += [first["user"]] if "user" in first else []
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
