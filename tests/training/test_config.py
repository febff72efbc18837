"""Settings are checked when they are made; presets hold the published numbers."""

import pytest

from byol.commands.train import changed, resumed
from byol.training.config import TrainConfig
from byol.training.data.view_config import ViewConfig
from byol.training.recipes.presets import PRESETS


def options(**given):
    return {"preset": None, "settings": (), **given}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_valid_named_and_survives_json(name):
    config = PRESETS[name]()
    assert config.preset == name
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_paper_presets_hold_the_papers_numbers():
    paper = {epochs: PRESETS[f"paper-{epochs}"]() for epochs in (100, 300, 1000)}
    assert {e: c.lr for e, c in paper.items()} == {100: 0.45, 300: 0.3, 1000: 0.2}
    assert {e: c.tau for e, c in paper.items()} == {100: 0.99, 300: 0.99, 1000: 0.996}
    assert {e: c.weight_decay for e, c in paper.items()} == {100: 1e-6, 300: 1e-6, 1000: 1.5e-6}
    c = paper[1000]
    assert (c.batch_size, c.epochs, c.optimizer, c.lars_eta, c.momentum) == (4096, 1000, "lars", 1e-3, 0.9)
    assert c.peak_lr == pytest.approx(3.2)
    assert (c.view1.blur, c.view2.blur, c.view1.solarize, c.view2.solarize) == (1.0, 0.1, 0.0, 0.2)
    assert c.warmup_epochs == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "resnet19"}, "arch is 'resnet19'; expected resnet18, resnet34"),
        ({"batch_size": 1}, "batch_size is 1; expected 2 or more"),
        ({"accumulate": 3}, "accumulate is 3; expected a divisor of batch_size 256"),
        ({"accumulate": 256}, "leaves 2 or more images"),
        ({"tau": 1.5}, r"tau is 1.5; expected 0 to 1"),
        ({"lr": 0.0}, "lr is 0"),
        ({"lr": -1.0}, "lr is -1"),
        ({"image_size": 4}, "image_size is 4; expected 8 or more"),
        ({"image_size": 32, "start_size": 33}, "start_size is 33; expected at most image_size, 32"),
        ({"optimizer": "adamw", "lr": 0.3}, "looks like a rate for LARS"),
        ({"optimizer": "sgd", "lr": 3.0}, "looks like a rate for LARS"),
        ({"std": (0.2, 0.0, 0.2)}, "std is"),
        ({"std": (0.2, 0.2)}, "std is .*; expected three finite numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean is .*; expected three finite numbers"),
        ({"lars_eta": -1.0}, "lars_eta is -1.0; expected above 0"),
        ({"seed": 10**23}, "seed is 1000.*; expected a whole number of at most 64 bits"),
        ({"warmup_epochs": 10**400}, "warmup_epochs is .*; expected a finite number"),
        ({"knn_temperature": 0.0}, "knn_temperature is 0.0; expected above 0"),
    ],
)
def test_illegal_values_are_refused_with_the_legal_ones(change, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change)


@pytest.mark.parametrize(
    "change",
    [{"flip": 1.2}, {"hue": 0.6}, {"crop_area": (0.0, 1.0)}, {"crop_aspect": (2.0, 1.0)}, {"blur_sigma": (0.0, 1.0)}],
)
def test_illegal_views_are_refused(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} is .*; expected"):
        ViewConfig(**change)


def test_an_unknown_setting_gets_a_suggestion():
    with pytest.raises(ValueError, match="unknown setting 'batchsize'; did you mean 'batch_size'"):
        TrainConfig().replace(batchsize=3)


def test_a_stored_configuration_of_an_older_version_takes_defaults_and_of_a_newer_one_is_refused():
    config = PRESETS["cifar10"]()
    values = config.to_dict()
    del values["start_size"], values["start_share"]
    assert TrainConfig.from_dict(values) == config
    values["colour"] = 3
    with pytest.raises(ValueError, match="does not know the settings colour"):
        TrainConfig.from_dict(values)


def test_stem_auto_goes_by_size():
    assert TrainConfig(image_size=64).resolved_stem == "cifar"
    assert TrainConfig(image_size=65).resolved_stem == "imagenet"
    assert TrainConfig(image_size=64, stem="imagenet").resolved_stem == "imagenet"


