"""Tests of training: it learns, leaves frozen weights unchanged, resumes to the bit, and keeps the last good state at a NaN."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import pytest
from on_device import assert_allclose, xp

from lora_np import SGD, AdamW, LoraConfig, WarmupCosine, data, evaluate, get_peft_model, ops, train
from lora_np.files import load_arrays, save_arrays
from lora_np.progress import duration, in_notebook, is_interactive
from lora_np.training import History

METHODS = ["full", "lora"]
both_methods = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def make(make_model):
    """Return a function: make("full") is a trainable Transformer, make("lora") is the same base with an adapter."""

    def make(method, dtype=np.float64, dropout=0.0, r=2, **changes):
        model = make_model(dtype, **changes)
        if method == "full":
            return model
        return get_peft_model(model, LoraConfig(r=r, lora_alpha=5, target_modules="all-linear", lora_dropout=dropout))

    return make


@pytest.fixture
def batches(random_batch):
    return [random_batch(rows=2, seed=seed) for seed in range(5)]


def state(model):
    return {name: (p.trainable, p.value.copy()) for name, p in model.named_parameters()}


def bits(arrays):
    return {name: (x.dtype.str, x.shape, x.tobytes()) for name, x in arrays.items()}


def remembered(history):
    """Return the rows of a history without the times, which differ between runs."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history.rows]


def everything(model, optimizer, history):
    """Return the state that must be equal in a resumed run and an uninterrupted run."""
    moments = {f"{name}/{key}": x for name, slots in optimizer.state.items() for key, x in slots.items()}
    return bits(model.state_dict()), bits(moments), optimizer.t, remembered(history)


# ------------------------------------------------------------------------------------------------------------- learning


@both_methods
def test_one_call_trains_the_whole_model_or_its_adapter(method, make, random_batch):
    history = train(make(method), [random_batch(rows=1)], AdamW(lr=0.03), steps=60)
    first, last = history.column("loss")[0], history.column("loss")[-1]
    assert last < 0.2 * first, f"one sequence must be learned by heart, but the loss went {first:.3f} → {last:.3f}"


def test_lora_training_leaves_every_frozen_weight_alone_to_the_bit(make, batches):
    model = make("lora", np.float32, dropout=0.3)
    before = state(model)
    train(model, batches, AdamW(lr=0.1, weight_decay=0.1), steps=10, max_grad_norm=1.0)
    for name, (trainable, value) in before.items():
        unchanged = model.state_dict()[name].tobytes() == value.tobytes()
        assert unchanged != trainable, f"{name} is {'trainable but unchanged' if trainable else 'frozen but changed'}"


def test_a_frozen_weight_never_has_a_gradient(make, random_batch):
    model = make("lora")
    _, cache = model.loss(*random_batch())
    model.backward(cache)
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.trainable, (
            f"{name}: a dW for a frozen weight is a third of the work, for nothing"
        )


@both_methods
def test_training_leaves_no_gradient_behind(method, make, batches):
    model = make(method)
    train(model, batches, SGD(lr=0.1), steps=2)
    assert all(p.grad is None for _, p in model.named_parameters())


@both_methods
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("counted", ["all", "few"])
def test_accumulating_k_batches_is_one_batch_of_k_times_the_rows(counted, k, method, make, random_batch):
    many, one = make(method), make(method)
    parts = [random_batch(rows=2, seed=seed) for seed in range(3 * k)]
    if counted == "few":  # as with answers only: 0, 1, … of the 12 targets of a batch count
        counts = [np.arange(12).reshape(2, 6) < i for i in range(3 * k)]
        parts = [(x, np.where(c, y, ops.IGNORE_INDEX)) for c, (x, y) in zip(counts, parts, strict=True)]
    whole = [tuple(np.concatenate(side) for side in zip(*parts[i : i + k], strict=True)) for i in range(0, 3 * k, k)]
    h_many = train(many, parts, SGD(lr=0.5, momentum=0.9), steps=3, accumulate=k, max_grad_norm=0.4)
    h_one = train(one, whole, SGD(lr=0.5, momentum=0.9), steps=3, max_grad_norm=0.4)
    for column in ("loss", "grad_norm", "tokens"):
        assert_allclose(h_many.column(column), h_one.column(column), rtol=1e-12, err_msg=column)
    for name, value in one.state_dict().items():
        message = f"{name}: the loss is a mean over tokens, so each of the {k} parts counts by how many it has"
        assert_allclose(many.state_dict()[name], value, rtol=1e-12, atol=1e-12, err_msg=message)


