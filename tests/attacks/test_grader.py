"""Submissions that cheat, and submissions that attack the grader: none is right, and no other student loses a grade.

The cheats and attacks use an honest student's submission beside them. What only Linux can prevent is tested on Linux.
"""

from __future__ import annotations

import errno
import http.server
import json
import os
import sys
import threading
import time

import numpy as np
import pytest
from submissions import ASKED, DEFINE, HEAD, RIGHT, ROOT, answer, cells, kinds, submit

from lora_np.exercises import exercises
from lora_np.exercises.contain import Contained, missing_protection
from lora_np.exercises.grade import grade_class
from lora_np.exercises.journal import SUFFIX
from lora_np.exercises.outcome import run_program

SOLUTION = ASKED.source
TEACHERS = ROOT / "notebooks" / "exercises" / "solutions" / "02_lora_forward.ipynb"

WRITE = "for fd in range(3, 20):\n    try: os.write(fd, data)\n    except OSError: pass\nreturn 1"
FRAME = "data = struct.pack('>I', len(data)) + data\n"
YES = "class Yes:\n    def __eq__(self, other): return True\n"
protected = pytest.mark.skipif(bool(missing_protection()), reason="this system cannot hide files or deny signals")


def solution_from(reading):
    """Return a submission that runs the solution from the text that `reading` gives."""
    body = f"""
text = {reading}
start = text.index("def lora_forward")
lines = [line for line in text[start:].split("\\n") if "SOLUTION" not in line]
end = next(i for i, line in enumerate(lines) if i and line and not line.startswith(" "))
space = {{"np": np}}
exec("\\n".join(lines[:end]), space)
return space["lora_forward"](x, W, A, B, alpha)"""
    return answer(body)


def table():
    """Return a submission with the results of all public cases of `lora_forward`."""
    results = [np.asarray(outcome.value) for outcome in run_program(RIGHT, ASKED)]
    known = {
        json.dumps(case.arguments["x"].tolist()): value.tolist()
        for case, value in zip(ASKED.cases(), results, strict=True)
    }
    return answer("return np.array(TABLE[json.dumps(x.tolist())])", f"TABLE = {known!r}\n")


CHEATS = {
    "imports the exercises": answer(
        'from lora_np.exercises import exercise\nspace = {}\nexec(exercise("lora_forward").solution, space)\n'
        'return space["lora_forward"](x, W, A, B, alpha)'
    ),
    "imports the library's operation": answer(
        "from lora_np.ops import lora_linear_forward\nreturn lora_linear_forward(x, W, A, B, alpha / len(A))[0]"
    ),
    "imports the library past the hook": answer(
        f"sys.meta_path[:] = [f for f in sys.meta_path if 'Without' not in type(f).__name__]\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from lora_np.ops import lora_linear_forward\nreturn lora_linear_forward(x, W, A, B, alpha / len(A))[0]"
    ),
    "reads the source of the exercise": solution_from(f"open({str(SOLUTION)!r}).read()"),
    "reads the source with system calls": solution_from(
        f"(lambda libc: (lambda fd, b: libc.read(fd, b, 99999) and b.value.decode())(libc.open({os.fsencode(SOLUTION)!r}, 0), "
        "ctypes.create_string_buffer(100000)))(ctypes.CDLL(None))"
    ),
    "links the source into its folder": solution_from(f"(os.link({str(SOLUTION)!r}, 'here'), open('here').read())[1]"),
    "makes a symbolic link to the source": solution_from(f"(os.symlink({str(SOLUTION)!r}, 'here'), open('here').read())[1]"),
    "reads the teacher's notebook": solution_from(
        f"next(t for t in (''.join(c['source']) for c in json.load(open({str(TEACHERS)!r}))['cells']) if 'def lora_forward' in t)"
    ),
    "asks a process of its own": solution_from(f"__import__('subprocess').check_output(['cat', {str(SOLUTION)!r}], text=True)"),
    "finds the package by its finder": solution_from(
        "(lambda spec: open(os.path.join(os.path.dirname(spec.origin), 'exercises/sources/02_lora_forward.py')).read())("
        "next(filter(None, (f.find_spec('lora_np', None) for f in sys.meta_path if 'Without' not in type(f).__name__))))"
    ),
    "reads another student's answer": solution_from("open('@ADA@').read()"),
    "downloads the solution": solution_from("__import__('urllib.request').request.urlopen('@URL@', timeout=2).read().decode()"),
    "searches the stack": answer(
        "frame = sys._getframe()\nwhile frame:\n    for value in frame.f_locals.values():\n"
        "        if 'expected' in str(type(value)) or isinstance(value, dict) and 'expected' in value:\n"
        "            return value['expected']\n    frame = frame.f_back"
    ),
    "searches all objects": answer(
        "for value in gc.get_objects():\n    if getattr(value, '__name__', '') == 'lora_linear_forward':\n"
        "        return value(x, W, A, B, alpha / len(A))[0]\n"
        "    if isinstance(value, dict) and 'hidden @ B.T' in str(value.get('text', '')):\n        return 1"
    ),
    "reads the grader's memory": solution_from("open(f'/proc/{os.getppid()}/mem', 'rb').read(1).decode() * 2"),
    "reads the source through a finder": solution_from(
        f"__import__('pkgutil').get_data('sandbox', '../../../../..{SOLUTION}').decode()"
    ),
    "changes NumPy's comparisons": answer(
        "np.allclose = np.array_equal = np.isclose = lambda *a, **k: True\nnp.testing = None\nreturn 0 * (x @ W.T)",
    ),
    "returns an object that equals everything": answer(
        "return Yes()", YES + "    def __array__(self, *a, **k): return np.ones((2, 2))\n"
    ),
    "returns an array that equals everything": answer(
        "return np.zeros((*x.shape[:-1], len(W))).view(Yes)",
        YES.replace("Yes", "Yes(np.ndarray)") + "    def __array_function__(self, *a, **k): return True\n",
    ),
    "replaces the main loop's functions": answer(
        "child = sys.modules['sandbox.child']\nchild.answer = lambda *a: {'value': 'right', 'kind': 'right', 'passed': 1}\n"
        "child.send = print\nreturn 1"
    ),
    "writes replies by itself": answer(
        "data = json.dumps({'value': True, 'parts': [None] * 4, 'kind': 'right', 'words': 'right'}).encode()\n" + FRAME + WRITE
    ),
    "knows the results of the public cases": table(),
    "prints the verdict": answer("print('\\u2713 lora_forward: right on all 4 cases'); sys.stdout.flush(); os._exit(0)"),
    "writes the table of grades": answer("open('@TABLE@', 'w').write('student,exercise,passed\\neve,lora_forward,1')\nreturn 1"),
}  # fmt: skip


