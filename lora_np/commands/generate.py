"""python -m lora_np generate: text from a model, with an adapter or without, as it comes."""

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

HELP = "let a model answer, or go on with a text, with an adapter or without"
MAX_NEW_TOKENS = 256

Message = dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "prompts",
        nargs="*",
        metavar="PROMPT",
        help="one is answered as the text comes, several as one batch; with none, stdin is the prompt where something is "
        "piped in, and in a terminal you have a conversation, which an empty line ends",
    )
    add(
        "--model",
        default="smollm2-135m",
        help="as in load_model: a name, a Hugging Face folder, a .gguf file (default %(default)s)",
    )
    add("--adapter", type=Path, metavar="FOLDER", help="what save_pretrained, train or PEFT wrote; without, the base")
    add(
        "--quantize",
        choices=QUANT_TYPES,
        help="keep the weights in four bits, as `train --quantize` did: less memory, and slower, for each token decodes them",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--chat",
        action="store_true",
        default=None,
        help="a prompt is a user's message, and the answer is printed (default where a chat template came with the model)",
    )
    form.add_argument(
        "--raw",
        dest="chat",
        action="store_false",
        help="a prompt is the beginning of a text, and both are printed (default elsewhere, as for tiny)",
    )
    add("--system", metavar="TEXT", help="what the conversation's system message says")
    add(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"stop there, if the model does not before (default {MAX_NEW_TOKENS}, or what it has room for)",
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0, always the likeliest token, is the default"
    )
    sampling.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest only")
    sampling.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the fewest that have probability P together"
    )
    sampling.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default 0)")


def run(arguments: argparse.Namespace) -> None:
    from ..pretrained import load_tokenizer

    sampling = _sampling(arguments)
    prompts = arguments.prompts or _piped()
    tokenizer = load_tokenizer(arguments.model)
    chat = arguments.chat
    if chat is None:  # a model of bytes has a template to be taught with, and was not
        chat = tokenizer.chat_template is not None and not isinstance(tokenizer, ByteTokenizer)
    if arguments.system is not None and not chat:
        raise ValueError(
            "--system is part of a conversation, and this is a text to go on with: add --chat, or leave it"
        )
    system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    writer = Writer(_load(arguments), tokenizer, arguments.max_new_tokens, sampling)
    if not prompts:
        _converse(writer, system, chat)
    elif len(prompts) == 1:
        if not chat:
            print(prompts[0], end="", flush=True)
        writer.write([_encode(tokenizer, prompts[0], system, chat)], show=_show)
        print()
    else:
        texts = writer.write([_encode(tokenizer, prompt, system, chat) for prompt in prompts])
        print("\n\n".join(f">>> {p}\n{t}" if chat else p + t for p, t in zip(prompts, texts, strict=True)))
    print(writer.speed(), file=sys.stderr)


def _sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    """generate's settings, refused before a model is loaded."""
    from ..transformer.generation import Sampling

    Sampling(arguments.temperature, arguments.top_k, arguments.top_p)
    if arguments.temperature == 0 and (arguments.top_k, arguments.top_p) != (None, None):
        raise ValueError(
            "--top-k and --top-p say what to draw from, and temperature 0 draws nothing: add --temperature 1"
        )
    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {arguments.max_new_tokens}; expected at least 1")
    return {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "seed")}


def _piped() -> list[str]:
    """What is piped in, as one prompt, without the newline that `echo` puts after it; nothing where stdin is a terminal."""
    if sys.stdin.isatty():
        return []
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8")
    text = sys.stdin.read().removesuffix("\n")
    if not text:
        raise ValueError(
            "no prompt: give one as an argument or on stdin, or run this in a terminal to have a conversation"
        )
    return [text]


def _load(arguments: argparse.Namespace) -> Transformer | PeftModel:
    from ..pretrained import load_model
    from ..quantization import QuantizedLinear, quantize_model

    model = load_model(arguments.model)
    if arguments.quantize:
        if any(isinstance(m, QuantizedLinear) for _, m in model.named_modules()):
            raise ValueError(f"{arguments.model} is quantised already: leave --quantize")
        quantize_model(model, arguments.quantize)
    if arguments.adapter is None:
        return model
    try:
        peft_model = PeftModel.from_pretrained(model, arguments.adapter)
    except ValueError as error:  # it may be a good one, and for another model
        raise ValueError(f"this is no adapter for {arguments.model}: {error}") from None
    if not peft_model.mergeable or any(isinstance(m, QuantizedLinear) for _, m in model.named_modules()):
        return peft_model  # it is no ΔW, or four bits take none in: it stays beside them
    # costs about three tokens' time, and saves 8 % of each one's (r = 8, all-linear)
    return peft_model.merge_and_unload()


def _encode(tokenizer: Tokenizer, prompt: str, before: list[Message], chat: bool) -> list[int]:
    """The tokens of a prompt: of the text as it is, or of a conversation that it is the last message of."""
    if not chat:
        return tokenizer.encode(prompt).tolist()
    return tokenizer.apply_chat_template([*before, {"role": "user", "content": prompt}]).tolist()


def _show(text: str) -> None:
    print(text, end="", flush=True)


@dataclass
class Writer:
    """A model that writes text, and how fast it does: `tokens` in `seconds`, over all that it wrote."""

    model: Transformer | PeftModel
    tokenizer: Tokenizer
    max_new_tokens: int | None
    sampling: dict[str, Any]
    tokens: int = 0
    seconds: float = 0.0

    def write(self, prompts: Sequence[list[int]], show: Callable[[str], None] | None = None) -> list[str]:
        """The text that follows each prompt (token ids), up to the token that ends it. `show` gets a single one's as it comes."""
        from ..files.tokenizer import TextStream
        from ..transformer import generate

        streams, texts = [TextStream(self.tokenizer, ids) for ids in prompts], ["" for _ in prompts]

        def add(row: int, text: str) -> None:
            texts[row] += text
            if show is not None:
                show(text)

        prefix = len(self.model.new_cache(1, self.model.active_adapter)) if isinstance(self.model, PeftModel) else 0
        room = self.model.config.max_position_embeddings - prefix - max(map(len, prompts))
        eos = self.tokenizer.eos_token_id
        started = time.perf_counter()
        new = generate(
            self.model,
            prompts,
            self.max_new_tokens or max(1, min(MAX_NEW_TOKENS, room)),
            stop_tokens=() if eos is None else (eos,),
            on_token=lambda row, token: add(row, streams[row].add(token)),
            **self.sampling,
        )
        for row, stream in enumerate(streams):
            add(row, stream.end())
        self.seconds += time.perf_counter() - started
        self.tokens += sum(map(len, new))
        return texts

    def speed(self) -> str:
        """Reading the prompts is in the seconds too."""
        return f"{self.tokens} tokens in {self.seconds:.1f} s, {self.tokens / max(self.seconds, 1e-9):.1f} tokens/s"


def _converse(writer: Writer, system: list[Message], chat: bool) -> None:
    """Answer line after line of a terminal, each with what was said before; without --chat, go on with each line alone."""
    messages = list(system)
    while (prompt := _ask()).strip():
        if not chat:
            _show(prompt)
        (text,) = writer.write([_encode(writer.tokenizer, prompt, messages, chat)], show=_show)
        print("\n")
        messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]


def _ask() -> str:
    """A line from the terminal; "" for an empty one, or for the end (Ctrl-D)."""
    try:
        return input(">>> ")
    except EOFError:
        print()
        return ""
