"""Parts of the audio datasets."""