class Solution(http.server.BaseHTTPRequestHandler):
    """Serves the solution, as the project's web page does."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(RIGHT.encode() + b"\nend = 1\n")

    def log_message(self, *arguments):
        pass


@pytest.fixture
def url():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Solution)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@protected
def test_no_cheat_is_right(tmp_path, url):
    folder = submit(
        tmp_path / "class",
        CHEATS,
        ADA=tmp_path / "class" / "ada" / "02_lora_forward.py",
        URL=url,
        TABLE=tmp_path / "grades.csv",
    )
    (folder / "copies ada by a link").mkdir()
    (folder / "copies ada by a link" / "02_lora_forward.py").symlink_to(folder / "ada" / "02_lora_forward.py")
    (folder / "is a link").symlink_to(folder / "ada", target_is_directory=True)
    graded = kinds(grade_class(folder, [ASKED], table=tmp_path / "grades.csv"))
    assert {graded.pop("ada"), graded.pop("zoe")} == {"right"}
    assert len(graded) >= 20 and [name for name, kind in graded.items() if kind == "right"] == []
    rows = (tmp_path / "grades.csv").read_text(encoding="utf-8-sig").splitlines()
    assert len(rows) == 1 + len(CHEATS) + 4 and not (tmp_path / f"grades.csv{SUFFIX}").exists()


@pytest.mark.parametrize("asked", exercises(), ids=lambda asked: asked.function)
def test_the_solution_is_right_on_new_cases_and_differs_from_a_table(asked):
    """The new cases are as valid as the public cases, have other numbers, and have a result for every argument."""
    public = [repr(case.arguments) for case in asked.cases()]
    for seed in range(100, 105):
        cases = asked.cases(seed)
        assert cases and not {repr(case.arguments) for case in cases} & set(public) - {repr(asked.cases()[0].arguments)}
        assert all(
            outcome.raised is None and not outcome.changed for outcome in run_program(asked.solution, asked, cases)
        )


# ------------------------------------------------------------------------------------------------------------- hostile

LOOP = "while True: pass"


def notebook_of(text):
    """Return a function that writes the text as a notebook's file."""
    return lambda folder: (folder / "02_lora_forward.ipynb").write_text(text, encoding="utf-8")


def many_files(folder):
    for i in range(10_100):
        (folder / f"{i}.txt").touch()
    (folder / "02_lora_forward.py").write_text(RIGHT, encoding="utf-8")


def deep_folders(folder):
    here = os.open(folder, os.O_RDONLY)
    for _ in range(500):
        os.mkdir("d", dir_fd=here)
        here, before = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(before)
    os.close(here)


def modules(folder):
    for name in ("numpy", "json", "sitecustomize", "conftest", "lora_np", "sandbox"):
        (folder / f"{name}.py").write_text("import os\nos._exit(0)\n", encoding="utf-8")


