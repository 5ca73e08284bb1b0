"""Text of messages."""

from __future__ import annotations


def counted(number: int, noun: str, form: str = "") -> str:
    """Returns a number with its noun, in the plural unless it is 1.

    Args:
        number: The number.
        noun: The noun in the singular, which may have words before it.
        form: How `format` writes the number, as in "," for groups of three digits.

    Example:
        >>> counted(1, "rated segment"), counted(0, "class"), counted(1200, "video", ",")
        ('1 rated segment', '0 classes', '1,200 videos')
    """
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:{form}} {noun}{plural}"
