"""Real runs of a few steps: what they write, that they continue exactly, that bad situations end in one line."""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from byol.commands.train import train
from byol.encoders.build import build_encoder
from byol.images.open import open_source
from byol.training import saving
from byol.training import trainer as trainer_module
from byol.training.checkpoint import read_checkpoint, save_checkpoint
from byol.training.data.batches import Order, seeded
from byol.training.data.decoded import load_canvases
from byol.training.data.kinds import kinds_of
from byol.training.data.view_config import ViewConfig
from byol.training.loop import fit
from byol.training.model import BYOL
from byol.training.parallel.processes import World
from byol.training.run_folder import RunFolder
from byol.training.setup import Plan
from byol.training.trainer import Trainer
from byol.training.watch.progress import Reporter
from tests.support.forks import Fork
from tests.support.networks import randomise_norms
from tests.support.runs import run_training
from tests.support.small import RESNET18, config, folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("data") / "train", per_class=12)


def weights(run):
    return {name: value.numpy().tobytes() for name, value in load_file(run / "last.safetensors").items()}


def trainer(images, **changes):
    settings = config(**changes)
    return Trainer(settings, load_canvases(open_source(images), settings.canvas_size))


def test_a_run_writes_what_the_design_says(images, tmp_path):
    run_training(config(keep_every=1, checkpoint_every=4), images, tmp_path / "run", images)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == [
        "config.json",
        "last.safetensors",
        "metrics.jsonl",
        "step-00000000.safetensors",
        "step-00000003.safetensors",
        "step-00000006.safetensors",
        "views.png",
    ]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    untrained, *records = records
    assert untrained.keys() == {"step", "epoch", "knn_top1", "knn_bank", "knn_queries", "knn_classes"}
    assert (untrained["step"], untrained["epoch"]) == (0, 0)
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    speeds = {"images_per_second", "wall_images_per_second"}
    keys = {"step", "epoch", "loss", "lr", "tau", *speeds, "std_ratio", "rankme", "cosine"}
    assert all(keys <= set(r) for r in records)
    assert ["knn_top1" in r for r in records] == [False, False, True, False, False, True]
    assert records[0]["lr"] == 0
    assert records[0]["tau"] == pytest.approx(0.99)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["config"]["batch_size"] == 8
    assert stored["data"]["images"] == 24
    assert stored["versions"]["torch"] == torch.__version__
    with Image.open(tmp_path / "run" / "views.png") as grid:
        assert grid.size == (1692, 364)  # 8 images, four beside each other
    prefixes = {name.rpartition(".")[0].split(".")[0] for name in load_file(tmp_path / "run" / "last.safetensors")}
    assert prefixes == {"online", "predictor", "target", "optimizer"}
    assert not any(
        "_orig_mod" in name or "module." in name for name in load_file(tmp_path / "run" / "last.safetensors")
    )


def test_training_learns_and_the_untrained_encoder_is_kept(images, tmp_path):
    run_training(config(keep_every=9, epochs=12), images, tmp_path / "run", None)
    records = RunFolder(tmp_path / "run").metrics()
    assert records[-1]["loss"] < 0.7 * records[0]["loss"]
    first = read_checkpoint(tmp_path / "run" / "step-00000000.safetensors").encoder()
    last = read_checkpoint(tmp_path / "run" / "last.safetensors").encoder()
    assert not torch.equal(first["conv1.0.weight"], last["conv1.0.weight"])


def test_measured_features_are_the_online_encoders(images):
    t = trainer(images)
    pixels, _ = t.feed.batch(0)
    before = t.features(pixels)
    with torch.no_grad():
        for p in t.model.target.parameters():
            p.add_(1)
    assert torch.equal(t.features(pixels), before)  # not the momentum encoder's
    assert all(m.training for m in t.model.modules())  # and training goes on as before
    with torch.no_grad():
        t.model.online.encoder.get_parameter("conv1.0.weight").mul_(2)
    assert not torch.allclose(t.features(pixels), before)


