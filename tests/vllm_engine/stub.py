"""A stand-in for a vLLM server: its routes, a real model behind them, and whatever goes wrong when a test says so.

It shows how the run takes what a real server does once in a month; that a real one understands the run is tested with real
vLLM (test_servers.py).
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import torch
from aiohttp import web
from safetensors.torch import load_file

from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.rollout.engines.transformers_engine import TransformersEngine
from rlvr_lightning.types import GenerationRequest, SamplingSpec

SOURCE = ModelSource()
# Given the number of a request (1, 2, ...): an answer to give instead of the right one, or None.
Fault = Callable[[int], Awaitable[web.StreamResponse | None]]


async def _none(number: int) -> web.StreamResponse | None:
    return None


class Stub:
    """Serves on a port of its own from a thread.

    Args:
        port: 0 for any.
        version: of vLLM, as it says.
        max_length: of the model, as it says [tokens].
        missing: routes it does not have.
        obstacle: why its workers take no adapters; None where it was started without any.
    """

    def __init__(
        self,
        port: int = 0,
        version: str = "0.32.0",
        max_length: int = 512,
        missing: tuple[str, ...] = (),
        obstacle: str | None = None,
    ) -> None:
        self.version, self.max_length, self.missing, self.obstacle = version, max_length, missing, obstacle
        # What requests may name, besides the model.
        self.names: set[str] = set()
        self.fault: Fault = _none
        # Changes an answer that would be right.
        self.spoil: Callable[[dict[str, Any]], None] = lambda answer: None
        self.asked = self.updates = 0
        self.calls: list[str] = []
        self.dropped: set[str] = set()
        self.label = "default"
        self._weights: dict[str, torch.Tensor] = {}
        # Read here: two threads that build models at a time get in each other's way.
        self._base = dict(Policy(SOURCE).full_weights())
        self._engine = TransformersEngine()
        self._engine.start(SOURCE, torch.device("cpu"), max_length, torch.float32)
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = ""
        self.start(port)

    def start(self, port: int = 0) -> None:
        """Listen."""
        self.port = asyncio.run_coroutine_threadsafe(self._serve(port), self._loop).result()
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Stop listening: connections break."""
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()

    def freeze(self) -> None:
        """As a stopped process: connections stay, nothing moves."""
        self._loop.call_soon(self._loop.stop)

    def thaw(self) -> None:
        """Go on."""
        self._thread.join()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def forget(self) -> None:
        """As after a restart by hand: the model's own weights again."""
        self.label, self.dropped, self.names = "default", set(), set()
        self._engine.start(SOURCE, torch.device("cpu"), self.max_length, torch.float32)

    async def _serve(self, port: int) -> int:
        app = web.Application(client_max_size=2**30)
        posts = {
            "inference/v1/generate": self._generate,
            "update_weights": self._update,
            "finish_weight_update": self._finish,
            "collective_rpc": self._rpc,
        }
        for name in ("pause", "resume", "start_weight_update", "reset_prefix_cache", "init_weight_transfer_engine"):
            posts[name] = self._nothing
        if self.obstacle is not None:
            posts |= {"v1/load_lora_adapter": self._name, "update_weight_version": self._label}
        gets = {"health": {}, "version": {"version": self.version}, "weight_info": {"weight_version": self.label}}
        gets |= {"get_world_size": {"world_size": 1}}
        if "v1/models" not in self.missing:
            app.router.add_get("/v1/models", self._models)
        for name, handler in posts.items():
            if name not in self.missing:
                app.router.add_post(f"/{name}", handler)
        for name, page in gets.items():
            if name not in self.missing:
                app.router.add_get(f"/{name}", lambda request, page=page: _json(page))
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True)
        await site.start()
        return int(site._server.sockets[0].getsockname()[1])  # type: ignore[union-attr]

    async def _models(self, request: web.Request) -> web.Response:
        cards = [{"id": name, "parent": "policy"} for name in self.names]
        return web.json_response({"data": [{"id": "policy", "max_model_len": self.max_length}, *cards]})

    async def _name(self, request: web.Request) -> web.Response:
        if (name := (await request.json()).get("lora_name")) is None:
            return web.Response(status=422)
        self.calls.append("load_lora_adapter")
        self.names.add(name)
        return web.Response(text="Success")

    async def _label(self, request: web.Request) -> web.Response:
        self.label = (await request.json())["new_version"]
        return web.json_response({})

    @torch.no_grad()
    def _add(self, folder: str) -> None:
        """What a worker does with adapters, whose scale is one."""
        found = load_file(Path(folder) / "adapter_model.safetensors")
        told = json.loads((Path(folder) / "adapter_config.json").read_text())
        assert told["r"] == told["lora_alpha"]
        weights = {name: weight.clone() for name, weight in self._base.items()}
        for name in [name for name in found if "lora_A" in name]:
            own = name.removeprefix("base_model.model.").replace("lora_A.", "")
            weights[own] += found[name.replace("lora_A", "lora_B")] @ found[name]
        with self._lock:
            self._engine.sync(list(weights.items()), 0)

    async def _nothing(self, request: web.Request) -> web.Response:
        self.calls.append(request.path[1:])
        return web.json_response({})

    async def _update(self, request: web.Request) -> web.Response:
        self.calls.append("update_weights")
        info = (await request.json())["update_info"]
        offset, held = 0, Path(info["path"]).read_bytes() if info["names"] else b""
        for name, dtype, shape in zip(info["names"], info["dtypes"], info["shapes"], strict=True):
            kind, count = getattr(torch, dtype), torch.Size(shape).numel()
            tensor = torch.frombuffer(bytearray(held), dtype=kind, count=count, offset=offset).view(shape).clone()
            self._weights[name] = tensor
            offset += count * kind.itemsize
        if info["last"]:
            assert info["total"] == len(self._weights)
        return web.json_response({})

    async def _finish(self, request: web.Request) -> web.Response:
        self.calls.append("finish_weight_update")
        held = dict(self._engine._model.named_parameters())  # type: ignore[union-attr]
        # What is dropped stays as it was.
        taken = {name: held[name] if name in self.dropped else weight for name, weight in self._weights.items()}
        with self._lock:
            self._engine.sync(list(taken.items()), 0)
        self._weights, self.label = {}, (await request.json())["weight_version"]
        self.updates += 1
        return web.json_response({})

    async def _rpc(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["method"] == "rlvr_adapter_obstacle":
            return web.json_response({"results": [self.obstacle]})
        if asked["method"] == "rlvr_load_adapters":
            self.calls.append("rlvr_load_adapters")
            self._add(*asked["args"])
            return web.json_response({"results": [None]})
        sums = {name: float(weight.double().sum()) for name, weight in self._engine._model.named_parameters()}  # type: ignore[union-attr]
        return web.json_response({"results": [{"sums": sums, "computed": [], "packed": {}}]})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if (answer := await self.fault(self.asked)) is not None:
            return answer
        asked = await request.json()
        if asked.get("model", "policy") not in {"policy", *self.names}:
            return web.Response(status=404, text="no such model")
        return await _json(await asyncio.get_running_loop().run_in_executor(None, self._drawn, asked))

    def _drawn(self, asked: dict[str, Any]) -> dict[str, Any]:
        params = asked["sampling_params"]
        stops = tuple(params.get("stop_token_ids", ()))
        sampling = SamplingSpec(params["temperature"], params["max_tokens"], stops)
        with self._lock:
            label = self.label
            (drawn,) = self._engine.generate(
                [GenerationRequest(tuple(asked["token_ids"]), params.get("seed") or 0)], sampling
            )
        content = [
            {"token_id": token, "logprob": value} for token, value in zip(drawn.token_ids, drawn.logprobs, strict=True)
        ]
        choice = {
            "token_ids": list(drawn.token_ids),
            "logprobs": {"content": content},
            "finish_reason": drawn.finish_reason,
            "weight_versions": [{"version": label, "start": 0, "end": len(content)}],
        }
        self.spoil(choice)
        return {"choices": [choice]}


async def _json(page: Any) -> web.Response:
    return web.json_response(page)
