"""No file imports from a higher floor, `import lora_np` is fast, and public names have docstrings and annotations."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import resources
from pathlib import Path

import lora_np as ln

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lora_np"

# From the ground up; a folder's files stand together on its floor. `__init__` is `import lora_np as ln`.
FLOORS = [
    *("current_folder", "micro", "optional", "backend", "ops", "nn", "gradient_check", "files", "memory", "terminal"),
    "progress",
    *("transformer", "quantization", "data"),
    *("pretrained", "training", "peft", "costs", "serve", "__init__"),
    *("studies", "plots", "report", "exercises", "commands", "__main__"),
]

MODULES = {  # "ops.linear" → its file; a package's __init__ goes by the package's name, and ours by ""
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent.name != "sources"  # texts that notebooks are made from, and no modules
}


# ----------------------------------------------------------------------------------------------------- who imports whom


def imports(module: str) -> Iterator[str]:
    """What a module imports, in functions too, as absolute names ("lora_np.ops.linear")."""
    package = ["lora_np", *module.split(".")] if module else ["lora_np"]
    if MODULES[module].name != "__init__.py":
        package.pop()

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (origin, node.module)))
            for alias in node.names:  # `from . import ops` names a module, `from .nn import Linear` something in one
                inner = f"{origin}.{alias.name}"
                yield inner if inner.removeprefix("lora_np.") in MODULES else origin
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))


IMPORTS = {module: set(imports(module)) for module in MODULES}
OWN = {  # the same, of this package's modules alone and without its name
    module: {name.removeprefix("lora_np").lstrip(".") for name in names if name.split(".")[0] == "lora_np"}
    for module, names in IMPORTS.items()
}


def floor(module: str) -> str:
    return module.split(".")[0] or "__init__"


def height(module: str) -> int:
    return FLOORS.index(floor(module)) if floor(module) in FLOORS else len(FLOORS)


def test_every_module_has_its_floor():
    homeless = {floor(module) for module in MODULES} - set(FLOORS)
    assert not homeless, f"{sorted(homeless)}: put each where it belongs in FLOORS, above all that it imports"


def test_nothing_imports_upward():
    above = {module: sorted(name for name in OWN[module] if height(name) > height(module)) for module in MODULES}
    wrong = [f"{module} imports {names}" for module, names in above.items() if names]
    assert not wrong, "\n".join(["a reader has not met yet what is imported here:", *wrong])


def test_there_are_no_circles():
    list(TopologicalSorter(OWN).static_order())  # raises CycleError with the circle


def test_this_file_sees_the_imports_that_are_there():
    """The tests above pass on empty sets too; these imports are known."""
    assert {"ops", "ops.checks"} & OWN["nn.parameter"]
    assert "ops.checks" in OWN["ops.linear"]
    assert {"transformer", "peft", "data"} <= OWN[""]
    assert "safetensors" in IMPORTS["files.arrays"], "imports inside functions count"


PICTURES = {m for m in MODULES if m.startswith("studies.") and m.endswith(("pictures", "picture", "diagrams"))}
DRAWING = {*PICTURES, *(f"studies.harness.{name}" for name in ("style", "colours", "png", "inline"))}


def test_studies_know_nothing_of_pictures():
    assert len(PICTURES) > 15
    for module in {m for m in MODULES if floor(m) == "studies"} - DRAWING:
        drawn = {name for name in IMPORTS[module] if name.startswith("matplotlib")} | (OWN[module] & DRAWING)
        assert not drawn, f"{module} imports {sorted(drawn)}: a study returns a table, and a picture draws it"


# A table, how two groups of its rows are compared, and how its numbers are said
READING = {"studies.harness.table", "studies.harness.paired", "studies.harness.words"}


def test_pictures_know_nothing_of_training():
    for module in DRAWING:
        others = OWN[module] - DRAWING - READING - {"optional", "files"}  # files writes the picture
        assert not others, f"{module} imports {sorted(others)}: a picture takes a table, however it was made"


def test_no_core_module_needs_more_than_numpy():
    """Everything below the studies, but for files and bars, is NumPy and the standard library."""
    borrowed = {
        "files.arrays": {"safetensors", "ml_dtypes"},
        "files.gguf_reader": {"gguf"},
        "files.gguf_tokenizer": {"tokenizers"},
        "files.pickled": {"ml_dtypes"},
        "files.chat_template": {"jinja2"},
        "files.tokenizer_files": {"tokenizers"},
        "ops.few_rows": {"threadpoolctl"},
        "training.parallel": {"threadpoolctl"},
        "peft.config": {"ml_dtypes"},
        "pretrained.download": {"platformdirs"},
        "progress": {"tqdm"},
        "serve.connections": {"h11", "uvicorn"},
        "serve.http": {"starlette"},
        "serve.server": {"uvicorn"},
    }
    for module in (m for m in MODULES if height(m) < height("studies")):
        outside = {name.split(".")[0] for name in IMPORTS[module]} - sys.stdlib_module_names - {"lora_np", "numpy"}
        assert outside <= borrowed.get(module, set()), f"{module} imports {sorted(outside)}"


HEAVY = ["matplotlib", "torch", "cupy", "IPython", "tqdm", "safetensors", "transformers", "peft"]
HEAVY += ["gguf", "tokenizers", "jinja2", "ml_dtypes", "platformdirs", "starlette", "uvicorn", "joblib", "distributed"]


def test_importing_lora_np_loads_nothing_optional():
    code = f"import sys, lora_np; print(*(name for name in {HEAVY} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not loaded, f"import lora_np loads {loaded}: import them in the function that needs them"


def test_the_embedded_model_needs_safetensors_alone():
    code = "import sys, lora_np as ln; ln.load_model('tiny'), ln.load_tokenizer('tiny').encode('Hi')\n"
    code += f"print(*(name for name in {HEAVY} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= {"safetensors", "cupy"}, f"load_model('tiny') loads {loaded}"


# ------------------------------------------------------------------------------------------------------- the public API


def public_functions() -> dict[str, types.FunctionType]:
    """name → each function of lora_np.__all__, of the modules in it, and each public method of its classes."""
    found = {}
    for name in ln.__all__:
        thing = getattr(ln, name)
        inside = {name: thing}
        if inspect.ismodule(thing):
            listed = getattr(thing, "__all__", [n for n in vars(thing) if not n.startswith("_")])
            inside = {f"{name}.{n}": getattr(thing, n) for n in listed}
        for inner, value in inside.items():
            if not getattr(value, "__module__", "").startswith("lora_np"):
                continue  # a constant, or what the module itself imported
            if inspect.isfunction(value):
                found[inner] = value
            elif inspect.isclass(value):
                found |= {f"{inner}.{n}": f for n, f in methods(value)}
    return found


def methods(cls: type) -> Iterator[tuple[str, types.FunctionType]]:
    """The methods that a class of ours has or inherits and a user calls, getters of properties among them."""
    for owner in reversed(cls.__mro__):  # so that an override comes last
        if not owner.__module__.startswith("lora_np"):
            continue
        for name, member in vars(owner).items():
            if isinstance(member, property):
                name, member = f"{name} (a property)", member.fget
            member = getattr(member, "__func__", member)  # of a classmethod
            generated = not inspect.isfunction(member) or member.__code__.co_filename == "<string>"  # by @dataclass
            if not generated and (not name.startswith("_") or name in ("__init__", "__call__")):
                yield name, member


FUNCTIONS = public_functions()


def test_the_walk_over_the_public_api_finds_it():
    expected = {"train", "ops.linear_forward", "AdamW.step", "WarmupCosine.__call__", "PeftModel.merge_adapter"}
    expected |= {
        "data.corpus",
        "data.Batches.__init__",
        "costs.count",
        "Linear.freeze",
        "Linear.in_features (a property)",
    }
    assert expected <= FUNCTIONS.keys()


def test_every_public_function_has_types():
    wrong = []
    for name, function in FUNCTIONS.items():
        signature = inspect.signature(function)
        parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
        wrong += [f"{name}: {p.name} has no type" for p in parameters if p.annotation is p.empty]
        if signature.return_annotation is signature.empty:
            wrong.append(f"{name} does not say what it returns")
    assert not wrong, "\n".join(wrong)


def test_every_public_function_says_what_it_does():
    told_by_name = ("__", "(a property)")
    others = {name: function for name, function in FUNCTIONS.items() if not name.endswith(told_by_name)}
    silent = [name for name, function in others.items() if not inspect.getdoc(function)]  # or that of what it overrides
    assert not silent, f"without a docstring: {silent}"


def test_every_public_class_and_module_says_what_it_is():
    things = {name: getattr(ln, name) for name in ln.__all__} | {f"lora_np.{module}": None for module in MODULES}
    for name, thing in things.items():
        path = MODULES.get(name.removeprefix("lora_np.")) if thing is None else None
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path else inspect.getdoc(thing)
        assert doc, f"{name} has no docstring"


def test_everything_in_all_is_there_and_sorted():
    for module in (ln, ln.ops):
        assert [name for name in module.__all__ if not hasattr(module, name)] == []
        assert len(set(module.__all__)) == len(module.__all__)


def test_every_forward_has_its_backward():
    forwards, backwards = (
        {name.removesuffix(side) for name in ln.ops.__all__ if name.endswith(side)}
        for side in ("_forward", "_backward")
    )
    assert forwards == backwards, f"alone: {sorted(forwards ^ backwards)}"
    for name in forwards:
        forward, backward = (getattr(ln.ops, name + side) for side in ("_forward", "_backward"))
        assert forward.__module__ == backward.__module__, f"{name}: the derivative stands beside its function"


# ------------------------------------------------------------------------------------------------------ what is shipped


def test_types_and_the_embedded_models_are_shipped():
    assert resources.files("lora_np").joinpath("py.typed").is_file(), (
        "without py.typed no type checker looks at the types"
    )
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {"py.typed", "assets/*/*"} <= set(pyproject["tool"]["setuptools"]["package-data"]["lora_np"])


MACHINE = re.compile(r"(?<![\w.:/])/(?:home|Users|root|work|scratch|mnt)/\w|\b[A-Z]:\\+Users\b")
TEXT = {".py", ".md", ".json", ".ipynb", ".toml", ".txt", ".yml", ".yaml", ".svg", ".cfg", ""}


def test_no_file_names_a_place_on_one_persons_machine():
    assert MACHINE.search('"' + "/" + "home/me/model") and MACHINE.search("C:" + r"\Users\me"), (
        "the pattern finds nothing"
    )
    assert not MACHINE.search("https://example.org/home/page")
    folders = [ROOT / name for name in ("lora_np", "tests", "notebooks", "figures", "docs", ".github", ".ci")]
    files = [path for folder in folders for path in folder.rglob("*") if ".ipynb_checkpoints" not in path.parts]
    for path in [*files, *ROOT.glob("*")]:
        if path.is_file() and path.suffix in TEXT and path.name != ".git":  # which a worktree of one's own has
            found = MACHINE.search(path.read_text(encoding="utf-8", errors="ignore"))
            assert not found, f"{path.relative_to(ROOT)} says {found[0]!r}, which is nowhere else"
