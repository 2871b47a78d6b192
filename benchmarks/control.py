"""Policies of a known constant: what noise and an adversary cost a cart-pole.

    python benchmarks/control.py

A linear-quadratic regulator whose force is limited is imitated by networks of
one proven constant, of several families. The constant is a multiple of that of
the regulator. Printed is the mean cost of 256 rollouts, seed by seed: as it is,
with noise on what is observed, and with an observation that an adversary moves
by as much, along the gradient of the policy, to push the pole the wrong way.
"""

import argparse

import keras
import numpy as np
from keras import ops

from deel.lip.certification import lipschitz_bound
from deel.lip.layers import GroupSort2
from deel.lip.layers import SandwichDense
from deel.lip.layers import SLLDense
from deel.lip.layers import SpectralDense
from deel.lip.model import Sequential

# A cart of 1 kg, a pole of 0.1 kg and half a metre to its centre, 10 N.
GRAVITY, CART, POLE, HALF, FORCE, STEP = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02

# What a state is divided by before a policy sees it: metres, metres a second,
# radians, radians a second.
UNITS = np.array([2.0, 3.0, 0.5, 3.0])

# Constants of the policies, as multiples of that of the regulator.
FACTORS = [0.4, 0.6]

COSTS = np.array([1.0, 0.1, 10.0, 0.1])

FAMILIES = {
    "SpectralDense, GroupSort2": lambda units: [
        SpectralDense(units, activation=GroupSort2()) for _ in range(2)
    ],
    "SpectralDense, ReLU": lambda units: [
        SpectralDense(units, activation="relu") for _ in range(2)
    ],
    "SLLDense": lambda units: [
        SpectralDense(units),
        *(SLLDense(units) for _ in range(2)),
    ],
    "SandwichDense": lambda units: [SandwichDense(units) for _ in range(2)],
}


def moved(states, force):
    """The states after a step, of arrays `(n, 4)` and `(n,)`."""
    place, speed, angle, turning = states.T
    total = CART + POLE
    pushed = (force + POLE * HALF * turning**2 * np.sin(angle)) / total
    falling = (GRAVITY * np.sin(angle) - np.cos(angle) * pushed) / (
        HALF * (4 / 3 - POLE * np.cos(angle) ** 2 / total)
    )
    drawn = pushed - POLE * HALF * falling * np.cos(angle) / total
    speed, turning = speed + STEP * drawn, turning + STEP * falling
    place, angle = place + STEP * speed, angle + STEP * turning
    return np.stack([place, speed, angle, turning], axis=1)


def regulator():
    """The gains of the regulator, in units of the force and of `UNITS`."""
    tiny = 1e-5
    a = np.stack([moved(tiny * e[None], 0.0)[0] / tiny for e in np.eye(4)]).T
    b = moved(np.zeros((1, 4)), np.array([tiny])).T / tiny
    p = np.diag(COSTS)
    for _ in range(3000):
        gain = np.linalg.solve(0.01 + b.T @ p @ b, b.T @ p @ a)
        p = np.diag(COSTS) + a.T @ p @ (a - b @ gain)
    return -gain[0] * UNITS / FORCE


def policy_of(family, constant, gains, units, seed):
    """A network that imitates the regulator where it may be."""
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((4,)), *FAMILIES[family](units), SpectralDense(1)]
    model = Sequential(layers, k_coef_lip=constant)
    random = np.random.default_rng(seed)
    # As many near to rest as further away.
    reach = 10.0 ** random.uniform(-2, 0, (8192, 1))
    seen = (reach * random.uniform(-1, 1, (8192, 4))).astype("float32")
    wanted = np.clip(seen @ gains, -1, 1)[:, None]
    rate = keras.optimizers.schedules.CosineDecay(1e-2, 20 * 32)
    model.compile(keras.optimizers.Adam(rate), "mse")
    model.fit(seen, wanted, epochs=20, batch_size=256, verbose=0)
    return model.vanilla_export()


def cost(act, slope, noise=0.0, adversary=0.0, steps=300):
    """Mean cost of a step, of rollouts from states that are not at rest.

    Args:
        act: Function from observations to forces.
        slope: Function from observations to the gradients of the forces.
        noise: Float, the norm that noise has on average, in `UNITS`.
        adversary: Float, the norm by which observations are moved.
        steps: Integer.
    """
    random = np.random.default_rng(0)
    states = random.uniform(-0.3, 0.3, (256, 4)) * UNITS
    total = 0.0
    for _ in range(steps):
        seen = states / UNITS + random.normal(size=(256, 4)) * noise / 2
        if adversary:
            gradient = slope(seen)
            norm = np.linalg.norm(gradient, axis=1, keepdims=True)
            # A force to the left lets the pole fall to the right.
            wrong = -np.sign(states[:, 2:3] + 0.2 * states[:, 3:4])
            seen = seen + adversary * wrong * gradient / np.maximum(norm, 1e-9)
        force = FORCE * np.clip(act(seen), -1, 1)
        states = moved(states, force)
        # What has fallen lies there.
        states = np.clip(states, -5 * UNITS, 5 * UNITS)
        total += np.mean(np.minimum((states**2) @ COSTS, 10.0))
    return total / steps


def measured(act, slope, size):
    """Costs: as it is, with noise, with an adversary."""
    return [
        cost(act, slope),
        cost(act, slope, noise=size),
        cost(act, slope, adversary=size),
    ]


def of_network(model):
    """The functions of a network that `cost` takes."""

    def act(seen):
        x = ops.convert_to_tensor(seen.astype("float32"))
        return ops.convert_to_numpy(model(x, training=False))[:, 0]

    def slope(seen):
        # Differences, which every backend has.
        moves = 1e-3 * np.eye(4)
        return np.stack(
            [(act(seen + m) - act(seen - m)) / 2e-3 for m in moves], axis=1
        )

    return act, slope


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--factors", type=float, nargs="+", default=FACTORS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--size", type=float, default=0.05)
    args = parser.parse_args()
    gains = regulator()
    norm = float(np.linalg.norm(gains))
    found = measured(
        lambda seen: seen @ gains,
        lambda seen: np.broadcast_to(gains, seen.shape),
        args.size,
    )
    print(f"regulator, constant {norm:.2f}:", np.round(found, 3))
    for factor in args.factors:
        for family in FAMILIES:
            rows = []
            for seed in range(args.seeds):
                model = policy_of(
                    family, factor * norm, gains, args.units, seed
                )
                assert lipschitz_bound(model) <= factor * norm * (1 + 1e-4)
                rows.append(measured(*of_network(model), args.size))
            mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0)
            cells = [
                f"{m:.3f} +- {s:.3f}" for m, s in zip(mean, spread, strict=True)
            ]
            print(f"{factor:g} {family}:", "; ".join(cells), flush=True)


if __name__ == "__main__":
    main()
