"""The speed study compares the same step of all competitors with a floor of the frozen matrix products only.

No test looks at a time: a test machine is never quiet.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from texts_of_figures import texts

from lora_np import Transformer, TransformerConfig, plots
from lora_np.__main__ import main
from lora_np.costs import MODELS
from lora_np.nn import Linear
from lora_np.studies.harness.table import Table
from lora_np.studies.timing import competitors, machine
from lora_np.studies.timing import speed as study
from lora_np.studies.timing.benchmark import Competitor, CompetitorFailed, run_rounds
from lora_np.studies.timing.competitors import COMPETITORS, Case, floor_flops, frozen_products
from lora_np.studies.timing.speed import CASES, SWEEPS, compared, different_losses, shape_of

SHAPE = {
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
SMALL = Case("tiny", 2, 9, shape=SHAPE, r=3, lora_alpha=7)
WRITING = replace(SMALL, new_tokens=5)


def silence(line: str) -> None:
    pass


@pytest.fixture
def alone(monkeypatch):
    """Hide PyTorch, PEFT and transformers, as if they were not installed."""
    monkeypatch.setattr(study, "find_spec", lambda name: None)


@pytest.mark.parametrize("name", COMPETITORS)
def test_every_training_step_keeps_freed_memory_as_train_does(name, monkeypatch):
    generates, kept = name in ("floor, generating", "ours, generating", "transformers"), []
    memory = {"kept": False}

    @contextmanager
    def keep():
        memory["kept"] = True
        yield True
        memory["kept"] = False

    monkeypatch.setattr(competitors, "keep_freed_memory", keep)
    monkeypatch.setattr(competitors, "IN_TORCH", set())
    monkeypatch.setitem(COMPETITORS, name, lambda case: lambda: kept.append(memory["kept"]))
    competitors.serve(name, WRITING if generates else SMALL, lambda report: None, ["2"])
    assert kept == [not generates] * (competitors.WARM_UP + 2) and not memory["kept"]


# ------------------------------------------------------------------------------------------------------------- the floor


@pytest.mark.parametrize("tied", [True, False])
def test_the_floor_has_each_matrix_of_the_model_and_its_head(tied):
    config = TransformerConfig(**SHAPE | {"tie_word_embeddings": tied, "head_dim": 10})
    model = Transformer.random(config)
    linears = [m.weight.value.shape for _, m in model.named_modules() if isinstance(m, Linear)]
    head = [(37, 24)] if tied else []  # otherwise among the modules already
    assert sorted((out, in_) for out, in_, _ in frozen_products(config)) == sorted(linears + head)


def test_the_floor_of_smollm2_is_its_matrices_on_paper_in_both_directions():
    case, model = next(case for case in CASES if case.name == "smollm2-135m"), MODELS["smollm2-135m"]
    N, qkv = 512, 576 * (576 + 192 + 192)
    both_ways = 2 * 2 * N * (model.block_linear_parameters + model.head.parameters)
    below_is_nothing_trained = 2 * N * qkv  # the first block's q, k and v need no dx
    assert floor_flops(case, TransformerConfig(**shape_of(model))) == both_ways - below_is_nothing_trained
    assert both_ways == pytest.approx(275e9, rel=2e-3)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_floor_does_the_products_that_it_counts_and_nothing_else(workers, monkeypatch):
    done = []

    def matmul(x, W, out):
        assert out.shape == (x.shape[0], W.shape[1]) and x.shape[1] == W.shape[0]
        done.append(2 * x.shape[0] * W.size)
        return out

    config = TransformerConfig(**SHAPE)
    W = [np.ones((out, in_), np.float32) for out, in_, _ in frozen_products(config)]
    step = competitors.products(SMALL, config, W, workers)
    monkeypatch.setattr(np, "matmul", matmul)
    assert step() == sum(done) == floor_flops(SMALL, config)


def test_our_own_step_has_no_fewer_products_than_the_floor(monkeypatch):
    """The step's dx of each frozen layer is computed if the floor counts it, and only then."""
    computed = []
    backward = Linear.backward
    monkeypatch.setattr(
        Linear, "backward", lambda self, dy, cache, need_dx=True: _note(computed, self, need_dx, backward, dy, cache)
    )
    competitors.ours(SMALL)()
    expected = [(out, in_) for out, in_, needs_dx in frozen_products(TransformerConfig(**SHAPE)) if needs_dx]
    assert sorted(computed) == sorted(expected)


