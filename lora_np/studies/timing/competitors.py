"""The sides of the speed study: LoRA here, LoRA in PyTorch with PEFT, and the floor; generation here and in transformers.

Each runs in a process of its own, `python -m lora_np.studies.timing.competitors`, so that its memory is its own and no library
sees the other's threads. The process reads a line {"side", "case"}, builds that side and warms it up; after that each line is
a number of steps to take, and each answer the seconds they took. So the study can let the sides take turns.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from ... import AdamW, LoraConfig, PeftModel, Transformer, TransformerConfig, get_peft_model, load_model, load_tokenizer
from ...ops import IGNORE_INDEX
from ...optional import extra
from ...quantization import QuantizedLinear, dequantize_4bit, quantize_model
from ...training.parallel import loss_and_gradients
from ...transformer import generate
from . import machine

WARM_UP = 2  # steps whose results must agree: the second comes after a backward and an update
LEARNING_RATE = 1e-4
PROMPT = "Low-rank adaptation freezes a model's weights and trains a narrow bypass of rank r beside each of them. "

Step = Callable[[], Any]  # takes one step; returns what must be the same on every side: the loss, or the new tokens


@dataclass(frozen=True)
class Case:
    """One thing to time: a model, `model` for load_model or random weights of `shape`, and a batch.

    With `new_tokens` it is generation, after prompts of `seq_len` tokens; otherwise a training step of LoRA in every linear
    layer but the head.
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
        """How many tokens a step reads, or writes in generation."""
        return self.batch_size * (self.new_tokens or self.seq_len)

    def random_tokens(self, vocab_size: int) -> np.ndarray:
        """(b, t) int64, the same on every side."""
        return np.random.default_rng(0).integers(0, vocab_size, (self.batch_size, self.seq_len))

    def base(self) -> Transformer:
        """The model, in float32 on the host."""
        if self.model is None:
            return Transformer.random(TransformerConfig(**self.shape))
        return load_model(self.model, device="numpy")

    def lora(self, quantized: bool = False) -> PeftModel:
        """The same with its adapter: A drawn, B = 0. `quantized`: over NF4 with double quantisation."""
        config = LoraConfig(r=self.r, lora_alpha=self.lora_alpha, target_modules="all-linear")
        return get_peft_model(quantize_model(self.base()) if quantized else self.base(), config)


def threads() -> int:
    """How many threads this process was given."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


def ours(case: Case, workers: int = 1, quantized: bool = False) -> Step:
    """Forward, backward and AdamW of this library, as `train` puts them together; with one worker the BLAS has the threads."""
    model, optimizer = case.lora(quantized), AdamW(lr=LEARNING_RATE)
    trainable = [(name, p) for name, p in model.named_parameters() if p.trainable]
    tokens = case.random_tokens(model.config.vocab_size)
    targets = np.full_like(tokens, IGNORE_INDEX)
    targets[:, :-1] = tokens[:, 1:]  # transformers' `labels=tokens`: each token predicts the next, the last one nothing

    def step() -> float:
        model.zero_grad()
        loss = loss_and_gradients(model, tokens, targets, workers=workers)
        optimizer.step(trainable)
        return float(loss)

    return step


def dequantising(case: Case) -> Step:
    """What a step over four bits does besides: each worker decodes every matrix for y, and again for dx where there is one."""
    layers = [m for _, m in quantize_model(case.base()).named_modules() if isinstance(m, QuantizedLinear)]
    decoded = [*layers, *reversed(layers[3:])]  # below the first block's q, k and v nothing needs dx

    def run(_: int) -> None:
        for layer in decoded:
            dequantize_4bit(layer.weight.value)

    def step() -> int:
        with ThreadPoolExecutor(threads()) as pool:
            list(pool.map(run, range(threads())))
        return 0

    return step


def peft_step(case: Case, compiled: bool = False) -> Step:
    """The same in PyTorch with PEFT, in the loop that people write; `compiled` by torch.compile."""
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
    """The same model and its adapters, which are LoRA in every linear layer, in PyTorch with PEFT."""
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
    """A random model of this configuration in PyTorch with transformers."""
    import transformers

    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_dict()))


def copy_weights(mine: Any, theirs: Any) -> None:
    """Give PyTorch's model the numbers of ours: the names are the same. Raises KeyError where one is not."""
    import torch

    values = {name: p.value for name, p in mine.named_parameters()}
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.copy_(torch.from_numpy(values.pop(name)))
    if values:
        raise KeyError(f"PyTorch's model has no {sorted(values)[:4]}")


def frozen_products(config: TransformerConfig) -> list[tuple[int, int, bool]]:
    """(out, in, whether the step needs dy W too) for each frozen matrix, in forward order, the head last.

    Below the first block nothing is trained, so its q, k and v need no dx.
    """
    d, f = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    products = []
    for layer in range(config.num_hidden_layers):
        products += [(out, d, layer > 0) for out in (q, kv, kv)]
        products += [(d, q, True), (f, d, True), (f, d, True), (d, f, True)]
    return [*products, (config.vocab_size, d, True)]


