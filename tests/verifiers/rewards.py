"""Rewards of a user's own, for the tests of `verifier=function`."""

from __future__ import annotations


def score(response: str, answer: str) -> float:
    return 0.5 * (answer in response)


def length(response: str, answer: str) -> float:
    return float(len(response))
