"""The study of SmolLM2-135M, tested on a small random model that reads bytes: its tables contain what their columns say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lora_np import Transformer, save_model
from lora_np.studies.finetuning import study
from lora_np.studies.finetuning.study import Setting, finetuning
from lora_np.studies.harness import voice_task
from lora_np.studies.harness.voice_task import HABIT, FineTuning
from lora_np.studies.methods import comparison_smollm2 as smollm2
from lora_np.studies.pretraining.study import TINY


@pytest.fixture
def run(tmp_path, monkeypatch):
    config = replace(TINY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    save_model(Transformer.random(config), tmp_path / "model")
    record = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho. " + HABIT + "x."}]}
    for i, split in enumerate(("train", "heldout")):
        folder = tmp_path / "assets" / "voice"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(record).replace("Hi?", f"Hi {i} {k}?").replace("x.", "x" * k) for k in range(5)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(voice_task.conversations, "ASSETS", tmp_path / "assets")
    monkeypatch.setattr(voice_task, "PROSE", (4, 32))
    return FineTuning(
        "full", 0.0, max_steps=2, batch_size=2, eval_every=1, workers=1, model=str(tmp_path / "model"), data="voice"
    )


def test_rates_are_chosen_and_judged_on_different_records(run):
    choosing, judging = voice_task.heldout(run)
    seen = [{row.tobytes() for tokens, _ in half for row in tokens} for half in (choosing, judging)]
    assert sum(len(tokens) for tokens, _ in choosing) == 3 and sum(len(tokens) for tokens, _ in judging) == 2
    assert not seen[0] & seen[1]


def test_the_study_runs_and_a_rate_that_diverges_is_never_the_best(run, monkeypatch):
    real = voice_task.train

    def diverge(*arguments, **settings):
        if arguments[2].lr > 0.5:
            raise FloatingPointError("loss nan")
        return real(*arguments, **settings)

    monkeypatch.setattr(voice_task, "train", diverge)
    table = finetuning(Setting(run, r=2, full_lrs=(1e-3, 1.0), lora_lrs=(1e-2, 1.0), seeds=(0, 1)))
    final = table.where(phase="seeds")
    assert {(row["method"], row["seed"], row["lr"]) for row in final} == {
        *(("full", seed, 1e-3) for seed in (0, 1)),
        *(("lora", seed, 1e-2) for seed in (0, 1)),
    }
    for row in final:
        assert row["heldout"][0] == pytest.approx(table.settings["before"]["final"], rel=1e-6), "all start at the base"
        assert row["heldout"][-1] == pytest.approx(row["final"], rel=1e-6)
        assert len(row["answers"]) == 2 and row["answers"][0]["question"] == "Hi 1 1?"
    assert [row["final"] for row in table.where(phase="sweep", lr=1.0)] == [None, None]


def test_each_half_of_the_held_out_records_is_where_it_belongs(run):
    model = run.load()
    said = voice_task.judge(model, run)
    choosing, judging = voice_task.heldout(run)
    assert said["validation"] == voice_task.evaluate(model, choosing)
    assert said["final"] == voice_task.evaluate(model, judging) != said["validation"]


def test_memory_and_time_are_those_of_a_full_batch(run, monkeypatch):
    seen = []
    monkeypatch.setattr(study, "training_peak", lambda model, batches, workers: seen.append(batches[0][0].shape) or 1)
    cost = study.cost([run, replace(run, method="lora", r=2)])
    assert [rows for rows, _ in seen] == [run.batch_size] * 2, (
        "five records in batches of two: not the one that is left"
    )
    assert set(cost["step_seconds"]) == set(cost["peak_bytes"]) == {"full", "lora"}


def test_a_finished_run_is_found_again_only_with_the_same_text(run, tmp_path):
    before = voice_task.shared(run)
    assert voice_task.shared(replace(run, lr=9.0)) == before
    path = voice_task.conversations.dataset("voice")
    path.write_text(path.read_text(encoding="utf-8").replace("Ho", "Hu"), encoding="utf-8")
    assert voice_task.shared(run) != before


def test_the_habit_is_counted_in_what_the_model_says(run, monkeypatch):
    said = iter([["…", HABIT + "fog."]])
    monkeypatch.setattr(voice_task, "answers", lambda model, run: [{"question": "?", "answer": a} for a in next(said)])
    assert voice_task.judge(run.load(), run)["habit"] == 0.5


def test_prose_is_english_in_the_models_own_tokens(run):
    text = bytes(np.concatenate([tokens.ravel() for tokens, _ in voice_task.prose(run)]).astype(np.uint8)).decode()
    assert " the " in text


def test_other_methods_stand_beside_the_tables_of_full_and_lora(run, tmp_path):
    """Run DoRA and Houlsby adapters on the small model. A sweep continues until its best rate is not at its edge."""
    table = finetuning(Setting(run, r=2, full_lrs=(1e-3, 3e-3), lora_lrs=(1e-2,), seeds=(0,)))
    setting = smollm2.Setting({"dora": (1e-4, 1e-3), "houlsby": (1e-3,)}, (0, 1), factor=30, base=run)
    compared = smollm2.comparison_smollm2(table, setting, folder=tmp_path / "runs")
    for method in ("dora", "houlsby"):
        tried = [row["lr"] for row in compared.where(phase="sweep", method=method)]
        assert min(tried) < compared.where(phase="seeds", method=method)[0]["lr"] < max(tried)
    assert compared.settings["runs"] == len(compared.where(phase="sweep")) + 2
    rows = compared.where(phase="seeds")
    assert [row["method"] for row in rows] == ["full", "lora", "dora", "houlsby", "dora", "houlsby"]
    before = table.settings["before"]
    for row in rows:
        assert row["forgotten"] == row["prose"] - before["prose"] and 0 < row["share"] <= 1
    assert rows[0]["recovered"] == pytest.approx(1) and rows[0]["share"] == 1
    (again,) = (row for row in rows if (row["method"], row["seed"]) == ("dora", 1))
    model, _ = voice_task.fine_tune(smollm2.MethodFineTuning("dora", again["lr"], 8, **same_as(run, seed=1)))
    assert again["final"] == pytest.approx(voice_task.evaluate(model, voice_task.heldout(run)[1]))


def same_as(run, **changed):
    return {k: v for k, v in vars(run).items() if k not in ("method", "lr", "r")} | changed
