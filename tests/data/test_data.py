"""Tests of the corpus: its text exists, held-out text is not in the training text, and a batch depends only on its index."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_np import data

DOMAINS, SPLITS = ("prose", "code"), ("train", "heldout")
PASSAGE = 100  # bytes; a shared text of this length is a leak, a shorter one may be an idiom


def passages(tokens: np.ndarray) -> np.ndarray:
    """Return a hash of each window of PASSAGE bytes, (size - PASSAGE + 1,) uint64. Equal bytes have equal hashes."""
    # A polynomial hash of n bytes: hash(first half) · factor ** (length of the second half) + hash(second half).
    single, factor = tokens.astype(np.uint64) + np.uint64(1), 0xD6E8FEB86659FD93

    def windows(n: int) -> np.ndarray:
        if n == 1:
            return single
        half = windows(n // 2)
        pair = half[: len(half) - n // 2] * np.uint64(pow(factor, n // 2, 2**64)) + half[n // 2 :]
        return pair if n % 2 == 0 else pair[: len(tokens) - n + 1] * np.uint64(factor) + single[n - 1 :]

    return windows(PASSAGE)


def share_in_common(of: np.ndarray, known: np.ndarray) -> float:
    """Return the share of the bytes `of` in passages with a hash in `known`, an array of sorted hashes."""
    wanted = passages(of)
    at = np.searchsorted(known, wanted)
    covered = np.zeros(len(of), bool)
    for start in np.flatnonzero(known[np.minimum(at, len(known) - 1)] == wanted):
        covered[start : start + PASSAGE] = True
    return covered.mean()


@pytest.fixture(scope="module")
def known() -> dict[str, np.ndarray]:
    """Return the sorted hashes of the training text of each domain."""
    return {domain: np.sort(passages(data.corpus(domain, "train"))) for domain in DOMAINS}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Write a small standard library."""
    write(tmp_path, "pydoc_data/topics.py", "topics = {'lists': 'A list display.\\n', 'while': 'A section.'}\n")
    write(tmp_path, "plain.py", '"""A plain module."""\n\nx = 1  # kept\n')
    return tmp_path


def write(folder: Path, name: str, source: str, newline: str = "\n", encoding: str = "utf-8") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source.replace("\n", newline).encode(encoding))


def both(domain: data.Domain, library: Path | None = None) -> dict[str, str]:
    return data.documents(domain, "train", library) | data.documents(domain, "heldout", library)


# ------------------------------------------------------------------------------------------------ the text that is real


@pytest.mark.parametrize(("domain", "megabytes"), [("prose", 1.0), ("code", 3.0)])
def test_this_python_has_megabytes_of_each_domain_of_which_about_a_tenth_is_held_out(domain, megabytes):
    train, heldout = (data.corpus(domain, split) for split in SPLITS)
    assert train.dtype == heldout.dtype == np.uint8
    assert len(train) + len(heldout) > megabytes * 1e6
    assert 0.05 < len(heldout) / (len(train) + len(heldout)) < 0.15


@pytest.mark.parametrize("split", SPLITS)
def test_the_code_is_python_without_docstrings(split):
    for name, source in data.documents("code", split).items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                assert ast.get_docstring(node) is None, f"{name} still has a docstring: {ast.get_docstring(node)[:80]}"


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_zero_byte_ends_each_document_and_stands_nowhere_else(domain):
    texts = data.documents(domain, "train")
    corpus = data.corpus(domain, "train")
    assert np.count_nonzero(corpus == 0) == len(texts)
    assert data.decode(corpus).split("\0") == [*texts.values(), ""]
    assert b"\r" not in corpus.tobytes()


@pytest.mark.parametrize("part", ["test/", "tests/", "site-packages/", "encodings/", "tkinter/", "lib2to3/", "turtle"])
def test_no_document_comes_from_what_is_left_out(part):
    assert not [name for domain in DOMAINS for name in both(domain) if f"/{part}" in name]


