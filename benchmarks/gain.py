"""How much is gained over the printed bounds, at several Q? `python -m benchmarks.gain` prints the table.

K = 4, l_b = 0.4, no shared tokens, the widest clusters and the largest d the theorems allow: v = 1/(4 sqrt Q), d = 5Q.
"""

from __future__ import annotations

import math

from margincast.theory.distribution import preference_distribution
from margincast.theory.theorems import guarantees, largest_noise
from margincast.theory.trade_off import explicit_at

QS = (10, 30, 100, 1000, 10**4, 10**5, 10**6, 10**8, 10**10)


def gain_table() -> str:
    """A Markdown table of base-10 logarithms of every bound, and of the factor from the printed to the explicit one."""
    lines = [
        "| Q | failure: printed | derived | explicit | factor gained | risk: printed | derived | explicit "
        "| factor gained | explicit risk at failure 1e-3 |",
        "|--:" * 10 + "|",
    ]
    for Q in QS:
        distribution = preference_distribution(4, Q, 5 * Q, 0.4, largest_noise(Q))
        forms = guarantees(distribution, beta=1.0)
        cells = [f"{Q:,}" if Q < 10**6 else f"1e{round(math.log10(Q))}"]
        for bound in ("log_failure", "log_risk"):
            powers = [getattr(forms[form], bound) / math.log(10.0) for form in ("printed", "derived", "explicit")]
            cells += [f"{power:.1f}" for power in powers] + [f"1e{powers[0] - powers[2]:.0f}"]
        accepted = explicit_at(distribution, 1.0, 1.0, 1e-3)
        cells.append("none" if accepted is None else f"{accepted.log_risk / math.log(10.0):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(gain_table())
