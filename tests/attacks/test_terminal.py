"""Nothing that is printed is obeyed by a terminal: the text of a model, and names and texts from files, are shown."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lora_np as ln
import lora_np.transformer
from lora_np.__main__ import main
from lora_np.exercises import answers
from lora_np.progress import Progress
from lora_np.terminal import CONTROL, VisibleStream, unfiltered, visible, visible_output

CLEAR, TITLE, COPY = "\x1b[2J\x1b[H", "\x1b]0;mine\x07", "\x1b]52;c;cm0gLXJmIH4K\x07"  # the screen, title and clipboard
EVIL = f"a{CLEAR}b{TITLE}{COPY}\x9b31m\r\x08\x7f\u202egnp.exe\u2066"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\x08c\x00\x7f", r"a\x0db\x08c\x00\x7f"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("\ud800", r"\ud800"),
        ("two\n\tlines, é → ∆W 日本 שלום\u200f 👩\u200d💻 می\u200cخواهم", None),
    ],
)
def test_control_characters_are_shown_and_text_is_kept(text, shown):
    assert visible(text) == (text if shown is None else shown)
    assert visible(visible(text)) == visible(text)


def test_of_all_characters_no_control_character_is_left():
    everything = "".join(map(chr, range(0x110000)))
    left = set(re.findall("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", visible(everything)))
    assert left == {"\n", "\t"}
    assert visible(everything).encode(), "and all can be written as UTF-8"


@pytest.fixture
def prints_evil(monkeypatch):
    """A model that answers with control characters, byte by byte."""

    def generate(model, prompts, max_new_tokens, on_token, **settings):
        for row in range(len(prompts)):
            for byte in EVIL.encode():
                on_token(row, byte)
        return [list(EVIL.encode()) for _ in prompts]

    monkeypatch.setattr(lora_np.transformer, "generate", generate)


@pytest.mark.parametrize("prompts", [["one"], ["one", "two"], [EVIL]])
@pytest.mark.parametrize("form", ["--raw", "--chat"])
def test_generate_shows_what_a_model_writes(form, prompts, prints_evil, capsys):
    assert main(["generate", "--model", "tiny", form, *prompts]) == 0
    written = capsys.readouterr()
    assert written.out.count(visible(EVIL)) >= len(prompts)
    assert not CONTROL.search(written.out + written.err)


@pytest.mark.parametrize("form", ["--raw", "--chat"])
def test_so_does_a_conversation(form, prints_evil, monkeypatch, capsys):
    typed = iter(["hello", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert main(["generate", "--model", "tiny", form]) == 0
    written = capsys.readouterr()
    assert visible(EVIL) in written.out and not CONTROL.search(written.out + written.err)


def lying_adapter(folder: Path) -> Path:
    ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=2)).save_pretrained(folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": EVIL, EVIL: EVIL}))
    return folder


def lying_records(file: Path) -> Path:
    file.write_text(f'{{"messages": "{EVIL}"}}\n', encoding="utf-8")
    return file


NAMES = {  # commands whose error names a file, a value or a content that a stranger chose
    "an adapter that is missing": lambda folder: ["generate", "--model", "tiny", "--adapter", EVIL, "x"],
    "an adapter that lies": lambda folder: [
        "generate",
        "--model",
        "tiny",
        "--adapter",
        str(lying_adapter(folder)),
        "x",
    ],
    "a model that is missing": lambda folder: ["generate", "--model", EVIL, "x"],
    "data that is missing": lambda folder: ["train", "--model", "tiny", "--data", EVIL, "--output", str(folder / "o")],
    "data that lies": lambda folder: [
        *("train", "--model", "tiny", "--data", str(lying_records(folder / "d.jsonl")), "--output", str(folder / "o"))
    ],
    "an option": lambda folder: ["params", "--model", EVIL],
    "a target": lambda folder: ["params", "--model", "gpt-2", "--target-modules", EVIL],
    "a command": lambda folder: [EVIL],
}


@pytest.mark.parametrize("what", NAMES)
def test_an_error_shows_the_names_of_strangers(what, tmp_path, capsys):
    try:
        assert main(NAMES[what](tmp_path)) == 1
    except SystemExit as ended:  # argparse
        assert ended.code == 2
    written = capsys.readouterr()
    assert written.err and not CONTROL.search(written.out + written.err)


def test_a_file_with_a_name_that_is_no_text(tmp_path, capsys):
    """A file name of bytes that are not UTF-8 contains surrogates, which print cannot write."""
    assert main(["generate", "--model", "tiny", "--adapter", os.fsdecode(b"\xff\x1b[2J"), "x"]) == 1
    assert not CONTROL.search(capsys.readouterr().err)


def test_warnings_and_lines_beside_a_bar_too(capsys):
    with visible_output():
        assert isinstance(sys.stderr, VisibleStream) and unfiltered(sys.stderr) is sys.stderr.stream
        print(EVIL, file=sys.stderr)
        sys.stderr.writelines([EVIL, EVIL])
        with Progress(2, EVIL, lines=True) as bar:
            bar.say(EVIL)
    written = capsys.readouterr()
    assert written.err.count(visible(EVIL)) == 4 and not CONTROL.search(written.err)
    assert not isinstance(sys.stderr, VisibleStream)


def test_check_shows_what_an_answer_raises(capsys):
    answers._print(EVIL)
    assert capsys.readouterr().out == visible(EVIL) + "\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_on_a_terminal(tmp_path):
    """The command on a real terminal. A model whose norms are 0 writes the same byte for ever; here it is ESC."""
    import pty

    model = ln.Transformer.random(ln.TransformerConfig(**TINY))
    model.model.norm.weight.value[...] = 1
    model.model.embed_tokens.weight.value[...] = 0
    model.model.embed_tokens.weight.value[:, 0] = 1e-3
    model.lm_head.weight.value[...] = 0
    model.lm_head.weight.value[0x1B, 0] = 10
    ln.save_model(model, tmp_path)
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "lora_np", "generate", "--model", str(tmp_path), "--raw", "hi" + TITLE]
    environment = os.environ | {"PYTHONPATH": str(Path(ln.__file__).parents[1])}
    ran = subprocess.run(
        [*command, "--max-new-tokens", "5"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
        timeout=60,
    )
    os.close(terminal)
    written = b""
    while chunk := _read(controller):
        written += chunk
    os.close(controller)
    assert ran.returncode == 0, written
    assert rb"hi\x1b]0;mine\x07" + rb"\x1b" * 5 in written and not re.search(
        rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", written
    )


TINY = dict(
    vocab_size=256,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)


def _read(controller: int) -> bytes:
    try:
        return os.read(controller, 65536)
    except OSError:  # the end, on Linux
        return b""
