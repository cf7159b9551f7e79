"""Deep compression: published sizes, shortcuts and attention against closed forms, phases, the structured latent."""

import pytest
import torch
from torch.nn import functional as F

from neurotome.nn.linear_attention import LinearAttention, linear_attention
from neurotome.nn.nd import depth_to_space, space_to_depth
from neurotome.nn.shortcut import ShortcutDownsample, ShortcutUpsample, average_channels, repeat_channels
from neurotome.tokenizers import DCAE, Encoded, TokenizerTraining
from neurotome.tokenizers.dc_ae import channel_choices
from neurotome.types import Batch

IDS = torch.tensor([0, 1])
TINY = {
    "channels": (8, 16, 32),
    "num_res_blocks": (1, 1, 1),
    "attention_levels": (False, False, True),
    "depth_factors": (2, 1),
    "latent_channels": 8,
    "head_channels": 8,
}
EFFICIENT = {  # the published 2-D network (DC-AE 1.0), six levels
    "spatial_dims": 2,
    "channels": (128, 256, 512, 512, 1024, 1024),
    "num_res_blocks": (0, 4, 8, 2, 2, 2),
    "decoder_res_blocks": (0, 5, 10, 2, 2, 2),
    "attention_levels": (False, False, False, True, True, True),
    "depth_factors": (1, 1, 1, 1, 1),
    "scales": (),
}


def tiny(**changes) -> DCAE:
    torch.manual_seed(0)
    return DCAE(**{**TINY, **changes})


def size(**arguments) -> tuple[int, DCAE]:
    with torch.device("meta"):
        network = DCAE(**arguments)
    return sum(p.numel() for p in network.parameters()), network


def deeper(arguments: dict, *widths: int) -> dict:
    more = len(widths)
    return {
        **arguments,
        "channels": (*arguments["channels"], *widths),
        "num_res_blocks": (*arguments["num_res_blocks"], *[2] * more),
        "decoder_res_blocks": (*arguments["decoder_res_blocks"], *[2] * more),
        "attention_levels": (*arguments["attention_levels"], *[True] * more),
        "depth_factors": (*arguments["depth_factors"], *[1] * more),
    }


def test_the_medical_port_has_the_published_number_of_parameters():
    port = {
        "spatial_dims": 2,
        "channels": (128, 256, 512, 512, 1024, 1024),
        "num_res_blocks": (2, 2, 2, 3, 3, 3),
        "decoder_res_blocks": (3, 3, 3, 3, 3, 3),
    }
    count, network = size(**port)
    assert count == 362_889_313  # "362 M"
    own = dict(network.named_parameters())
    # "~1.4 K" of the third phase
    assert sum(own[name].numel() for name in network.phase_parameters("refine")) == 1409


def test_the_published_networks_of_slices_have_their_sizes():
    assert size(**EFFICIENT, in_channels=3)[0] == 323_356_460  # 323 M
    f64 = deeper(EFFICIENT, 2048)
    assert size(**f64, latent_channels=128, in_channels=3)[0] == 676_896_140  # 677 M
    f128 = deeper(f64, 2048)
    count, network = size(**f128, latent_channels=512, in_channels=3)
    assert count == 1_120_682_252  # 1.12 G
    assert network.factor == (128, 128, 1)
    assert network.latent_shape((256, 256, 1)) == (2, 2, 1)


def test_the_default_is_the_port_to_volumes():
    count, network = size()
    assert count == 208_524_497
    assert network.factor == (32, 32, 4)
    assert network.latent_shape((256, 256, 160)) == (8, 8, 40)
    assert network.bits((256, 256, 160)) == 16 * 32 * 8 * 8 * 40


@pytest.mark.parametrize("factor", [(2, 2, 2), (2, 2, 1)])
def test_without_convolutions_down_is_a_mean_and_up_a_copy(factor):
    torch.manual_seed(0)
    x = torch.randn(1, 4, 4, 6, 8)
    down, up = ShortcutDownsample(3, 4, 8, factor), ShortcutUpsample(3, 8, 4, factor)
    for part in (down, up):
        torch.nn.init.zeros_(part.conv.weight)
        torch.nn.init.zeros_(part.conv.bias)
    y = down(x)
    group = 4 * factor[0] * factor[1] * factor[2] // 8
    folded = space_to_depth(x, factor)
    for channel in range(8):  # by hand
        expected = folded[:, channel * group : (channel + 1) * group].mean(1)
        assert torch.allclose(y[:, channel], expected)
    z = up(y, x.shape[2:])
    assert z.shape == x.shape
    assert torch.equal(z, depth_to_space(y.repeat_interleave(group, dim=1), factor, x.shape[2:]))
    assert torch.allclose(down(z), y, atol=1e-6)  # averaging undoes the copy
    assert torch.allclose(z.mean(), x.mean(), atol=1e-6)


