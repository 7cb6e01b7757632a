"""Where a server is reached: one question, one answer in JSON, or a sentence that says why there is none.

A server may be anything that listens there: it may hang, send without end, or send the caller elsewhere. What it says
is quoted, never obeyed, and a key that was sent to it is in no text.
"""

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from ropescale.checks import as_float
from ropescale.errors import InvalidArgumentError, ServerError, first_line, shortened
from ropescale.files import parsed

LARGEST = 64 * 2**20  # bytes of an answer; twenty log-probabilities take two thousand
PIECE = 2**16  # bytes that are read at once
ADDRESS = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?(/[\w.~/%-]*)?", re.ASCII)
EXAMPLE = "http://127.0.0.1:8000"


class RefusalError(ServerError):
    """A question that the server answered with an error of its own."""

    def __init__(self, text: str, *, status: int, said: str) -> None:
        super().__init__(text)
        self.status = status  # of HTTP
        self.said = said  # in the server's words


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer: the key is for the address that was given, and for no other."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The address of a server, with what is needed to be heard there."""

    url: str  # without a slash at the end, and without /v1
    key: str = field(default="", repr=False)
    timeout: float = 60.0  # seconds for one answer

    @classmethod
    def of(cls, url: str, *, api_key: str | None, timeout: float) -> "Endpoint":
        """The endpoint of what a caller gives; the key is read from the environment variable of that name.

        Raises:
            InvalidArgumentError: no address of a server, no such variable, or no time.
        """
        shown = "one with a user name" if "@" in str(url) else shortened(url)  # and with a password, maybe
        if not isinstance(url, str) or not ADDRESS.fullmatch(url):
            raise InvalidArgumentError(
                f"url: must be the http or https address of a server, got {shown}; give it as in {EXAMPLE}"
            )
        if not 0 < as_float(timeout) < float("inf"):
            raise InvalidArgumentError(
                f"timeout: must be a number of seconds above 0, got {shortened(timeout)}; leave it out for 60"
            )
        key = "" if api_key is None else os.environ.get(api_key, "")
        if api_key is not None and not key:  # it may be the key itself, which nobody wants to read here
            raise InvalidArgumentError(
                "api_key: must be the name of an environment variable that holds the key, got one that is not set; "
                "export the key under a name, and give that name"
            )
        if key and not (key.isascii() and key.isprintable()):
            raise InvalidArgumentError(
                "api_key: must name an environment variable with a key of printable ASCII characters, got another "
                "one; export the key without line ends"
            )
        return cls(url=url.rstrip("/").removesuffix("/v1").rstrip("/"), key=key, timeout=float(timeout))

    def asked(self, path: str, question: dict[str, Any] | None = None, *, after: str = "") -> dict[str, Any]:
        """The object that the server answers with.

        Args:
            path: behind the address.
            question: what is sent; without one it is a GET.
            after: what the question is, for a sentence.

        Raises:
            RefusalError: the server answered with an error.
            ServerError: no server there, none that answers in time, or none that answers in JSON.
        """
        where = f"{self.url}{path}"
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if question is None else json.dumps(question).encode()
        request = urllib.request.Request(where, data=data, headers=headers)
        opener = urllib.request.build_opener(_NoRedirect)
        ends = time.monotonic() + self.timeout
        try:
            with opener.open(request, timeout=self.timeout) as answer:
                text = self._read(answer, ends, where, after)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error, where, ends, after) from error
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                raise self._slow(where, after) from error
            cause = reason if isinstance(reason, Exception) else error
            raise ServerError(
                f"{where}: must be a server that answers, got {type(cause).__name__}: "
                f"{self._hidden(first_line(cause))}; start it, or correct the address"
            ) from error
        return parsed_answer(text, where, self._hidden)

    def _read(self, answer: Any, ends: float, where: str, after: str) -> str:
        """The text of an answer, as long as there is time for it: a server may send a byte now and then."""
        pieces, size = [], 0
        while piece := answer.read1(PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > LARGEST:
                raise ServerError(
                    f"{where}: must answer with at most {LARGEST:,} bytes, got more; give the address of an "
                    f"OpenAI-compatible server"
                )
            if time.monotonic() > ends:
                raise self._slow(where, after)
        return b"".join(pieces).decode("utf-8", errors="replace")

    def _slow(self, where: str, after: str) -> ServerError:
        return ServerError(
            f"{where}: must answer within {self.timeout:g} seconds, got no whole answer{after and f' to {after}'}; "
            f"give it more with timeout=N, or ask shorter prompts with lengths=[N]"
        )

    def _refused(self, error: urllib.error.HTTPError, where: str, ends: float, after: str) -> ServerError:
        """The error for a status that is none of success, with what the server says of it."""
        if 300 <= error.code < 400:
            place = self._hidden(str(error.headers.get("Location", "nowhere")))
            return ServerError(
                f"{where}: must answer itself, got a redirect to {shortened(place)}; give the address that it leads to"
            )
        said = self._hidden(_words(self._read(error, ends, where, after)) or str(error.reason))
        if error.code in (401, 403):
            remedy = "name the environment variable that holds the key as api_key"
        elif error.code == 404:
            remedy = "give the address of an OpenAI-compatible server and the name that it serves the model under"
        else:
            remedy = "see what the server prints"
        return RefusalError(
            f"{where}: must accept the question, got status {error.code} ({said}); {remedy}",
            status=error.code,
            said=said,
        )

    def _hidden(self, text: str) -> str:
        """A text without the key, which some servers repeat."""
        return text.replace(self.key, "(the key)") if self.key else text


def parsed_answer(text: str, where: str, hidden: Any) -> dict[str, Any]:
    """The object of an answer.

    Raises:
        ServerError: there is none.
    """
    try:
        return parsed(text, where)
    except Exception as error:
        raise ServerError(
            f"{where}: must answer with a JSON object, got {hidden(shortened(text[:80]))}; give the address of an "
            f"OpenAI-compatible server, such as {EXAMPLE}"
        ) from error


def _words(text: str) -> str:
    """What the text of an error says: OpenAI's form, or the forms that others have."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return " ".join(text.split())[:200]
    for name in ("error", "message", "detail"):
        if isinstance(values, dict) and name in values:
            values = values[name]
    return values[:400] if isinstance(values, str) else shortened(values)