def test_another_process_reads_the_same_bytes_in_the_same_order():
    program = "from lora_np import data; print(data.corpus('prose', 'heldout').tobytes().hex())"
    environment = os.environ | {"PYTHONHASHSEED": "1"}  # another hash seed gives another order of sets
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert bytes.fromhex(printed) == data.corpus("prose", "heldout").tobytes()


# ------------------------------------------------------------------------------------------------------------ held out


def test_the_split_of_a_name_never_changes():
    """The base "tiny" was trained on "train". If a name changed its split, held-out losses would be meaningless."""
    heldout = [
        *("topics/assignment", "topics/comparisons", "topics/strings", "topics/lambda", "code/ipaddress.py"),
        *("docstrings/logging/handlers.py", "code/logging/handlers.py", "code/_compat_pickle.py", "code/fractions.py"),
    ]
    train = ["topics/compound", "topics/types", "docstrings/typing.py", "code/asyncio/base_events.py", "code/json.py"]
    assert {name: data.split_of(name) for name in heldout} == dict.fromkeys(heldout, "heldout")
    assert {name: data.split_of(name) for name in train} == dict.fromkeys(train, "train")


@pytest.mark.parametrize(
    "relatives",
    [
        ("docstrings/zipfile.py", "code/zipfile.py", "code/zipfile/__init__.py", "code/zipfile/_path/glob.py"),
        ("code/_pydecimal.py", "code/decimal.py"),
        ("code/_pydatetime.py", "code/datetime.py", "code/_strptime.py"),
        ("code/ntpath.py", "code/posixpath.py", "code/pathlib/_local.py"),
        ("code/bz2.py", "code/_compression.py", "code/compression/zstd/_zstdfile.py"),
        ("docstrings/pdb.py", "topics/debugger"),
    ],
)
def test_relatives_are_of_one_family_and_so_held_out_together(relatives):
    assert len({data.family_of(name) for name in relatives}) == 1


def test_no_document_is_in_both_splits_nor_one_module_on_different_sides():
    train, heldout = ({name for domain in DOMAINS for name in data.documents(domain, split)} for split in SPLITS)
    assert not train & heldout
    assert not {data.family_of(name) for name in train} & {data.family_of(name) for name in heldout}


@pytest.mark.parametrize("judged_on", DOMAINS)
@pytest.mark.parametrize("trained_on", DOMAINS)
def test_held_out_text_shares_no_passages_with_training_text(trained_on, judged_on, known):
    """On Python 3.11 to 3.14, 0 % of the prose and 0.1 to 0.15 % of the code is shared: common idioms."""
    share = share_in_common(data.corpus(judged_on, "heldout"), known[trained_on])
    assert share <= 0.005, f"{share:.2%} of the held-out {judged_on} is also in the training {trained_on}"


def test_prose_does_not_stand_in_the_code(known):
    """0.04 % is shared: docstrings that their module repeats in a string or a comment."""
    assert share_in_common(data.corpus("prose", "train"), known["code"]) <= 0.005


def test_the_check_for_shared_passages_finds_one():
    train, heldout = data.corpus("prose", "train").copy(), data.corpus("prose", "heldout")
    train[5000:8000] = heldout[1000:4000]
    assert share_in_common(heldout, np.sort(passages(train))) * len(heldout) == pytest.approx(3000, abs=500)


# ------------------------------------------------------------------------------------------------- reading a library


def test_docstrings_become_prose_and_the_rest_code(library):
    source = '''#!/usr/bin/env python
# Copyright 1999 by someone.
# Permission to use this is granted.

"""A module."""

# a comment
def f():
    """A function,
    with two lines."""
    return "not a docstring"

class Empty(Exception):
    "Only a docstring."

def one_line(): "Short."; return 1
class Café: """Ein Café."""  # a comment
'''
    write(library, "pkg/mod.py", source)
    prose = "A module.\n\nA function,\nwith two lines.\n\nOnly a docstring.\n\nShort.\n\nEin Café.\n"
    assert both("prose", library)["docstrings/pkg/mod.py"] == prose
    code = """# a comment
def f():
    return "not a docstring"

class Empty(Exception):
    pass

def one_line(): pass; return 1
class Café: pass  # a comment
"""
    assert both("code", library)["code/pkg/mod.py"] == code


