"""The vector-quantised autoencoder whose weights the authors of DiffTumor published, in their names and arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoencoder.intensity import ABDOMEN_WINDOW
from autoencoder.layers import Conv3d, Network

LATENT_CHANNELS = 8
CODES = 16384
NORM_GROUPS = 32
NORM_EPSILON = 1e-6

_CODES_PER_BLOCK = 256
_ROWS_ON_CPU = 16  # 16 x 16384 scores fill 1 MiB: they stay in the second-level cache; 64 rows take 1.5 times as long
_ROWS_ELSEWHERE = 4096


class PublishedAutoencoder(Network):
    """CT crop to latents of a quarter of its side, and back through a codebook of 16384 vectors.

    The names in its state dict are those of the published `AutoencoderModel.ckpt`, without the discriminators and
    the statistics of training. Nothing is random; crops of a batch do not influence each other, but group norm looks
    at the whole crop, so that a voxel's value depends on the crop.

    The published frame of an image (B, 1, f, h, w) is f = Z, h = X, w = Y. Our arrays (B, 1, D, H, W) are Z, Y, X, so
    `encode`, `decode` and `reconstruct` swap the last two axes on the way in and out. Latents stay in the published
    frame everywhere: those of an image (B, 1, D, H, W) have the shape (B, 8, D/4, W/4, H/4).

    Source:
        Chen et al., "Towards Generalizable Tumor Synthesis", CVPR 2024, and the published checkpoints.
    """

    def __init__(self) -> None:
        super().__init__()
        self.window = ABDOMEN_WINDOW
        self.latent_channels = LATENT_CHANNELS
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.pre_vq_conv = SameConv(64, LATENT_CHANNELS, kernel_size=1)
        self.post_vq_conv = SameConv(LATENT_CHANNELS, 64, kernel_size=1)
        self.codebook = Codebook()

    def encode(self, image_hu: Tensor) -> Tensor:
        """Encode a CT crop in HU (B, 1, D, H, W), limited to the window, to normalised latents (B, 8, D/4, W/4, H/4).

        They lie in about [-1, 1] and are not quantised.

        Raises:
            ValueError: If the shape is not (B, 1, D, H, W) or a side is no multiple of 4.
        """
        return self.normalise(self.encode_unit(swap_last_axes(self.window.to_unit(image_hu))))

    def decode(self, latents: Tensor) -> Tensor:
        """Quantise and decode normalised latents (B, 8, D/4, W/4, H/4) to a CT in HU (B, 1, D, H, W).

        It may leave the window by a little.

        Raises:
            ValueError: If the shape is not (B, 8, d, h, w).
        """
        return self.window.to_hu(swap_last_axes(self.decode_unit(self.denormalise(latents))))

    def reconstruct(self, image_hu: Tensor) -> Tensor:
        """Encode and decode a CT crop in HU (B, 1, D, H, W); values outside the window saturate."""
        return self.decode(self.encode(image_hu))

    def encode_unit(self, unit: Tensor) -> Tensor:
        """Encode an image in [-1, 1] in the published frame (B, 1, f, h, w) to latents (B, 8, f/4, h/4, w/4).

        They are neither normalised nor quantised.

        Raises:
            ValueError: If the shape is not (B, 1, f, h, w) or a side is no multiple of 4.
        """
        if unit.ndim != 5 or unit.shape[1] != 1 or any(side % 4 or side == 0 for side in unit.shape[2:]):
            raise ValueError(
                f"The published autoencoder takes crops of shape (B, 1, D, H, W) with sides that are multiples of 4, "
                f"got {tuple(unit.shape)}. Crop or pad (with air) to such a size first."
            )
        return self.pre_vq_conv(self.encoder(unit))

    def decode_unit(self, latents: Tensor) -> Tensor:
        """Quantise and decode latents (B, 8, f, h, w) that are not normalised to an image (B, 1, 4f, 4h, 4w).

        The image is in the published frame and in about [-1, 1].

        Raises:
            ValueError: If the shape is not (B, 8, f, h, w).
        """
        codes = self.codebook.embeddings[self.nearest_codes(latents)]  # (B, f, h, w, 8)
        return self.decoder(self.post_vq_conv(codes.movedim(-1, 1)))

    def normalise(self, latents: Tensor) -> Tensor:
        """Map latents of any shape so that smallest and largest number of the codebook become -1 and 1; no limit."""
        low, high = self.codebook.limits(latents)
        return 2.0 * (latents - low) / (high - low) - 1.0

    def denormalise(self, latents: Tensor) -> Tensor:
        """Undo `normalise`."""
        low, high = self.codebook.limits(latents)
        return (latents + 1.0) / 2.0 * (high - low) + low

    def nearest_codes(self, latents: Tensor) -> Tensor:
        """Find the code nearest to each voxel of latents (B, 8, f, h, w) that are not normalised; the first of ties.

        The index is computed in float32, also where autocast is on. Shape (B, f, h, w), int64.

        Raises:
            ValueError: If the shape is not (B, 8, f, h, w).
        """
        if latents.ndim != 5 or latents.shape[1] != LATENT_CHANNELS:
            raise ValueError(
                f"Latents must have shape (B, {LATENT_CHANNELS}, f, h, w), got {tuple(latents.shape)}. "
                f"Use latents that the published autoencoder encoded."
            )
        voxels = latents.movedim(1, -1)  # (B, f, h, w, 8)
        return self.codebook.nearest(voxels.reshape(-1, LATENT_CHANNELS)).reshape(voxels.shape[:-1])


def swap_last_axes(volume: Tensor) -> Tensor:
    """Turn arrays (Z, Y, X) into the published frame (Z, X, Y), and back."""
    return volume.transpose(-1, -2)


class Encoder(nn.Module):
    """Image (B, 1, f, h, w) to features (B, 64, f/4, h/4, w/4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_first = SameConv(1, 16, kernel_size=3)
        self.conv_blocks = nn.Sequential(DownBlock(16, 32), DownBlock(32, 64))
        self.final_block = nn.Sequential(_norm(64), nn.SiLU())

    def forward(self, unit: Tensor) -> Tensor:
        """Return features (B, 64, f/4, h/4, w/4)."""
        return self.final_block(self.conv_blocks(self.conv_first(unit)))


class Decoder(nn.Module):
    """Features (B, 64, f, h, w) to an image (B, 1, 4f, 4h, 4w)."""

    def __init__(self) -> None:
        super().__init__()
        self.final_block = nn.Sequential(_norm(64), nn.SiLU())  # the name is the checkpoints'; it comes first
        self.conv_blocks = nn.Sequential(UpBlock(64, 64), UpBlock(64, 32))
        self.conv_last = SameConv(32, 1, kernel_size=3)

    def forward(self, features: Tensor) -> Tensor:
        """Return an image (B, 1, 4f, 4h, 4w)."""
        return self.conv_last(self.conv_blocks(self.final_block(features)))


class DownBlock(nn.Module):
    """Halve the sides, then one residual block."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.down = SameConv(incoming, outgoing, kernel_size=4, stride=2)
        self.res = ResidualBlock(outgoing)

    def forward(self, features: Tensor) -> Tensor:
        """Return features (B, outgoing, f/2, h/2, w/2)."""
        return self.res(self.down(features))


class UpBlock(nn.Module):
    """Double the sides, then two residual blocks."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.up = DoublingConv(incoming, outgoing)
        self.res1 = ResidualBlock(outgoing)
        self.res2 = ResidualBlock(outgoing)

    def forward(self, features: Tensor) -> Tensor:
        """Return features (B, outgoing, 2f, 2h, 2w)."""
        return self.res2(self.res1(self.up(features)))


class ResidualBlock(nn.Module):
    """Group norm, SiLU and a 3x3x3 convolution, twice, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = SameConv(channels, channels, kernel_size=3)
        self.norm2 = _norm(channels)
        self.conv2 = SameConv(channels, channels, kernel_size=3)

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape (B, C, f, h, w)."""
        hidden = self.conv1(functional.silu(self.norm1(features)))
        return features + self.conv2(functional.silu(self.norm2(hidden)))


class SameConv(nn.Module):
    """Convolution of an input that is continued by its edge values, so that a side n becomes n / stride."""

    def __init__(self, incoming: int, outgoing: int, *, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = Conv3d(incoming, outgoing, kernel_size, stride=stride)
        self._margin = (kernel_size - stride) // 2  # the total is even for all kernels in use

    def forward(self, features: Tensor) -> Tensor:
        """Return features (B, outgoing, f/stride, h/stride, w/stride)."""
        return self.conv(_continue_edges(features, self._margin))


class DoublingConv(nn.Module):
    """Transposed 4x4x4 convolution of stride 2 of an input that is continued by its edge values."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.convt = nn.ConvTranspose3d(incoming, outgoing, kernel_size=4, stride=2, padding=3)

    def forward(self, features: Tensor) -> Tensor:
        """Return features (B, outgoing, 2f, 2h, 2w)."""
        return self.convt(_continue_edges(features, 1))


class Codebook(nn.Module):
    """The vectors that latents are replaced by."""

    embeddings: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(CODES, LATENT_CHANNELS))

    def limits(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest number of the whole codebook, on the device and in the type of `like`."""
        low, high = self.embeddings.aminmax()
        return low.to(like), high.to(like)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the code nearest to each of the vectors (N, 8), the first of ties. Shape (N,), int64.

        The squared distance without the vector's own square, which is the same for all codes, is one matrix product.
        The minimum of each block of codes is found first, then the position in the best block only: several times
        faster than `argmin` over all codes, with the same result.
        """
        rows = _ROWS_ON_CPU if vectors.device.type == "cpu" else _ROWS_ELSEWHERE
        with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
            codes = self.embeddings.float()
            squares, projection = codes.square().sum(dim=1), -2.0 * codes.T  # (16384,), (8, 16384)
            return torch.cat([_first_lowest(torch.addmm(squares, x, projection)) for x in vectors.float().split(rows)])


def _first_lowest(scores: Tensor) -> Tensor:
    """Column of the lowest score in each row of (R, 16384), the first of ties. Shape (R,)."""
    blocks = scores.view(len(scores), -1, _CODES_PER_BLOCK)
    best = blocks.amin(dim=2).argmin(dim=1)  # (R,)
    within = blocks[torch.arange(len(scores), device=scores.device), best].argmin(dim=1)
    return best * _CODES_PER_BLOCK + within


def _continue_edges(features: Tensor, margin: int) -> Tensor:
    return functional.pad(features, (margin,) * 6, mode="replicate") if margin else features


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPSILON)
