"""Responses to a benchmark on disk, as they come: what is there is not drawn again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr_lightning.errors import DataError
from rlvr_lightning.rollout.files import write_whole

Record = dict[str, Any]


class KeptResponses:
    """`NAME.jsonl`, a response a line, and beside it `NAME.protocol.json`, how they were drawn.

    Args:
        folder: of the policy's responses.
        name: of the benchmark.
        protocol: how responses are drawn this time, and from which policy.

    Raises:
        DataError: what is there was drawn in another way.
    """

    def __init__(self, folder: Path, name: str, protocol: Mapping[str, Any]) -> None:
        self.path, about = folder / f"{name}.jsonl", folder / f"{name}.protocol.json"
        # As it comes back from the file.
        now = json.loads(json.dumps(protocol))
        if about.is_file():
            before = json.loads(about.read_text())
            for key in sorted(now.keys() | before.keys()):
                if now.get(key) != before.get(key):
                    raise DataError(
                        f"{self.path} holds responses of {key}={before.get(key)!r}, and {key}={now.get(key)!r} is asked for: "
                        "choose another output_dir, or remove that file and its .protocol.json"
                    )
        else:
            write_whole(about, (json.dumps(now, indent=2) + "\n").encode())

    def read(self) -> list[Record]:
        """What is there. A last line that a kill has cut is taken off.

        Raises:
            DataError: the file is damaged elsewhere.
        """
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise DataError(
                f"{self.path} is damaged ({error}): remove it, and its responses are drawn again"
            ) from error

    def append(self, records: Sequence[Record]) -> None:
        """Add responses; they are on the disk when it returns.

        Raises:
            OSError: there is no room; none of them is added.
        """
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        before = self.path.stat().st_size if self.path.is_file() else 0
        try:
            with self.path.open("ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # What a full disk took of them would stand in the middle of the file later on.
            os.truncate(self.path, before)
            raise
