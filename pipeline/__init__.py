"""Stage 1: a data set becomes shards, teacher features and indices.

`pipeline.extract.extract` runs it whole, `models.teachers.load_teacher` loads a teacher,
`pipeline.sources.open_source` opens a data set. Import from there: this page stays empty so that
`cusa-extract --help` need not load torch.
"""
