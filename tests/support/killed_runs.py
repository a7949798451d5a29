"""Training runs in child processes that a test kills at chosen moments, and file systems whose power a test cuts.

A child is a fork, so that it needs no time for imports. It reports every complete update and every saved checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from lora_np.__main__ import main
from lora_np.files import load_arrays
from lora_np.training import AdamW
from lora_np.training.checkpoint import Checkpoint

CALLS = ("open", "os.fsync", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")
FS_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2  # from this call on, ext4 and XFS write nothing more to the device
DEADLINE = 120  # seconds, against a child that hangs


def training(data, output, steps, every, *more):
    """Return the arguments of a short run of `lora_np train`, which continues the run in `output` if there is one."""
    given = ["train", "--model", "tiny", "--r", "2", "--batch-size", "1", "--workers", "1", "--resume"]
    given += ["--lora-dropout", "0.1", "--steps", str(steps), "--checkpoint-every", str(every)]
    return [*given, "--data", str(data), "--output", str(output), *more]


class Child:
    """A fork that runs `main(arguments)`. `prepare(report)` is called in the child before.

    `updated` and `saved` are the last step that was reported, and `calls` is the number of system calls.
    """

    def __init__(self, arguments, prepare=None):
        self.updated = self.saved = self.calls = None
        self.output = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115, closed with the object
        reader, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(reader)
            _run(arguments, prepare, self.output, lambda line: os.write(writer, f"{line}\n".encode()))
        os.close(writer)
        self.reports = os.fdopen(reader, encoding="utf-8")

    def until(self, what, step=0):
        """Read reports until the child reports a step of at least this number. Return False if the child ends before."""
        for line in self.reports:
            name, number = line.split()
            setattr(self, name, int(number))
            if name == what and int(number) >= step:
                return True
        return False

    def send(self, number):
        os.kill(self.pid, number)

    def end(self):
        """Read all reports, wait for the end of the child, and return its exit status, or minus the signal."""
        self.until("nothing")
        self.reports.close()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.output.seek(0)
        self.said = self.output.read()
        self.output.close()
        return status


def _run(arguments, prepare, output, report):
    """The child; this function does not return."""
    status = 70
    try:
        signal.alarm(DEADLINE)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.stdout = sys.stderr = output
        sys.modules["matplotlib"] = None  # so that no time is needed for a picture
        save, step = Checkpoint.save, AdamW.step

        def reported_save(self, number, rows):
            save(self, number, rows)
            report(f"saved {number}")

        def reported_step(self, *given, **named):
            step(self, *given, **named)
            report(f"updated {self.t}")

        Checkpoint.save, AdamW.step = reported_save, reported_step
        if prepare:
            prepare(report)
        status = main(arguments)
    except BaseException:
        traceback.print_exc(file=output)
    finally:
        output.flush()
        os._exit(status)


def at_call(folder, number, act):
    """Return a function `prepare` for a Child: before system call `number` that concerns the folder, call `act`.

    Counted are the calls that create, open, flush, rename and remove files. With number None all are counted.
    """

    def prepare(report):
        count, fsync = 0, os.fsync

        def hook(event, args):
            nonlocal count
            if event in CALLS and (event != "open" or str(args[0]).startswith(str(folder))):
                count += 1
                if count == number:
                    act()
                if number is None:
                    report(f"calls {count}")

        def audited(descriptor):  # Python has no audit event for fsync
            sys.audit("os.fsync", descriptor)
            fsync(descriptor)

        os.fsync = audited
        sys.addaudithook(hook)

    return prepare


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def check(folder, saved=None):
    """Check that no file in the folder is damaged and that no saved step is lost. Return the step of the checkpoint.

    `saved` is the last step that was reported as saved. The step is None if there is no checkpoint.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    step = None
    for name in names:
        path = folder / name
        if name.endswith(".safetensors"):
            metadata = load_arrays(path)[1]  # raises ValueError if the file is damaged
            step = int(metadata["step"]) if name == "checkpoint.safetensors" else step
        elif name.endswith(".json"):
            json.loads(path.read_text(encoding="utf-8"))
    if saved is not None and "SHA256SUMS" not in names:
        assert step is not None and step >= saved, f"step {saved} was saved, the checkpoint has step {step}; {names}"
    if step is None and names & {"SHA256SUMS"}:
        sums = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
        assert sums.returncode == 0, sums
    return step


def result(folder):
    """Return the bytes of the finished adapter, and the names of all files."""
    adapter = ("adapter_config.json", "adapter_model.safetensors")
    return {name: (folder / name).read_bytes() for name in adapter}, sorted(path.name for path in folder.iterdir())


class FileSystem:
    """A file system in a file, mounted at `folder`. `cut` cuts its power, and `restart` mounts what the device has."""

    def __init__(self, kind, place):
        self.image, self.folder = place / f"{kind}.image", place / kind
        with self.image.open("wb") as file:
            file.truncate(320 * 2**20)  # sparse; XFS needs 300 MB
        _system(f"mkfs.{kind}", "-q", self.image)
        self.folder.mkdir()
        _system("mount", "-o", "loop", self.image, self.folder)

    def cut(self, others):
        """Let nothing more reach the device. With `others`, another program has just flushed a file of its own.

        Then the journal, which the file system shares between all programs, has reached the device, and so have
        renames and removals of this program, but no bytes that this program did not flush.
        """
        if others:
            with (self.folder / "other").open("w") as file:
                file.write("of another program")
                file.flush()
                os.fsync(file.fileno())
        descriptor = os.open(self.folder, os.O_RDONLY)
        fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        os.close(descriptor)

    def restart(self):
        _system("umount", self.folder)
        _system("mount", "-o", "loop", self.image, self.folder)

    def close(self):
        _system("umount", self.folder)
        self.image.unlink()


@contextlib.contextmanager
def small_disk(folder, size):
    """A tmpfs of `size` bytes at `folder`."""
    folder.mkdir()
    _system("mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder)
    try:
        yield
    finally:
        _system("umount", folder)


def why_no_mount(*programs):
    """Return why this machine cannot mount a file system, or "" if it can."""
    if os.geteuid():
        return "mounting a file system needs root"
    if missing := [name for name in ("mount", "umount", *programs) if shutil.which(name) is None]:
        return f"{missing[0]} is not installed"
    with tempfile.TemporaryDirectory() as folder:
        try:
            if not programs:
                with small_disk(Path(folder) / "disk", 2**20):
                    return ""
            system = FileSystem(re.sub(r"mkfs\.", "", programs[0]), Path(folder))
            system.close()
        except OSError as error:
            return f"this machine cannot mount a file system ({error})"
    return ""


def _system(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")
