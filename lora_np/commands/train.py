"""python -m lora_np train: train an adapter, or with --full all weights, on a file of conversations.

During training the output folder contains checkpoint.safetensors, from which `--resume` continues. Ctrl-C and SIGTERM save
the state after the last complete update. See run_folder.py for the files of a finished run, run_report.py for the files
that show the progress of a run, and dry_run.py for the estimate of memory and time.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..files import ByteTokenizer, Tokenizer, VocabularyTokenizer, lock
from ..nn import Module
from ..quantization import QUANT_TYPES
from .dry_run import Plan, memory_line, print_estimate
from .help_page import add_model, counted
from .loss_curve import loss_curve, terminal_width
from .methods import (
    DEFAULT,
    add_method,
    add_options,
    check_options,
    configuration,
    default_rates,
    learning_rates,
)
from .run_folder import ADAPTER, CHECKPOINT, LOCK, MODEL, SETTINGS, check_kind, clear, finish, is_finished, start
from .run_report import METRICS, Report, save_metrics, save_picture
from .settings_file import add_config, save_settings
from .train_data import MAX_LENGTH, described, heldout_name, read_records, without_stop

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
continue, run the command again with --resume. --dry-run estimates the memory
and the time. The output folder also gets the losses (metrics.jsonl), a
picture of the losses (loss.png) and the options of the run (train.toml).

examples:
  python -m lora_np train --data lighthouse --output keeper/
  python -m lora_np train --data my.jsonl --method dora --r 16 --output my/
  python -m lora_np train --config keeper/train.toml --lr 1e-4 --output slower/"""
EPOCHS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model, data and output")
    add_model(add)
    add.add_argument(
        "--data",
        metavar="FILE",
        help='file of training records, or "lighthouse" for the data set in this package (required)',
    )
    add.add_argument(
        "--heldout",
        metavar="FILE",
        help="file of held-out records; their loss is measured before and after training (default: none, except for "
        "lighthouse, which contains held-out records)",
    )
    add.add_argument("--output", type=Path, metavar="FOLDER", help="folder for the adapter (required)")
    add_config(add)
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
        "--epochs", type=float, metavar="N", help=f"number of passes through the data (default {EPOCHS})"
    )
    length.add_argument("--steps", type=int, metavar="N", help="number of optimizer steps, instead of --epochs")
    batches.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="number of records per batch (default %(default)s)"
    )
    batches.add_argument(
        "--group-by-length",
        action="store_true",
        help="put records of similar length into the same batch, so that there is less padding and training is faster",
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
        "--dry-run",
        action="store_true",
        help="read the data, load the model, take two steps, and print an estimate of memory and time; write no file",
    )
    progress.add_argument(
        "--report-to",
        choices=["tensorboard"],
        help="also write event files for TensorBoard, into the folder runs/ of the output folder (default: none)",
    )
    progress.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of threads that share a batch (default: one per core; at most 2 with --full; 1 on a GPU)",
    )
    progress.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="save memory: compute the forward pass of each block a second time in the backward pass (slower)",
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

    for name in ("data",) if arguments.dry_run else ("data", "output"):
        if getattr(arguments, name) is None:
            raise ValueError(
                f"--{name} is missing; give the option on the command line, or the key {name} in the file of --config"
            )
    arguments.method = arguments.method or DEFAULT  # a default in argparse would allow `--full --method lora`
    if arguments.epochs is None and arguments.steps is None:
        arguments.epochs = EPOCHS
    if arguments.dry_run:
        print_estimate(_planned(arguments))
        return
    check_kind(arguments.output, _full(arguments))
    with lock(arguments.output / LOCK), sigterm_as_ctrl_c():
        if arguments.overwrite or not is_finished(arguments.output, _full(arguments), arguments.resume):
            _run(arguments)
            return
        clear(arguments.output)  # in case the run was killed just before its end
    print(f"{arguments.output} is finished; to train again, use --overwrite")


