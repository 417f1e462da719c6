"""What of margincast goes into a run of TRL: a callback that records margins, and a trainer whose passes are packed.

TRL is imported when `PackedDPOTrainer` is first asked for, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from margincast.training.trl import MarginCallback

if TYPE_CHECKING:
    from margincast.training.packed_trl import PackedPasses as PackedDPOTrainer

__all__ = ["MarginCallback", "PackedDPOTrainer"]


def __getattr__(name: str) -> Any:
    if name != "PackedDPOTrainer":
        raise AttributeError(f"module 'margincast.trl' has no attribute {name!r}")
    from trl import DPOTrainer  # type: ignore[attr-defined]

    from margincast.training.packed_trl import PackedPasses

    made = type(name, (PackedPasses, DPOTrainer), {"__doc__": PackedPasses.__doc__, "__module__": __name__})
    globals()[name] = made
    return made
