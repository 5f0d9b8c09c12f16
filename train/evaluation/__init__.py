"""Evaluation beyond a store's retrieval: the data sets of the paper's uni-modal tasks, and the models to measure."""

from train.evaluation.image_retrieval import image_retrieval
from train.evaluation.models import MeasuredModel, load_model
from train.evaluation.result import DataSetError, Result
from train.evaluation.sts import sts

__all__ = ["DataSetError", "MeasuredModel", "Result", "image_retrieval", "load_model", "sts"]
