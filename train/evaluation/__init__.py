"""Evaluation beyond a store's retrieval: the data sets of the paper's uni-modal tasks, and the models to measure."""

from train.evaluation.image_retrieval import measure_image_retrieval
from train.evaluation.models import MeasuredModel, load_model
from train.evaluation.result import DataSetError, Result
from train.evaluation.sts import measure_sts

__all__ = ["DataSetError", "MeasuredModel", "Result", "load_model", "measure_image_retrieval", "measure_sts"]