def test_channels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        ShortcutDownsample(3, 4, 12, (2, 2, 2))
    with pytest.raises(ValueError, match="cannot be averaged"):
        ShortcutDownsample(3, 3, 16, (2, 2, 2))
    with pytest.raises(ValueError, match="cannot be repeated"):
        ShortcutUpsample(3, 16, 3, (2, 2, 2))
    with pytest.raises(ValueError, match="give a divisor"):
        average_channels(torch.zeros(1, 6, 1, 1, 1), 4)
    with pytest.raises(ValueError, match="give a multiple"):
        repeat_channels(torch.zeros(1, 4, 1, 1, 1), 6)


def test_linear_attention_equals_the_quadratic_sum():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 4, 10).unbind(0)
    weights = q.relu().transpose(-1, -2) @ k.relu()  # (b, heads, n, n)
    total = weights.sum(-1, keepdim=True)
    assert bool((total == 0).any())  # a query without a positive entry attends to nothing
    expected = v @ (weights / torch.where(total == 0, 1.0, total)).transpose(-1, -2)
    assert torch.allclose(linear_attention(q, k, v), expected, atol=1e-5)


@pytest.mark.parametrize("scales", [(), (3, 5)])
def test_attention_sees_the_whole_volume_but_one_slice_of_a_network_of_slices(scales):
    torch.manual_seed(0)
    x = torch.randn(1, 16, 6, 6, 5, requires_grad=True)
    for dims, reach in ((3, True), (2, False)):
        attention = LinearAttention(dims, 16, 8, scales)
        (gradient,) = torch.autograd.grad(attention(x)[..., 0].square().sum(), x)
        assert bool(gradient[..., 0].abs().sum() > 0)
        assert bool(gradient[..., 3].abs().sum() > 0) == reach


