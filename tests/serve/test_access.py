"""Who may use the HTTP server: what the options of the command mean, and which of them are refused."""

from __future__ import annotations

import argparse

import pytest

from lora_np.commands import serve as command
from lora_np.serve.access import Access, is_loopback
from lora_np.serve.refusals import log_refusal


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_a_loopback_address_needs_no_key(host):
    assert Access(host).api_keys == ()


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.168.0.7", "gpu.example.org", "localhost.example.org", "::ffff:1.2.3.4"]
)
def test_another_address_without_a_key_is_refused_with_what_to_do(host):
    assert not is_loopback(host) and Access(host, ("key",)).host == host
    with pytest.raises(ValueError, match=r"--host .*other computers.*LORA_NP_API_KEY.*--host 127\.0\.0\.1"):
        Access(host)


@pytest.mark.parametrize("key", ["", " ", "a b", "clé", "a\n"])
def test_a_key_that_no_header_can_carry_is_refused(key):
    with pytest.raises(ValueError, match="API key"):
        Access(api_keys=("good", key))


@pytest.mark.parametrize("host", ["", "*", "gpu.example.org:8000", "http://gpu.example.org", "a b"])
def test_an_allowed_host_is_a_name_without_a_port(host):
    with pytest.raises(ValueError, match="--allowed-hosts"):
        Access(allowed_hosts=(host,))


@pytest.mark.parametrize("origin", ["", "*", "null", "chat.example.org", "https://chat.example.org/"])
def test_an_allowed_origin_has_a_scheme_and_no_path(origin):
    with pytest.raises(ValueError, match="--allowed-origins"):
        Access(allowed_origins=(origin,))


def test_a_key_is_not_part_of_the_text_of_an_access():
    assert "the-key" not in repr(Access(api_keys=("the-key",)))


def request(host, server="10.0.0.5", **headers):
    fields = [(name.encode(), value.encode()) for name, value in {"host": host, **headers}.items()]
    return {"type": "http", "method": "POST", "path": "/v1/models", "server": (server, 8000), "headers": fields}


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("10.0.0.5:8000", None, None),  # the address at which the connection arrived
        ("10.0.0.5:8000", "http://10.0.0.5:8000", None),
        ("10.0.0.5:8000", "https://10.0.0.5:8000", None),  # through a proxy with TLS
        ("10.0.0.5:8000", "http://10.0.0.5:3000", 403),
        ("10.0.0.6:8000", None, 403),
        ("[fd00::1]:8000", None, None),
        ("fd00::1", None, 403),
        ("chat.example.org", "https://chat.example.org", 403),  # the name is not allowed, although both agree
    ],
)
def test_names_of_a_server_that_listens_at_all_addresses(host, origin, status):
    access = Access("0.0.0.0", ("key",), allowed_hosts=("[FD00::1]",))
    headers = {"authorization": "Bearer key"} | ({"origin": origin} if origin else {})
    error = access.refusal(request(host, **headers))
    assert (error and error.status) == status


def test_a_refusal_is_one_printable_line_of_the_log(caplog):
    log_refusal(("::1", 8000), 403, "first\nWARNING second\r\x1b[2J\x9b\u2028\u202e\ud800" + "x" * 9000)
    [record] = caplog.records
    line = record.getMessage()
    assert line.startswith("refused ::1:8000: 403, first\\nWARNING second\\r\\x1b[2J\\x9b\\u2028\\u202e\\ud800xxx")
    assert line.isprintable() and len(line) < 500 and record.levelname == "WARNING"
    log_refusal(None, 403, "over a Unix socket")


# ------------------------------------------------------------------------------------------------------------ the command


def access(*options):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command._access(parser.parse_args(options))


def test_the_environment_gives_a_key_unless_an_option_does(monkeypatch):
    monkeypatch.delenv("LORA_NP_API_KEY", raising=False)
    assert access().api_keys == ()
    monkeypatch.setenv("LORA_NP_API_KEY", "")
    assert access().api_keys == ()
    with pytest.raises(ValueError, match="LORA_NP_API_KEY"):
        access("--host", "0.0.0.0")
    monkeypatch.setenv("LORA_NP_API_KEY", "secret")
    assert access("--host", "0.0.0.0") == Access("0.0.0.0", ("secret",))
    assert access("--api-key", "a", "--api-key", "b").api_keys == ("a", "b")
    with pytest.raises(ValueError, match="API key is empty"):
        access("--api-key", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: other computers"),
        (["--max-connections", "0"], "--max-connections 0; expected at least 1"),
        (["--grace-period", "-1"], "--grace-period -1.0; expected at least 0 seconds"),
        (["--grace-period", "nan"], "--grace-period nan; expected at least 0 seconds"),
    ],
)
def test_the_command_refuses_wrong_options_before_it_loads_a_model(options, message, monkeypatch):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    monkeypatch.delenv("LORA_NP_API_KEY", raising=False)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ValueError, match=message):
        command.run(parser.parse_args(["--model", "no-such-model", *options]))
