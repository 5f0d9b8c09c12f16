"""What `forked` loads once, for all the processes it forks."""

import importlib

from stores.commands import loading

LIBRARIES = [
    "pipeline.cli",
    "pipeline.extract",
    "pipeline.inspection.cli",
    "pipeline.summary",
    "models.teachers.hog_color",
    "models.teachers.sentences",
    "train.cli",
    "train.report.page",
    "train.run",
]

with loading(stays=True):
    for name in LIBRARIES:
        importlib.import_module(name)
