"""The core runs on its three dependencies alone; everything else is an extra, and an error names the extra to install."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lora_np"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = ["numpy", "safetensors", "ml_dtypes"]
STUDENT = ["models", "course", "studies", "test"]  # the extras in requirements.txt
EXTRAS = PROJECT["optional-dependencies"]

COMES_WITH = {
    "nbclient": "jupyter",
    "nbformat": "jupyter",
    "IPython": "jupyter",
    "PIL": "matplotlib",
    "h11": "uvicorn",
}  # what is imported → the package that is installed for it


def names(requirements: list[str]) -> list[str]:
    return [re.match(r"[\w-]+", requirement)[0] for requirement in requirements]


# ------------------------------------------------------------------------------------------------- what is written where


def test_the_core_needs_three_packages():
    assert names(PROJECT["dependencies"]) == CORE


def test_requirements_txt_is_the_core_and_the_students_extras():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    required = [line.partition("#")[0].strip() for line in lines]
    expected = PROJECT["dependencies"] + [package for name in STUDENT for package in EXTRAS[name]]
    assert required == [*expected, "--editable ."], (
        "pyproject.toml and requirements.txt name other packages or versions"
    )
    assert all("#" in line for line in lines), "each line gives the reason for its package"


def test_no_student_needs_pytorch_or_a_gpu():
    required = {name for extra in STUDENT for name in names(EXTRAS[extra])} | set(CORE)
    assert not {name for name in required if name.startswith(("torch", "transformers", "peft", "cupy"))}


# ------------------------------------------------------------------------------------------------ imports in the sources


def imported(path: Path) -> Iterator[tuple[str, str | None]]:
    """(package, the extra of the `with extra(…)` around it or None) of each import of another package."""

    def visit(node: ast.AST, extra: str | None) -> Iterator[tuple[str, str | None]]:
        if isinstance(node, ast.With):
            for item in node.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "extra":
                    extra = ast.literal_eval(call.args[0])
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module]
        for package in {module.partition(".")[0] for module in modules}:
            if package not in {*sys.stdlib_module_names, "lora_np", *CORE}:
                yield package, extra
        for child in ast.iter_child_nodes(node):
            yield from visit(child, extra)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), None)


IMPORTS = {
    path.relative_to(PACKAGE).as_posix(): set(imported(path))
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent.name != "sources"
}
WITHOUT = {  # folder or file → packages that it may import without an extra around them, and why
    "commands/settings_file.py": {"yaml"},  # without it a message says so, and that TOML needs no package
    "progress.py": {"tqdm"},  # without it progress is printed as lines
    "report/pictures.py": {"matplotlib"},  # it imports plots first, which has the extra around it
    "studies/": {"matplotlib", "mpl_toolkits"}  # plots imports the pictures
    | {"torch", "peft", "transformers"},  # a study asks oracles_installed first, which says what is missing
}


def test_the_walk_over_the_imports_finds_them():
    assert ("tokenizers", "models") in IMPORTS["files/tokenizer_files.py"]
    assert ("matplotlib", "course") in IMPORTS["plots.py"]
    assert ("tqdm", None) in IMPORTS["progress.py"]


def test_every_optional_import_is_inside_its_extra():
    wrong = []
    for file, imports in IMPORTS.items():
        known = {package for package, extra in imports if extra}
        known |= {package for start, packages in WITHOUT.items() if file.startswith(start) for package in packages}
        wrong += [f"{file}: {package} outside of `with extra(…)`" for package, _ in imports if package not in known]
        for package, extra in imports:
            if extra and COMES_WITH.get(package, package) not in names(EXTRAS[extra]):
                wrong.append(f"{file}: the extra {extra} does not contain {package}")
    assert not wrong, "\n".join(wrong)


# ------------------------------------------------------------------------------------------- an environment with the core

BLOCK = f"""
import sys

class OnlyTheCore:
    "Finds no module outside of the standard library, lora_np and the core's dependencies."

    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package not in sys.stdlib_module_names and not package.startswith("_") and package not in {["lora_np", *CORE]}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, OnlyTheCore())
"""

USE = """
import os, tempfile
import lora_np as ln

