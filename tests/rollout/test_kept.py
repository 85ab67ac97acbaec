"""Responses on disk: whole, cut, of another protocol, on a full disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlvr_lightning.errors import DataError
from rlvr_lightning.rollout.benchmarks.kept import KeptResponses

PROTOCOL = {"samples": 2, "temperature": 0.8, "verifier": {"name": "ExactVerifier"}}
RECORDS = [{"problem_id": "é", "sample": i, "response": f"a\nb\u2028{i}"} for i in range(3)]


def test_what_is_appended_is_read_again(tmp_path: Path) -> None:
    kept = KeptResponses(tmp_path, "sums", PROTOCOL)
    assert kept.read() == []
    kept.append(RECORDS[:2])
    kept.append(RECORDS[2:])
    assert KeptResponses(tmp_path, "sums", PROTOCOL).read() == RECORDS
    assert KeptResponses(tmp_path, "others", {**PROTOCOL, "samples": 3}).read() == []


def test_a_line_cut_by_a_kill_is_taken_off(tmp_path: Path) -> None:
    kept = KeptResponses(tmp_path, "sums", PROTOCOL)
    kept.append(RECORDS)
    whole = kept.path.read_bytes()
    for cut in range(len(whole) - 1, whole[:-1].rfind(b"\n"), -1):
        kept.path.write_bytes(whole[:cut])
        assert kept.read() == RECORDS[:2]
        kept.append(RECORDS[2:])
        assert kept.path.read_bytes() == whole


def test_damage_elsewhere_is_told(tmp_path: Path) -> None:
    kept = KeptResponses(tmp_path, "sums", PROTOCOL)
    kept.path.write_text('{"problem_id": \n{}\n')
    with pytest.raises(DataError, match=r"sums\.jsonl is damaged .*: remove it"):
        kept.read()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": 1.0}, r"holds responses of temperature=0\.8, and temperature=1\.0 is asked for"),
        ({"verifier": {"name": "MathVerifier"}}, "holds responses of verifier="),
        ({"policy_version": 3}, "holds responses of policy_version=None, and policy_version=3"),
    ],
)
def test_responses_of_another_protocol_are_not_mixed_in(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    KeptResponses(tmp_path, "sums", PROTOCOL)
    with pytest.raises(DataError, match=message):
        KeptResponses(tmp_path, "sums", {**PROTOCOL, **changed})


FULL = """
import resource, signal, sys
from pathlib import Path
from rlvr_lightning.rollout.benchmarks.kept import KeptResponses
kept = KeptResponses(Path(sys.argv[1]), "sums", {})
kept.append([{"n": 1}])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))
try:
    kept.append([{"n": 2, "long": "x" * 100}])
except OSError as error:
    print(error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
kept.append([{"n": 3}])
print([record["n"] for record in kept.read()])
"""


def test_what_finds_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("limits of Linux")
    script = FULL.replace("(40, 40)", "(40, resource.RLIM_INFINITY)")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["27", "[1, 3]"]
