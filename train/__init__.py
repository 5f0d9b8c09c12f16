"""Stage 2: shards and features become a retrieval model, measured.

`train.run.run` runs it whole, `train.losses.functional` holds the losses. Import from there: this page stays empty, so
that `cusa-train --help` need not load torch.
"""