def test_attention_does_not_change_with_precision_around_it():
    x = torch.randn(1, 16, 6, 6, 6)
    attention = LinearAttention(3, 16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = x.flatten(2).unflatten(1, (2, 8)).bfloat16()
        assert linear_attention(q, q, q).dtype == torch.float32
        assert torch.isfinite(attention(x)).all()


def test_every_block_is_in_use():
    network = tiny()
    before = network.decode(network.encode(torch.randn(2, 1, 16, 16, 16), IDS), IDS)
    assert before.shape == (2, 1, 16, 16, 16)
    blocks = [m for m in network.modules() if type(m).__name__ in ("PostNormBlock", "EfficientViTBlock")]
    assert len(blocks) == 6


@pytest.mark.parametrize("phase", ["full", "latent", "refine"])
def test_a_phase_learns_in_its_place_alone(phase):
    network = tiny()
    chosen = set(network.phase_parameters(phase))
    parts = {name.split(".")[0] for name in chosen}
    assert (
        parts
        == {
            "full": {"encoder", "to_latent", "from_latent", "decoder"},
            "latent": {"encoder", "to_latent", "from_latent", "decoder"},
            "refine": {"decoder"},
        }[phase]
    )
    assert "decoder.head.weight" in chosen or phase == "latent"
    if phase == "latent":
        assert all("stages.2." in n for n in chosen if n.startswith("encoder"))
        assert all("stages.0." in n for n in chosen if n.startswith("decoder"))
    if phase == "full":
        assert len(chosen) == len(list(network.parameters()))


@pytest.mark.parametrize("phase", ["latent", "refine"])
def test_a_step_of_a_phase_leaves_the_rest_alone(phase):
    network = tiny()
    method = TokenizerTraining(network, phase=phase)
    method.max_steps = 2
    optimizer = method.configure_optimizers()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    image = torch.rand(1, 2, 1, 16, 16, 16) * 2 - 1
    present = torch.ones(1, 2, dtype=torch.bool)
    batch = Batch(image, torch.tensor([[0, 1]]), present, ("a",), ("",), torch.tensor([0]))
    method.loss(batch)["loss"].backward()
    optimizer.step()
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(network.phase_parameters(phase))


def test_an_unknown_phase_is_named():
    with pytest.raises(ValueError, match="full, latent, refine"):
        tiny().phase_parameters("last")


def test_the_published_steps_of_channels():
    assert channel_choices(128, 16, 4) == (*range(16, 128, 4), 128)
    assert channel_choices(30, 16, 4) == (16, 20, 24, 28, 30)
    assert channel_choices(32, None, 4) == (32,)
    with pytest.raises(ValueError, match="1 to latent_channels, 8"):
        channel_choices(8, 9, 4)
    with pytest.raises(ValueError, match="structured_step is 0"):
        tiny(structured_from=2, structured_step=0)


def test_a_cut_latent_is_the_front_of_the_whole_and_decodes_as_if_the_rest_were_zero():
    network = tiny(structured_from=2, structured_step=2).eval()
    x = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        whole = network.encode(x, IDS)
        for kept in network.channel_choices:
            cut = network.encode(x, IDS, channels=kept)
            assert cut.latent.shape[1] == kept
            assert torch.allclose(cut.latent, whole.latent[:, :kept], atol=1e-6)
            padded = F.pad(cut.latent, (0, 0, 0, 0, 0, 0, 0, 8 - kept))
            masked = Encoded(padded, {}, None, {}, whole.shape)
            assert torch.allclose(network.decode(cut, IDS), network.decode(masked, IDS), atol=1e-5)
    assert network.channel_choices == (2, 4, 6, 8)
    with pytest.raises(ValueError, match="3 latent channels; admissible are 2, 4, 6, 8"):
        network.encode(x, IDS, channels=3)


def test_bits_are_those_of_the_channels_that_are_there():
    network, x = tiny(structured_from=2, structured_step=2).eval(), torch.randn(2, 1, 16, 16, 16)
    cells = 4 * 4 * 8  # halved twice along x and y, once along z
    whole, cut = network.encode(x, IDS), network.encode(x, IDS, channels=2)
    assert network.bits_used(whole).tolist() == [16.0 * 8 * cells] * 2 == [network.bits((16, 16, 16))] * 2
    assert network.bits_used(cut).tolist() == [16.0 * 2 * cells] * 2


def test_the_image_is_single_precision_under_autocast_and_slices_lie_along_z():
    network, x = tiny(), torch.randn(2, 1, 16, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert network.decode(network.encode(x, IDS), IDS).dtype == torch.float32
    with pytest.raises(ValueError, match="move the flat axis to the end"):
        tiny(spatial_dims=2).encode(torch.randn(1, 1, 1, 16, 16), IDS[:1])


def test_training_draws_channels_and_evaluation_does_not():
    network = tiny(structured_from=2, structured_step=2)
    x = torch.randn(2, 1, 16, 16, 1)
    torch.manual_seed(0)
    drawn = [network.train().encode(x, IDS).latent.shape[1] for _ in range(40)]
    torch.manual_seed(0)
    assert drawn == [network.encode(x, IDS).latent.shape[1] for _ in range(40)]
    assert set(drawn) == {2, 4, 6, 8}
    assert network.eval().encode(x, IDS).latent.shape[1] == 8


def test_the_front_channels_learn_most_in_structured_training():
    """What is trained under cuts is worth more in front: the error with the first channels alone is the smaller."""
    errors = {}
    for name, front in (("plain", None), ("structured", 2)):
        plain = {"attention_levels": (False, False, False)}
        network = tiny(structured_from=8 if front is None else front, structured_step=2, **plain)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 2, indexing="ij"))
        x = torch.stack([torch.sin(3 * grid.sum(0)), torch.cos(5 * grid[0])])[:, None, ..., None]
        torch.manual_seed(1)
        for _ in range(40):
            loss = (network.decode(network.encode(x, IDS), IDS) - x).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            latent = network.eval().encode(x, IDS).latent * (torch.arange(8) < 2).view(1, 8, 1, 1, 1)
            errors[name] = float((network.decode(Encoded(latent, {}, None, {}, (16, 16, 1)), IDS) - x).abs().mean())
    assert errors["structured"] < 0.7 * errors["plain"]


def test_a_stem_without_blocks_replaces_the_first_level():
    network = tiny(num_res_blocks=(0, 1, 1), decoder_res_blocks=(0, 1, 2))
    x = torch.randn(2, 1, 16, 16, 16)
    assert network.factor == (4, 4, 2)
    assert network.decode(network.encode(x, IDS), IDS).shape == x.shape
    assert not any(name.startswith("encoder.stages.2") for name, _ in network.named_parameters())


