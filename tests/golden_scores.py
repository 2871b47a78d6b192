"""Labels and scores of which golden values of losses are known."""

import numpy as np


def column(*values):
    return np.array(values, "float32").reshape(-1, 1)


# Of one score, and of three classes; pairs of labels and scores.
BINARY = column(1, 1, 1, 0, 0, 0), column(0.5, 1.5, -0.5, -0.5, -1.5, 0.5)
CLASSES = (
    np.eye(3, dtype="float32")[[0, 0, 0, 1, 1, 2]],
    np.array(
        [
            [2, 0.2, -0.5],
            [-1, -1.2, 0.3],
            [0.8, 2, 0],
            [0, 1, -0.5],
            [2.4, -0.4, -1.1],
            [-0.1, -1.7, 0.6],
        ],
        "float32",
    ),
)
