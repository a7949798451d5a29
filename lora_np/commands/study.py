"""python -m lora_np study: run a study, on this machine or on a Dask cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

from ..studies.harness.table import Table
from .help_page import counted

HELP = "list the studies, or run one and make its table and pictures"
USAGE = "[NAME] [options]"
DESCRIPTION = """Run a study and make its table and pictures. Without NAME, list all studies.

Finished runs are kept. If a study is stopped or a run fails, start
the command again to do only the missing runs.

examples:
  python -m lora_np study
  python -m lora_np study ranks --quick
  python -m lora_np study ranks --scheduler tcp://127.0.0.1:8786"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("study")
    group.add_argument("name", nargs="?", metavar="NAME", help="name of the study")
    group.add_argument(
        "--quick",
        action="store_true",
        help="use a small setting that takes minutes; write to the subfolder `quick` of --figures",
    )
    runs = parser.add_argument_group("runs")
    where = runs.add_mutually_exclusive_group()
    where.add_argument(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="number of parallel runs, one core each (default %(default)s)",
    )
    where.add_argument(
        "--scheduler", metavar="ADDRESS", help="address of a Dask cluster that computes the runs: tcp://HOST:PORT"
    )
    folders = parser.add_argument_group("folders")
    folders.add_argument(
        "--folder",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help="folder in which finished runs are kept (default %(default)s)",
    )
    folders.add_argument(
        "--figures",
        type=Path,
        default=Path("figures"),
        metavar="FOLDER",
        help="folder for the table and the pictures (default %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    from ..studies.catalogue import make, study

    if arguments.name is None:
        print(listing(arguments.figures))
        return
    name, _ = study(arguments.name)
    if arguments.workers < 1:
        raise ValueError(f"--workers {arguments.workers}; expected at least 1")
    if arguments.scheduler and ":" not in arguments.scheduler:
        raise ValueError(f"--scheduler {arguments.scheduler}; expected an address such as tcp://127.0.0.1:8786")
    figures = arguments.figures / "quick" if arguments.quick else arguments.figures
    tables = {path.stem: Table.load(path) for path in sorted((figures / "data").glob("*.json"))}
    tables[name] = make(name, tables, arguments.scheduler or arguments.workers, arguments.folder, arguments.quick)
    saved = tables[name].save(figures / "data" / f"{name}.json")
    print(summary(tables[name]))
    print(f"Table: {saved}", flush=True)
    from ..report.pictures import draw

    pictures = draw(tables, figures, changed=[name])
    print(f"Pictures in {figures}: {', '.join(pictures) or 'none'}")


def listing(figures: Path) -> str:
    """Return the list of studies. If the table of a study exists, the list also shows the number of rows and the
    computing time."""
    from ..studies.catalogue import OTHER_NAMES, STUDIES

    lines = []
    for name, one in STUDIES.items():
        path = figures / "data" / f"{name}.json"
        made = "no table yet"
        if path.is_file():
            table = Table.load(path)
            made = _made(table, one.alone)
        known_as = "".join(f", also {other}" for other, meant in OTHER_NAMES.items() if meant == name)
        hints = [made, *(["has --quick"] if one.quick else []), *(f"needs the table {name}" for name in one.needs)]
        lines.append(f"{name}{known_as}\n    {one.question}\n    {'; '.join(hints)}")
    return "\n".join(lines)


def summary(table: Table) -> str:
    """Return the question, and for each setting the mean, the smallest and the largest value of `final` over the seeds.

    The setting of a row consists of the cells to the left of `final` and of the first cell that contains a list. If the
    table has rows with the phase "seeds", only these rows are used.
    """
    from ..studies.catalogue import STUDIES

    rows = [row for row in table.where(phase="seeds") or table.rows if row.get("final") is not None]
    keys = []
    for key, value in (rows[0] if rows else {}).items():
        if isinstance(value, list) or key == "final":
            break
        if key != "seed" and len({str(row.get(key)) for row in rows}) > 1:
            keys.append(key)
    groups: dict[str, list[float]] = {}
    for row in rows:
        cells = [f"{key} {row[key]}" for key in keys if row.get(key) is not None] or [f"no {key}" for key in keys]
        groups.setdefault(", ".join(cells), []).append(row["final"])
    width = max(map(len, groups), default=0)
    lines = [
        f"  {setting:<{width}}  {fmean(finals):.4f}"
        + (f" ({min(finals):.4f} to {max(finals):.4f}, {len(finals)} seeds)" if len(finals) > 1 else "")
        for setting, finals in groups.items()
    ]
    alone = table.study in STUDIES and STUDIES[table.study].alone
    head = f"{table.question}\n{_made(table, alone)}"
    return "\n".join([head, *(["final:", *lines] if lines else [])])


def _made(table: Table, alone: bool) -> str:
    from ..progress import duration

    return f"{counted(len(table.rows), 'row')}, {duration(table.seconds)} of {'all cores' if alone else 'one core'}"