def test_a_list_of_batches_is_cycled_through(make, batches):
    class Endless:
        def __getitem__(self, i):
            return batches[i % len(batches)]

    listed, endless = (train(make("lora"), source, AdamW(0.01), steps=12) for source in (batches, Endless()))
    assert remembered(listed) == remembered(endless)


def test_the_seed_draws_the_dropout_masks(make, batches):
    def losses(seed):
        return train(make("lora", dropout=0.5), batches, AdamW(0.05), steps=4, seed=seed).column("loss")

    assert losses(seed=1) == losses(seed=1)
    assert losses(seed=1) != losses(seed=2), "another seed must give other dropout masks"


def test_every_batch_of_every_step_has_a_mask_of_its_own(make, random_batch):
    def losses(accumulate):
        model = make("lora", dropout=0.5)
        for layer in model.lora_layers():
            layer.adapters["default"].lora_B.value += 1.0  # at B = 0 the dropout mask has no effect
        return train(model, [random_batch()], SGD(lr=0), steps=4, accumulate=accumulate).column("loss")

    assert len(set(losses(1))) == 4, "with lr = 0 and one batch, only the masks can make the losses differ"
    assert losses(2)[0] != losses(1)[0], "the two batches of one step must have different masks"


def test_the_first_update_of_a_run_is_t_1(make, batches):
    model, before = make("full"), state(make("full"))
    train(model, batches, AdamW(lr=0.01, weight_decay=0), steps=1)
    moved = xp.abs(model.lm_head.weight.value - before["lm_head.weight"][1])
    message = "Adam's first step has size lr; with t off by one, its bias correction is off too"
    assert_allclose(moved, 0.01, rtol=1e-4, err_msg=message)


def test_the_schedule_multiplies_the_optimizers_lr(make, batches):
    schedule = WarmupCosine(steps=6, warmup=2, floor=0.5)
    model, optimizer = make("full"), SGD(lr=0.2)
    assert train(model, batches, optimizer, 6, schedule=schedule).column("lr") == [0.2 * schedule(s) for s in range(6)]
    still = make("full")
    train(still, batches, SGD(lr=0.2), 6, schedule=lambda step: 0.0)
    assert bits(still.state_dict()) == bits(make("full").state_dict()), "a factor of 0 must stop all movement"


def test_an_optimizer_that_trained_before_starts_afresh(make, batches):
    used, new = AdamW(0.05), AdamW(0.05)
    train(make("full"), batches, used, steps=3)
    results = [train(make("lora"), batches, optimizer, steps=3) for optimizer in (used, new)]
    assert remembered(results[0]) == remembered(results[1]), "train must reset the moments of an earlier run"
    assert used.state.keys() == new.state.keys(), "the state of an earlier model must be removed"


# -------------------------------------------------------------------------------------------------- held-out evaluation


@pytest.mark.parametrize(
    ("eval_every", "steps_evaluated"), [(3, [0, 3, 6, 7]), (7, [0, 7]), (None, [0, 7]), (1, [*range(8)])]
)
def test_held_out_loss_is_measured_before_every_so_often_and_after(eval_every, steps_evaluated, make, batches):
    model, base, heldout = make("lora", dropout=0.5), make("lora"), batches[3:]
    history = train(model, batches[:3], AdamW(0.05), 7, heldout=heldout, eval_every=eval_every)
    assert [row["step"] for row in history.rows if "heldout" in row] == steps_evaluated
    assert history.column("heldout")[0] == evaluate(base, heldout), "the first value is the loss before training"
    assert history.column("heldout")[-1] == evaluate(model, heldout), "the last value is the loss after training"


def test_evaluating_changes_nothing_about_the_training(make, batches):
    watched, alone = make("lora", dropout=0.5), make("lora", dropout=0.5)
    train(watched, batches, AdamW(0.05), 5, heldout=batches, eval_every=1)
    train(alone, batches, AdamW(0.05), 5)
    assert bits(watched.state_dict()) == bits(alone.state_dict())


