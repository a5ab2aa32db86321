"""Datasets and functions in processes of their own: starting and ending them, and moving sequences in blocks."""
