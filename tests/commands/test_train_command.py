"""`python -m lora_np train`: same weights as the library calls, printed plan, resuming, and no existing file is lost."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from chats import RECORDS, SMOLLM2, byte_pairs, chat
from on_device import DEVICE, host

import lora_np as ln
from lora_np.__main__ import main
from lora_np.commands import methods
from lora_np.commands import train as command
from lora_np.data import conversations
from lora_np.files import VocabularyTokenizer, load_arrays

DATA = [chat("Who are you?", "A keeper."), chat("Hi", "Ahoy."), chat("Where?", "At sea.", "Alone?", "No.")]
DATA += [{"prompt": "The lamp is", "completion": " lit."}, chat("Dark?", "Yes.", system="Be brief.")]
ADAPTER = ["SHA256SUMS", "adapter_config.json", "adapter_model.safetensors", "loss.png", "metrics.jsonl", "train.toml"]
RUN = ["--model", "tiny", "--batch-size", "2", "--steps", "3", "--checkpoint-every", "1", "--workers", "1"]


@pytest.fixture
def jsonl(tmp_path):
    """`jsonl(records, name)` writes a file with these records and returns its path as a string."""

    def write(records=DATA, name="data.jsonl"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def run(jsonl, tmp_path):
    """`run(*options)` trains "tiny" on DATA for three steps into tmp_path/out, and returns the exit status."""

    def run(*options, data=None):
        return main(["train", *RUN, "--data", data or jsonl(), "--output", str(tmp_path / "out"), *map(str, options)])

    return run


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def weights(folder):
    """The saved arrays, bit for bit."""
    arrays = [load_arrays(path)[0] for path in sorted(folder.glob("*.safetensors"))]
    return [{name: (x.dtype.str, x.shape, x.tobytes()) for name, x in found.items()} for found in arrays]


def losses(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """Drawing takes a third of a second; test_run_report.py draws."""
    monkeypatch.setattr("lora_np.commands.run_report._draw", lambda rows, path: path.write_bytes(b"a picture"))


class Interrupted(conversations.ConversationBatches):
    """Batches that raise KeyboardInterrupt in the second step, like Ctrl-C."""

    def __getitem__(self, i):
        if i == 1:
            raise KeyboardInterrupt
        return super().__getitem__(i)


def fail(batches, i):
    raise RuntimeError("before the first checkpoint")


# -------------------------------------------------------------------------------------------------------- what it does


def test_train_gives_the_same_weights_as_the_library_calls(run, jsonl, tmp_path):
    options = ["--r", 3, "--lora-alpha", 5, "--target-modules", "q_proj,v_proj", "--lora-dropout", 0.2, "--use-rslora"]
    options += ["--lr", 0.02, "--warmup", 2, "--weight-decay", 0.1, "--max-grad-norm", 0.5, "--accumulate", 2]
    assert run(*options, "--group-by-length", "--seed", 4) == 0

    config = ln.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["q_proj", "v_proj"],
        lora_dropout=0.2,
        use_rslora=True,
        base_model_name_or_path="tiny",
    )
    model = ln.get_peft_model(ln.load_model("tiny"), config, seed=4)
    examples = conversations.read(jsonl(), ln.load_tokenizer("tiny"))
    ln.train(
        model,
        conversations.ConversationBatches(examples, batch_size=2, seed=4, group_by_length=True),
        ln.AdamW(0.02, weight_decay=0.1),
        steps=3,
        schedule=ln.WarmupCosine(3, warmup=2),
        max_grad_norm=0.5,
        accumulate=2,
        seed=4,
    )
    model.save_pretrained(tmp_path / "by hand")
    assert list(files(tmp_path / "out")) == ADAPTER, "nothing else is left in the folder"
    assert weights(tmp_path / "out") == weights(tmp_path / "by hand")
    ours, theirs = ((tmp_path / name / "adapter_config.json").read_text() for name in ("out", "by hand"))
    assert json.loads(ours) == json.loads(theirs)


def test_train_over_a_quantised_base_gives_the_same_weights_as_the_library_calls(run, jsonl, tmp_path, capsys):
    assert run("--quantize", "nf4", "--lr", 0.02) == 0
    assert "--quantize nf4" in capsys.readouterr().out, "the command to try it with"
    config = methods.METHODS["lora"].configuration(base_model_name_or_path="tiny")
    model = ln.get_peft_model(ln.quantize_model(ln.load_model("tiny"), "nf4"), config)
    examples = conversations.read(jsonl(), ln.load_tokenizer("tiny"))
    batches = conversations.ConversationBatches(examples, batch_size=2, seed=0)
    ln.train(model, batches, ln.AdamW(0.02, weight_decay=0), 3, schedule=ln.WarmupCosine(3, 1), max_grad_norm=1.0)
    model.save_pretrained(tmp_path / "by hand")
    assert weights(tmp_path / "out") == weights(tmp_path / "by hand")
    ln.PeftModel.from_pretrained(ln.load_model("tiny"), tmp_path / "out"), "and over the base in floats"


def test_full_fine_tuning_of_four_bits_is_refused(run, tmp_path, capsys):
    assert run("--full", "--quantize", "nf4") == 1
    assert "--quantize freezes the weights in 4 bits, but --full trains the weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_library_loads_the_adapter_and_history_has_its_losses(run, jsonl, tmp_path, capsys):
    assert run("--heldout", jsonl(DATA[:2], "heldout.jsonl"), "--eval-every", 2) == 0
    rows = losses(tmp_path / "out")
    assert [row["step"] for row in rows if "heldout" in row] == [0, 2, 3]
    model = ln.PeftModel.from_pretrained(ln.load_model("tiny"), tmp_path / "out")
    batches = conversations.heldout_batches(conversations.read(jsonl(DATA[:2]), ln.load_tokenizer("tiny")), 2)
    with model.disable_adapter():
        assert ln.evaluate(model, batches) == pytest.approx(rows[0]["heldout"], abs=1e-6)
    assert ln.evaluate(model, batches) == pytest.approx(rows[-1]["heldout"], abs=1e-6)
    assert rows[-1]["heldout"] < rows[0]["heldout"]
    said = capsys.readouterr().out
    assert f"held-out {rows[0]['heldout']:.4f} → {rows[-1]['heldout']:.4f} nats per token" in said


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_peft_loads_the_folder(run, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    assert run("--lr", 0.05) == 0
    base = transformers.AutoModelForCausalLM.from_pretrained(ln.pretrained.models.ASSETS / "tiny", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    ours, plain = ln.PeftModel.from_pretrained(ln.load_model("tiny"), tmp_path / "out"), ln.load_model("tiny")
    tokens = np.arange(40)[None] + 60
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    difference = np.abs(host(ours.forward(tokens)[0]) - expected).max()
    assert difference < 1e-4 < np.abs(host(plain.forward(tokens)[0]) - expected).max(), "measured 1e-5"


def test_train_first_prints_the_plan(run, capsys):
    assert run("--accumulate", 2) == 0
    said = capsys.readouterr().out.splitlines()
    examples = [conversations.example(record, ln.load_tokenizer("tiny")) for record in DATA]
    tokens, counted = sum(len(e.tokens) for e in examples), sum(e.counts.sum() for e in examples)
    assert said[0] == "trainable params: 97,280 || all params: 1,114,496 || trainable%: 8.7286"
    assert said[1].endswith(f"data.jsonl: 5 records, {tokens:,} tokens, {counted:,} of them in answers")
    assert said[2].startswith("3 steps of 2 batches of 2 records, AdamW(lr=0.003,")
    assert said[2].endswith(", learning rate rises for 1 step, then falls to 0 as a cosine")


@pytest.mark.parametrize(
    ("options", "steps"), [([], 8), (["--epochs", "0.5"], 2), (["--accumulate", "2"], 4), (["--batch-size", "16"], 1)]
)
def test_epochs_are_as_many_steps_as_they_need(options, steps, jsonl, tmp_path, capsys):
    given = ["--model", "tiny", "--data", jsonl(), "--output", str(tmp_path / "out"), "--batch-size", "2", *options]
    assert main(["train", *given]) == 0
    assert f"\n{steps} step{'s' * (steps > 1)} of" in capsys.readouterr().out, "5 records, 3 epochs if nothing is said"


def test_train_prints_its_progress(run, monkeypatch, capsys):
    monkeypatch.setattr("lora_np.progress.INTERVAL", -1.0)
    assert run() == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "steps" in line]
    assert len(lines) == 3
    assert all("left, loss " in line and ", tokens/s " in line for line in lines)


COMMANDS = {  # the first record → the command but for the folder
    "a conversation": (DATA[0], "--model tiny --adapter {} --chat 'Who are you?'"),
    "with a system message": (DATA[4], "--model tiny --adapter {} --system 'Be brief.' --chat 'Dark?'"),
    "plain text": (DATA[3], "--model tiny --adapter {} --raw 'The lamp is'"),
}


@pytest.mark.skipif(os.name == "nt", reason="its terminal quotes otherwise")
@pytest.mark.parametrize("case", COMMANDS)
def test_train_ends_with_a_command_that_tries_the_adapter(case, run, jsonl, tmp_path, capsys):
    record, expected = COMMANDS[case]
    assert run("--heldout", jsonl([record], "heldout.jsonl"), "--steps", 1) == 0
    line = capsys.readouterr().out.splitlines()[-1].strip()
    assert line == "python -m lora_np generate " + expected.format(shlex.quote(str(tmp_path / "out")))
    assert main([*shlex.split(line)[3:], "--max-new-tokens", "2"]) == 0, "and it works"


def test_a_shipped_data_set_brings_its_held_out_records(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(conversations, "ASSETS", tmp_path)
    (tmp_path / "harbour").mkdir()
    for split, records in (("train", DATA), ("heldout", DATA[:2])):
        (tmp_path / "harbour" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert run(data="harbour") == 0
    said = capsys.readouterr().out
    assert "harbour: 5 records" in said and "held out: 2 records" in said and "held-out" in said.splitlines()[-3]


def test_records_too_long_are_one_line_of_warning(run, capsys):
    assert run("--max-length", 80) == 0
    errors = [line for line in capsys.readouterr().err.splitlines() if "stop token" not in line]
    assert len(errors) == 1 and errors[0].startswith("warning: ") and "cut to max_length = 80 tokens" in errors[0]


# --------------------------------------------------------------------------------------------------- full fine-tuning


def test_full_saves_a_model_in_which_every_weight_was_trained(run, tmp_path, capsys):
    assert run("--full", "--lr", 0.01) == 0
    assert list(files(tmp_path / "out")) == [
        *("SHA256SUMS", "config.json", "loss.png", "metrics.jsonl", "model.safetensors", "train.toml")
    ]
    before, after = ln.load_model("tiny").state_dict(), ln.load_model(tmp_path / "out").state_dict()
    assert before.keys() == after.keys()
    assert [name for name in before if np.array_equal(host(before[name]), host(after[name]))] == []
    said = capsys.readouterr().out
    assert "trainable params: 1,017,216 || all params: 1,017,216 || trainable%: 100.0000" in said
    assert f"generate --model {tmp_path / 'out'} --chat" in said


def test_full_saves_the_tokenizer_beside_it(make_model, jsonl, tmp_path):
    tokenizer = VocabularyTokenizer(byte_pairs(), {"bos": 1, "eos": 2, "pad": 2}, SMOLLM2)
    ln.save_model(
        make_model(np.float32, vocab_size=tokenizer.vocab_size, max_position_embeddings=512), tmp_path / "base"
    )
    tokenizer.save_pretrained(tmp_path / "base")
    given = ["--model", str(tmp_path / "base"), "--data", jsonl(list(RECORDS.values())), "--batch-size", "2"]
    assert main(["train", *given, "--steps", "2", "--full", "--output", str(tmp_path / "out")]) == 0
    saved = ln.load_tokenizer(tmp_path / "out")
    for record in RECORDS.values():
        messages = record["messages"]
        assert saved.apply_chat_template(messages).tolist() == tokenizer.apply_chat_template(messages).tolist()
    assert saved.eos_token_id == 2


def test_options_of_lora_are_refused_with_full(run, tmp_path, capsys):
    for option in (
        ["--r", 4],
        ["--lora-alpha", 8],
        ["--target-modules", "q_proj"],
        ["--lora-dropout", 0],
        ["--use-rslora"],
    ):
        assert run("--full", *option) == 1
        assert (
            capsys.readouterr().err
            == f"lora_np train: {option[0]} is an option of an adapter, but --full trains no adapter; leave out one of the two\n"
        )
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------- the other methods

ALL = {"target_modules": "all-linear"}
METHODS = {  # the options → the configuration that they mean
    "--method lora --r 3": ln.LoraConfig(r=3, lora_alpha=16, **ALL),
    "--method rslora": ln.LoraConfig(r=8, lora_alpha=16, **ALL, use_rslora=True),
    "--method dora --lora-dropout 0.1": ln.LoraConfig(r=8, lora_alpha=16, **ALL, use_dora=True, lora_dropout=0.1),
    "--method pissa --target-modules q_proj": ln.LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj"], init_lora_weights="pissa"
    ),
    "--method lora-fa": ln.LoraConfig(r=8, lora_alpha=16, **ALL, freeze_A=True),
    "--method lora+ --loraplus-lr-ratio 4": ln.LoraConfig(r=8, lora_alpha=16, **ALL),
    "--method vera": ln.VeraConfig(r=256, **ALL),
    "--method vera --r 16 --vera-dropout 0.1": ln.VeraConfig(r=16, **ALL, vera_dropout=0.1),
    "--method prefix": ln.PrefixTuningConfig(num_virtual_tokens=20),
    "--method prefix --virtual-tokens 3 --prefix-projection --encoder-hidden-size 7": ln.PrefixTuningConfig(
        num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7
    ),
    "--method houlsby": ln.BottleneckConfig(),
    "--method pfeiffer --bottleneck-size 5 --non-linearity silu": ln.BottleneckConfig(
        bottleneck_size=5, non_linearity="silu", placement="pfeiffer"
    ),
}
TRIED = {options.split()[1] for options in METHODS}
METHODS |= {
    f"--method {name}": choice.configuration()
    for name, choice in methods.METHODS.items()
    if name not in (*TRIED, "full")  # a method whose options are tried nowhere else: with its defaults
}
every_method = pytest.mark.parametrize("options", METHODS)


def test_every_method_of_the_command_is_tried_here():
    assert {options.split()[1] for options in METHODS} | {"full"} == set(methods.METHODS)


@every_method
def test_each_method_trains_its_configuration_and_generate_loads_the_adapter(options, run, jsonl, tmp_path, capsys):
    assert run(*options.split(), "--steps", 2, "--lr", 0.1) == 0
    model = ln.load_model("tiny")
    config = replace(METHODS[options], base_model_name_or_path="tiny")
    trained = ln.get_peft_model(model, config)
    examples = conversations.read(jsonl(), ln.load_tokenizer("tiny"))
    batches = conversations.ConversationBatches(examples, batch_size=2, seed=0)
    optimizer = ln.AdamW(0.1, weight_decay=0, lr_ratio={"lora_B": 4} if "lora+" in options else {})
    ln.train(trained, batches, optimizer, 2, schedule=ln.WarmupCosine(2, 1), max_grad_norm=1.0)
    trained.save_pretrained(tmp_path / "by hand")
    assert weights(tmp_path / "out") == weights(tmp_path / "by hand")
    ours, theirs = ((tmp_path / name / "adapter_config.json").read_text() for name in ("out", "by hand"))
    assert json.loads(ours) == json.loads(theirs)

    capsys.readouterr()
    given = ["--model", "tiny", "--adapter", str(tmp_path / "out"), "--raw", "The lamp", "--max-new-tokens", "12"]
    assert main(["generate", *given]) == 0
    tokenizer = ln.load_tokenizer("tiny")
    old, new = (
        ln.generate(each, [tokenizer.encode("The lamp").tolist()], 12)[0] for each in (ln.load_model("tiny"), trained)
    )
    assert old != new, "the base says the same: this could not fail"
    assert capsys.readouterr().out == f"The lamp{tokenizer.decode(new)}\n", "the model that was trained says the same"


@pytest.mark.parametrize("method", ["rslora", "dora", "lora-fa", "lora+", "vera", "prefix", "houlsby", "pfeiffer"])
def test_over_four_bits_every_method_trains_and_its_adapter_generates(method, run, tmp_path, capsys):
    assert run("--method", method, "--quantize", "nf4", "--steps", 1) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert main([*shlex.split(line)[3:], "--max-new-tokens", "2"]) == 0

    def over_four_bits():
        return ln.quantize_model(ln.load_model("tiny"), "nf4")

    choice, tokens = methods.METHODS[method], np.arange(40)[None] + 60
    start = ln.get_peft_model(over_four_bits(), choice.configuration(), seed=0)
    trained = ln.PeftModel.from_pretrained(over_four_bits(), tmp_path / "out")
    moved = np.abs(host(trained.forward(tokens)[0]) - host(start.forward(tokens)[0])).max()
    assert moved > 1e-3, "one step changed nothing, or what it changed is not used"


@pytest.mark.parametrize("method", [name for name in methods.METHODS if name not in ("lora", "full")])
def test_each_method_has_a_default_learning_rate_that_the_help_lists(method, run, capsys):
    assert run("--method", method, "--steps", 1) == 0
    lr = methods.METHODS[method].lr
    assert f"AdamW(lr={lr}," in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "the default is a starting point for a search, not the best value" in said
    assert method in said.partition(f"{lr:g} for ")[2].partition(";")[0].partition(")")[0].split(", ")


@dataclass(frozen=True)
class LeakConfig:
    """The configuration of an imagined new method."""

    leak: float = 0.5
    deep: bool = False
    base_model_name_or_path: str | None = None


def test_a_new_method_is_one_entry_with_its_options(monkeypatch, capsys):
    options = {"leak": methods.Option(0.25, "how much (default {})", "X", float), "deep": methods.Option(False, "all")}
    monkeypatch.setitem(methods.METHODS, "leak", methods.Choice(1e-3, LeakConfig, options))
    parser = argparse.ArgumentParser()
    methods.add_method(parser)
    methods.add_options(parser)
    assert "leak:\n  --leak X " in parser.format_help() and "how much (default 0.25)" in parser.format_help()
    for said, config in (
        ("", LeakConfig(0.25, False, "tiny")),
        ("--leak 0.75 --deep", LeakConfig(0.75, True, "tiny")),
    ):
        arguments = parser.parse_args(["--method", "leak", *said.split()])
        arguments.model, arguments.lr, arguments.quantize = "tiny", None, None
        methods.check_options(arguments)
        assert methods.configuration(arguments) == config
        assert methods.learning_rates(arguments) == (1e-3, {})
    arguments.method = "lora"
    with pytest.raises(ValueError, match=r"--method lora has no option --leak; its options are --r, --lora-alpha"):
        methods.check_options(arguments)


NO_USE = {
    "--method prefix --r 8": "--method prefix has no option --r; its options are --virtual-tokens, --prefix-projection",
    "--virtual-tokens 3": "--method lora has no option --virtual-tokens; its options are --r, --lora-alpha, --target-modules",
    "--method vera --lora-dropout 0.1": "--method vera has no option --lora-dropout; its options are --r, --target-modules",
    "--method houlsby --use-rslora": "its options are --bottleneck-size, --non-linearity",
    "--loraplus-lr-ratio 4": "--method lora has no option --loraplus-lr-ratio",
    "--method full --bottleneck-size 3": "--bottleneck-size is an option of an adapter, but --full trains no adapter",
    "--method prefix --encoder-hidden-size 8": "the width of the MLP of --prefix-projection; add --prefix-projection",
    "--method pissa --quantize nf4": "--quantize rounds the residual weights that PiSSA leaves in the base",
    "--method pissa --r 500": "singular values; PiSSA with r = 500",
    "--method prefix --virtual-tokens 0": "num_virtual_tokens = 0; expected at least 1",
    "--method prefix --max-length 500": "--max-length 500; expected at most 492, because this model's limit is 512 tokens minus 20",
    "--method prefix --virtual-tokens 511": "--virtual-tokens 511 leaves no room for text; this model's limit is 512 tokens",
    "--method lora+ --loraplus-lr-ratio 0": "lr_ratio['lora_B'] = 0.0; expected a number > 0",
}


@pytest.mark.parametrize("options", NO_USE)
def test_an_option_of_another_method_is_refused_with_the_methods_own_options(options, run, tmp_path, capsys):
    assert run(*options.split()) == 1
    error = capsys.readouterr().err
    assert NO_USE[options] in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_full_and_another_method_exclude_each_other(run, capsys):
    with pytest.raises(SystemExit):
        run("--full", "--method", "lora")
    assert "argument --method: not allowed with argument --full" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- stopped, resumed, overwritten


RESUMED = [
    "",
    "--full",
    "--method pissa",
    "--method lora+",
    "--method lora-fa",
    "--method dora",
    "--method vera --r 8",
    "--method prefix --prefix-projection",
    "--method houlsby",
    "--method pfeiffer",
]


@pytest.mark.parametrize("method", [options.split() for options in RESUMED], ids=RESUMED)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_run(method, run, jsonl, tmp_path, monkeypatch, capsys):
    options = [*method, "--heldout", jsonl(DATA[:2], "heldout.jsonl")]
    assert run(*options) == 0
    expected = weights(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "never stopped")
    capsys.readouterr()

    with monkeypatch.context() as patch:
        patch.setattr(conversations, "ConversationBatches", Interrupted)
        assert run(*options) == 130
    errors = capsys.readouterr().err
    assert f"to continue from {tmp_path / 'out' / 'checkpoint.safetensors'}, add --resume to the same command" in errors
    assert list(files(tmp_path / "out")) == ["checkpoint.safetensors"]

    before = files(tmp_path / "out")
    assert run(*options) == 1
    assert (
        "belongs to an unfinished run; use --resume to continue it, or --overwrite to start again"
        in capsys.readouterr().err
    )
    assert files(tmp_path / "out") == before

    assert run(*options, "--resume") == 0
    assert weights(tmp_path / "out") == expected, "and the checkpoint is gone"
    rows, never = (losses(tmp_path / name) for name in ("out", "never stopped"))
    assert [row | {"seconds": 0} for row in rows] == [row | {"seconds": 0} for row in never]


def test_an_unfinished_run_can_be_begun_again(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(conversations, "ConversationBatches", Interrupted)
        assert run("--lr", 0.5) == 130
    assert run("--overwrite") == 0
    again = weights(tmp_path / "out")
    assert run("--overwrite") == 0
    assert weights(tmp_path / "out") == again, "no step of the run with another lr is in it"


def test_resume_starts_a_new_run_and_does_not_repeat_a_finished_one(run, tmp_path, capsys):
    assert run("--resume") == 0
    before = files(tmp_path / "out")
    assert run("--resume") == 0
    assert capsys.readouterr().out.endswith("out is finished; to train again, use --overwrite\n")
    assert files(tmp_path / "out") == before


def test_a_finished_adapter_is_overwritten_only_with_overwrite(run, tmp_path, capsys):
    assert run() == 0
    before, learned = files(tmp_path / "out"), weights(tmp_path / "out")
    assert run("--lr", 0.01) == 1
    assert (
        "adapter_config.json exists; use --overwrite to replace it, or choose another --output"
        in capsys.readouterr().err
    )
    assert files(tmp_path / "out") == before
    assert run("--lr", 0.01, "--overwrite") == 0
    assert weights(tmp_path / "out") != learned


def test_the_old_adapter_stays_until_the_new_one_is_saved(run, tmp_path, monkeypatch):
    assert run() == 0
    before = files(tmp_path / "out")
    monkeypatch.setattr(conversations, "ConversationBatches", Interrupted)
    assert run("--lr", 0.01, "--overwrite") == 130
    after = files(tmp_path / "out")
    assert before.pop("SHA256SUMS") and after.pop("SHA256SUMS") == b"", "no digest confirms the old files any more"
    assert after.pop("checkpoint.safetensors") and after == before


def test_resume_after_overwrite_does_not_mistake_the_old_adapter_for_the_new_one(run, tmp_path, monkeypatch, capsys):
    assert run() == 0
    old = weights(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(conversations.ConversationBatches, "__getitem__", fail)
        assert run("--lr", 0.01, "--overwrite") == 1
    assert weights(tmp_path / "out") == old
    assert run("--lr", 0.01) == 1, "without --resume it would be replaced unasked"
    assert run("--lr", 0.01, "--resume") == 0
    assert "is finished" not in capsys.readouterr().out
    assert weights(tmp_path / "out") != old and list(files(tmp_path / "out")) == ADAPTER
    assert run("--lr", 0.01, "--resume") == 0
    assert "is finished" in capsys.readouterr().out


REFUSED = ["--checkpoint-every 0", "--steps 0", "--eval-every 2", "--max-grad-norm 0", "--workers 0", "--accumulate 0"]


@pytest.mark.parametrize("options", REFUSED)
def test_a_run_that_is_refused_overwrites_nothing(options, run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint.safetensors").write_text("hours of work")
    before = files(tmp_path / "out")
    assert run("--overwrite", *options.split()) == 1
    assert files(tmp_path / "out") == before


def test_half_an_adapter_is_not_a_finished_one(run, tmp_path, capsys):
    assert run() == 0
    (tmp_path / "out" / "adapter_config.json").unlink()
    assert run("--resume") == 1
    assert "adapter_config.json was changed or damaged after the run" in capsys.readouterr().err


@pytest.mark.parametrize(("first", "then"), [([], ["--full"]), (["--full"], [])], ids=["adapter", "model"])
def test_a_folder_has_an_adapter_or_a_model_but_not_both(first, then, run, tmp_path, capsys):
    """Other libraries would load both from one folder, and put the adapter on the wrong base."""
    assert run(*first) == 0
    before = files(tmp_path / "out")
    assert run(*then, "--overwrite") == 1
    found, kind = ("an adapter", "a model") if then else ("a model", "an adapter")
    assert f"belongs to {found}, but this run saves {kind}; choose another --output" in capsys.readouterr().err
    assert files(tmp_path / "out") == before


OTHERS = {
    "another file": (lambda jsonl: ["--data", jsonl(DATA[:3], "other.jsonl")], "digest of the data was"),
    "another max_length": (lambda jsonl: ["--max-length", "85"], "digest of the data was"),
    "another seed": (lambda jsonl: ["--seed", "1"], "seed was 0, now 1"),
    "another rank": (lambda jsonl: ["--r", "4"], "adapter was"),
    "another lr": (lambda jsonl: ["--lr", "0.5"], "optimizer was AdamW"),
}


@pytest.mark.filterwarnings("ignore:.*cut to max_length")
@pytest.mark.parametrize("case", OTHERS)
def test_another_run_is_not_resumed(case, run, jsonl, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(conversations, "ConversationBatches", Interrupted)
        assert run() == 130
    before = files(tmp_path / "out")
    options, message = OTHERS[case]
    assert run("--resume", *options(jsonl)) == 1
    errors = capsys.readouterr().err.splitlines()[-1]
    assert "checkpoint.safetensors belongs to another run: " in errors and message in errors
    assert files(tmp_path / "out") == before


def test_another_base_is_not_resumed(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(conversations, "ConversationBatches", Interrupted)
    base = ln.load_model("tiny")
    ln.save_model(base, tmp_path / "base")
    assert run("--model", tmp_path / "base") == 130
    base.model.layers[2].mlp.down_proj.weight.value *= 1.01
    ln.save_model(base, tmp_path / "base")
    assert run("--model", tmp_path / "base", "--resume") == 1
    assert "belongs to another run: digest of the frozen weights was" in capsys.readouterr().err


def test_incomplete_files_of_a_killed_process_are_removed_and_no_others(run, tmp_path):
    left = tmp_path / "out" / "checkpoint.safetensors.0123456789abcdef0123456789abcdef.tmp"
    left.mkdir(parents=True)
    (left / "checkpoint.safetensors").write_text("half")
    (left / ".tmp1a2B3c").write_text("half of what safetensors writes")
    (tmp_path / "out" / f"history.json.{'0' * 32}.tmp").write_text("half, as a file: so older versions wrote")
    for name in ("mine.tmp", "notes.txt"):
        (tmp_path / "out" / name).write_text("of the user")
    assert run() == 0
    assert list(files(tmp_path / "out")) == sorted([*ADAPTER, "mine.tmp", "notes.txt"])


# ------------------------------------------------------------------------------------------------------------- bad input

WRONG = {
    "no such file": (
        ["--data", "none.jsonl"],
        r"no data set 'none.jsonl': there is no such file, and the package contains [",
    ),
    "no such model": (["--model", "large"], "no model 'large'"),
    "no held-out file": (["--heldout", "none.jsonl"], "no data set 'none.jsonl'"),
    "no steps": (["--steps", "0"], "--steps 0; expected at least 1"),
    "no records to evaluate on": (["--eval-every", "2"], "--eval-every 2 needs held-out records; add --heldout FILE"),
    "batches of none": (["--batch-size", "0"], "--batch-size 0; expected at least 1"),
    "updates of none": (["--accumulate", "0"], "--accumulate 0; expected at least 1"),
    "longer than the model": (
        ["--max-length", "513"],
        "--max-length 513; expected at most 512, because this model's limit is 512 tokens",
    ),
    "no length": (["--max-length", "1"], "--max-length 1; expected at least 2"),
    "an unknown layer": (["--target-modules", "q_prj"], "'q_prj' matches no linear layer"),
    "a rank of none": (["--r", "0"], "r = 0; the rank must be at least 1"),
    "dropping all": (["--lora-dropout", "1"], "lora_dropout = 1.0"),
    "a negative rate": (["--lr", "-1"], "lr = -1.0; expected a number ≥ 0"),
    "a longer warm-up than run": (["--warmup", "9"], "--warmup 9; expected at most --steps 3"),
    "no clipping by 0": (["--max-grad-norm", "0"], "max_grad_norm = 0.0; expected a number > 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line_and_leaves_no_folder(case, run, tmp_path, capsys):
    options, message = WRONG[case]
    assert run(*options) == 1
    error = capsys.readouterr().err
    assert error.startswith("lora_np train: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("epochs", ["0", "-1", "nan", "inf"])
def test_epochs_are_a_number_above_0(epochs, jsonl, tmp_path, capsys):
    given = ["--model", "tiny", "--data", jsonl(), "--output", str(tmp_path / "out")]
    assert main(["train", *given, "--epochs", epochs]) == 1
    assert f"--epochs {float(epochs)}; expected a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 2), (64, 2)])
def test_by_default_one_thread_per_core_shares_each_batch(cores, expected, jsonl, tmp_path, monkeypatch):
    monkeypatch.setattr(command.os, "cpu_count", lambda: cores)
    seen = []

    def stop(model, tokens, targets, rng, workers, dloss):
        seen.append(workers)
        raise ValueError("seen enough")

    monkeypatch.setattr(sys.modules["lora_np.training.loop"], "loss_and_gradients", stop)
    given = [*RUN[:-2], "--data", jsonl(), "--output", str(tmp_path / "out")]
    assert main(["train", *given]) == 1 and seen == [expected]


def test_an_output_that_is_a_file_is_refused(run, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert run("--overwrite") == 1
    assert "out is a file; expected a folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_options_that_exclude_each_other_are_refused(run, capsys):
    for options in (["--epochs", "2"], ["--resume", "--overwrite"]):
        with pytest.raises(SystemExit):
            run(*options)
        assert "not allowed with argument" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ SmolLM2


@pytest.mark.smollm2
@pytest.mark.skipif(DEVICE != "numpy", reason="one device's timing is enough")
def test_two_steps_teach_smollm2_something(jsonl, tmp_path, capsys):
    given = [
        "--data",
        jsonl([DATA[0]]),
        "--heldout",
        jsonl([DATA[0]], "heldout.jsonl"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(["train", *given, "--steps", "2", "--batch-size", "1", "--lr", "0.003"]) == 0
    rows = losses(tmp_path / "out")
    assert rows[-1]["heldout"] < rows[0]["heldout"] - 0.3
    assert "generate --model smollm2-135m --adapter" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2-135m"
    assert (
        methods.METHODS["lora"].options["target_modules"].default == "all-linear" and len(config["target_modules"]) == 7
    )
