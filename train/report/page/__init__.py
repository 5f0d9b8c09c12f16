"""A run, or an evaluation, as one page: figures, curves, embeddings, cases, suspects, soft labels."""

from train.report.page.evaluation_page import Embedded, write_evaluation
from train.report.page.report import write_report

__all__ = ["Embedded", "write_evaluation", "write_report"]
