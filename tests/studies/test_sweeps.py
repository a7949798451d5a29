"""A sweep keeps what it has, goes on where a run fails, and has a name; by joblib's processes here (test_cluster.py: by Dask)."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import cluster_runs
import pytest
from cluster_runs import Told
from threadpoolctl import threadpool_limits

from lora_np import Transformer, progress, save_model
from lora_np.__main__ import main
from lora_np.commands.study import summary
from lora_np.progress import Progress
from lora_np.report.pictures import PICTURES, TOGETHER
from lora_np.studies.catalogue import OTHER_NAMES, STUDIES, Study, make
from lora_np.studies.four_bits import qlora
from lora_np.studies.harness import runs, tiny_task, voice_task
from lora_np.studies.harness.runs import StudyFailed, run_all, sweep
from lora_np.studies.harness.table import Table
from lora_np.studies.harness.workers import describe
from lora_np.studies.pretraining.study import TINY

DATA = Path(__file__).parents[2] / "figures" / "data"


# -------------------------------------------------------------------------------------------------- runs that fail or end


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_fails_does_not_take_the_others_down_and_is_all_that_is_done_again(workers, tmp_path, capfd):
    kept = tmp_path / "kept"
    told = [Told(lr, str(tmp_path), fails=lr == 2) for lr in (1.0, 2.0, 3.0, 4.0)]
    with pytest.raises(StudyFailed) as failed:
        run_all(cluster_runs.measure, told, workers, kept, "learning rates")
    message = str(failed.value)
    assert message.startswith("1 of 4 runs failed (learning rates):\n  Told(lr=2.0, ")
    assert "ValueError" not in message and "and the last tells (cluster_runs.py, line " in message
    assert message.endswith(f"The other runs are in {kept}. Run the same command again to repeat only the failed runs.")
    assert "learning rates: one run failed, the others continue: Told(lr=2.0, " in capfd.readouterr().err, (
        "told as it happens"
    )
    assert [row and row["lr"] for row in failed.value.rows] == [1, None, 3, 4]
    assert len(list(kept.iterdir())) == 3

    (tmp_path / "mended").touch()
    assert [row["lr"] for row in run_all(cluster_runs.measure, told, workers, kept, "again")] == [1, 2, 3, 4]
    assert "again: 3 of 4 runs read from files" in capfd.readouterr().err
    assert [len(run.begun()) for run in told] == [1, 2, 1, 1]


def test_without_a_folder_a_failed_study_says_that_nothing_was_kept(tmp_path):
    with pytest.raises(StudyFailed, match="No run was written to disk"):
        run_all(cluster_runs.measure, [Told(1.0, str(tmp_path), fails=True)], 1, None, "told")


def test_rows_stand_in_the_order_of_their_runs_and_are_kept_as_they_come(tmp_path):
    """The first run ends when it sees the second's row in the folder: it would wait for ever on one that is kept at the end."""
    second = Told(2.0, str(tmp_path))
    first = Told(1.0, str(tmp_path), waits_for=f"kept/{runs._name(second, '')}")
    rows = run_all(cluster_runs.measure, [first, second], 2, tmp_path / "kept", "told")
    assert [row["lr"] for row in rows] == [1, 2]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_run_that_ends_its_process_does_not_take_the_others_down(tmp_path):
    told = [Told(lr, str(tmp_path), fails=lr == 2) for lr in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]
    with pytest.raises(StudyFailed, match="the system killed its process") as failed:
        run_all(cluster_runs.kill, told, 2, tmp_path / "kept", "told")
    lost = [run for run, row in zip(told, failed.value.rows, strict=True) if row is None]
    assert told[1] in lost and len(lost) <= 2, "itself, and at most the run beside it"
    again = [run for run in told if run != told[1]]
    assert len(run_all(cluster_runs.kill, again, 2, tmp_path / "kept", "told")) == 5


