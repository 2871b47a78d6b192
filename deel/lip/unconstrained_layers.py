"""Former place of `deel.lip.layers.unconstrained`; deprecated."""

import warnings


def __getattr__(name):
    if name != "PadConv2D":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from deel.lip.layers import unconstrained

    warnings.warn(
        f"`{__name__}` is deprecated. Use `deel.lip.layers.unconstrained` "
        "instead.",
        DeprecationWarning,
        stacklevel=2,
    )
    return unconstrained.PadConv2D
