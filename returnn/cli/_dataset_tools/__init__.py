"""What the tools for datasets do; their command lines are in tools/."""
