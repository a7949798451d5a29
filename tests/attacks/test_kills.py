"""Attacks on a training run and its files: kills, Ctrl-C, a full disk, two runs in one folder, and power cuts.

After each attack no file is damaged, no step is lost beyond the last update, and the resumed run ends with the bits of a
run without attacks. LORA_NP_ATTACK_SECONDS=60 or more gives 50 kills, 50 Ctrl-Cs and 20 power cuts.
"""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import sys
import time

import pytest
from chats import chat

if sys.platform != "linux":
    pytest.skip("needs fork and Linux; tests/training/test_killed.py kills runs elsewhere", allow_module_level=True)

from killed_runs import Child, FileSystem, at_call, be_killed, check, result, small_disk, training, why_no_mount

from lora_np.__main__ import main
from lora_np.training.checkpoint import Checkpoint

LONG = float(os.environ.get("LORA_NP_ATTACK_SECONDS", "5")) >= 60
KILLS, CTRL_CS, CUTS = (50, 50, 10) if LONG else (6, 6, 2)  # power cuts per file system
STEPS = 8


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # so that no time is needed for a picture


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    records = [chat("Who?", "A keeper."), chat("Where?", "At sea."), chat("When?", "At dusk.")]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """Return the result of the run without attacks, and its number of system calls on files."""
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    child = Child(training(data, folder, STEPS, 1), at_call(folder, None, None))
    assert child.end() == 0, child.said
    assert sorted(os.listdir(folder)) == [
        "SHA256SUMS",
        "adapter_config.json",
        "adapter_model.safetensors",
        "metrics.jsonl",
        "train.toml",
    ]
    return result(folder), child.calls


def finish(data, folder, steps=STEPS, every=1):
    """Resume the run, let it end, and return its result."""
    child = Child(training(data, folder, steps, every))
    assert child.end() == 0, child.said
    check(folder)
    return result(folder)


# ---------------------------------------------------------------------------------------------------------------- kills


def test_a_run_killed_at_system_calls_resumes_to_the_bit(data, undisturbed, tmp_path):
    expected, calls = undisturbed
    assert calls > 12 * STEPS, "each checkpoint makes at least a dozen calls"
    draw = random.Random(0)
    for number in draw.sample(range(1, calls + 1), KILLS):
        folder = tmp_path / str(number)
        child = Child(training(data, folder, STEPS, 1), at_call(folder, number, be_killed))
        assert child.end() == -signal.SIGKILL, child.said
        step = check(folder, child.saved)
        if step is not None and child.updated is not None:
            assert child.updated - step <= 1, "only the update whose loss was not yet checked may be lost"
        assert finish(data, folder) == expected, f"killed before call {number} of {calls}"


def test_a_run_killed_at_random_times_resumes_to_the_bit(data, undisturbed, tmp_path):
    expected, _ = undisturbed
    draw = random.Random(1)
    kills, folder = 0, tmp_path / "0"
    while kills < KILLS:
        child = Child(training(data, folder, STEPS, 1))
        ended = not child.until("updated", draw.randint(1, 3))
        time.sleep(draw.uniform(0, 0.02))
        child.send(signal.SIGKILL)
        if child.end() == -signal.SIGKILL:
            kills += 1
            step = check(folder, child.saved)
            assert step is None or child.updated is None or child.updated - step <= 1
        if ended or (folder / "SHA256SUMS").exists():
            assert finish(data, folder) == expected
            folder = tmp_path / str(kills)
    assert finish(data, folder) == expected


# --------------------------------------------------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_saves_the_last_update_and_resume_says_so(data, tmp_path):
    """Every third stop is SIGTERM, and every second one comes twice, as from a program that passes it on."""
    steps, every = 30, 20
    expected = finish(data, tmp_path / "undisturbed", steps, every)
    draw = random.Random(2)
    stops, folder, at = 0, tmp_path / "0", 0
    while stops < CTRL_CS:
        child = Child(training(data, folder, steps, every))
        if child.until("updated", at + draw.randint(1, 6)):
            time.sleep(draw.uniform(0, 0.02))
            for _ in range(1 + stops % 2):
                child.send(signal.SIGTERM if stops % 3 == 0 else signal.SIGINT)
        status = child.end()
        assert f"resumed at step {at} of {steps}" in child.said if at else "resumed" not in child.said
        if status == 130:
            stops += 1
            if (folder / "SHA256SUMS").exists():
                continue  # stopped after its end
            at = check(folder)
            assert at == child.updated, f"{child.updated} updates were complete, the checkpoint has {at}"
            assert "add --resume to the same command" in child.said
            if at < steps:  # else the run was stopped while it wrote its result
                assert f"stopped at step {at} of {steps}" in child.said
        else:
            assert status == 0, child.said
            assert result(folder) == expected
            folder, at = tmp_path / str(stops), 0
    assert finish(data, folder, steps, every) == expected


# --------------------------------------------------------------------------------------------------------------- a lock


def test_a_second_run_in_a_folder_is_refused_and_a_killed_run_locks_nothing(data, undisturbed, tmp_path, capsys):
    folder = tmp_path / "out"
    child = Child(training(data, folder, 10_000, 1))
    assert child.until("saved")
    for more in ([], ["--lr", "0.5"]):
        assert main(training(data, folder, STEPS, 1, *more)) == 1
        error = capsys.readouterr().err
        assert f"{folder / 'run.lock'} is held by process {child.pid} on " in error
        assert "wait until that run ends, stop it, or choose another folder" in error and error.count("\n") == 1
    child.send(signal.SIGKILL)
    assert child.end() == -signal.SIGKILL and (folder / "run.lock").exists()
    check(folder, child.saved)
    given = [name for name in training(data, folder, STEPS, 1) if name != "--resume"]
    assert main([*given, "--overwrite"]) == 0
    assert result(folder) == undisturbed[0]


