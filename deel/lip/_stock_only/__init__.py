"""How models become Keras alone."""
