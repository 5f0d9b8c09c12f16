"""One training: the trainer, processes, GradCache, what a run folder holds, the live view."""
