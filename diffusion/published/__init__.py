"""The denoiser of the published DiffTumor checkpoints, how it samples, and a reader of the files."""
