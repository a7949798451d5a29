"""The commands: what they print, and one clear line for wrong input."""

from __future__ import annotations

import argparse
import json
import re
import sys

import pytest

from lora_np import Transformer, TransformerConfig, VeraConfig, costs, get_peft_model, load_model
from lora_np.__main__ import COMMANDS, main
from lora_np.commands import methods, on_paper
from lora_np.costs import MODELS


def test_params_prints_the_counts_that_peft_prints(capsys):
    assert main(["params", "--model", "llama-2-7b", "--r", "16", "--target-modules", "all-linear"]) == 0
    assert "trainable params: 39,976,960 || all params: 6,778,392,576" in capsys.readouterr().out


def test_params_takes_a_list_with_commas(capsys):
    main(["params", "--model", "llama-2-7b", "--r", "8", "--target-modules", "q_proj,v_proj"])
    assert "trainable params: 4,194,304 ||" in capsys.readouterr().out


def test_an_unknown_target_lists_the_existing_names(capsys):
    assert main(["params", "--model", "gpt-2", "--target-modules", "q_proj"]) == 1
    assert "'q_proj' matches no linear layer; this model's linear layers are c_attn" in capsys.readouterr().err


def test_a_rank_of_zero_is_refused(capsys):
    assert main(["params", "--model", "gpt-2", "--r", "0"]) == 1
    assert capsys.readouterr().err.count("\n") == 1, "an error is one line"


def test_an_unknown_model_lists_the_known_models(capsys):
    with pytest.raises(SystemExit):
        main(["params", "--model", "gpt-5"])
    assert "smollm2-135m" in capsys.readouterr().err


def test_memory_prints_each_part_and_the_gpus_that_it_fits(capsys):
    assert main(["memory", "--model", "llama-65b", "--method", "qlora", "--r", "16", "--seq", "512"]) == 0
    out = capsys.readouterr().out
    assert "llama-65b, qlora, r = 16, 1 × 512 tokens, 16-bit, gradient checkpointing on" in out
    assert "trainable params: 199,884,800 ||" in out
    assert [line.split()[0] for line in out.splitlines() if line.endswith("fits")] == ["48", "80"]
    assert "24 GB: does not fit" in out


def test_memory_without_checkpointing_and_double_quantisation_takes_more(capsys):
    def total(*options):
        assert main(["memory", "--model", "llama-2-7b", "--method", "qlora", *options]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("sum"))
        return float(line.split()[1])

    assert total() < total("--no-double-quant") < total("--no-double-quant", "--no-checkpointing")


def test_memory_of_full_fine_tuning_refuses_a_rank_in_one_line(capsys):
    assert main(["memory", "--model", "llama-2-7b", "--method", "full"]) == 0
    assert "weights               13.477" in capsys.readouterr().out
    assert main(["memory", "--model", "llama-2-7b", "--method", "full", "--r", "8"]) == 1
    error = capsys.readouterr().err
    assert "--r is an option of an adapter, but --full trains no adapter" in error and error.count("\n") == 1


def test_memory_refuses_double_quantisation_where_nothing_is_quantised(capsys):
    assert main(["memory", "--model", "gpt-2", "--method", "lora", "--no-double-quant"]) == 1
    assert "--no-double-quant needs a quantised base model; add --quantize nf4" in capsys.readouterr().err


METHODS = {  # one of each, of Llama-2-7B; d = 4096, f = 11,008, 32 blocks
    "prefix": 20 * 2 * 32 * 4096,
    "houlsby": 2 * 32 * (2 * 256 * 4096 + 256 + 4096),
    "pfeiffer --bottleneck-size 64": 32 * (2 * 64 * 4096 + 64 + 4096),
    "lora-fa --target-modules q_proj,down_proj": 32 * 8 * (4096 + 4096),
    "dora --target-modules q_proj": 32 * (8 * (4096 + 4096) + 4096),
    "vera --target-modules q_proj,up_proj --r 16": 32 * ((16 + 4096) + (16 + 11_008)),
}


@pytest.mark.parametrize("method", METHODS)
def test_params_and_memory_know_the_other_methods(method, capsys):
    given = ["--model", "llama-2-7b", "--method", *method.split()]
    for command in ("params", "memory"):
        assert main([command, *given]) == 0
        assert f"trainable params: {METHODS[method]:,} ||" in capsys.readouterr().out


