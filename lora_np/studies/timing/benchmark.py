"""Processes that take turns: every side of a comparison alive at once, so that what else the machine does hits all alike."""

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

PAUSE = 0.1  # seconds between turns: a BLAS lets its idle threads spin for a while before they sleep
TURN = 0.3  # seconds that a turn lasts at least


class SideFailed(RuntimeError):
    """A side's process ended before it answered."""


class Side:
    """A process of `competitors.py`, what it said about itself (`about`), and the seconds a step took in each `turn`."""

    def __init__(self, name: str, case: Case, threads: int, folder: Path) -> None:
        self.name, self.case = name, case
        self.about: dict[str, Any] = {}
        self.turns: list[float] = []
        self.steps_a_turn, self.peak_bytes = 1, None
        folder.mkdir()
        self.log = (folder / "log").open("w+", encoding="utf-8", errors="replace")
        compiled_afresh = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}  # so that compiling takes what it takes
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lora_np.studies.timing.competitors"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=machine.in_environment(threads) | compiled_afresh,
            encoding="utf-8",
        )

    def warm_up(self) -> None:
        """Build the model and take the first steps. Raises SideFailed with the process's last words."""
        self.about = self._ask(json.dumps({"side": self.name, "case": asdict(self.case)}))
        self.steps_a_turn = max(1, math.ceil(TURN / self.about["seconds"][-1]))

    def turn(self) -> None:
        """Take a turn: a few steps, one after another."""
        answer = self._ask(str(self.steps_a_turn))
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
            last = (self.log.read().strip().splitlines() or ["it said nothing"])[-1]
            killed = ", killed: was there too little memory?" if code == -9 else ""
            raise SideFailed(f"{self.name} on {self.case.name} ended with code {code}{killed}: {last}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process: it returns at the end of its input."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(OSError):  # it has ended, with a line unread
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def row(self) -> dict[str, Any]:
        """What was measured. seconds: of one step, the median over rounds; `rounds` has each one's."""
        seconds, about = statistics.median(self.turns), self.about
        row = {"case": self.case.name, "side": self.name, "seconds": seconds}
        row |= {"tokens_per_second": self.case.tokens / seconds, "peak_bytes": self.peak_bytes}
        row |= {"loaded_bytes": about["loaded_bytes"], "building_seconds": about["building"]}
        return row | {"first_step_seconds": about["seconds"][0], "rounds": self.turns}


def race(
    contestants: Sequence[tuple[str, Case]], threads: int, rounds: int, say: Callable[[str], None], label: str
) -> list[Side]:
    """Build every (side, case), then let all take a turn each round, in a new random order; returns those that ran.

    A side in PyTorch that fails before the first round is left out, and `say` told why. Raises SideFailed where another does.
    """
    rng = np.random.default_rng(0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lora_np-", ignore_cleanup_errors=True)))
        bar = stack.enter_context(Progress(len(contestants) + rounds, label, unit="part", lines=True))
        running: list[Side] = []
        for i, (name, case) in enumerate(contestants):
            side = Side(name, case, threads, folder / str(i))
            stack.callback(side.close)
            try:
                side.warm_up()
                running.append(side)
            except SideFailed as error:
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
