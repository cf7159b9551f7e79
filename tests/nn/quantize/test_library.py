"""Every way to make a latent discrete, behind one face: codes, gradients, evaluation, memory, a missing library."""

import builtins
import math

import pytest
import torch

from neurotome.errors import UsageError
from neurotome.nn.quantize import (
    BinarySphericalQuantizer,
    Coding,
    EMAQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    Quantizer,
    ResidualQuantizer,
)

KINDS = {
    "ema": lambda: EMAQuantizer(16, 4, reservoir=64),
    "residual": lambda: ResidualQuantizer(8, 4, 3, reservoir=64),
    "finite-scalar": lambda: FiniteScalarQuantizer((5, 4, 3), 4),
    "lookup-free": lambda: LookupFreeQuantizer(16, 4),
    "binary-spherical": lambda: BinarySphericalQuantizer(16, 4),
}


def latent(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 4, 5, 6, 4)


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    torch.manual_seed(0)
    return request.param


@pytest.fixture
def quantizer(kind) -> Quantizer:
    """Trained for a few steps, so that its codebooks have started."""
    made = KINDS[kind]()
    made.draw()
    for _ in range(4):
        made(latent())
    return made


def test_it_is_built_without_a_draw_and_draws_the_same_when_it_is_asked_to(kind):
    before = torch.get_rng_state()
    first, second = KINDS[kind](), KINDS[kind]()
    assert torch.equal(torch.get_rng_state(), before)
    for made in (first, second):
        torch.manual_seed(3)
        made.draw()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_cells_that_are_not_coded_get_nothing(quantizer):
    quantizer.eval()
    z, where = latent(), torch.rand(2, 5, 6, 4) < 0.5
    whole, part = quantizer(z), quantizer(z, where=where)
    assert torch.equal(part.vectors, whole.vectors * where[:, None])
    assert all(torch.equal(a, b * where) for a, b in zip(part.codes, whole.codes, strict=True))


def test_only_distances_can_be_offset(kind, quantizer):
    offset = torch.zeros(2, quantizer.sizes[0])
    if kind == "ema":
        assert torch.equal(quantizer.eval()(z := latent(), offset).vectors, quantizer(z).vectors)
        return
    with pytest.raises(ValueError, match="use EMAQuantizer"):
        quantizer(latent(), offset)


def test_codes_name_the_vectors(kind, quantizer):
    quantizer.eval()
    z = latent()
    found = quantizer(z)
    assert isinstance(found, Coding)
    assert found.vectors.shape == z.shape
    assert len(found.codes) == len(quantizer.sizes) == (3 if kind == "residual" else 1)
    for codes, size in zip(found.codes, quantizer.sizes, strict=True):
        assert codes.shape == (2, 5, 6, 4)
        assert int(codes.min()) >= 0
        assert int(codes.max()) < size
    assert torch.allclose(quantizer.lookup(found.codes), found.vectors, atol=1e-5)
    assert quantizer.bits == sum(math.ceil(math.log2(k)) for k in quantizer.sizes)


def test_evaluation_is_inert_and_repeats(quantizer):
    quantizer.eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    z = latent()
    first, second = quantizer(z), quantizer(z)
    assert torch.equal(first.vectors, second.vectors)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_evaluation_before_training_starts_no_codebook(kind):
    quantizer = KINDS[kind]().eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(latent())
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("kind", ["ema", "residual"])
def test_the_gradient_is_handed_on_once(quantizer):
    """The library's residual codebooks hand it on once each: three codebooks, three times the gradient."""
    z = latent().requires_grad_()
    weight = torch.randn_like(z)
    (grad,) = torch.autograd.grad((quantizer.eval()(z).vectors * weight).sum(), z)
    assert torch.allclose(grad, weight)


def test_a_gradient_reaches_the_latent_and_every_parameter(quantizer):
    quantizer.train()
    z = latent().requires_grad_()
    found = quantizer(z)
    (found.vectors.square().sum() + sum(found.terms.values())).backward()
    assert z.grad.abs().sum() > 0
    assert all(p.grad is not None for p in quantizer.parameters())


def test_single_precision_under_autocast(quantizer):
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(latent().bfloat16())
    assert found.vectors.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in found.terms.values())


def test_it_is_built_on_the_meta_device_and_takes_a_state_over(kind, quantizer):
    """A model folder is read into a network without memory; the library's own buffers would stay there."""
    quantizer.eval()
    with torch.device("meta"):
        twin = KINDS[kind]().eval()
    twin.load_state_dict(quantizer.state_dict(), assign=True)
    z = latent()
    assert torch.equal(twin(z).vectors, quantizer(z).vectors)


def test_residual_codebooks_refine():
    torch.manual_seed(0)
    z = latent(8)
    errors = []
    for codebooks in (1, 2, 4):
        quantizer = ResidualQuantizer(16, 4, codebooks, reservoir=64)
        for _ in range(10):
            quantizer(z)
        errors.append(float(quantizer.eval()(z).terms["commitment"]))
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