def test_the_rows_of_params_add_up_and_veras_shared_factors_are_named(capsys):
    main(["params", "--model", "llama-2-7b", "--method", "vera"])
    lines = capsys.readouterr().out.splitlines()
    rows = [int(line.split()[-1].replace(",", "")) for line in lines if "_proj" in line]
    counted = costs.count("llama-2-7b", VeraConfig(r=256, target_modules="all-linear"))
    assert len(rows) == 7 and sum(rows) == counted.trainable
    shared = 256 * (11_008 + 11_008)
    assert f"frozen, A and B, the same in all layers: {shared:,}" in "\n".join(lines)
    assert counted.total - counted.base == counted.trainable + shared


@pytest.mark.parametrize("method", ["rslora", "pissa", "lora+"])
def test_methods_with_the_cost_of_lora_are_known_by_their_own_names(method, capsys):
    for command in ("params", "memory"):
        assert main([command, "--model", "gpt-2", "--method", method]) == 0
        said = capsys.readouterr().out
        assert main([command, "--model", "gpt-2"]) == 0
        expected = capsys.readouterr().out
        if (command, method) == ("params", "pissa"):
            assert main([command, "--model", "gpt-2", "--r", "16"]) == 0  # its file is that of twice the default rank
            *expected, _ = expected.splitlines(keepends=True)
            expected = "".join([*expected, capsys.readouterr().out.splitlines(keepends=True)[-1]])
        assert said.replace(f"gpt-2, {method},", "gpt-2, lora,") == expected


@pytest.mark.parametrize(
    "options", ["--lora-dropout 0.1", "--method dora --r 4", "--method prefix --prefix-projection"]
)
@pytest.mark.parametrize("model", ["gpt-2", "llama-3-8b"])
def test_params_and_memory_make_the_same_configuration_as_train(model, options):
    train, paper = argparse.ArgumentParser(), argparse.ArgumentParser()
    train.add_argument("--model")
    methods.add_method(train)
    methods.add_options(train)
    on_paper.add_settings(paper)
    given = ["--model", model, *options.split()]
    asked = train.parse_args(given)
    asked.method = asked.method or methods.DEFAULT
    assert on_paper.settings(paper.parse_args(given))["config"] == methods.configuration(asked)


@pytest.mark.parametrize("command", ["params", "memory"])
def test_qlora_is_lora_over_a_quantised_base_and_other_methods_can_be_quantised_too(command, capsys):
    def said(*options):
        assert main([command, "--model", "llama-2-7b", *options]) == 0
        return capsys.readouterr().out

    assert said("--method", "qlora") == said("--quantize", "nf4").replace("lora, nf4,", "qlora,")
    assert said("--method", "qlora", "--quantize", "int4").replace("qlora, int4,", "qlora,") == said(
        "--method", "qlora"
    )
    assert "DoRA of rank 8, over nf4" in said("--method", "dora", "--quantize", "nf4") or command == "memory"


def test_params_and_memory_know_every_method_of_train():
    parser = argparse.ArgumentParser()
    on_paper.add_settings(parser)
    (choices,) = (action.choices for action in parser._actions if action.dest == "method")
    assert set(choices) == methods.METHODS.keys() | {"qlora"}


@pytest.mark.parametrize("method", ["lora", "rslora", "lora-fa", "lora+", "vera", "prefix", "houlsby", "pfeiffer"])
def test_params_counts_a_method_with_its_defaults_in_train(method, capsys):
    """Without options, the count equals that of the model that `train --method` trains."""
    choice = methods.METHODS[method]
    sizes = MODELS["smollm2-135m"]
    config = TransformerConfig(
        *(sizes.vocabulary, sizes.hidden, 1536, sizes.layers, sizes.heads, sizes.kv_heads), tie_word_embeddings=True
    )
    live = get_peft_model(Transformer.empty(config), choice.configuration())
    assert main(["params", "--model", "smollm2-135m", "--method", method]) == 0
    assert f"\n{costs.count(live)}\n" in capsys.readouterr().out


