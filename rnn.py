#!/usr/bin/env python3
"""Run a config: ``python rnn.py my.config``. See ``python rnn.py --help``."""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    from returnn.__main__ import console_main

    console_main()
