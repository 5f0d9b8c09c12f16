"""A run, or an evaluation, as one page: figures, curves, embeddings, cases, suspects, soft labels."""

from train.report.page.evaluation import Embedded, write_evaluation
from train.report.page.report import write_report
from train.report.page.shown import Tested

__all__ = ["Embedded", "Tested", "write_evaluation", "write_report"]
