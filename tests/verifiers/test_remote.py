"""The judge behind HTTP, against a real server: errors that pass and stay, slow, trickling and garbled answers."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rlvr_lightning.errors import ConfigError, VerifierError, VerifierTimeoutError
from rlvr_lightning.types import Problem, Verdict
from rlvr_lightning.verifiers.pool import VerifierPool
from rlvr_lightning.verifiers.remote import RemoteVerifier

PROBLEM = Problem("p7", ({"role": "user", "content": "2+2?"},), "4")


class Handler(BaseHTTPRequestHandler):
    """Does what the response says: `503 2` fails twice, then judges."""

    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, dict(self.headers), asked))
            self.counted = 1
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
            earlier = sum(other["response"] == asked["response"] for _, _, other in self.server.asked) - 1
        try:
            self.answer(asked["response"], earlier)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self.leave()

    def leave(self) -> None:
        with self.server.lock:
            self.server.busy -= self.counted
            self.counted = 0

    def answer(self, response: str, earlier: int) -> None:
        verb, _, value = response.partition(" ")
        if verb.isdigit() and (not value or earlier < int(value)):
            self.tell(int(verb), b"out of order")
        elif verb == "drop" and earlier < int(value):
            self.close_connection = True
        elif verb == "sleep":
            time.sleep(float(value))
            # Before the answer: with it the client may send the next request, and this one would still count.
            self.leave()
            self.tell(200, b'{"reward": 1}')
        elif verb == "trickle":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.2)
        elif verb == "raw":
            self.tell(200, value.encode())
        elif verb == "flood":
            self.tell(200, b'{"reward": 1, "x": "' + b"x" * 2**21 + b'"}')
        else:
            self.tell(200, json.dumps({"reward": 0.25, "correct": True, "extracted": "4" * 300}).encode())

    def tell(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        pass


class Server(ThreadingHTTPServer):
    """Remembers what it was asked, and how many at a time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.busy = self.busiest = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/judge?model=m"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_sent_and_what_comes_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    assert RemoteVerifier(server.url, token_env="MY_TOKEN")("ünd", PROBLEM) == Verdict(0.25, True, "4" * 200)
    ((path, headers, asked),) = server.asked
    assert path == "/judge?model=m"
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Content-Type"] == "application/json"
    assert asked == {"response": "ünd", "answer": "4", "id": "p7", "messages": [{"role": "user", "content": "2+2?"}]}
    RemoteVerifier(server.url)("ünd", PROBLEM)
    assert "Authorization" not in server.asked[1][1]


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ('{"reward": 1}', Verdict(1.0, True)),
        ('{"reward": 0.5}', Verdict(0.5, False)),
        ('{"reward": -1.5, "extracted": null, "correct": false}', Verdict(-1.5, False)),
    ],
)
def test_what_may_be_left_out(server: Server, body: str, verdict: Verdict) -> None:
    assert RemoteVerifier(server.url)(f"raw {body}", PROBLEM) == verdict


@pytest.mark.parametrize("trouble", ["500 2", "502 1", "503 2", "504 1", "429 2", "drop 2"])
def test_what_passes_is_tried_again(server: Server, trouble: str) -> None:
    assert RemoteVerifier(server.url, retries=2)(trouble, PROBLEM).reward == 0.25
    assert len(server.asked) == int(trouble.split()[1]) + 1


def test_what_stays_is_an_error_after_the_last_try(server: Server) -> None:
    with pytest.raises(VerifierError, match=r"/judge\?model=m answers 503 Service Unavailable: 'out of order'"):
        RemoteVerifier(server.url, retries=1)("503", PROBLEM)
    assert len(server.asked) == 2
    with pytest.raises(VerifierError, match="cannot be reached: RemoteDisconnected"):
        RemoteVerifier(server.url, retries=0)("drop 9", PROBLEM)
    with pytest.raises(VerifierError, match="answers 500"):
        RemoteVerifier(server.url, retries=0)("500 1", PROBLEM)


@pytest.mark.parametrize("refusal", ["400", "401", "404", "301"])
def test_a_refusal_is_final(server: Server, refusal: str) -> None:
    with pytest.raises(VerifierError, match=f"answers {refusal}"):
        RemoteVerifier(server.url)(refusal, PROBLEM)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "garbage",
    [
        "raw ",
        "raw fine",
        "raw [1]",
        'raw {"score": 1}',
        'raw {"reward": "1"}',
        'raw {"reward": true}',
        'raw {"reward": NaN}',
        'raw {"reward": 1, "correct": "yes"}',
        'raw {"reward": 1, "extracted": 4}',
        "raw \N{SNOWMAN}",
        "flood",
    ],
)
def test_garbage_is_an_error(server: Server, garbage: str) -> None:
    with pytest.raises(VerifierError, match="answers no verdict: "):
        RemoteVerifier(server.url)(garbage, PROBLEM)
    assert len(server.asked) == 1


@pytest.mark.parametrize("slow", ["sleep 30", "trickle"])
def test_slow_answers_end_in_time(server: Server, slow: str) -> None:
    began = time.monotonic()
    with pytest.raises(VerifierTimeoutError, match=r"no answer from http://.* within 0.5 s"):
        RemoteVerifier(server.url, timeout_s=0.5, retries=1)(slow, PROBLEM)
    assert 1.2 <= time.monotonic() - began < 15
    assert len(server.asked) == 2


def test_nobody_there() -> None:
    server = Server()
    url = server.url
    server.server_close()
    with pytest.raises(VerifierError, match="cannot be reached: ConnectionRefusedError"):
        RemoteVerifier(url, retries=1)("4", PROBLEM)


def test_no_more_requests_at_a_time_than_allowed(server: Server) -> None:
    pool = VerifierPool(RemoteVerifier(server.url, concurrency=3))
    found = pool.collect([pool.submit(f"sleep 0.{place:02}", PROBLEM) for place in range(10, 22)])
    kinds = Counter(one.kind for one in found)
    pool.close()
    assert kinds == {"correct": 12}
    # At once, but on a busy machine perhaps never all of them.
    assert 2 <= server.busiest <= 3
    assert pool.num_processes == 0


def test_a_copy_asks_alike(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    verifier = RemoteVerifier(server.url, 7.0, 2, 5, "MY_TOKEN", "code")
    copy = pickle.loads(pickle.dumps(verifier))
    assert copy("fine", PROBLEM) == Verdict(0.25, True, "4" * 200)
    for name in ("url", "timeout_s", "retries", "concurrency", "token_env", "judges"):
        assert getattr(copy, name) == getattr(verifier, name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "judge"}, "RemoteVerifier.url must begin with http:// or https:// and a host; got 'judge'"),
        ({"url": "ftp://judge"}, "RemoteVerifier.url must begin"),
        ({"timeout_s": 0}, "RemoteVerifier.timeout_s must be above 0; got 0"),
        ({"retries": -1}, "RemoteVerifier.retries must be at least 0; got -1"),
        ({"concurrency": 0}, "RemoteVerifier.concurrency must be at least 1; got 0"),
        ({"token_env": "NO_SUCH_TOKEN"}, "RemoteVerifier.token_env: the environment has no NO_SUCH_TOKEN"),
        ({"judges": "prose"}, "RemoteVerifier.judges must be answer or code; got 'prose'"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RemoteVerifier(**{"url": "http://judge", **settings})
