"""The autoencoder of the published DiffTumor checkpoints, so that their weights can be used."""
