"""The run-time type checker of the shape tests: an int may stand where a float is meant."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
