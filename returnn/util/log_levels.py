"""
The stdlib logging level of each verbosity 0..5, for code which cannot use returnn.log.
"""

from __future__ import annotations

import logging

__all__ = ["LEVELS", "V1", "V2", "V3", "V4", "V5"]

LEVELS = (logging.ERROR, logging.INFO + 1, logging.INFO, logging.DEBUG + 2, logging.DEBUG + 1, logging.DEBUG)
_V0, V1, V2, V3, V4, V5 = LEVELS
