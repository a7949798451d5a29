"""Time several processes in rounds, each process once per round, so that other load slows all of them equally."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...progress import Progress
from . import machine
from .competitors import IN_TORCH, Case

PAUSE = 0.1  # seconds between turns: the idle threads of a BLAS keep a core busy for a while before they sleep
TURN = 0.3  # the shortest length of a turn, in seconds


class CompetitorFailed(RuntimeError):
    """Raised if the process of a competitor ended before it sent an answer."""


class Competitor:
    """One process of `competitors.py`, which runs one implementation on one case.

    `about` holds what the process reports about itself. Competitors are timed in turns.
    `turns` has one number per turn: the mean seconds per step.
    """

    def __init__(self, name: str, case: Case, threads: int, folder: Path) -> None:
        self.name, self.case = name, case
        self.about: dict[str, Any] = {}
        self.turns: list[float] = []
        self.steps_per_turn, self.peak_bytes = 1, None
        folder.mkdir()
        self.log = (folder / "log").open("w+", encoding="utf-8", errors="replace")
        empty_cache = {
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")
        }  # the compile time is measured without a cache
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lora_np.studies.timing.competitors"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=machine.in_environment(threads) | empty_cache,
            encoding="utf-8",
        )

    def warm_up(self) -> None:
        """Build the model and run the first steps. Raises CompetitorFailed with the last line that the process wrote."""
        self.about = self._ask(json.dumps({"competitor": self.name, "case": asdict(self.case)}))
        self.steps_per_turn = max(1, math.ceil(TURN / self.about["seconds"][-1]))

    def turn(self) -> None:
        """Run the steps of one turn, and record their mean time and the peak memory."""
        answer = self._ask(str(self.steps_per_turn))
        self.turns.append(statistics.mean(answer["seconds"]))
        self.peak_bytes = answer["peak_bytes"]

    def _ask(self, line: str) -> dict[str, Any]:
        try:
            print(line, file=self.process.stdin, flush=True)
            assert self.process.stdout is not None
            answer = self.process.stdout.readline()
        except OSError:  # the pipe is closed
            answer = ""
        if not answer:
            code = self.process.wait()
            self.log.seek(0)
            last = (self.log.read().strip().splitlines() or ["the process wrote no message"])[-1]
            killed = ", killed: perhaps it ran out of memory" if code == -9 else ""
            raise CompetitorFailed(f"{self.name} on {self.case.name} ended with code {code}{killed}: {last}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process by closing its input; kill it if it has not ended after ten seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(OSError):  # the process has ended already and left a line unread
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def row(self) -> dict[str, Any]:
        """Return the measurements as a row.

        `seconds` is the median time per step over the rounds; `rounds` has the time per step of each round.
        """
        seconds, about = statistics.median(self.turns), self.about
        row = {"case": self.case.name, "competitor": self.name, "seconds": seconds}
        row |= {"tokens_per_second": self.case.tokens / seconds, "peak_bytes": self.peak_bytes}
        row |= {"loaded_bytes": about["loaded_bytes"], "building_seconds": about["building"]}
        return row | {"first_step_seconds": about["seconds"][0], "rounds": self.turns}


def run_rounds(
    entries: Sequence[tuple[str, Case]], threads: int, rounds: int, say: Callable[[str], None], label: str
) -> list[Competitor]:
    """Start a competitor for each (name, case), time all of them once per round in random order, and return them.

    If a competitor in PyTorch fails before the first round, it is left out, and `say` is called with the error. If
    another competitor fails, the function raises CompetitorFailed.
    """
    rng = np.random.default_rng(0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lora_np-", ignore_cleanup_errors=True)))
        bar = stack.enter_context(Progress(len(entries) + rounds, label, unit="part", lines=True))
        running: list[Competitor] = []
        for i, (name, case) in enumerate(entries):
            competitor = Competitor(name, case, threads, folder / str(i))
            stack.callback(competitor.close)
            try:
                competitor.warm_up()
                running.append(competitor)
            except CompetitorFailed as error:
                if name not in IN_TORCH:
                    raise
                say(f"left out: {error}")
            bar.update(1)
        for _ in range(rounds):
            for i in rng.permutation(len(running)):
                time.sleep(PAUSE)
                running[i].turn()
            bar.update(1)
    return running
