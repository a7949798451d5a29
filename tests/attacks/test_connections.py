"""Attacks on the connections of the HTTP server: slow clients, foreign web pages, missing keys, and signals.

Each server is a process of its own, and the attackers are plain sockets.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lora_np as ln

WHY = 'not installed: pip install -e ".[serve,dev]"'
pytest.importorskip("starlette", reason=f"Starlette is {WHY}")
pytest.importorskip("uvicorn", reason=f"uvicorn is {WHY}")

pytestmark = [
    pytest.mark.serve,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals and no limit of open files"),
]

KEY = "the-key"
SLOW = 0.5  # seconds that a client of the impatient server may take for a step

# A server with short limits. "/big" answers with 64 MB, "/block" keeps the event loop busy, and "/step" the engine.
IMPATIENT = """
import json, logging, sys, time
import lora_np as ln
from starlette.responses import Response
from lora_np.serve import AdapterServer
from lora_np.serve.http import create_app
from lora_np.serve.limits import ServerLimits
from lora_np.serve.server import make_server

logging.basicConfig(format="%(levelname)s %(message)s")
engine = AdapterServer(ln.load_model("tiny"))
app = create_app(engine, ln.load_tokenizer("tiny"), "tiny")

async def big(request):
    return Response(bytes(64_000_000))

async def block(request):
    time.sleep(60)

async def step(request):
    app.state.service.thread.call(time.sleep, 60)
    return Response()

for handler in (big, block, step):
    app.add_route(f"/{handler.__name__}", handler)
make_server(app, 0, lambda url: print(url, flush=True), ServerLimits(**json.loads(sys.argv[1]))).run()
"""


class Server:
    """A server's process, its address, and the lines of its log."""

    def __init__(self, words, log, **settings):
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True, **settings)
        url = self.process.stdout.readline()
        assert url, log.read_text()
        self.port = int(re.search(r":(\d+)", url.removeprefix("http:"))[1])

    def connect(self, data=b""):
        client = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        client.sendall(data)
        return client

    def ask(self, data):
        """Return the status and the text of the response to a request."""
        with self.connect(data) as client:
            return response(client)

    def refusals(self):
        return [line for line in self.log.read_text().splitlines() if "refused" in line]

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        assert "Traceback" not in self.log.read_text()


@contextlib.contextmanager
def serving(log, *options, **settings):
    words = [sys.executable, "-m", "lora_np", "serve", "--model", "tiny", "--port", "0", *options]
    server = Server(words, log, **settings)
    try:
        yield server
    finally:
        server.end()


@contextlib.contextmanager
def impatient(log, **limits):
    server = Server([sys.executable, "-c", IMPATIENT, json.dumps(limits)], log)
    try:
        yield server
    finally:
        server.end()


def response(client):
    """Read until the server closes the connection; return the status (0 without a response) and the text."""
    text = b""
    with contextlib.suppress(ConnectionError):
        while chunk := client.recv(65536):
            text += chunk
    return int(text.split()[1]) if text else 0, text.decode("latin-1")


def keep_alive(client):
    """Send one request, read its response, and leave the connection open."""
    client.sendall(get().replace(b"Connection: close\r\n", b""))
    text = b""
    while not text.endswith(b"}"):
        chunk = client.recv(65536)
        assert chunk, "the server closed the connection"
        text += chunk
    assert text.startswith(b"HTTP/1.1 200")


def get(path="/v1/models", *headers, host="localhost"):
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]).encode(
        "latin-1"
    )


def post(body, length=None, path="/v1/completions"):
    length = len(body) if length is None else length
    head = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*head, "Connection: close", "", body]).encode()


COMPLETION = json.dumps({"model": "tiny", "prompt": "def ", "max_tokens": 4})
HALF_HEADERS = get()[:-4]
HALF_BODY = post(COMPLETION, length=1000)


def eventually(condition, what):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.02)


# ----------------------------------------------------------------------------------------------------------- slow clients


def few_open_files():
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))


