"""cusa-store: looking into a finished store, proving it whole, and finding what its data set leaves out.

Nothing here changes a store.
"""
