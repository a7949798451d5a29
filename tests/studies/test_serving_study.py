"""The serving study: its workloads are what they are called, and its table holds what its picture draws."""

from __future__ import annotations

from collections import Counter

import pytest

from lora_np import plots
from lora_np.studies.serving import serving as study
from lora_np.studies.serving.serving import WORKLOADS, workload


def test_the_workloads_are_what_they_are_called():
    drawn = {kind: Counter(workload(kind, 64, 32, seed=1)) for kind in WORKLOADS}
    assert len(drawn["identical"]) == 1
    assert set(drawn["distinct"].values()) == {2}, "64 rows on 32 adapters"
    assert 16 < len(drawn["uniform"]) <= 32
    assert drawn["zipf 1.5"].most_common(1)[0][0] == 0 and drawn["zipf 1.5"][0] > drawn["uniform"].most_common(1)[0][1]
    assert drawn["skewed"][0] >= 32 and len(drawn["skewed"]) > 10
    assert workload("uniform", 9, 5, seed=2) == workload("uniform", 9, 5, seed=2)
    with pytest.raises(ValueError, match="workload 'even'"):
        workload("even", 3, 2)


def test_the_table_is_drawn_and_its_bytes_are_those_of_base_and_adapters(monkeypatch):
    monkeypatch.setattr(study, "oracles_installed", lambda say: False)  # those are for the committed table
    table = study.serving(adapters=(1, 3), rows=4, rounds=1, say=lambda line: None)
    assert len(table.rows) == 2 * len(WORKLOADS)
    one, three = (table.where(workload="uniform", adapters=n)[0] for n in (1, 3))
    base = one["merged_bytes"]
    assert one["bytes"] == base + one["adapter_bytes"] and three["bytes"] == base + 3 * one["adapter_bytes"]
    assert three["merged_bytes"] == 3 * base
    assert all(row["seconds"] > 0 and row["served_per_second"] > 0 for row in table.rows)
    plots.serving_chart(table)


def test_a_step_is_timed_against_one_adapter(monkeypatch):
    monkeypatch.setattr(study, "oracles_installed", lambda say: False)
    rows = study.serving_step(("tiny",), rows=3, rounds=1, say=lambda line: None).rows
    assert [row["competitor"] for row in rows] == ["ours, one", "ours, each"]
    assert all(row["to_one"] > 0 and row["to_ours"] == 1 for row in rows)
