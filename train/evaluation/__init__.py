"""cusa-eval: any model on the paper's tasks, on a store and on published data sets.

models.py: what is measured; on_store.py, image_retrieval.py, sts.py: on what; measure.py: models by tasks; cli.py.
"""
