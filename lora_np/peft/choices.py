"""What a terminal offers of a method: its names for `train --method`, the options that each takes, and a learning rate.

Each method says it in its own file, and the commands collect it from the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from .config import PeftConfig


@dataclass(frozen=True)
class Option:
    """A field of a configuration on the command line: its default, and argparse's settings, with the default for {} in `help`.

    Where the default is False it is a switch.
    """

    default: Any
    help: str
    metavar: str | None = None
    type: Callable[[str], Any] | None = None
    choices: Collection[str] | None = None


@dataclass(frozen=True)
class Choice:
    """One name of `--method`: the configuration that it means, its options, and where to begin a search of the learning rate.

    takes: the fields of the configuration that are options. means: the fields that choosing this name decides. optimizer: options
    of the optimizer, which are no fields of the configuration.
    """

    lr: float
    config: type[PeftConfig] | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    fixed_fields: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Option] = field(default_factory=dict)

    def configuration(self, **given: Any) -> PeftConfig | None:
        """The configuration that it means, with what is given; None for full fine-tuning. Raises as the configuration does."""
        defaults = {name: option.default for name, option in self.options.items()}
        return self.config(**(defaults | given | {**self.fixed_fields})) if self.config else None


def target_modules(text: str) -> str | list[str]:
    """What a terminal says for `target_modules`: a list has commas between its names."""
    return text.split(",") if "," in text else text


TARGETS = Option(
    "all-linear",
    "layers that get an adapter: {} (default), names separated by commas, or a regular expression",
    "NAMES",
    target_modules,
)