def fifo(folder):
    os.mkfifo(folder / "02_lora_forward.py")


def link(target):
    return lambda folder: (folder / "02_lora_forward.py").symlink_to(target)


HOSTILE = {
    "never ends": answer(LOOP),
    "switches its timer off": answer(f"signal.setitimer(signal.ITIMER_PROF, 0)\n{LOOP}"),
    "ignores its timer": answer(f"signal.signal(signal.SIGPROF, signal.SIG_IGN)\n{LOOP}"),
    "never ends at the top": HEAD + f"y = [0 for _ in iter(int, 1)]\n{DEFINE}return y\n",
    "waits": answer("time.sleep(1000)"),
    "prints for ever": answer("while True: os.write(1, b'x' * 65536)"),
    "kills the judge": answer("os.kill(os.getppid(), 9)\ntime.sleep(0.2)\nreturn 1"),
    "stops the judge": answer("os.kill(os.getppid(), signal.SIGSTOP)\nreturn 1"),
    "stops every process of the group": answer("os.killpg(os.getpgid(os.getppid()), signal.SIGSTOP)\nreturn 1"),
    "takes the judge's processor time": answer("import resource as r\nr.prlimit(os.getppid(), r.RLIMIT_CPU, (0, 0))\nreturn 1"),
    "signals by a pipe": answer(
        "import fcntl\nr, w = os.pipe()\nfcntl.fcntl(r, 8, os.getppid())\nfcntl.fcntl(r, 10, 9)\n"
        "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')\nreturn 1"
    ),
    "starts processes without end": answer("while True: os.fork()"),
    "leaves a process behind": answer("if os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\nreturn 1"),
    "starts threads without end": answer("while True: threading.Thread(target=time.sleep, args=[1000]).start()"),
    "takes all memory": answer("held = []\nwhile True: held.append(bytearray(1 << 26))"),
    "fills the disk": answer("for i in range(10**6):\n    open(str(i), 'wb').write(b'x' * (1 << 20))\nreturn 1"),
    "makes files without end": answer("for i in range(10**9):\n    open(str(i), 'wb').close()"),
    "makes folders inside each other": answer("while True:\n    os.mkdir('d')\n    os.chdir('d')"),
    "opens files without end": answer("held = []\nwhile True: held.append(open('/dev/null'))"),
    "crashes": answer("ctypes.string_at(0)"),
    "closes all files": answer("os.closerange(0, 256)\nreturn 1"),
    "replies with noise": answer("data = b'\\xff' * 9000\n" + WRITE),
    "replies with deep JSON": answer("data = b'[' * 10**6\n" + FRAME + WRITE),
    "replies with wrong fields": answer(
        "child = sys.modules['sandbox.child']\nchild.encode = lambda *a, **k: {'array': ['<f8', [-1, 2], 'AAAA']}\nreturn 1"
    ),
    "returns a gigabyte": answer("return np.zeros(1 << 30, np.uint8)"),
    "returns a list that holds itself": answer("y = []\ny.append(y)\nreturn y"),
    "makes its argument huge": answer("x.resize(130_000, refcheck=False)\nreturn 1"),
    "raises a huge exception": answer("raise ValueError('x' * 10**8)"),
    "removes the submissions": answer("import shutil\nshutil.rmtree('@FOLDER@', ignore_errors=True)\nreturn 1"),
    "writes into ada's answer": answer("open('@FOLDER@/ada/02_lora_forward.py', 'w').write('')\nreturn 1"),
    "takes the rights to the submissions": answer(
        "for path in ('@FOLDER@/ada/02_lora_forward.py', '@FOLDER@/ada', '@FOLDER@'):\n"
        "    try: os.chmod(path, 0)\n    except OSError: pass\nreturn 1"
    ),
    "hands in 20 MB of code": notebook_of(cells("x = 1\n" * 3_300_000)),
    "hands in a long line": notebook_of(cells(RIGHT, "x = '" + "x" * 150_000 + "'")),
    "hands in many cells": notebook_of(cells(*["x = 1"] * 5_000)),
    "hands in deep JSON": notebook_of("[" * 5_000_000),
    "hands in many lists": notebook_of('{"cells": [' + "[]," * 3_000_000 + "[]]}"),
    "hands in nested brackets": notebook_of(cells(DEFINE + "return " + "(" * 90_000 + ")" * 90_000)),
    "hands in a deep sum": notebook_of(cells(DEFINE + "return " + "-" * 9_000 + "1")),
    "hands in many magics": notebook_of(cells("!ls\n" * 40_000 + RIGHT)),
    "hands in a long chain of names": notebook_of(
        cells(*["\n".join(f"a{i} = a{i - 1}" for i in range(k, k + 40)) for k in range(1, 9_000, 40)], DEFINE + "return a8999")
    ),
    "hands in punycode": lambda folder: (folder / "02_lora_forward.py").write_bytes(b"# coding: punycode\n" + b"ab9" * 300_000),
    "hands in a pipe": fifo,
    "hands in a link to a device": link("/dev/zero"),
    "hands in a link to nothing": link("/nowhere"),
    "hands in many files": many_files,
    "hands in deep folders": deep_folders,
    "hands in modules": modules,
    "=cmd()\n\u202e": answer("return 1"),
}  # fmt: skip