def _planned(arguments: argparse.Namespace) -> Plan:
    """Load the model and the data, print a description of the run, and return the plan."""
    from .. import costs
    from ..data import conversations
    from ..peft import get_peft_model
    from ..pretrained import load_model, load_tokenizer
    from ..training import AdamW, WarmupCosine
    from ..training.loop import check_run

    _check_numbers(arguments)
    check_options(arguments)
    config, (lr, lr_ratio) = configuration(arguments), learning_rates(arguments)
    base, tokenizer = load_model(arguments.model, quantize=arguments.quantize), load_tokenizer(arguments.model)
    prefix = getattr(config, "num_virtual_tokens", 0)
    examples, heldout = read_records(arguments, tokenizer, base.config.max_position_embeddings, prefix)
    batches = conversations.ConversationBatches(
        examples, arguments.batch_size, arguments.seed, arguments.group_by_length
    )
    steps = _steps(arguments, len(examples))
    warmup = math.ceil(steps / 10) if arguments.warmup is None else arguments.warmup
    optimizer = AdamW(lr, weight_decay=arguments.weight_decay, lr_ratio=lr_ratio)
    model = base if config is None else get_peft_model(base, config, seed=arguments.seed)
    arguments.lr, arguments.workers = lr, _workers(arguments, model)  # for train.toml
    plan = Plan(
        model,
        tokenizer,
        batches,
        optimizer,
        steps,
        longest=max(len(e.tokens) for e in examples + heldout) - 1,
        checked={
            "max_grad_norm": arguments.max_grad_norm,
            "accumulate": arguments.accumulate,
            "heldout": conversations.heldout_batches(heldout, arguments.batch_size) if heldout else None,
            "eval_every": arguments.eval_every,
            "checkpoint_every": arguments.checkpoint_every,
        },
        settings={"schedule": WarmupCosine(steps, warmup), "seed": arguments.seed, "workers": arguments.workers}
        | {"gradient_checkpointing": arguments.gradient_checkpointing},
    )
    check_run(steps, **plan.checked)  # raises an error before any file is removed
    if warning := without_stop(examples, tokenizer, arguments.max_length):
        print(f"warning: {arguments.data}: {warning}", file=sys.stderr)
    print(costs.count(model))
    print(f"{arguments.data}: {described(examples)}")
    if heldout:
        print(f"held out: {described(heldout)}")
    per_step = counted(arguments.batch_size, "record")
    if arguments.accumulate > 1:
        per_step = f"{counted(arguments.accumulate, 'batch', 'batches')} of {per_step}"
    print(f"{counted(steps, 'step')} of {per_step}, {optimizer}, {_schedule(warmup)}")
    print(memory_line(plan), flush=True)
    return plan


def _run(arguments: argparse.Namespace) -> None:
    from ..training import train

    output, checkpoint = arguments.output, arguments.output / CHECKPOINT
    report = Report(output, tensorboard=arguments.report_to == "tensorboard")
    plan = _planned(arguments)
    start(output, arguments.overwrite)
    try:
        with report:
            history = train(
                plan.model,
                plan.batches,
                plan.optimizer,
                plan.steps,
                checkpoint=checkpoint,
                resume=arguments.resume,
                progress="lines",
                on_step=report,
                **plan.checked,
                **plan.settings,
            )
        save_metrics(output, history.rows)
        save_settings(output / SETTINGS, arguments.parser, arguments)
        result = _save(plan.model, plan.tokenizer, arguments)
        finish(output, [METRICS, SETTINGS, *result, *save_picture(output, history.rows)])
    except (KeyboardInterrupt, OSError):
        if checkpoint.exists():
            print(f"to continue from {checkpoint}, add --resume to the same command", file=sys.stderr)
        raise
    if curve := loss_curve(history.rows, terminal_width()):
        print(f"\n{curve}\n")
    print(history)
    print(f"The {'model' if _full(arguments) else 'adapter'} is in {output}. Try it:")
    print(f"    {_command(arguments, plan.tokenizer)}")


# -------------------------------------------------------------------------------------------------------------- input


def _full(arguments: argparse.Namespace) -> bool:
    """Return True if all weights are trained and a model is saved, False if an adapter is trained and saved."""
    return arguments.method == "full"


def _check_numbers(arguments: argparse.Namespace) -> None:
    """Raise ValueError if a number given as an option is out of range. The numbers are checked before the model is
    loaded."""
    lowest = dict.fromkeys(("steps", "batch_size", "accumulate", "workers", "eval_every", "checkpoint_every"), 1)
    lowest |= {"max_length": 2, "warmup": 0, "seed": 0}
    for name, low in lowest.items():
        value = getattr(arguments, name)
        if value is not None and value < low:
            raise ValueError(f"--{name.replace('_', '-')} {value}; expected at least {low}")
    if arguments.epochs is not None and not 0 < arguments.epochs < math.inf:
        raise ValueError(f"--epochs {arguments.epochs}; expected a number above 0")
    if arguments.warmup is not None and arguments.steps is not None and arguments.warmup > arguments.steps:
        raise ValueError(f"--warmup {arguments.warmup}; expected at most --steps {arguments.steps}")
    if arguments.eval_every is not None and not heldout_name(arguments):
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


# ------------------------------------------------------------------------------------------------------------- output


def _schedule(warmup: int) -> str:
    return f"learning rate rises for {counted(warmup, 'step')}, then falls to 0 as a cosine"


def _save(model: Any, tokenizer: Tokenizer, arguments: argparse.Namespace) -> list[str]:
    """Write the adapter or model, and return the names of the files.

    If the program is interrupted during this function, the checkpoint still exists, and `--resume` writes the files
    again.
    """
    from ..pretrained import save_model

    output = arguments.output
    if not _full(arguments):
        model.save_pretrained(output)
        return [*ADAPTER]
    save_model(model, output)
    if not isinstance(tokenizer, VocabularyTokenizer):  # a ByteTokenizer has no files
        return [*MODEL]
    tokenizer.save_pretrained(output)
    return [*MODEL, "tokenizer.json", "tokenizer_config.json"]


def _command(arguments: argparse.Namespace, tokenizer: Tokenizer) -> str:
    """Return a command that asks the new model the first held-out question; without held-out records, the first
    training question."""
    from ..data.conversations import dataset
    from ..data.formats import records, standard

    heldout = heldout_name(arguments)
    _, record = next(records(dataset(heldout, "heldout") if heldout else dataset(arguments.data)))
    record, _, _ = standard(record)
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
