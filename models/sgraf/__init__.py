"""SGR and SAF (Diao et al., AAAI 2021, arXiv 2101.01368): regions against words, by similarity vectors of pairs.

SGRAF is the mean of the scores of one of each, trained apart. Attributes are named as in the authors' checkpoints, so
that these load and are written without a table of names.
"""

from models.sgraf.published import write_published
from models.sgraf.student import SgrafStudent, load_sgraf
from models.sgraf.vocabulary import Vocabulary

__all__ = ["SgrafStudent", "Vocabulary", "load_sgraf", "write_published"]