def _note(computed, layer, need_dx, backward, dy, cache):
    if need_dx:
        computed.append(layer.weight.value.shape)
    return backward(layer, dy, cache, need_dx)


# ------------------------------------------------------------------------------------------------------------- the competitors


@pytest.mark.slow
def test_a_study_without_pytorch_has_ours_and_the_floor_and_says_what_is_missing(alone):
    said = []
    table = study.speed([SMALL], threads=1, rounds=2, say=said.append)
    assert [row["competitor"] for row in table.rows] == ["floor", "ours", "ours, one worker"]
    assert "torch, peft, transformers not installed" in said[0] and len(said) == 1
    for row in table.rows:
        assert len(row["rounds"]) == 2 and row["seconds"] > 0 and 0 < row["floor_share"] <= 1
        assert row["tokens_per_second"] == pytest.approx(18 / row["seconds"])
    assert table.rows[0]["flops"] == floor_flops(SMALL, TransformerConfig(**SHAPE))
    assert table.rows[1]["losses"][1] < table.rows[1]["losses"][0], "the second step comes after an update"
    assert table.settings["blas"]["ours"].keys() == {"blas", "kernel", "threads"}
    assert {"threads": 1, "rounds": 2}.items() <= table.settings.items()


@pytest.mark.slow
def test_every_thing_that_grows_is_a_sweep_of_its_own(alone):
    cases = [Case("", 2, 8, shape=SHAPE | {"num_hidden_layers": n}) for n in (1, 2)]
    table = study.speed_scaling({"layers": cases, "r": [replace(cases[0], r=r) for r in (1, 2, 4)]}, 1, 2, silence)
    assert [(row["sweep"], row["x"]) for row in table.rows] == [
        ("layers", 1),
        ("layers", 2),
        ("r", 1),
        ("r", 2),
        ("r", 4),
    ]
    assert [row["ratio"] for row in table.rows if row["x"] == 1] == [1, 1]
    assert table.settings["lines"].keys() == {"layers", "r"}
    assert table.settings["lines"]["layers"].keys() == {"slope", "intercept", "r_squared"}


def test_one_thing_alone_grows_in_a_sweep():
    for sweep, cases in SWEEPS.items():
        fixed = {"tokens": {"seq_len": 0}, "batch": {"batch_size": 0}, "r": {"r": 0}}.get(sweep, {})
        one, *others = [replace(case, shape=case.shape | {"num_hidden_layers": 0}, **fixed) for case in cases]
        assert all(other == one for other in others), sweep
    assert {case.r for case in SWEEPS["r"]} >= {1, 64}


@pytest.mark.oracle
def test_pytorch_with_peft_takes_the_same_step():
    said = []
    table = study.speed([SMALL], threads=2, rounds=2, compiled=False, say=said.append)
    floor, ours, alone, peft = table.rows
    assert (floor["competitor"], ours["competitor"], peft["competitor"], said) == ("floor", "ours", "PEFT", [])
    gap = max(np.abs(np.subtract(row["losses"], peft["losses"])).max() for row in (ours, alone))
    print(f"measured {gap:.1e} between the losses of two steps")
    assert gap < 1e-5, "the second loss comes after one backward and one AdamW: another gradient or update?"
    low, high = peft["ratio_range"]
    assert low <= peft["ratio"] <= high
    assert {"torch", "peft", "transformers"} <= table.versions.keys()
    assert {used["threads"] for used in table.settings["blas"].values()} == {2}


@pytest.mark.oracle
def test_transformers_writes_the_same():
    said = []
    table = study.generation_speed([WRITING], threads=1, rounds=1, say=said.append)
    names = ["floor, generating", "ours, generating", "transformers"]
    assert said == [] and [row["competitor"] for row in table.rows] == names
    floor, mine, theirs = table.rows
    assert theirs["ratio"] > 0 and theirs["batch_size"] == 2
    assert (floor["floor_share"], mine["token_ratio"], "ratio" in floor) == (1, 1, False)
    for row in (mine, theirs):
        assert np.isclose(row["floor_share"], floor["token_seconds"] / row["token_seconds"])
    assert np.shape(COMPETITORS["ours, generating"](WRITING)()) == (2, 5)


