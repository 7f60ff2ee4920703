"""Pieces for training: each of use in a loop of one's own, and the trainer and recipes that are made of them.

Names are imported when they are first used; see `docs/training.md`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
