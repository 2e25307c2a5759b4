"""3D KL autoencoder for CT: the first stage of nnunet-difftumor."""

DISTRIBUTION = "nnunet-difftumor"
