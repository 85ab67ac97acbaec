"""The tests of a row run in one process by the plainest means: what a program must pass, with no harness of ours.

Usage: python brute.py FILE, a JSON list of source texts run one after the other in one namespace; exit code 0 if nothing is
raised. For readers: the programs' standard input is this one's.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (4, 4))
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    names: dict[str, object] = {"__name__": sys.argv[2]}
    for source in json.loads(Path(sys.argv[1]).read_text()):
        exec(compile(source, "<source>", "exec"), names)
