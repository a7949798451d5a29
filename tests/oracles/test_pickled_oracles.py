"""A .bin file of PyTorch is read as torch reads it, and nothing but tensors is read from it."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from oracle_adapters import ALL_LINEAR, assert_same_logits, written_by_peft
from oracle_models import UNTIED, base_pair, peft, torch

import lora_np as ln
from lora_np.__main__ import main
from lora_np.files import load_arrays, read_pickled

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::FutureWarning:transformers")]


@pytest.mark.parametrize(
    "name", ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
)
def test_tensors_of_every_dtype_shape_and_stride_are_read_as_torch_reads_them(name, tmp_path):
    x = (torch.arange(24).reshape(4, 6) % 2).to(getattr(torch, name))
    tensors = OrderedDict(a=x, b=x.T, c=x[1:, ::2], d=x[:0], e=x[0, 0], f=torch.nn.Parameter(x, requires_grad=False))
    torch.save(tensors, tmp_path / "x.bin")
    found, expected = read_pickled(tmp_path / "x.bin"), torch.load(tmp_path / "x.bin", weights_only=True)
    assert found.keys() == expected.keys()
    for key, y in expected.items():
        wide = y.float() if name == "bfloat16" else y
        assert found[key].shape == tuple(y.shape) and found[key].dtype.name == name
        assert np.array_equal(found[key].astype(wide.numpy().dtype), wide.numpy())


def test_a_pickled_adapter_of_peft_is_converted_and_gives_pefts_logits(tmp_path, capsys):
    ours, theirs = base_pair(UNTIED, np.float32)
    written_by_peft(theirs, ALL_LINEAR, tmp_path)
    adapted = peft.PeftModel.from_pretrained(base_pair(UNTIED, np.float32)[1], str(tmp_path))
    adapted.save_pretrained(str(tmp_path / "bin"), safe_serialization=False)
    pickled = tmp_path / "bin" / "adapter_model.bin"
    with pytest.raises(
        FileNotFoundError, match=r"is not read\. Convert it: python -m lora_np convert .*adapter_model\.bin"
    ):
        ln.PeftModel.from_pretrained(ours, tmp_path / "bin")
    assert main(["convert", str(pickled)]) == 0
    assert "28 tensors" in capsys.readouterr().out
    assert_same_logits(ln.PeftModel.from_pretrained(ours, tmp_path / "bin"), adapted, 1e-4)
    before = load_arrays(pickled.with_suffix(".safetensors"))[0]
    assert main(["convert", str(pickled)]) == 1
    assert "exists already; delete it" in capsys.readouterr().err
    assert main(["convert", str(pickled), "--out", str(tmp_path / "again.safetensors")]) == 0
    after = load_arrays(tmp_path / "again.safetensors")[0]
    assert before.keys() == after.keys() and all(np.array_equal(before[key], after[key]) for key in before)


class Runs:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "a command": (
        {"a": Runs(os.system, "echo ran")},
        r"the file calls (posix|nt)\.system; only files of tensors can be read",
    ),
    "an evaluation": ({"a": Runs(eval, "1 + 1")}, r"the file calls __builtin__\.eval"),
    "an attribute": ({"a": Runs(getattr, OrderedDict, "fromkeys")}, r"the file calls __builtin__\.getattr"),
    "a loader of torch": ({"a": Runs(torch.load, "other.bin")}, r"the file calls torch\.serialization\.load"),
    "a whole model": (torch.nn.Linear(2, 2), r"the file calls torch\.nn\.modules\.linear\.Linear"),
    "a number": ({"a": 3}, "expected a dictionary from names to tensors"),
    "a list": ([torch.zeros(2)], "expected a dictionary from names to tensors"),
    "names that are numbers": ({1: torch.zeros(2)}, "expected a dictionary from names to tensors"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_calls_anything_else_is_refused_and_nothing_runs(what, tmp_path, capfd):
    content, message = HOSTILE[what]
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(ValueError, match=message):
        read_pickled(tmp_path / "x.bin")
    assert "ran" not in capfd.readouterr().out


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """Write the entries of an archive again, with `change(name, content)` as content; None leaves an entry out."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            if (new := change(name, content)) is not None:
                archive.writestr(name, new)


DAMAGED = {
    "no numbers": (lambda name, x: None if "/data/0" in name else x, "data/0"),
    "half of the numbers": (lambda name, x: x[: len(x) // 2] if "/data/0" in name else x, "does not fit in"),
    "no pickle": (lambda name, x: None if name.endswith("data.pkl") else x, "one data.pkl"),
    "half a pickle": (lambda name, x: x[:40] if name.endswith("data.pkl") else x, "cannot be read"),
    "big-endian numbers": (lambda name, x: b"big" if name.endswith("byteorder") else x, "big-endian"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_archive_is_refused_by_its_name(what, tmp_path):
    change, message = DAMAGED[what]
    torch.save({"a": torch.ones(4, 6)}, tmp_path / "x.bin")
    rewritten(tmp_path / "x.bin", change)
    with pytest.raises(ValueError, match=rf"x\.bin .*{message}"):
        read_pickled(tmp_path / "x.bin")


def test_a_compressed_archive_and_a_bare_pickle_are_refused(tmp_path):
    torch.save({"a": torch.ones(4, 6)}, tmp_path / "x.bin")
    rewritten(tmp_path / "x.bin", lambda _, x: x, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="expected an uncompressed archive"):
        read_pickled(tmp_path / "x.bin")
    (tmp_path / "y.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"y\.bin is not a ZIP archive of PyTorch"):
        read_pickled(tmp_path / "y.bin")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_pickled(tmp_path / "z.bin")


@pytest.mark.parametrize("shape", [(10**6, 10**6), (5, 6), (-1, 6), (4.0, 6)])
def test_a_tensor_that_is_larger_than_its_storage_is_refused_without_memory_for_it(shape, tmp_path):
    """Strides of 0 would make a tensor of any size from one number."""
    x = torch.ones(4, 6)
    storage = x.untyped_storage()

    class Lie:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (
                torch.storage.TypedStorage(wrap_storage=storage, dtype=x.dtype, _internal=True),
                0,
                shape,
                (0, 0),
                False,
                OrderedDict(),
            )

    torch.save({"a": Lie()}, tmp_path / "x.bin")
    with pytest.raises(ValueError, match=r"does not fit in 24 numbers|expected whole numbers"):
        read_pickled(tmp_path / "x.bin")
