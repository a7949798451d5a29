"""Tests of durable writing and of locks: a full disk names the file and changes nothing, a lock ends with its owner."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from lora_np.__main__ import _message
from lora_np.files import load_arrays, lock, locks, save_arrays, write_atomically, write_text
from lora_np.files.durable import remove_unfinished

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock and does not flush folders")


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


# ------------------------------------------------------------------------------------------------------------- full disk

ADVICE = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EFBIG: "check the disk"}


@pytest.mark.parametrize("number", ADVICE, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["write", "fsync", "mkdir"])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(call, number, tmp_path, monkeypatch):
    path = tmp_path / "adapter" / "a.safetensors"
    save_arrays(path, {"W": np.ones(3)})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr("lora_np.files.arrays._write", failing(number))
        else:
            patch.setattr(os, call, failing(number))
        with pytest.raises(OSError) as caught:
            save_arrays(path, {"W": np.zeros(3)})
    reason = (
        f"{os.strerror(number)}; this file was not written. To continue, {ADVICE[number]} and run the command again"
    )
    assert _message(caught.value) == f"{path}: {reason}"
    assert caught.value.errno == number
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_the_file_that_is_named_is_the_one_that_was_written(tmp_path):
    """An adapter's weights are written while its configuration waits under a temporary name."""

    def write(temporary):
        write_atomically(tmp_path / "weights", failing(errno.ENOSPC))

    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "config", write)
    assert caught.value.filename == str(tmp_path / "weights") and not os.listdir(tmp_path)


@posix
def test_an_error_of_permissions_is_as_before(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises((NotADirectoryError, FileExistsError)):
        write_text(tmp_path / "file" / "text", "")


# ------------------------------------------------------------------------------------------------------------ the order


@posix
def test_every_new_folder_and_every_file_is_flushed_in_order(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda d: (done.append(os.path.basename(os.readlink(f"/proc/self/fd/{d}"))), fsync(d))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    write_text(tmp_path / "a" / "b" / "text", "ΔW\n")
    assert done == [tmp_path.name, "a", "text", "rename", "b"]


def test_text_has_the_same_bytes_on_every_system(tmp_path):
    write_text(tmp_path / "text", "ΔW\n= BA\n")
    assert (tmp_path / "text").read_bytes() == "ΔW\n= BA\n".encode()


def test_only_what_a_killed_process_left_of_this_file_is_removed(tmp_path):
    """A name can contain characters of a pattern, and it can be the beginning of another name."""
    temporary = {name: f"{name}.{'0' * 32}.tmp" for name in ("mine", "mine[1]", "mine.old", "other")}
    for path in temporary.values():
        (tmp_path / path).mkdir()
        (tmp_path / path / "part").touch()
    (tmp_path / "mine.tmp").touch()
    remove_unfinished(tmp_path, "mine[1]")
    remove_unfinished(tmp_path, "mine")
    assert sorted(os.listdir(tmp_path)) == sorted(["mine.tmp", temporary["mine.old"], temporary["other"]])


# ---------------------------------------------------------------------------------------------------------- equal bytes

SAVE = (
    """
import sys
import lora_np as ln
model = ln.get_peft_model(ln.load_model("tiny", device="numpy"), ln.LoraConfig(r=2, target_modules={*"qkvo"}))
""".replace('{*"qkvo"}', '{f"{x}_proj" for x in "qkvo"}')
    + "model.save_pretrained(sys.argv[1])"
)


def test_an_adapter_has_the_same_bytes_in_every_process(tmp_path):
    """Sets of strings have another order in every process."""
    found = []
    for seed in "123":
        given = [sys.executable, "-c", SAVE, str(tmp_path / seed)]
        subprocess.run(given, env=os.environ | {"PYTHONHASHSEED": seed}, check=True)
        found.append({path.name: path.read_bytes() for path in (tmp_path / seed).iterdir()})
    assert len(found[0]) == 2 and found[0] == found[1] == found[2]


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">i2"])
def test_the_byte_order_of_an_array_does_not_matter(dtype, tmp_path):
    save_arrays(tmp_path / "a", {"W": np.arange(6, dtype=dtype)})
    np.testing.assert_array_equal(load_arrays(tmp_path / "a")[0]["W"], np.arange(6))


def test_a_dtype_that_the_format_does_not_have_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"a: W has dtype complex128; expected one of float64"):
        save_arrays(tmp_path / "a", {"W": np.zeros(2, complex)})


# --------------------------------------------------------------------------------------------------------------- a lock


def test_a_lock_is_held_once_and_leaves_nothing(tmp_path):
    path = tmp_path / "a" / "b" / "run.lock"
    with lock(path):
        assert os.listdir(path.parent) == ["run.lock"]
        with (
            pytest.raises(BlockingIOError, match=rf"run\.lock is held by process {os.getpid()} on .*; wait until"),
            lock(path),
        ):
            pass
        assert os.listdir(path.parent) == ["run.lock"], "who was refused must not remove the file of another"
    assert not os.listdir(tmp_path), "folders that were made for the lock alone are removed"
    with lock(path):
        (path.parent / "result").touch()
    assert os.listdir(path.parent) == ["result"]


@posix
def test_a_lock_file_that_was_just_removed_is_no_lock(tmp_path, monkeypatch):
    """The owner removes its file between the two calls of the next process, open and flock."""
    path, flock, seen = tmp_path / "run.lock", locks._lock, []

    def removed_before(descriptor):
        if not seen:
            path.unlink()
        seen.append(descriptor)
        flock(descriptor)

    monkeypatch.setattr(locks, "_lock", removed_before)
    with lock(path):
        assert len(seen) == 2 and path.exists()
        with pytest.raises(BlockingIOError), lock(path):
            pass


def test_a_disk_without_locks_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_np.files.locks._lock", failing(errno.ENOSYS))
    with (
        pytest.warns(UserWarning, match="is on a disk without locks; start only one run there"),
        lock(tmp_path / "run.lock"),
    ):
        pass
