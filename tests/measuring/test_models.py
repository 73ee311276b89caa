"""Measuring any trained model on pictures: the features that its last linear layer sees, from every form of a model."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from ncflow import stages
from ncflow.data import ImageSource
from ncflow.measuring import measure, read_features
from ncflow.measuring.archives import kind_of, load_exported, load_scripted
from ncflow.measuring.models import Question, collect_features, open_model
from ncflow.measuring.pictures import load_pictures
from ncflow.nn import Classifier, create_head
from ncflow.nn.pictures import PictureClassifier
from ncflow.nn.whole import Preprocessing

K, S = 3, 32
LEGACY = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # of the tests alone, which write TorchScript
CLASSES = ["ant", "bee", "cat"]


class Small(nn.Module):
    """A convolution, a norm, pooling and a linear layer."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))
        self.fc = nn.Linear(6, K, bias=bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(images).mean((2, 3)))


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    model = Small()
    model(torch.randn(8, 3, S, S))  # the norm's statistics are no longer the initial ones
    return model.eval()


@pytest.fixture
def pics(tmp_path) -> Path:
    """A folder of pictures of several sizes, one of them gray: 4 of each class for training, 2 for the test."""
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in CLASSES:
            folder = tmp_path / "pics" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                shape = (S + number, 40) if (name, number) == ("bee", 0) else (S + number, 40, 3)
                Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "pics"


def inputs(splits: dict[str, ImageSource], preprocessing: Preprocessing) -> dict[str, torch.Tensor]:
    """Every picture of each split as the model takes it, one at a time."""
    transform = preprocessing.transform()
    return {
        split: torch.stack([transform(Image.open(file).convert("RGB")) for file in source.images])
        for split, source in splits.items()
    }


def collected(pics: Path, model: str, **options):
    asked = Question(model=str(model), data=f"imagefolder:{pics}", **options)
    splits = load_pictures(asked.data)
    opened = open_model(asked, num_classes=K)
    name, found = collect_features(opened, splits, layer=asked.layer, features_only=asked.features_only, batch_size=3)
    return opened, name, found, inputs(splits, opened.preprocessing)