def test_the_floor_of_a_token_multiplies_all_matrices_and_the_head():
    case = replace(WRITING, batch_size=3, new_tokens=2)
    d, f, v = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"]
    kv = d // SHAPE["num_attention_heads"] * SHAPE["num_key_value_heads"]
    weights = SHAPE["num_hidden_layers"] * (2 * d * d + 2 * d * kv + 3 * d * f) + v * d
    assert COMPETITORS["floor, generating"](case)() == 2 * 3 * 2 * weights


def test_a_token_is_timed_without_the_prompt():
    whole = SimpleNamespace(case=replace(WRITING, new_tokens=5), turns=[9.0, 10.0])
    assert study.per_token(whole, SimpleNamespace(turns=[1.0, 4.0])) == [2.0, 1.5]


def test_there_is_no_ratio_where_the_losses_differ():
    def competitor(name, results):
        row = {"competitor": name}
        about = {"results": results}
        return SimpleNamespace(name=name, case=SMALL, about=about, turns=[2.0, 3.0, 4.0], row=lambda: dict(row))

    said = []
    ours = competitor("ours", [3.0, 2.5])
    near, far = competitor("near", [3.0, 2.50005]), competitor("far", [3.0, 2.5002])
    lost = competitor("lost", [3.0, float("nan")])
    rows = compared([ours, near, far, lost], different_losses, said.append)
    assert [row["ratio"] for row in rows] == [1, 1, None, None]
    assert [row["ratio_range"] for row in rows] == [[1, 1], [1, 1], None, None]
    assert (
        len(said) == 2 and "far computes a different result: losses [3.0, 2.5] here and [3.0, 2.5002] there" in said[0]
    )


def test_a_competitor_that_fails_reports_its_last_line():
    broken = replace(SMALL, shape=SHAPE | {"num_attention_heads": 5})
    with pytest.raises(
        CompetitorFailed, match=r"ours on tiny ended with code 1: ValueError: hidden_size 24 is not divisible by 5"
    ):
        run_rounds([("ours", broken)], 1, 1, silence, "test")


def test_a_peer_that_dies_is_left_out(monkeypatch):
    monkeypatch.setattr("lora_np.studies.timing.benchmark.IN_TORCH", {"no such competitor"})
    said = []
    ran = run_rounds([("ours", SMALL), ("no such competitor", SMALL)], 1, 1, said.append, "test")
    assert [competitor.name for competitor in ran] == ["ours"]
    assert "left out: no such competitor on tiny ended with code 1: KeyError" in said[0]