@pytest.mark.parametrize(
    ("options", "settings"),
    [((), {}), (("--max-connections", "40"), {}), ((), {"preexec_fn": few_open_files})],
    ids=["default limits", "40 connections", "128 open files"],
)
def test_clients_that_hold_200_sockets_do_not_delay_another_client(options, settings, tmp_path):
    with serving(tmp_path / "log", *options, **settings) as server, contextlib.ExitStack() as held:
        for i in range(200):
            held.enter_context(server.connect([b"", HALF_HEADERS, HALF_BODY, b"\r\n"][i % 4]))
        began = time.monotonic()
        status, text = server.ask(post(COMPLETION))
        assert status == 200 and '"finish_reason"' in text
        assert time.monotonic() - began < 2
        assert len(server.log.read_text().splitlines()) < 300


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    log = tmp_path_factory.mktemp("slow") / "log"
    with impatient(log, headers=SLOW, body=SLOW, response=SLOW) as server:
        yield server


@pytest.mark.parametrize(
    ("begin", "late"),
    [(get()[:-2], "headers"), (post("", length=1000), "body"), (b"", "headers")],
    ids=["headers", "body", "nothing"],
)
def test_a_request_that_arrives_byte_by_byte_is_refused(begin, late, slow):
    with slow.connect(begin) as client:
        address = "{}:{}".format(*client.getsockname())
        client.settimeout(0.1)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                client.sendall(b"a" * bool(begin))
                if not client.recv(1, socket.MSG_PEEK) or begin:
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            raise AssertionError("the server waited for 20 seconds")
        status, text = response(client)
        if begin:
            assert status == 408 and late in json.loads(text.partition("\r\n\r\n")[2])["error"]["message"]
    assert [line for line in slow.refusals() if f"{address}: 408" in line and late in line]


def test_a_client_that_does_not_read_its_response_is_disconnected(slow):
    with slow.connect(get("/big")) as client:
        line = "{}:{}: 408".format(*client.getsockname())
        eventually(lambda: any(line in entry and "read" in entry for entry in slow.refusals()), "the server waited")


def test_a_client_that_reads_and_writes_in_time_keeps_its_connection(tmp_path):
    with impatient(tmp_path / "log", headers=2) as server, server.connect() as client:
        until = time.monotonic() + 4.5  # longer than the limit, which is for one request
        while time.monotonic() < until:
            time.sleep(0.2)
            keep_alive(client)


def test_if_all_connections_wait_for_the_server_a_new_one_gets_503(tmp_path):
    with impatient(tmp_path / "log", connections=2) as server, contextlib.ExitStack() as held:
        held.enter_context(server.connect(get("/step"))).recv(1)  # the engine is busy, so the next two wait for it
        for _ in range(2):
            held.enter_context(server.connect(get("/health")))
        time.sleep(0.3)  # both requests have arrived
        status, text = server.ask(get("/health"))
        assert status == 503 and "2 connections" in text
        assert [line for line in server.refusals() if "503" in line]


# ------------------------------------------------------------------------------------------------------ who may ask what


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    log = tmp_path_factory.mktemp("guarded") / "log"
    with serving(log, "--api-key", KEY, "--api-key", "another", "--allowed-hosts", "gpu.example.org") as server:
        yield server


