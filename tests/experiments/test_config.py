import os
import sys
from pathlib import Path

import pytest
import yaml

from neurotome.cli.main import main
from neurotome.errors import UsageError
from neurotome.experiments.config import MAX_BYTES, load_config, merged, shipped
from neurotome.experiments.experiment import check_experiment, plain_keys
from tests.toy import CONFIG

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG)
    return path


def check(path: Path, *overrides: tuple[str, str], modalities: tuple[str, ...] | None = ("T1w", "T2w")):
    return check_experiment(load_config(str(path), overrides), modalities)


def test_a_config_becomes_objects(file: Path) -> None:
    experiment = check(file)
    method = experiment.build_method()
    assert type(method).__name__ == "ToyTraining"
    assert method.tokenizer.latent_channels == 3
    assert method.optimizer_config.lr == 0.01
    trainer = experiment.trainer.build(seed=experiment.seed, device="cpu", threads=None, quiet=True)
    assert (trainer.max_steps, trainer.seed, trainer.ema_decay) == (4, 3, 0.5)
    assert experiment.data.build().crop == 8


def test_weights_are_a_function_of_the_seed(file: Path) -> None:
    import torch

    keys = [("method.tokenizer", "{class_path: NeuroQuant, init_args: {trunk: {channels: [8], "
             "attention_levels: [false], mid_blocks: false, num_heads: 1, norm_groups: 4}, "
             "quantizer: {class_path: EMAQuantizer, init_args: {num_codes: 8, dim: 64}}}}")]  # fmt: skip
    first, again, other = (check(file, *keys, ("seed", s)).build_method().state_dict() for s in ("1", "1", "2"))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_the_resolved_config_holds_every_default_and_reads_as_the_same(file: Path, tmp_path: Path) -> None:
    text = check(file, ("optimizer.clip", "null")).resolved()
    tree = yaml.safe_load(text)
    assert tree["method"]["init_args"]["tokenizer"]["init_args"]["modalities"] == ["T1w", "T2w"]
    assert tree["optimizer"]["betas"] == [0.9, 0.95]
    assert tree["optimizer"]["clip"] is None
    assert "device" not in tree["trainer"]
    (tmp_path / "resolved.yaml").write_text(text)
    assert check(tmp_path / "resolved.yaml").resolved() == text


def test_overrides_reach_every_level(file: Path) -> None:
    experiment = check(
        file,
        ("trainer.max_steps", "9"),
        ("seed", "5"),
        ("method.tokenizer.width", "7"),
        ("method.init_args.weight", "2"),
        ("method.tokenizer.init_args.gains", "[1, 2.5]"),
        ("method.tokenizer.kind", "'4'"),
        ("optimizer.lr", "1e-4"),
        ("data.crop", "[4, 4, 4]"),
    )
    method = experiment.build_method()
    assert (method.tokenizer.latent_channels, method.weight, experiment.seed) == (7, 2.0, 5)
    assert method.tokenizer.arguments["gains"] in ([1, 2.5], [1.0, 2.5])
    assert method.tokenizer.arguments["kind"] == "4"
    assert method.optimizer_config.lr == 1e-4
    assert experiment.data.build().crop in ((4, 4, 4), [4, 4, 4])


def build(path: Path, *overrides: tuple[str, str]) -> None:
    experiment = check(path, *overrides)
    experiment.trainer.build()
    experiment.data.build()
    experiment.build_method()


