"""A server that is not there, is slow, answers garbage or hides what it was asked: one sentence, and exit code 2."""

import contextlib
import socket
import time
from typing import Any

import pytest
from servers import Answer, send, stand_in

from ropescale import cli
from ropescale.errors import InvalidArgumentError, RopescaleError, ServerError
from ropescale.serving import verify_server

ASKED = ["--reference", "tiny", "--method", "yarn", "--factor", "4", "--timeout", "0.3"]
KEY = "sk-a-key-that-nobody-reads"


def models(connection: Any) -> bool:
    """Answer what is asked of every server first; whether that was it."""
    if connection.path != "/v1/models":
        return False
    send(connection, {"data": [{"id": "m"}]})
    return True


def completing(completion: dict[str, Any]) -> Answer:
    """A server whose completions are all this one."""

    def answer(connection: Any, question: dict[str, Any]) -> None:
        if not models(connection):
            send(connection, completion)

    return answer


def slow(connection: Any, question: dict[str, Any]) -> None:
    if not models(connection):
        time.sleep(1)


def dripping(connection: Any, question: dict[str, Any]) -> None:
    """A byte now and then, each in time."""
    if models(connection):
        return
    connection.send_response(200)
    connection.end_headers()
    with contextlib.suppress(OSError):  # whoever asked has gone
        for _ in range(20):
            connection.wfile.write(b" ")
            connection.wfile.flush()
            time.sleep(0.1)


def cut_short(connection: Any, question: dict[str, Any]) -> None:
    connection.send_response(200)
    connection.send_header("Content-Length", "1000")
    connection.end_headers()
    connection.wfile.write(b"{")


def refusing(status: int, content: object, **headers: str) -> Answer:
    return lambda connection, question: send(connection, content, status, **headers)


