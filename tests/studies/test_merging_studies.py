"""The studies of merging measure what they say, in seconds."""

from __future__ import annotations

import numpy as np
import pytest

from lora_np.peft import COMBINATION_TYPES
from lora_np.studies.serving import merging
from lora_np.studies.serving.merging import OTHERS, SAME, Setting
from lora_np.studies.timing import latency
from lora_np.studies.timing.latency import STATES


def test_one_adapter_harms_a_weight_once_and_several_in_turns_add_up():
    """x ↦ (x ⊕ δ) ⊖ δ in round-to-even changes x at most once (Reiser and Knuth 1975; TAOCP 4.2.2, theorem D)."""
    table = merging.drift(cycles=(1, 2, 300))
    for dtype, eps in {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-24, "float64": 2**-53}.items():
        (same,), (others,) = (table.where(dtype=dtype, adapters=which) for which in (SAME, OTHERS))
        once, twice, often = same["errors"]
        assert 0 < once == twice == often < eps
        assert others["errors"][-1] > 10 * often


@pytest.mark.slow
def test_two_adapters_are_joined_and_judged_on_both_domains():
    table = merging.combinations(
        Setting(steps=3, batch_size=2, scales=(0.5, 1.0), shares=(0.5,), seeds=(0, 1), windows=2)
    )
    assert {row["kind"] for row in table.rows} == {"base", "adapter", "share", *COMBINATION_TYPES}
    assert all([row["seed"] for row in table.where(kind=kind)] == [0, 1] for kind in COMBINATION_TYPES)
    for kind in COMBINATION_TYPES:
        first, second = table.where(kind=kind)
        assert first["weights"] == second["weights"], "the first seed chooses the scale"
        assert first["code"] != second["code"], "each seed trains its own adapters"
    for cat, svd in zip(table.where(kind="cat"), table.where(kind="svd"), strict=True):
        assert cat["error"] < 1e-6 < svd["error"] < 1
    assert all(row["weights"] == [0.5, 0.5] for row in table.where(kind="share"))
    assert np.isfinite([row["code"] + row["voice"] for row in table.rows]).all()
    for seed in (0, 1):
        code, voice = table.where(kind="adapter", seed=seed)
        assert code["code"] < voice["code"] and voice["voice"] < code["voice"], "each is best at its own"


def test_what_is_chosen_by_and_what_is_judged_share_no_window():
    for part in zip(*(half.values() for half in merging.held_out(Setting())), strict=True):
        choosing, judging = ({row.tobytes() for row in batches[0][0]} for batches in part)
        assert len(choosing) == 16 and len(judging) == 32 and not choosing & judging


def test_latency_compares_three_states_in_the_same_rounds():
    table = latency.latency(["tiny"], prompt=8, new_tokens=3, rounds=2)
    assert [row["state"] for row in table.rows] == list(STATES)
    assert table.rows[0]["prompt_ratio"] == table.rows[0]["token_ratio"] == 1
    assert all(row["prompt_seconds"] > 0 and row["token_seconds"] > 0 for row in table.rows)


@pytest.mark.parametrize("state", STATES)
def test_the_three_states_are_what_they_are_called(state):
    models = dict(latency._states("tiny", 2))
    logits = {name: model.forward(np.arange(9)[None])[0] for name, model in models.items()}
    size = np.abs(logits["unmerged"]).max()
    assert np.abs(logits["merged"] - logits["unmerged"]).max() < 1e-5 * size
    assert np.abs(logits["base"] - logits["unmerged"]).max() > 1e-2 * size
