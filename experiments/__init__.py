"""Studies on the embedded data set and on real pictures: what the losses and their settings change."""