def test_sources_are_parsed_and_never_run(library):
    write(library, "dangerous.py", '"""Dangerous."""\nraise SystemExit("imported")\n')
    assert both("prose", library)["docstrings/dangerous.py"] == "Dangerous.\n"


def test_newlines_and_encodings_are_those_of_the_file(library):
    write(library, "windows.py", '"""Two\nlines."""\nx = 1\ny = 2\n', newline="\r\n")
    write(library, "latin.py", '# -*- coding: latin-1 -*-\n"""Café."""\n', encoding="latin-1")
    assert both("prose", library)["docstrings/windows.py"] == "Two\nlines.\n"
    assert both("code", library)["code/windows.py"] == "x = 1\ny = 2\n"
    assert both("prose", library)["docstrings/latin.py"] == "Café.\n"


def test_a_repeated_docstring_is_kept_once_and_a_repeated_source_too(library):
    for name in ("first.py", "second.py"):
        write(library, name, '"""The same."""\nx = "the same"\n')
    assert [text for text in both("prose", library).values() if "The same" in text] == ["The same.\n"]
    assert [text for text in both("code", library).values() if "the same" in text] == ['x = "the same"\n']


def test_what_both_splits_have_stays_held_out(library):
    assert data.split_of("aaa.py") == "train" and data.split_of("struct.py") == "heldout"
    for name in ("aaa.py", "struct.py"):
        write(library, name, '"""The same."""\nx = "the same"\n')
    assert "docstrings/struct.py" in data.documents("prose", "heldout", library)
    assert "docstrings/aaa.py" not in data.documents("prose", "train", library)


def test_topics_that_are_sections_of_others_are_left_out(library):
    assert [name for name in both("prose", library) if name.startswith("topics/")] == ["topics/lists"]


def test_a_caller_who_edits_the_documents_does_not_edit_the_library(library):
    both("code", library).clear()
    data.documents("code", "train", library).clear()
    assert both("code", library) == {"code/plain.py": "x = 1  # kept\n"}
    with pytest.raises(ValueError, match="read-only"):
        data.corpus("code", "train")[0] = 0


# -------------------------------------------------------------------------------------- what is missing, and from where


@pytest.mark.parametrize("read", [data.documents, data.corpus])
def test_an_unknown_domain_or_split_names_the_ones_that_exist(read):
    with pytest.raises(ValueError, match="domain is 'poetry'; expected 'prose' or 'code'"):
        read("poetry", "train")
    with pytest.raises(ValueError, match="split is 'test'; expected 'train' or 'heldout'"):
        read("prose", "test")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    folder = tmp_path / "lib" / "python3.99"
    with pytest.raises(FileNotFoundError) as error:
        data.corpus("prose", "train", folder)
    assert (
        str(folder) in str(error.value)
        and "the folder does not exist" in str(error.value)
        and "stdlib=" in str(error.value)
    )


def test_an_installation_without_the_language_reference_says_so(library):
    (library / "pydoc_data" / "topics.py").unlink()
    with pytest.raises(FileNotFoundError, match="the language reference") as error:
        data.corpus("prose", "train", library)
    assert "pydoc_data/topics.py" in str(error.value) and str(library) in str(error.value)


def test_an_installation_of_compiled_files_only_says_so(library):
    (library / "plain.py").unlink()
    write(library, "plain.pyc", "")
    with pytest.raises(FileNotFoundError, match=r"1 \.py and 1 \.pyc files") as error:
        data.corpus("code", "train", library)
    assert str(library) in str(error.value) and "the standard library's sources" in str(error.value)


def test_topics_without_topics_say_so(library):
    write(library, "pydoc_data/topics.py", "other = {}\n")
    with pytest.raises(ValueError, match="does not assign `topics`"):
        data.corpus("prose", "train", library)


