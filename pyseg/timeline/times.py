"""Times as text."""

from __future__ import annotations


def clock(seconds: float, *, tenths: bool = False) -> str:
    """Returns a time as minutes and seconds, from an hour on as hours, minutes and seconds.

    Args:
        seconds: The time.
        tenths: Whether to give tenths of a second, which are rounded; else a part of a second is
            dropped.

    Example:
        >>> clock(65.9), clock(3725), clock(65.96, tenths=True)
        ('1:05', '1:02:05', '1:06.0')
    """
    count = round(seconds * 10) if tenths else int(seconds) * 10
    minutes, second = divmod(count // 10, 60)
    hours, minute = divmod(minutes, 60)
    text = f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
    return f"{text}.{count % 10}" if tenths else text


def timecode(milliseconds: int, mark: str = ".") -> str:
    """Returns a time as subtitles have it.

    Args:
        milliseconds: The time.
        mark: The decimal mark.

    Example:
        >>> timecode(3_725_006), timecode(6, ",")
        ('01:02:05.006', '00:00:00,006')
    """
    seconds, rest = divmod(milliseconds, 1000)
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:02d}:{minute:02d}:{second:02d}{mark}{rest:03d}"
