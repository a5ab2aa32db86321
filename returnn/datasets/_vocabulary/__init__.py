"""Implementation of the vocabularies; public in ``returnn.datasets.util.vocabulary``."""
