"""Studies on the embedded data set and on real pictures: what the losses and their settings change."""

from stores.cores import yield_to_neighbours

# Here, since each study is a command that loads torch with its own imports, which would be too late.
yield_to_neighbours()
