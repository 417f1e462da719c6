"""Run margincast with weights sharded by FSDP on CPU processes, where accelerate itself takes FSDP on GPUs only."""

from __future__ import annotations

import sys
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from margincast.cli.main import main

begin = AcceleratorState.__init__


def begin_sharded(self: Any, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    begin(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


AcceleratorState.__init__ = begin_sharded
main(sys.argv[1:])
