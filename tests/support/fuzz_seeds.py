"""Sound files of every kind that the library reads, how each is read, and the errors that its reader documents.

The files are small, so that reading one takes milliseconds. They carry no digest where other libraries write none, for a
digest would refuse every damaged file before the reader checks the content.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf_files import write_model
from safetensors.numpy import load_file, save_file
from tokenizer_cases import byte_level_bpe, metadata_for

import lora_np as ln
from lora_np.data import conversations
from lora_np.pretrained import download
from lora_np.studies.harness import runs
from lora_np.studies.harness.table import Table

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good evening."}]
TOKENS = np.arange(12).reshape(2, 6) % 40
FILES = (FileNotFoundError, ValueError)


@dataclass(frozen=True)
class Kind:
    """A folder with files of one kind. `use` reads the folder and returns the arrays that must be finite."""

    name: str
    write: Callable[[Path], None]
    use: Callable[[Path], list[np.ndarray]]
    errors: tuple[type[Exception], ...] = FILES


@dataclass(frozen=True)
class Run:
    lr: float


def config(**changes: Any) -> ln.TransformerConfig:
    small = ln.TransformerConfig(
        vocab_size=800,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
    )
    return replace(small, **changes)


def base() -> ln.Transformer:
    return ln.Transformer.random(config(vocab_size=40, num_hidden_layers=2), seed=1)


# ------------------------------------------------------------------------------------------------------------- models


def write_folder(folder: Path) -> None:
    model = ln.Transformer.random(config(), seed=0)
    ln.save_model(model, folder)
    without_digest(folder / "model.safetensors")
    tokenizer = ln.files.tokenizer_from_gguf(metadata_for(("gpt-2", byte_level_bpe("gpt-2"))))
    tokenizer.chat_template = ln.load_tokenizer("tiny").chat_template
    tokenizer.save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text(
        '{"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}'
    )
    (folder / "generation_config.json").write_text('{"eos_token_id": [2], "bos_token_id": 1, "max_new_tokens": 20}')


def write_jinja(folder: Path) -> None:
    write_folder(folder)
    text = (
        "{%- for m in messages if m.role != 'system' %}{{ '<|' ~ m.role|upper ~ '|>' }}{{ m.content.strip()[:99] }}"
        "{%- if loop.last and add_generation_prompt %}{{ ['a', 'b']|join('-') }}{% endif %}{%- endfor %}"
    )
    (folder / "chat_template.jinja").write_text(text)
    for other in ("model.safetensors", "tokenizer.json", "special_tokens_map.json", "generation_config.json"):
        (folder / other).rename(folder / f"{other}.kept")  # only the template is damaged; `use` puts these back


def write_quantized(folder: Path) -> None:
    model = ln.Transformer.random(config(), seed=0)
    ln.save_model(ln.quantize_model(model, block_size=32, double_quant=True), folder)
    without_digest(folder / "model.safetensors")


def write_shards(folder: Path) -> None:
    ln.save_model(base(), folder)
    arrays = load_file(folder / "model.safetensors")
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(arrays)}
    for file in set(files.values()):
        save_file({name: x for name, x in arrays.items() if files[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def write_gguf(kind: GGMLQuantizationType) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        words = metadata_for(("gpt-2", byte_level_bpe("gpt-2")))
        words["tokenizer.ggml.token_type"] = words["tokenizer.ggml.token_type"].tolist()
        words["tokenizer.chat_template"] = ln.load_tokenizer("tiny").chat_template
        changes = {key.replace(".", "__"): value for key, value in words.items()}
        write_model(folder / "model.gguf", ln.Transformer.random(config(), seed=0), kind, **changes)

    return write


def without_digest(path: Path) -> None:
    save_file(load_file(path), path, {"format": "pt"})


def use_model(path: Path) -> list[np.ndarray]:
    model = ln.load_model(path, device="numpy")
    tokens = TOKENS % model.config.vocab_size
    with np.errstate(all="ignore"):
        model.forward(tokens[:, : model.config.max_position_embeddings])
    found = [p.value for _, p in model.named_parameters()]
    return [x for p in found for x in (p.arrays if isinstance(p, ln.quantization.Quantized4bit) else [p])]


def use_tokenizer(path: Path) -> list[np.ndarray]:
    tokenizer = ln.load_tokenizer(path)
    tokenizer.decode(tokenizer.encode("def f(x): return 'é😀' + x  # 12"), skip_special_tokens=True)
    if tokenizer.chat_template is not None:
        tokenizer.apply_chat_template(CHAT)
    return []


def use_folder(path: Path) -> list[np.ndarray]:
    for kept in path.glob("*.kept"):
        kept.rename(kept.with_suffix(""))
    use_tokenizer(path)
    return use_model(path)


def use_gguf(folder: Path) -> list[np.ndarray]:
    use_tokenizer(folder / "model.gguf")
    return use_model(folder / "model.gguf")


# ------------------------------------------------------------------------------------------- adapters and checkpoints

ADAPTERS = {
    "lora": ln.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    "dora": ln.LoraConfig(r=2, target_modules=r".*\.mlp\..*", use_dora=True, init_lora_weights=False),
    "vera": ln.VeraConfig(r=4, target_modules=["q_proj"]),
    "ia3": ln.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "prefix": ln.PrefixTuningConfig(num_virtual_tokens=3),
}


def write_adapter(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        ln.get_peft_model(base(), ADAPTERS[name]).save_pretrained(folder)
        without_digest(folder / "adapter_model.safetensors")

    return write


def use_adapter(folder: Path) -> list[np.ndarray]:
    model = ln.PeftModel.from_pretrained(base(), folder, is_trainable=True)
    with np.errstate(all="ignore"):
        model.forward(TOKENS)
    return [p.value for _, p in model.named_parameters() if p.trainable]


def train(path: Path) -> list[np.ndarray]:
    model = ln.get_peft_model(base(), ADAPTERS["lora"])
    ln.train(
        model,
        [(TOKENS, TOKENS)],
        ln.AdamW(lr=1e-3),
        2,
        checkpoint=path / "run.safetensors",
        resume=True,
        progress=False,
    )
    return [p.value for _, p in model.named_parameters() if p.trainable]


# ------------------------------------------------------------------------------------------------------ data and tables

RECORDS = [{"messages": CHAT}, {"prompt": "2 + 2 =", "completion": " 4"}]


def write_data(folder: Path) -> None:
    (folder / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS * 4), encoding="utf-8")


def use_data(folder: Path) -> list[np.ndarray]:
    conversations.read(folder / "data.jsonl", ln.load_tokenizer("tiny"), max_length=60)
    return []


TABLE = Table(
    "toy", "How?", "none", {"seeds": [0, 1]}, [{"r": r, "final": 1.5 / r, "curve": [1.5, 2]} for r in (1, 2, 8)]
)


def write_table(folder: Path) -> None:
    TABLE.save(folder / "toy.json")


def use_table(folder: Path) -> list[np.ndarray]:
    table = Table.load(folder / "toy.json")
    table.where(r=1), table.to_json()
    return []


def use_run(folder: Path) -> list[np.ndarray]:
    runs.run_all(lambda run: {"lr": run.lr, "validation": 0.25, "seconds": [0.5]}, [Run(1.0)], 1, folder, "toy")
    return []


def write_wheel(folder: Path) -> None:
    content = b"GGUF" + bytes(range(256)) * 40
    source = replace(download.MODELS["smollm2-135m"], size=len(content), sha256=sha256(content).hexdigest())
    download.MODELS["toy"] = source
    with zipfile.ZipFile(folder / "toy.whl", "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr(source.member, content)


def use_wheel(folder: Path) -> list[np.ndarray]:
    for old in (folder / "cache").glob("*"):
        old.unlink()
    download.cache_folder = lambda: folder / "cache"  # type: ignore[assignment]
    ln.fetch("toy", folder / "toy.whl")
    return []


MODEL_ERRORS = (FileNotFoundError, ValueError, KeyError)
KINDS = [
    Kind("model folder", write_folder, use_folder, MODEL_ERRORS),
    Kind("chat template", write_jinja, use_folder, MODEL_ERRORS),
    Kind("quantised folder", write_quantized, use_model, MODEL_ERRORS),
    Kind("shards", write_shards, use_model, MODEL_ERRORS),
    Kind("GGUF in float32", write_gguf(GGMLQuantizationType.F32), use_gguf, MODEL_ERRORS),
    Kind("GGUF in 4 bits", write_gguf(GGMLQuantizationType.Q4_1), use_gguf, MODEL_ERRORS),
    *(Kind(f"{name} adapter", write_adapter(name), use_adapter, FILES) for name in ADAPTERS),
    Kind("checkpoint", train, train, (ValueError,)),
    Kind("conversations", write_data, use_data),
    Kind("table", write_table, use_table),
    Kind("run", use_run, use_run, (ValueError,)),
    Kind("wheel", write_wheel, use_wheel, (OSError, ValueError)),
]
