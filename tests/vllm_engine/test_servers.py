"""Real vLLM servers: weights arrive tensor by tensor, and what dies, hangs or forgets is noticed and mended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import agreeing
import pytest
import torch
from training import SMALL, recorded
from waiting import until

from rlvr_lightning.callbacks.table import read_table
from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import ConfigError, EngineLostError, RolloutError
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.rollout.engines.vllm import fleet
from rlvr_lightning.rollout.engines.vllm.installed import vllm_installed
from rlvr_lightning.rollout.engines.vllm.owned import cores, gpus
from rlvr_lightning.rollout.engines.vllm.process import free_port
from rlvr_lightning.rollout.engines.vllm.server import VLLMServerEngine
from rlvr_lightning.rollout.weight_sums import PolicyWeights, compare
from rlvr_lightning.types import GenerationRequest, SamplingSpec

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not vllm_installed(), reason="vllm is not installed: nox -s vllm installs it"),
]
SOURCE = ModelSource()
PROMPTS = [tuple(SOURCE.tokenizer(f"<user>{text}<assistant>")["input_ids"]) for text in ("1+2+3+4=", "19+17+1-4=")]
REQUESTS = [GenerationRequest(prompt, seed) for seed, prompt in enumerate(PROMPTS * 8)]
SAMPLING = SamplingSpec(1.0, 24, SOURCE.stop_token_ids())
widest_gap = partial(agreeing.widest_gap, requests=REQUESTS, sampling=SAMPLING)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServerEngine]:
    folder = tmp_path_factory.mktemp("servers")
    engine = VLLMServerEngine(max_num_seqs=16, log_folder=str(folder), restarts=9, timeout_s=60.0)
    engine.start(SOURCE, torch.device("cpu"), 96, torch.float32)
    yield engine
    engine.close()
    engine.close()


def pids(engine: VLLMServerEngine) -> list[int]:
    """Of a server's process group: the one that looks after it, the server, its engine."""
    assert engine._own is not None
    (process,) = engine._own._processes
    assert process._process is not None
    found = subprocess.run(
        ["ps", "-o", "pid=", "-g", str(process._process.pid)], capture_output=True, text=True, check=True
    )
    return [int(pid) for pid in found.stdout.split()]


def draw_on(engine: VLLMServerEngine) -> None:
    for _ in range(50):
        engine.generate(REQUESTS, SAMPLING)
        time.sleep(0.1)