def test_a_checkpoint_that_is_kept_survives_a_kill_between_two_writes(images, tmp_path, monkeypatch):
    settings = config(keep_every=1)
    run_training(settings, images, tmp_path / "whole")
    written = []

    def killed_in_between(path, checkpoint):
        save_checkpoint(path, checkpoint)
        written.append(path.name)
        if len(written) == 2:  # that of step 0, and one of the two of step 3
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_checkpoint", killed_in_between)
        with pytest.raises(KeyboardInterrupt):
            run_training(settings, images, tmp_path / "killed")
    run_training(settings, images, tmp_path / "killed", resume=True)
    kept = [sorted(path.name for path in (tmp_path / run).glob("step-*")) for run in ("killed", "whole")]
    assert kept[0] == kept[1] == [f"step-{step:08d}.safetensors" for step in (0, 3, 6)]
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_what_a_process_killed_at_its_first_write_leaves_is_no_obstacle(images, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.tmp").write_text('{"conf')
    run_training(config(epochs=1), images, tmp_path / "run", None, resume=True)
    assert read_checkpoint(tmp_path / "run" / "last.safetensors").step == 3


def test_epochs_visit_every_image_once_in_a_new_order():
    order = Order(seed=0, images=24, batch_size=8)
    epochs = [torch.cat([order.rows(3 * epoch + i) for i in range(3)]) for epoch in range(2)]
    assert all(sorted(rows.tolist()) == list(range(24)) for rows in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_accumulation_moves_the_target_once_per_optimizer_step(images):
    """Tau, rate and the number of target updates must not depend on how a batch is split."""
    seen = {}
    for parts in (1, 4):
        t = trainer(images, accumulate=parts)
        calls: list[float] = []
        t.model.update_target = calls.append
        for step in range(4):
            t.step(step)
        seen[parts] = calls
    assert seen[1] == seen[4]
    assert len(seen[1]) == 4


def test_what_is_observed_is_the_whole_batch(images):
    for parts in (1, 4):
        t = trainer(images, accumulate=parts)
        _, seen = t.step(0)
        assert [len(tensor) for tensor in seen] == [8] * 5


def test_accumulated_gradients_are_the_mean_of_the_micro_batches(images):
    t = trainer(images, accumulate=4)
    reference = trainer(images, accumulate=4)
    pixels, aspect = reference.feed.batch(0)
    generator = seeded("cpu", 0, "views", 0)
    micro = zip(pixels.chunk(4), aspect.chunk(4), strict=True)
    losses = [reference.model(*reference.views(batch, generator, reference.config.image_size))[0] for batch in micro]
    (sum(losses) / 4).backward()
    t.step(0)  # rate 0: the weights stay, the gradients remain
    for (name, p), q in zip(t.parameters.items(), reference.parameters.values(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_views_start_small_for_a_share_of_the_steps(images):
    t = trainer(images, start_size=8, start_share=0.4)  # of 6 steps: below 2.4
    assert [t.view_size(step) for step in range(6)] == [8, 8, 8, 16, 16, 16]
    assert [trainer(images).view_size(step) for step in (0, 5)] == [16, 16]
    seen = []
    t.model.online.encoder.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[-1]))
    for step in range(6):
        t.step(step)
    assert seen == [8] * 6 + [16] * 6
    assert [(word, max(shown[0].size)) for word, shown in t.first_views()] == [
        ("image", 16),
        ("view 1", 8),
        ("view 2", 8),
    ]


def test_every_kind_of_view_has_its_size_and_its_loss(images, tmp_path):
    settings = config(local_views=2, local_size=10, cutout_views=1, accumulate=2)
    t = trainer(images, local_views=2, local_size=10, cutout_views=1)
    seen = []
    t.model.online.encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(tuple(inputs[0].shape)))
    losses, _ = t.step(0)
    assert seen == [(8, 3, 16, 16), (8, 3, 16, 16), (16, 3, 10, 10), (8, 3, 16, 16)]
    assert losses.shape == (3,)
    words = [word for word, _ in t.first_views()]
    assert words == ["image", "view 1", "view 2", "local 1", "local 2", "cutout 1"]
    run_training(settings, images, tmp_path / "run")
    records = RunFolder(tmp_path / "run").metrics()
    for record in records:
        parts = [record[f"loss_{name}"] for name in ("global", "local", "cutout")]
        assert record["loss"] == pytest.approx(sum(parts), abs=3e-6)
        assert all(0 < part < 8 for part in parts)
    start, end = BYOL(settings).state_dict(), read_checkpoint(tmp_path / "run" / "last.safetensors").model()
    moved = {name.rpartition(".")[0] for name, value in start.items() if not torch.equal(value, end[name])}
    assert {f"predictors.{kind}.3" for kind in ("local", "cutout")} <= moved


def test_a_covered_view_is_the_view_with_a_hole(images):
    t = trainer(images, cutout_views=1)
    (kind,) = kinds_of(t.config)
    batch, generators = t.feed.batch(0), [seeded("cpu", 0) for _ in range(2)]
    (covered,) = t.further_views(kind, batch, generators[0], 16)
    whole = replace(kind, config=replace(kind.config, cutout=(0.0, 0.0)))
    (view,) = t.further_views(whole, batch, generators[1], 16)
    hidden = covered == 0
    assert torch.equal(covered[~hidden], view[~hidden])
    assert 0.1 < hidden.float().mean() < 0.5


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_a_step_is_clipped_as_a_whole(images, clip):
    t = trainer(images, clip_grad=clip)
    t.step(0)
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in t.parameters.values()]))
    assert (float(norm) <= 1.001e-3) is bool(clip)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "lars"},
        {"optimizer": "adamw", "lr": 1e-3, "beta2": 0.98, "clip_grad": 0.5, "drop_path": 0.1},
        {"start_size": 8, "start_share": 0.6},
        {"local_views": 2, "cutout_views": 1, "start_size": 8, "accumulate": 2},
    ],
    ids=["lars", "adamw", "two-sizes", "kinds-of-view"],
)
def test_resume_continues_exactly(images, tmp_path, changes):
    settings = config(epochs=2, **changes)
    run_training(settings, images, tmp_path / "straight", None)
    t = trainer(images, **changes)
    run = RunFolder(tmp_path / "broken")
    facts = read_checkpoint(tmp_path / "straight" / "last.safetensors").data
    run.create(settings, {"data": facts})
    for step in range(2):
        t.step(step)
        run.log({"step": step + 1, "epoch": 0})
    save_checkpoint(run.last, t.state(2, facts))
    run.log({"step": 3, "epoch": 0})  # a step after the checkpoint, and the half-written line of a killed process
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    run_training(settings, images, tmp_path / "broken", None, resume=True)
    assert weights(tmp_path / "broken") == weights(tmp_path / "straight")
    assert [r["step"] for r in run.metrics()] == [1, 2, 3, 4, 5, 6]


