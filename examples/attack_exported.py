"""Attacks an exported model with packages made for that, beside certificates.

    KERAS_BACKEND=torch python examples/attack_exported.py MODEL.keras \\
        --data TEST.npz --epsilon 0.5

An exported model is stock Keras. Under the PyTorch backend it is a
`torch.nn.Module`, too, which is what most of these packages want: foolbox
(Carlini and Wagner), torchattacks (AutoAttack) and ART (projected gradient
descent). None is required otherwise: `pip install foolbox torchattacks
adversarial-robustness-toolbox`. Those that are missing are left out.

The accuracy that an attack leaves within a radius may not be below the
certified one. The exit status is 1 if it is.
"""

import argparse
import sys

import keras
import numpy as np
from common import HelpFormatter
from common import as_images
from common import read_npz

# Importing the library registers what an exported model may contain.
from deel.lip.certification import certify


def channels_first(model):
    """Wraps a model of images as a torch module that takes channels first."""
    import torch

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model(images.permute(0, 2, 3, 1), training=False)

    return Wrapped().eval()


def carlini_wagner(model, x, y, epsilon, steps):
    """Runs foolbox; returns which images keep their class within `epsilon`."""
    import foolbox
    import torch

    device = next(model.parameters()).device
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=6, steps=steps, initial_const=1.0
    )
    _, _, success = attack(
        foolbox.PyTorchModel(model, bounds=(0, 1), device=device),
        torch.tensor(x, device=device),
        torch.tensor(y, device=device),
        epsilons=epsilon,
    )
    return ~success.cpu().numpy()


def auto_attack(model, x, y, epsilon, steps):
    """Runs AutoAttack of torchattacks, which has a number of steps of its own.

    Returns which images keep their class within `epsilon`.
    """
    import torch
    import torchattacks

    del steps
    classes = model(torch.tensor(x[:1])).shape[-1]
    attack = torchattacks.AutoAttack(
        model, norm="L2", eps=epsilon, n_classes=classes
    )
    found = attack(torch.tensor(x), torch.tensor(y))
    # What the attack rounds outside of the ball does not count.
    shift = (found - torch.tensor(x)).double().flatten(1).norm(dim=1)
    with torch.no_grad():
        changed = model(found).argmax(dim=1) != torch.tensor(y)
    return ~(changed & (shift <= epsilon * (1 + 1e-6))).cpu().numpy()


def projected_gradient(model, x, y, epsilon, steps):
    """Runs ART; returns which images keep their class within `epsilon`."""
    import torch
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    with torch.no_grad():
        classes = model(torch.tensor(x[:1])).shape[-1]
    classifier = PyTorchClassifier(
        model,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=x.shape[1:],
        nb_classes=classes,
        clip_values=(0.0, 1.0),
    )
    attack = ProjectedGradientDescent(
        classifier,
        norm=2,
        eps=epsilon,
        eps_step=epsilon / 4,
        max_iter=steps,
        num_random_init=1,
        verbose=False,
    )
    found = attack.generate(x, y)
    shift = np.linalg.norm((found - x).reshape(len(x), -1), axis=1)
    changed = np.argmax(classifier.predict(found), axis=-1) != y
    # What the attack rounds outside of the ball does not count.
    return ~(changed & (shift <= epsilon * (1 + 1e-6)))


ATTACKS = {
    "Carlini-Wagner (foolbox)": carlini_wagner,
    "AutoAttack (torchattacks)": auto_attack,
    "Projected gradient (ART)": projected_gradient,
}


def parse_arguments(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Attacks an exported model beside its certificates.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model", help="file of an exported model of images")
    parser.add_argument(
        "--data",
        type=read_npz,
        required=True,
        metavar="FILE.npz",
        help="images and labels; those of the test set are used",
    )
    parser.add_argument(
        "--epsilon", type=float, default=0.5, help="radius of the attacks"
    )
    parser.add_argument(
        "--count", type=int, default=100, help="number of images"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=100,
        help="steps of Carlini and Wagner, and of projected gradient",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Certifies and attacks.

    Returns:
        Integer, the exit status: 1 if an attack leaves less than is certified.
    """
    args = parse_arguments(argv)
    if keras.backend.backend() != "torch":
        raise SystemExit(
            "These packages attack torch modules. Set KERAS_BACKEND=torch."
        )
    model = keras.models.load_model(args.model, compile=False)
    x, y = (array[: args.count] for array in args.data[1])
    x, y = as_images(x), np.ravel(y).astype("int64")
    # The attacks run in float32, so that is what is certified.
    certificates = certify(model, x, y, rounding="float32")
    (certified,) = certificates.certified_accuracy([args.epsilon])
    print(f"Accuracy on {len(x)} images: {certificates.accuracy:.4f}")
    print(f"Certified within {args.epsilon:g}: {certified:.4f}")
    first = np.moveaxis(x, -1, 1)
    module = channels_first(model)
    sure = certificates.correct & (certificates.radius > args.epsilon)
    total = 0
    for name, attack in ATTACKS.items():
        try:
            kept = attack(module, first, y, args.epsilon, args.steps)
        except ImportError:
            print(f"{name}: not installed")
            continue
        left = np.mean(kept & certificates.correct)
        broken = np.sum(sure & ~kept)
        total += broken
        print(f"{name}: {left:.4f} left, {broken} certificates broken")
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
