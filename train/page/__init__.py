"""A run, or an evaluation, as one page: figures, curves, embeddings, cases, suspects, soft labels."""

from train.page.evaluation import Embedded, write_evaluation
from train.page.report import write_report
from train.page.shown import Tested

__all__ = ["Embedded", "Tested", "write_evaluation", "write_report"]
