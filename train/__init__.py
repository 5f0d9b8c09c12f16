"""Stage 2: shards and features become a retrieval model, measured.

`train.run.run` runs it whole, `train.losses` holds the losses, `train.student.load_student` loads a student. Import
from there: this page stays empty so that `cusa-train --help` need not load torch.
"""