def test_each_process_draws_its_own_stochastic_depth(images):
    """Else all would leave out the same blocks for the images at the same places."""
    t = trainer(images, drop_path=0.5)
    randomise_norms(t.model)  # those at the end of a block begin at zero, and with them what a block adds
    views, seeds = seeded("cpu", 0, "views", 3), {}
    for rank in range(3):
        t.world = World(rank, 3)
        seeds[rank] = t.own_seed(3, views)
    assert seeds[0] == views.initial_seed()  # as without other processes
    assert len(set(seeds.values())) == 3
    given, features = torch.randn(8, 3, 16, 16), []
    for seed in (*seeds.values(), seeds[0]):
        torch.manual_seed(seed)
        features.append(t.model.online.encoder(given))
    assert torch.equal(features[0], features[3])
    assert not torch.equal(features[0], features[1])


def small_train(images, out, *more):
    """The words of a training of the smallest network that is checkpointed after every step."""
    words = ["train", str(images), "--out", str(out), "--preset", "demo", "--batch-size", "4", "--device", "cpu"]
    words.append("--no-export-check")  # which takes seconds
    settings = ("checkpoint_every=1", "log_every=1", "projector_hidden=32", "predictor_hidden=32")
    chosen = ["--arch", "timm:test_resnet", *(word for setting in settings for word in ("--set", setting))]
    return [*words, *chosen, *more]


