"""Features that no teacher makes: a user's files and what a data set has itself, into the store, in flat memory."""

from pipeline.imports.given import GivenImport
from pipeline.imports.importing import FeatureImport, absent_file

__all__ = ["FeatureImport", "GivenImport", "absent_file"]
