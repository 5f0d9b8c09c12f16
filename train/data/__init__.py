"""From stores to batches: the order of pairs, the join of features by row, augmentation."""
