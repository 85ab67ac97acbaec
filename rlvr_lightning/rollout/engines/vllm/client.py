"""One vLLM server as the run sees it: requests, weights, health."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import aiohttp

from rlvr_lightning.errors import RolloutError
from rlvr_lightning.rollout.engines.vllm.http import HttpThread
from rlvr_lightning.rollout.engines.vllm.requests import generation, sampling_params
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec

# Of calls that a healthy server answers at once [seconds].
PROMPT_S = 30.0
# What goes wrong in a server, or on the way, and may go right later.
RETRIED = (408, 425, 429, 500, 502, 503, 504)


class ServerDownError(RolloutError):
    """A server does not answer."""


class AgainError(RolloutError):
    """A server answered what cannot be used; it may do better."""


class StaleError(RolloutError):
    """A server has drawn a response with other weights than those it was given."""


class MissingError(RolloutError):
    """A server does not have what it is asked for."""


class Server:
    """A server of vLLM.

    Args:
        url: `http://host:port`.
        http: sends requests.
        timeout_s: of one response, from the connection to its last token [seconds].
        router: URL that responses are asked of instead; weights always go to the server itself.
    """

    def __init__(self, url: str, http: HttpThread, timeout_s: float, router: str | None = None) -> None:
        self.url, self.http, self.timeout_s = url.rstrip("/"), http, timeout_s
        self.asked = (router or url).rstrip("/")
        # What it draws from beside its weights, by its name.
        self.adapters: str | None = None
        # Requests under way.
        self.load = 0
        # It does not answer; it holds other weights than it should.
        self.down = self.stale = False
        self.gone = asyncio.Event()

    @property
    def usable(self) -> bool:
        """Whether it is to be asked."""
        return not (self.down or self.stale)

    async def post(
        self,
        path: str,
        payload: Any = None,
        timeout_s: float = PROMPT_S,
        *,
        base: str | None = None,
        plain: bool = False,
        **params: str,
    ) -> Any:
        """A call's answer: JSON, or text where it is plain.

        Raises:
            ServerDownError: there is none.
            AgainError: the server failed.
            MissingError: the server does not have what is asked for.
            RolloutError: the server refused.
        """
        url = f"{base or self.url}/{path}"
        try:
            limit = aiohttp.ClientTimeout(total=timeout_s, sock_connect=PROMPT_S)
            async with self.http.session.post(url, json=payload, params=params, timeout=limit) as response:
                text = await response.text()
                if response.status in RETRIED:
                    raise AgainError(f"{url} answered {response.status}: {_short(text)}")
                if response.status >= 400:
                    kind = MissingError if response.status == 404 else RolloutError
                    raise kind(f"{url} refused: {response.status}: {_short(text)}")
                return text if plain else await response.json(content_type=None) if text else None
        except (aiohttp.ClientError, OSError) as error:
            raise ServerDownError(f"{url} does not answer: {error or type(error).__name__}") from error
        except asyncio.TimeoutError as error:  # noqa: UP041 - other than OSError's before Python 3.11
            raise ServerDownError(f"{url} did not answer in {timeout_s:g} s") from error
        except ValueError as error:
            raise AgainError(f"{url} answered no JSON: {error}") from error

    async def get(self, path: str, timeout_s: float = PROMPT_S) -> Any:
        """A page's JSON; None where it has none.

        Raises:
            ServerDownError: it cannot be had.
        """
        url = f"{self.url}/{path}"
        try:
            async with self.http.session.get(url, timeout=aiohttp.ClientTimeout(total=timeout_s)) as response:
                if response.status != 200:
                    raise ServerDownError(f"{url} answered {response.status}")
                text = await response.text()
                return await response.json(content_type=None) if text else None
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:  # noqa: UP041
            raise ServerDownError(f"{url} does not answer: {error or type(error).__name__}") from error

    async def generate(
        self, request: GenerationRequest, sampling: SamplingSpec, versions: Mapping[str, int]
    ) -> Generation:
        """One response.

        Args:
            request: what is asked.
            sampling: how it is drawn.
            versions: what weights this run has given out, by their labels.

        Raises:
            ServerDownError: the server is gone.
            AgainError: there is no answer in time, or none that can be used.
            StaleError: the response was drawn with weights that are not this run's.
        """
        payload: dict[str, Any] = {
            "token_ids": list(request.token_ids),
            "sampling_params": sampling_params(request, sampling),
        }
        if self.adapters is not None:
            payload["model"] = self.adapters
        try:
            answer = await self.post("inference/v1/generate", payload, self.timeout_s, base=self.asked)
        except ServerDownError as error:
            # A connection may break under a server that is well.
            await self.get("health")
            raise AgainError(str(error)) from error
        except MissingError as error:
            if self.adapters is None:
                raise
            raise StaleError(f"{self.asked} does not hold this run's adapters ({error})") from error
        try:
            (choice,) = answer["choices"]
            logprobs = [float(entry["logprob"]) for entry in choice["logprobs"]["content"]]
            tokens = [int(token) for token in choice["token_ids"]]
            labels = {span["version"] for span in choice["weight_versions"] or ()}
        except (KeyError, TypeError, ValueError) as error:
            raise AgainError(f"{self.asked} answered what is no response: {_short(repr(answer))}") from error
        if not tokens or not all(math.isfinite(value) for value in logprobs):
            raise AgainError(f"{self.asked} answered an empty response, or log-probabilities that are no numbers")
        if not labels or labels - versions.keys():
            raise StaleError(
                f"{self.asked} has drawn with weights that are not this run's ({', '.join(labels) or 'unnamed'})"
            )
        version = min(versions[label] for label in labels)
        try:
            return generation(tokens, logprobs, choice["finish_reason"], version, greedy=sampling.temperature == 0)
        except RolloutError as error:
            raise AgainError(str(error)) from error


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."