def test_recomputing_gives_the_same_gradient():
    gradients = []
    for recompute in (False, True):
        network = tiny(recompute=recompute)
        x = torch.linspace(-1, 1, 2 * 16 * 16).view(2, 1, 16, 16, 1)
        network.decode(network.encode(x, IDS), IDS).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_res_blocks": (1, 1)}, "num_res_blocks has 2"),
        ({"decoder_res_blocks": (1, 1, 1, 1)}, "decoder_res_blocks has 4"),
        ({"attention_levels": (False,)}, "attention_levels has 1"),
        ({"depth_factors": (2, 3)}, "depth_factors is"),
        ({"depth_factors": (2,)}, "give 2 numbers"),
        ({"num_res_blocks": (1, 0, 1)}, "the first one alone"),
        ({"latent_channels": 12}, "divisor of channels"),
        ({"head_channels": 12}, "multiple of head_channels"),
        ({"channels": (8, 12, 32)}, "multiple of 8"),
        ({"channels": (8,)}, "at least 2"),
        ({"spatial_dims": 4}, "spatial_dims is 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        tiny(**changes)


def test_another_number_of_channels_is_refused_where_the_latent_is_plain():
    network = tiny()
    x = torch.zeros(2, 1, 16, 16, 16)
    with pytest.raises(ValueError, match="4 latent channels; admissible are 8"):
        network.encode(x, IDS, channels=4)
    with pytest.raises(ValueError, match="4 latent channels"):
        network.decode(Encoded(torch.zeros(2, 4, 4, 4, 8), {}, None, {}, (16, 16, 16)), IDS)


def test_shortcuts_average_in_the_plane_where_z_comes_first():
    x = torch.randn(1, 4, 4, 6, 8)
    down = ShortcutDownsample(3, 4, 8, (2, 2, 2), order=(2, 0, 1))
    torch.nn.init.zeros_(down.conv.weight)
    torch.nn.init.zeros_(down.conv.bias)
    planes = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))  # (1, 4, 2, 3, 8)
    expected = torch.stack([planes[..., 0::2], planes[..., 1::2]], dim=2).flatten(1, 2)  # z even, z odd of each channel
    assert torch.allclose(down(x), expected, atol=1e-6)
    up = ShortcutUpsample(3, 8, 4, (2, 2, 2), order=(2, 0, 1))
    torch.nn.init.zeros_(up.conv.weight)
    torch.nn.init.zeros_(up.conv.bias)
    whole = planes.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.allclose(up(expected, (4, 6, 8)), whole, atol=1e-6)


def test_the_authors_volumes_take_the_mean_in_the_plane_and_ours_do_not():
    x = torch.zeros(1, 8, 8, 8, 4)
    x[..., 1] = 1  # one plane
    encoded = []
    for order in ((2, 0, 1), (0, 1, 2)):
        network = tiny(axis_order=order).eval()
        for parameter in network.encoder.parameters():
            torch.nn.init.zeros_(parameter)
        encoded.append(network.encoder.downs[0](x))
    assert set(encoded[0].unique().tolist()) == {0.0, 1.0}  # a block's two planes stay apart
    assert 0.5 in encoded[1].unique().tolist()


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_last_convolution_sees_the_activation_asked_for(activation):
    decoder = tiny(output_activation=activation).eval().decoder
    seen = []
    decoder.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    norms = []
    decoder.norm.register_forward_hook(lambda module, inputs, output: norms.append(output))
    decoder(torch.randn(1, 32, 2, 2, 4), (8, 8, 8))
    assert torch.equal(seen[0], getattr(F, activation)(norms[0]))


def test_the_finest_levels_of_the_decoder_are_batch_normalised_where_asked():
    network = tiny(batch_norm_levels=2, num_res_blocks=(0, 1, 1))
    blocks = [block for stage in network.decoder.stages for block in stage]
    assert [type(getattr(block, "norm", None)).__name__ for block in blocks] == ["NoneType", "BatchNorm"]
    block, x = blocks[-1].eval(), torch.randn(2, 16, 4, 4, 4)
    torch.nn.init.normal_(block.norm.running_mean)
    h = F.conv3d(F.relu(F.conv3d(x, block.conv1.weight, block.conv1.bias, padding=1)), block.conv2.weight, padding=1)
    norm = block.norm
    scaled = (h - norm.running_mean.view(-1, 1, 1, 1)) / (norm.running_var.view(-1, 1, 1, 1) + 1e-5).sqrt()
    assert torch.allclose(block(x), x + scaled * norm.weight.view(-1, 1, 1, 1), atol=1e-5)
    assert not any("BatchNorm" in type(m).__name__ for m in network.encoder.modules())


def test_recomputing_does_not_move_running_statistics_twice():
    found = []
    for recompute in (False, True):
        network = tiny(batch_norm_levels=2, recompute=recompute).train()
        torch.manual_seed(1)
        image = torch.randn(2, 1, 8, 8, 8)
        network.decode(network.encode(image, IDS), IDS).square().mean().backward()
        found.append(network.decoder.stages[-1][0].norm.running_mean.clone())
    assert found[0].abs().max() > 0
    assert torch.allclose(*found, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"batch_norm_levels": 3}, "give 0 to 2, the finest levels without attention"),
        ({"batch_norm_levels": -1}, "batch_norm_levels is -1; give a number in"),
        ({"axis_order": (0, 1)}, "each of 0 .x., 1 .y. and 2 .z. once"),
        ({"axis_order": (0, 1, 1)}, "once"),
        ({"output_activation": "gelu"}, "output_activation is 'gelu'; give silu or relu"),
    ],
)
def test_decoders_that_there_are_not_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        tiny(**changes)
