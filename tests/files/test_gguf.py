"""Tests of GGUF files: the arrays equal those of llama.cpp's own package, and a damaged file raises a clear error."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="the `gguf` package is in requirements.txt")
from gguf import GGMLQuantizationType as Type  # noqa: E402
from gguf.quants import dequantize  # noqa: E402
from gguf_files import CONFIG, write, write_model  # noqa: E402

from lora_np import Transformer, load_model, load_tokenizer  # noqa: E402
from lora_np.files import open_gguf  # noqa: E402

RNG = np.random.default_rng(0)
DECODED = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


@pytest.fixture
def model_file(path):
    """Return the bytes of an intact model file, with a tokenizer of five tokens."""
    tokens = {"tokens": ["a", "b", "ab", "Ġ", "<end>"], "merges": ["a b"], "token_type": [1, 1, 1, 1, 3]}
    tokens |= {"model": "gpt2", "pre": "smollm", "eos_token_id": 4, "add_bos_token": False}
    write_model(path, Transformer.random(CONFIG), **{f"tokenizer__ggml__{key}": value for key, value in tokens.items()})
    return path.read_bytes()


# ----------------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("kind", DECODED)
def test_an_array_of_any_type_is_dequantised_as_the_gguf_package_does(kind, path):
    block, block_bytes = gguf.GGML_QUANT_SIZES[Type[kind]]
    rows, columns = 300, 2 * 256  # more rows than one chunk of dequantisation
    packed = RNG.integers(0, 256, (rows, columns // block * block_bytes), np.uint8)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("before", np.ones(3, np.float32))
    writer.add_tensor("W", packed, raw_dtype=Type[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(path) as stored, np.errstate(invalid="ignore"):  # random bytes contain a few NaN and ∞
        assert stored.shapes == {"before": (3,), "W": (rows, columns)}
        x, expected = stored["W"], dequantize(packed, Type[kind])
    assert x.dtype == np.float32
    assert x.tobytes() == expected.tobytes()


def test_metadata_come_back(path):
    metadata = {"a number": 7, "another": -1.5, "yes": True, "a text": "ΔW = BA\n", "texts": ["", "é", "b"]}
    write(path, {}, metadata | {"numbers": [1, 2, 3], "fractions": [0.5, 0.25]})
    with open_gguf(path) as stored:
        read = stored.metadata
    assert {key: read[key] for key in metadata} == metadata
    np.testing.assert_array_equal(read["numbers"], [1, 2, 3])
    np.testing.assert_array_equal(read["fractions"], [0.5, 0.25])


def test_another_alignment_is_honoured(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(256)
    for name in "abc":
        writer.add_tensor(name, np.full(5, ord(name), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(path) as stored:
        for name in "abc":
            np.testing.assert_array_equal(stored[name], np.full(5, ord(name)))


def test_reading_one_array_costs_little_beside_it(path):
    write(path, {"W": np.ones((2000, 1024), np.float32)}, {}, Type.Q4_1)
    with open_gguf(path) as stored:
        stored["W"]  # the first call imports the gguf package
        tracemalloc.start()
        x = stored["W"]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1.3 * x.nbytes, f"{peak:,} bytes for an array of {x.nbytes:,}: dequantise it a few rows at a time"


# ----------------------------------------------------------------------------------------------------------------- damage


def loads_or_is_refused(path):
    """Load the model and the tokenizer. Return the error messages, after checking that each one names the file."""
    messages = []
    for load in (load_model, load_tokenizer):
        try:
            load(path)
        except (ValueError, KeyError) as error:
            messages.append(str(error))
            assert path.name in str(error), f"the error does not name the file: {error}"
    return messages


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def file_of(*parts, arrays=1, entries=0, version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, arrays, entries) + b"".join(parts)


def info(name="W", shape=(32, 2), kind=0, offset=0):
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + sizes + struct.pack("<IQ", kind, offset)


DAMAGED = {
    "an empty file": (b"", "too short for a header"),
    "a text": (b"import numpy as np\n" * 20, "the file begins with b'impo'"),
    "a ZIP archive": (b"PK\x03\x04" + bytes(200), "a GGUF file begins with"),
    "another version": (file_of(version=1), "GGUF version 1; versions 2 and 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 0), "big-endian machine"),
    "2⁶³ entries": (file_of(string("key"), entries=2**63), "the file claims"),
    "2⁶³ arrays": (file_of(info(), bytes(300), arrays=2**63), "GGUF|claims|dimensions"),
    "a key of 2⁶³ bytes": (file_of(struct.pack("<Q", 2**63), entries=1), "the file claims 9223372036854775808 more"),
    "a text of 2⁶³ bytes": (file_of(string("k"), struct.pack("<IQ", 8, 2**63), entries=1), "the file claims 92"),
    "2⁶³ numbers": (
        file_of(string("k"), struct.pack("<IIQ", 9, 4, 2**63), entries=1),
        "the file claims 36893488147419103232",
    ),
    "2⁶³ texts": (file_of(string("k"), struct.pack("<IIQ", 9, 8, 2**63), entries=1), "strings"),
    "2⁶¹ texts": (file_of(string("k"), struct.pack("<IIQ", 9, 8, 2**61), entries=1), "strings"),
    "arrays in an array": (file_of(string("k"), struct.pack("<IIQ", 9, 9, 5), bytes(99), entries=1), "has type 9, "),
    "a type that does not exist": (file_of(string("k"), struct.pack("<I", 77), bytes(99), entries=1), "has type 77, "),
    "a key that is no text": (file_of(struct.pack("<Q", 2), b"\xff\xfe", bytes(99), entries=1), "utf-8"),
    "2³² dimensions": (file_of(string("W"), struct.pack("<I", 2**32 - 1), bytes(99)), "has 4294967295 dimensions"),
    "no dimensions": (file_of(string("W"), bytes(99)), "has 0 dimensions"),
    "a size of 0": (file_of(info(shape=(32, 0)), bytes(400)), r"has shape \(0, 32\)"),
    "2⁸⁰ numbers": (file_of(info(shape=(2**40, 2**40)), bytes(400)), "past the end"),
    "a size that overflows": (file_of(info(shape=(2**63, 2**63, 2**63, 4)), bytes(400)), "past the end"),
    "an array past the end": (file_of(info(offset=2**60), bytes(400)), "past the end"),
    "two arrays in one place": (file_of(info(), info("V"), bytes(999), arrays=2), "overlaps another array"),
    "one name twice": (file_of(info(), info(), bytes(999), arrays=2), "W appears twice"),
    "half a block": (file_of(info(shape=(33, 2), kind=8), bytes(400)), "a multiple of 32"),
    "an array of no known type": (file_of(info(kind=4000), bytes(400)), "W has type 4000"),
    "an array that cannot be decoded": (
        file_of(info(kind=28), bytes(999)),
        "W has type F64, which the gguf package cannot dequantise",
    ),
    "an alignment of 0": (
        file_of(string("general.alignment"), struct.pack("<II", 4, 0), info(), bytes(400), entries=1),
        "alignment is 0",
    ),
    "an alignment that is a text": (
        file_of(string("general.alignment"), struct.pack("<I", 8), string("x"), info(), bytes(400), entries=1),
        "alignment is 'x'",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_by_name_and_costs_no_memory(case, path):
    content, message = DAMAGED[case]
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"model\.gguf is damaged or not supported: .*{message}"):
        load_model(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20, f"{peak:,} bytes for a file of {len(content)}: check a size before memory is allocated for it"


def test_a_file_cut_off_anywhere_is_refused(path, model_file):
    data_begin = model_file.rindex(b"output.weight") + 64
    for size in [*range(0, data_begin, 7), *range(data_begin, len(model_file), len(model_file) // 50)]:
        path.write_bytes(model_file[:size])
        with pytest.raises(ValueError, match=r"model\.gguf"), open_gguf(path):
            pytest.fail(f"{size} of {len(model_file)} bytes were taken for the whole file")


def test_random_damage_to_the_header_is_refused_or_harmless(path, model_file):
    """200 damaged headers (one to four bytes or one number changed): no crash, and no memory for a false size."""
    rng, header = np.random.default_rng(1), model_file.rindex(b"output.weight") + 64
    refused = 0
    tracemalloc.start()
    for _ in range(200):
        damaged = bytearray(model_file)
        if rng.random() < 0.5:
            for position in rng.integers(0, header, rng.integers(1, 5)):
                damaged[position] = rng.integers(0, 256)
        else:
            position = rng.integers(4, header - 8)
            damaged[position : position + 8] = struct.pack("<Q", 1 << int(rng.integers(0, 64)))
        path.write_bytes(damaged)
        refused += bool(loads_or_is_refused(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 100, "too few files were refused: the test must damage bytes that are read"
    assert peak < 10 * len(model_file), f"{peak:,} bytes for files of {len(model_file):,}"


def test_the_sound_file_passes_where_the_damaged_ones_do_not(path, model_file):
    assert loads_or_is_refused(path) == []


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf does not exist"):
        load_model(tmp_path / "nowhere.gguf")