model = ln.get_peft_model(ln.load_model("tiny", device="numpy"), ln.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"))
batches = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=2, seq_len=16)
history = ln.train(model, batches, ln.AdamW(lr=1e-2), steps=2)
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    model.load_adapter(folder, "again")
model.set_adapter("again")
tokens, targets = batches[0]
assert float(model.loss(tokens, targets)[0]) > 0 and len(history.rows) == 2
assert ln.load_tokenizer("tiny").decode(ln.generate(model, [[72, 105]], max_new_tokens=2)[0])
print("trained")
"""

MISSING = {  # what somebody does → the first package that is missing, and its extra
    "from lora_np import plots": ("a picture", "matplotlib", "course"),
    "ln.files.tokenizer_files.tokenizer_from_folder(Path('nowhere'))": ("a tokenizer", "tokenizers", "models"),
    "chat([{'role': 'user', 'content': 'Hello'}])": ("a chat template", "jinja2", "models"),
    "ln.load_model(gguf)": ("a .gguf file", "gguf", "models"),
    "ln.pretrained.download.cache_folder()": (
        "the cache folder of this system (or set LORA_NP_CACHE)",
        "platformdirs",
        "models",
    ),
    "ln.train(model, [batch], ln.AdamW(1e-3), 1, workers=2)": ("training with workers > 1", "threadpoolctl", "studies"),
    "list(workers.each(print, [1], 1))": ("a study of several runs", "joblib", "studies"),
    "list(workers.each(print, [1], 'tcp://127.0.0.1:1'))": ("a Dask cluster", "distributed", "cluster"),
    "run_report.Report(folder, tensorboard=True)": ("--report-to tensorboard", "tensorboardX", "tensorboard"),
    "run_report._draw([], Path(folder))": ("loss.png", "matplotlib", "course"),
    "http.create_app(None, None, 'tiny')": ("the HTTP server", "starlette", "serve"),
    "server.make_server(None)": ("the HTTP server", "uvicorn", "serve"),
    "student_edition(folder)": ("writing a notebook", "jupytext", "course"),
    "notebooks.execute(Path('a.py'), Path('a.ipynb'))": ("running a notebook", "jupytext", "course"),
}

TRY = f"""
import json, os, struct, tempfile
from pathlib import Path
import lora_np as ln
from lora_np.commands import run_report
from lora_np.exercises.editions import student_edition
from lora_np.files.tokenizer import CHATML
from lora_np.report import notebooks
from lora_np.serve import http, server
from lora_np.studies.harness import workers

os.environ.pop("LORA_NP_CACHE", None)
model, batch = ln.load_model("tiny", device="numpy"), ln.data.Batches(ln.data.corpus("code", "train"), 2, 8)[0]
tokenizer = ln.load_tokenizer("tiny")
tokenizer.chat_template, chat = CHATML, tokenizer.apply_chat_template
errors = {{}}
with tempfile.TemporaryDirectory() as folder:
    gguf = Path(folder) / "model.gguf"
    gguf.write_bytes(struct.pack("<4sIQQQ1s", b"GGUF", 3, 1, 0, 1, b"a"))  # one array, and no metadata
    for code in {list(MISSING)}:
        try:
            exec(code)
        except ImportError as error:
            errors[code] = str(error)
print(json.dumps(errors))
"""


def run(code: str, *options: str) -> str:
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tiny_trains_with_the_cores_dependencies_alone():
    assert run(BLOCK + USE) == "trained\n"


@pytest.fixture(scope="module")
def errors() -> dict[str, str]:
    return json.loads(run(BLOCK + TRY))


@pytest.mark.parametrize("code", MISSING)
def test_a_missing_extra_is_named_in_one_line(code, errors):
    what, package, extra = MISSING[code]
    assert errors[code] == f"{what} needs {package}; run pip install 'lora-np[{extra}]'"


def test_a_command_says_it_too_and_fails():
    code = "from lora_np.__main__ import main; sys.stderr = sys.stdout; print(main(['exercises', 'write', 'nowhere']))"
    assert run(BLOCK + code).splitlines() == [
        "lora_np exercises: writing a notebook needs jupytext; run pip install 'lora-np[course]'",
        "1",
    ]


def test_without_tqdm_progress_is_lines():
    code = "import lora_np.progress as p; p.is_interactive = lambda: True; p.INTERVAL = -1; sys.stderr = sys.stdout\n"
    code += "with p.Progress(2, 'runs', unit='run') as bar: bar.update(1, loss=0.5)"
    assert run(BLOCK + code).startswith("runs: 1/2 runs, 0 s left, loss 0.5")


def test_without_threadpoolctl_the_train_command_takes_one_thread():
    code = "from argparse import Namespace; from lora_np.commands.train import _workers; import lora_np as ln, os\n"
    code += "os.cpu_count = lambda: 2; sys.modules['threadpoolctl'] = None; sys.stderr = sys.stdout\n"
    code += (
        "print(_workers(Namespace(workers=None, batch_size=8, method='lora'), ln.load_model('tiny', device='numpy')))"
    )
    line = "training with one thread; for more, install threadpoolctl: pip install 'lora-np[studies]'"
    assert run("import sys\n" + code).splitlines() == [line, "1"]


@pytest.mark.slow
def test_tiny_trains_in_an_environment_with_the_cores_dependencies_alone(tmp_path):
    """The same without a blocker: a virtual environment in which pip installed lora_np and what it requires."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    source = tmp_path / "source"  # a build leaves files beside the sources
    shutil.copytree(PACKAGE, source / "lora_np", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    installed = subprocess.run([*pip, "install", str(source)], capture_output=True, text=True, check=False)
    if installed.returncode and "onnection" in installed.stderr:
        pytest.skip("no package index answers here")
    assert installed.returncode == 0, installed.stderr
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-c", USE], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.stdout == "trained\n", done.stderr
    listed = subprocess.run([*pip, "list", "--format=freeze"], capture_output=True, text=True, check=True).stdout
    found = {line.partition("==")[0].replace("-", "_").lower() for line in listed.splitlines()}
    assert found - {"pip", "setuptools"} == {"lora_np", *CORE}


def test_importing_lora_np_loads_few_modules_beside_numpys():
    """150 were loaded in 0.1 s when this was written; each module costs time in every program that imports lora_np."""
    code = "import sys, numpy; before = len(sys.modules); import lora_np; print(len(sys.modules) - before)"
    assert int(run(code)) < 250
