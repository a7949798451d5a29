"""The main loop of the process that runs a student's program: receive arguments, call the function, reply.

This process does not judge. A program can change everything in this process, but the process sends only the values that
the function returns, and the arguments as they are after the call. The grader compares these values with results that
this process never receives.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import struct
import sys
import warnings
from importlib.abc import MetaPathFinder
from typing import IO, Any

from .execute import ANSWER, define, failure
from .restrict import confine, lift_memory_limit, limit
from .wire import decode, encode, mutable_parts

LENGTH = struct.Struct(">I")  # in front of each message


def send(stream: IO[bytes], message: Any) -> None:
    """Write the length of a message, then the message as JSON."""
    data = json.dumps(message).encode("ascii")
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes], most: int) -> Any:
    """Read a message; return None at the end of the stream. Raises ValueError for a message of more than `most` bytes."""
    start = stream.read(LENGTH.size)
    if len(start) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(start)
    if length > most:
        raise ValueError(f"got a message of {length} bytes; expected at most {most}")
    return json.loads(stream.read(length))


class WithoutAnswers(MetaPathFinder):
    """Explains that lora_np, which contains answers, is not available."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raise ModuleNotFoundError for lora_np, and leave other modules to the other finders."""
        if name.partition(".")[0] == "lora_np":
            words = "an answer cannot import lora_np, which contains answers; write the function with NumPy"
            raise ModuleNotFoundError(words, name=name)


def hide_the_package(hidden: list[str]) -> None:
    """Remove the folders that contain lora_np from the path, except for folders of installed packages."""
    inside = [os.path.realpath(path) for path in hidden]
    sys.path[:] = [
        path
        for path in sys.path
        if os.path.basename(path) in ("site-packages", "dist-packages")
        or not (os.path.realpath(path) in inside or os.path.isdir(os.path.join(path, "lora_np")))
    ]
    sys.meta_path.insert(0, WithoutAnswers())


def do_imports(text: str) -> None:
    """Run the program's import statements, also those in functions, so that they do not count as computing time."""
    with warnings.catch_warnings(action="ignore"):
        try:
            nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # reported when the program is executed
            return
        for node in nodes:
            with contextlib.suppress(BaseException):  # an import that fails is reported where the program needs it
                exec(compile(ast.Module([node], []), ANSWER, "exec"), {"__name__": "__main__"})


def answer(function: Any, arguments: list[Any]) -> dict[str, Any]:
    """Call the function; return its result and the arguments' content after the call, or the exception."""
    import numpy as np

    try:
        given = tuple(decode(argument) for argument in arguments)
        parts = mutable_parts(given)
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            value = function(*given)
        after = [encode(part, parts, inside=True) for part in parts]
        return {"value": encode(value, parts), "parts": after}
    except BaseException as error:
        return {"failed": failure(error)}


def main() -> None:
    """Answer the grader's messages until the grader closes the stream."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what the program prints goes to the file of stderr
    lift_memory_limit()
    task = receive(requests, 1 << 30)
    hide_the_package(task["hidden"])
    send(replies, {"held": confine(task["hidden"], task["own"])})
    do_imports(task["text"])
    limit()
    send(replies, {"imported": True})
    function, passed_over = define(task["text"], task["function"], BaseException)
    send(replies, {"defined": function is not None, "passed_over": passed_over})
    while (message := receive(requests, 1 << 30)) is not None:
        send(replies, answer(function, message["arguments"]))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
    os._exit(0)  # ends threads that the program left running
