"""Parts of the HDF datasets and writers; the public names are in returnn.datasets.hdf and returnn.datasets.util.hdf."""