def test_evaluate_weighs_each_counted_token_the_same(make, random_batch):
    model, (tokens, targets) = make("lora"), random_batch(rows=4)
    targets = targets.copy()
    targets[0, 1:] = targets[1, 2:] = ops.IGNORE_INDEX  # 3 targets count in the first half, 12 in the second
    whole = float(model.loss(tokens, targets)[0])
    parts = [(tokens[:2], targets[:2]), (tokens[2:], targets[2:])]
    assert evaluate(model, parts) == pytest.approx(whole, rel=1e-13)
    assert np.mean([evaluate(model, [part]) for part in parts]) != pytest.approx(whole, rel=1e-3), (
        "this test sees nothing"
    )


def test_a_batch_in_which_nothing_counts_is_skipped_as_training_skips_it(make, batches):
    model, (tokens, targets) = make("lora"), batches[0]
    nothing = tokens, np.full_like(targets, ops.IGNORE_INDEX)
    assert evaluate(model, [nothing, batches[1], nothing]) == evaluate(model, [batches[1]])
    with pytest.raises(ValueError, match=r"nothing to evaluate, .* all targets in the list are ignored"):
        evaluate(model, [nothing])


def test_held_out_batches_from_a_generator_are_measured_each_time(make, batches):
    """A generator can be read only once, so `train` must keep its batches in a list."""
    expected, found = (
        train(make("lora"), batches[:3], AdamW(0.05), 4, heldout=heldout, eval_every=2)
        for heldout in (batches[3:], (batch for batch in batches[3:]))
    )
    assert found.column("heldout") == expected.column("heldout") and len(found.column("heldout")) == 3


def test_evaluate_uses_no_dropout_and_leaves_no_gradient(make, batches):
    model = make("lora", dropout=0.9)
    assert evaluate(model, batches) == evaluate(model, batches) == evaluate(make("lora"), batches)
    assert all(p.grad is None for _, p in model.named_parameters())


# -------------------------------------------------------------------------------------------------------------- history


def test_on_step_gets_the_history_after_each_step_with_the_evaluations(make, batches):
    seen = []
    given = {"heldout": batches[:1], "eval_every": 2, "progress": False}
    history = train(make("lora"), batches, AdamW(1e-3), 3, **given, on_step=lambda h: seen.append([*map(dict, h.rows)]))
    assert [len(rows) for rows in seen] == [2, 3, 4], "the row of step 0 has the held-out loss before training"
    assert [[row["step"] for row in rows if "heldout" in row] for rows in seen] == [[0], [0, 2], [0, 2, 3]]
    assert seen[-1] == history.rows


def test_on_step_of_a_resumed_run_gets_the_rows_of_the_checkpoint_too(make, batches, tmp_path):
    seen, given = [], {"checkpoint": tmp_path / "c.safetensors", "checkpoint_every": 1, "progress": False}

    def stop(history):
        if len(history) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make("lora"), batches, AdamW(1e-3), 4, **given, on_step=stop)
    train(make("lora"), batches, AdamW(1e-3), 4, **given, resume=True, on_step=lambda h: seen.append(len(h)))
    assert seen == [3, 4], "the two finished steps are not repeated"


def test_history_has_a_row_a_step_with_what_was_measured(make, batches):
    model = make("lora")
    history = train(model, batches, AdamW(0.01), 4, heldout=batches[:1], eval_every=2, accumulate=3)
    assert len(history) == 5, "expected one row before the first step and one after each of the four steps"
    assert history.column("step") == [0, 1, 2, 3, 4]
    assert {"step", "loss", "lr", "grad_norm", "seconds", "tokens"} <= history.rows[1].keys()
    assert history.column("tokens") == [0, 36, 72, 108, 144], "3 batches of 2 × 6 tokens per step"
    assert history.column("lr") == [0.01] * 4
    assert len(history.column("loss")) == len(history.column("grad_norm")) == 4
    assert history.column("seconds") == sorted(history.column("seconds"))
    loss, _ = make("lora").loss(*batches[0])
    assert train(make("lora"), batches, SGD(0.1), 1).column("loss") == [float(loss)], (
        "the loss is that before the update"
    )


