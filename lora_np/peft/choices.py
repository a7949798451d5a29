"""The command-line interface of a method: the method's names for `train --method`, and for each name the options and a
default learning rate.

The file of a method defines the names of this method, and the commands read all names from the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from .config import PeftConfig


@dataclass(frozen=True)
class Option:
    """A command-line option for one field of a configuration: the default value and the settings of argparse.

    In the text `help`, `{}` stands for the default value. An option with the default False is a flag without a value.
    """

    default: Any
    help: str
    metavar: str | None = None
    type: Callable[[str], Any] | None = None
    choices: Collection[str] | None = None


@dataclass(frozen=True)
class Choice:
    """A name for `train --method`, with a configuration class, command-line options and a default learning rate.

    `options`: fields of the configuration that the command line can set. `fixed_fields`: fields that this name sets to
    a fixed value. `optimizer`: options that are fields of the optimizer, not of the configuration.
    """

    lr: float
    config: type[PeftConfig] | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    fixed_fields: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Option] = field(default_factory=dict)

    def configuration(self, **given: Any) -> PeftConfig | None:
        """Return the configuration with the given values of its fields, or None for full fine-tuning.

        Raises the same errors as the configuration class.
        """
        defaults = {name: option.default for name, option in self.options.items()}
        return self.config(**(defaults | given | {**self.fixed_fields})) if self.config else None


def target_modules(text: str) -> str | list[str]:
    """Return the value of `--target-modules`: a text with commas is split into a list."""
    return text.split(",") if "," in text else text


TARGETS = Option(
    "all-linear",
    "layers that get an adapter: {} (default), names separated by commas, or a regular expression",
    "NAMES",
    target_modules,
)
