"""A training loop in PyTorch: `backward()` and `torch.optim`.

    KERAS_BACKEND=torch python examples/custom_loop_torch.py

The optimizer knows nothing of constraints: it moves kernels away from them. The
library, which hears of each step, brings them back, as it does with optimizers
of Keras.
"""

import sys

from custom_loop import batches
from custom_loop import build_loss
from custom_loop import parse_arguments
from custom_loop import run


def train(model, x, y, args):
    """Trains the model; yields the mean loss after each epoch."""
    import torch

    parameters = [variable.value for variable in model.trainable_variables]
    optimizer_class = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    optimizer = optimizer_class[args.optimizer](
        parameters, lr=args.learning_rate
    )
    loss = build_loss()
    device = parameters[0].device
    for epoch in range(args.epochs):
        values = []
        for images, labels in batches(x, y, args.batch_size, seed=epoch):
            optimizer.zero_grad()
            scores = model(torch.tensor(images, device=device), training=True)
            value = loss(torch.tensor(labels, device=device), scores)
            value.backward()
            optimizer.step()
            values.append(float(value.detach()))
        yield sum(values) / len(values)


def main(argv=None):
    """Trains; returns the exit status."""
    description = "Trains with `backward()` and an optimizer of PyTorch."
    return run(
        train, "torch", parse_arguments(argv, description, ["adam", "sgd"])
    )


if __name__ == "__main__":
    sys.exit(main())
