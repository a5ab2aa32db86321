"""Parts of PostprocessingDataset."""
