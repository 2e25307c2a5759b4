"""Latent diffusion of tumours in CT: the second stage of nnunet-difftumor."""

DISTRIBUTION = "nnunet-difftumor"