@pytest.mark.parametrize("source", ["def broken(:\n", '"""Not UTF-8: \xff"""\n', "x = 1\0\n"])
def test_a_file_that_is_no_python_is_named(library, source):
    write(library, "broken.py", source, encoding="latin-1")
    with pytest.raises(ValueError, match=r"broken\.py is not valid Python source"):
        data.corpus("code", "train", library)


# --------------------------------------------------------------------------------------------------- bytes and batches


def test_decode_undoes_encode():
    text = "LoRA: ΔW = B·A\n\tčaj 🫖"
    tokens = data.encode(text)
    assert tokens.dtype == np.int64 and tokens.max() < data.VOCAB_SIZE
    assert data.decode(tokens) == text
    assert data.encode("").shape == (0,) and data.decode(data.encode("")) == data.decode([]) == ""


def test_half_a_character_is_decoded_as_a_replacement():
    assert data.decode(data.encode("é")[:1]) == "\ufffd"


@pytest.mark.parametrize("tokens", [[256], [-1]])
def test_decode_refuses_what_is_no_byte(tokens):
    with pytest.raises(ValueError, match="expected bytes, 0 to 255"):
        data.decode(np.array(tokens))


def test_decode_refuses_what_is_no_row_of_integers():
    for tokens in (np.zeros((2, 3), int), np.array([1.0])):
        with pytest.raises(TypeError, match="expected one dimension of integers"):
            data.decode(tokens)


def test_targets_are_the_tokens_one_step_later():
    corpus = np.arange(200, dtype=np.uint8)
    tokens, targets = data.Batches(corpus, batch_size=5, seq_len=7)[0]
    assert tokens.shape == targets.shape == (5, 7) and tokens.dtype == targets.dtype == np.int64
    np.testing.assert_array_equal(targets, tokens + 1)
    for tokens, targets in data.heldout_batches(corpus, batch_size=5, seq_len=7):
        np.testing.assert_array_equal(targets, tokens + 1)


def test_a_batch_is_a_function_of_the_seed_and_its_number():
    corpus = np.random.default_rng(0).integers(0, 256, 10_000).astype(np.uint8)
    batches, resumed = data.Batches(corpus, seed=3), data.Batches(corpus, seed=3)
    for i in (7, 0, 10**9, 7):
        np.testing.assert_array_equal(batches[i][0], resumed[i][0])
    assert (batches[0][0] != batches[1][0]).any()
    assert (batches[0][0] != data.Batches(corpus, seed=4)[0][0]).any()


def test_batches_reach_both_ends_of_the_corpus_and_the_shortest_corpus_has_one_window():
    corpus = np.arange(10)
    batches = data.Batches(corpus, batch_size=200, seq_len=7)
    starts = batches[0][0][:, 0]
    assert set(starts) == {0, 1, 2}
    np.testing.assert_array_equal(data.Batches(corpus[:8], batch_size=1, seq_len=7)[0][1], [corpus[1:8]])


def test_a_name_that_is_not_there_says_what_is():
    with pytest.raises(
        AttributeError, match=r"lora_np.data has no attribute .TextBatches.; it has .*Batches.*heldout_batches"
    ):
        _ = data.TextBatches
    assert not hasattr(data, "__wrapped__")


def test_batches_have_no_end_so_no_length_and_no_iterator():
    batches = data.Batches(np.arange(200))
    with pytest.raises(TypeError, match="not iterable"):
        iter(batches)
    with pytest.raises(TypeError, match="len"):
        len(batches)
    with pytest.raises(IndexError, match="expected 0 or more"):
        batches[-1]


