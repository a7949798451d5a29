"""`train --dry-run` and the memory that every run prints before it begins."""

from __future__ import annotations

import gc
import json
import re
import tracemalloc
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
from on_device import DEVICE

import lora_np as ln
from lora_np.__main__ import main
from lora_np.commands import dry_run
from lora_np.commands.dry_run import Plan, memory_line, print_estimate, step_memory
from lora_np.data import conversations
from lora_np.training import History

BATCH, LENGTH = 8, 120


class Batches:
    """Batches in which every row is as long as the longest."""

    batch_size = BATCH

    def __getitem__(self, step):
        tokens = np.random.default_rng(step).integers(1, 255, (BATCH, LENGTH + 1))
        return tokens[:, :-1], tokens[:, 1:]


def plan(model, workers=1, accumulate=1, steps=2, batches=None, heldout=None, eval_every=None):
    checked = {"accumulate": accumulate, "heldout": heldout, "eval_every": eval_every, "max_grad_norm": 1.0}
    tokenizer, optimizer = ln.load_tokenizer("tiny"), ln.AdamW(1e-3)
    return Plan(model, tokenizer, batches or Batches(), optimizer, steps, LENGTH, checked, {"workers": workers})


def peak(full, workers, accumulate):
    """Return the estimated memory of a step and the largest memory in use during a run, both in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        base = ln.load_model("tiny", device="numpy")
        model = base.unfreeze() if full else ln.get_peft_model(base, ln.LoraConfig(r=8, target_modules="all-linear"))
        run = plan(model, workers, accumulate)
        estimate = step_memory(run).total
        tracemalloc.reset_peak()
        ln.train(model, run.batches, run.optimizer, 2, progress=False, workers=workers, accumulate=accumulate)
        return estimate, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(DEVICE != "numpy", reason="tracemalloc sees the memory of the host")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_the_estimate_is_the_memory_of_the_step(monkeypatch, full, workers, accumulate):
    """Each worker waits for the others before its backward pass, so the caches of all workers are in memory together."""
    all_workers, backward = Barrier(workers), ln.Transformer.backward

    def after_all_forward_passes(*args):
        all_workers.wait(timeout=60)
        backward(*args)

    monkeypatch.setattr(ln.Transformer, "backward", after_all_forward_passes)
    estimate, measured = peak(full, workers, accumulate)
    assert estimate == pytest.approx(measured, rel=0.06)


def test_each_worker_has_its_own_gradients(make_model):
    model = make_model(np.float32).unfreeze()
    sizes = sum(p.value.nbytes for _, p in model.named_parameters())
    gradients = [step_memory(plan(model, workers, accumulate)).gradients for workers, accumulate in GRADIENTS]
    assert gradients == [copies * sizes for copies in GRADIENTS.values()]


GRADIENTS = {(1, 1): 1, (1, 2): 1, (2, 1): 2, (2, 2): 3, (99, 1): BATCH}  # workers and batches per update → copies


def test_the_line_before_a_run_names_the_parts(make_model):
    model = make_model(np.float32).unfreeze()
    found = step_memory(plan(model))
    sizes = [f"{number / 1e6:.1f} MB" for number in (found.total, found.weights, found.activations)]
    expected = "arrays of the longest step, with 8 records of 120 tokens: {} (weights {}, activations {})"
    assert memory_line(plan(model)) == expected.format(*sizes)
    assert (dry_run.size(999_940_000), dry_run.size(1e9), dry_run.size(1.234e10)) == ("999.9 MB", "1.00 GB", "12.34 GB")


# ------------------------------------------------------------------------------------------------------------- the time


class Clock:
    """A clock for the loop: a token takes a millisecond in the second step, and ten in the first."""

    def __init__(self, monkeypatch):
        def train(model, batches, optimizer, steps, *, accumulate, **others):
            assert others["heldout"] is None and others["eval_every"] is None
            rows = [{"step": 1, "loss": 1.0, "seconds": 9.6, "tokens": 960 * accumulate}]
            rows.append({"step": 2, "loss": 1.0, "seconds": 9.6 + 0.96 * accumulate, "tokens": 1920 * accumulate})
            return History(rows[:steps])

        monkeypatch.setattr(dry_run, "train", train)
        monkeypatch.setattr(dry_run, "evaluate", lambda model, batches: 1.0)
        monkeypatch.setattr(dry_run.time, "perf_counter", iter([0.0, 0.5]).__next__)


TIMES = {  # steps, batches per update, evaluations every … steps → the line
    (100, 1, None, False): "about 96 s: 100 steps of 0.96 s, measured in 2 steps",
    (100, 2, None, False): "about 3 min: 100 steps of 1.9 s, measured in 2 steps",
    (1000, 20, None, False): "about 5 h 20 min: 1,000 steps of 19 s, measured in 2 steps",
    (1, 1, None, False): "about 10 s: 1 step of 9.6 s, measured in 1 step",
    (10, 1, None, True): "about 12 s: 10 steps of 0.96 s and 2 evaluations of 1 s, measured in 2 steps",
    (10, 1, 4, True): "about 14 s: 10 steps of 0.96 s and 4 evaluations of 1 s, measured in 2 steps",
    (10, 1, 5, True): "about 13 s: 10 steps of 0.96 s and 3 evaluations of 1 s, measured in 2 steps",
}


@pytest.mark.parametrize("case", TIMES)
def test_the_time_is_that_of_all_tokens_and_evaluations(case, make_model, monkeypatch, capsys):
    steps, accumulate, eval_every, evaluated = case
    short, middle = (np.ones((2, n), int) for n in (10, 20))
    heldout = (
        [(short, short), (middle, middle), (short, short)] if evaluated else None
    )  # 80 tokens; 40 take half a second
    Clock(monkeypatch)
    print_estimate(plan(make_model(np.float32).unfreeze(), 1, accumulate, steps, None, heldout, eval_every))
    assert f"\ntime: {TIMES[case]}\n" in capsys.readouterr().out


def test_the_number_of_evaluations_is_that_of_the_loop(make_model):
    tokens = np.ones((2, 5), int)
    for steps, every in ((1, None), (3, None), (5, 2), (6, 2), (3, 9)):
        model = make_model(np.float32).unfreeze()
        run = plan(model, 1, 1, steps, [(tokens, tokens)], [(tokens, tokens)], every)
        history = ln.train(
            model, run.batches, run.optimizer, steps, progress=False, heldout=run.checked["heldout"], eval_every=every
        )
        assert dry_run._evaluations(run) == len(history.column("heldout"))


def test_a_thousand_batches_are_estimated_from_a_hundred(make_model):
    asked = []

    class Growing(Batches):
        def __getitem__(self, i):
            asked.append(i)
            tokens = np.ones((BATCH, 1 + i), int)
            return tokens, tokens

    tokens = dry_run._tokens(plan(make_model(), 1, 10, 100, Growing()))
    assert tokens == pytest.approx(sum(BATCH * (1 + i) for i in range(1000)), rel=0.01)
    assert len(asked) == 100 and (asked[0], asked[-1]) == (0, 999)


# ---------------------------------------------------------------------------------------------------------- the command


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "The lamp", "completion": " is lit."}), encoding="utf-8")
    given = ["train", "--model", "tiny", "--data", str(data), "--heldout", str(data), "--steps", "50", "--workers", "1"]
    assert main([*given, "--dry-run"]) == 0
    said = capsys.readouterr().out
    (example,) = conversations.read(data, ln.load_tokenizer("tiny"))
    assert said.startswith("trainable params: 97,280 ||") and "data.jsonl: 1 record, " in said
    assert f"8 records of {len(example.tokens) - 1} tokens" in said and "\nsum  " in said
    assert re.search(r"\ntime: about \d+ s: 50 steps of \S+ s and 2 evaluations of \S+ s, measured in 2 steps\n", said)
    assert said.endswith("This was a dry run: no file was written. To train, leave out --dry-run.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]
    assert main([*given, "--output", str(tmp_path / "out"), "--dry-run"]) == 0 and not (tmp_path / "out").exists()


def test_a_dry_run_refuses_what_a_run_refuses(tmp_path, capsys):
    given = ["train", "--model", "tiny", "--data", "lighthouse", "--dry-run"]
    for options, message in ((["--max-grad-norm", "0"], "max_grad_norm = 0.0"), (["--lr", "-1"], "lr = -1.0")):
        assert main([*given, *options]) == 1
        assert message in capsys.readouterr().err


def test_every_run_prints_its_memory_first(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "The lamp", "completion": " is lit."}), encoding="utf-8")
    given = ["--model", "tiny", "--data", str(data), "--steps", "1", "--output", str(tmp_path / "out")]
    assert main(["train", *given]) == 0
    assert capsys.readouterr().out.splitlines()[3].startswith("arrays of the longest step, with 8 records of ")


def test_with_gradient_checkpointing_the_estimate_is_lower(make_model):
    model = make_model(np.float32).unfreeze()
    settings = {"gradient_checkpointing": True}
    assert (
        step_memory(replace(plan(model), settings=plan(model).settings | settings)).total
        < step_memory(plan(model)).total
    )
