"""The Lipschitz constant of a network, from its weights as they are.

Note [Constants of a graph]

Each tensor t of a graph gets a small matrix M, with a column for each input of
the model, such that moving the inputs by distances d = (d_1, d_2, ...) moves t
by at most `||M d||`. An input has the row that selects its own distance. A
layer with the constant L gives `L M`. Tensors side by side (Concatenate) have
their matrices stacked, so do those of which the largest is taken; for a sum,
the norms of the columns add up to a single row, by the triangle inequality.
The constant of a set of tensors is the largest singular value of their stacked
matrices. With one input, this is a product along a path, a sum where branches
are added and the root of a sum of squares where they are concatenated. A layer
that is used at several places has one constant and is used with it at each. A
block that holds its branch has the constant that its formula makes of that of
the branch, which is found like that of a model. Of operations that only move
values about more is known: see `deel.lip.certification._flow`.

Note [Calls]

The walk through a graph leaves a list of calls, from the inputs to the outputs.
With them the values at samples are followed, layer by layer, and what floating
point adds to them (`deel.lip.certification._rounding`).
"""

import keras
import numpy as np

from deel.lip._validation import require_built
from deel.lip._validation import require_one_of
from deel.lip.certification._flow import joint_gain
from deel.lip.certification._refined import refined
from deel.lip.certification._walk import METHODS
from deel.lip.certification._walk import Walk
from deel.lip.certification._walk import final_dense
from deel.lip.certification._walk import start


def lipschitz_bound(
    model,
    input_shape=None,
    p=2,
    constants=None,
    by_output=False,
    return_table=False,
    method="chain",
    refine=False,
):
    """Proven upper bound of the Lipschitz constant of a model or layer.

    It is computed in float64 from the weights as they are, not from what a
    layer promises, and increased by more than what rounding can take away (1e-9
    in relative terms, for matrices of usual sizes). It holds for the inference
    function (`training=False`), in exact arithmetic, between any two inputs.
    Nothing is estimated: where no constant can be proven, an error says so.

    Constants of layers are multiplied along a path, added where branches are
    added, and so on, so the bound of a network can be larger than its constant.
    With several inputs, or outputs, all of them together are one vector.

    Args:
        model: A built `keras.Sequential` or functional model, also of
            `deel.lip.model`, or a built layer. Operations of `keras.ops` in its
            graph count as well: what copies values or compares them, sums,
            norms, activations, and constants that are added or multiplied by.
        input_shape: Tuple, the shape of an input without the batch axis, or a
            list of such tuples for several inputs. Needed where the model was
            built for images of unknown size, and then only for a tight bound,
            or for operations that move values about. Without it, tensors whose
            sizes are not known and that are added are taken to be of one size.
        p: The norm. Must be 2.
        constants: Dictionary from layers, their names or their classes, to
            constants that you know, instead of those found here. Layers that
            stand inside of others, and operations, count as well, so a name
            must be that of one only.
        by_output: Boolean. True for the constant of the output that changes
            fastest by itself, instead of that of the vector of all outputs:
            what `FrobeniusDense` with disjoint neurons promises. It differs for
            models that end with a Dense layer without activation.
        return_table: Boolean, whether the bound of each layer is returned, too.
        method: `"chain"`, or `"product"` for constants of layers alone. The
            chain follows how far a vector can move in which direction, through
            dense layers and activations whose slopes are zero or more: never
            worse, and of networks without constraints by far less.
        refine: Boolean, whether the chain is optimised, which takes seconds:
            the more Dense layers it has, the more that saves. Convolutions are
            left as they are.

    Returns:
        Float; or a pair of a float and a list of `LayerBound`.

    Raises:
        ValueError: If the model is not built, has a `call` of its own or
            weights that are not finite, if the constant of a layer is not
            known, if `input_shape` does not fit, or for `refine=True` with
            `method="product"`.

    Example:

    >>> import keras
    >>> from deel.lip.certification import lipschitz_bound
    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((4,)),
    ...         keras.layers.Dense(3, kernel_initializer="ones"),
    ...         keras.layers.Activation("tanh"),
    ...     ]
    ... )
    >>> round(lipschitz_bound(model), 6)
    3.464102
    """
    if p != 2:
        raise ValueError(
            "Constants are known for the Euclidean norm. Expected `p=2`. "
            f"Received: p={p}"
        )
    if not isinstance(model, keras.layers.Layer):
        raise ValueError(
            "`lipschitz_bound` expects a Keras model or layer. "
            f"Received: model={model} (of type {type(model).__name__})"
        )
    require_one_of("method", method, METHODS, ValueError)
    require_refinable(refine, method)
    require_built(model, "lipschitz_bound")
    walk = Walk(constants, method)
    outputs = walk.run(model, start(model, input_shape))
    walk.require_known_names()
    bound = joint_gain(outputs)
    if refine and len(outputs) == 1:
        bound = min(bound, refined(outputs[0].spread).radius)
    if by_output:
        last = final_dense(model, walk)
        if last is not None:
            _, kernel, flow = last
            spreads = spreads_of(flow, kernel.T, refine)
            bound = float(np.max(score_gains(last, spreads)))
    return (bound, walk.table) if return_table else bound


def require_refinable(refine, method):
    """Raises ValueError where there is no chain to refine."""
    if refine and method != "chain":
        raise ValueError(
            'What is refined is the chain. Expected `method="chain"`. '
            f"Received: refine={refine}, method={method!r}"
        )


def spreads_of(flow, rows, refine):
    """What is known of the directions that a tensor moves in.

    Args:
        flow: `Flow`.
        rows: Array `(outputs, values)`, what it is multiplied with.
        refine: As of `lipschitz_bound`.

    Returns:
        List of `Ellipsoid` or `Spectrum`, each of which holds.
    """
    # What else there is, is of images.
    if flow.spread is None or len(flow.shape) != 2:
        return []
    spreads = [flow.spread]
    if refine:
        spreads.append(refined(flow.spread, rows))
    return spreads


def images_of(spreads, rows):
    """The images of rows that are known, see `Ellipsoid.image`."""
    images = [spread.image(rows) for spread in spreads]
    return [image for image in images if image is not None]


def score_gains(last, spreads):
    """Bounds of each output by itself.

    Args:
        last: What `final_dense` returns, but None.
        spreads: As of `spreads_of`.

    Returns:
        Array `(outputs,)`.
    """
    _, kernel, flow = last
    constants = np.linalg.norm(kernel, axis=0) * joint_gain([flow])
    for within, lost in images_of(spreads, kernel.T):
        sizes = np.linalg.norm(within, axis=1) + lost
        constants = np.minimum(constants, sizes)
    return constants * (1 + 1e-9)