def test_residual_codebooks_stay_put_where_a_batch_has_fewer_tokens_than_a_codebook_has_codes():
    """The library's threshold is two hits: with 0.5 tokens per code every code was dead in every step."""
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(256, 4, 2, reservoir=2048, decay=0.95)
    while not quantizer.started:
        quantizer(torch.randn(1, 4, 4, 4, 8))
    codebooks = [layer._codebook for layer in quantizer.layer.layers]
    distinct = [len(codebook.embed[0].unique(dim=0)) for codebook in codebooks]
    assert distinct == [256, 256], "k-means had tokens enough for every code"
    moved = []
    for _ in range(100):  # the start's counts, 8 tokens a code, have faded to 0.5 after some 60 steps
        before = [codebook.embed.clone() for codebook in codebooks]
        quantizer(torch.randn(1, 4, 4, 4, 8))
        moved += [((a.embed - b).norm(dim=-1) > 0.5).float().mean() for a, b in zip(codebooks, before, strict=True)]
    assert torch.stack(moved[120:]).mean() < 0.03


def test_a_dead_residual_code_is_revived_on_a_token():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(8, 4, 1, reservoir=64)
    quantizer(latent())
    (codebook,) = (layer._codebook for layer in quantizer.layer.layers)
    codebook.embed[0, 3], codebook.embed_avg[0, 3], codebook.cluster_size[0, 3] = 100.0, 0.1, 1e-3
    z = latent()
    quantizer(z)
    rows = z.movedim(1, -1).reshape(-1, 4)
    assert (rows - codebook.embed[0, 3]).norm(dim=1).min() < 1e-3


def test_residual_codebooks_wait_for_their_tokens():
    quantizer = ResidualQuantizer(8, 4, 2, reservoir=300, start_after=1)
    z = latent()  # 240 tokens
    assert torch.equal(quantizer(z).vectors, z)
    assert not quantizer.started
    assert not torch.equal(quantizer(z).vectors, z)
    assert quantizer.started


def test_finite_scalars_by_hand():
    """5 levels: tanh, times 2, rounded to -2 … 2, divided by 2; the first channel is the lowest digit of the code."""
    quantizer = FiniteScalarQuantizer((5, 5), 2).eval()
    z = torch.tensor([[-9.0, -0.5, 0.0, 0.3, 9.0], [9.0, 0.0, 0.0, 0.0, -9.0]]).view(1, 2, 5, 1, 1)
    digits = (torch.tanh(z) * 2 * 1.001).round()
    found = quantizer(z)
    assert torch.allclose(found.vectors, digits / 2)
    assert torch.equal(found.codes[0], (digits[:, 0] + 2 + 5 * (digits[:, 1] + 2)).long())


def test_signs_by_hand():
    for kind, length in ((LookupFreeQuantizer, 1.0), (BinarySphericalQuantizer, 1 / math.sqrt(3))):
        quantizer = kind(8, 3).eval()
        z = torch.tensor([[0.2, -3.0], [-0.1, 0.5], [7.0, 0.1]]).view(1, 3, 2, 1, 1)
        found = quantizer(z)
        assert torch.allclose(found.vectors, z.sign() * length)
        assert found.codes[0].flatten().tolist() == [0b101, 0b011]


def test_entropy_of_signs_is_lowest_when_all_codes_are_sure_and_used():
    quantizer = LookupFreeQuantizer(4, 2)
    corners = torch.tensor([[-1.0, -1, 1, 1], [-1, 1, -1, 1]]).view(1, 2, 4, 1, 1)
    assert float(quantizer(corners).terms["entropy"]) == pytest.approx(-math.log(4), abs=1e-3)
    assert float(quantizer(corners[:, :, :1]).terms["entropy"]) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("kind", [LookupFreeQuantizer, BinarySphericalQuantizer])
def test_entropy_of_signs_is_that_of_all_tokens(kind):
    torch.manual_seed(0)
    quantizer, z = kind(2**7, 5).train(), torch.randn(1, 5, 10, 10, 4, requires_grad=True)
    ours = quantizer(0.01 * z).terms["entropy"]
    quantizer.layer.frac_per_sample_entropy = 1.0
    tokens = 0.01 * z.movedim(1, -1).reshape(1, -1, 5)
    _, parts = quantizer.layer(tokens, return_loss_breakdown=True)
    theirs = parts.per_sample_entropy - parts.batch_entropy
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-4)
    gradients = [torch.autograd.grad(term, z)[0] for term in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-5)
    assert float(quantizer.eval()(z).terms["entropy"]) == 0


def test_entropy_of_signs_does_not_saturate_at_the_number_of_a_few_tokens():
    torch.manual_seed(0)
    quantizer, z = LookupFreeQuantizer(2**16, 16).train(), torch.randn(2, 16, 32, 32, 4)
    assert float(quantizer(z).terms["entropy"]) < -0.95 * math.log(8192)


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (lambda: FiniteScalarQuantizer((2, 2), 4), r"levels is \(2, 2\); give numbers in \[3,"),
        (lambda: LookupFreeQuantizer(12, 4), "powers of 2"),
        (lambda: ResidualQuantizer(8, 4, 2, reservoir=7), "at least one token per code, 8"),
    ],
)
def test_bad_arguments_are_named(made, match):
    with pytest.raises(ValueError, match=match):
        made()


def test_a_missing_library_is_named_with_the_remedy(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "vector_quantize_pytorch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="pip install vector-quantize-pytorch"):
        ResidualQuantizer(8, 4, 2)
    EMAQuantizer(8, 4)