@pytest.mark.parametrize(
    ("key", "value", "texts"),
    [
        ("trainer.max_step", "9", ["unknown key 'max_step'", "did you mean max_steps?"]),
        ("optimizer.learning_rate", "1", ["optimizer", "admissible are name, lr"]),
        ("metod.weight", "1", ["unknown key 'metod'", "did you mean method?"]),
        ("method.wieght", "1", ["method: unknown key 'wieght' of ToyTraining; did you mean weight?"]),
        ("method.tokenizer.widht", "1", ["method.tokenizer: unknown key 'widht' of ToyTokenizer; did you mean width?"]),
        ("method.tokenizer.optimizer", "1", ["unknown key 'optimizer'"]),
        ("method.optimizer", "1", ["unknown key 'optimizer'"]),
        ("trainer.seed", "1", ["unknown key 'seed'"]),
        ("trainer.max_steps", "four", ["trainer.max_steps: 'four' does not fit; admissible is a whole number"]),
        ("trainer.max_steps", "'4'", ["'4' does not fit"]),
        ("trainer.max_steps", "2.5", ["2.5 does not fit; admissible is a whole number"]),
        ("trainer.max_steps", "true", ["True does not fit"]),
        ("trainer.max_steps", "null", ["admissible is a whole number"]),
        ("trainer.max_steps", "[4]", ["admissible is a whole number"]),
        ("trainer.max_steps", "0", ["trainer.max_steps is 0; give a number in [1, 1000000000]"]),
        ("trainer.precision", "fp16", ["'32-true' or 'bf16-mixed'"]),
        ("trainer.deterministic", "1", ["admissible is true or false"]),
        ("optimizer.lr", "-1e-3", ["optimizer.lr is -0.001; give a number > 0"]),
        ("optimizer.betas", "[0.9]", ["a list of 2"]),
        ("optimizer.betas", "[0.9, high]", ["does not fit"]),
        ("data.batch_sessions", "0", ["batch_sessions is 0"]),
        ("data.crop", "[4, 4]", ["data.crop"]),
        ("data.crop", "big", ["does not fit"]),
        ("method.tokenizer.width", "0", ["method.tokenizer: width is 0"]),
        ("method.tokenizer.modalities", "T1w", ["modalities"]),
        ("method.tokenizer", "NeuroQuant", ["method.tokenizer: give {class_path: NAME", "'NeuroQuant'"]),
        ("method.tokenizer", "null", ["method.tokenizer"]),
        ("method", "ToyTraining", ["method: give {class_path"]),
        ("method.tokenizer.class_path", "ToyTokeniser", ["not a public Tokenizer", "did you mean ToyTokenizer?"]),
        ("method.tokenizer.class_path", "ToyTraining", ["not a public Tokenizer"]),
        ("method.class_path", "ToyTokenizer", ["not a public Method"]),
        ("method.tokenizer.class_path", "Tokenizer", ["not a public Tokenizer"]),
        ("method.tokenizer.class_path", "neurotome.tokenizers.NeuroQuant", ["without dots"]),
        ("method.tokenizer.class_path", "[a]", ["not a public Tokenizer"]),
        ("method.tokenizer.kind", "${oc.env:HOME}", ["holds '$'", "no interpolation"]),
        ("method.tokenizer.kind", "$import os", ["holds '$'"]),
        ("seed", "-1", ["seed is -1"]),
        ("seed", "1.5", ["seed is 1.5"]),
        ("seed", "true", ["seed is True"]),
        ("seed.x", "1", ["no block"]),
        ("optimizer.lr", ".inf", ["inf does not fit; admissible is a number"]),
        ("method.weight", ".nan", ["nan does not fit"]),
        ("optimizer", "[]", ["optimizer: give a block"]),
        ("method.init_args", "0", ["method: give a block"]),
        ("data.batch_sessions", "1" + "0" * 30, ["give a number in [1, 4096]"]),
        ("data", "3", ["data: give {class_path: NAME, init_args: …}, not 3"]),
        ("trainer.max_steps", "{a: 1", ["--trainer.max_steps"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_admissible(
    file: Path, key: str, value: str, texts: list[str]
) -> None:
    with pytest.raises(UsageError) as error:
        build(file, (key, value))
    assert error.value.exit_code == 2
    for text in texts:
        assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_blocks_merge_and_the_rest_is_replaced() -> None:
    tree = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    over = {"a": {"c": [3], "e": {"f": 1}}, "d": {"g": 1}}
    assert merged(tree, over) == {"a": {"b": 1, "c": [3], "e": {"f": 1}}, "d": {"g": 1}}
    assert tree == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


def test_the_tiny_block_is_for_tests_alone(file: Path) -> None:
    config = load_config(str(file))
    assert config.tree["trainer"]["max_steps"] == 4
    assert config.shrunk().tree["trainer"] == {**config.tree["trainer"], "max_steps": 1}
    assert "tiny" not in config.tree
    assert config.head == "A toy: least squares on blocks."


def test_contrasts_come_from_the_store_unless_the_config_fixes_them(file: Path) -> None:
    assert check(file, modalities=("FLAIR", "T1w")).build_method().tokenizer.modalities == ("FLAIR", "T1w")
    fixed = ("method.tokenizer.modalities", "[T2w, T1w]")
    assert check(file, fixed).build_method().tokenizer.modalities == ("T2w", "T1w")
    with pytest.raises(UsageError, match="config's modalities are T2w, T1w, the store holds T1w"):
        check(file, fixed, modalities=("T1w",))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("neurquant", "no shipped config"),
        ("missing.yaml", "no such file"),
        ("../../etc/passwd", "no shipped config"),
        ("a\x1bb", r"a\\x1bb"),
    ],
)
def test_a_config_that_is_not_there(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        load_config(name)


def test_files_that_are_no_config(tmp_path: Path) -> None:
    for content, text in (
        (b"x" * (MAX_BYTES + 1), "larger than"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"", "a config is a block"),
        (b"- 1", "a config is a block"),
        (b"seed: 1", "method is missing"),
        (b"_target_: os.system\nmethod: {}", "unknown key '_target_'"),
        (b"method: {_target_: os.system}", "class_path"),
        (b"method: {class_path: ToyTraining, _target_: os.system}", "unknown key '_target_'"),
        (b"method: {class_path: ToyTraining, init_arg: {}}", "'init_arg'; did you mean init_args"),
        (b"method: {class_path: ToyTraining}", "needs tokenizer"),
        (b"method: {class_path: ToyTraining, init_args: [1]}", "block of keys"),
        (b"method: {class_path: ToyTraining}\ntiny: 5", "tiny is a block"),
        (b"method: {class_path: ToyTraining}\ntiny: {foo: 1}", "tiny is a block"),
        (b"method: {class_path: ToyTraining}\ntiny: {tiny: {}}", "tiny is a block"),
    ):
        path = tmp_path / "c.yaml"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=text):
            check(path)
    with pytest.raises(UsageError, match="no such file"):
        load_config("x" * 300 + ".yaml")
    (tmp_path / "d.yaml").mkdir()
    with pytest.raises(UsageError, match="no such file"):
        load_config(str(tmp_path / "d.yaml"))


CANARY = """import os
open(os.environ["CANARY"], "w").close()
class Method: pass
class Tokenizer: pass
def call(*a, **k): open(os.environ["CANARY"], "w").close()
"""
TOY = "class_path: ToyTraining\n  init_args: "
BAIT = (
    "class_path: canary_module.Method",
    "class_path: canary_module",
    "class_path: neurotome.tokenizers.canary_module",
    TOY + "{tokenizer: canary_module.Tokenizer}",
    TOY + "{tokenizer: {class_path: canary_module.Tokenizer}}",
    TOY + "{tokenizer: {class_path: ToyTokenizer, init_args: {width: canary_module.call}}}",
    TOY + "{tokenizer: {class_path: ToyTokenizer}, weight: {class_path: canary_module.Method}}",
    TOY + "{tokenizer: {class_path: ToyTokenizer}, levels: [{class_path: canary_module.Method}]}",
    TOY + "{tokenizer: {class_path: ToyTokenizer}, weight: !!python/name:canary_module.call}",
    TOY + "{tokenizer: {class_path: ToyTokenizer}, optimizer: {class_path: canary_module.Method}}",
    TOY + "{tokenizer: {class_path: ToyTokenizer}, __class__: canary_module.Method}",
    "_target_: canary_module.call",
)


@pytest.mark.parametrize("bait", BAIT)
def test_nothing_outside_the_package_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bait: str
) -> None:
    (tmp_path / "canary_module.py").write_text(CANARY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CANARY", str(tmp_path / "sang"))
    path = tmp_path / "c.yaml"
    path.write_text(f"method:\n  {bait}\ntrainer: {{max_steps: 1}}\n")
    (tmp_path / "store").mkdir()
    assert main(["train", str(path), str(tmp_path / "store"), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert "canary_module" not in sys.modules
    assert not (tmp_path / "sang").exists()
    assert not (tmp_path / "run").exists()


def test_the_canary_would_sing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "canary_module.py").write_text(CANARY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CANARY", str(tmp_path / "sang"))
    __import__("canary_module")
    assert os.path.exists(tmp_path / "sang")  # noqa: PTH110
    del sys.modules["canary_module"]


def test_configs_lists_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    listed = capsys.readouterr().out
    for name, source in shipped().items():
        assert name in listed
        assert main(["configs", name]) == 0
        assert capsys.readouterr().out.strip() == source.read_text().strip()
    assert main(["configs", "no-such"]) == 2


def test_suggestions_know_the_settings() -> None:
    assert {"trainer.max_steps", "optimizer.lr", "data.crop", "seed"} <= set(plain_keys())


def test_the_tiny_block_is_not_for_users() -> None:
    with pytest.raises(UsageError, match="the block tiny is for tests alone"):
        load_config("vq-vae-demo", [("tiny.trainer.max_steps", "3")])


def test_a_number_in_a_dotted_key_takes_an_entry_of_a_list() -> None:
    key = "method.tokenizer.quantizers.1.num_codes"
    tree = load_config("vq-vae2-demo", [(key, "16")]).tree
    quantizers = tree["method"]["init_args"]["tokenizer"]["init_args"]["quantizers"]
    assert [q["init_args"]["num_codes"] for q in quantizers] == [128, 16]
    for wrong in ("2", "-1", "first"):
        with pytest.raises(UsageError, match="is no place in a list of 2"):
            load_config("vq-vae2-demo", [(key.replace(".1.", f".{wrong}."), "16")])


KLVAE = (
    "method: {class_path: TokenizerTraining, init_args: {tokenizer: {class_path: KLVAE}}}\ntrainer: {max_steps: 2}\n"
)


@pytest.mark.parametrize(
    ("block", "name", "arguments"),
    [
        ("", "Volumes", {}),
        ("data: {crop: 8}", "Volumes", {"crop": 8}),
        ("data: null", "Volumes", {}),
        ("data: {init_args: {crop: 8}}", "Volumes", {"crop": 8}),
        ("data: {class_path: Pairs}", "Pairs", {}),
        ("data: {class_path: Masks, init_args: {source: image}}", "Masks", {"source": "image"}),
    ],
)
def test_a_data_block_names_a_class(tmp_path: Path, block: str, name: str, arguments: dict) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"{KLVAE}{block}\n")
    data = check_experiment(load_config(str(path))).data
    assert (data.target.__name__, data.arguments) == (name, arguments)
    if name != "Masks":
        changed = check_experiment(load_config(str(path), [("data.class_path", "Pairs"), ("data.crop", "12")])).data
        assert (changed.target.__name__, changed.arguments["crop"]) == ("Pairs", 12)


NO_DATA = (
    "3", "[1]", "text", "{class_path: Store}", "{class_path: neurotome.data.Pairs}", "{class_path: TokenizerTraining}",
    "{class_path: Pairs, init_args: {crops: 8}}",
)  # fmt: skip


@pytest.mark.parametrize("block", NO_DATA)
def test_what_is_no_data_block_is_refused(tmp_path: Path, block: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"{KLVAE}data: {block}\n")
    with pytest.raises(UsageError, match="data"):
        check_experiment(load_config(str(path)))