def test_a_model_of_timms_keeps_its_first_layers():
    for stem in ("auto", "imagenet"):
        settings = TrainConfig(arch="timm:resnet10t", stem=stem, image_size=32)
        assert (settings.timm_name, settings.resolved_stem) == ("resnet10t", "imagenet")
    assert TrainConfig().timm_name == ""
    with pytest.raises(ValueError, match=r"stem cifar is for torchvision's ResNets; timm:resnet10t .* --stem auto"):
        TrainConfig(arch="timm:resnet10t", stem="cifar")
    with pytest.raises(ValueError, match=r"arch is 'timm:'; expected .*timm:NAME"):
        TrainConfig(arch="timm:")


def test_options_override_the_preset_and_set_reaches_everything():
    config = changed(
        PRESETS["cifar10"](),
        options(epochs=5, lr=None, settings=("knn_every=3", "view1.crop_area=[0.2,1]", "tau_cosine=false")),
    )
    assert (config.epochs, config.lr, config.knn_every, config.tau_cosine) == (5, 1.0, 3, False)
    assert config.view1 == PRESETS["cifar10"]().view1.__class__(**{**vars(config.view1), "crop_area": (0.2, 1)})
    assert config.view2 == PRESETS["cifar10"]().view2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("knn_every", "no `=`"),
        ("nothing=3", "unknown setting 'nothing'"),
        ("view1.colour=3", "no such setting"),
        ("view3.flip=0", "no such setting"),
        ("knn_every=often", "knn_every is 'often'; expected a whole number"),
        ("knn_every=true", "knn_every is True; expected a whole number"),
        ("warmup_epochs=Infinity", "warmup_epochs is inf; expected a finite number"),
        ("lr=NaN", "lr is nan; expected a finite number"),
        ("std=0.2", "std is 0.2; expected three finite numbers"),
        ("mean=0.5", "mean is 0.5; expected three finite numbers"),
        ("lars_clip=1", "lars_clip is 1; expected true or false"),
        ("arch=3", "arch is 3; expected text"),
        ("preset=blabla", "use --preset"),
        ("view1=3", r"needs a field of the view, such as --set view1\.flip=0\.5"),
        ("view1.flip=2", r"view1\.flip is 2; expected a probability"),
        ("view1.flip=abc", r"view1\.flip is 'abc'; expected a finite number"),
        ("view1.hue=null", r"view1\.hue is None; expected a finite number"),
        ("view1.additive_brightness=no", r"view1\.additive_brightness is 'no'; expected true or false"),
        ("view2.crop_area=0.5", r"view2\.crop_area is 0\.5; expected two finite numbers"),
        ("view2.crop_area=[0.2]", r"view2\.crop_area is \(0\.2,\); expected two finite numbers"),
        ("view2.blur_sigma=[a]", r"view2\.blur_sigma is '\[a\]'; expected two finite numbers"),
        ("view2.blur_sigma=[1,true]", r"view2\.blur_sigma is \(1, True\); expected two finite numbers"),
        ("view1.__class__=3", "no such setting"),
    ],
)
def test_set_refuses_what_is_not_a_setting(setting, message):
    with pytest.raises(ValueError, match=message):
        changed(TrainConfig(), options(settings=(setting,)))


def test_a_resumed_run_keeps_its_settings():
    stored = PRESETS["cifar10"]()
    assert resumed(stored, options()) == stored
    assert resumed(stored, options(preset="cifar10", epochs=stored.epochs)) == stored
    decided = stored.replace(canvas_size=37)
    assert resumed(decided, options(settings=("canvas_size=0",))) == decided
    with pytest.raises(ValueError, match="these differ: batch_size, preset"):
        resumed(stored, options(preset="tutorial", batch_size=64))


def test_what_a_plan_decided_is_no_contradiction():
    """The command that began the run also goes on with it."""
    stored, same = PRESETS["cifar10"]().replace(max_steps=900, knn_every=7, warmup_epochs=0.3), "knn_every=5"
    assert resumed(stored, options(settings=(same, "warmup_epochs=2")), planned=True) == stored
    for given, names in ((options(settings=(same,)), "knn_every"), (options(max_steps=800), "max_steps")):
        with pytest.raises(ValueError, match=f"these differ: {names}; "):
            resumed(stored, given, planned=names == "max_steps")
    with pytest.raises(ValueError, match="warmup_epochs is -1; expected 0 or more"):
        resumed(stored, options(settings=("warmup_epochs=-1",)), planned=True)
