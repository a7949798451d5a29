"""The competitors of the speed study: LoRA and generation in this library and in PyTorch, and a lower bound.

Each competitor runs in its own process, `python -m lora_np.studies.timing.competitors`. Therefore the memory of each
competitor can be measured alone, and the thread settings of one library do not affect another library. The process
reads one line of JSON with "competitor" and "case", builds this competitor and runs its first steps. Each further line
is a number of steps: the process runs that many steps and writes their seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from ... import AdamW, LoraConfig, PeftModel, Transformer, TransformerConfig, get_peft_model, load_model, load_tokenizer
from ...memory import keep_freed_memory
from ...ops import IGNORE_INDEX
from ...ops.few_rows import times_transposed
from ...optional import extra
from ...quantization import QuantizedLinear, dequantize_4bit, quantize_model
from ...training.parallel import loss_and_gradients
from ...transformer import generate
from . import machine

WARM_UP = 2  # steps, whose results are compared; the second step depends on the first backward pass and update
LEARNING_RATE = 1e-4
PROMPT = "Low-rank adaptation freezes a model's weights and trains a narrow bypass of rank r beside each of them. "

Step = Callable[[], Any]  # runs one step and returns a result that all competitors share: the loss, or the new tokens


@dataclass(frozen=True)
class Case:
    """One workload to time: a model and a batch.

    If `model` is a name, `load_model` loads this model. If `model` is None, the model has the configuration `shape` and
    random weights. If `new_tokens` is 0, the workload is a training step of LoRA on all linear layers except the head.
    Otherwise the workload is the generation of `new_tokens` tokens after prompts of `seq_len` tokens.
    """

    name: str
    batch_size: int
    seq_len: int
    model: str | None = None
    shape: Mapping[str, Any] = field(default_factory=dict)
    r: int = 8
    lora_alpha: float = 16
    new_tokens: int = 0

    @property
    def tokens(self) -> int:
        """The number of tokens that a training step reads or that generation writes."""
        return self.batch_size * (self.new_tokens or self.seq_len)

    def random_tokens(self, vocab_size: int) -> np.ndarray:
        """Return random token ids, shape (b, t), int64; they are the same for all competitors."""
        return np.random.default_rng(0).integers(0, vocab_size, (self.batch_size, self.seq_len))

    def base(self) -> Transformer:
        """Load or create the model in float32, in host memory."""
        if self.model is None:
            return Transformer.random(TransformerConfig(**self.shape))
        return load_model(self.model, device="numpy")

    def lora(self, quantized: bool = False) -> PeftModel:
        """Return the model with a LoRA adapter: A is random, B = 0.

        If `quantized` is true, the base is stored in NF4 with double quantisation.
        """
        config = LoraConfig(r=self.r, lora_alpha=self.lora_alpha, target_modules="all-linear")
        return get_peft_model(quantize_model(self.base()) if quantized else self.base(), config)


def threads() -> int:
    """Return the number of threads that this process may use."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


def ours(case: Case, workers: int = 1, quantized: bool = False) -> Step:
    """Return a training step of this library: forward, backward and AdamW, as in `train`.

    With one worker, the BLAS uses all threads.
    """
    model, optimizer = case.lora(quantized), AdamW(lr=LEARNING_RATE)
    trainable = [(name, p) for name, p in model.named_parameters() if p.trainable]
    tokens = case.random_tokens(model.config.vocab_size)
    targets = np.full_like(tokens, IGNORE_INDEX)
    targets[:, :-1] = tokens[
        :, 1:
    ]  # as `labels=tokens` in transformers: each token predicts the next; the last token has no target

    def step() -> float:
        model.zero_grad()
        loss = loss_and_gradients(model, tokens, targets, np.random.default_rng(0), workers)
        optimizer.step(trainable)
        return float(loss)

    return step


def dequantising(case: Case) -> Step:
    """Return a step that only dequantises the frozen matrices, as often as a QLoRA step dequantises them.

    Each worker dequantises each matrix once to compute y, and once more to compute dx, if dx is needed.
    """
    layers = [m for _, m in quantize_model(case.base()).named_modules() if isinstance(m, QuantizedLinear)]
    decoded = [*layers, *reversed(layers[3:])]  # q, k and v of the first block need no dx

    def run(_: int) -> None:
        for layer in decoded:
            dequantize_4bit(layer.weight.value)

    def step() -> int:
        with ThreadPoolExecutor(threads()) as pool:
            list(pool.map(run, range(threads())))
        return 0

    return step


