"""The reports of a training run: the curve of text, loss.png, metrics.jsonl and event files for TensorBoard."""

from __future__ import annotations

import json
import os
import struct
import sys
import time

import pytest

from lora_np import progress
from lora_np.__main__ import main
from lora_np.commands.loss_curve import HEIGHT, WIDTH, loss_curve, terminal_width
from lora_np.commands.run_report import METRICS, PICTURE, Report, save_picture
from lora_np.training import History


def rows(steps, evaluated=(), loss=lambda step: 3 - 2 * step / 100):
    """Return the rows of a run; `evaluated` are the steps with a held-out loss."""
    found = [{"step": 0, "heldout": 3.0, "seconds": 0.0, "tokens": 0}] if 0 in evaluated else []
    for step in range(1, steps + 1):
        row = {
            "step": step,
            "loss": loss(step),
            "lr": 1e-3,
            "grad_norm": 0.5,
            "seconds": 0.1 * step,
            "tokens": 9 * step,
        }
        found.append(row | ({"heldout": 2.5} if step in evaluated else {}))
    return found


@pytest.fixture
def data(tmp_path):
    records = [{"prompt": f"The lamp of {name}", "completion": " is lit."} for name in ("Ada", "Bo", "Cy")]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return ["--model", "tiny", "--workers", "1", "--batch-size", "2", "--data", str(tmp_path / "data.jsonl")]


# --------------------------------------------------------------------------------------------------- the curve of text


def test_a_falling_loss_falls_from_the_upper_left_to_the_lower_right():
    title, *lines, _, steps = loss_curve(rows(100), 80).splitlines()
    assert title == "loss, nats per token   • mean of up to 2 steps" and len(lines) == HEIGHT
    assert [line.split("│")[0].strip() for line in lines if line[0:8].strip()] == ["2.980", "1.990", "1.000"]
    marks = [line.partition("│")[2] for line in lines]
    columns = {x: y for y, line in enumerate(marks) for x, mark in enumerate(line) if mark == "•"}
    assert sorted(columns) == list(range(70)), "a mark in every column"
    assert [columns[x] for x in sorted(columns)] == sorted(columns.values()), "and none is higher than the one before"
    assert steps.split() == ["1", "step", "100"]


@pytest.mark.parametrize("steps", [2, 3, 70, 71, 5000])
@pytest.mark.parametrize("width", [12, 40, 80])
def test_no_line_of_the_curve_is_wider_than_the_terminal(steps, width):
    _, *lines = loss_curve(rows(steps, {0, steps}), width).splitlines()
    assert max(map(len, lines)) <= max(width, 30)


def test_a_mark_is_the_mean_of_its_steps():
    """Losses of 1 and 3 in turn are a flat line at 2 if every mark is the mean of two steps."""
    lines = loss_curve(rows(140, loss=lambda step: 1 + 2 * (step % 2)), 80).splitlines()
    assert [line for line in lines if "•" in line[8:]][1].strip().startswith("2.000 │••")


def test_held_out_losses_have_their_own_mark():
    curve = loss_curve(rows(10, {0, 5, 10}), 40)
    assert curve.splitlines()[0] == "loss, nats per token   • step   O held-out records"
    assert curve.partition("\n")[2].count("O") == 3
    assert curve.splitlines()[1].strip().startswith("3.000 │O")


def test_equal_losses_are_a_line_and_a_single_step_is_no_curve():
    lines = loss_curve(rows(5, loss=lambda step: 1.5), 40).splitlines()
    assert sum("•" in line for line in lines[1:]) == 1
    assert loss_curve(rows(1), 40) == loss_curve([], 40) == ""


