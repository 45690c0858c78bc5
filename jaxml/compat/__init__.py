"""The one place that touches parts of jax outside its stable public surface."""
