"""Weights that a checkpoint keeps as several tensors, by its `quantization_config`; knows numpy, no architecture.

Each module knows one way of storing. All give the very numbers that the files stand for: codes with a scale per group where
`models.storage` has them, else float32. Activations stay as they are, whatever a config says of rounding them.
"""
