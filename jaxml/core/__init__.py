"""Floor 0: trees, keys, validation, batched reductions and the device mesh."""
