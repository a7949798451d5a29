"""The output folder of `train`: a run is finished if its files have the digests in SHA256SUMS."""

from __future__ import annotations

import pytest

from lora_np.commands.run_folder import ADAPTER, CHECKPOINT, SUMS, finish, is_finished, start
from lora_np.files import save_arrays, write_text


@pytest.fixture
def folder(tmp_path):
    """A folder with a finished adapter."""
    write_text(tmp_path / "adapter_config.json", "{}")
    save_arrays(tmp_path / "adapter_model.safetensors", {})
    write_text(tmp_path / "metrics.jsonl", "{}")
    finish(tmp_path, ["metrics.jsonl", *ADAPTER])
    return tmp_path


def finished(folder, resume=True):
    return is_finished(folder, full=False, resume=resume)


def test_an_empty_folder_is_not_finished(tmp_path):
    assert not finished(tmp_path) and not finished(tmp_path / "nowhere", resume=False)


def test_a_finished_run_is_finished(folder):
    assert finished(folder)
    with pytest.raises(FileExistsError, match=r"adapter_config\.json exists; use --overwrite"):
        finished(folder, resume=False)


def test_a_checkpoint_that_a_power_cut_brought_back_changes_nothing(folder):
    save_arrays(folder / CHECKPOINT, {})
    assert finished(folder)


@pytest.mark.parametrize("name", ["metrics.jsonl", *ADAPTER])
@pytest.mark.parametrize("content", [None, b"", b"{ }"], ids=["removed", "empty", "changed"])
def test_a_damaged_file_is_named_and_not_finished(name, content, folder):
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{name} was changed or damaged after the run, so .*use --overwrite to train again"
    ):
        finished(folder)
    save_arrays(folder / CHECKPOINT, {})
    assert not finished(folder), "the checkpoint can make the file again"


def test_digests_of_other_files_do_not_make_a_run_finished(folder):
    finish(folder, ["metrics.jsonl"])
    with pytest.raises(ValueError, match=r"adapter_config\.json was changed or damaged"):
        finished(folder)


def test_an_old_adapter_is_not_the_result_of_the_run_that_overwrites_it(folder):
    save_arrays(folder / CHECKPOINT, {})
    start(folder, overwrite=True)
    assert (folder / SUMS).read_bytes() == b"" and not (folder / CHECKPOINT).exists()
    assert not finished(folder)
    with pytest.raises(FileExistsError, match="exists; use --overwrite"):
        finished(folder, resume=False)


def test_the_digests_are_those_of_sha256sum(folder):
    import hashlib

    lines = (folder / SUMS).read_text().splitlines()
    assert lines == [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in ["metrics.jsonl", *ADAPTER]
    ]


def test_a_run_of_an_older_version_without_digests_is_judged_by_its_files(folder):
    (folder / SUMS).unlink()
    assert finished(folder)
    for name, message in (("adapter_config.json", "adapter_config"), ("adapter_model.safetensors", "is damaged")):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(b"")
        with pytest.raises(ValueError, match=message):
            finished(folder)
        (folder / name).write_bytes(content)
