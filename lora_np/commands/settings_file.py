"""Options from a file: `train --config my.toml`. An option on the command line wins over the same option in the file.

A key of the file is the long name of an option without the leading dashes. For example, "lr" sets --lr, and
"batch_size" or "batch-size" sets --batch-size. A value of the file is checked like a value on the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import reprlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_text

NOT_IN_A_FILE = ("help", "config", "resume", "overwrite", "dry_run")  # actions, not settings of a run
ALTERNATIVES = {"epochs": "steps", "steps": "epochs"}  # a run has only one of these options
EXPECTED: dict[Any, str] = {int: "a whole number", float: "a number"}
SHORT = reprlib.Repr()  # shortens wrong values in messages: ten lines of YAML can describe a billion words
SHORT.maxstring = SHORT.maxother = 80


def add_config(group: Any) -> None:
    """Add --config to a group of options. `use_file` reads the file."""
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="read options from a TOML file, or YAML if PyYAML is installed; options on the command line override the file "
        "(default: none)",
    )


def use_file(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Make the values in the file `given.config` the defaults of the parser's options.

    `given` contains the parsed options of the command line. Raises ValueError for an unknown key and for a wrong value.
    """
    path, options = given.config, _options(parser)
    values: dict[str, Any] = {}
    for key, value in _read(path).items():
        name = str(key).replace("-", "_")
        if name not in options:
            raise ValueError(f"{path}: unknown key {str(key)!r}; expected {', '.join(options)}")
        if name in values:
            raise ValueError(f"{path}: {name} is given twice; leave out one of the two lines")
        values[name] = _converted(path, options[name], value)
    for name, other in ALTERNATIVES.items():
        if name in values and other in values:
            raise ValueError(f"{path}: {name} and {other} cannot be used together; leave out one of the two")
        if name in values and getattr(given, other, None) is not None:
            del values[name]
    parser.set_defaults(**{name: value for name, value in values.items() if value is not False})


def save_settings(path: Path, parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Write the options of a run to a TOML file; --config with this file repeats the run. Options without a value and
    --output are left out."""
    values = {name: getattr(arguments, name) for name in _options(parser) if name != "output"}
    lines = [f"{name} = {_toml(value)}" for name, value in values.items() if value is not None and value is not False]
    text = "# The options of this run: python -m lora_np train --config train.toml --output FOLDER repeats the run.\n"
    write_text(path, text + "\n".join(lines) + "\n")


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return the options that a file can set, by key. If two options have the same key, the first one is used."""
    found: dict[str, argparse.Action] = {}
    for action in parser._actions:
        if action.dest not in NOT_IN_A_FILE:
            found.setdefault(action.dest, action)
    return found


def _read(path: Path) -> Mapping[Any, Any]:
    """Return the content of a TOML or YAML file."""
    try:
        with path.open("rb") as file:
            content = _yaml(file) if path.suffix in (".yaml", ".yml") else tomllib.load(file)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except RecursionError:
        raise ValueError(f"{path}: the lists in this file are nested too deeply; expected one value per key") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} has no keys; expected lines such as lr: 0.001")
    return content


def _yaml(file: Any) -> Any:
    try:
        import yaml
    except ModuleNotFoundError:
        raise ValueError(
            "a YAML file needs PyYAML; run `pip install pyyaml`, or use a TOML file, which needs no package"
        ) from None
    try:
        return yaml.safe_load(file)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _converted(path: Path, action: argparse.Action, value: Any) -> Any:
    """Convert a value of the file to the value that the option has on the command line."""
    if action.nargs == 0:  # a flag
        if isinstance(value, bool):
            return value
        expected = "true or false"
    else:
        convert: Any = action.type or str
        items = value if isinstance(value, list) and convert not in (str, Path) else [value]
        try:
            if items and all(isinstance(x, str | int | float) and not isinstance(x, bool) for x in items):
                result = convert(",".join(map(str, items)))  # as --target-modules q_proj,v_proj
                if action.choices is None or result in action.choices:
                    return result
        except ValueError:
            pass
        expected = f"one of {', '.join(action.choices)}" if action.choices else EXPECTED.get(convert, "text")
    raise ValueError(f"{path}: {action.dest} = {_shown(value)}; expected {expected}")


def _shown(value: Any) -> str:
    """Return a wrong value as text; a long text is shortened."""
    try:
        return SHORT.repr(value)
    except ValueError:  # Python does not write integers of more than 4,300 digits
        return "an integer with thousands of digits"


def _toml(value: Any) -> str:
    """Return a value as TOML. A JSON string is also a TOML string, if it does not contain the character DEL."""
    if isinstance(value, bool):
        return "true"
    if isinstance(value, int | float):
        return repr(value)
    text = ",".join(value) if isinstance(value, list) else os.fspath(value)
    text = text.encode("utf-8", "replace").decode("utf-8")  # a file name can have bytes that are not text
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
