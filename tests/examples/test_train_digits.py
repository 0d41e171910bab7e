"""The tenant's script: its arithmetic, without a cluster."""

from __future__ import annotations

import numpy as np
import pytest

from examples.train_digits.train import (
    Digits,
    Parameters,
    Trainer,
    forward,
    gradients,
    initial_parameters,
    load,
    shards,
)


def loss_with(
    parameters: Parameters, batch: Digits, which: int, index: tuple[int, ...], change: float
) -> float:
    moved = [values.copy() for values in parameters]
    moved[which][index] += change
    w1, b1, w2, b2 = moved
    return gradients((w1, b1, w2, b2), batch)[1]


@pytest.mark.parametrize(("which", "index"), [(0, (20, 3)), (1, (5,)), (2, (7, 2)), (3, (9,))])
def test_gradients_any_parameter_equals_the_measured_slope(which: int, index: tuple[int, ...]) -> None:
    batch = shards(load("train"), 40)[0]
    parameters = initial_parameters()
    step = 1e-5
    slope = loss_with(parameters, batch, which, index, step) - loss_with(
        parameters, batch, which, index, -step
    )
    assert gradients(parameters, batch)[0][which][index] == pytest.approx(
        slope / (2 * step), rel=1e-4, abs=1e-8
    )


def test_load_parts_share_no_picture() -> None:
    train, test = load("train"), load("test")
    assert len(train.digits) + len(test.digits) == 1797
    seen = {picture.tobytes() for picture in train.pictures}
    assert not any(picture.tobytes() in seen for picture in test.pictures)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_any_count_are_equal_and_disjoint(count: int) -> None:
    everything = Digits(np.arange(30.0).reshape(30, 1), np.arange(30))
    parts = shards(everything, count)
    assert {len(part.digits) for part in parts} == {30 // count}
    assert len({int(digit) for part in parts for digit in part.digits}) == 30 // count * count


def test_trainer_steps_of_one_shard_learn_it() -> None:
    trainer = Trainer(0, shards(load("train"), 3)[0])
    w1, b1, w2, b2 = initial_parameters()
    for _ in range(150):
        (g1, h1, g2, h2), _loss = trainer.step((w1, b1, w2, b2))
        w1, b1, w2, b2 = w1 - 0.2 * g1, b1 - 0.2 * h1, w2 - 0.2 * g2, b2 - 0.2 * h2
    shard = trainer.shard
    guessed = forward((w1, b1, w2, b2), shard.pictures)[1].argmax(axis=1)
    assert (guessed == shard.digits).mean() > 0.8
