"""A device that is none: the CPU computes, and what a GPU would refuse is refused.

torch's name for it is "meta". Tensors that are brought there are known by their storage, and what is made of them is
there too. As on a GPU, an operation of tensors there and tensors here raises, unless the latter are single numbers or
the indices of an index; so does `numpy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

NAME = "meta"
THERE, HERE = torch.device(NAME), torch.device("cpu")
ACROSS = ("aten.copy_", "aten._to_copy", "aten.lift_fresh")
INDEXED = ("aten.index.", "aten.index_put", "aten._index_put_impl_", "aten._unsafe_index")


class _Card:
    """What lies there. made: how many tensors were computed there"""

    def __init__(self) -> None:
        self.storages: set[StorageWeakRef] = set()
        self.made = 0

    def has(self, tensor: Tensor) -> bool:
        return StorageWeakRef(tensor.untyped_storage()) in self.storages

    def add(self, tensor: Tensor) -> Tensor:
        self.storages.add(StorageWeakRef(tensor.untyped_storage()))
        return tensor

    def device(self, tensor: Tensor) -> torch.device:
        return THERE if self.has(tensor) else HERE


class _Operations(TorchDispatchMode):
    """Below autograd, so that backward passes are seen: these make tensors like those that they believe to be here, so
    that nothing is refused in them, and what they make of tensors there is there."""

    def __init__(self, card: _Card) -> None:
        super().__init__()
        self.card = card

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), str(func)
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        there = any(map(self.card.has, given))
        asked, backward = kwargs.get("device"), torch._C._current_graph_task_id() != -1
        if asked is not None:
            there = torch.device(asked) == THERE
            kwargs["device"] = HERE
        if not name.startswith(ACROSS) and not backward:
            met = [args[0], *args[2:]] if name.startswith(INDEXED) else [args, kwargs]
            _refuse_mixed(self.card, name, met, there and asked is None)
        out = func(*args, **kwargs)
        if there and not name.startswith("aten.copy_"):
            for each in tree_leaves(out):
                if isinstance(each, Tensor):
                    self.card.add(each)
                    self.card.made += 1
        return out


def _refuse_mixed(card: _Card, name: str, given: Any, there: bool) -> None:
    tensors = [each for each in tree_leaves(given) if isinstance(each, Tensor)]
    if there and any(each.ndim and not card.has(each) for each in tensors):
        places = [(tuple(each.shape), card.device(each).type) for each in tensors]
        raise RuntimeError(f"{name}: tensors on two devices: {places}")


class _Calls(TorchFunctionMode):
    """What a tensor says of where it is, and how it is moved."""

    def __init__(self, card: _Card) -> None:
        super().__init__()
        self.card = card

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return self.card.device(args[0])
        if func is torch.Tensor.numpy and self.card.has(args[0]):
            raise TypeError("can't convert a tensor there to numpy; use Tensor.cpu() first")
        if func is torch.Tensor.cpu:
            return self.moved(args[0], HERE)
        if func is torch.Tensor.new_tensor and self.card.has(args[0]):
            return self.card.add(func(*args, **kwargs))
        if func is torch.Tensor.to:
            return self.to(*args, **kwargs)
        return func(*args, **kwargs)

    def to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device, rest = kwargs.pop("device", None), []
        for each in args:
            if isinstance(each, Tensor):
                device, rest = self.card.device(each), [*rest, each.dtype]
            elif isinstance(each, torch.device | str):
                device = torch.device(each)
            else:
                rest.append(each)
        out = tensor.to(*rest, **kwargs) if rest or kwargs else tensor
        return out if device is None else self.moved(out, device)

    def moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A copy on `device`; the tensor itself where it is there."""
        if self.card.device(tensor) == device:
            return tensor
        if tensor.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError("a move that is differentiated")
        with _disable_current_modes():
            out = tensor.detach().clone()
        return self.card.add(out) if device == THERE else out


@contextmanager
def fake_device() -> Iterator[_Card]:
    """Inside, the device called `NAME` works."""
    card = _Card()
    with _Calls(card), _Operations(card):
        yield card


Work = Callable[[str], Any]


def same_there(work: Work) -> None:
    """Asserts that `work`, given the name of a device, computes there, and gives the numbers it gives here, here."""
    here = [each for each in tree_leaves(work("cpu")) if isinstance(each, Tensor)]
    with fake_device() as card:
        found = [each for each in tree_leaves(work(NAME)) if isinstance(each, Tensor)]
        assert not any(map(card.has, found))
    assert card.made > 10
    assert len(here) == len(found) > 0
    for one, other in zip(here, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)
