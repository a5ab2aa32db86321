"""Parts of :class:`returnn.datasets.util.feature_extraction.ExtractAudioFeatures`: the numerics, one job per module."""