TOKEN = {"text": "a", "logprobs": {"top_logprobs": [{"token_id:5": -0.5}]}}
WRONG: dict[str, tuple[Answer, str]] = {
    "garbage": (refusing(200, "<html>hello</html>"), "must answer with a JSON object, got '<html>hello</html>'"),
    "brackets without end": (refusing(200, '{"data": ' + "[" * 100_000), "must answer with a JSON object, got"),
    "a list": (refusing(200, [1]), "must answer with a JSON object, got '[1]'"),
    "no models": (refusing(200, {"data": 3}), "must name the models that are served, got {'data': 3}"),
    "another service": (refusing(404, "not found"), "must accept the question, got status 404 (not found)"),
    "an error of its own": (refusing(500, {"error": {"message": "out of memory"}}), "got status 500 (out of memory)"),
    "a redirect": (refusing(302, "", Location="http://elsewhere.example/"), "must answer itself, got a redirect to"),
    "half an answer": (cut_short, "must answer with a JSON object, got '{'"),
    "no completion": (completing({"choices": []}), "must answer with a completion, got {'choices': []}"),
    "log-probabilities hidden": (
        completing({"choices": [{"text": "a", "logprobs": None}], "usage": {"prompt_tokens": 16}}),
        "must give log-probabilities, got a completion of 16 tokens without any",
    ),
    "log-probabilities that are none": (
        completing({"choices": [{"logprobs": {"top_logprobs": [{"token_id:5": "x", "token_id:6": float("nan")}]}}]}),
        "must give log-probabilities",
    ),
    "another tokenizer": (
        completing({"choices": [TOKEN], "usage": {"prompt_tokens": 99}}),
        "must read prompts as the tokenizer of the reference splits them, got 99 tokens for one of 16",
    ),
    "slow": (slow, "must answer within 0.3 seconds, got no whole answer to a prompt of"),
    "a byte now and then": (dripping, "must answer within 0.3 seconds, got no whole answer to a prompt of"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_server_does_wrong_is_said_in_one_sentence(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer, said = WRONG[wrong]
    with stand_in(answer) as url:
        assert cli.main(["verify-server", url, *ASKED]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ropescale: {url}/v1/")
    assert said in line


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert cli.main(["verify-server", f"http://127.0.0.1:{port}/v1/", *ASKED]) == 2
    assert capsys.readouterr().err == (
        f"ropescale: http://127.0.0.1:{port}/v1/models: must be a server that answers, got ConnectionRefusedError: "
        f"[Errno 111] Connection refused; start it, or correct the address\n"
    )


def test_something_that_listens_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert cli.main(["verify-server", url, *ASKED]) == 2
    assert "/v1/models: must answer within 0.3 seconds, got no whole answer; " in capsys.readouterr().err


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "file:///etc/shadow",
        "ftp://host",
        "http://",
        "http://a b/",
        "http://me:pw@host",
        "http://[::1",
    ],
)
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^url: must be the http or https address of a") as refusal:
        verify_server(url, reference="tiny", method="yarn", factor=4)
    assert "pw" not in str(refusal.value)


def locked(seen: list[str | None]) -> Answer:
    """A server that wants a key, and repeats whatever it was given."""

    def answer(connection: Any, question: dict[str, Any]) -> None:
        given = connection.headers.get("Authorization")
        seen.append(given)
        send(connection, {"error": {"message": f"Incorrect API key provided: {given}"}}, 401)

    return answer


def test_a_key_is_sent_and_never_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIR_KEY", KEY)
    seen: list[str | None] = []
    with stand_in(locked(seen)) as url:
        assert cli.main(["verify-server", url, *ASKED, "--api-key", "THEIR_KEY"]) == 2
        assert cli.main(["verify-server", url, *ASKED]) == 2
    assert seen == [f"Bearer {KEY}", None]
    said = "".join(capsys.readouterr())
    assert KEY not in said
    assert "got status 401 (Incorrect API key provided: Bearer (the key))" in said
    assert "name the environment variable that holds the key as --api-key" in said


def test_a_key_in_the_place_of_its_variable_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify-server", "http://127.0.0.1:9", *ASKED, "--api-key", KEY]) == 2
    said = "".join(capsys.readouterr())
    assert KEY not in said
    assert "--api-key: must be the name of an environment variable that holds the key" in said


def test_a_key_goes_to_no_other_address() -> None:
    seen: list[str | None] = []

    def follow(url: str) -> Answer:
        return lambda connection, question: send(connection, "", 307, Location=f"{url}/v1/models")

    with stand_in(locked(seen)) as other, stand_in(follow(other)) as url, pytest.raises(ServerError, match="redirect"):
        verify_server(url, reference="tiny", method="yarn", factor=4)
    assert seen == []


def test_one_of_several_models_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with stand_in(lambda connection, question: send(connection, {"data": [{"id": "one"}, {"id": "two"}]})) as url:
        assert cli.main(["verify-server", url, *ASKED]) == 2
        assert cli.main(["verify-server", url, *ASKED, "--model", "tow"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(
        f"--model: must be one of the models that {url} serves (one, two), got None; name one of them"
    )
    assert second.endswith("got 'tow'; did you mean 'two'?")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"timeout": 0}, "timeout: must be a number of seconds above 0, got 0"),
        ({"tolerance": float("nan")}, "tolerance: must be a number of nats above 0, got nan"),
        ({"lengths": [512]}, "lengths: must be whole numbers of tokens, each from 1 to 511"),
        ({"method": None}, "method: must be given with factor"),
        ({"method": None, "factor": None}, "method: must be given for a model whose context is as pretrained"),
        ({"reference": __file__}, "reference: must be the folder of a checkpoint or a hub id, got the file"),
    ],
)
def test_wrong_questions_are_refused_in_words(given: dict[str, Any], said: str) -> None:
    asked = {"reference": "tiny", "method": "yarn", "factor": 4, **given}
    with pytest.raises(RopescaleError, match=f"^{said}"):
        verify_server("http://127.0.0.1:9", **asked)
