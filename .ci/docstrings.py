"""Check the docstrings of the public API with numpydoc: each section is there, and the parameters are those of the signature.

    python .ci/docstrings.py [lora_np.ops ...]      without arguments: every public package

The public API is every name in the `__all__` of a public package, the public methods of its classes, and the classes of this
library that a public function or method returns.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Iterator

from numpydoc.validate import validate

PACKAGES = (
    *("lora_np", "lora_np.costs", "lora_np.data", "lora_np.data.conversations", "lora_np.exercises", "lora_np.files"),
    *("lora_np.nn", "lora_np.ops", "lora_np.peft", "lora_np.plots", "lora_np.pretrained", "lora_np.quantization"),
    *("lora_np.serve", "lora_np.training", "lora_np.transformer"),
)
CHECKED = {
    *("GL03", "GL05", "GL06", "GL07", "GL08", "SS02", "SS03"),  # layout of the sections; a summary, and its full stop
    *("PR01", "PR02", "PR03", "PR04", "PR07", "PR10", "RT01", "RT03", "YD01"),  # parameters and returned values
    "EX01",  # an example; tests/project/test_docstrings.py runs it
}


def public(packages: tuple[str, ...] = PACKAGES) -> Iterator[tuple[str, object]]:
    """Yield the import path and the object of each public function and class, each object once."""
    found: list[object] = []
    waiting = [(getattr(importlib.import_module(package), "__all__", ()), package) for package in packages]
    for names, package in waiting:
        for name in names:
            thing = getattr(sys.modules[package], name)
            for item in (thing, *returned_classes(thing)):
                ours = getattr(item, "__module__", "").startswith("lora_np") and hasattr(item, "__qualname__")
                if ours and not inspect.ismodule(item) and not any(item is other for other in found):
                    found.append(item)
                    yield f"{item.__module__}.{item.__qualname__}", item


def returned_classes(thing: object) -> list[type]:
    """Classes of this library that a function, or a public method of a class, names as what it returns."""
    functions = [thing, *(f for n, f in vars(thing).items() if n[0] != "_")] if inspect.isclass(thing) else [thing]
    classes = []
    for function in functions:
        try:
            hint = typing.get_type_hints(inspect.unwrap(getattr(function, "__func__", function))).get("return")
        except (TypeError, NameError, AttributeError):
            continue
        classes += [c for c in (hint, *typing.get_args(hint)) if inspect.isclass(c) and "lora_np" in c.__module__]
    return [c for c in classes if not c.__name__.startswith("_")]


def faults(path: str, thing: object) -> list[str]:
    """What numpydoc finds in one docstring; a method needs no example of its own, and a class returns nothing."""
    skipped = {"PR01"} if getattr(thing, "_is_protocol", False) else set()  # nobody calls the __init__ of a protocol
    lines = [f"{path}: {code} {text}" for code, text in validate(path)["errors"] if code in CHECKED - skipped]
    if inspect.isclass(thing):
        for name, member in vars(thing).items():
            if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, (classmethod, property))):
                errors = validate(f"{path}.{name}")["errors"]
                inherited = [code for code, _ in errors] == ["GL08"] and inspect.getdoc(getattr(thing, name))
                skipped = {"EX01", "RT01"} if isinstance(member, property) else {"EX01"}
                if not inherited:
                    lines += [f"{path}.{name}: {c} {text}" for c, text in errors if c in CHECKED - skipped]
    return lines


def main(packages: list[str]) -> int:
    """Print every fault; return 1 if there is one."""
    things = list(public(tuple(packages) or PACKAGES))
    lines = [line for path, thing in things for line in faults(path, thing)]
    print("\n".join(sorted(lines)) or f"{len(things)} public names, each with a complete docstring")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
