"""A whole job is timed here and in PEFT: the same base, batches, rates and loss, so the same losses and the same adapter.

No test looks at a time: a test machine is never quiet.
"""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizer_cases import byte_level_bpe, metadata_for

import lora_np as ln
from lora_np import TransformerConfig, conversations
from lora_np.__main__ import main
from lora_np.commands.bench import print_shares
from lora_np.files import tokenizer_from_gguf
from lora_np.studies.harness.table import Table
from lora_np.studies.timing import machine
from lora_np.studies.timing.benchmark import CompetitorFailed
from lora_np.studies.timing.job import study
from lora_np.studies.timing.job.study import OURS, PEFT, different, job, prepared, run

pytest.importorskip("tokenizers")
ANSWERS = ["Yes.", "The lamp burns all night, and the fog horn sounds twice a minute.", "Two miles.", "Ask the keeper."]


def silence(line):
    pass


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A folder with a small model and a tokenizer; twelve conversations take the place of the data set."""
    asked = [{"role": "user", "content": f"Question {i}?"} for i in range(15)]
    turns = [[question, {"role": "assistant", "content": ANSWERS[i % 4]}] for i, question in enumerate(asked)]
    # nine conversations of one turn, and three of two turns
    talks = [*turns[:9], turns[9] + turns[10], turns[11] + turns[12], turns[13] + turns[14]]
    records = [{"messages": messages} for messages in talks]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    monkeypatch.setattr(study, "DATA", str(data))
    template = {"tokenizer.chat_template": ln.load_tokenizer("tiny").chat_template}
    tokenizer = tokenizer_from_gguf(metadata_for(("gpt-2", byte_level_bpe("gpt-2"))) | template)
    config = TransformerConfig(tokenizer.vocab_size, 24, 52, 2, num_attention_heads=6, num_key_value_heads=2)
    ln.save_model(ln.Transformer.random(config), tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def alone(monkeypatch):
    """Leave out PEFT, as if it were not installed."""
    monkeypatch.setattr(study, "oracles_installed", lambda say: False)


def test_bench_job_is_what_the_library_trains(base, alone, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(job, "__defaults__", (base, 60, 3, 1, silence))
    assert main(["bench", "--job", "--quick", "--threads", "1", "--json", str(tmp_path / "data")]) == 0
    table, printed = Table.load(tmp_path / "data" / "job.json"), capsys.readouterr().out
    (row,) = table.rows
    assert row["competitor"] == OURS and row["ratio"] == 1 and len(row["rounds"]) == 1
    assert table.settings["blas"][OURS]["threads"] in (1, None)
    assert "6 steps of 8 records" in printed and "kernel" in printed and f"{row['heldout']:.4f}" in printed
    if "now" in machine.resident_memory():  # on Linux
        assert row["peak_bytes"] > 10_000_000

    config = ln.LoraConfig(r=study.R, lora_alpha=study.LORA_ALPHA, target_modules="all-linear")
    model = ln.get_peft_model(ln.load_model(base, device="numpy"), config, seed=study.SEED)
    examples = conversations.read(study.DATA, ln.load_tokenizer(base))
    heldout = conversations.heldout_batches(examples, study.BATCH_SIZE)
    assert table.settings["heldout_before"] == ln.evaluate(model, heldout)
    batches = conversations.ConversationBatches(examples, study.BATCH_SIZE, study.SEED, group_by_length=True)
    optimizer = ln.AdamW(study.LEARNING_RATE, weight_decay=0.0)
    history = ln.train(model, batches, optimizer, 6, schedule=ln.WarmupCosine(6, 1), max_grad_norm=1.0, progress=False)
    assert row["losses"] == pytest.approx(history.column("loss"), abs=1e-6)
    assert row["heldout"] == pytest.approx(ln.evaluate(model, heldout), abs=1e-6)


def test_the_phases_of_a_run_add_up_to_its_seconds(base, tmp_path):
    task = prepared(base, steps=2, threads=1, folder=tmp_path)
    found = run(OURS, task, tmp_path)
    assert sum(found[phase] for phase in study.PHASES) == pytest.approx(found["seconds"])
    assert all(found[phase] > 0 for phase in study.PHASES) and len(found["losses"]) == 2
    ln.PeftModel.from_pretrained(ln.load_model(base), found["output"])
    assert [len(batch) for batch in task["batches"]] == [8, 8] and task["rates"][0] == study.LEARNING_RATE


@pytest.mark.oracle
def test_pefts_script_reads_conversations_as_this_library_does(base, tmp_path):
    transformers, with_peft = pytest.importorskip("transformers"), pytest.importorskip(f"{study.__package__}.with_peft")
    system, lines = [{"role": "system", "content": "Be brief."}], study.Path(study.DATA).read_text("utf-8").splitlines()
    of_one, *_, of_two = (json.loads(line)["messages"] for line in lines)
    talks = [of_one, of_two, system + of_two]
    data = tmp_path / "talks.jsonl"
    data.write_text("\n".join(json.dumps({"messages": talk}) for talk in talks), encoding="utf-8")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    for talk, ours in zip(talks, conversations.read(str(data), ln.load_tokenizer(base)), strict=True):
        ids, labels = with_peft.example(talk, tokenizer)
        assert ids == list(ours.tokens)
        assert labels == [t if c else with_peft.IGNORED for t, c in zip(ours.tokens, ours.counts, strict=True)]
        assert 0 < sum(ours.counts) < len(ids)


@pytest.mark.oracle
def test_peft_does_the_same_job(base, monkeypatch):
    monkeypatch.setattr(study, "ROWS", (8, 3))
    said = []
    table = job(base, steps=4, rounds=1, threads=1, say=said.append)
    ours, peft = table.rows
    assert (ours["competitor"], peft["competitor"]) == (OURS, PEFT) and not [
        line for line in said if "no ratio" in line
    ]
    gap = np.abs(np.subtract(ours["losses"], peft["losses"])).max()
    print(f"measured {gap:.1e} between the losses of {len(ours['losses'])} steps")
    assert gap < 1e-4, "other batches, rates, gradients or updates?"
    assert ours["heldout"] == pytest.approx(peft["heldout"], abs=1e-4), "of the adapter that PEFT saved"
    assert ours["heldout"] != table.settings["heldout_before"]
    assert peft["ratio"] > 0 and peft["rows"] in (8, 3) and table.settings["trial_seconds"][PEFT].keys() == {"8", "3"}
    assert {"torch", "peft", "transformers"} <= table.versions.keys() and table.settings["blas"].keys() == {OURS, PEFT}


def test_there_is_no_ratio_where_the_jobs_differ():
    ours = {"losses": [3.0, 2.0], "heldout": 2.5}
    assert different(ours, ours) == ""
    assert different(ours, {"losses": [3.00005, 1.999], "heldout": 2.502}) == ""
    assert "the loss of step 1 is 3.0 here and 3.2 there" in different(ours, ours | {"losses": [3.2, 2.0]})
    assert "the loss of step 2 is 2.0 here and 2.003 there" in different(ours, ours | {"losses": [3.0, 2.003]})
    assert "step 1" in different(ours, ours | {"losses": [math.nan, 2.0]})
    assert "held-out loss is 2.5 here and 2.503 there" in different(ours, ours | {"heldout": 2.503})
    assert "held-out" in different(ours, ours | {"heldout": math.nan})


def script(monkeypatch, code):
    monkeypatch.setitem(study.SCRIPTS, OURS, ("-c", code))


def test_a_job_that_fails_reports_its_last_line(tmp_path, monkeypatch):
    script(monkeypatch, "raise RuntimeError('out of paper')")
    with pytest.raises(CompetitorFailed, match="the job of ours ended with code 1: RuntimeError: out of paper"):
        run(OURS, {"threads": 1}, tmp_path)
    script(monkeypatch, "print('import'); print('load')")
    with pytest.raises(CompetitorFailed, match="ended with code 0: the process wrote no message"):
        run(OURS, {"threads": 1}, tmp_path)


def test_what_a_library_prints_is_no_phase(tmp_path, monkeypatch):
    script(
        monkeypatch,
        "import sys\nfor line in ['hello', *'import load x train'.split(), '[1.5]']: print(line, flush=True)\nsys.stdin.read()",
    )
    found = run(OURS, {"threads": 1}, tmp_path)
    assert found["losses"] == [1.5] and all(found[phase] >= 0 for phase in study.PHASES)


def test_no_job_outlives_the_study(tmp_path, monkeypatch):
    script(monkeypatch, "import sys, time\nprint('import', flush=True)\ntime.sleep(100)")
    started, popen = [], study.subprocess.Popen

    def spying(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[0]

    stamps = iter([0.0])
    monkeypatch.setattr(study, "time", SimpleNamespace(perf_counter=lambda: next(stamps)))  # StopIteration at "import"
    monkeypatch.setattr(study.subprocess, "Popen", spying)
    with pytest.raises(StopIteration):
        run(OURS, {"threads": 1}, tmp_path)
    assert started[0].wait(10) is not None


def test_if_peft_fails_the_job_of_this_library_remains(base, monkeypatch):
    monkeypatch.setattr(study, "oracles_installed", lambda say: True)
    monkeypatch.setitem(study.SCRIPTS, PEFT, ("-c", "raise ImportError('no torch here')"))
    said = []
    table = job(base, steps=1, rounds=1, threads=1, say=said.append)
    assert [row["competitor"] for row in table.rows] == [OURS]
    assert "left out: the job of PEFT ended with code 1: ImportError: no torch here" in said


def test_bench_job_names_the_command_that_fetches_the_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LORA_NP_CACHE", str(tmp_path))
    assert main(["bench", "--job", "--quick"]) == 1
    assert "python -m lora_np fetch smollm2-135m" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "--job", "--only", "tiny"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_model_without_tokenizer_files_is_refused():
    with pytest.raises(ValueError, match="the tokenizer of tiny has no files, which transformers needs"):
        job("tiny", steps=1, rounds=1, threads=1, say=silence)


def test_bench_prints_the_share_of_the_floor_with_processor_and_blas(capsys):
    rows = [
        {"case": case, "competitor": "ours", "floor_share": share} for case, share in (("tiny", 0.314), ("big", 0.6))
    ]
    blas = {"ours": {"blas": "MKL 2024.1", "kernel": "AVX512", "threads": 2}}
    settings = {"cases": {"tiny": {}, "big": {}}, "blas": blas, "processor": "a processor"}
    print_shares(Table("speed", "q", "c", settings, rows))
    printed = capsys.readouterr().out
    assert "a processor, MKL 2024.1, kernel AVX512: ours reaches tiny 31%, big 60% of the floor" in printed