def test_a_sweep_goes_on_with_the_methods_of_which_no_run_failed(tmp_path):
    """The best of 1 and 2 is at the edge, so the sweep tries ½; of the method that failed it does not."""
    sound, broken = (Told(0.0, str(tmp_path / name), fails=name == "broken") for name in ("sound", "broken"))
    for run in (sound, broken):
        Path(run.folder).mkdir()
    with pytest.raises(StudyFailed) as failed:
        sweep(_positive, {broken: [2.0, 1.0], sound: [2.0, 1.0]}, 1, None)
    assert {run.lr for run in map(_of, failed.value.failures)} == {1.0, 2.0}
    assert [row and row["lr"] for row in failed.value.rows] == [None, None, 2.0, 1.0, 0.5, 0.25]


def _positive(run):
    return cluster_runs.measure(run) | {"validation": abs(run.lr - 0.5)}


def _of(failure):
    return failure.run


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_are_refused(workers):
    with pytest.raises(
        ValueError, match=rf"workers is {workers}; expected 1 or more processes, or the address of a Dask scheduler"
    ):
        run_all(cluster_runs.measure, [Told(1.0, "")], workers, None, "told")


def test_without_distributed_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"a Dask cluster needs distributed; run pip install 'lora-np\[cluster\]'"):
        run_all(cluster_runs.measure, [Told(1.0, "")], "tcp://127.0.0.1:8786", None, "told")


