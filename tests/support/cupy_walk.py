"""The walk: every place where the package's source reaches an array module, as ast finds it, held against CuPy's own names,
signatures and dtypes. CuPy imports without a GPU, so a machine without one can say what would fail on one.

`uses(source, module)` finds the places; `complaint(use)` says what is wrong with one, or None.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

MAKERS = {"array_module", "device_module"}  # calls of these give an array module
OPERATORS = {  # what Python's operators call
    **{ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "true_divide", ast.Pow: "power"},
    **{ast.MatMult: "matmul", ast.USub: "negative"},
}
DTYPES = "fdD"  # what all of ops runs in: float32 to train, float64 to prove, complex128 for the complex step

# Where CuPy's signature is not the whole truth: a parameter that is named and not done, a dtype that is refused.
REFUSED = {"ndarray.astype": {"casting", "subok"}, "zeros_like": {"subok"}, "ones_like": {"subok"}}
REAL_ONLY = {"add.at": ".view(real)"}  # atomic additions, which know no complex numbers: only on such a view

# Where the core may name NumPy itself, because nothing of it meets a device array.
TYPES = {
    "np.ndarray",
    "np.generic",
    "np.random.Generator",
    "np.float32",
    "np.dtype",
}  # asked for, not computed with
WARNINGS = {"np.errstate"}  # says what NumPy warns of, and computes nothing
RANDOM = {"np.random.default_rng"}  # is the host's, so that a seed means the same on every device
ON_THE_HOST = {
    "transformer.model.Transformer.random": "a model is born on the host and then moved",
    "transformer.model.Transformer._build": "a model is born on the host and then moved",
    "transformer.model.Transformer.empty": "a model is born on the host and then moved",
    "peft.lora.layer.draw_factors": "A and B are drawn on the host and then moved",
    "peft.bottleneck.BottleneckMethod.draw": "an adapter is drawn on the host and then moved",
    "peft.ia3.IA3Method.draw": "an adapter is drawn on the host and then moved",
    "peft.lora.method.LoraMethod.draw": "an adapter is drawn on the host and then moved",
    "peft.files.check_arrays": "what a file holds is on the host",
    "peft.bottleneck.truncated_normal": "an adapter is drawn on the host and then moved",
    "peft.prefix.PrefixMethod.add": "the prefix is drawn on the host and then moved",
    "peft.files.is_base_weight": "what a file holds is on the host, and what it is compared with is brought there",
    "peft.files.equal_when_rounded": "what a file holds is on the host, and what it is compared with is brought there",
    "peft.lora.from_peft.with_trained_rows": "what a file holds is on the host, and the embedding is brought there",
    "peft.lora.from_peft.with_adapted_embedding": "what a file holds is on the host, and the embedding is brought there",
    "peft.lora.from_peft.with_initial_factors": "what a file holds is on the host, and the weights are brought there",
    "peft.lora.from_peft.principal_factors": "the weights are brought to the host",
    "peft.lora.from_peft.first_factors": "the weights are brought to the host",
    "peft.lora.pissa.principal_factors": "singular vectors are found on the host and then moved",
    "peft.lora.pissa.PissaCorrection.convert_to_lora": "what a file holds is on the host",
    "peft.lora.pissa.PissaCorrection.fits": "products (out,) that product_with_random_vector brought to the host",
    "peft.management.check_tensors": "what a file holds is on the host",
    "peft.vera.VeraMethod.draw_all": "A, B, d and b are drawn on the host and then moved",
    "quantization.four_bits._look_up": "asked of a host array alone: NumPy's take writes in place where it need not check",
    "backend.scalars_to_host": "NumPy's scalars, which are on the host already",
    "training.rows.pieces": "numbers of rows, which are on the host",
    "training.rows.RowsOfMasks.__init__": "numbers of rows, which are on the host",
    "training.rows.RowsOfMasks.random": "dropout masks are drawn on the host and then moved",
    "transformer.config_checks.check_fields": "numbers of a config.json",
    "transformer.config_checks._check_float": "numbers of a config.json",
    "commands.dry_run._tokens": "numbers of batches and of tokens",
    "commands.loss_picture._figure": "losses, as a picture shows them",
    "commands.train_data.without_stop": "records, which are on the host",
    "serve.logprobs.token_logprob": "one row of logits, brought to the host",
    "transformer.generation.Sampling.penalised": "one row of logits, brought to the host to be drawn from",
    "transformer.generation.generate": "tokens, which are on the host, as a person reads them",
    "transformer.generation.read_in_chunks": "positions, counted from the mask that pad_left made",
    "ops.few_rows.in_small_blocks": "asked for host arrays alone, where BLAS is OpenBLAS",
    "ops.few_rows.in_large_blocks": "called for host arrays alone",
    "transformer.generation.pad_left": "prompts, which come from the host",
    "serve.cache.BatchCache.next_step": "positions and masks are made on the host and moved to the device of the weights",
    "serve.engine.AdapterServer.submit": "tokens, as in generate",
    "serve.engine.AdapterServer.step": "tokens, as in generate",
    "transformer.generation.Sampling.probabilities": "one row of logits, brought to the host to be drawn from",
}


@dataclass(frozen=True)
class Use:
    """One place. `name` is "exp", "add.at", "ndarray.sum" (of whatever stands before the dot), or "np.zeros"."""

    where: str
    name: str
    text: str
    called: bool = False
    positional: int | None = None  # None where a star hides the number
    keywords: tuple[str, ...] = ()


def uses(source: str, module: str) -> Iterator[Use]:
    """Every use of an array module, of an array's attribute or operator, and of NumPy itself, in the order of the source."""
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {a.asname or a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}

    def visit(node: ast.AST, place: str, modules: frozenset[str]) -> Iterator[Use]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            place = f"{place}.{node.name}"
            modules |= {name for child in ast.walk(node) for name in bound(child)}
        name = name_of(node, modules)
        if name:
            yield use(node, f"{place}:{node.lineno}", name)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, place, modules)

    def bound(node: ast.AST) -> Iterator[str]:
        """The names that are given an array module: `xp = array_module(x)`, `xp, g = array_module(x), …`"""
        for target in node.targets if isinstance(node, ast.Assign) else []:
            several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(target.elts, node.value.elts, strict=False) if several else [(target, node.value)]
            yield from (t.id for t, value in pairs if isinstance(t, ast.Name) and is_module(value, frozenset()))

    def is_module(node: ast.AST, modules: frozenset[str]) -> bool:
        if isinstance(node, ast.Call):
            return isinstance(node.func, ast.Name) and node.func.id in MAKERS
        return isinstance(node, ast.Name) and node.id in modules

    def name_of(node: ast.AST, modules: frozenset[str]) -> str | None:
        if isinstance(node, ast.BinOp | ast.UnaryOp | ast.AugAssign):
            return OPERATORS.get(type(node.op))
        if not isinstance(node, ast.Attribute):
            return None
        path, root = [], node
        while isinstance(root, ast.Attribute):
            path, root = [root.attr, *path], root.value
        if is_module(root, modules):
            return ".".join(path)
        if isinstance(root, ast.Name) and root.id == "np":
            return None if id(node) in inner else ".".join(["np", *path])
        if isinstance(root, ast.Name) and root.id in imported:
            return None  # math.sqrt, os.environ
        return f"ndarray.{node.attr}" if hasattr(np.ndarray, node.attr) and node.attr[0] != "_" else None

    def use(node: ast.AST, where: str, name: str) -> Use:
        call = calls.get(id(node))
        if call is None:
            return Use(where, name, ast.unparse(node))
        starred = any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords)
        keywords = tuple(k.arg for k in call.keywords if k.arg)
        return Use(where, name, ast.unparse(call), True, None if starred else len(call.args), keywords)

    yield from visit(tree, module, frozenset())


