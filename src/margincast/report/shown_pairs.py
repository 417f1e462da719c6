"""What does the model read of a pair? Its tokens as text, special ones included, safe to print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from margincast.shown import visible

if TYPE_CHECKING:
    from margincast.passes.tokenize import Encoded
    from margincast.records import Pair

LONGEST = 2000  # characters of one part that are shown
_INDENT = "\n" + " " * 12  # of what follows a line break


def pair_text(pair: Pair, row: Encoded, tokenizer: Any, split: str) -> str:
    """The three parts of a pair as decoded tokens, a line each, and further ones where they have line breaks."""
    lines = [visible(f"{pair.id} ({split}, {pair.concept}) as the model reads it:")]
    for name, ids in (("prompt", row.prompt), ("chosen", row.chosen), ("rejected", row.rejected)):
        text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        lines.append(f"  {name:<9} {visible(shortened(text), _INDENT).removesuffix(_INDENT)}")
    return "\n".join(lines)


def shortened(text: str) -> str:
    """`text` without its middle where it is long: templates show at both ends."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"
