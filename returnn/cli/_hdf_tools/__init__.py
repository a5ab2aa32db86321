"""What the tools for HDF files do; their command lines are in tools/."""
