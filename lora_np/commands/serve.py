"""python -m lora_np serve: an HTTP server for one base model and many adapters, with OpenAI's API."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from ..optional import extra
from ..serve.access import LOOPBACK, Access
from ..serve.limits import ServerLimits
from .help_page import add_model

HELP = "serve a model and its adapters over HTTP, with OpenAI's API"
USAGE = "[--adapter NAME=FOLDER ...] [options]"
DESCRIPTION = """Serve a model and its adapters over HTTP, with OpenAI's API.

The server prints its address. Use this address as base_url of OpenAI's clients.
A request's field "model" names the adapter or the base model. After Ctrl-C the
server finishes the running requests and stops; after a second Ctrl-C the server
stops at once. Refused requests are logged. The command needs the extra "serve".

examples:
  python -m lora_np serve --adapter keeper=keeper/
  python -m lora_np serve --model tiny --adapters adapters/ --port 0
  LORA_NP_API_KEY=secret python -m lora_np serve --host 0.0.0.0

  curl http://127.0.0.1:8000/v1/completions \\
       -H "Content-Type: application/json" \\
       -d '{"model": "keeper", "prompt": "Once", "max_tokens": 40}'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    models = parser.add_argument_group("model and adapters")
    add_model(models)
    models.add_argument(
        "--adapter",
        action="append",
        default=[],
        type=_named_folder,
        metavar="NAME=FOLDER",
        help="load the adapter in FOLDER under the name NAME; repeat the option for more adapters",
    )
    models.add_argument(
        "--adapters",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="allow clients to load adapters from FOLDER and its subfolders (POST /v1/load_lora_adapter), and to unload "
        "adapters; the option can be given several times; without --adapters, the server refuses these requests",
    )
    models.add_argument(
        "--max-loras",
        type=int,
        default=64,
        metavar="N",
        help="largest number of loaded adapters in memory (default %(default)s)",
    )
    address = parser.add_argument_group("address")
    address.add_argument(
        "--host",
        default=LOOPBACK,
        help="address to listen on (default %(default)s, which only this computer can reach); any other address requires "
        "an API key",
    )
    address.add_argument(
        "--port", type=int, default=8000, help="port number; 0 chooses a free port (default %(default)s)"
    )
    access = parser.add_argument_group("access")
    access.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="require this key in the header 'Authorization: Bearer KEY'; repeat the option for more keys. Other users of "
        "this computer can see the options of a command, so prefer the environment variable LORA_NP_API_KEY",
    )
    access.add_argument(
        "--allowed-hosts",
        action="append",
        default=[],
        metavar="NAME",
        help="accept this name in the header Host, for example the name of a proxy; the option can be given several "
        "times. localhost, 127.0.0.1 and the name of --host are always accepted",
    )
    access.add_argument(
        "--allowed-origins",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="accept requests from web pages of this origin, for example https://chat.example.org; the option can be "
        "given several times",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-batch",
        type=int,
        default=32,
        metavar="N",
        help="largest number of requests computed together (default %(default)s)",
    )
    limits.add_argument(
        "--max-queue",
        type=int,
        default=256,
        metavar="N",
        help="largest number of waiting requests; further requests get status 429 (default %(default)s)",
    )
    limits.add_argument(
        "--max-connections",
        type=int,
        default=ServerLimits.connections,
        metavar="N",
        help="largest number of connections; if there are more, the slowest connection is closed (default %(default)s)",
    )
    limits.add_argument(
        "--grace-period",
        type=float,
        default=ServerLimits.grace_period,
        metavar="SECONDS",
        help="seconds for running requests to finish after SIGTERM or Ctrl-C (default %(default)s)",
    )


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(
            f"{text!r} does not have the form NAME=FOLDER; for example, write keeper=keeper/"
        )
    return name, Path(folder)


def run(arguments: argparse.Namespace) -> None:
    from ..pretrained import load_model, load_tokenizer
    from ..serve import AdapterServer
    from ..serve.http import create_app
    from ..serve.server import make_server

    with extra("serve", "the HTTP server"):  # an error comes now, not after the model is loaded
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    _check(arguments)
    access = _access(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    engine = AdapterServer(
        load_model(arguments.model),
        max_batch=arguments.max_batch,
        max_queue=arguments.max_queue,
        max_loras=arguments.max_loras,
        folders=arguments.adapters,
    )
    for name, folder in arguments.adapter:  # clients cannot load from these folders
        engine.adapters.load(name, folder.resolve(), roots=[folder])
    tokenizer, name = load_tokenizer(arguments.model), _base_name(arguments)
    app = create_app(engine, tokenizer, name, access, runtime_lora_updating=bool(arguments.adapters))
    limits = ServerLimits(connections=arguments.max_connections, grace_period=arguments.grace_period)
    make_server(app, arguments.port, _print_address, limits).run()


def _access(arguments: argparse.Namespace) -> Access:
    key = os.environ.get("LORA_NP_API_KEY")
    return Access(
        arguments.host,
        tuple(arguments.api_key or ([key] if key else [])),
        tuple(arguments.allowed_hosts),
        tuple(arguments.allowed_origins),
    )


def _base_name(arguments: argparse.Namespace) -> str:
    return Path(arguments.model).name  # for a path, its last component


def _check(arguments: argparse.Namespace) -> None:
    """Raise an error for a wrong option. The options are checked before the model is loaded."""
    from ..serve.adapters import check_adapter_name

    for name, folder in arguments.adapter:
        try:
            check_adapter_name(name, _base_name(arguments))
        except ValueError as error:
            raise ValueError(f"--adapter {name!r}=…: {error}") from None
        if not folder.is_dir():
            raise FileNotFoundError(f"--adapter {name}={folder}: there is no such folder")
    for folder in arguments.adapters:
        if not folder.is_dir():
            raise FileNotFoundError(f"--adapters {folder}: there is no such folder")
    for name in ("max_batch", "max_queue", "max_loras", "max_connections"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(arguments, name)}; expected at least 1")
    if not arguments.grace_period >= 0:
        raise ValueError(f"--grace-period {arguments.grace_period}; expected at least 0 seconds")
    if not 0 <= arguments.port < 2**16:
        raise ValueError(f"--port {arguments.port}; expected 0 to 65535")


def _print_address(url: str) -> None:
    print(f"{url}/v1", flush=True)
