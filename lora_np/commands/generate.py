"""python -m lora_np generate: generate text with a model, with or without an adapter."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import ByteTokenizer, Tokenizer
from ..peft import PeftModel
from ..quantization import QUANT_TYPES
from ..transformer import Transformer
from .help_page import add_model, counted

HELP = "let a model answer a question or continue a text"
USAGE = "[PROMPT ...] [options]"
DESCRIPTION = """Let a model answer a question or continue a text, with or without an adapter.

With one PROMPT, the text is printed token by token. With several PROMPTs, all
texts are generated as one batch and then printed. Without PROMPT, the text from
a pipe is the prompt; in a terminal, a conversation starts. An empty line ends
the conversation.

examples:
  python -m lora_np generate --adapter keeper/ "Why does bread rise?"
  python -m lora_np generate --model tiny --raw --temperature 0.8 "def main("

The text is printed on stdout, and the speed on stderr."""
MAX_NEW_TOKENS = 256

Message = dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    models = parser.add_argument_group("model")
    add_model(models)
    models.add_argument(
        "--adapter", type=Path, metavar="FOLDER", help="adapter from `train`, save_pretrained or PEFT (default: none)"
    )
    models.add_argument(
        "--quantize",
        choices=QUANT_TYPES,
        help="store the weights in 4 bits, as `train --quantize` does (less memory, but slower; default: no)",
    )
    prompts = parser.add_argument_group("prompt")
    prompts.add_argument("prompts", nargs="*", metavar="PROMPT", help="a question or the beginning of a text")
    form = prompts.add_mutually_exclusive_group()
    form.add_argument(
        "--chat",
        action="store_true",
        default=None,
        help="the prompt is a user's message; print the answer (default for a model with a chat template, except tiny)",
    )
    form.add_argument(
        "--raw",
        dest="chat",
        action="store_false",
        help="the prompt is the beginning of a text; print the text with its continuation (default for tiny and for "
        "models without a chat template)",
    )
    prompts.add_argument("--system", metavar="TEXT", help="system message of the conversation (default: none)")
    sampling = parser.add_argument_group("generation")
    sampling.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"largest number of new tokens (default {MAX_NEW_TOKENS}, or fewer if the model's limit is reached)",
    )
    sampling.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0: always choose the most likely token; above 0: sample from softmax(logits / T) (default 0)",
    )
    sampling.add_argument(
        "--top-k", type=int, metavar="K", help="sample only from the K most likely tokens (default: all)"
    )
    sampling.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample only from the smallest set of most likely tokens with total probability P (default: all)",
    )
    sampling.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sampling (default %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    from ..pretrained import load_tokenizer

    sampling = _sampling(arguments)
    prompts = arguments.prompts or _piped()
    tokenizer = load_tokenizer(arguments.model)
    chat = arguments.chat
    if chat is None:  # "tiny" has a chat template for training, but was not trained with it
        chat = tokenizer.chat_template is not None and not isinstance(tokenizer, ByteTokenizer)
    if arguments.system is not None and not chat:
        raise ValueError(
            "--system needs a conversation, but this prompt is the beginning of a text; add --chat, or leave out --system"
        )
    if not chat and not all(prompts):
        raise ValueError("a prompt is empty; expected the beginning of a text")
    system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    generator = TextGenerator(_load(arguments), tokenizer, arguments.max_new_tokens, sampling)
    if not prompts:
        _converse(generator, system, chat)
    elif len(prompts) == 1:
        if not chat:
            print(prompts[0], end="", flush=True)
        generator.run([_encode(tokenizer, prompts[0], system, chat)], show=_show)
        print()
    else:
        texts = generator.run([_encode(tokenizer, prompt, system, chat) for prompt in prompts])
        print("\n\n".join(f">>> {p}\n{t}" if chat else p + t for p, t in zip(prompts, texts, strict=True)))
    print(generator.speed(), file=sys.stderr)


def _sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of sampling. Raises ValueError for a wrong setting. The settings are checked before the model
    is loaded."""
    from ..transformer.generation import Sampling

    Sampling(arguments.temperature, arguments.top_k, arguments.top_p)
    if arguments.temperature == 0 and (arguments.top_k, arguments.top_p) != (None, None):
        raise ValueError(
            "--top-k and --top-p have no effect at temperature 0, which does not sample; add --temperature 1"
        )
    if arguments.seed < 0:
        raise ValueError(f"--seed {arguments.seed}; expected at least 0")
    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {arguments.max_new_tokens}; expected at least 1")
    return {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "seed")}


