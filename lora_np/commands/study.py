"""python -m lora_np study: a study's table and pictures, made here or on a Dask cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

from ..studies.harness.table import Table

HELP = "make a study's table and pictures, here or on a Dask cluster; without a name: list the studies"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="the study; without it, all are listed")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--workers", type=int, default=2, help="runs side by side, a core each (default 2)")
    who.add_argument(
        "--scheduler", metavar="ADDRESS", help="a Dask cluster's, tcp://host:port: its workers do the runs"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where finished runs are kept (default runs)")
    parser.add_argument("--quick", action="store_true", help="a small setting, its table and pictures in FIGURES/quick")
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="where the table and pictures go")


def run(arguments: argparse.Namespace) -> None:
    from ..studies.catalogue import make, study

    if arguments.name is None:
        print(listing(arguments.figures))
        return
    name, _ = study(arguments.name)
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
    """Every study with its question and, where its table is there, how many rows it has and what it took."""
    from ..progress import duration
    from ..studies.catalogue import OTHER_NAMES, STUDIES

    lines = []
    for name, one in STUDIES.items():
        path = figures / "data" / f"{name}.json"
        made = "no table yet"
        if path.is_file():
            table = Table.load(path)
            made = f"{len(table.rows)} rows, {duration(table.seconds)} of {'all cores' if one.alone else 'one core'}"
        known_as = "".join(f", also {other}" for other, meant in OTHER_NAMES.items() if meant == name)
        hints = [made, *(["--quick"] if one.quick else []), *(f"needs {needed}" for needed in one.needs)]
        lines.append(f"{name}{known_as}\n    {one.question}\n    {'; '.join(hints)}")
    return "\n".join(lines)


def summary(table: Table) -> str:
    """The question, and `final` of each setting: the mean over seeds, with the smallest and the largest.

    A row's settings are the cells before its first list or its `final`. Of rows with a phase, those of phase "seeds" are read.
    """
    from ..progress import duration
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
        told = [f"{key} {row[key]}" for key in keys if row.get(key) is not None] or [f"no {key}" for key in keys]
        who = ", ".join(told)
        groups.setdefault(who, []).append(row["final"])
    width = max(map(len, groups), default=0)
    lines = [
        f"  {who:<{width}}  {fmean(finals):.4f}"
        + (f" ({min(finals):.4f} to {max(finals):.4f}, {len(finals)} seeds)" if len(finals) > 1 else "")
        for who, finals in groups.items()
    ]
    alone = table.study in STUDIES and STUDIES[table.study].alone
    cores = "all cores" if alone else "one core"
    head = f"{table.question}\n{len(table.rows)} rows, {duration(table.seconds)} of {cores}"
    return "\n".join([head, *(["final:", *lines] if lines else [])])
