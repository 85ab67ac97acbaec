"""Controllers by hand: their values over a run of entropies, their bounds and their state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.controllers.band import Band
from rlvr_lightning.methods.controllers.decrease_increase_decrease import DecreaseIncreaseDecrease
from rlvr_lightning.methods.controllers.halving_doubling import HalvingDoubling
from rlvr_lightning.methods.controllers.increase_then_decrease import IncreaseThenDecrease
from rlvr_lightning.methods.controllers.oscillating_decay import OscillatingDecay
from rlvr_lightning.methods.controllers.protocol import Controller
from rlvr_lightning.methods.controllers.stepwise import Stepwise
from rlvr_lightning.methods.controllers.target import Target

PATH = "constraint.clip_high"


def follow(controller: Controller, entropies: Sequence[float], configured: float = 0.2, steps: int = 0) -> list[float]:
    """The values of a run: the first, then one after each optimizer step."""
    values = [controller.start(configured)]
    for step, entropy in enumerate(entropies, 1):
        values.append(controller(entropy, step, steps or len(entropies)))
    return values


def test_target_adds_the_error_and_its_sum() -> None:
    # Errors 0.1, 0.2, -0.1; their sums 0.1, 0.3, 0.2.
    values = follow(Target(PATH, target=0.3, kp=0.5, ki=0.1, least=0.0, most=1.0), [0.2, 0.1, 0.4])
    assert values == pytest.approx([0.2, 0.2 + 0.05 + 0.01, 0.2 + 0.1 + 0.03, 0.2 - 0.05 + 0.02])
    lowering = follow(Target(PATH, target=0.3, kp=0.5, ki=0.1, direction=-1), [0.2, 0.1, 0.4])
    assert lowering == pytest.approx([0.2, 0.2 - 0.06, 0.2 - 0.13, 0.2 + 0.03])
    assert follow(Target(PATH, initial=0.7, kp=0.0, ki=0.0), [0.1]) == [0.7, 0.7]


def test_target_does_not_wind_up_at_a_bound() -> None:
    controller = Target(PATH, target=1.0, kp=0.0, ki=0.1, least=0.1, most=0.4)
    # Sums 1 and 2 reach 0.4; eight further errors of 1 are forgotten, so the first error of -1 acts at once.
    assert follow(controller, [0.0] * 10) == pytest.approx([0.2, 0.3, *[0.4] * 9])
    assert controller.integral == pytest.approx(1.0)
    assert controller(2.0, 11, 20) == pytest.approx(0.2)
    # The same at the lower bound.
    assert [controller(9.0, step, 20) for step in range(12, 16)] == [0.1] * 4
    assert controller(0.0, 16, 20) == pytest.approx(0.3)


def test_band_goes_on_until_the_other_edge() -> None:
    controller = Band(PATH, low=0.1, high=0.3, step=0.05, least=0.1, most=0.3)
    # Held until the band is left; up below 0.1, on through the band to the bound; down above 0.3, on through the band.
    entropies = [0.2, 0.09, 0.2, 0.1, 0.3, 0.31, 0.2, 0.2, 0.2, 0.2, 0.05]
    expected = [0.2, 0.2, 0.25, 0.3, 0.3, 0.3, 0.25, 0.2, 0.15, 0.1, 0.1, 0.15]
    assert follow(controller, entropies) == pytest.approx(expected)


def test_stepwise_is_the_reports_rule() -> None:
    values = follow(Stepwise(most=0.012), [0.1, 0.19, 0.1, 0.2, 0.3, 0.3, 0.3], configured=0.5)
    assert values == pytest.approx([0.0, 0.005, 0.01, 0.012, 0.007, 0.002, 0.0, 0.0])


def test_halving_and_doubling_goes_through_nothing_to_the_other_side() -> None:
    controller = HalvingDoubling(target=0.3, smallest=0.01, least=-0.05, most=0.06)
    # Above the target: halved while at least 0.01, then to the other side and doubled to the bound.
    down = follow(controller, [0.4] * 6, configured=0.04)
    assert down == pytest.approx([0.04, 0.02, 0.01, -0.01, -0.02, -0.04, -0.05])
    # As it is at the target; below it the same way back.
    assert [controller(0.3, 7, 20), controller(0.3, 8, 20)] == [-0.05, -0.05]
    up = [controller(0.2, step, 20) for step in range(9, 16)]
    assert up == pytest.approx([-0.025, -0.0125, 0.01, 0.02, 0.04, 0.06, 0.06])


def test_halving_and_doubling_leaves_nothing_by_the_smallest_step_and_keeps_to_its_bounds() -> None:
    for entropy, expected in ((0.2, [0.0, 0.01, 0.02]), (0.4, [0.0, -0.01, -0.02]), (0.3, [0.0, 0.0, 0.0])):
        values = follow(HalvingDoubling(target=0.3, smallest=0.01), [entropy, entropy], configured=0.0)
        assert values == pytest.approx(expected)
    # A number that cannot change its sign rests at its bound.
    bounded = HalvingDoubling("regularizer.entropy_bonus.coef", 0.3, 0.01, least=0.0)
    assert follow(bounded, [0.4, 0.4, 0.4, 0.2, 0.2], configured=0.02) == pytest.approx([0.02, 0.01, 0, 0, 0.01, 0.02])


def test_halving_and_doubling_keeps_the_entropy_it_began_with() -> None:
    controller = HalvingDoubling(smallest=0.01)
    assert follow(controller, [0.7, 0.6, 0.65, 0.7, 0.8], configured=0.01) == pytest.approx(
        [0.01, 0.01, 0.02, 0.04, 0.04, 0.02]
    )
    # Another run begins with another.
    assert follow(controller, [0.4, 0.5], configured=0.04) == pytest.approx([0.04, 0.04, 0.02])
    assert controller.state_dict() == {"value": pytest.approx(0.02), "first": 0.4}
    assert follow(HalvingDoubling(initial=0.03), [0.4], configured=0.01) == [0.03, 0.03]


def test_schedules_are_straight_lines_between_their_corners() -> None:
    up_down = IncreaseThenDecrease(PATH, peak=0.25, least=0.2, most=0.6)
    assert follow(up_down, [0.5] * 8) == pytest.approx([0.2, 0.4, 0.6, *[0.6 - 0.4 * k / 6 for k in range(1, 7)]])
    down_up_down = DecreaseIncreaseDecrease(PATH, trough=0.2, peak=0.6, least=0.0, most=1.0)
    expected = [1.0, 0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert follow(down_up_down, [0.5] * 10) == pytest.approx(expected)
    # Beyond the end, and in a run without one.
    assert up_down(0.5, 9, 8) == pytest.approx(0.2)
    assert up_down(0.5, 9, -8) == up_down(0.5, 9, 0) == 0.2


def test_oscillating_decay_switches_at_edges_that_close_in() -> None:
    controller = OscillatingDecay(PATH, low_share=0.2, least=0.1, most=0.5)
    # H_init = 1: low 0.2, high 0.92, 0.84, ..., 0.28, 0.2 after steps 1 to 10.
    entropies = [1.0, 0.3, 0.19, 0.5, 0.6, 0.53, 0.3, 0.19, 0.25, 0.21]
    modes = [0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0]
    assert [0.2 + 0.8 * (1 - k / 10) for k in (5, 6, 9, 10)] == pytest.approx([0.6, 0.52, 0.28, 0.2])
    assert follow(controller, entropies) == [0.5 if mode else 0.1 for mode in modes]


CONTROLLERS: list[Controller] = [
    Target(PATH),
    Band(PATH),
    Stepwise(PATH),
    IncreaseThenDecrease(PATH),
    DecreaseIncreaseDecrease(PATH),
    OscillatingDecay(PATH),
    HalvingDoubling(PATH, most=1.0, least=-1.0),
]


@pytest.mark.parametrize("controller", CONTROLLERS, ids=lambda kind: type(kind).__name__)
def test_a_controller_goes_on_from_its_state_and_stays_within_its_bounds(controller: Controller) -> None:
    entropies = [0.05, 0.4, 0.02, 0.2, 0.01, 0.3, 0.02, 0.5, 3.0, 0.0]
    whole = follow(controller, entropies)
    assert all(controller.least <= value <= controller.most for value in whole[1:])
    follow(controller, entropies[:5], steps=10)
    state = dict(controller.state_dict())
    follow(controller, [0.7, 0.7])
    controller.load_state_dict(state)
    assert [controller(entropy, step, 10) for step, entropy in enumerate(entropies[5:], 6)] == whole[6:]
    assert isinstance(controller, Controller)


def test_oscillating_decay_goes_on_in_the_direction_it_had() -> None:
    controller, other = (OscillatingDecay(PATH, low_share=0.2, least=0.1, most=0.5) for _ in range(2))
    # Raising since 0.1; 0.5 lies between the edges 0.2 and 0.92 to 0.6, where only the state tells.
    assert follow(controller, [1.0, 0.1, 0.5], steps=10) == [0.1, 0.1, 0.5, 0.5]
    other.start(0.2)
    other.load_state_dict(dict(controller.state_dict()))
    assert [kind(0.5, 4, 10) for kind in (controller, other)] == [0.5, 0.5]
    assert [kind(0.9, 5, 10) for kind in (controller, other)] == [0.1, 0.1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Target("clip"), "Target.drives must be a path such as constraint.clip_high; got clip"),
        (lambda: Target(PATH, kp=-1), "Target.kp must be at least 0; got -1"),
        (lambda: Target(PATH, direction=0), "Target.direction must be 1 or -1; got 0"),
        (lambda: Target(PATH, initial=2), "Target.initial must be in [least, most] = [0, 1] or null; got 2"),
        (lambda: Band(PATH, least=1), "Band.least must be below most=1.0, and both finite; got 1"),
        (lambda: Band(PATH, low=0.4), "Band.low must be in [0, high] = [0, 0.3]; got 0.4"),
        (lambda: Band(PATH, step=0), "Band.step must be above 0; got 0"),
        (lambda: Stepwise(step=-0.1), "Stepwise.step must be above 0; got -0.1"),
        (lambda: Stepwise(target=-0.1), "Stepwise.target must be at least 0; got -0.1"),
        (lambda: IncreaseThenDecrease(peak=1), "IncreaseThenDecrease.peak must be in (0, 1); got 1"),
        (
            lambda: DecreaseIncreaseDecrease(trough=0.7),
            "DecreaseIncreaseDecrease.trough must be in (0, peak) = (0, 0.6); got 0.7",
        ),
        (lambda: DecreaseIncreaseDecrease(peak=1.0), "DecreaseIncreaseDecrease.peak must be below 1; got 1.0"),
        (lambda: HalvingDoubling(target=-1), "HalvingDoubling.target must be at least 0 or null; got -1"),
        (lambda: HalvingDoubling(smallest=0), "HalvingDoubling.smallest must be in (0, most] = (0, 0.05]; got 0"),
        (lambda: OscillatingDecay(low_share=2), "OscillatingDecay.low_share must be in [0, 1]; got 2"),
    ],
)
def test_a_controllers_settings_are_checked(build: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value) == message