@pytest.mark.parametrize(("columns", "expected"), [("40", 40), ("300", WIDTH), ("0", WIDTH)])
def test_the_curve_has_the_width_of_the_terminal_but_not_of_a_wide_one(columns, expected, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("os.get_terminal_size", lambda *given: os.terminal_size((0, 0)))
    assert terminal_width() == expected


def test_train_prints_the_curve_at_the_end(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["train", *data, "--steps", "3", "--output", str(tmp_path / "out")]) == 0
    said, found = capsys.readouterr().out, History([json.loads(x) for x in (tmp_path / "out" / METRICS).open()])
    assert f"\n\n{loss_curve(found.rows, terminal_width())}\n\n{found}\n" in said


# ---------------------------------------------------------------------------------------------------------- the picture


def test_the_picture_is_a_png_in_the_folder_of_the_run(data, tmp_path):
    pytest.importorskip("matplotlib")
    assert main(["train", *data, "--steps", "2", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / PICTURE).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert f"  {PICTURE}\n" in (tmp_path / "out" / "SHA256SUMS").read_text()


def test_the_picture_shows_the_losses_and_names_its_lines():
    pytest.importorskip("matplotlib")
    from lora_np.commands.loss_picture import _figure, plt

    for found, labels, lines in (
        (rows(100, {0, 50, 100}), ["training", "held out"], 3),
        (rows(100), ["training"], 2),
        (rows(9), ["training"], 1),
    ):
        figure = _figure(found)
        (ax,) = figure.axes
        assert [text.get_text() for text in ax.texts] == labels and len(ax.lines) == lines
        losses = [row["loss"] for row in found if "loss" in row]
        assert list(ax.lines[0].get_ydata()) == pytest.approx(losses)
        if lines > 1:
            assert ax.lines[1].get_ydata()[-1] == pytest.approx(sum(losses[-5:]) / 5), "the mean of a twentieth"
            assert ax.lines[1].get_ydata()[1] == pytest.approx(sum(losses[:2]) / 2), "of fewer steps at the beginning"
        first, last = (3.0, 2.5) if labels[1:] else (losses[0], losses[-1])
        assert f"loss: {first:.3f} → {last:.3f} nats per token" in figure.texts[0].get_text()
        plt.close(figure)


def test_without_matplotlib_one_line_says_how_to_get_the_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / PICTURE).write_bytes(b"of an older run")
    assert save_picture(tmp_path, rows(2)) == []
    assert capsys.readouterr().err == "loss.png needs matplotlib; run pip install 'lora-np[course]'\n"
    assert not list(tmp_path.iterdir()), "a picture of another run would mislead"


# ---------------------------------------------------------------------------------------------------- metrics.jsonl


def test_the_metrics_are_rewritten_during_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 1000.0)
    history = History()
    with Report(tmp_path, tensorboard=False) as report:
        history.rows = rows(3, {0})
        report(history)
        assert not list(tmp_path.iterdir()), "not after every step"
        monkeypatch.setattr(progress, "INTERVAL", -1.0)
        for steps in (4, 5):
            history.rows = rows(steps, {0})
            report(history)
            assert [json.loads(line) for line in (tmp_path / METRICS).open()] == history.rows


def test_train_reports_after_each_step(data, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", -1.0)
    seen = []
    monkeypatch.setattr("lora_np.commands.run_report.save_metrics", lambda output, rows: seen.append(len(rows)))
    assert main(["train", *data, "--steps", "3", "--output", str(tmp_path / "out")]) == 0
    assert seen == [1, 2, 3]


# -------------------------------------------------------------------------------------------------------- TensorBoard


def events(folder):
    """Return (step, tag, value) of each scalar in the event files of a folder, and the steps at which older rows are hidden."""
    from tensorboardX.proto import event_pb2

    scalars, hidden = [], []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:  # a record: its length in 8 bytes, a checksum, the bytes, a checksum
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            hidden += [event.step] if event.HasField("session_log") else []
    return scalars, hidden


@pytest.mark.oracle
def test_tensorboard_gets_the_metrics_under_transformers_names(data, tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    given = [*data, "--heldout", data[-1], "--eval-every", "2", "--steps", "4", "--output", str(tmp_path / "out")]
    assert main(["train", *given, "--report-to", "tensorboard"]) == 0
    found = [json.loads(line) for line in (tmp_path / "out" / METRICS).open()]
    names = {"loss": "train/loss", "lr": "train/learning_rate", "grad_norm": "train/grad_norm", "heldout": "eval/loss"}
    expected = {(row["step"], tag): row[name] for row in found for name, tag in names.items() if name in row}
    scalars, hidden = events(tmp_path / "out" / "runs")
    assert {(step, tag): value for step, tag, value in scalars} == pytest.approx(expected, rel=1e-6)
    assert len(scalars) == len(expected) and hidden == [0]


@pytest.mark.oracle
def test_a_resumed_run_reports_all_rows_again_and_hides_those_of_the_stopped_run(tmp_path):
    pytest.importorskip("tensorboardX")
    for steps in (2, 3):
        time.sleep(1.1)  # the name of an event file has the second
        with Report(tmp_path, tensorboard=True) as report:
            report(History(rows(steps)))
            report(History(rows(steps + 1)))
    scalars, hidden = events(tmp_path / "runs")
    assert [step for step, tag, _ in scalars if tag == "train/loss"] == [1, 2, 3, 1, 2, 3, 4] and hidden == [0, 0]


def test_a_missing_tensorboardx_is_named_before_the_model_is_loaded(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    given = ["--model", "no-such-model", *data[2:], "--steps", "2", "--output", str(tmp_path / "out")]
    assert main(["train", *given, "--report-to", "tensorboard"]) == 1
    message = "--report-to tensorboard needs tensorboardX; run pip install 'lora-np[tensorboard]'"
    assert capsys.readouterr().err == f"lora_np train: {message}\n"
