"""
Durations and process start time as text.
"""

from __future__ import annotations

import time

__all__ = ["hms", "hms_fraction", "start_time", "get_utc_start_time_filename_part"]

#: When the package was first imported in this process, seconds since the epoch.
start_time = time.time()


def hms(s: float) -> str:
    """
    :param s: duration in seconds; fractions are cut
    :return: e.g. "1:01:05" (hours, minutes, seconds); hours are not limited
    """
    minutes, seconds = divmod(s, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{int(hours):d}:{int(minutes):02d}:{int(seconds):02d}"


def hms_fraction(s: float, decimals: int = 4) -> str:
    """
    :param s: duration in seconds, >= 0
    :param decimals: of the seconds; rounded, with carry
    :return: e.g. "1:01:05.1235"
    """
    s = round(s, decimals)
    whole = int(s)
    fraction = f"{s - whole:.{decimals}f}"
    if fraction.startswith("1"):  # e.g. 0.99999 of a value too large for more digits
        whole, fraction = whole + 1, f"{0:.{decimals}f}"
    return hms(whole) + fraction[1:]


def get_utc_start_time_filename_part() -> str:
    """:return: start time of this process for use in file names, e.g. "2024-01-31-23-59-59" (UTC)"""
    return time.strftime("%Y-%m-%d-%H-%M-%S", time.gmtime(start_time))
