"""FAISS indices over a teacher's features, one a split: exact where that is fast, else a kind chosen by size.

1. `kinds` decides between exact search and an approximate kind, and checks what the parameters name.
2. `build` trains on a sample and adds block by block, on a GPU where faiss has one.
3. `recall` measures recall@10 against exact search and widens the search until it is good enough.
4. `cards` writes all that beside the index, and knows a whole index from a stale or damaged one.
"""

from pipeline.indices.ensure import ensure_index
from pipeline.indices.kinds import check_index_kind

__all__ = ["check_index_kind", "ensure_index"]