def test_a_size_that_a_method_does_not_have_is_refused_in_one_line(capsys):
    for command in ("params", "memory"):
        assert main([command, "--model", "gpt-2", "--method", "prefix", "--r", "8"]) == 1
        takes = "--virtual-tokens, --prefix-projection, --encoder-hidden-size"
        refused = f"lora_np {command}: --method prefix has no option --r; its options are {takes}\n"
        assert capsys.readouterr().err == refused
        assert main([command, "--model", "gpt-2", "--bottleneck-size", "8"]) == 1
        assert (
            "--method lora has no option --bottleneck-size; its options are --r, --lora-alpha"
            in capsys.readouterr().err
        )
        assert main([command, "--model", "gpt-2", "--method", "houlsby", "--bottleneck-size", "0"]) == 1
        assert "bottleneck_size = 0; expected at least 1" in capsys.readouterr().err


PAGES = [[], ["exercises", "write"], ["exercises", "check"], ["exercises", "grade"]]
PAGES += [[name] for names in COMMANDS.values() for name in names]


@pytest.mark.parametrize("columns", [80, 300])
@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_a_help_page_has_a_purpose_and_an_example_and_fits_the_terminal(page, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main([*page, "--help"])
    text = capsys.readouterr().out
    usage, purpose, *rest = text.split("\n\n")
    assert usage.startswith(f"usage: {' '.join(['python -m lora_np', *page])} ") and usage.count("\n") == 0
    assert purpose[0].isupper() and purpose.splitlines()[0][-1] in ".,"
    assert not page or any(part.startswith("example") for part in rest)
    assert max(map(len, text.splitlines())) <= min(columns, 100)
    options = re.split(r"\n  (?=-)", text)[1:]
    assert [option for option in options if option.count("(default") > 1] == [], "a default is written once"


@pytest.mark.parametrize("argv", [[], None])
def test_without_a_command_the_list_of_commands_is_shown(argv, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lora_np"])
    assert main(argv) == 0
    shown = capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--help"])
    assert shown.out == capsys.readouterr().out and "\nload and train models:\n" in shown.out and not shown.err


def test_serve_names_its_extra_before_it_looks_for_a_model(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert main(["serve", "--model", "no-such-model"]) == 1
    message = "the HTTP server needs starlette; run pip install 'lora-np[serve]'"
    assert capsys.readouterr().err == f"lora_np serve: {message}\n"


NUMBERS = [
    "memory --model gpt-2 --seq 0",
    "study alpha --workers 0",
    "reproduce --workers 0",
    "pretrain --steps 0",
    "bench --threads 0",
    "exercises grade submissions --csv grades.csv --workers 0",
    "generate --model no-such-model --seed -1 x",
    "train --model no-such-model --data lighthouse --output out --seed -1",
    "train --model no-such-model --data lighthouse --output out --warmup -1",
]


@pytest.mark.parametrize("command", NUMBERS)
def test_a_number_out_of_range_is_one_line_with_the_option_and_the_lowest_value(command, capsys):
    option, value = re.search(r"(--[a-z-]+) (0|-1)\b", command).groups()
    assert main(command.split()) == 1
    name = command.split()[0]
    assert capsys.readouterr().err == f"lora_np {name}: {option} {value}; expected at least {int(value) + 1}\n"


@pytest.mark.slow
def test_pretraining_for_a_few_steps_writes_a_model_that_loads_and_its_card(tmp_path, capsys):
    from lora_np import load_model

    assert main(["pretrain", "--output", str(tmp_path), "--steps", "2"]) == 0
    assert costs.count(load_model(tmp_path)).total == costs.count(load_model("tiny")).total
    assert "| unigram (byte frequencies) |" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.tmp"))


def test_params_and_memory_read_any_config_file(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(load_model("tiny").config.to_dict()))
    assert main(["params", "--model", str(tmp_path / "config.json"), "--r", "4"]) == 0
    assert "config.json: 1,017,216 parameters, LoRA of rank 4" in capsys.readouterr().out
    assert main(["memory", "--model", str(tmp_path), "--method", "qlora"]) == 0
    assert "24 GB: fits" in capsys.readouterr().out
    assert main(["params", "--model", "qwen-3-0.6b"]) == 0
    assert "qwen-3-0.6b: 596,049,920 parameters" in capsys.readouterr().out
