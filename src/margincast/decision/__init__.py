"""Train or not? A forecast's go, caution or stop, with reasons that its own numbers bear out (docs/verdict.md)."""

from margincast.decision.decide import Verdict, verdict

__all__ = ["Verdict", "verdict"]