def _piped() -> list[str]:
    """Return a list with the text from a pipe, without the last newline; return [] if stdin is a terminal."""
    if sys.stdin.isatty():
        return []
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8")
    text = sys.stdin.read().removesuffix("\n")
    if not text:
        raise ValueError(
            "no prompt; give a prompt as an argument or through a pipe, or start a conversation in a terminal"
        )
    return [text]


def _load(arguments: argparse.Namespace) -> Transformer | PeftModel:
    from ..pretrained import load_model
    from ..quantization import QuantizedLinear

    model = load_model(arguments.model, quantize=arguments.quantize)
    if arguments.adapter is None:
        return model
    try:
        peft_model = PeftModel.from_pretrained(model, arguments.adapter)
    except ValueError as error:  # perhaps the adapter belongs to another model
        raise ValueError(f"this adapter does not fit {arguments.model}: {error}") from None
    if not peft_model.mergeable or any(isinstance(m, QuantizedLinear) for _, m in model.named_modules()):
        return peft_model  # not a change of weights, or the weights have 4 bits: it cannot be merged
    # merging costs the time of about three tokens and saves 8 % of the time per token (r = 8, all-linear)
    return peft_model.merge_and_unload()


def _encode(tokenizer: Tokenizer, prompt: str, before: list[Message], chat: bool) -> list[int]:
    """Return the token ids of a prompt or, if `chat` is True, of the conversation that ends with the prompt."""
    if not chat:
        return tokenizer.encode(prompt).tolist()
    return tokenizer.apply_chat_template([*before, {"role": "user", "content": prompt}]).tolist()


def _show(text: str) -> None:
    print(text, end="", flush=True)


@dataclass
class TextGenerator:
    """Generates text, and counts the generated tokens and the seconds of all calls."""

    model: Transformer | PeftModel
    tokenizer: Tokenizer
    max_new_tokens: int | None
    sampling: dict[str, Any]
    tokens: int = 0
    seconds: float = 0.0

    def run(self, prompts: Sequence[list[int]], show: Callable[[str], None] | None = None) -> list[str]:
        """Return the text that follows each prompt. A prompt is a list of token ids. `show` is called with each new
        piece of text."""
        from ..files import TextStream
        from ..transformer import generate

        streams, texts = [TextStream(self.tokenizer, ids) for ids in prompts], ["" for _ in prompts]

        def add(row: int, text: str) -> None:
            texts[row] += text
            if show is not None:
                show(text)

        prefix = len(self.model.new_cache(1, self.model.active_adapter)) if isinstance(self.model, PeftModel) else 0
        room = self.model.config.max_position_embeddings - prefix - max(map(len, prompts))
        started = time.perf_counter()
        new = generate(
            self.model,
            prompts,
            self.max_new_tokens or max(1, min(MAX_NEW_TOKENS, room)),
            stop_tokens=self.tokenizer.stop_token_ids,
            on_token=lambda row, token: add(row, streams[row].add(token)),
            **self.sampling,
        )
        for row, stream in enumerate(streams):
            add(row, stream.end())
        self.seconds += time.perf_counter() - started
        self.tokens += sum(map(len, new))
        return texts

    def speed(self) -> str:
        """Return the number of tokens, the seconds and the speed as text. The seconds include reading the prompts."""
        return f"{counted(self.tokens, 'token')} in {self.seconds:.1f} s, {self.tokens / max(self.seconds, 1e-9):.1f} tokens/s"


def _converse(generator: TextGenerator, system: list[Message], chat: bool) -> None:
    """Answer each line typed in a terminal, given the conversation so far.

    If `chat` is False, continue each line as a separate text.
    """
    messages = list(system)
    while (prompt := _ask()).strip():
        if not chat:
            _show(prompt)
        (text,) = generator.run([_encode(generator.tokenizer, prompt, messages, chat)], show=_show)
        print("\n")
        messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]


def _ask() -> str:
    """Return a line from the terminal, or "" after an empty line or the end of the input (Ctrl-D)."""
    try:
        return input(">>> ")
    except EOFError:
        print()
        return ""