def floor_flops(case: Case, config: TransformerConfig) -> int:
    """A multiplication and an addition for each number of W, each token and each product: 2·N·out·in."""
    return sum(2 * case.tokens * out * in_ * (1 + needs_dx) for out, in_, needs_dx in frozen_products(config))


def floor(case: Case) -> Step:
    """The frozen matrix products of one step and nothing else: x Wᵀ and dy W, each into memory that is there already.

    In the faster of NumPy's two ways on this machine: the BLAS's own threads, or as many threads with some tokens each.
    """
    config = TransformerConfig(**case.shape) if case.model is None else case.base().config
    rng = np.random.default_rng(0)
    W = [rng.standard_normal((out, in_), dtype=np.float32) for out, in_, _ in frozen_products(config)]
    ways = [products(case, config, W, workers) for workers in sorted({1, threads()})]
    return min(ways, key=lambda step: min(timed(step)[1] for _ in range(4))) if len(ways) > 1 else ways[0]


def products(case: Case, config: TransformerConfig, W: list[np.ndarray], workers: int) -> Step:
    """The floor's products with `case.tokens` rows in all, shared among `workers`. A step returns its FLOPs."""
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


def prompts(case: Case) -> np.ndarray:
    """(b, t) tokens of a plain sentence, each row beginning one token later."""
    ids = load_tokenizer(case.model).encode(PROMPT * (1 + case.seq_len)) if case.model else np.arange(10_000) % 10
    return np.stack([np.asarray(ids[row : row + case.seq_len]) for row in range(case.batch_size)])


def ours_generating(case: Case) -> Step:
    """Greedy generation of this library, with its key/value cache; the base alone, as a merged adapter leaves it."""
    model, read = case.base(), prompts(case)
    return lambda: generate(model, read, case.new_tokens)


def transformers_generating(case: Case) -> Step:
    """The same in transformers."""
    import torch

    torch.set_num_threads(threads())
    mine = case.base()
    model = in_transformers(mine.config).eval()
    copy_weights(mine, model)
    del mine
    model.generation_config.eos_token_id = None  # as many new tokens as here, whatever they are
    read = torch.from_numpy(prompts(case))

    def step() -> list[list[int]]:
        wanted = {"max_new_tokens": case.new_tokens, "do_sample": False, "pad_token_id": 0}
        text = model.generate(read, attention_mask=torch.ones_like(read), **wanted)
        return text[:, case.seq_len :].tolist()

    return step


SIDES: dict[str, Callable[[Case], Step]] = {
    "ours": lambda case: ours(case, workers=threads()),
    "ours, one worker": ours,
    "ours, NF4 base": lambda case: ours(case, workers=threads(), quantized=True),
    "dequantising": dequantising,
    "PEFT": peft_step,
    "PEFT compiled": lambda case: peft_step(case, compiled=True),
    "floor": floor,
    "ours, generating": ours_generating,
    "transformers": transformers_generating,
}
IN_TORCH = {"PEFT", "PEFT compiled", "transformers"}


def timed(step: Step) -> tuple[Any, float]:
    """What a step returns, and its seconds."""
    started = time.perf_counter()
    result = step()
    return result, time.perf_counter() - started


def serve(side: str, case: Case, answer: Callable[[dict[str, Any]], None], asked: Any) -> None:
    """Build a side, warm it up and say so; then for each number in `asked` take so many steps and say their seconds."""
    step, building = timed(lambda: SIDES[side](case))
    machine.give_back_memory()  # what only the building needed
    loaded, in_torch = machine.resident_memory().get("now"), side in IN_TORCH
    results, seconds = zip(*(timed(step) for _ in range(WARM_UP)), strict=True)
    said = {"results": results, "seconds": seconds, "building": building, "loaded_bytes": loaded}
    said["blas"] = machine.torch_blas() if in_torch else machine.numpy_blas()
    said["versions"] = {name: version(name) for name in ("torch", "peft", "transformers") if in_torch}
    answer(said | {"peak_is_of_the_steps": machine.forget_peak()})  # neither loading nor compiling is in the peak
    for line in asked:
        each = [timed(step)[1] for _ in range(int(line))]
        answer({"seconds": each, "peak_bytes": machine.resident_memory().get("peak")})


def main() -> None:
    """Answer on the pipe that was stdout, and let whatever a library prints go to stderr."""
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    what = json.loads(sys.stdin.readline())
    serve(what["side"], Case(**what["case"]), lambda said: print(json.dumps(said), file=pipe, flush=True), sys.stdin)


if __name__ == "__main__":
    main()
