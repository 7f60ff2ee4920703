"""What a tokenizer gives: the ids of some texts, as lists or as one tensor."""

from __future__ import annotations

from typing import Any

from .words import some


class Tokenized(dict[str, Any]):
    """`input_ids` and `attention_mask` of some texts, as entries and as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"the tokenizer gave no {name!r}; it gave {some(list(self))}")

    def to(self, device: Any) -> Tokenized:
        """The same with its tensors on `device`."""
        return Tokenized({name: value.to(device) for name, value in self.items()})


def as_tensor(rows: list[list[Any]], kind: str) -> Any:
    """Rows of one length as an array of int64, PyTorch's if `kind` is "pt" and NumPy's if it is "np"."""
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise ValueError(f"the texts have from {min(lengths)} to {max(lengths)} tokens, and make no tensor; "
                         "give `padding=True`, or `padding='max_length', truncation=True`")
    import numpy

    array = numpy.array(rows, dtype=numpy.int64)
    if kind == "np":
        return array
    import torch

    return torch.from_numpy(array)