def test_the_seconds_are_of_training_alone(make, batches, monkeypatch):
    clock = [0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Slow(list):
        def __init__(self, items, seconds):
            super().__init__(items)
            self.seconds = seconds

        def __getitem__(self, i):
            clock[0] += self.seconds
            return super().__getitem__(i)

        def __iter__(self):
            clock[0] += self.seconds
            return super().__iter__()

    history = train(make("lora"), Slow(batches, 1), SGD(0.1), 3, heldout=Slow(batches, 100), eval_every=1)
    assert history.column("seconds") == [0, 1, 2, 3], "evaluation must not count as training time"


def test_grad_norm_is_the_norm_before_clipping(make, batches):
    free, clipped = (train(make("full"), batches, SGD(0.1), 1, max_grad_norm=n) for n in (None, 1e-3))
    assert free.column("grad_norm") == clipped.column("grad_norm")


def test_each_of_several_held_out_texts_has_a_column_of_its_own(make, batches):
    texts = {"heldout": batches[3:], "prose": batches[:2]}
    one = train(make("lora"), batches[:3], AdamW(0.05), 4, heldout=texts["heldout"], eval_every=2)
    model = make("lora")
    both = train(model, batches[:3], AdamW(0.05), 4, heldout=texts, eval_every=2)
    assert both.column("heldout") == one.column("heldout"), "the second text must not change the loss of the first"
    assert [row["step"] for row in both.rows if "prose" in row] == [0, 2, 4]
    assert both.column("prose")[-1] == evaluate(model, texts["prose"]) != both.column("heldout")[-1]


def test_a_held_out_text_cannot_take_a_columns_name(make, batches):
    with pytest.raises(ValueError, match="'loss' is already a column"):
        train(make("lora"), batches, AdamW(0.05), 1, heldout={"loss": batches})


@pytest.mark.parametrize("heldout", [False, True])
def test_a_history_reads_as_one_line(heldout, make, batches):
    history = train(make("lora"), batches, SGD(0.1), 2, heldout=batches if heldout else None)
    losses = history.column("loss")
    assert f"2 steps in {history.rows[-1]['seconds']:.1f} s, loss {losses[0]:.4f} → {losses[1]:.4f}" in str(history)
    assert ("held-out" in str(history)) == heldout
    assert str(History()) == "no step taken"


def test_endless_batches_are_no_text_to_evaluate_on(make):
    endless = data.Batches(np.arange(200) % 11, batch_size=2, seq_len=6)
    for call in (lambda m: evaluate(m, endless), lambda m: train(m, endless, SGD(0.1), 1, heldout=endless)):
        with pytest.raises(TypeError, match=r"is endless and .*heldout_batches\(corpus, windows=256\)"):
            call(make("lora"))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_process_that_only_imports_ipykernel_is_not_a_notebook():
    pytest.importorskip("ipykernel.ipkernel")
    assert not in_notebook() and not is_interactive()


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
@pytest.mark.parametrize("progress", [True, False])
def test_the_bar_is_for_a_terminal_and_can_be_switched_off(progress, stream, make, batches, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := stream())
    train(make("lora"), batches, SGD(0.1), 2, label="a label of its own", progress=progress)
    shown = "a label of its own" in screen.getvalue()
    assert shown == (progress and stream is Terminal)


def test_lines_say_how_far_it_is_how_fast_and_how_long_it_takes_still(make, batches, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stderr", screen := io.StringIO())
    monkeypatch.setattr("lora_np.progress.INTERVAL", -1.0)  # seconds between lines
    with pytest.raises(Stopped):
        train(make("lora"), StopAt(batches, at=2), SGD(0.1), 4, checkpoint=tmp_path / "run", checkpoint_every=1)
    assert screen.getvalue() == "", "without a terminal, nothing must be printed by default"
    history = train(
        make("lora"), batches, SGD(0.1), 4, checkpoint=tmp_path / "run", resume=True, label="mine", progress="lines"
    )
    resumed, *lines = screen.getvalue().splitlines()
    assert resumed == "mine: resumed at step 1 of 4"
    assert [line.split(",")[0] for line in lines] == ["mine: 2/4 steps", "mine: 3/4 steps", "mine: 4/4 steps"]
    row = history.rows[-1]
    rate = round(row["tokens"] / row["seconds"])
    assert lines[-1] == f"mine: 4/4 steps, 0 s left, loss {row['loss']:.4g}, tokens/s {rate}"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (120, "2 min"), (5900, "98 min"), (11_100, "3 h 05 min")]
)
def test_a_duration_is_said_as_a_person_would(seconds, said):
    assert duration(seconds) == said


# -------------------------------------------------------------------------------------- stopped and resumed, to the bit

STEPS, ACCUMULATE = 5, 2


