"""Makes the package ``returnn`` beside this folder importable, from any working directory. To be imported first."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
