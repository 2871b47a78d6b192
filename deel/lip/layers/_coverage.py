"""What all convolutions have in common that are bounded by their coverage."""

import keras

from deel.lip._numerics.padding import MODES
from deel.lip._numerics.windows import Axis
from deel.lip._numerics.windows import coverage_coefficient
from deel.lip._numerics.windows import first_spatial_axis
from deel.lip._numerics.windows import spatial_shape
from deel.lip._validation import ArgumentError
from deel.lip._validation import int_tuple
from deel.lip._validation import require_one_of
from deel.lip.layers._padded import PaddedConvolution


class WindowCoverage:
    """Mixin: the coefficient of a convolution, from its window overlap.

    See `deel.lip._numerics.windows` for the bound. A subclass sets
    `_spatial_rank`.
    """

    padding_mode = "zeros"

    def _covered_lengths(self, input_shape):
        """Spatial shape of the image that the windows read."""
        if input_shape is None:
            return (None,) * self._spatial_rank
        return spatial_shape(input_shape, self.data_format)

    def _covered_axes(self, input_shape):
        """How the windows read each spatial axis, a list of `Axis`."""
        padding = "same" if self.padding_mode == "zeros" else self.padding_mode
        windows = zip(
            self._covered_lengths(input_shape),
            self.kernel_size,
            self.strides,
            self.dilation_rate,
            strict=True,
        )
        return [Axis(*window, padding) for window in windows]

    def _compute_lip_coef(self, input_shape=None):
        return coverage_coefficient(self._covered_axes(input_shape))

    def _fixed_axes(self, input_shape):
        """Whether the bound counts on the length of each spatial axis."""
        return [x.needs_length() for x in self._covered_axes(input_shape)]

    def build(self, input_shape):
        super().build(input_shape)
        # Another length would break the bound: Keras is told to refuse it.
        axes = dict(self.input_spec.axes)
        first = first_spatial_axis(self.data_format)
        for axis, fixed in enumerate(self._fixed_axes(input_shape), first):
            if fixed:
                axes[axis] = input_shape[axis]
        self.input_spec = keras.layers.InputSpec(
            min_ndim=self._spatial_rank + 2, axes=axes
        )


class CoveredConvolution(WindowCoverage, PaddedConvolution):
    """Mixin of the convolutions that keep the size of the image.

    It stands before a `ConstrainedKernel` class, and adds the `padding_mode`,
    what the image is continued with, to the arguments of the stock layer.
    """

    _takes_groups_and_dilation = True
    _padding_modes = MODES

    def __init__(
        self,
        *,
        kernel_size,
        strides,
        padding,
        dilation_rate,
        groups=1,
        padding_mode="zeros",
        **kwargs,
    ):
        rank, name = self._spatial_rank, type(self).__name__
        dilation_rate = int_tuple(dilation_rate, rank)
        if not isinstance(padding, str) or padding.lower() != "same":
            raise ArgumentError(
                f'{name} bounds convolutions with `padding="same"` only. '
                f"Received: padding={padding}"
            )
        if not self._takes_groups_and_dilation:
            if tuple(dilation_rate) != (1,) * rank:
                raise ArgumentError(
                    f"{name} has no dilation, `SpectralGroupedConv{rank}D` "
                    f"has. Received: dilation_rate={dilation_rate}"
                )
            if groups != 1:
                raise ValueError(
                    f"{name} has no groups, `SpectralGroupedConv{rank}D` has. "
                    f"Received: groups={groups}"
                )
        require_one_of("padding_mode", padding_mode, self._padding_modes)
        if groups != 1:
            kwargs["groups"] = groups
        super().__init__(
            kernel_size=int_tuple(kernel_size, rank),
            strides=int_tuple(strides, rank),
            padding="same" if padding_mode == "zeros" else "valid",
            dilation_rate=dilation_rate,
            **kwargs,
        )
        self.padding_mode = padding_mode
        self._set_explicit_padding(
            None if padding_mode == "zeros" else padding_mode
        )

    def get_config(self):
        return {
            **super().get_config(),
            "padding": "same",
            "padding_mode": self.padding_mode,
        }
