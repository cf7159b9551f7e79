r"""Optimisers, and the learning rate as a function of the step.

    lr(s) = lr * factor(s)         s finished steps, S = max_steps, W = warmup_fraction S, f = final_lr_fraction

    factor(s) = (s + 1) / W                                             while s < W
    constant  : 1
    cosine    : f + (1 - f) (1 + cos(pi p)) / 2                         p = (s - W) / (S - 1 - W)
    two_stage : the same with S replaced by D = decay_fraction S, then f

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) replaces the update of a weight matrix by the
nearest matrix with all singular values near one:

    M <- mu M + (1 - mu) G              momentum
    U  = mu M + (1 - mu) G              Nesterov
    X  = U / |U|,  five times  X <- a X + (b A + c A^2) X   with  A = X X^T
    W <- (1 - lr decay) W - lr sqrt(max(1, rows / columns)) X

A convolution's weight is the matrix ``(out, in * kernel)``. The rate is a function of the step alone, so a resumed run
needs no state for it. Two players in one training (a generator and its discriminator) are parts of one optimiser, each
with its own peak rate and its own clipping.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw

from neurotome.errors import UsageError
from neurotome.ranges import Decay, Positive, Range, Ranged, Share, Weight

# a, b, c of the quintic iteration: the steepest at zero that keeps singular values within about [0.7, 1.2] (Jordan).
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
EPS = 1e-7


@dataclass(frozen=True)
class OptimizerConfig(Ranged):
    """How weights are updated; plain fields, the schema of a config's ``optimizer`` block.

    Args:
        name: ``adamw``, or ``muon`` for the matrices of hidden layers with AdamW for all else.
        lr: Peak rate of AdamW, > 0.
        muon_lr: Peak rate of Muon, > 0; a hidden matrix moves by about this much in every direction at each step.
        betas: AdamW's decay of the first and second moment, each in [0, 1).
        eps: AdamW's term beside the square root, > 0.
        weight_decay: AdamW's decoupled decay, >= 0; vectors and scalars are never decayed.
        muon_momentum: Muon's momentum mu, in [0, 1).
        muon_weight_decay: Muon's decoupled decay, >= 0.
        clip: Largest norm of the gradient over all parameters, > 0, or None.
        schedule: ``constant``, ``cosine``, or ``two_stage`` (the cosine, then its final rate held).
        warmup_fraction: Share of the steps over which the rate rises from zero, in [0, 1).
        final_lr_fraction: Final rate over peak rate, in [0, 1].
        decay_fraction: Share of the steps after which ``two_stage`` holds the final rate, in (0, 1].

    Raises:
        UsageError: A value is outside its range.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: Positive = 3e-4
    muon_lr: Positive = 0.02
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: Weight = 0.0
    muon_momentum: Decay = 0.95
    muon_weight_decay: Weight = 0.0
    clip: Positive | None = 1.0
    schedule: Literal["constant", "cosine", "two_stage"] = "cosine"
    warmup_fraction: Decay = 0.05
    final_lr_fraction: Share = 0.01
    decay_fraction: Annotated[float, Range("(0, 1]")] = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay_fraction <= self.warmup_fraction:
            raise UsageError(
                f"decay_fraction is {self.decay_fraction}; give more than {self.warmup_fraction}, the warm-up"
            )


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the step; see the module's equations.

    Args:
        config: Shape of the curve.
        max_steps: Steps of the whole run, > 0.
    """

    config: OptimizerConfig
    max_steps: int

    def __call__(self, step: int) -> float:
        """Return the factor on every peak rate for the step that follows ``step`` finished ones."""
        config = self.config
        warmup = round(config.warmup_fraction * self.max_steps)
        if step < warmup:
            return (step + 1) / warmup
        if config.schedule == "constant":
            return 1.0
        end = self.max_steps if config.schedule == "cosine" else round(config.decay_fraction * self.max_steps)
        p = min(1.0, (step - warmup) / max(1, end - 1 - warmup))
        return config.final_lr_fraction + (1 - config.final_lr_fraction) * (1 + math.cos(math.pi * p)) / 2

    def apply(self, optimizer: Optimizer, step: int) -> None:
        """Set the rate of every parameter group for the step that follows ``step`` finished ones."""
        factor = self(step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return ``(n, rows, columns)`` matrices with the same singular vectors and singular values near one.

    The iteration runs on the smaller side. Where the matrix is long, the whole iteration is done on its small Gram
    matrix ``A``: all factors are polynomials in it and commute, so ``X_5 = Q_5 ... Q_1 X`` and ``A <- Q A Q``.
    On an accelerator the plain form runs in bfloat16, on a CPU all is float32.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalise(matrices.mT).mT
    a, b, c = QUINTIC
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(EPS)
    if matrices.device.type != "cpu" or x.shape[-1] < 2 * x.shape[-2]:
        for _ in range(ROUNDS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.to(matrices.dtype)
    gram = x @ x.mT
    product: Tensor | None = None
    for left in reversed(range(ROUNDS)):
        q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        q.diagonal(dim1=-2, dim2=-1).add_(a)
        product = q if product is None else q @ product
        if left:
            gram = q @ gram @ q
    return (product @ x).to(matrices.dtype) if product is not None else x


class MuonAdamW(Optimizer):
    """Muon for the groups of kind ``muon``, AdamW for those of kind ``adamw``, under one state dictionary.

    Args:
        groups: Parameter groups with ``kind``, ``lr``, ``weight_decay`` and, for Muon, ``momentum``; for AdamW,
            ``betas`` and ``eps``.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return what ``closure`` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._muon if group["kind"] == "muon" else self._adamw)(group, parameters)
        return loss

    def _muon(self, group: Mapping[str, Any], parameters: list[Tensor]) -> None:
        buckets: dict[tuple[int, int], list[Tensor]] = {}
        for p in parameters:
            buckets.setdefault((p.shape[0], p[0].numel()), []).append(p)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for (rows, columns), bucket in buckets.items():
            gradients = [p.grad for p in bucket if p.grad is not None]
            momenta = [self._state(p, "momentum") for p in bucket]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
            updates = orthogonalise(torch.stack([u.reshape(rows, columns) for u in nesterov]))
            rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
            torch._foreach_add_(bucket, [u.reshape(p.shape) for u, p in zip(updates, bucket, strict=True)], alpha=-rate)

    def _adamw(self, group: Mapping[str, Any], parameters: list[Tensor]) -> None:
        for p in parameters:
            if "step" not in self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [self._state(p, "exp_avg") for p in parameters],
            [self._state(p, "exp_avg_sq") for p in parameters],
            [],
            [self.state[p]["step"] for p in parameters],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _state(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state[name]


def _restore_layout(optimizer: Optimizer) -> None:
    """Give loaded state the memory layout of its parameter.

    Fused kernels on a CPU walk through memory, not through indices: a contiguous moment beside a channels-last weight
    would be paired with the wrong elements, silently.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def check_edges(parameters: Iterable[str], edge: Sequence[str]) -> None:
    """Refuse a prefix of names that fits no trained parameter.

    Raises:
        UsageError: One fits none.
    """
    names = list(parameters)
    unknown = [prefix for prefix in edge if not any(name.startswith(prefix) for name in names)]
    if unknown and names:
        raise UsageError(f"no trained parameter begins with {', '.join(unknown)}; names begin like {names[0]}")


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimizerConfig,
    max_steps: int,
    edge: Sequence[str] = (),
    apart: Mapping[str, float] | None = None,
) -> tuple[Optimizer, Schedule]:
    """Return the optimiser over the parameters that require gradients, and its schedule.

    Args:
        named_parameters: Names and parameters, as ``module.named_parameters()`` gives them.
        config: Which optimiser and how fast.
        max_steps: Steps of the whole run, > 0.
        edge: Prefixes of names that AdamW updates even under Muon: stem, output, embeddings, codebooks.
        apart: Prefixes of parts that AdamW updates at a peak rate of their own, such as ``{"discriminator": 5e-4}``;
            their groups are called ``part``, and their gradients are clipped by themselves.

    Raises:
        UsageError: There is nothing to train, ``max_steps`` is not positive, or a prefix fits no parameter.
    """
    parameters = {name: p for name, p in named_parameters if p.requires_grad}
    if not parameters:
        raise UsageError("nothing to train: no parameter requires a gradient; unfreeze a part of the method")
    if max_steps < 1:
        raise UsageError(f"max_steps is {max_steps}; give a whole number > 0")
    if config.name == "muon":
        check_edges(parameters, edge)
    apart = apart or {}
    parts: dict[str, dict[str, nn.Parameter]] = {part: {} for part in ("", *apart)}
    for name, p in parameters.items():
        parts[next((part for part in apart if name.startswith(f"{part}.")), "")][name] = p
    hidden = {
        name: p
        for name, p in parts[""].items()
        if config.name == "muon" and p.ndim >= 2 and not name.startswith(tuple(edge))
    }
    groups: list[dict[str, Any]] = []
    for part, members in parts.items():
        rest = [p for name, p in members.items() if name not in hidden]
        peak = apart.get(part, config.lr)
        for decay, of_kind in (
            (config.weight_decay, [p for p in rest if p.ndim >= 2]),
            (0.0, [p for p in rest if p.ndim < 2]),
        ):
            if of_kind:
                group = {"params": of_kind, "lr": peak, "weight_decay": decay, "initial_lr": peak}
                groups.append(group | ({"part": part} if part else {}))
    optimizer: Optimizer
    if config.name == "muon":
        for group in groups:
            group.update(kind="adamw", betas=tuple(config.betas), eps=config.eps)
        if hidden:
            muon = {"kind": "muon", "momentum": config.muon_momentum, "weight_decay": config.muon_weight_decay}
            groups.append({"params": list(hidden.values()), "lr": config.muon_lr, "initial_lr": config.muon_lr, **muon})
        optimizer = MuonAdamW(groups)
    else:
        optimizer = AdamW(groups, betas=config.betas, eps=config.eps, fused=True)
    optimizer.register_load_state_dict_post_hook(_restore_layout)
    schedule = Schedule(config, max_steps)
    schedule.apply(optimizer, 0)
    return optimizer, schedule
