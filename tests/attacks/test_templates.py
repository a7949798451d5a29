"""Hostile chat templates: each ends soon with an error, in little memory, in any thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hostile_templates import HOSTILE

from lora_np.files.chat_template import render

CHAT = [{"role": "user", "content": "Hello"}]

CHILD = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[1])
from hostile_templates import HOSTILE
from lora_np.files.chat_template import render
chat = [{"role": "user", "content": "Hello"}]
render("{{ messages[0].content }}", chat)
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()  # the data segment
resource.setrlimit(resource.RLIMIT_DATA, (used + 200 * 2**20, -1))
for name, template in HOSTILE.items():
    begin = time.thread_time()
    try:
        said = f"OK {len(render(template, chat))}"
    except ValueError as error:
        said = str(error)
    print(json.dumps([name, time.thread_time() - begin, said]), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of the process with RLIMIT_DATA")
def test_no_hostile_template_takes_long_or_200_mb():
    support = Path(__file__).parents[1] / "support"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", CHILD, str(support)]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    answers = {name: (seconds, said) for name, seconds, said in map(json.loads, out.stdout.splitlines())}
    assert answers.keys() == HOSTILE.keys(), out.stderr[-500:]
    assert {name: a for name, a in answers.items() if a[0] > 4} == {}, "processor seconds; 2 on the authors' machine"
    assert {name: a for name, a in answers.items() if "MemoryError" in a[1]} == {}
    assert {name for name, (_, said) in answers.items() if said.startswith("OK")} <= {
        "namespaces of namespaces",  # a namespace as text does not show its attributes
        "many outputs",
        "many spaces",
    }


def test_the_limits_hold_in_any_thread():
    found: list[str] = []

    def target() -> None:
        with pytest.raises(ValueError, match="the template needs more") as error:
            render(HOSTILE["nested loops"], CHAT)
        found.append(str(error.value))

    thread = threading.Thread(target=target)
    thread.start()
    thread.join(60)
    assert found
