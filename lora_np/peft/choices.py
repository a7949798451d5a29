"""The command-line interface of a method: its names for `train --method`, their options, and a default learning rate.

Each method defines its names in its own file, and the commands collect them from the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from .config import PeftConfig


@dataclass(frozen=True)
class Option:
    """A field of a configuration as a command-line option: its default and argparse's settings.

    `help` contains {} where the default is inserted. An option with the default False is a flag without a value.
    """

    default: Any
    help: str
    metavar: str | None = None
    type: Callable[[str], Any] | None = None
    choices: Collection[str] | None = None


@dataclass(frozen=True)
class Choice:
    """A name of `--method`: its configuration class, its options, and a learning rate from which to start a search.

    options: fields of the configuration that are options. fixed_fields: fields that this name sets. optimizer: options
    of the optimizer, which are not fields of the configuration.
    """

    lr: float
    config: type[PeftConfig] | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    fixed_fields: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Option] = field(default_factory=dict)

    def configuration(self, **given: Any) -> PeftConfig | None:
        """Return the configuration with the given fields; None for full fine-tuning.

        Raises as the configuration does.
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
