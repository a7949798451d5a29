"""Tests of safetensors files: reading returns the written arrays, damage is detected, and a failed write changes nothing."""

from __future__ import annotations

import json
import os
import stat
import sys
import tracemalloc

import numpy as np
import pytest

from lora_np.files import load_arrays, save_arrays, write_atomically

RNG = np.random.default_rng(0)
ARRAYS = {
    "float32": RNG.standard_normal((3, 5)).astype(np.float32),
    "float64": RNG.standard_normal((2, 3, 4)),
    "float16": RNG.standard_normal(7).astype(np.float16),
    "int64": RNG.integers(-(2**62), 2**62, (2, 2)),
    "uint8": np.arange(5, dtype=np.uint8),
    "bool": np.array([True, False, True]),
    "a 0-d number": np.array(3.5),
    "empty": np.zeros((0, 4), np.float32),
    "transposed": RNG.standard_normal((4, 6)).T,
    "every other": np.arange(20.0)[::-2],
    "one row of many": np.broadcast_to(np.arange(3.0), (4, 3)),
    "special": np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324]),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "arrays.safetensors"


@pytest.fixture
def written(path):
    """Return the bytes of an intact file: 8 bytes for the size of the header, the header, the arrays."""
    save_arrays(path, {"W": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4)}, {"step": "7"})
    return path.read_bytes()


