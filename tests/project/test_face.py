"""`import lora_np as ln`: its version, and what a reader of PEFT's and transformers' tutorials types into it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata

import pytest

import lora_np as ln


def test_the_version_is_that_of_the_installed_package():
    try:
        assert ln.__version__ == metadata.version("lora-np")
    except metadata.PackageNotFoundError:
        assert ln.__version__ == "0+unknown"


def test_without_an_installation_there_is_a_version_all_the_same(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert ln.__version__ == "0+unknown"


def test_the_import_does_not_wait_for_the_version():
    code = "import sys, lora_np; print('importlib.metadata' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"


@pytest.mark.parametrize("name", ln.REPLACEMENTS)
def test_another_librarys_name_says_what_to_use_instead(name):
    with pytest.raises(
        AttributeError, match=re.escape(f"lora_np has no attribute {name}; use {ln.REPLACEMENTS[name]}")
    ):
        getattr(ln, name)
    assert getattr(ln, re.match(r"\w+", ln.REPLACEMENTS[name])[0]), "and that is there"


def test_any_other_name_is_not_there():
    with pytest.raises(AttributeError, match=r"lora_np has no attribute laod_model$"):
        _ = ln.laod_model
