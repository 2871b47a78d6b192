"""Names of operations."""

import keras


class Names:
    """Sees to it that operations of a graph have names of their own.

    Layers keep theirs. Names inside of a block may be those of another block,
    and those that Keras gives to operations are new in this process only.

    Args:
        graph: The functional model whose names are kept.
    """

    def __init__(self, graph):
        self._kept = {operation.name for operation in graph.operations}
        self._taken = set()
        self._seen = set()

    def give(self, outputs, name=None):
        """Names the operations that are new in a graph.

        Args:
            outputs: List of symbolic tensors.
            name: String, the name of the layer that they stand for.
        """
        # Keras has no public name for where a tensor comes from.
        found = [x._keras_history for x in outputs]
        while found:
            operation, index, _ = found.pop()
            if id(operation) in self._seen:
                continue
            self._seen.add(id(operation))
            operation.name = self._unique(operation, name)
            self._taken.add(operation.name)
            inputs = operation._inbound_nodes[index].input_tensors
            found += [x._keras_history for x in inputs]

    def _unique(self, operation, kept):
        wanted = name = operation.name
        is_input = isinstance(operation, keras.layers.InputLayer)
        if is_input or (name == kept and name not in self._taken):
            return name
        count = 0
        while name in self._taken or name in self._kept:
            count += 1
            name = f"{wanted}_{count}"
        return name