def with_header(edit, arrays=bytes(24)):
    """Return the bytes of a file with one array W of 24 bytes. `edit` changes its header."""
    header = {"W": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    edit(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + arrays


# ----------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_comes_back_to_the_bit(name, path):
    array = ARRAYS[name]
    save_arrays(path, {name: array})
    back = load_arrays(path)[0][name]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable, "a resumed run updates its weights in place"
    assert back.flags.aligned


def test_names_and_metadata_come_back(path):
    save_arrays(path, ARRAYS, {"note": 'ΔW = "BA"\n', "format": "pt"})
    arrays, metadata = load_arrays(path)
    assert arrays.keys() == ARRAYS.keys()
    assert metadata["note"] == 'ΔW = "BA"\n'
    assert metadata["format"] == "pt"


def test_no_arrays_is_a_file_too(path):
    save_arrays(path, {})
    assert load_arrays(path)[0] == {}


def test_a_file_without_a_digest_is_read_as_other_libraries_write_it(path):
    path.write_bytes(with_header(lambda header: None))
    np.testing.assert_array_equal(load_arrays(path)[0]["W"], np.zeros((2, 3)))


def test_what_was_loaded_can_be_saved_again_with_its_metadata(path, written):
    arrays, metadata = load_arrays(path)
    save_arrays(path, arrays | {"b": np.zeros(4)}, metadata)
    assert load_arrays(path)[1]["step"] == "7", "the digest of the old file must not be copied to the new file"


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("share", [0.0, 0.01, 0.02, 0.1, 0.5, 0.8, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, path, written):
    path.write_bytes(written[: int(share * len(written))])
    with pytest.raises(ValueError, match=r"arrays\.safetensors is damaged"):
        load_arrays(path)


def test_a_file_with_more_at_its_end_is_refused(path, written):
    path.write_bytes(written + b"\0")
    with pytest.raises(ValueError, match=r"arrays\.safetensors is damaged"):
        load_arrays(path)


def test_one_changed_byte_of_an_array_is_noticed(path, written):
    start = 8 + int.from_bytes(written[:8], "little")
    for position in range(start, len(written), 5):
        path.write_bytes(written[:position] + bytes([written[position] ^ 1]) + written[position + 1 :])
        with pytest.raises(ValueError, match=r"arrays\.safetensors was changed after it was written"):
            load_arrays(path)


EDITS = {
    "another shape of the same size": ("[2,3]", "[3,2]"),
    "another name": ('"W"', '"V"'),
    "another dtype of the same size": ('"F32"', '"I32"'),
    "another value in the metadata": ('"step":"7"', '"step":"8"'),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edited_header_is_noticed(case, path, written):
    old, new = (text.encode() for text in EDITS[case])
    assert written.count(old) == 1, "the format of the header has changed: update this test"
    path.write_bytes(written.replace(old, new))
    with pytest.raises(ValueError, match=r"arrays\.safetensors was changed after it was written"):
        load_arrays(path)


DAMAGED = {
    "an empty file": b"",
    "a text": b"import numpy as np\n" * 20,
    "a ZIP archive": b"PK\x03\x04" + bytes(200),
    "a pickle": b"\x80\x04\x95" + bytes(200),
    "a header of 2⁶³ bytes": (2**63).to_bytes(8, "little") + b"{}",
    "a header of 99 MB in a file of 10 bytes": (99_000_000).to_bytes(8, "little") + b"{}",
    "a header that is no JSON": (4).to_bytes(8, "little") + b"{]{]",
    "a header that is no text": (4).to_bytes(8, "little") + b"\xff\xfe\xff\xfe",
    "an array of 2⁴⁰ numbers": with_header(lambda h: h["W"].update(shape=[2**20, 2**20], data_offsets=[0, 2**42])),
    "an array of 2⁴⁰ numbers in 24 bytes": with_header(lambda h: h["W"].update(shape=[2**20, 2**20])),
    "a size that overflows": with_header(lambda h: h["W"].update(shape=[2**40, 2**40])),
    "a negative size": with_header(lambda h: h["W"].update(shape=[-2, -3])),
    "an array past the end": with_header(lambda h: h["W"].update(data_offsets=[8, 32])),
    "an array that ends before it starts": with_header(lambda h: h["W"].update(data_offsets=[24, 0])),
    "two arrays in one place": with_header(lambda h: h.update(V=h["W"])),
    "a dtype that does not exist": with_header(lambda h: h["W"].update(dtype="F31")),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_by_name_and_costs_no_memory(case, path):
    path.write_bytes(DAMAGED[case])
    load = pytest.raises(
        ValueError, match=r"arrays\.safetensors is damaged or not a safetensors file .*download or write it again"
    )
    tracemalloc.start()
    with load:
        load_arrays(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20, (
        f"{peak:,} bytes for a file of {len(DAMAGED[case])}: check a size before memory is allocated for it"
    )


def test_a_file_that_is_not_there_is_named(tmp_path):
    for missing in (tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=missing.name):
            load_arrays(missing)


# ------------------------------------------------------------------------------------------------------- atomic writing


def interrupted(temporary):
    temporary.write_bytes(b"half a file")
    raise KeyboardInterrupt


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, written):
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    with pytest.raises(TypeError):
        save_arrays(path, {"W": np.ones(3)}, {"step": 8})  # metadata must be strings
    assert path.read_bytes() == written
    assert os.listdir(path.parent) == [path.name], "a temporary file was left behind"


def test_a_first_write_that_fails_leaves_no_file(path):
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    assert not os.listdir(path.parent)


def test_writing_makes_the_folder_and_replaces_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "text"
    for text in ("first", "second"):
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text))
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["text"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses to replace a file that is open")
def test_who_has_the_old_file_open_reads_it_to_its_end(path, written):
    with open(path, "rb") as reader:
        beginning = reader.read(10)
        save_arrays(path, {"other": np.zeros(1000)})
        assert beginning + reader.read() == written, (
            "the new file took the old one's place byte by byte, not by a rename"
        )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits")
def test_others_may_read_the_file_as_they_may_read_any_other(tmp_path, path):
    (tmp_path / "ordinary").touch()
    save_arrays(path, {"W": np.ones(3)})
    ours, ordinary = (stat.S_IMODE(p.stat().st_mode) for p in (path, tmp_path / "ordinary"))
    assert oct(ours) == oct(ordinary), (
        "safetensors makes a file for its owner alone: a model on a shared disk is for all"
    )
