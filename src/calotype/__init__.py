"""Calotype: diffusion models, readable and fast.

Every public name is importable from here and loaded on first use, so that `import calotype` costs next to nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
