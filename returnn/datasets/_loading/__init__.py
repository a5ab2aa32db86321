"""
From a dataset to padded numpy batches, in the main process or in worker processes. Numpy only, without torch.
"""