BEARER = f"Authorization: Bearer {KEY}"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/v1/models", BEARER), 200),
        (get("/v1/models", "Authorization: bearer another"), 200),
        (get("/v1/models", BEARER, "Origin: http://localhost"), 200),
        (get("/v1/models", BEARER, host="127.0.0.1:8000"), 200),
        (get("/v1/models", BEARER, host="[::1]:8000"), 200),
        (get("/v1/models", BEARER, host="GPU.example.org:443"), 200),
        (get("/health"), 200),
        (get("/v1/models"), 401),
        (get("/v1/models", "Authorization: Bearer"), 401),
        (get("/v1/models", "Authorization: Bearer wrong"), 401),
        (get("/v1/models", f"Authorization: Bearer {KEY}x"), 401),
        (get("/v1/models", f"Authorization: Bearer {KEY[:-1]}"), 401),
        (get("/v1/models", f"Authorization: Basic {KEY}"), 401),
        (get("/v1/models", f"Authorization: {KEY}"), 401),
        (get("/v1/models", "Authorization: Bearer wrong", BEARER), 401),
        (get("/health/../v1/models"), 401),
        (get("//health"), 401),
        (get("/nothing"), 401),
        (post(COMPLETION), 401),
        (post("{}", path="/v1/load_lora_adapter"), 401),
        (get("/v1/models", BEARER, host="evil.example"), 403),
        (get("/v1/models", BEARER, host="localhost.evil.example"), 403),
        (get("/v1/models", BEARER, host="127.0.0.1.evil.example:8000"), 403),
        (get("/v1/models", BEARER, host="gpu.example.org.evil.example"), 403),
        (get("/v1/models", BEARER, host="10.0.0.1"), 403),
        (get("/v1/models", BEARER, host=""), 403),
        (b"GET /v1/models HTTP/1.0\r\n\r\n", 403),
        (get("/v1/models", BEARER, "Origin: http://evil.example"), 403),
        (get("/v1/models", BEARER, "Origin: http://localhost:3000"), 403),
        (get("/v1/models", BEARER, "Origin: null"), 403),
        (get("/v1/models", BEARER, "Origin: http://localhost", "Origin: http://evil.example"), 403),
        (get("/health", host="evil.example"), 403),
        (post("{}", path="/v1/load_lora_adapter").replace(b"Content-Type", f"{BEARER}\r\nContent-Type".encode()), 403),
        (
            post("{}", path="/v1/unload_lora_adapter").replace(b"Content-Type", f"{BEARER}\r\nContent-Type".encode()),
            403,
        ),
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 400),
        (get("/v1/models", "Host: evil.example"), 400),
        (get("/v1/models", f"Content-Length: {'9' * 5000}"), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    ],
    ids=lambda value: repr(value)[-60:] if isinstance(value, bytes) else None,
)
def test_a_request_of_a_stranger_is_refused(request_, status, guarded):
    before = len(guarded.log.read_text().splitlines())
    got, text = guarded.ask(request_)
    assert got == status, text
    head, _, body = text.partition("\r\n\r\n")
    if status in (401, 403):
        assert json.loads(body)["error"]["message"] and json.loads(body)["error"]["type"] == "invalid_request_error"
        assert ("www-authenticate: Bearer" in head) == (status == 401)
    lines = guarded.log.read_text().splitlines()[before:]
    assert len(lines) == (status != 200), "one line for each refusal"
    assert all("127.0.0.1:" in line and KEY not in line for line in lines)


def test_a_refused_request_writes_no_control_characters_into_the_log(guarded):
    guarded.ask(get("/v1/models", "Origin: http://evil\x9b2J\x85WARNING: all is well\xad" + "x" * 5000))
    last = guarded.log.read_text().splitlines()[-1]
    assert "\\x9b2J\\x85WARNING: all is well\\xad" in last and last.isprintable() and len(last) < 500


def test_a_client_that_hangs_up_in_the_middle_of_a_body_is_no_error_of_the_server(tmp_path):
    with serving(tmp_path / "log") as server:
        server.connect(HALF_BODY).close()
        assert server.ask(get())[0] == 200
        assert server.log.read_text() == ""


def test_a_page_of_an_allowed_origin_may_use_the_server(tmp_path):
    options = ("--allowed-origins", "https://chat.example.org", "--api-key", KEY)
    origin = "Origin: https://chat.example.org"
    with serving(tmp_path / "log", *options) as server:
        preflight = get("/v1/completions", origin, "Access-Control-Request-Method: POST").replace(b"GET", b"OPTIONS", 1)
        for request in (preflight, get("/v1/models", origin, BEARER)):
            status, text = server.ask(request)
            assert status == 200 and "access-control-allow-origin: https://chat.example.org\r\n" in text
        assert server.ask(get("/v1/models", "Origin: https://chat.example.org.evil.example", BEARER))[0] == 403