def test_a_killed_run_resumes_to_the_same_bytes(images, tmp_path):
    def run(out, *more):
        return Fork([*small_train(images, tmp_path / out, "--epochs", "15"), *more], tmp_path / "said")

    straight = run("straight")
    assert straight.wait() == 0, straight.said
    chance = random.Random(0)
    last = RunFolder(tmp_path / "killed").last
    for _ in range(3):
        process = run("killed", "--resume")
        before = last.stat().st_mtime_ns if last.exists() else 0
        process.wait_for(lambda before=before: last.exists() and last.stat().st_mtime_ns != before)
        time.sleep(chance.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # and did not end before
    process = run("killed", "--resume")
    assert process.wait() == 0, process.said
    assert weights(tmp_path / "killed") == weights(tmp_path / "straight")
    assert not list((tmp_path / "killed").glob(".*tmp"))


def test_a_run_has_one_process_and_sigterm_saves_the_step_and_says_how_to_go_on(images, tmp_path):
    out = tmp_path / "run"
    words = small_train(images, out, "--epochs", "1000")
    process = Fork(words, tmp_path / "first")
    process.wait_for((out / "metrics.jsonl").exists)
    second = Fork([*words, "--resume"], tmp_path / "second")
    assert (second.wait(), "another process is writing" in second.said) == (1, True), second.said
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 1
    assert "stopped by SIGTERM after step" in process.said
    assert "--resume" in process.said
    assert "Traceback" not in process.said
    assert read_checkpoint(out / "last.safetensors").step >= 1


def test_without_predictor_training_collapses_and_the_monitor_says_so(images, tmp_path, monkeypatch):
    warnings: dict[int, list[str]] = {}
    for hidden in (0, 32):
        t = trainer(images, predictor_hidden=hidden, max_steps=60, lr=1.0, tau=0.9, warmup_epochs=1.0)
        run = RunFolder(tmp_path / str(hidden))
        run.create(t.config, {})
        warnings[hidden] = []
        reporter = Reporter(t.plan.total, 0, shown=False)
        monkeypatch.setattr(reporter, "warn", warnings[hidden].append)
        fit(t, run, {}, reporter=reporter)
    assert any("training is collapsing" in text for text in warnings[0])
    assert warnings[32] == []


def test_a_diverged_run_stops_with_a_remedy_and_keeps_its_last_checkpoint(images, tmp_path):
    t = trainer(images, epochs=4)
    run = RunFolder(tmp_path / "run")
    run.create(t.config, {})
    fit(trainer(images, epochs=1), run, {})
    good = weights(tmp_path / "run")
    with torch.no_grad():
        t.model.online.encoder.conv1[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="the loss is nan at step 1; lower --lr"):
        fit(t, run, {})
    assert weights(tmp_path / "run") == good


def test_plan_needs_one_whole_batch():
    assert Plan.of(config(batch_size=8, epochs=5, warmup_epochs=1.0), 26) == Plan(3, 15, 3)
    assert Plan.of(config(batch_size=8, max_steps=4, warmup_epochs=9.0), 26) == Plan(3, 4, 2)
    with pytest.raises(ValueError, match="batch_size 8 is more than the 7 images; use --batch-size 7"):
        Plan.of(config(batch_size=8), 7)
    with pytest.raises(ValueError, match="1 readable image is too few; batch-norm needs two"):
        Plan.of(config(batch_size=8), 1)


def invoke(*arguments):
    return CliRunner().invoke(train, [str(a) for a in arguments])


def test_commands_that_cannot_work_say_why(images, tmp_path):
    out = tmp_path / "run"
    result = invoke(tmp_path / "nowhere", "--out", out)
    assert "nowhere does not exist" in str(result.exception)
    result = invoke(images, "--out", out, "--optimizer", "adamw", "--lr", "0.3")
    assert result.exit_code == 2
    assert "looks like a rate for LARS" in result.output
    for words in (("--set", "view1.flip=abc"), ("--set", "mean=[0.5]"), ("--seed", "9" * 23)):
        result = invoke(images, "--out", out, *words)
        assert (result.exit_code, "; expected " in result.output) == (2, True)
        assert not out.exists()
    (out / "mine").mkdir(parents=True)
    result = invoke(images, "--out", out, "--preset", "demo", "--batch-size", "8")
    assert "is not empty" in str(result.exception)
    assert not (out / "config.json").exists()


def test_cuda_is_refused_where_there_is_none(images, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match=r"device is cuda, but torch .* finds no usable NVIDIA GPU"):
        run_training(config(device="cuda"), images, tmp_path / "run", None)


def test_bad_images_are_left_out_and_listed(tmp_path, capfd):
    data = folder(tmp_path / "train", per_class=6)
    (data / "cat" / "broken.png").write_bytes(b"no picture")
    whole = (data / "dog" / "000.png").read_bytes()
    (data / "dog" / "half.png").write_bytes(whole[: len(whole) // 2])
    run_training(config(batch_size=4, epochs=1), data, tmp_path / "run", None)
    text = capfd.readouterr().err
    assert "skipped 2:" in text
    assert "cat/broken.png: not an image" in text
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["data"]["images"] == 12
    assert [item["path"] for item in stored["skipped"]] == ["cat/broken.png", "dog/half.png"]


def test_resume_refuses_other_data(images, tmp_path):
    run_training(config(epochs=1), images, tmp_path / "run", None)
    other = folder(tmp_path / "other", per_class=9)
    few = folder(tmp_path / "few", per_class=1)  # not a batch; but that is not what is wrong
    metrics = tmp_path / "run" / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write('{"step": 99}\n')
    before = metrics.read_bytes()
    for found, count in ((other, 18), (few, 2)):
        message = rf"was trained on 24 images of train .*now are {count} images of .*; give the images it began with"
        with pytest.raises(ValueError, match=message):
            run_training(config(epochs=1), found, tmp_path / "run", None, resume=True)
    assert metrics.read_bytes() == before


def test_resume_refuses_other_data_before_the_first_checkpoint(images, tmp_path):
    facts = {"name": "train", "images": 30, "digest": "0" * 16}
    RunFolder(tmp_path / "run").create(config(epochs=1), {"data": facts})
    with pytest.raises(ValueError, match="was trained on 30 images of train"):
        run_training(config(epochs=1), images, tmp_path / "run", None, resume=True)


def test_a_missing_tensorboard_leaves_no_folder(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[tensorboard\]'"):
        run_training(config(), images, tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_damaged_checkpoints_are_refused(images, tmp_path):
    run_training(config(epochs=1), images, tmp_path / "run", None)
    last = tmp_path / "run" / "last.safetensors"
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        read_checkpoint(last)
    last.unlink()
    with pytest.raises(ValueError, match="does not exist"):
        read_checkpoint(last)


def test_a_full_disk_leaves_the_old_checkpoint(images, tmp_path):
    run_training(config(epochs=1), images, tmp_path / "run", None)
    good = weights(tmp_path / "run")
    checkpoint = read_checkpoint(tmp_path / "run" / "last.safetensors")
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # writes past 1 MB fail, as on a full disk
    try:
        with pytest.raises(OSError, match=r"cannot write|File too large"):
            save_checkpoint(tmp_path / "run" / "last.safetensors", checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert weights(tmp_path / "run") == good
    assert not [name for name in os.listdir(tmp_path / "run") if name.endswith(".tmp")]


def shallow(arch, stem, image_size, *_):
    """The stem and one block with a shortcut of its own: every kind of kernel, in a fraction of the compiler's time."""
    encoder = build_encoder(arch, stem, image_size)
    encoder.layer2 = encoder.get_submodule("layer2")[:1]  # type: ignore[index]
    encoder.layer1, encoder.layer3, encoder.layer4 = nn.Identity(), nn.Identity(), nn.Identity()
    return encoder


def test_each_network_is_traced_once_and_not_for_every_view(images, monkeypatch):
    """Two views and two networks are four graphs."""
    torch._dynamo.reset()
    traced = []

    def backend(graph, _inputs):
        traced.append(graph)
        return graph.forward

    compile_whole = partial(torch.compile, dynamic=False, fullgraph=True, backend=backend)
    monkeypatch.setattr(trainer_module, "compiler", lambda on_trial: compile_whole)
    eager, compiled = trainer(images), trainer(images, compile="all")
    for step in range(2):
        torch.testing.assert_close(eager.step(step)[0], compiled.step(step)[0], atol=1e-5, rtol=1e-5)
    assert len(traced) == 4
    assert list(compiled.model.state_dict()) == list(eager.model.state_dict())


def test_compiled_training_equals_eager(images, monkeypatch):
    monkeypatch.setattr("byol.training.model.build_encoder", shallow)
    # A high rate multiplies rounding. The views differ, so each has code of its own; all there is to compile is in one.
    views = {"view1": ViewConfig(solarize=0.2), "view2": ViewConfig(jitter=0.0, grey=0.0, blur=0.0)}
    settings = {**RESNET18, **views, "lr": 0.01}
    eager, compiled = trainer(images, **settings), trainer(images, **settings, compile="all")
    for step in range(3):
        a, b = eager.step(step)[0], compiled.step(step)[0]
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