def seen_by(layer: nn.Module, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What a layer sees: the twin of every reader."""
    found = []
    hook = layer.register_forward_pre_hook(lambda module, given: found.append(given[0]))
    with torch.no_grad():
        model.eval()(images)
    hook.remove()
    return found[0]


# --- models by name ---


LIGHT = "torchvision/shufflenet_v2_x0_5"
NAMES = {
    "torchvision/resnet18": lambda: torchvision.models.resnet18(num_classes=K),
    "timm/resnet10t.c3_in1k": lambda: __import__("timm").create_model("resnet10t", num_classes=K),
}


@pytest.mark.parametrize("prefix", ["", "module.", "model.net."])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_gives_the_features_of_its_model(tmp_path, pics, name, prefix):
    torch.manual_seed(1)
    model = NAMES[name]().eval()
    state = {f"{prefix}{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 7}, tmp_path / "mine.pth")
    opened, layer, found, images = collected(pics, name, checkpoint=tmp_path / "mine.pth", image_size=S)
    assert layer == "fc" and images["train"].shape == (4 * K, 3, S, S)
    for split in ("train", "test"):
        expected = seen_by(model.fc, model, images[split])
        torch.testing.assert_close(found[split].features, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(found[split].weight, model.fc.weight) and torch.equal(found[split].bias, model.fc.bias)
        assert found[split].class_names == CLASSES and found[split].class_counts == [4] * K
        assert found[split].targets.tolist() == sorted(found[split].targets.tolist())


def test_preprocessing_is_that_of_the_library():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 280, 3), np.uint8))
    asked = Question(model="torchvision/resnet18", data="digits", random_weights=0)
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    assert torch.equal(open_model(asked, num_classes=K).preprocessing.transform()(picture), preset(picture))
    import timm

    model = timm.create_model("resnet10t.c3_in1k", num_classes=K)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    asked = Question(model="timm/resnet10t.c3_in1k", data="digits", random_weights=0)
    assert torch.equal(open_model(asked, num_classes=K).preprocessing.transform()(picture), transform(picture))


@pytest.mark.parametrize("name", NAMES)
def test_size_mean_and_std_can_be_chosen(name):
    pixels = np.random.default_rng(0).integers(0, 256, (S, S + 8, 3), np.uint8)
    asked = Question(model=name, data="digits", random_weights=0, image_size=S, mean=(0.25,) * 3, std=(0.5,) * 3)
    found = open_model(asked, num_classes=K).preprocessing.transform()(Image.fromarray(pixels))
    center = torch.from_numpy(pixels[:, 4:-4]).permute(2, 0, 1) / 255
    torch.testing.assert_close(found, (center - 0.25) / 0.5)


def test_random_weights_follow_their_seed(pics):
    first, again, other = (
        collected(pics, LIGHT, random_weights=seed, image_size=S)[2]["train"].features for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_weights_are_asked_for_out_loud(pics):
    for given, count in (({}, 0), ({"pretrained": True, "random_weights": 0}, 2)):
        with pytest.raises(ValueError, match=f"exactly one source of the model's weights.*got {count} of them"):
            collected(pics, LIGHT, **given)


def test_a_checkpoint_of_another_model_names_keys_of_each_side(tmp_path, pics):
    state = torchvision.models.shufflenet_v2_x0_5(num_classes=K).state_dict() | {"stage5.conv": torch.ones(1)}
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "larger.pth")
    with pytest.raises(ValueError, match="prefix 'module.', keys that do not fit: the file's module.stage5.conv;"):
        collected(pics, LIGHT, checkpoint=tmp_path / "larger.pth")
    torch.save({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "strange.pth")
    expected = (
        "the model's conv1.0.weight, conv1.1.weight, conv1.1.bias and .* more; the file's a, b; expected the model that"
    )
    with pytest.raises(ValueError, match=expected):
        collected(pics, LIGHT, checkpoint=tmp_path / "strange.pth")


def test_another_number_of_classes_is_refused(tmp_path, pics):
    torch.save(torchvision.models.shufflenet_v2_x0_5(num_classes=5).state_dict(), tmp_path / "five.pth")
    options = {"checkpoint": tmp_path / "five.pth", "image_size": S}
    with pytest.raises(ValueError, match="layer 'fc' has 5 outputs, but the data has 3 classes"):
        collected(pics, LIGHT, **options)
    _, _, found, _ = collected(pics, LIGHT, features_only=True, **options)
    assert found["train"].weight is None and found["train"].features.shape == (4 * K, 1024)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("timm/resnet99", "unknown timm model 'resnet99'"),
        ("torchvision/resnet99", "unknown torchvision classifier 'resnet99'"),
        ("resnet18", "unknown model 'resnet18'.*timm/<name>"),
    ],
)
def test_an_unknown_model_is_refused_by_name(pics, model, reason):
    with pytest.raises(ValueError, match=reason):
        collected(pics, model, random_weights=0)


@pytest.mark.parametrize(
    ("layer", "reason"), [("stage4", "'stage4' is a Sequential, not a linear layer"), ("head", "unknown layer 'head'")]
)
def test_a_layer_that_is_not_linear_is_refused(pics, layer, reason):
    with pytest.raises(ValueError, match=reason):
        collected(pics, LIGHT, random_weights=0, image_size=S, layer=layer)


def test_a_model_on_numbers_is_refused():
    with pytest.raises(ValueError, match="'ufm10' has numbers in place of pictures"):
        load_pictures("ufm10")


def test_a_picture_that_is_damaged_is_named(pics):
    (pics / "train" / "bee" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bee/1\.png cannot be decoded"):
        collected(pics, LIGHT, random_weights=0, image_size=S)


# --- models in files ---


def save_program(model: nn.Module, file: Path, *, batch: int | None = None, decompose: bool = False) -> Path:
    shapes = None if batch else ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (torch.randn(batch or 2, 3, S, S),), dynamic_shapes=shapes)
    torch.export.save(program.run_decompositions() if decompose else program, file)
    return file


FORMS = {
    "exported": lambda model, file: save_program(model, file.with_suffix(".pt2")),
    "decomposed": lambda model, file: save_program(model, file.with_suffix(".pt2"), decompose=True),
    "fixed batch": lambda model, file: save_program(model, file.with_suffix(".pt2"), batch=5),
    "scripted": lambda model, file: torch.jit.script(model).save(file) or file,
    "traced": lambda model, file: torch.jit.trace(model, torch.randn(2, 3, S, S)).save(file) or file,
}


@LEGACY
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_programs_give_the_features_of_their_model(tmp_path, pics, small, form, bias):
    if not bias:
        small.fc = nn.Linear(6, K, bias=False)
    file = FORMS[form](small, tmp_path / "model.pt")
    for layer in (None, "fc"):
        _, name, found, images = collected(pics, file, image_size=S, layer=layer)
        assert name == "fc"
        for split, rows in found.items():
            expected = seen_by(small.fc, small, images[split])
            torch.testing.assert_close(rows.features, expected, rtol=1e-4, atol=1e-5)
            assert torch.equal(rows.weight, small.fc.weight)
            assert torch.equal(rows.bias, small.fc.bias) if bias else rows.bias is None


def test_a_program_of_several_outputs_is_read(tmp_path, pics, small):
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            features = self.inner.body(images).mean((2, 3))
            return {"features": features, "logits": self.inner.fc(features)}

    _, name, found, images = collected(pics, save_program(Both().eval(), tmp_path / "both.pt2"))
    assert name == "inner.fc"
    torch.testing.assert_close(found["test"].features, seen_by(small.fc, small, images["test"]))


@LEGACY
@pytest.mark.parametrize("form", ["exported", "scripted"])
def test_a_program_without_a_last_linear_layer_needs_its_name(tmp_path, pics, small, form):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner(images) / 5.0

    file = FORMS[form](Scaled().eval(), tmp_path / "scaled.pt")
    with pytest.raises(ValueError, match=r"scaled.*not the output of a linear layer.*--layer.*inner\.fc"):
        collected(pics, file)
    with pytest.raises(ValueError, match="no linear layer is named 'head'"):
        collected(pics, file, layer="head")
    _, _, found, images = collected(pics, file, layer="inner.fc", image_size=S)
    torch.testing.assert_close(found["test"].features, seen_by(small.fc, small, images["test"]))


def test_a_program_in_training_mode_is_refused(tmp_path, pics, small):
    with pytest.raises(ValueError, match="exported in training mode; export it after model.eval()"):
        collected(pics, save_program(small.train(), tmp_path / "training.pt2"))


@pytest.mark.slow
def test_a_program_takes_bytes_as_they_are(tmp_path, pics, small):
    class Bytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return self.inner(pictures.permute(0, 3, 1, 2) / 255)

    dims = ({d: torch.export.Dim.DYNAMIC for d in range(3)},)
    example = (torch.zeros(2, 41, 43, 3, dtype=torch.uint8),)
    torch.export.save(torch.export.export(Bytes().eval(), example, dynamic_shapes=dims), tmp_path / "bytes.pt2")
    asked = Question(model=str(tmp_path / "bytes.pt2"), data=f"imagefolder:{pics}")
    splits = load_pictures(asked.data)
    _, found = collect_features(open_model(asked, num_classes=K), splits, batch_size=4)
    for row, file in zip(found["train"].features, splits["train"].images, strict=True):
        image = torchvision.transforms.functional.to_tensor(Image.open(file).convert("RGB"))
        torch.testing.assert_close(row[None], seen_by(small.fc, small, image[None]))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "fixed_etf", "nearest_etf"])
def test_the_exported_model_of_a_run_gives_its_features(tmp_path, head):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 12, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone.num_features = 12
    classifier = Classifier(backbone, create_head(head, 12, 10)).eval()
    model = PictureClassifier(classifier, image_mode="L", image_size=16, pixel_mean=[0.3], pixel_std=[0.3]).eval()
    dims = ({d: torch.export.Dim.DYNAMIC for d in range(4)},)
    program = torch.export.export(model, (torch.zeros(2, 9, 11, 3, dtype=torch.uint8),), dynamic_shapes=dims)
    torch.export.save(program, tmp_path / "model.pt2")
    splits = {split: source.take(np.arange(9)) for split, source in load_pictures("digits").items()}
    opened = open_model(Question(model=str(tmp_path / "model.pt2"), data="digits"), num_classes=10)
    name, found = collect_features(opened, splits, batch_size=4)
    with torch.no_grad():
        expected = classifier(model.prepare(torch.from_numpy(np.array(splits["test"].images))[..., None]))
    assert name == "classifier.head"
    torch.testing.assert_close(found["test"].features, expected.features)
    torch.testing.assert_close(found["test"].features @ found["test"].weight.T, expected.logits)


def test_a_program_of_one_size_refuses_another(tmp_path, pics, small):
    file = save_program(small, tmp_path / "model.pt2")
    with pytest.raises(ValueError, match="takes pictures of 32 pixels, got --image-size 64"):
        collected(pics, file, image_size=64)
    with pytest.raises(ValueError, match="has its own weights; leave out --checkpoint"):
        collected(pics, file, random_weights=0)


def test_a_file_of_weights_needs_its_models_name(tmp_path, pics, small):
    torch.save(small.state_dict(), tmp_path / "mine.pth")
    with pytest.raises(ValueError, match="holds weights and no model; name their model: --model timm/<name>"):
        collected(pics, tmp_path / "mine.pth")


# --- nothing foreign runs ---


class Evil:
    def __reduce__(self):
        return print, ("foreign code ran",)


def changed(file: Path, record: str, change) -> Path:
    """A copy of an archive in which the records that end in `record` are changed."""
    other = file.with_name(f"changed{file.suffix}")
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(other, "w", zipfile.ZIP_STORED) as copy:
        for info in archive.infolist():
            content = archive.read(info)
            copy.writestr(info.filename, change(content) if info.filename.endswith(record) else content)
    return other


def in_program(change):
    def apply(content: bytes) -> bytes:
        program = json.loads(content)
        change(program)
        return json.dumps(program).encode()

    return apply


def graph_of(program: dict) -> dict:
    return program["graph_module"]["graph"]


def to_pickle(content: bytes) -> bytes:
    config = json.loads(content)
    next(iter(config["config"].values()))["use_pickle"] = True
    return json.dumps(config).encode()


EXPRESSION = {"expr_str": "__import__('os').system('true')", "hint": None}
ATTACKS = {
    "a pickle for": ("weights_config.json", to_pickle),
    "more than tensors in": ("sample_inputs/model.pt", lambda content: pickle.dumps(Evil())),
    "as target": (
        "models/model.json",
        in_program(lambda p: graph_of(p)["nodes"][0].update(target="torch.serialization.load")),
    ),
    "from_file.* as target": (
        "models/model.json",
        in_program(lambda p: graph_of(p)["nodes"][0].update(target="torch.ops.aten.from_file.default")),
    ),
    "as expr_str": ("models/model.json", in_program(lambda p: graph_of(p).update(sym_int_values={"s0": EXPRESSION}))),
    "as name": (
        "models/model.json",
        in_program(lambda p: graph_of(p)["inputs"][0]["as_tensor"].update(name="x); print(1)")),
    ),
}


@pytest.mark.parametrize("fault", ATTACKS)
def test_a_program_that_could_run_code_is_not_opened(tmp_path, small, capfd, fault):
    file = changed(save_program(small, tmp_path / "model.pt2"), *ATTACKS[fault])
    assert kind_of(file) == "exported"
    with pytest.raises(ValueError, match=f"changed.pt2 is not opened.* it has .*{fault}"):
        load_exported(file)
    assert "foreign" not in capfd.readouterr().out


def test_a_copied_program_is_opened(tmp_path, small):
    file = changed(save_program(small, tmp_path / "model.pt2"), "nothing", None)
    assert torch.equal(load_exported(file).state_dict["fc.weight"], small.fc.weight)


@LEGACY
def test_torchscript_that_touches_files_is_not_opened(tmp_path):
    class Writes(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            torch.save(images, "foreign.pt")
            return images

    torch.jit.script(Writes()).save(tmp_path / "writes.pt")
    with pytest.raises(ValueError, match="could run foreign code: it has the operator 'save' in code/"):
        load_scripted(tmp_path / "writes.pt")


@LEGACY
def test_torchscript_unpickles_no_python(tmp_path, small, capfd):
    torch.jit.script(small).save(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_scripted(changed(tmp_path / "model.pt", "/data.pkl", lambda content: pickle.dumps(Evil(), protocol=2)))
    assert "foreign" not in capfd.readouterr().out


@pytest.mark.parametrize("content", [b"text", b"PK\x05\x06" + bytes(18)])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "other.pt2").write_bytes(content)
    with pytest.raises(ValueError, match="other.pt2"):
        kind_of(tmp_path / "other.pt2")


# --- the command ---


def run(monkeypatch, capsys, *options: object) -> tuple[int, str, str]:
    from ncflow import cli

    monkeypatch.setattr("sys.argv", ["ncflow", "measure", *map(str, options)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capsys.readouterr()
    return int(end.value.code), captured.out, captured.err


def test_the_command_measures_what_its_saved_features_hold(tmp_path, pics, small, monkeypatch, capsys):
    file = save_program(small, tmp_path / "mine.pt2")
    options = ("--model", file, "--data", f"imagefolder:{pics}", "--no-track", "--save-features", tmp_path / "f.npz")
    code, printed, _ = run(monkeypatch, capsys, *options, "--out", tmp_path / "mine")
    assert code == 0 and "nc1/pinv" in printed
    found = json.loads((tmp_path / "mine" / "metrics.json").read_text())
    assert found == stages.measure([tmp_path / "f.npz"], None, tmp_path / "again")
    splits = read_features(tmp_path / "f.npz")
    train = splits["train"]
    assert (
        found["train"]
        == measure(train.features, train.targets, weight=small.fc.weight, bias=small.fc.bias).metrics["train"]
    )


@pytest.mark.slow
def test_mlflow_knows_which_model_was_measured(tmp_path, pics, small, monkeypatch):
    from ncflow import tracking
    from ncflow.files import checksum

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    file = save_program(small, tmp_path / "mine.pt2")
    asked = Question(model=str(file), data=f"imagefolder:{pics}")
    stages.measure_model(asked, tmp_path / asked.name, tmp_path)
    stages.track_measured(tmp_path / asked.name, tmp_path)
    with tracking.store(tmp_path) as mlflow:
        (found,) = mlflow.search_runs(filter_string="tags.measured = 'True'", output_format="list")
    params = found.data.params
    assert (params["cfg.model.layer"], params["cfg.dataset.name"]) == ("fc", "imagefolder")
    assert params["cfg.model.checkpoint_sha256"] == checksum(file) and found.info.run_name == "mine"


@pytest.mark.slow
def test_a_model_in_mlflow_is_measured_and_a_pickle_is_refused(tmp_path, pics, small, monkeypatch):
    from ncflow import tracking

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    example = np.zeros((2, 3, S, S), np.float32)
    with tracking.store(tmp_path) as mlflow, mlflow.start_run():
        log = mlflow.pytorch.log_model
        known = {"input_example": example, "serialization_format": "pt2", "pip_requirements": ["torch"]}
        good = log(
            small,
            name="good",
            signature=mlflow.models.infer_signature(example, small(torch.tensor(example)).detach().numpy()),
            **known,
        ).model_uri
        bad = log(small, name="bad", serialization_format="pickle", pip_requirements=["torch"]).model_uri
    asked = Question(model=good, data=f"imagefolder:{pics}")
    measured = stages.measure_model(asked, tmp_path / "good", tmp_path, save=tmp_path / "good.npz")
    assert measured["test"]["acc/overall"] >= 0
    assert torch.equal(read_features(tmp_path / "good.npz")["train"].weight, small.fc.weight)
    with pytest.raises(ValueError, match="holds no exported program: pickles could run foreign code"):
        stages.measure_model(Question(model=bad, data=f"imagefolder:{pics}"), tmp_path / "bad", tmp_path)
    with pytest.raises(ValueError, match="no model models:/nothing/1"):
        stages.measure_model(Question(model="models:/nothing/1", data="digits"), tmp_path / "bad", tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "expected files of features, or --model and --data"),
        (["f.npz", "--model", "timm/x"], "expected files of features, or --model and --data"),
        (["f.npz", "--layer", "fc"], "files of features need no model; leave out --layer"),
        (["f.npz", "--random-weights", "0"], "leave out --random-weights"),
        (["f.npz", "--save-features", "g.npz"], "the files hold them already"),
        (["--model", "timm/x"], "--model needs --data"),
        (["--model", "timm/x", "--data", "nowhere"], "unknown data set 'nowhere'"),
        (["--model", "timm/x", "--data", "digits", "--name", "../x"], "must be a plain folder name"),
        (["f.npz", "--name", "a/b"], "must be a plain folder name"),
        (["--model", "timm/x", "--data", "digits", "--mean", "0.5,0.5"], "--mean expects one number or three"),
        (["--model", "timm/x", "--data", "digits", "--std", "0"], "--std expects one number or three"),
        (["--model", "timm/x", "--data", "digits", "--device", "tpu"], "unknown device 'tpu'"),
        (["--model", "timm/x", "--data", "digits", "--save-features", "f.pt"], "--save-features writes .npz"),
    ],
)
def test_options_that_do_not_fit_are_refused(monkeypatch, capsys, options, reason):
    code, _, error = run(monkeypatch, capsys, *options)
    assert code == 65 and reason in error


@pytest.mark.parametrize(
    ("model", "checkpoint", "name"),
    [
        ("timm/resnet18.a1_in1k", None, "resnet18.a1_in1k"),
        ("timm/resnet18", Path("runs/my best.pth"), "my_best"),
        ("export/mine.pt2", None, "mine"),
        ("models:/mine/3", None, "3"),
    ],
)
def test_results_have_a_plain_name(model, checkpoint, name):
    assert Question(model=model, data="digits", checkpoint=checkpoint).name == name
