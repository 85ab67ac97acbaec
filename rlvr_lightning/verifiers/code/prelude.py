"""What LiveCodeBench runs before each program: names that solutions use without importing them."""

from __future__ import annotations

_MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json"),
)

# lcb_runner/evaluation/testing_util.py: everything of the modules, the modules, a deeper recursion.
LIVECODEBENCH = "\n".join(
    [
        *(f"from {name} import *" for name in (*_MODULES, "builtins", "typing")),
        *(f"import {name}" for name in _MODULES),
        "sys.setrecursionlimit(50000)",
    ]
)
