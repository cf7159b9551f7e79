"""Names of the style tensors of a model folder: moments per contrast and site."""

from collections.abc import Mapping
from urllib.parse import quote, unquote

from torch import Tensor

ALL_SITES = "all"


def named_styles(
    means: Mapping[tuple[str, str], Tensor], covariances: Mapping[tuple[str, str], Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of ``styles.safetensors``: ``T1w/SITE/mean``, ``T1w/SITE/covariance``, SITE quoted."""
    named = {f"{m}/{quote(s, safe='')}/mean": value for (m, s), value in means.items()}
    return named | {f"{m}/{quote(s, safe='')}/covariance": value for (m, s), value in covariances.items()}


def style_key(name: str) -> tuple[str, str]:
    """Return contrast and site of a tensor's name."""
    modality, site = name.split("/")[:2]
    return modality, unquote(site)
