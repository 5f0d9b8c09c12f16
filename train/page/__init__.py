"""A run as one page that opens by a double click: figures, curves, embeddings, cases, suspects, soft labels."""

from train.page.report import PAGE_NAME, write_report
from train.page.sample import Tested

__all__ = ["PAGE_NAME", "Tested", "write_report"]