@pytest.mark.slow
def test_the_rows_of_two_processes_are_those_of_one_to_the_bit(tmp_path):
    config = replace(TINY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    save_model(Transformer.random(config), tmp_path)
    told = [
        tiny_task.Run(m, 1e-2, 4, "all-linear", max_steps=2, eval_every=2, base=str(tmp_path)) for m in ("full", "lora")
    ]
    with threadpool_limits(1):
        one = run_all(tiny_task.measure, told, 1, None, "one")
    two = run_all(tiny_task.measure, told, 2, None, "two")
    for row in [*one, *two]:
        del row["seconds"]
    assert one == two and one[0]["final"] != one[1]["final"]


# ------------------------------------------------------------------------------------------------- what is kept is found


def test_the_names_of_kept_runs_are_what_they_were():
    """Hours of runs are found by these names: a new field of a run, or another digest, would lose them."""
    known = {
        tiny_task.Run("full", 1e-3): "run-d0b7d728ac973161.json",
        tiny_task.Run("lora", 4e-3, 8, "all-linear", seed=2): "run-ab5cc4f8ff39d3e5.json",
        qlora.QuantizedRun("lora", 4e-3, 8, "all-linear"): "quantizedrun-fc9ac5c43f9311bc.json",
        voice_task.FineTuning("lora", 1e-3, 8): "finetuning-8a34c9fb327b4c58.json",
    }
    for run, name in known.items():
        assert runs._name(run, "given") == name


def test_a_run_is_described_by_what_is_not_its_default():
    assert describe(tiny_task.Run("lora", 4e-3, 8, seed=1)) == "Run(method='lora', lr=0.004, r=8, seed=1)"


def test_the_time_left_counts_only_what_this_command_did(monkeypatch, capsys):
    """Four of ten were there; one more took 30 s, so the five that are left take 150, and not 5 × 30/5."""
    now = iter([0.0, 30.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    with Progress(10, "told", unit="run", lines=True, done=4) as bar:
        bar.update(1)
    assert capsys.readouterr().err == "told: 5/10 runs, 2 min left\n"


# -------------------------------------------------------------------------------------------------------- studies by name


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_says_what_its_table_says(name):
    study = STUDIES[name]
    table = Table.load(DATA / f"{name}.json")
    assert table.question == study.question and table.command == f"python -m lora_np study {name}"
    assert table.seconds > 0
    assert set(study.needs) <= set(list(STUDIES)[: list(STUDIES).index(name)]), "what a study needs stands before it"
    parameters = inspect.signature(study.make).parameters
    assert {"folder", *study.options, *(study.quick or {}), *([] if study.alone else ["workers"])} <= parameters.keys()


def test_a_study_that_nobody_knows_is_answered_with_those_that_there_are(capsys):
    assert main(["study", "rank"]) == 1
    error = capsys.readouterr().err
    assert "unknown study 'rank'; the studies are convergence, " in error and error.count("\n") == 1


def test_without_a_name_the_studies_are_listed(capsys):
    assert main(["study"]) == 0
    out = capsys.readouterr().out
    for name, study in STUDIES.items():
        assert f"{name}" in out and study.question in out
    assert all(f"also {name}" in out for name in OTHER_NAMES)


@dataclass(frozen=True)
class Setting:
    steps: int = 200


def _study(setting: Setting = Setting(), workers: int = 2, folder: Path | None = None) -> Table:
    rows = [{"method": m, "lr": 1.0, "seed": s, "steps": [1], "final": s + setting.steps} for m in "ab" for s in (0, 1)]
    return Table("told", "What is told?", "", {"folder": str(folder), "workers": workers}, rows, seconds=90.0)


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setitem(STUDIES, "told", Study("What is told?", _study, quick={"setting": Setting(2)}))
    monkeypatch.setitem(STUDIES, "after", Study("And then?", lambda first, workers, folder: first, needs=("told",)))


def test_the_command_saves_the_table_and_says_what_it_found(told, tmp_path, capsys):
    where = ["--folder", str(tmp_path / "runs"), "--figures", str(tmp_path)]
    assert main(["study", "told", "--workers", "3", *where]) == 0
    table = Table.load(tmp_path / "data" / "told.json")
    assert table.command == "python -m lora_np study told"
    assert table.settings == {"folder": str(tmp_path / "runs" / "told"), "workers": 3}
    out = capsys.readouterr().out
    assert (
        "What is told?\n4 rows, 90 s of one core\nfinal:\n  method a  200.5000 (200.0000 to 201.0000, 2 seeds)\n" in out
    )

    assert main(["study", "told", "--quick", *where]) == 0
    assert Table.load(tmp_path / "quick" / "data" / "told.json").command == "python -m lora_np study told --quick"
    assert "method b  2.5000" in capsys.readouterr().out

    assert main(["study", "after", *where]) == 0
    assert json.loads((tmp_path / "data" / "after.json").read_text())["command"] == "python -m lora_np study after"
    assert main(["study", "after", "--quick", *where]) == 1
    assert "the study after has no quick setting" in capsys.readouterr().err


def test_a_summary_names_the_rows_without_a_value_and_stands_a_table_without_rows():
    rows = [{"quant_type": None, "final": 1.0}, {"quant_type": "nf4", "final": 2.0}]
    assert summary(Table("s", "q?", "", rows=rows)).endswith(
        "final:\n  no quant_type   1.0000\n  quant_type nf4  2.0000"
    )
    assert summary(Table("s", "q?", "", rows=rows[:1])).endswith("final:\n    1.0000")
    assert summary(Table("s", "q?", "", rows=[{"x": 1.0}])) == "q?\n1 row, 0 s of one core"


def test_a_study_without_the_table_that_it_needs_says_which(told):
    with pytest.raises(KeyError, match="needs the table told; make that table first: python -m lora_np study told"):
        make("after", {})


def test_a_study_of_one_machine_refuses_a_cluster(monkeypatch):
    monkeypatch.setattr("lora_np.studies.catalogue.fetched", lambda model: None)
    with pytest.raises(ValueError, match="each of its runs uses all cores of this machine"):
        make("finetuning", {}, "tcp://127.0.0.1:8786")


def test_every_picture_is_of_a_table_that_is_there():
    shown = {*PICTURES, *(key for needed, also, _ in TOGETHER.values() for key in (*needed, *also))}
    assert not {name for name in shown if not (DATA / f"{name}.json").is_file()}
