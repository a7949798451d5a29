"""python -m lora_np serve: an HTTP server for one base and many adapters, which OpenAI's clients understand."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "serve a model and many adapters over HTTP, in OpenAI's protocol"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        default="smollm2-135m",
        help="as in load_model: a name, a Hugging Face folder, a .gguf file (default %(default)s)",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        type=_named_folder,
        metavar="NAME=FOLDER",
        help="serve what save_pretrained, train or PEFT wrote to FOLDER as the model NAME; may be given again",
    )
    add(
        "--adapters",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="where /v1/load_lora_adapter may load others from, with all below it; may be given again",
    )
    add("--host", default="127.0.0.1", help="default %(default)s, this machine alone; there is no password")
    add("--port", type=int, default=8000, help="default %(default)s; 0 takes a free one")
    add("--max-batch", type=int, default=32, metavar="N", help="requests computed together (default %(default)s)")
    add("--max-queue", type=int, default=256, metavar="N", help="requests that may wait (default %(default)s)")
    add("--max-loras", type=int, default=64, metavar="N", help="adapters in memory (default %(default)s)")


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=FOLDER")
    return name, Path(folder)


def run(arguments: argparse.Namespace) -> None:
    from ..pretrained import load_model, load_tokenizer
    from ..serve import AdapterServer
    from ..serve.http import create_app, make_server

    base = Path(arguments.model).name  # of a path, what it is called
    engine = AdapterServer(
        load_model(arguments.model),
        max_batch=arguments.max_batch,
        max_queue=arguments.max_queue,
        max_loras=arguments.max_loras,
        folders=[*arguments.adapters, *(folder for _, folder in arguments.adapter)],
    )
    for name, folder in arguments.adapter:
        if name == base:
            raise ValueError(f"--adapter {name}=…: {name} is the base's name")
        engine.load_adapter(name, folder.resolve())
    app = create_app(engine, load_tokenizer(arguments.model), base)
    make_server(app, arguments.host, arguments.port, _say).run()


def _say(url: str) -> None:
    print(f"{url}/v1", flush=True)
