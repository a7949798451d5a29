"""`train --config FILE`: the options of a TOML or YAML file, and the file that every run leaves."""

from __future__ import annotations

import json
import math
import sys
import tomllib
from pathlib import Path

import pytest

from lora_np.__main__ import _parser, main
from lora_np.commands.settings_file import save_settings, use_file


@pytest.fixture
def parsed(tmp_path):
    """`parsed(text, *options)` returns the arguments of `train` with a file of this text and these options."""

    def parsed(text, *options, name="my.toml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        parser, given = _parser(), ["train", "--config", str(path), *options]
        first = parser.parse_args(given)
        use_file(first.parser, first)
        return parser.parse_args(given)

    return parsed


TEXT = """
model = "tiny"
data = "lighthouse"
output = "keeper"
lr = 1e-3
batch-size = 4
method = "dora"
target_modules = ["q_proj", "v_proj"]
quantize = "nf4"
use_rslora = true
weight_decay = 1
"""


def test_the_values_of_a_file_are_those_of_the_same_options(parsed):
    options = "--model tiny --data lighthouse --output keeper --lr 1e-3 --batch-size 4 --method dora --weight-decay 1"
    options += " --target-modules q_proj,v_proj --quantize nf4 --use-rslora"
    expected = vars(_parser().parse_args(["train", *options.split()]))
    left_out = ("config", "parser")
    found = {name: value for name, value in vars(parsed(TEXT)).items() if name not in left_out}
    assert found == {name: value for name, value in expected.items() if name not in left_out}
    assert type(found["weight_decay"]) is float and isinstance(found["output"], Path)


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_option_of_the_command_line_wins_also_if_its_value_is_the_default(place, parsed, tmp_path):
    (tmp_path / "my.toml").write_text("batch_size = 4\nlr = 0.5\n")
    config, option = ["--config", str(tmp_path / "my.toml")], ["--batch-size", "8"]
    given = ["train", *(option + config if place == "before" else config + option)]
    parser = _parser()
    first = parser.parse_args(given)
    use_file(first.parser, first)
    arguments = parser.parse_args(given)
    assert (arguments.batch_size, arguments.lr) == (8, 0.5)


def test_options_that_exclude_each_other_are_replaced_and_not_mixed(parsed):
    assert vars(parsed("steps = 9", "--epochs", "2")).items() >= {"steps": None, "epochs": 2.0}.items()
    assert vars(parsed("epochs = 2", "--steps", "9")).items() >= {"steps": 9, "epochs": None}.items()
    assert parsed('method = "dora"', "--full").method == "full"
    with pytest.raises(ValueError, match=r"my\.toml: epochs and steps cannot be used together"):
        parsed("steps = 9\nepochs = 1")


def test_a_flag_that_is_false_is_as_good_as_absent(parsed):
    assert parsed("use_rslora = false").use_rslora is None


WRONG = {  # the text of the file → the message
    "learning_rate = 1": r"unknown key 'learning_rate'; expected model, data, heldout, output, method, .*, lr, ",
    "[lr]\nvalue = 1": r"lr = \{'value': 1\}; expected a number",
    "lr = 'fast'": r"lr = 'fast'; expected a number",
    "lr = true": r"lr = True; expected a number",
    "steps = 2.5": r"steps = 2\.5; expected a whole number",
    "steps = [1, 2]": r"steps = \[1, 2\]; expected a whole number",
    "data = ['a', 'b']": r"data = \['a', 'b'\]; expected text",
    "lr = " + "[" * 5000: "nested too deeply",
    "lr = 0x1" + "0" * 5000: "lr = .*; expected a number",
    "target_modules = []": r"target_modules = \[\]; expected text",
    "data = 2026-11-30": r"data = datetime\.date\(2026, 11, 30\); expected text",
    "quantize = 'int8'": r"quantize = 'int8'; expected one of nf4, fp4, int4",
    "use_rslora = 'yes'": r"use_rslora = 'yes'; expected true or false",
    "batch-size = 1\nbatch_size = 2": "batch_size is given twice",
    "lr = ": r"Invalid value \(at",
    b"\xff = 1": "can't decode byte 0xff",
    **{f"{name} = true": f"unknown key '{name}'" for name in ("resume", "overwrite", "dry_run", "config", "help")},
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: repr(text)[:30])
def test_a_wrong_file_is_refused_with_its_name(text, parsed):
    with pytest.raises(ValueError, match=r"^.*my\.toml: ") as error:
        parsed(text)
    with pytest.raises(ValueError, match=WRONG[text]):
        raise error.value


def test_the_command_refuses_a_wrong_file_in_one_line(tmp_path, capsys):
    (tmp_path / "my.toml").write_text("rank = 4")
    for path, message in (
        (tmp_path / "my.toml", "my.toml: unknown key 'rank'"),
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
    ):
        assert main(["train", "--config", str(path)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("lora_np train: ") and message in error and error.count("\n") == 1


def test_a_file_does_not_replace_the_options_that_a_run_needs(tmp_path, capsys):
    (tmp_path / "my.toml").write_text("steps = 1")
    for given, missing in (([], "data"), (["--data", "lighthouse"], "output")):
        assert main(["train", "--config", str(tmp_path / "my.toml"), *given]) == 1
        said = (
            f"--{missing} is missing; give the option on the command line, or the key {missing} in the file of --config"
        )
        assert said in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------- YAML


def test_yaml_is_read_if_pyyaml_is_installed(parsed):
    pytest.importorskip("yaml")
    text = (
        "lr: 1e-3  # PyYAML reads this number as text\nepochs: 2\ntarget_modules: [q_proj, v_proj]\nuse_rslora: yes\n"
    )
    arguments = parsed(text, name="my.yaml")
    assert (arguments.lr, arguments.epochs, arguments.use_rslora) == (1e-3, 2.0, True)
    assert arguments.target_modules == ["q_proj", "v_proj"]
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 12))
    for wrong in (
        f"{bomb}r: *a11",
        bomb.replace("a11:", "lr:"),
        "[" * 5000,
        "- 1",
        "",
        "a: b: c",
        "!!python/object/apply:os.getcwd []",
    ):
        with pytest.raises(ValueError, match=r"my\.yaml") as error:
            parsed(wrong, name="my.yaml")
        assert "\n" not in str(error.value)


def test_without_pyyaml_a_yaml_file_is_refused_and_toml_is_named(parsed, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(
        ValueError, match=r"my\.yml: a YAML file needs PyYAML; run `pip install pyyaml`, or use a TOML file"
    ):
        parsed("lr: 1", name="my.yml")


# ------------------------------------------------------------------------------------------------- the settings of a run

NAMES = [
    'a "quoted" \\ name',
    "zwei Zeilen\nund\x00\x1b\x7f",
    "灯台 🗼",
    "C:\\data\\my.jsonl",
    "[section] # no comment",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_settings_are_the_options_again(name, parsed, tmp_path):
    given = ["--data", name, "--lr", "1e-05", "--weight-decay", "inf", "--target-modules", "q_proj,v_proj"]
    arguments = parsed("", *given, "--use-rslora", "--output", "out", "--overwrite")
    save_settings(tmp_path / "train.toml", arguments.parser, arguments)
    again = parsed((tmp_path / "train.toml").read_bytes())
    differ = {key for key, value in vars(arguments).items() if value != vars(again)[key]}
    assert differ == {"output", "overwrite", "parser"} and again.data == name and math.isinf(again.weight_decay)


def test_a_file_name_that_is_not_text_can_be_saved(parsed, tmp_path):
    arguments = parsed("", "--data", "data\udcff.jsonl")
    save_settings(tmp_path / "train.toml", arguments.parser, arguments)
    assert tomllib.loads((tmp_path / "train.toml").read_text(encoding="utf-8"))["data"] == "data?.jsonl"


def test_a_run_leaves_its_settings_and_they_repeat_the_run(tmp_path, capsys):
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "The lamp", "completion": " is lit."}))
    (tmp_path / "my.toml").write_text(
        f'model = "tiny"\ndata = {json.dumps(str(tmp_path / "data.jsonl"))}\nr = 2\nlr = 0.5'
    )
    first, again = ["--config", str(tmp_path / "my.toml")], ["--config", str(tmp_path / "first" / "train.toml")]
    for name, given in (("first", [*first, "--steps", "2", "--lr", "0.01"]), ("again", again)):
        assert main(["train", *given, "--output", str(tmp_path / name)]) == 0
    saved, repeated = (tomllib.loads((tmp_path / name / "train.toml").read_text()) for name in ("first", "again"))
    assert saved == repeated
    expected = {"model": "tiny", "r": 2, "lr": 0.01, "steps": 2, "method": "lora", "batch_size": 8, "max_length": 512}
    assert saved.items() >= expected.items() and not saved.keys() & {"epochs", "output", "config"}
    adapters = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("first", "again")]
    assert adapters[0] == adapters[1]
    assert "train.toml" in (tmp_path / "first" / "SHA256SUMS").read_text()


def test_every_option_of_train_can_be_in_a_file_but_not_what_to_do_now(parsed):
    left_out = {"help", "config", "resume", "overwrite", "dry_run"}
    options = {action.dest for action in _parser().parse_args(["train"]).parser._actions}
    with pytest.raises(ValueError, match="unknown key 'x'; expected ") as error:
        parsed("x = 1")
    keys = str(error.value).partition("expected ")[2].split(", ")
    assert set(keys) == options - left_out and len(keys) > 30