def resumable(model, batches, optimizer, checkpoint=None, every=2, resume=True, **changes):
    """Start the run that the tests below stop. It uses clipping, accumulation, evaluation and dropout."""
    settings = {
        "steps": STEPS,
        "schedule": WarmupCosine(STEPS, warmup=1),
        "max_grad_norm": 1.0,
        "accumulate": ACCUMULATE,
        "heldout": batches[:2] if isinstance(batches, list) else batches.batches[:2],
        "eval_every": 2,
        "checkpoint": checkpoint,
        "checkpoint_every": every,
        "resume": resume,
        "seed": 4,
    }
    return train(model, batches, optimizer, **settings | changes)


class Stopped(Exception):
    pass


class StopAt:
    """Batches that stop the run when micro-batch `at` is requested, by an exception or by killing the process."""

    def __init__(self, batches, at, kill=False):
        self.batches, self.at, self.kill = batches, at, kill

    def __getitem__(self, i):
        if i == self.at:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Stopped
        return self.batches[i % len(self.batches)]


@both_methods
@pytest.mark.parametrize("optimizer", [lambda: AdamW(0.05), lambda: SGD(0.1, momentum=0.9)], ids=["AdamW", "SGD"])
def test_a_run_stopped_anywhere_and_resumed_is_the_run_that_never_stopped(method, optimizer, make, batches, tmp_path):
    model, used = make(method, np.float32, dropout=0.4), optimizer()
    expected = everything(model, used, resumable(model, batches, used))
    for at in range(STEPS * ACCUMULATE):
        checkpoint = tmp_path / f"{at}.safetensors"
        with pytest.raises(Stopped):
            resumable(make(method, np.float32, dropout=0.4), StopAt(batches, at), optimizer(), checkpoint)
        model, used = make(method, np.float32, dropout=0.4), optimizer()
        history = resumable(model, batches, used, checkpoint)
        assert everything(model, used, history) == expected, f"stopped before micro-batch {at} of {STEPS * ACCUMULATE}"


def test_a_run_may_be_stopped_again_and_again(make, batches, tmp_path):
    model, optimizer = make("lora", dropout=0.4), AdamW(0.05)
    expected = everything(model, optimizer, resumable(model, batches, optimizer))
    for at in (3, 4, 5, 9):
        with pytest.raises(Stopped):
            resumable(make("lora", dropout=0.4), StopAt(batches, at), AdamW(0.05), tmp_path / "run", every=1)
    model, optimizer = make("lora", dropout=0.4), AdamW(0.05)
    history = resumable(model, batches, optimizer, tmp_path / "run", every=1)
    assert everything(model, optimizer, history) == expected


def test_resuming_a_finished_run_only_brings_its_result_back(make, batches, tmp_path):
    model, optimizer = make("lora", dropout=0.4), AdamW(0.05)
    expected = everything(model, optimizer, resumable(model, batches, optimizer, tmp_path / "run"))
    model, optimizer = make("lora", dropout=0.4), AdamW(0.05)
    history = resumable(model, StopAt(batches, at=0), optimizer, tmp_path / "run")
    assert everything(model, optimizer, history) == expected


def test_a_checkpoint_holds_no_frozen_weight(make, batches, tmp_path):
    model = make("lora")
    resumable(model, batches, AdamW(0.05), tmp_path / "run")
    saved = {name.removeprefix("value/") for name in load_arrays(tmp_path / "run")[0] if name.startswith("value/")}
    assert saved == {name for name, p in model.named_parameters() if p.trainable}


