"""The child process of a pool: it is given a verifier once, then judges response after response; see `pool`."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import sys
from dataclasses import asdict
from typing import Any

from rlvr_lightning.verifiers.judging import judge
from rlvr_lightning.verifiers.lifeline import end_with_parent
from rlvr_lightning.verifiers.protocol import Closable, Startable


def main() -> None:
    """Take the verifier from the first line of standard input, then answer each further line with a judgement."""
    end_with_parent(by_kernel=True)
    # Answers have a channel of their own: what a verifier prints must not mix with them.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    # A parent that is gone needs no answer.
    with contextlib.suppress(BrokenPipeError):
        tell({})
        verifier: Any = None
        for line in sys.stdin:
            request = json.loads(line)
            if "verifier" in request:
                try:
                    verifier = pickle.loads(base64.b64decode(request["verifier"]))
                    if isinstance(verifier, Startable):
                        verifier.start()
                except Exception as error:  # noqa: BLE001 - told to the parent, which refuses the verifier
                    tell({"error": f"{type(error).__name__}: {error}"})
                else:
                    tell({})
                continue
            problem = pickle.loads(base64.b64decode(request["problem"]))
            tell({"judgement": asdict(judge(verifier, request["response"], problem))})
        if isinstance(verifier, Closable):
            verifier.close()


if __name__ == "__main__":
    main()
