"""What names a backend: a new backend of Keras starts here."""