def peft_step(case: Case, compiled: bool = False) -> Step:
    """Return the training step of `ours` in PyTorch with PEFT; if `compiled` is true, torch.compile is applied."""
    import torch

    torch.set_num_threads(threads())
    mine = case.lora()
    model = in_peft(mine)
    tokens = torch.from_numpy(case.random_tokens(mine.config.vocab_size))
    del mine
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    if compiled:
        model = torch.compile(model)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def in_peft(mine: PeftModel) -> Any:
    """Return a model of this library in PyTorch with PEFT. The adapter must be LoRA on all linear layers."""
    import peft

    model = in_transformers(mine.config)
    for i, (name, one) in enumerate(mine.peft_config.items()):
        assert isinstance(one, LoraConfig)
        shape = {"r": one.r, "lora_alpha": one.lora_alpha, "target_modules": "all-linear"}
        config = peft.LoraConfig(**shape, task_type="CAUSAL_LM", lora_dropout=0.0)
        if i == 0:
            model = peft.get_peft_model(model, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    copy_weights(mine, model)
    return model


def in_transformers(config: TransformerConfig) -> Any:
    """Return a PyTorch model of this configuration from transformers, with random weights."""
    import transformers

    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_dict()))


def copy_weights(mine: Any, theirs: Any) -> None:
    """Copy the weights of our model into the PyTorch model, by name.

    Raises KeyError if a name is missing in the PyTorch model.
    """
    import torch

    values = {name: p.value for name, p in mine.named_parameters()}
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.copy_(torch.from_numpy(values.pop(name)))
    if values:
        raise KeyError(f"PyTorch's model has no parameters with the names {sorted(values)[:4]}")


def frozen_products(config: TransformerConfig) -> list[tuple[int, int, bool]]:
    """Return (out, in, needs_dx) for each frozen matrix, in the order of the forward pass, with the head last.

    `needs_dx` is True if the backward pass computes dx = dy W for the matrix. No trained parameter lies below the first
    block, so the layers q, k and v of the first block need no dx.
    """
    d, f = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    products = []
    for layer in range(config.num_hidden_layers):
        products += [(out, d, layer > 0) for out in (q, kv, kv)]
        products += [(d, q, True), (f, d, True), (f, d, True), (d, f, True)]
    return [*products, (config.vocab_size, d, True)]


def floor_flops(case: Case, config: TransformerConfig) -> int:
    """Return the FLOPs of the products with frozen matrices: 2·N·out·in for N tokens and a matrix W (out, in)."""
    return sum(2 * case.tokens * out * in_ * (1 + needs_dx) for out, in_, needs_dx in frozen_products(config))


def floor(case: Case) -> Step:
    """Return a step that computes only the products with frozen matrices, x Wᵀ and dy W, into existing arrays.

    Either the BLAS uses all threads for each product, or the same number of Python threads share the tokens. The step
    uses the way that is faster on this machine.
    """
    config = TransformerConfig(**case.shape) if case.model is None else case.base().config
    rng = np.random.default_rng(0)
    W = [rng.standard_normal((out, in_), dtype=np.float32) for out, in_, _ in frozen_products(config)]
    ways = [products(case, config, W, workers) for workers in sorted({1, threads()})]
    return min(ways, key=lambda step: min(timed(step)[1] for _ in range(4))) if len(ways) > 1 else ways[0]