# ------------------------------------------------------------------------------------------------------------- full disk


def test_a_full_disk_is_one_line_and_loses_nothing(data, undisturbed, tmp_path):
    if reason := why_no_mount():
        pytest.skip(reason)
    disk = tmp_path / "disk"
    with small_disk(disk, 4 * 2**20):
        child = Child(training(data, disk / "out", STEPS, 1))
        assert child.until("saved", 3)
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_bsize - 20_000))  # less than a checkpoint
        assert child.end() == 1
        checkpoint = disk / "out" / "checkpoint.safetensors"
        first, *others = child.said.splitlines()[-2:]
        assert first == f"to continue from {checkpoint}, add --resume to the same command"
        assert others == [
            f"lora_np train: {checkpoint}: No space left on device; this file was not written. "
            "To continue, free some space and run the command again"
        ]
        assert check(disk / "out", child.saved) >= 3 and os.listdir(disk / "out") == ["checkpoint.safetensors"]
        (disk / "filler").unlink()
        assert finish(data, disk / "out") == undisturbed[0]


# ------------------------------------------------------------------------------------------------------------ power cuts


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_power_cut_damages_no_file_and_loses_no_saved_step(kind, data, undisturbed, tmp_path):
    if reason := why_no_mount(f"mkfs.{kind}"):
        pytest.skip(reason)
    expected, calls = undisturbed
    draw = random.Random(kind)
    late = draw.sample(range(calls - 60, calls + 1), CUTS // 2)  # the result, SHA256SUMS and the end of the checkpoint
    system = FileSystem(kind, tmp_path)
    try:
        for i, number in enumerate([*late, *draw.sample(range(1, calls - 60), CUTS - CUTS // 2)]):
            folder = system.folder / str(number)

            def cut(others=i % 2 == 0):
                system.cut(others)
                be_killed()

            child = Child(training(data, folder, STEPS, 1), at_call(folder, number, cut))
            assert child.end() == -signal.SIGKILL, child.said
            system.restart()
            check(folder, child.saved)
            assert finish(data, folder) == expected, f"{kind}: the power was cut before call {number} of {calls}"
    finally:
        system.close()


class Journal:
    """The states of a folder that a power cut can leave, as a model. The model needs no file system of its own.

    A journal keeps the order of renames and removals. It writes them to the disk at any time, and at the latest when the
    folder is flushed. The bytes of a file are on the disk only if the file was flushed.
    """

    def __init__(self, folder, monkeypatch):
        self.folder, self.saved, self.trace = folder, None, []
        self.flushed, self.states = {}, [{}]  # inode → bytes on the disk; names → inode, the oldest state first
        self.bytes = {}  # inode → bytes that a reader sees
        for name in ("fsync", "replace", "unlink"):
            monkeypatch.setattr(os, name, self.recorded(getattr(os, name)))
        save = Checkpoint.save

        def reported_save(checkpoint, step, rows):
            save(checkpoint, step, rows)
            self.saved = step
            self.check()

        monkeypatch.setattr(Checkpoint, "save", reported_save)

    def recorded(self, call):
        def record(*args, **named):
            self.check()  # the power may go before each call
            here = [os.fspath(x) for x in args if not isinstance(x, int)]
            if call.__name__ == "fsync":
                self.flush(args[0])
            elif call.__name__ == "replace" and os.path.dirname(here[1]) == str(self.folder):
                inode, name = os.stat(here[0]).st_ino, os.path.basename(here[1])
                with open(here[0], "rb") as file:
                    self.bytes[inode] = file.read()
                self.states.append(self.states[-1] | {name: inode})
                self.trace.append(("rename", name))
            elif call.__name__ == "unlink" and here and os.path.dirname(here[0]) == str(self.folder):
                name = os.path.basename(here[0])
                self.states.append({other: inode for other, inode in self.states[-1].items() if other != name})
                self.trace.append(("remove", name))
            return call(*args, **named)

        return record

    def flush(self, descriptor):
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            if os.path.samestat(found, os.stat(self.folder)):
                self.states = self.states[-1:]
                self.trace.append(("flush", "the folder"))
        else:
            with open(f"/proc/self/fd/{descriptor}", "rb") as file:
                self.flushed[found.st_ino] = file.read()
            self.trace.append(("flush", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))

    def check(self):
        for names in self.states:
            for name, inode in names.items():
                assert self.flushed.get(inode) == self.bytes[inode], f"{name} has a name before its bytes: {self.trace}"
            if self.saved is not None:
                checkpoint = names.get("checkpoint.safetensors")
                finished = {"SHA256SUMS", "adapter_config.json", "adapter_model.safetensors"} <= names.keys()
                assert finished or checkpoint, f"neither a checkpoint nor a result is on the disk: {self.trace}"
                if checkpoint and not finished:
                    assert self.step(checkpoint) >= self.saved

    def step(self, inode):
        header = self.bytes[inode]
        return int(json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]["step"])


def test_at_no_moment_a_power_cut_could_do_harm(data, undisturbed, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    journal = Journal(folder, monkeypatch)
    assert main(training(data, folder, 3, 1)) == 0
    journal.check()
    save = [("flush", "checkpoint.safetensors"), ("rename", "checkpoint.safetensors"), ("flush", "the folder")]
    names = ["metrics.jsonl", "train.toml", "adapter_model.safetensors", "adapter_config.json", "SHA256SUMS"]
    written = [step for name in names for step in [("flush", name), ("rename", name), ("flush", "the folder")]]
    assert [step for step in journal.trace if step[1] != "run.lock" and ".lock" not in step[1]] == [
        *(4 * save),
        *written,
        ("remove", "checkpoint.safetensors"),
    ]
