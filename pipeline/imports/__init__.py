"""Import of features that a user has: from NumPy, Parquet and HDF5 files into the store, checked, in flat memory."""

from pipeline.imports.importing import FeatureImport, entry, import_features

__all__ = ["FeatureImport", "entry", "import_features"]
