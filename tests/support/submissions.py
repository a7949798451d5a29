"""Submissions to the exercise lora_forward, which the tests of the grader write into folders."""

from __future__ import annotations

import json
from pathlib import Path

from lora_np.exercises import exercise

ROOT = Path(__file__).parents[2]
ASKED = exercise("lora_forward")
RIGHT = ASKED.solution
HEAD = "import ctypes, gc, importlib, json, os, signal, socket, struct, sys, threading, time\nimport numpy as np\n"
DEFINE = "def lora_forward(x, W, A, B, alpha):\n    "


def answer(body, head=""):
    """Return the text of a submission with the given body of the function."""
    return HEAD + head + DEFINE + body.strip().replace("\n", "\n    ") + "\n"


def cells(*sources):
    return json.dumps({"cells": [{"cell_type": "code", "source": source} for source in sources]})


def submit(folder, submissions, **marks):
    """Write one folder per submission, and the honest students ada and zoe."""
    for name, text in {"ada": RIGHT, "zoe": RIGHT, **submissions}.items():
        for mark, value in marks.items():
            text = text.replace(f"@{mark}@", str(value)) if isinstance(text, str) else text
        (folder / name).mkdir(parents=True)
        if callable(text):
            text(folder / name)
        else:
            (folder / name / "02_lora_forward.py").write_text(text, encoding="utf-8")
    return folder


def kinds(graded):
    return {row.student: row.verdict.kind for row in graded}