def train_until_killed(model, batches, checkpoint, moment):
    """Run in a separate process, which is killed in a step or when half of its third checkpoint is written."""
    if moment == "in a step":
        batches = StopAt(batches, at=7, kill=True)
    else:
        from lora_np.files import arrays as module

        writes, write = [], module._write

        def write_half(path, arrays, metadata):
            writes.append(path)
            write(path, arrays, metadata)
            if len(writes) == 3:
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        module._write = write_half
    resumable(model, batches, AdamW(0.05), checkpoint, every=1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("moment", ["in a step", "in a write"])
def test_a_run_killed_by_the_system_resumes_to_the_bit(moment, make, batches, tmp_path):
    process = multiprocessing.get_context("spawn").Process(
        target=train_until_killed, args=(make("lora", dropout=0.4), batches, tmp_path / "run", moment)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the process must be killed by SIGKILL"
    half_written = [p for p in tmp_path.iterdir() if p.name not in ("run", "run.lock")]
    assert len(half_written) == (moment == "in a write")
    load_arrays(tmp_path / "run")  # complete: a partly written file has another name

    model, optimizer = make("lora", dropout=0.4), AdamW(0.05)
    expected = everything(model, optimizer, resumable(model, batches, optimizer))
    model, optimizer = make("lora", dropout=0.4), AdamW(0.05)
    history = resumable(model, batches, optimizer, tmp_path / "run", every=1)
    assert everything(model, optimizer, history) == expected


# --------------------------------------------------------------------------------------- checkpoints that do not belong


def test_a_checkpoint_that_exists_is_never_overwritten_unasked(make, batches, tmp_path):
    resumable(make("lora"), batches, AdamW(0.05), tmp_path / "run")
    before = (tmp_path / "run").read_bytes()
    with pytest.raises(FileExistsError, match="run exists; pass resume=True to continue from it, or remove it"):
        resumable(make("lora"), batches, AdamW(0.05), tmp_path / "run", resume=False)
    assert (tmp_path / "run").read_bytes() == before


OTHER_RUNS = {
    "another lr": ({}, {"lr": 0.06}, r"lr=0\.05.* now AdamW\(lr=0\.06"),
    "another optimizer": ({}, {"optimizer": SGD(0.05)}, r"optimizer was AdamW.* now SGD"),
    "another length": ({}, {"steps": 9}, "steps was 5, now 9"),
    "another schedule": (
        {},
        {"schedule": WarmupCosine(STEPS)},
        r"schedule was .* … .*, now 1 … ",
    ),
    "other clipping": ({}, {"max_grad_norm": None}, "max_grad_norm was 1.0, now None"),
    "another accumulation": ({}, {"accumulate": 3}, "accumulate was 2, now 3"),
    "another seed": ({}, {"seed": 5}, "seed was 4, now 5"),
    "another rank": ({"r": 3}, {}, r"q_proj\.lora_A\.default\.weight was float64 \(2, 12\), now float64 \(3, 12\)"),
    "another dtype": (
        {"dtype": np.float32},
        {},
        r"q_proj\.lora_A\.default\.weight was float64 \(2, 12\), now float32 \(2, 12\)",
    ),
    "a deeper model": ({"num_hidden_layers": 3}, {}, r"layers\.2\..*weight was absent, now float64"),
    "full fine-tuning": (
        {"method": "full"},
        {},
        r"embed_tokens\.weight was absent, now float64 \(11, 12\).* and \d+ more",
    ),
}


@pytest.mark.parametrize("case", OTHER_RUNS)
def test_a_checkpoint_of_another_run_is_refused_by_what_differs(case, make, batches, tmp_path):
    resumable(make("lora"), batches, AdamW(0.05), tmp_path / "run")
    before = (tmp_path / "run").read_bytes()
    other_model, other_run, message = OTHER_RUNS[case]
    model = make(**{"method": "lora"} | other_model)
    untouched = bits(model.state_dict())
    other_run = dict(other_run)
    optimizer = other_run.pop("optimizer", AdamW(other_run.pop("lr", 0.05)))
    with pytest.raises(ValueError, match=rf"run belongs to another run: .*{message}"):
        resumable(model, batches, optimizer, tmp_path / "run", **other_run)
    assert bits(model.state_dict()) == untouched, "an error must not change the weights"
    assert (tmp_path / "run").read_bytes() == before


def test_a_checkpoint_of_another_base_is_refused(make, batches, tmp_path):
    with pytest.raises(Stopped):
        resumable(make("lora"), StopAt(batches, at=7), AdamW(0.05), tmp_path / "run")
    other = make("lora")
    other.model.model.layers[
        1
    ].mlp.up_proj.base_layer.weight.value *= 1.001  # a frozen weight, which is not in the checkpoint
    with pytest.raises(
        ValueError, match=r"run belongs to another run: digest of the frozen weights was (\w+), now (?!\1)"
    ):
        resumable(other, batches, AdamW(0.05), tmp_path / "run")


def test_batches_that_can_tell_themselves_from_others_are_known_again(make, batches, tmp_path):
    class BatchesWithDigest(StopAt):
        def __init__(self, batches, digest, at=None):
            super().__init__(batches, at)
            self.digest = digest

    with pytest.raises(Stopped):
        resumable(make("lora"), BatchesWithDigest(batches, "these", at=7), AdamW(0.05), tmp_path / "run")
    for others, now in ((BatchesWithDigest(batches, "those"), "those"), (batches, "absent")):
        with pytest.raises(ValueError, match=f"run belongs to another run: digest of the data was these, now {now}"):
            resumable(make("lora"), others, AdamW(0.05), tmp_path / "run")
    resumable(make("lora"), BatchesWithDigest(batches, "these"), AdamW(0.05), tmp_path / "run")


def test_a_file_that_is_no_checkpoint_is_refused(make, batches, tmp_path):
    save_arrays(tmp_path / "run", {"W": np.ones(3)})
    with pytest.raises(ValueError, match="run is not a checkpoint"):
        resumable(make("lora"), batches, AdamW(0.05), tmp_path / "run")
    (tmp_path / "run").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="run is damaged"):
        resumable(make("lora"), batches, AdamW(0.05), tmp_path / "run")


LIES = {
    "a weight that is NaN": (lambda a, m: a[sorted(a)[-1]].fill(np.nan), r"run: \S+ contains NaN or infinity"),
    "a state that is infinite": (
        lambda a, m: a[sorted(a)[0]].fill(np.inf),
        r"run: optimizer/\S+ contains NaN or infinity",
    ),
    "a step that is not a number": (lambda a, m: m.update(step="two"), "run is damaged: ValueError.*two"),
    "a negative step": (lambda a, m: m.update(step="-1"), "run is damaged: ValueError.*step = -1"),
    "no step": (lambda a, m: m.pop("step"), "run is damaged: KeyError"),
    "a history that is not JSON": (lambda a, m: m.update(history="[{"), "run is damaged: JSONDecodeError"),
    "deep settings": (lambda a, m: m.update(settings="[" * 100_000), "run is damaged: RecursionError"),
    "settings that are a number": (lambda a, m: m.update(settings="3"), "run is damaged: TypeError"),
    "another tensor": (lambda a, m: a.update({"optimizer/W/v": np.ones(3)}), "run: unexpected tensor optimizer/W/v"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_checkpoint_whose_content_lies_is_named(case, make, batches, tmp_path):
    change, message = LIES[case]
    resumable(make("lora"), batches, AdamW(0.05), tmp_path / "run")
    arrays, metadata = load_arrays(tmp_path / "run")
    change(arrays, metadata)
    save_arrays(tmp_path / "run", arrays, metadata)  # with a right digest
    with pytest.raises(ValueError, match=message):
        resumable(make("lora"), batches, AdamW(0.05), tmp_path / "run")


# --------------------------------------------------------------------------------------------------------- not a number

overflows = pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # NumPy warns about overflow too


def after(steps, make, batches, method):
    """Return the weights of the same run after fewer steps."""
    model = make(method, np.float32)
    train(model, batches, SGD(0.05), steps)
    return bits({name: p.value for name, p in model.named_parameters() if p.trainable})


def values(checkpoint):
    arrays, _ = load_arrays(checkpoint)
    return {name.removeprefix("value/"): x for name, x in arrays.items() if name.startswith("value/")}


@overflows
@both_methods
@pytest.mark.parametrize("explosion", [1e25, 1e45], ids=["to huge numbers", "to infinity"])
@pytest.mark.parametrize("at", [3, 5], ids=["on the way", "in the last update"])
def test_an_exploding_update_stops_the_run_with_the_last_good_weights(at, explosion, method, make, batches, tmp_path):
    """A bad update is noticed only at the next loss, so the checkpoint must keep the weights before that update."""
    model = make(method, np.float32)
    with pytest.raises(FloatingPointError, match=r"from .*run.*smaller lr"):
        train(
            model,
            batches,
            SGD(0.05),
            steps=6,
            schedule=lambda step: explosion if step == at else 1.0,
            heldout=batches,
            checkpoint=tmp_path / "run",
            checkpoint_every=1,
        )
    good = after(at, make, batches, method)
    assert bits(values(tmp_path / "run")) == good, (
        f"the checkpoint must have the weights of step {at}, the last step with a finite loss"
    )
    assert bits({name: p.value for name, p in model.named_parameters() if p.trainable}) == good
    assert np.isfinite(evaluate(model, batches))


@overflows
def test_an_explosion_before_the_first_periodic_checkpoint_leaves_the_start(make, batches, tmp_path):
    model, start = make("full", np.float32), bits(make("full", np.float32).state_dict())
    with pytest.raises(FloatingPointError, match="reset to step 0"):
        train(model, batches, SGD(1e25), steps=6, checkpoint=tmp_path / "run", checkpoint_every=100)
    assert bits(values(tmp_path / "run")) == bits(model.state_dict()) == start


@overflows
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_numbers_stop_the_first_step(bad, make, batches, tmp_path):
    model = make("full")
    model.model.norm.weight.value[0] = bad
    with pytest.raises(FloatingPointError, match="step 1: loss nan"):
        train(model, batches, AdamW(0.05), 3, checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists(), "there was no good state, so there is no checkpoint"


@overflows
def test_a_nan_that_no_loss_sees_is_not_written_either(make, batches, tmp_path):
    model = make("full")
    model.model.embed_tokens.weight.value[10] = np.nan
    unseen = [
        (np.minimum(tokens, 9), targets) for tokens, targets in batches
    ]  # the last row of the embedding is never used
    with pytest.raises(FloatingPointError, match=r"embed_tokens\.weight is not finite"):
        train(model, unseen, AdamW(0.05), 3, checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@overflows
def test_a_nan_in_the_frozen_weights_does_not_overwrite_a_good_checkpoint(make, batches, tmp_path):
    class Poisoned(StopAt):
        def __getitem__(self, i):
            if i == self.at:
                model.model.model.norm.weight.value[0] = np.nan
            return self.batches[i % len(self.batches)]

    model = make("lora")
    with pytest.raises(FloatingPointError, match="loss nan"):
        resumable(model, Poisoned(batches, at=7), AdamW(0.05), tmp_path / "run")
    assert load_arrays(tmp_path / "run")[1]["step"] == "2", (
        "written every other step, and last before the NaN of step 3"
    )
    assert all(np.isfinite(x).all() for x in values(tmp_path / "run").values())


@overflows
def test_without_a_checkpoint_a_nan_stops_the_run_all_the_same(make, batches):
    for steps in (1, 4):
        with pytest.raises(FloatingPointError, match=r"there is no checkpoint to restore\. Try a smaller lr"):
            train(make("full", np.float32), batches, SGD(1e45), steps=steps)


def test_a_run_that_met_a_nan_goes_on_from_its_checkpoint(make, batches, tmp_path):
    class Poisoned(StopAt):
        def __getitem__(self, i):
            if i == self.at:
                model.model.norm.weight.value[0] = np.nan  # for example, faulty memory
            return self.batches[i % len(self.batches)]

    expected = make("full", dropout=0.4)
    optimizer = AdamW(0.05)
    expected = everything(expected, optimizer, resumable(expected, batches, optimizer))
    model = make("full")
    with pytest.raises(FloatingPointError):
        resumable(model, Poisoned(batches, at=6), AdamW(0.05), tmp_path / "run")
    optimizer = AdamW(0.05)
    history = resumable(model, batches, optimizer, tmp_path / "run")
    assert everything(model, optimizer, history) == expected


# ------------------------------------------------------------------------------------------------------------ bad input


def test_batches_that_cannot_be_asked_again_are_refused(make, batches):
    with pytest.raises(TypeError, match=r"batches is a generator, which cannot be indexed; expected a list"):
        train(make("lora"), (batch for batch in batches), AdamW(0.05), 3)


def test_no_batches_at_all_are_refused(make, batches):
    with pytest.raises(ValueError, match="batches is empty"):
        train(make("lora"), [], AdamW(0.05), 3)
    with pytest.raises(ValueError, match="list of held-out batches is empty"):
        train(make("lora"), batches, AdamW(0.05), 3, heldout=[])


def test_a_model_with_nothing_trainable_is_refused(make, batches):
    with pytest.raises(ValueError, match="nothing is trainable; call unfreeze"):
        train(make("full").freeze(), batches, AdamW(0.05), 3)


@pytest.mark.parametrize("heldout", [None, {}])
def test_to_evaluate_on_nothing_is_refused(heldout, make, batches):
    with pytest.raises(ValueError, match="eval_every = 2, but heldout is missing"):
        train(make("lora"), batches, AdamW(0.05), 3, heldout=heldout, eval_every=2)


@pytest.mark.parametrize("setting", ["steps", "accumulate", "checkpoint_every", "eval_every"])
def test_a_count_below_one_is_refused(setting, make, batches):
    with pytest.raises(ValueError, match=f"{setting} = .*expected at least 1"):
        train(make("lora"), batches, AdamW(0.05), **{"steps": 3} | {setting: 0})
