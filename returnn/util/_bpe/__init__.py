"""Implementation of byte pair encoding; public in ``returnn.util.bpe``."""