def products(case: Case, config: TransformerConfig, W: list[np.ndarray], workers: int) -> Step:
    """Return a step that multiplies `case.tokens` rows by the frozen matrices. The `workers` threads share the rows.

    The step returns the number of FLOPs.
    """
    with extra("studies", "timing on a number of threads"):
        from threadpoolctl import ThreadpoolController

    needed, blas = frozen_products(config), ThreadpoolController()
    widths = {out for out, _, _ in needed} | {in_ for _, in_, _ in needed}
    tokens = [len(rows) for rows in np.array_split(np.empty(case.tokens), workers)]
    read = [{n: np.ones((share, n), np.float32) for n in widths} for share in tokens]  # x and dy
    written = [{n: np.empty((share, n), np.float32) for n in widths} for share in tokens]  # y and dx

    def run(k: int) -> None:
        for w, (out, in_, _) in zip(W, needed, strict=True):
            np.matmul(read[k][in_], w.T, out=written[k][out])
        for w, (out, in_, needs_dx) in zip(reversed(W), reversed(needed), strict=True):
            if needs_dx:
                np.matmul(read[k][out], w, out=written[k][in_])

    def step() -> int:
        if workers == 1:
            run(0)
        else:
            with blas.limit(limits=1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
                list(pool.map(run, range(workers)))
        return floor_flops(case, config)

    return step


def writing_floor(case: Case) -> Step:
    """Return a step that computes only the products of `new_tokens` new tokens per row: no prompt, no attention, no cache.

    The products of a token need all frozen matrices and the head, each for `batch_size` rows. Most of their time is the time
    to read the matrices from memory. The step uses the layout of the matrices and the way to multiply that together are
    fastest on this machine. The step returns the number of FLOPs.
    """
    config = TransformerConfig(**case.shape) if case.model is None else case.base().config
    rng, sizes = np.random.default_rng(0), [(out, in_) for out, in_, _ in frozen_products(config)]
    x = {in_: np.ones((case.batch_size, in_), np.float32) for _, in_ in sizes}
    W = [rng.standard_normal(size, dtype=np.float32) for size in sizes]
    transposed = [np.ascontiguousarray(w.T) for w in W]
    ways: list[tuple[list[np.ndarray], Callable[[np.ndarray], Any]]] = [
        (W, lambda w: x[w.shape[1]] @ w.T),
        (W, lambda w: w @ x[w.shape[1]].T),
        (W, lambda w: times_transposed(x[w.shape[1]], w)),  # the way of this library
        (transposed, lambda w: x[len(w)] @ w),
        (transposed, lambda w: w.T @ x[len(w)].T),
    ]
    best = min(ways, key=lambda way: min(timed(lambda: [way[1](w) for w in way[0]])[1] for _ in range(4)))

    def step() -> int:
        for _ in range(case.new_tokens):
            for w in best[0]:
                best[1](w)
        return 2 * case.tokens * sum(out * in_ for out, in_ in sizes)

    del ways, W, transposed  # the best layout stays in memory
    return step


def prompts(case: Case) -> np.ndarray:
    """Return prompts from a repeated English sentence, shape (b, t). Each row starts one token after the row above."""
    ids = load_tokenizer(case.model).encode(PROMPT * (1 + case.seq_len)) if case.model else np.arange(10_000) % 10
    return np.stack([np.asarray(ids[row : row + case.seq_len]) for row in range(case.batch_size)])


def ours_generating(case: Case) -> Step:
    """Return a function that generates greedily with this library, with its key/value cache and without an adapter."""
    model, read = case.base(), prompts(case)
    return lambda: generate(model, read, case.new_tokens)


def transformers_generating(case: Case) -> Step:
    """Return a function that generates greedily with the library transformers, from the prompts of `ours_generating`."""
    import torch

    torch.set_num_threads(threads())
    mine = case.base()
    model = in_transformers(mine.config).eval()
    copy_weights(mine, model)
    del mine
    model.generation_config.eos_token_id = None  # never stop early: write the same number of new tokens
    read = torch.from_numpy(prompts(case))

    def step() -> list[list[int]]:
        wanted = {"max_new_tokens": case.new_tokens, "do_sample": False, "pad_token_id": 0}
        text = model.generate(read, attention_mask=torch.ones_like(read), **wanted)
        return text[:, case.seq_len :].tolist()

    return step


COMPETITORS: dict[str, Callable[[Case], Step]] = {
    "ours": lambda case: ours(case, workers=threads()),
    "ours, one worker": ours,
    "ours, NF4 base": lambda case: ours(case, workers=threads(), quantized=True),
    "dequantising": dequantising,
    "PEFT": peft_step,
    "PEFT compiled": lambda case: peft_step(case, compiled=True),
    "floor": floor,
    "floor, generating": writing_floor,
    "ours, generating": ours_generating,
    "transformers": transformers_generating,
}
IN_TORCH = {"PEFT", "PEFT compiled", "transformers"}


def timed(step: Step) -> tuple[Any, float]:
    """Run a step; return its result and its seconds."""
    started = time.perf_counter()
    result = step()
    return result, time.perf_counter() - started


def serve(name: str, case: Case, answer: Callable[[dict[str, Any]], None], asked: Any) -> None:
    """Build the competitor `name`, run its first steps and pass a report to `answer`.

    Then, for each number in `asked`, run that many steps and pass their seconds to `answer`. During training steps, the
    process of each competitor keeps freed memory for the next step, as `train` does.
    """
    step, building = timed(lambda: COMPETITORS[name](case))
    machine.release_freed_memory()  # of the building phase
    loaded, in_torch = machine.resident_memory().get("now"), name in IN_TORCH
    with nullcontext() if case.new_tokens else keep_freed_memory():
        results, seconds = zip(*(timed(step) for _ in range(WARM_UP)), strict=True)
        report = {"results": results, "seconds": seconds, "building": building, "loaded_bytes": loaded}
        report["blas"] = machine.torch_blas() if in_torch else machine.numpy_blas()
        report["versions"] = {library: version(library) for library in ("torch", "peft", "transformers") if in_torch}
        answer(report | {"peak_is_of_the_steps": machine.reset_peak()})  # the peak excludes loading and compiling
        for line in asked:
            each = [timed(step)[1] for _ in range(int(line))]
            answer({"seconds": each, "peak_bytes": machine.resident_memory().get("peak")})


def main() -> None:
    """Run the competitor that stdin names: answers go to the original stdout, and all other output goes to stderr."""
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    task = json.loads(sys.stdin.readline())
    serve(
        task["competitor"],
        Case(**task["case"]),
        lambda report: print(json.dumps(report), file=pipe, flush=True),
        sys.stdin,
    )


if __name__ == "__main__":
    main()
