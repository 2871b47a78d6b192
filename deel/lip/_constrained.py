"""The one mechanism behind every layer with a constrained kernel."""

import contextlib
import threading

import keras
import numpy as np
from keras import ops

from deel.lip._backend.retraction import AfterUpdate
from deel.lip._backend.retraction import follow_torch_optimizers
from deel.lip._backend.tensors import in_rows
from deel.lip._backend.variables import host
from deel.lip._export import build_once
from deel.lip._export import copy_state
from deel.lip._lipschitz import Condensable
from deel.lip._lipschitz import LipschitzLayer
from deel.lip._lipschitz import activation_constant
from deel.lip._validation import normal_range
from deel.lip._validation import require_built
from deel.lip._validation import require_instance

# Arguments of former releases, and what they are called now.
_RENAMED = {
    "niter_bjorck": "maxiter_bjorck",
    "niter_spectral": "maxiter_spectral",
}


class _KernelsInUse(threading.local):
    """Kernels of the calls that run in this thread, by the id of the layer.

    An attribute of the layer would be seen by calls in other threads, which
    would then run with a kernel that is not theirs, or not constrained.
    """

    def __init__(self):
        self.by_layer = {}


_in_use = _KernelsInUse()


class ConstrainedKernel(LipschitzLayer, Condensable):
    """Mixin that makes a stock Keras layer use a constrained kernel.

    It stands before the stock layer in the bases, which makes one weight by
    the name of `kernel` and has a `kernel_constraint`. While the stock `call`
    runs, `self.kernel` is the constrained kernel; at all other times it is the
    free variable that is trained and saved, which the parametrization may give
    another shape. Nothing else of the stock layer is touched, so matmul,
    convolution, bias and activation stay its own.

    What is bounded is the norm of the kernel. Where the layer expands more
    than its kernel does, as a convolution whose windows overlap, a subclass
    implements `_compute_lip_coef`, from the shape of the input: the kernel is
    multiplied by that, and by `k_coef_lip`.

    Args:
        *args: Positional arguments of the stock layer.
        parametrization: The `deel.lip.parametrizations.Parametrization` of the
            kernel, one for each layer.
        k_coef_lip: Float, the Lipschitz constant of the affine part.
        **kwargs: Further arguments of the stock layer.
    """

    _free_kernel = None

    # How many weights a layer trains beside its kernel and its bias.
    _further_weights = 0

    def __init__(self, *args, parametrization, k_coef_lip=1.0, **kwargs):
        if kwargs.get("lora_rank") is not None:
            raise ValueError(
                "LoRA adds an unconstrained term to the kernel, which breaks "
                "its Lipschitz constant. Expected `lora_rank=None`. "
                f"Received: lora_rank={kwargs['lora_rank']}"
            )
        for former, name in _RENAMED.items():
            if former in kwargs:
                raise ValueError(
                    f"Argument `{former}` of former releases has another name. "
                    f"Expected `{name}`. Received: {former}={kwargs[former]}"
                )
        super().__init__(*args, **kwargs)
        require_instance("activation", self.activation)
        self.parametrization = parametrization
        self.set_klip_factor(k_coef_lip)

    @property
    def kernel(self):
        if self.is_using():
            return _in_use.by_layer[id(self)]
        if self._free_kernel is None:
            raise AttributeError(
                "You must build the layer before accessing `kernel`."
            )
        return self._free_kernel

    @kernel.setter
    def kernel(self, variable):
        self._kernel = variable

    # Some stock layers assign `self._kernel`, others `self.kernel`.
    @property
    def _kernel(self):
        return self.kernel

    @_kernel.setter
    def _kernel(self, variable):
        self._free_kernel = variable

    @property
    def wbar(self):
        """The constrained kernel that inference uses, a variable."""
        return self.parametrization.wbar

    def add_weight(
        self, shape=None, initializer=None, *args, name=None, **kwargs
    ):
        # Autocast would round the kernel to half precision before it is
        # normalised; the result is cast instead, in `call`.
        if name == "kernel":
            kwargs["autocast"] = False
            # Replicas that retract one kernel each would drift apart by the
            # rounding of each step, which no gradient brings back.
            kwargs["aggregation"] = "only_first_replica"
            self._kernel_shape = tuple(shape)
            shape, initializer = self.parametrization.free_variable(
                self._kernel_shape, initializer
            )
            follows = self.parametrization.starts_at_coefficient
            factor = self.coef_lip if follows else 1.0
            initializer = in_rows(initializer, factor)
        return super().add_weight(
            shape, initializer, *args, name=name, **kwargs
        )

    def load_own_variables(self, store):
        # Files of the former Keras 3 branch may hold the constrained kernel,
        # and what it was found by, behind the variables of the stock layer.
        further = len(self.parametrization.variables)
        if self.built and further:
            own = 1 + (self.bias is not None) + self._further_weights
            if len(store.keys()) == own + further:
                store = {str(index): store[str(index)] for index in range(own)}
        super().load_own_variables(store)

    def build(self, input_shape):
        # First: what is refused later counts as built, for Keras.
        self.parametrization.require_free()
        self._init_lip_coef(input_shape)
        self._require_representable(self._get_coef())
        super().build(input_shape)
        self.parametrization.attach(
            self.kernel, self._kernel_shape, input_shape, self._get_coef()
        )
        self.wbar.retracts = self.kernel_constraint is None
        self.kernel.constraint = AfterUpdate(
            self._after_update, self.parametrization.bounds_matrix
        )
        follow_torch_optimizers(self)
        # All state must exist before the first step, weights of an activation
        # layer included.
        if isinstance(self.activation, keras.layers.Layer):
            build_once(self.activation, self._linear_output_shape(input_shape))

    def call(self, inputs, training=True):
        with self.using(self.constrained_kernel(training)):
            return super().call(inputs)

    def constrained_kernel(self, training):
        """Returns the kernel of one call, a tensor of the compute dtype.

        To be asked for once in each call, and not inside of a loop: what
        training makes of the free kernel is stored.

        Args:
            training: Boolean.
        """
        if training:
            # Again, since copies of a layer are not built.
            follow_torch_optimizers(self)
            kernel = self.parametrization.update(self.kernel)
        else:
            kernel = self.wbar.proven()
        return ops.cast(kernel, self.compute_dtype)

    @contextlib.contextmanager
    def using(self, kernel):
        """Surrounds a call in which `self.kernel` is a tensor.

        Args:
            kernel: Tensor.
        """
        _in_use.by_layer[id(self)] = kernel
        try:
            yield
        finally:
            del _in_use.by_layer[id(self)]

    def is_using(self):
        """Whether this thread is in a call, see `using`."""
        return id(self) in _in_use.by_layer

    def _after_update(self, kernel):
        if self.kernel_constraint is None:
            if self.wbar.postpone_retraction():
                return kernel
            return self.wbar.retract(kernel)
        # A retraction would undo what the user asked for; soundness does not
        # depend on it.
        kernel = self.kernel_constraint(kernel)
        self.wbar.refresh(kernel)
        # The optimizer assigns what is returned.
        self.wbar.note_current(writes=1)
        return kernel

    def _linear_output_shape(self, input_shape):
        """Shape of the output of the stock layer, before the activation."""
        return tuple(super().compute_output_shape(input_shape))

    def compute_output_shape(self, input_shape):
        shape = self._linear_output_shape(input_shape)
        if isinstance(self.activation, keras.layers.Layer):
            return self.activation.compute_output_shape(shape)
        return shape

    def _checked_constant(self, value):
        value = super()._checked_constant(value)
        if self.coef_lip is not None:
            self._require_representable(self.coef_lip * value)
        return value

    def _use_constant(self):
        if self.coef_lip is not None:
            self.wbar.rescale(self._get_coef())

    def _compute_lip_coef(self, input_shape=None):
        return 1.0

    def _whole_constant(self):
        factor = activation_constant(self.activation)
        # An activation that contracts is no reason to expand before it.
        return None if factor is None else self.k_coef_lip * max(1.0, factor)

    def _require_representable(self, coefficient):
        """Refuses kernels that the dtype of the layer cannot hold.

        In float16 they would be infinite, or zero; and values below the
        smallest normal number are rounded up by as much as a half, beyond any
        bound.
        """
        least, largest = normal_range(self.compute_dtype)
        if not least <= coefficient <= largest:
            raise ValueError(
                f"Layer '{self.name}' computes in {self.compute_dtype}, whose "
                f"normal numbers are from {least:.3g} to {largest:.3g}. "
                "Expected a kernel of a norm in that range. Received: "
                f"k_coef_lip * coef_lip={coefficient}"
            )

    def _check_condensable(self):
        require_built(self, "condense")
        self._require_finite("kernel", self.kernel)

    def condense(self):
        """Overwrites the free kernel with the constrained one."""
        self._check_condensable()
        self.wbar.condense()

    def _check_exportable(self):
        """Raises ValueError where inference breaks its promise."""
        self._require_finite("wbar", self.wbar.proven())
        self.wbar.require_sound(self.name)

    def vanilla_export(self):
        """Returns the stock Keras layer with the same inference output.

        Stock layers take for granted that an activation keeps the shape. Where
        it does not (`MaxMin`), it follows the stock layer in a
        `keras.Sequential` of the same name.

        Where variables have half precision (the policies `"bfloat16"` and
        `"float16"`), the exported kernel is smaller by what rounding could add
        to its norm.
        """
        require_built(self, "vanilla_export")
        self._check_exportable()
        stock_class, config = self._stock_equivalent()
        input_shape = self._build_shapes_dict["input_shape"]
        linear_shape = self._linear_output_shape(input_shape)
        keeps_shape = self.compute_output_shape(input_shape) == linear_shape
        if not keeps_shape:
            config["activation"] = "linear"
        exported = stock_class.from_config(config)
        exported.build(input_shape)
        dtype = keras.backend.standardize_dtype(exported.kernel.dtype)
        exported.kernel.assign(self.wbar.exported(dtype))
        if self.bias is not None:
            exported.bias.assign(host(self.bias))
        if not isinstance(self.activation, keras.layers.Layer):
            return exported
        activation = exported.activation
        if not keeps_shape:
            activation = type(self.activation).from_config(
                self.activation.get_config()
            )
        build_once(activation, linear_shape)
        copy_state(self.activation, activation)
        if keeps_shape:
            return exported
        return keras.Sequential(
            [keras.Input(batch_shape=input_shape), exported, activation],
            name=self.name,
        )

    def quantize(self, mode=None, *args, **kwargs):
        raise ValueError(
            f"Layer '{self.name}' has a constrained kernel, which quantization "
            "would replace by an unconstrained one. Expected what "
            f"`vanilla_export()` returns. Received: mode={mode}"
        )

    def enable_lora(self, *args, **kwargs):
        raise ValueError(
            f"Layer '{self.name}' has a constrained kernel, to which LoRA "
            "would add an unconstrained term. Call `vanilla_export()` and "
            "enable LoRA on the exported layer."
        )

    def get_config(self):
        return {**super().get_config(), "k_coef_lip": self.k_coef_lip}

    def _stock_equivalent(self):
        """Class and config of the stock layer with the same output."""
        stock_class = next(
            base
            for base in type(self).__mro__
            if issubclass(base, keras.layers.Layer)
            and not issubclass(base, ConstrainedKernel)
        )
        # These describe the free kernel, which the stock layer does not have.
        config = stock_class.get_config(self)
        for kernel in ("kernel", "depthwise"):
            for key in ("initializer", "regularizer", "constraint"):
                config.pop(f"{kernel}_{key}", None)
        return stock_class, config

    def _require_finite(self, what, variable):
        values = host(variable)
        if not np.all(np.isfinite(values)):
            raise ValueError(
                f"The weights `{what}` of layer '{self.name}' must be finite. "
                f"Received: {int(np.sum(~np.isfinite(values)))} NaN or "
                f"infinite values out of {values.size}"
            )