@pytest.mark.parametrize("size", [8, 9, 50, 701, 999])
@pytest.mark.parametrize("windows", [1, 3, 6, None])
def test_held_out_windows_are_evenly_spaced_and_do_not_overlap(size, windows):
    seq_len = 7
    batches = data.heldout_batches(np.arange(size), batch_size=4, seq_len=seq_len, windows=windows)
    starts = np.concatenate([tokens[:, 0] for tokens, _ in batches])
    room = (size - 1) // seq_len
    assert len(starts) == (room if windows is None else min(windows, room))
    assert (np.diff(starts) >= seq_len).all() and np.ptp(np.diff(starts)) <= 1 if len(starts) > 1 else starts == [0]
    assert [len(tokens) for tokens, _ in batches[:-1]] == [4] * (len(batches) - 1)
    assert batches[-1][1][-1, -1] <= size - 1


@pytest.mark.parametrize("make", [data.Batches, data.heldout_batches])
class TestBadInputToBatches:
    def test_an_empty_or_short_corpus(self, make):
        with pytest.raises(ValueError, match="the corpus has 0 tokens, but one window of seq_len=128 needs 129"):
            make(np.zeros(0, np.uint8))
        with pytest.raises(ValueError, match="the corpus has 7 tokens, but one window of seq_len=7 needs 8"):
            make(np.zeros(7, np.uint8), seq_len=7)

    def test_sizes_below_one(self, make):
        with pytest.raises(ValueError, match="seq_len is 0; expected at least 1"):
            make(np.zeros(100, np.uint8), seq_len=0)
        with pytest.raises(ValueError, match="batch_size is -1; expected at least 1"):
            make(np.zeros(100, np.uint8), batch_size=-1)

    def test_what_is_no_row_of_tokens(self, make):
        for corpus in (np.zeros((10, 200), np.uint8), np.zeros(500), "text"):
            with pytest.raises(TypeError, match="expected one dimension of integers"):
                make(corpus)


def test_held_out_windows_below_one_are_refused():
    with pytest.raises(ValueError, match="windows is 0"):
        data.heldout_batches(np.zeros(200, np.uint8), windows=0)


# ----------------------------------------------------------------------------------------------------------- baselines


def test_the_unigram_loss_is_the_mean_of_minus_log_p():
    a, b = data.encode("ab")
    loss = data.unigram_loss(np.array([a, a, b]), np.array([a, b, b]))
    assert loss == pytest.approx(-(np.log(3 / 259) + 2 * np.log(2 / 259)) / 3, rel=1e-12)


def test_the_bigram_loss_is_the_mean_of_minus_log_p_given_the_byte_before():
    a, b = data.encode("ab")  # in train, a is followed by a and by b, and b by a
    loss = data.bigram_loss(np.array([a, a, b, a]), np.array([a, b, b]))
    assert loss == pytest.approx(-(np.log(2 / 258) + np.log(1 / 257)) / 2, rel=1e-12)


def test_without_training_text_to_speak_of_the_baselines_are_near_uniform():
    heldout = data.corpus("prose", "heldout")
    assert data.unigram_loss(np.array([0]), heldout) == pytest.approx(np.log(257), abs=1e-2)
    assert data.bigram_loss(np.array([0, 0]), heldout) == pytest.approx(np.log(256), abs=1e-2)


@pytest.mark.parametrize("domain", DOMAINS)
def test_on_real_text_a_bigram_beats_a_unigram_beats_uniform(domain):
    train, heldout = data.corpus(domain, "train"), data.corpus(domain, "heldout")
    assert 2.0 < data.bigram_loss(train, heldout) < data.unigram_loss(train, heldout) < 3.6 < np.log(256)


@pytest.mark.parametrize("loss", [data.unigram_loss, data.bigram_loss])
def test_a_baseline_of_nothing_is_refused(loss):
    with pytest.raises(ValueError, match="train has 0 bytes"):
        loss(np.zeros(0, np.uint8), np.zeros(5, np.uint8))
    with pytest.raises(ValueError, match="heldout has 0 bytes"):
        loss(np.zeros(5, np.uint8), np.zeros(0, np.uint8))
    with pytest.raises(ValueError, match="expected bytes"):
        loss(np.array([300, 1]), np.array([1, 2]))
