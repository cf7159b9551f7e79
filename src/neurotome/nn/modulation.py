r"""Feature-wise linear modulation (Perez et al., 2018; Li et al., 2026, eq. 8-10).

    u_m = concat(GAP(z_mod), s_m),   (gamma_l, beta_l) = MLP_l(u_m),   h'_l = gamma_l * h_l + beta_l

The last layer starts at zero and gamma = 1 + raw, so that at the start the image does not depend on the contrast.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

Modulation = tuple[Tensor, Tensor]


def modulate(h: Tensor, film: Modulation) -> Tensor:
    """Return ``gamma * h + beta`` for ``h`` of shape ``(b, c, x, y, z)`` and factors of shape ``(b, c)``."""
    gamma, beta = (f[:, :, None, None, None].to(h.dtype) for f in film)
    return torch.addcmul(beta, gamma, h)


class FiLM(nn.Module):
    """Predicts scale and shift for every modulated feature map from one vector.

    Args:
        in_features: Length of the vector u_m.
        hidden: Width of the hidden layers.
        channels: Channels of each modulated feature map, in the order of use.
        num_hidden: Hidden layers, 2 in the paper's released code.
    """

    def __init__(self, in_features: int, hidden: int, channels: Sequence[int], num_hidden: int = 2) -> None:
        super().__init__()
        self.channels = tuple(channels)
        widths = (in_features, *(hidden,) * num_hidden)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.SiLU()]
        last = nn.Linear(widths[-1], 2 * sum(self.channels))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(*layers, last)

    def forward(self, u: Tensor) -> list[Modulation]:
        """Map ``(b, in_features)`` to one (gamma, beta) per feature map, each ``(b, channels)``."""
        parts = self.mlp(u).split([c for c in self.channels for _ in range(2)], dim=1)
        return [(1 + gamma, beta) for gamma, beta in zip(parts[::2], parts[1::2], strict=True)]