def test_clients_load_only_from_the_folders_named_for_them_and_learn_no_other_path(tmp_path):
    """--adapters names folders for clients. The folder of --adapter is the operator's own."""
    pub, own = tmp_path / "pub", tmp_path / "own"
    model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=2))
    for folder in (pub / "poet", own, own / "older"):
        model.save_pretrained(folder)
    (pub / "empty").mkdir()
    (pub / "loop").symlink_to("loop")
    with serving(tmp_path / "log", "--adapters", str(pub), "--adapter", f"keeper={own}", "--max-loras", "1") as server:
        for path in (own, own / "older", "empty", "loop", ".", "x" * 300):
            body = json.dumps({"lora_name": "new", "lora_path": str(path)})
            status, text = server.ask(post(body, path="/v1/load_lora_adapter"))
            assert status == 400 and str(pub) not in text
        body = json.dumps({"lora_name": "new", "lora_path": "poet"})
        assert server.ask(post(body, path="/v1/load_lora_adapter"))[0] == 200
        for name in ("keeper", "new", "keeper"):  # each is read from its folder again
            assert server.ask(post(json.dumps({"model": name, "prompt": "a", "max_tokens": 1})))[0] == 200


# ---------------------------------------------------------------------------------------------------------------- signals


def test_a_half_sent_request_does_not_delay_the_end(tmp_path):
    with serving(tmp_path / "log") as server, contextlib.ExitStack() as held:
        body, headers, idle, used = (
            held.enter_context(server.connect(data)) for data in (HALF_BODY, HALF_HEADERS, b"", b"")
        )
        keep_alive(used)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0, "long before the grace period of 30 seconds is over"
        assert [response(client)[0] for client in (body, headers, idle, used)] == [503, 503, 0, 0]


@pytest.mark.parametrize(
    ("busy", "sig"),
    [("/step", signal.SIGTERM), ("/block", signal.SIGTERM), ("/step", signal.SIGINT)],
    ids=["engine busy", "event loop busy", "Ctrl-C"],
)
def test_a_second_signal_ends_the_server_at_once(busy, sig, tmp_path):
    with impatient(tmp_path / "log", grace_period=300) as server, server.connect(get(busy)), server.connect(HALF_BODY):
        time.sleep(0.3)  # the requests have arrived
        server.process.send_signal(sig)
        eventually(lambda: "a second signal" in server.log.read_text(), "the first signal was not seen")
        assert server.process.poll() is None
        began = time.monotonic()
        server.process.send_signal(sig)
        assert server.process.wait(20) == -sig and time.monotonic() - began < 2


CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*CONTAINER, "true"], capture_output=True).returncode != 0,
    reason="this system does not let a user make a process 1",
)
def test_a_second_signal_ends_a_server_that_is_process_1_of_a_container(tmp_path):
    """The system ignores a signal with the default action for process 1."""
    server = Server(
        [*CONTAINER, "--kill-child", sys.executable, "-c", IMPATIENT, '{"grace_period": 300}'], tmp_path / "log"
    )
    outside = server.process.pid
    inside = int(Path(f"/proc/{outside}/task/{outside}/children").read_text().split()[0])
    try:
        with server.connect(get("/step")):
            time.sleep(0.3)
            os.kill(inside, signal.SIGTERM)
            eventually(lambda: "a second signal" in server.log.read_text(), "the first signal was not seen")
            os.kill(inside, signal.SIGTERM)
            assert server.process.wait(20) == 128 + signal.SIGTERM
    finally:
        server.end()


@pytest.mark.parametrize("busy", ["/step", "/block"], ids=["engine busy", "event loop busy"])
def test_the_grace_period_ends_a_server_that_is_busy(busy, tmp_path):
    with impatient(tmp_path / "log", grace_period=0.5) as server, server.connect(get(busy)), server.connect(HALF_BODY):
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 1
        assert "grace period of 0.5 seconds is over" in server.log.read_text()