def test_no_process_outlives_the_benchmark(monkeypatch):
    started = []
    monkeypatch.setattr(Competitor, "__init__", _kept(Competitor.__init__, started))
    monkeypatch.setattr(Competitor, "turn", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_rounds([("ours", SMALL), ("floor", SMALL)], 1, 1, silence, "test")
    assert [competitor.process.returncode for competitor in started] == [0, 0]


def _kept(init, started):
    def keeping(self, *arguments):
        init(self, *arguments)
        started.append(self)

    return keeping


def test_a_model_that_was_not_fetched_is_left_out_with_the_command_that_gets_it(alone, tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_NP_CACHE", str(tmp_path))
    said = []
    assert study.speed([Case("smollm2-135m", 2, 256, "smollm2-135m")], 1, 1, say=said.append).rows == []
    assert any("python -m lora_np fetch smollm2-135m" in line for line in said)


# ----------------------------------------------------------------------------------------------------------- the machine


def test_a_variable_that_slows_a_competitor_is_named():
    held = {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_L2_SIZE": "1", "MKL_CBWR": "SSE2", "OMP_THREAD_LIMIT": "1"}
    warnings = machine.warnings_for(1, held | {"PATH": "", "OPENBLAS_NUM_THREADS": "1"})
    assert [warning.partition("=")[0] for warning in warnings] == sorted(held)
    assert "OPENBLAS_CORETYPE=Haswell is set and may slow NumPy" in warnings[2]
    assert machine.warnings_for(1, {"OMP_NUM_THREADS": "3", "HOME": "/"}) == [
        "OMP_NUM_THREADS=3 is overridden: all competitors use --threads 1"
    ]


def test_more_threads_than_processors_are_said():
    assert any("--threads 10000 exceeds" in line for line in machine.warnings_for(10_000, {})) or not hasattr(
        machine.os, "sched_getaffinity"
    )


def test_every_competitor_gets_the_same_number_of_threads():
    environment = machine.in_environment(3, {"OMP_NUM_THREADS": "1", "PATH": "here"})
    assert {environment[name] for name in machine.THREADS} == {"3"} and environment["PATH"] == "here"


def test_the_blas_is_named_with_its_kernel():
    used = machine.numpy_blas()
    assert used["blas"] and used["kernel"] and used["threads"] != 0
    assert machine.processor()


def test_a_blas_that_threadpoolctl_does_not_know_is_named_as_in_numpys_build(monkeypatch):
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: [])
    build = {"Build Dependencies": {"blas": {"name": "accelerate"}}}
    monkeypatch.setattr(np, "show_config", lambda mode: build)
    assert machine.numpy_blas() == {"blas": "Accelerate", "kernel": "unknown", "threads": None}


def test_the_conditions_warn_of_other_threads_and_of_other_programs(monkeypatch):
    monkeypatch.setattr(machine, "warnings_for", lambda threads: [])
    blas = {
        "ours": {"blas": "Accelerate", "kernel": "unknown", "threads": None},
        "PEFT": {"blas": "MKL", "kernel": "AVX2", "threads": 1},
        "floor": {"blas": "MKL", "kernel": "AVX2", "threads": 2},
    }
    assert machine.conditions(2, 9, blas, load=3.25)["warnings"] == [
        "3.2 processors were busy before the timing; this slows some competitors more than others",
        "ours: the number of threads of Accelerate is unknown",
        "PEFT runs 1 threads instead of 2",
    ]
    assert machine.conditions(2, 9, {"floor": blas["floor"]}, load=0.4)["warnings"] == []


@pytest.mark.slow
@pytest.mark.skipif(not machine.resident_memory(), reason="this system does not say")
def test_the_peak_of_memory_sees_an_array_that_is_gone():
    before = machine.resident_memory()["peak"]
    np.ones(40_000_000 + before // 8)  # larger than any peak so far
    grown = machine.resident_memory()["peak"]
    assert grown >= before + 300_000_000
    if machine.reset_peak():
        assert machine.resident_memory()["peak"] < grown


# ----------------------------------------------------------------------------------------------------------- the command


@pytest.mark.slow
def test_bench_prints_and_keeps_what_was_asked_for(alone, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(study, "CASES", (SMALL,))
    monkeypatch.setattr(study.speed_scaling, "__defaults__", ({"r": [SMALL, replace(SMALL, r=5)]}, 1, 1, silence))
    monkeypatch.setattr(study.generation_speed, "__defaults__", ((WRITING,), 1, 1, silence))
    arguments = ["--quick", "--threads", "1", "--json", str(tmp_path / "data"), "--figures", str(tmp_path)]
    assert main(["bench", "--only", "tiny", "scaling", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "tiny, 2 × 9 tokens, r = 3, α = 7" in printed and "kernel" in printed and "× the first" in printed
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["speed.json", "speed_scaling.json"]
    assert {path.name for path in tmp_path.glob("*.png")} == {"speed.png", "speed_scaling.png"}
    assert Table.load(tmp_path / "data" / "speed.json").study == "speed"
    assert main(["bench", "--only", "generation", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "5 new tokens per row" in printed and "ms/token" in printed and ", floor" in printed
    monkeypatch.setattr(study.quantized_speed, "__defaults__", ((SMALL,), 1, 1, silence))
    assert main(["bench", "--only", "quantized", *arguments]) == 0
    assert "tiny, ours, NF4 base" in capsys.readouterr().out
    rows = Table.load(tmp_path / "data" / "quantized_speed.json").rows
    assert [row["competitor"] for row in rows] == ["ours", "ours, NF4 base", "dequantising"] and rows[0]["ratio"] == 1
    assert abs(rows[0]["losses"][0] - rows[1]["losses"][0]) < 0.5, "nearly the same model"


def test_bench_refuses_no_threads_and_names_the_parts(capsys):
    assert main(["bench", "--threads", "0"]) == 1
    assert "--threads 0; expected at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "--only", "gpt-2"])
    assert "llama-2-7b-block" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- the pictures


def speed_table(
    seconds=(0.78, 1.17, 1.31, 2.13, 1.93), names=("tiny", "smollm2-135m", "llama-2-7b-block"), ratio=True
) -> Table:
    rows, wide = [], {"batch_size": 16, "seq_len": 128}
    for scale, case in enumerate(names, start=1):
        for name, each in zip(("floor", "ours", "ours, one worker", "PEFT", "PEFT compiled"), seconds, strict=False):
            rounds = (each * scale * np.linspace(0.97, 1.06, 9)).tolist()
            row = {
                "case": case,
                "competitor": name,
                "seconds": each * scale,
                "peak_bytes": 4e8 * scale,
                "rounds": rounds,
            }
            rows.append(row | ({} if name == "floor" else {"ratio": each / seconds[1] if ratio else None}))
    settings = {"cases": dict.fromkeys(names, wide), "threads": 64, "rounds": 9}
    return Table("speed", "q", "c", settings | {"processor": "AMD EPYC 7763 64-Core Processor"}, rows)


def scaling_table(noise=0.0, sweeps=SWEEPS) -> Table:
    rng, rows, lines = np.random.default_rng(0), [], {}
    for sweep, cases in sweeps.items():
        field = {"tokens": "tokens", "batch": "batch_size", "r": "r"}
        x = [getattr(case, field[sweep]) if sweep in field else case.shape["num_hidden_layers"] for case in cases]
        seconds = [0.1 + 1.7 * n / max(x) * (1 + noise * rng.standard_normal()) for n in x]
        for n, s in zip(x, seconds, strict=True):
            size = {"batch_size": 2, "seq_len": 256, "vocab_size": 256, "ratio": s / seconds[0]}
            rows.append({"sweep": sweep, "x": n, "seconds": s, "rounds": [s, 0.9 * s, 1.2 * s]} | size)
        lines[sweep] = dict(zip(("slope", "intercept", "r_squared"), study.straight_line(x, seconds), strict=True))
    settings = {"lines": lines, "shape": "smollm2-135m", "threads": 2, "rounds": 3, "processor": "a processor"}
    return Table("speed_scaling", "q", "c", settings, rows)


PICTURES = {
    "speed_chart": lambda: plots.speed_chart(speed_table()),
    "speed_chart, no PyTorch": lambda: plots.speed_chart(speed_table((0.078, 0.117, 0.11))),
    "speed_chart, not the same": lambda: plots.speed_chart(speed_table(ratio=False)),
    "speed_chart, one case, ours slower": lambda: plots.speed_chart(
        speed_table((1, 2, 2.1, 1.4, 0.9), names=("tiny",))
    ),
    "scaling_chart": lambda: plots.scaling_chart(scaling_table()),
    "scaling_chart, no line": lambda: plots.scaling_chart(scaling_table(0.5)),
    "scaling_chart, one": lambda: plots.scaling_chart(scaling_table(sweeps={"r": SWEEPS["r"]})),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_draw_with_nothing_cut_off_or_over_another(name):
    figure = PICTURES[name]()
    plt.close(figure)
    FigureCanvasAgg(figure).draw()
    width, height = figure.get_size_inches() * figure.dpi
    found = texts(figure)
    for text, ((x0, y0), (x1, y1)) in found:
        assert x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height, f"{text!r} is cut off"
    for (one, a), (other, b) in itertools.combinations(found, 2):
        assert not (np.minimum(a[1], b[1]) - np.maximum(a[0], b[0]) > 1.5).all(), f"{one!r} and {other!r} overlap"


def test_the_titles_say_what_the_tables_say():
    titles = {name: draw().texts[0].get_text() for name, draw in PICTURES.items()}
    plt.close("all")
    assert titles["speed_chart"] == "On SmolLM2-135M, PEFT takes 1.82× the time of lora_np (compiled PEFT: 1.65×)"
    assert (
        titles["speed_chart, no PyTorch"]
        == titles["speed_chart, not the same"]
        == "The cost of a LoRA step on SmolLM2-135M"
    )
    assert (
        titles["speed_chart, one case, ours slower"]
        == "On tiny, PEFT takes 0.70× the time of lora_np (compiled PEFT: 0.45×)"
    )
    assert titles["scaling_chart"] == "The time of a LoRA step grows linearly with tokens, rows and layers"
    assert titles["scaling_chart, no line"] == "How the time of a LoRA step grows"


def test_a_straight_line_is_found_with_its_r_squared():
    x, bent = [1, 2, 3, 4], [2.0, 4.0, 7.0, 8.0]
    assert study.straight_line(x, [3, 5, 7, 9]) == pytest.approx((2, 1, 1))
    slope, intercept, r_squared = study.straight_line(x, bent)
    assert (slope, intercept) == pytest.approx((2.1, 0.0))
    assert r_squared == pytest.approx(np.corrcoef(x, bent)[0, 1] ** 2)