SLOW = {
    *(
        "switches its timer off",
        "ignores its timer",
        "never ends at the top",
        "takes all memory",
        "opens files without end",
    ),
    *(
        "replies with deep JSON",
        "replies with noise",
        "raises a huge exception",
        "hands in many lists",
        "hands in many files",
    ),
    *("hands in many magics", "hands in a long chain of names", "returns a gigabyte", "makes files without end"),
    *("returns a list that holds itself", "makes its argument huge", "replies with wrong fields"),
}
STOPPED = {"never ends", "waits", "fills the disk", "makes folders inside each other", "crashes"}


@protected
@pytest.mark.parametrize(
    "names", [HOSTILE.keys() - SLOW, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["quick", "slow"]
)
def test_no_hostile_submission_costs_another_student_a_grade(names, tmp_path):
    folder = submit(
        tmp_path / "class", {name: HOSTILE[name] for name in HOSTILE if name in names}, FOLDER=tmp_path / "class"
    )
    began = time.monotonic()
    graded = grade_class(folder, [ASKED], table=tmp_path / "grades.csv")
    assert time.monotonic() - began < 300, "a generous limit against a hang"
    found = kinds(graded)
    assert {found.pop("ada"), found.pop("zoe")} == {"right"}
    assert len(found) == len(names) and "right" not in found.values(), found
    assert all(len(row.verdict.words.splitlines()) == 1 for row in graded)
    assert {found[name] for name in names & STOPPED} <= {"stopped"}, found
    assert {found[name] for name in names if name.startswith("hands in")} <= {"unreadable", "missing", "raised"}, found
    assert (folder / "ada" / "02_lora_forward.py").read_text(encoding="utf-8") == RIGHT
    assert (folder / "ada").stat().st_mode & 0o700 == 0o700  # root can read it in any case


FORBIDDEN = """
import ctypes, os
def f(path, own):
    libc, found = ctypes.CDLL(None, use_errno=True), []
    for call in (
        lambda: os.chmod(path, 0), lambda: os.chown(path, os.getuid(), os.getgid()), lambda: os.utime(path, (5, 5)),
        lambda: os.setxattr(path, "user.a", b"b"), lambda: os.removexattr(path, "user.a"), lambda: os.truncate(path, 0),
        lambda: os.open(path, os.O_RDONLY | os.O_TRUNC), lambda: os.open(path, 3 | os.O_TRUNC), lambda: open(path, "r+"),
        lambda: os.fchmod(os.open(own, os.O_RDONLY), 0o640), lambda: os.memfd_create("a"),
    ):
        try:
            call()
            found.append(0)
        except OSError as error:
            found.append(error.errno)
    for number in (452, 463, 466, 469, 437):  # fchmodat2, setxattrat, removexattrat, file_setattr, openat2
        libc.syscall(number, -100, path.encode(), 0, 0, 0, 0)
        found.append(ctypes.get_errno())
    return found
"""


@protected
def test_a_program_cannot_do_what_landlock_does_not_check(tmp_path):
    """Change the permissions, owner, times and attributes of a file, and before Linux 6.2 its length; files in memory."""
    file = tmp_path / "grades.csv"
    file.write_text("ada,1")
    before = file.stat()
    with Contained(FORBIDDEN, "f") as function:
        function.start()
        found = function(str(file), os.__file__)
    assert set(found[:11]) <= {errno.EPERM, errno.EACCES} and set(found[11:]) == {errno.ENOSYS}
    assert file.stat() == before and found[5:8] == [errno.EPERM] * 3, "seccomp denies them, whatever Landlock does"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_among_the_submissions_cost_no_student_a_grade(tmp_path):
    folder = submit(tmp_path / "class", {})
    for name, target in (("eve", "eve"), ("bob", "/nowhere"), ("dan.py", "/dev/zero")):
        (folder / name).symlink_to(target)
    found = kinds(grade_class(folder, [ASKED], table=tmp_path / "grades.csv"))
    assert found == {"ada": "right", "zoe": "right"} | dict.fromkeys(("eve", "bob", "dan"), "unreadable")


def test_there_are_enough_attacks():
    assert len(CHEATS) + 2 >= 20 and len(HOSTILE) >= 30
