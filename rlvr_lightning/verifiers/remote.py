"""A judge behind HTTP: another model, a service, a cluster. It answers within its time, is asked again, or is an error."""

from __future__ import annotations

import contextlib
import http
import http.client
import json
import math
import os
import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from rlvr_lightning.errors import ConfigError, VerifierError, VerifierTimeoutError
from rlvr_lightning.types import Problem, Verdict

# An answer is a number and a few words.
MOST_BYTES = 2**20
# Too many requests, and what goes wrong in a server and may go right later.
RETRIED = (429, 500, 502, 503, 504)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0


class _AgainError(VerifierError):
    """A try failed by what may be over at the next one."""


class _LateError(_AgainError, VerifierTimeoutError):
    """A try took too long."""


class RemoteVerifier:
    """Posts `{"response", "answer", "id", "messages"}` as JSON and takes `{"reward", "correct", "extracted"}` for an answer.

    `correct` may be left out (a reward of 1 or more is right then), and so may `extracted`.

    Args:
        url: `http://` or `https://`.
        timeout_s: of one try, from the connection to the last byte [seconds].
        retries: further tries after a time-out, a broken connection, too many requests (429) or an error of the server
            (500, 502, 503, 504), after pauses that double from 0.2 to 10 seconds. Any other answer is final.
        concurrency: requests at a time, of each rank.
        token_env: name of the environment variable that holds a bearer token; None for none.
        judges: `answer` or `code`: what of a response the judge judges.

    Raises:
        ConfigError: the URL is none, a number is out of range, or the environment has no such variable.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = 30.0,
        retries: int = 3,
        concurrency: int = 8,
        token_env: str | None = None,
        judges: str = "answer",
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"RemoteVerifier.url must begin with http:// or https:// and a host; got {url!r}")
        if not timeout_s > 0:
            raise ConfigError(f"RemoteVerifier.timeout_s must be above 0; got {timeout_s}")
        if retries < 0:
            raise ConfigError(f"RemoteVerifier.retries must be at least 0; got {retries}")
        if concurrency < 1:
            raise ConfigError(f"RemoteVerifier.concurrency must be at least 1; got {concurrency}")
        if token_env is not None and not os.environ.get(token_env):
            raise ConfigError(f"RemoteVerifier.token_env: the environment has no {token_env}")
        if judges not in ("answer", "code"):
            raise ConfigError(f"RemoteVerifier.judges must be answer or code; got {judges!r}")
        self.url, self.timeout_s, self.retries, self.concurrency = url, timeout_s, retries, concurrency
        self.token_env, self.judges = token_env, judges
        self._places = threading.BoundedSemaphore(concurrency)

    def __reduce__(self) -> tuple[type[RemoteVerifier], tuple[str, float, int, int, str | None, str]]:
        return type(self), (self.url, self.timeout_s, self.retries, self.concurrency, self.token_env, self.judges)

    def __call__(self, response: str, problem: Problem) -> Verdict:
        """The judge's verdict.

        Args:
            response: what the model wrote.
            problem: its `answer`, `id` and `messages` are sent too.

        Raises:
            VerifierTimeoutError: the last try took too long.
            VerifierError: the judge refused, answered no verdict, or could not be reached.
        """
        asked = {"response": response, "answer": problem.answer, "id": problem.id, "messages": problem.messages}
        body, pause = json.dumps(asked).encode(), FIRST_PAUSE_S
        for left in range(self.retries, -1, -1):
            try:
                with self._places:
                    return self._verdict(self._post(body))
            except _AgainError:
                if not left:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        raise AssertionError

    def _post(self, body: bytes) -> bytes:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=self.timeout_s)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        late, timer, began = threading.Event(), None, time.monotonic()
        try:
            connection.connect()
            # A socket's time-out is of each byte: an answer that trickles in would take for ever.
            timer = threading.Timer(self.timeout_s - time.monotonic() + began, _end, (connection.sock, late))
            timer.daemon = True
            timer.start()
            connection.request("POST", path, body, self._headers())
            answer = connection.getresponse()
            content = answer.read(MOST_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise self._late() from error
            raise _AgainError(f"{self.url} cannot be reached: {type(error).__name__}: {error}") from error
        finally:
            if timer is not None:
                timer.cancel()
            connection.close()
        if late.is_set():
            raise self._late()
        if answer.status != http.HTTPStatus.OK:
            told = f"{self.url} answers {answer.status} {answer.reason}: {content[:100].decode(errors='replace')!r}"
            raise (_AgainError if answer.status in RETRIED else VerifierError)(told)
        return content

    def _late(self) -> _LateError:
        return _LateError(f"no answer from {self.url} within {self.timeout_s:g} s")

    def _headers(self) -> dict[str, str]:
        token = {} if self.token_env is None else {"Authorization": f"Bearer {os.environ[self.token_env]}"}
        return {"Content-Type": "application/json", "Accept": "application/json", **token}

    def _verdict(self, content: bytes) -> Verdict:
        try:
            told: Any = json.loads(content) if len(content) <= MOST_BYTES else None
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise self._no_verdict(content)
        reward, extracted = told.get("reward"), told.get("extracted")
        if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
            raise self._no_verdict(content)
        correct = told.get("correct", reward >= 1)
        if not isinstance(correct, bool) or not isinstance(extracted, str | None):
            raise self._no_verdict(content)
        return Verdict(float(reward), correct, None if extracted is None else extracted[:200])

    def _no_verdict(self, content: bytes) -> VerifierError:
        return VerifierError(f"{self.url} answers no verdict: {content[:100].decode(errors='replace')!r}")


def _end(held: socket.socket, late: threading.Event) -> None:
    late.set()
    # It may be over already.
    with contextlib.suppress(OSError):
        held.shutdown(socket.SHUT_RDWR)
