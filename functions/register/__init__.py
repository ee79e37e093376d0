"""Lambda: one upload becomes one version of a model."""
