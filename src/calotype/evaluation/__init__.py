"""Checkpoints judged by the same prompts, seeds and noise: each measure by itself, and `evaluate`, which takes all."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