def complaint(use: Use) -> str | None:
    """What a GPU would stumble over in this use, or None."""
    place = use.where.partition(":")[0]
    if use.name.startswith("np."):
        fine = use.name in TYPES | WARNINGS | RANDOM or place in ON_THE_HOST
        return None if fine else f"{use.where}: {use.text} computes on the host; write xp = array_module(x), xp.…"

    import cupy

    thing: Any = cupy
    for step in use.name.split("."):
        thing = getattr(thing, step, None)
        if thing is None:
            return f"{use.where}: CuPy has no {use.name}: {use.text}"
    if place.startswith("ops.") and isinstance(thing, cupy.ufunc):
        missing = [c for c in DTYPES if not any(loop.startswith(c * thing.nin + "->") for loop in thing.types)]
        if missing:
            return f"{use.where}: CuPy's {use.name} has no loop for {', '.join(map(str, map(np.dtype, missing)))}: {use.text}"
    if use.called:
        if REAL_ONLY.get(use.name, "") not in use.text:
            return f"{use.where}: CuPy's {use.name} adds real numbers only: {use.text}"
        if refused := REFUSED.get(use.name, set()) & set(use.keywords):
            return f"{use.where}: CuPy's {use.name} names {sorted(refused)} and does not do it: {use.text}"
        try:
            bind(signature(thing), use)
        except TypeError as error:
            return f"{use.where}: CuPy's {use.name}{signature(thing)} does not take {use.text}: {error}"
    return None


def signature(function: Callable) -> inspect.Signature:
    """A function's own signature, or what the first line of its docstring says, where it is compiled or takes **kwargs."""
    try:
        own = inspect.signature(function)
        if all(p.kind is not p.VAR_KEYWORD for p in own.parameters.values()):
            return own
    except ValueError:
        pass
    line = function.__doc__.strip().splitlines()[0]
    parameters = re.search(r"\((.*)\)", line)[1].replace("\\", "")
    parameters = re.sub(r"\b\w+ (?=\w)", "", parameters)  # C's types: Py_ssize_t axis1
    return inspect.signature(eval(f"lambda {parameters}: None"))


def bind(of: inspect.Signature, use: Use) -> None:
    """Raise TypeError where a function with this signature does not take this call."""
    keywords = dict.fromkeys(use.keywords)
    if use.positional is None:
        of.bind_partial(**keywords)
    else:
        of.bind(*[None] * (use.positional + ("self" in of.parameters)), **keywords)