def test_each_weight_arrives_and_one_that_does_not_is_named(engine: VLLMServerEngine) -> None:
    policy = Policy(SOURCE)
    engine.sync(list(policy.full_weights()), 0)
    assert widest_gap(engine, policy) < 1e-4
    before = dict(policy.full_weights())
    before = {name: weight.clone() for name, weight in before.items()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.causal_lm.parameters():
            # What a step of Adam does.
            parameter.add_(2e-4 * torch.sign(torch.randn(parameter.shape, generator=generator)))
    after = dict(policy.full_weights())
    sent = PolicyWeights(cast(Any, SimpleNamespace(policy=policy)), torch.float32)
    assert [name for name, _ in sent] == list(after)
    for version, name in enumerate(after, 1):
        engine.sync([(other, before[other] if other == name else weight) for other, weight in after.items()], version)
        (workers,) = engine.weight_sums()
        (suspect,) = compare(sent.sums, workers).differ
        parts = {
            "q_proj": "qkv_proj",
            "k_proj": "qkv_proj",
            "v_proj": "qkv_proj",
            "gate_proj": "gate_up_proj",
            "up_proj": "gate_up_proj",
        }
        assert suspect == ".".join(parts.get(piece, piece) for piece in name.split("."))
    engine.sync(list(after.items()), 99)
    assert widest_gap(engine, policy) < 1e-4
    assert {one.policy_version for one in engine.generate(REQUESTS, SAMPLING)} == {99}
    assert engine.take_counts() == {}


def test_who_draws_beside_the_trainer_is_left_half_of_the_cores(engine: VLLMServerEngine) -> None:
    engine.sync(Policy(SOURCE).full_weights(), 2)
    threads, there = torch.get_num_threads(), len(os.sched_getaffinity(0))
    try:
        torch.set_num_threads(there)
        engine.generate(REQUESTS[:1], SAMPLING)
        assert torch.get_num_threads() == there
        (drawn,) = engine.submit(REQUESTS[:1], SAMPLING)
        assert drawn.result().policy_version == 2
        assert torch.get_num_threads() == max(1, there // 2)
    finally:
        torch.set_num_threads(threads)


def test_a_killed_server_is_started_again_and_synced_before_it_serves(engine: VLLMServerEngine) -> None:
    policy = Policy(SOURCE)
    engine.sync(list(policy.full_weights()), 3)
    whole = [one.token_ids for one in engine.generate(REQUESTS, SAMPLING)]
    for victim in (1, -1):  # the server, then the last of its processes: the engine
        os.kill(pids(engine)[victim], signal.SIGKILL)
        with pytest.raises((EngineLostError, RolloutError)):
            draw_on(engine)
        engine.sync(list(policy.full_weights()), 4)
        assert [one.token_ids for one in engine.generate(REQUESTS, SAMPLING)] == whole
        assert engine.take_counts()["restarts"] == 1


def test_a_stopped_server_is_replaced(engine: VLLMServerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "LOOK_S", 1.0)
    engine.sync(list(Policy(SOURCE).full_weights()), 5)
    before = pids(engine)
    os.kill(before[1], signal.SIGSTOP)
    with pytest.raises(EngineLostError):
        engine.generate(REQUESTS, SAMPLING)
    engine.sync(list(Policy(SOURCE).full_weights()), 6)
    assert len(engine.generate(REQUESTS, SAMPLING)) == len(REQUESTS)
    assert not set(before) & set(pids(engine))


def test_servers_end_with_the_run_however_it_ends(tmp_path: Path) -> None:
    code = (
        "import sys, time, torch\n"
        "from rlvr_lightning.models.source import ModelSource\n"
        "from rlvr_lightning.rollout.engines.vllm.server import VLLMServerEngine\n"
        f"engine = VLLMServerEngine(log_folder={str(tmp_path)!r})\n"
        "engine.start(ModelSource(), torch.device('cpu'), 96, torch.float32)\n"
        "print(engine._own._processes[0]._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    group = int(process.stdout.readline())
    process.kill()
    process.wait()

    def left() -> str:
        those = ["ps", "-o", "pid=", "-g", str(group)]
        return subprocess.run(those, capture_output=True, text=True, check=False).stdout.strip()

    assert until(lambda: not left(), 40), f"left behind: {left()}"


def test_a_run_goes_on_over_a_servers_death(tmp_path: Path) -> None:
    mine = [item for item in SMALL if not item.startswith("engine=")]
    server = ("engine=vllm_server", "conf=grpo", "rollout.prompts_per_step=8", "trainer.max_epochs=3")
    run = build_run(compose([*mine, *server, f"output_dir={tmp_path}"]))
    engine, killed = run.data.engine, []

    def kill(*args: Any) -> None:
        if not killed:
            killed.append(pids(engine)[1])  # type: ignore[arg-type]
            os.kill(killed[0], signal.SIGKILL)

    run.module.on_train_batch_start = kill  # type: ignore[method-assign]
    run.fit()
    rows = recorded(tmp_path)
    assert len({(row["prompt_index"], row["sample"]) for row in rows}) == len(rows) == 3 * 8 * 4
    table = [row for row in read_table(tmp_path / "logs" / "metrics.csv") if "engine/restarts" in row]
    assert sum(float(row["engine/restarts"]) for row in table) == 1
    assert max(float(row["rollout/canary_gap_max"]) for row in table) < 1e-4


def test_a_port_that_is_taken_is_refused() -> None:
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        with pytest.raises(ConfigError, match="is taken on this machine: choose another one, or 0 for any"):
            free_port(held.getsockname()[1])


def test_servers_share_cores_and_gpus_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4, 5})
    assert [cores(number, 2) for number in range(2)] == ["0,1,2", "3,4,5"]
    assert [cores(number, 4) for number in range(4)] == ["0", "1,2", "3", "4,5"]
    assert cores(7, 8) == "5"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    # The trainer has the first GPUs, servers the last.
    assert [gpus(place, 2, 3) for place in range(3)] == [["2", "3"], ["4", "5"], ["6", "7"]]
    with pytest.raises(ConfigError, match="need 16 GPUs; this machine has 8"):
        gpus(0, 8, 2)


def test_two_ranks_with_one_server_learn_what_one_rank_does(engine: VLLMServerEngine, tmp_path: Path) -> None:
    assert engine._own is not None
    (process,) = engine._own._processes
    mine = [item for item in SMALL if not item.startswith("engine=")]
    server = ("engine=vllm_server", f"engine.urls=[{process.url}]", "rollout.max_prompt_tokens=48")
    common = [*mine, *server, "conf=grpo", "rollout.prompts_per_step=8"]
    tables = {}
    for ranks, strategy in ((1, "single"), (2, "ddp")):
        folder = tmp_path / str(ranks)
        command = ["fit", *common, f"trainer.devices={ranks}", f"strategy={strategy}", f"output_dir={folder}"]
        subprocess.run([sys.executable, "-m", "rlvr_lightning", *command], check=True, timeout=300)
        tables[ranks] = [row for row in read_table(folder / "logs" / "metrics.csv") if "reward/mean" in row]
    one, two = recorded(tmp_path / "1"), recorded(tmp_path / "2")
    assert len({(row["prompt_index"], row["sample"]) for row in two}) == len(two) == 2 * 8 * 4
    assert {row["prompt_index"] for row in two} == set(range(16))
    told = ("prompt_index", "sample", "policy_version", "token_ids", "reward")
    assert [[row[name] for name in told] for row in two] == [[row[name] for name in told] for row in one]
    for alone, shared in zip(tables[1], tables[2], strict=True):
        assert alone.keys() == shared.keys()
        assert float(shared["rollout/canary_gap_max"]) < 1e-4
        for name in alone:
            # Of time nothing is alike; the gaps are what rounding makes of single tokens.
            tolerance = 1e-4 if "gap" in name or "mismatch" in name else 1e-6
            if name.startswith(("reward/", "policy/", "rollout/", "verifier/", "val/", "engine/")):
                assert float(shared[name]) == pytest.approx(float(alone[name]), abs=tolerance), name


def test_a_server_of_another_model_does_not_take_the_weights(engine: VLLMServerEngine) -> None:
    weights = dict(Policy(SOURCE).full_weights())
    engine.sync(weights.items(), 0)
    other = {name: weight[..., :-1] if "mlp" in name else weight for name, weight in weights.items()}
    with pytest.raises(RolloutError, match=r"does not take the policy's weights \(is it of the same model\?\)"):
        engine.sync(other.items(), 1)
    # It is in the middle of an update now, and is replaced.
    os.kill(pids(engine)[1], signal.SIGKILL)
    with pytest.raises((EngineLostError, RolloutError)):
        draw_on(engine)
    engine.sync(weights.items(), 2)
    assert widest_gap(engine, Policy(SOURCE)) < 1e-4
