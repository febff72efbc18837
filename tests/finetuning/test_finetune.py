"""Fine-tuning: one fit against a plain torch loop, the protocol around it, the way into a bundle."""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import replace

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score
from torch import nn

from byol import load_encoder
from byol.bundle.folder import Bundle
from byol.bundle.manifest import Finetuning
from byol.commands.finetune import _require_same
from byol.finetuning.checkpoint import read_finetuned
from byol.finetuning.protocol import Sweep, choose_images, read_sets
from byol.finetuning.tuner import Classifier, FinetuneConfig, LabelledImages, Scores, Trial, Tuner, scores
from byol.images.decode import Preprocess
from byol.images.open import open_source
from byol.images.splits import draw
from byol.pretrained import read_pretrained
from byol.serve.proof import verify
from byol.training.checkpoint import read_tensors, write_tensors
from byol.training.data.intake import ImageTensor
from byol.training.run_folder import RunFolder
from tests.support.command_line import byol
from tests.support.small import folder

SQUARE = Preprocess.for_size(16)
CPU = ("--device", "cpu", "--precision", "fp32")
QUICK = (*CPU, "--epochs", 10, "--batch-size", 6, "--crop-area", 0.6)


def tuned(quick, out, *words, code=0, encoder="run"):
    done = byol("finetune", quick / encoder, quick / "train", "--out", out, *QUICK, *words)
    assert done.code == code, done.err
    return done


@pytest.fixture(scope="module")
def result(quick, tmp_path_factory):
    """The folder of a fine-tuning on two draws, and what the command printed."""
    out = tmp_path_factory.mktemp("finetune") / "out"
    words = ("--labels-per-class", 6, "--draws", 2, "--lr", 0.002, "--lr", 0.02, "--test", quick / "test", "--json")
    return out, json.loads(tuned(quick, out, *words).out)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def flat(model):
    """All parameters as one vector."""
    return torch.cat([value.detach().flatten() for value in model.parameters()])


# --------------------------------------------------------------------------------------------------------- one fit


def test_a_fit_is_what_a_plain_loop_does(quick):
    pixels = torch.randint(0, 256, (12, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    classes = torch.arange(12) % 3
    canvases = ImageTensor(pixels, torch.ones(12), np.arange(12), [])
    source = read_pretrained(quick / "run")
    model = Classifier(source.encoder, 3)
    before, other = flat(model), copy.deepcopy(model).train()
    config = FinetuneConfig(crop_area=1.0, flip=False)  # a crop of everything is the canvas; all fit into one batch
    tuner = Tuner(config, 16, source.mean, source.std, torch.device("cpu"), "fp32")
    labelled = LabelledImages(canvases, canvases, classes)
    loss = tuner.fit(model, labelled, np.arange(12), Trial(0.001, 4), seed=0)

    mean, std = (torch.tensor(values)[:, None, None] for values in (source.mean, source.std))
    x = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
    optimizer = torch.optim.SGD(other.parameters(), 0.001, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    for _ in range(4):
        optimizer.zero_grad()
        expected = nn.functional.cross_entropy(other(x), classes)
        expected.backward()
        optimizer.step()
        schedule.step()
    assert loss == pytest.approx(expected.item(), rel=1e-3)
    change, wanted = flat(model) - before, flat(other) - before
    # Sums in another order differ by far less than a step without Nesterov, with decay or at another rate would.
    assert float((change - wanted).norm() / wanted.norm()) < 0.005


def test_scores_against_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits, classes = torch.randn(60, 8, generator=generator), torch.arange(60) % 7  # the last class does not occur
    found, p = scores(logits, classes), logits.double().softmax(dim=1).numpy()
    truth, numbers = classes.numpy(), np.arange(8)
    assert found.top1 == pytest.approx(accuracy_score(truth, p.argmax(1)))
    assert found.top5 == pytest.approx(top_k_accuracy_score(truth, p, k=5, labels=numbers))
    known = p.argmax(1) != 7
    assert known.any()
    with pytest.warns(UserWarning, match="y_pred contains classes"):
        assert found.mean_per_class == pytest.approx(balanced_accuracy_score(truth, p.argmax(1)))


def test_a_diverged_model_is_the_worst_of_all():
    assert scores(torch.full((4, 3), float("nan")), torch.zeros(4, dtype=torch.int64)) == Scores(0.0, 0.0, 0.0)


# -------------------------------------------------------------------------------------------------------- protocol


class Recorder(Tuner):
    """Fits nothing and notes what it is given; on the 16 test images low rates score best, on others high ones."""

    def __init__(self, config):
        self.config, self.fitted, self.scored = config, [], []

    def fit(self, model, images, rows, trial, seed):
        self.fitted.append((seed, trial, rows))
        return 0.5

    def score(self, model, pixels, classes):
        self.scored.append(pixels)
        lr = self.fitted[-1][1].lr
        return Scores(1 - lr if len(pixels) == 16 else min(lr, 0.3), 1.0, 1.0)


def test_settings_are_chosen_on_a_part_of_the_labels_and_never_on_the_test_set(quick, tmp_path):
    config = FinetuneConfig(labels=10, draws=2, lr=(0.1, 0.4, 0.3), epochs=(1,))
    sets = read_sets(choose_images(config, quick / "train", quick / "test"), SQUARE)
    assert sets.test is not None
    run = RunFolder(tmp_path)
    recorder = Recorder(config)
    finals = Sweep(recorder, read_pretrained(quick / "run"), sets, run, lambda record: None).fit()
    assert [(seed, trial.lr) for seed, trial, _ in recorder.fitted] == [
        *[(0, 0.1), (0, 0.3), (0, 0.4), (0, 0.3)],  # of equals the lower rate
        *[(1, 0.1), (1, 0.3), (1, 0.4), (1, 0.3)],
    ]
    for number, rows in enumerate(sets.draws):
        *trials, final = [row for seed, _, row in recorder.fitted if seed == number]
        assert final.tolist() == rows.tolist()
        held = sorted(set(rows.tolist()) - set(trials[0].tolist()))
        assert all(trial.tolist() == trials[0].tolist() and len(trial) == 16 for trial in trials)
        for pixels in recorder.scored[4 * number : 4 * number + 3]:
            assert torch.equal(pixels, sets.labelled.preprocessed.pixels[held])
        assert torch.equal(recorder.scored[4 * number + 3], sets.test[0])
    assert [record["top1"] for record in finals] == [pytest.approx(0.7)] * 2


def test_one_label_a_class_leaves_nothing_to_choose_on(quick, tmp_path):
    config = FinetuneConfig(labels=1, lr=(0.3, 0.1, 0.2), epochs=(2, 1))
    recorder = Recorder(config)
    sets = read_sets(choose_images(config, quick / "train", None), SQUARE)
    Sweep(recorder, read_pretrained(quick / "run"), sets, RunFolder(tmp_path), lambda record: None).fit()
    assert [trial for _, trial, _ in recorder.fitted] == [Trial(0.1, 1)]
    assert recorder.scored == []


def test_names_that_no_manifest_takes_are_written_out_or_refused_before_the_work(quick, tmp_path):
    name = os.fsdecode(b"caf\xe9\tphotos")
    try:
        data = folder(tmp_path / name, per_class=2)
    except OSError:
        pytest.skip("this file system takes no such names")
    sets = read_sets(choose_images(FinetuneConfig(labels=1, lr=(0.1,), epochs=(1,)), data, data), SQUARE)
    recorder = Recorder(FinetuneConfig(lr=(0.1,), epochs=(1,)))
    Sweep(recorder, read_pretrained(quick / "run"), sets, RunFolder(tmp_path), lambda record: None).fit()
    found = read_finetuned(tmp_path / "last.safetensors")  # as `byol export` reads it
    assert found.finetuning
    assert found.head
    assert found.finetuning.data == found.head.train == found.head.test == "caf\\udce9\\tphotos"
    folder(tmp_path / "odd", ("cat", "do\tg"), per_class=1)
    with pytest.raises(ValueError, match=r"odd: a bundle cannot name the class do\\tg,"):
        choose_images(FinetuneConfig(), tmp_path / "odd", None)


@pytest.mark.parametrize("amount", [3, 0.25])
def test_draws_are_those_of_the_linear_probe(quick, amount):
    source = open_source(quick / "train")
    labels = np.array(list(source.labels))
    sets = read_sets(choose_images(FinetuneConfig(labels=amount, draws=2), quick / "train", None), SQUARE)
    for seed, rows in enumerate(sets.draws):
        expected = sorted(draw(labels, amount, seed))
        pictures = np.stack([SQUARE(source.open(int(row))) for row in expected])
        np.testing.assert_array_equal(sets.labelled.preprocessed.pixels[rows].numpy(), pictures)
        assert [sets.names[number] for number in sets.labelled.classes[rows]] == labels[expected].tolist()


def test_scores_are_of_the_crop_that_the_bundle_makes(quick, tmp_path, monkeypatch):
    shutil.copytree(quick / "bundle", tmp_path / "bundle")
    manifest, own = Bundle.open(tmp_path / "bundle").manifest, Preprocess(20, 16, 2.25)  # usual is 16 of 16
    replace(manifest, preprocess=replace(manifest.preprocess, resize=20)).write(tmp_path / "bundle")
    seen = []

    def sweep(tuner, source, sets, run, report):
        seen.append((source.preprocess, sets))
        raise ValueError("that is enough")

    monkeypatch.setattr("byol.commands.finetune.Sweep", sweep)
    words = (tmp_path / "bundle", quick / "train", "--test", quick / "test", "--out", tmp_path / "out", *QUICK)
    assert "that is enough" in byol("finetune", *words).err
    [(exported, sets)] = seen
    assert exported == own
    for found, name in ((sets.labelled.preprocessed.pixels, "train"), (sets.test[0], "test")):
        source = open_source(quick / name)
        np.testing.assert_array_equal(found, [own(source.open(i)) for i in range(len(source))])


def test_a_file_whose_crop_cannot_be_is_damaged(quick, result, tmp_path):
    tensors, facts = read_tensors(result[0] / "last.safetensors", "finetune")
    for resize in ("20", 8):
        source = json.dumps({**json.loads(facts["source"]), "resize": resize})
        write_tensors(tmp_path / "last.safetensors", tensors, {**facts, "source": source})
        with pytest.raises(ValueError, match="has damaged metadata: resize is "):
            read_finetuned(tmp_path / "last.safetensors")


def test_an_unreadable_image_is_left_out(quick, tmp_path, capsys):
    data = folder(tmp_path / "data", per_class=4)
    (data / "cat" / "000.png").write_bytes(b"no image")
    sets = read_sets(choose_images(FinetuneConfig(), data, None), SQUARE)
    assert [len(sets.draws[0]), len(sets.labelled.classes), sets.skipped[0].path] == [7, 7, "cat/000.png"]
    assert sets.labelled.classes.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_a_class_of_which_nothing_can_be_read_is_refused(quick, tmp_path):
    data = folder(tmp_path / "data", per_class=3)
    for number in range(3):
        (data / "cat" / f"{number:03d}.png").write_bytes(b"no image")
    done = byol("finetune", quick / "run", data, "--out", tmp_path / "out", *QUICK)
    assert (done.code, "none of the images drawn from class cat can be read (first: cat/000.png: " in done.err) == (
        1,
        True,
    )
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------------- command


def test_the_result_and_its_folder(quick, result):
    out, values = result
    assert sorted(path.name for path in out.iterdir()) == [
        *("config.json", "last.safetensors", "metrics.jsonl", "result.json"),
    ]
    assert json.loads((out / "result.json").read_text()) == values
    draws = values["draws"]
    assert [draws[0]["images"], values["n_test"], values["labels"]] == [12, 16, "6 a class"]
    for name in ("top1", "top5", "mean_per_class"):
        assert values[name] == pytest.approx(np.mean([one[name] for one in draws]))
    assert values["deviation"] == pytest.approx(np.std([one["top1"] for one in draws], ddof=1))
    parts = [(line["draw"], line["part"]) for line in lines(out)]
    assert parts == [(number, part) for number in (0, 1) for part in ("trial", "trial", "final")]
    assert [line["images"] for line in lines(out)] == [10, 10, 12] * 2
    assert values["top1"] > 0.6  # a tinted class each


def test_one_draw_has_no_deviation(quick, tmp_path):
    words = ("--lr", 0.01, "--labels-per-class", 2, "--test", quick / "test")
    done = tuned(quick, tmp_path / "my text", *words)
    assert "\ndeviation " not in done.out
    assert f"Next: byol export '{tmp_path}/my text' --out BUNDLE\n" in done.err  # to be copied
    values = json.loads(tuned(quick, tmp_path / "json", *words, "--json").out)
    assert values["deviation"] is None


def test_fine_tuning_trains_the_encoder_and_scratch_has_another(quick, result, tmp_path):
    before = load_encoder(quick / "run").state_dict()
    after = load_file(result[0] / "last.safetensors")
    assert after.keys() == {*(f"encoder.{name}" for name in before), "classifier.weight", "classifier.bias"}
    tuned(quick, tmp_path / "out", "--labels-per-class", 6, "--lr", 0.02, "--from-scratch")
    scratch = load_file(tmp_path / "out" / "last.safetensors")
    old = before["layer1.0.conv1.weight"]
    new, other = (weights["encoder.layer1.0.conv1.weight"] for weights in (after, scratch))
    assert float((new - old).abs().max()) > 0
    assert float(torch.cosine_similarity(old.flatten(), new.flatten(), dim=0)) > 0.9
    assert abs(float(torch.cosine_similarity(old.flatten(), other.flatten(), dim=0))) < 0.1


def test_the_bundle_classifies_as_was_reported(quick, result, tmp_path):
    out, values = result
    done = byol("export", out, "--out", tmp_path / "bundle")
    assert done.code == 0, done.err
    assert "verified: classifier.onnx: relative error " in done.out
    assert verify(tmp_path / "bundle").ok
    words = (quick / "test", "--out", tmp_path / "predicted.parquet", "--device", "cpu")
    done = byol("classify", tmp_path / "bundle", *words)
    assert done.code == 0, done.err
    table = pq.read_table(tmp_path / "predicted.parquet")
    top1 = np.mean([a == b for a, b in zip(*(table[name].to_pylist() for name in ("label", "predicted")), strict=True)])
    assert top1 == pytest.approx(values["draws"][0]["top1"])
    manifest = Bundle.open(tmp_path / "bundle").manifest
    first = values["draws"][0]
    assert manifest.finetuning == Finetuning("train", 12, first["lr"], 10, False)
    head = manifest.classifier
    assert head is not None
    assert (head.classes, head.l2, head.n_train, head.test, head.n_test) == (("cat", "dog"), None, 12, "test", 16)
    assert head.top1 == first["top1"]
    assert manifest.training == Bundle.open(quick / "bundle").manifest.training
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "Then fine-tuned on 12 labelled images of `train`." in card
    assert "(together with the encoder); it\nclassifies" in card
    assert "train, 12 labelled images, 10 epochs" in byol("info", tmp_path / "bundle").out
    encoder, stored = load_encoder(tmp_path / "bundle"), load_file(out / "last.safetensors")
    assert all(torch.equal(value, stored[f"encoder.{name}"]) for name, value in encoder.state_dict().items())
    again = byol("finetune", tmp_path / "bundle", quick / "train", "--out", tmp_path / "again", *QUICK)
    assert (again.code, "is already fine-tuned" in again.err) == (1, True)


def test_from_a_bundle_without_a_test_set(quick, tmp_path):
    done = tuned(quick, tmp_path / "out", "--lr", 0.01, "--from-scratch", encoder="bundle")
    assert "labels        all" in done.out
    assert "top1" not in done.out
    assert "None" not in done.out
    done = byol("export", tmp_path / "out", "--out", tmp_path / "bundle")
    assert done.code == 0, done.err
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.classifier is not None
    assert manifest.finetuning is not None
    assert (manifest.training, manifest.classifier.top1, manifest.finetuning.from_scratch) == (None, None, True)
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "Trained with labels, from random weights, on 32 images of `train`." in card
    assert "(together with the encoder). With byol:" in card


def test_an_interrupted_sweep_goes_on_and_ends_the_same(quick, result, tmp_path, monkeypatch):
    out = tmp_path / "out"
    words = ("--labels-per-class", 6, "--draws", 2, "--lr", 0.002, "--lr", 0.02, "--test", quick / "test", "--json")
    fit, calls = Tuner.fit, list[object]()

    def limited(*arguments, **named):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(arguments)
        return fit(*arguments, **named)

    monkeypatch.setattr(Tuner, "fit", limited)
    said = tuned(quick, out, *words, code=1).err
    assert said.endswith("Error: stopped; finished fits are kept, continue with --resume\n")
    assert len(lines(out)) == 4
    with open(out / "metrics.jsonl", "a") as stream:
        stream.write('{"draw": 1, "part": "fin')  # killed while writing
    monkeypatch.setattr(Tuner, "fit", fit)
    values = json.loads(tuned(quick, out, *words, "--resume").out)
    assert values["seconds"] == pytest.approx(sum(line["seconds"] for line in lines(out)))
    assert values["draws"] == result[1]["draws"]
    kept = ("draw", "part", "lr", "epochs", "top1")
    assert [[line[key] for key in kept] for line in lines(out)] == [
        [line[key] for key in kept] for line in lines(result[0])
    ]
    found, expected = (load_file(folder / "last.safetensors") for folder in (out, result[0]))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "--out" in tuned(quick, out, *words, code=1).err  # without --resume nothing is overwritten
    done = tuned(quick, out, *words, "--resume", "--no-flip", "--test", quick / "train", code=2)
    assert "these differ: flip, test;" in done.err


def test_a_sweep_without_memory_says_what_takes_less(quick, tmp_path, monkeypatch):
    def full(*_arguments, **_named):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Tuner, "fit", full)
    done = tuned(quick, tmp_path / "out", "--labels-per-class", 6, code=1)
    assert "out of memory: 6 images of 16 px at a time; use another --out and a smaller --batch-size" in done.err
    assert "Traceback" not in done.err


def test_encoder_and_images_may_get_other_names_and_no_other_content():
    images = {"name": "train", "images": 4, "digest": "0", "content": "1"}
    stored = {"config": {}, "encoder": {"name": "run", "digest": "2"}, "data": images, "test": images}
    renamed = {**images, "name": "moved"}
    _require_same(stored, {**stored, "encoder": {"name": "moved", "digest": "2"}, "data": renamed, "test": renamed})
    others = {"encoder": {"name": "run", "digest": "3"}, "test": {**images, "content": "4"}}
    with pytest.raises(click.UsageError, match=r"these differ: test, encoder \(other weights\); give the encoder it"):
        _require_same(stored, {**stored, **others})


@pytest.mark.parametrize(
    ("changes", "preprocess", "said"),
    [
        ({"byol_version": "0.0.9"}, {}, ""),
        ({}, {"resize": 20}, "encoder (resize 20, was None)"),
        ({}, {"std": (0.5, 0.25, 0.125)}, "encoder (std [0.5, 0.25, 0.125], was ["),
    ],
)
def test_a_bundle_in_place_of_another_must_feed_the_same_weights_alike(
    quick, tmp_path, monkeypatch, changes, preprocess, said
):
    def sweep(*_):
        raise ValueError("that is enough")

    monkeypatch.setattr("byol.commands.finetune.Sweep", sweep)
    shutil.copytree(quick / "bundle", tmp_path / "bundle")
    words = ("finetune", tmp_path / "bundle", quick / "train", "--out", tmp_path / "out", "--resume", *QUICK)
    assert "that is enough" in byol(*words).err
    manifest = Bundle.open(tmp_path / "bundle").manifest
    contract = replace(manifest.preprocess, **preprocess)
    replace(manifest, preprocess=contract, **changes).write(tmp_path / "bundle")
    done = byol(*words)
    assert (done.code, (said or "that is enough") in done.err) == (2 if said else 1, True)
    assert ("give the encoder it began with, or start a new one" in done.err) == bool(said)


def test_a_sweep_goes_on_with_the_bundle_of_its_run_and_one_of_an_earlier_version_too(quick, tmp_path, monkeypatch):
    def sweep(*_):
        raise ValueError("that is enough")

    monkeypatch.setattr("byol.commands.finetune.Sweep", sweep)
    assert "that is enough" in tuned(quick, tmp_path / "out", code=1).err
    assert "that is enough" in tuned(quick, tmp_path / "out", "--resume", code=1, encoder="bundle").err
    place = tmp_path / "out" / "config.json"
    content = json.loads(place.read_text())
    content["encoder"] = {name: content["encoder"][name] for name in ("name", "digest")}
    place.write_text(json.dumps(content))
    assert "that is enough" in tuned(quick, tmp_path / "out", "--resume", code=1).err


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "change",
    [
        {"device": "tpu"},
        {"precision": "fp8"},
        {"flip": "no"},
        {"batch_size": 64.0},
        {"lr": 0.1},
        {"lr": ("0.1",)},
        {"lr": (float("nan"),)},
        {"epochs": (1.5,)},
        {"epochs": ()},
        {"labels": True},
        {"crop_area": None},
    ],
    ids=str,
)
def test_illegal_settings_are_refused_with_the_legal_ones(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"^{name} is .*; expected "):
        FinetuneConfig(**change)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--label-fraction", 0.5, "--labels-per-class", 2), 2, "exclude each other"),
        (("--draws", 2), 2, "1 where all of them are used"),
        (("--lr", -1), 2, "lr is (-1.0,)"),
        (("--epochs", 0), 2, "epochs is (0,)"),
        (("--batch-size", 1), 2, "batch_size is 1"),
        (("--crop-area", 2), 2, "crop_area is 2.0"),
        (("--lr", 1e308), 2, "lr is (1e+308,)"),
        (("--epochs", 10**30), 2, "epochs is (1000"),
        (("--batch-size", 10**30), 2, "batch_size is 1000"),
        (("--labels-per-class", 10**30), 2, "labels is 1000"),
        (("--draws", 10**30, "--labels-per-class", 2), 2, "draws is 1000"),
        (("--labels-per-class", 17), 1, "class cat has 16 images, fewer than the 17 asked for"),
        (("--labels-per-class", 17, "--test", "train"), 1, "train is both DATA and --test: an accuracy on images that"),
        (("--test", "birds"), 1, "birds has classes that train lacks: owl"),
        (("--test", "nowhere"), 1, "nowhere does not exist"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(quick, tmp_path, monkeypatch, words, code, message):
    folder(tmp_path / "birds", ("cat", "owl"), 2)
    folder(tmp_path / "train", per_class=16)
    monkeypatch.chdir(tmp_path)
    done = byol("finetune", quick / "run", "train", "--out", tmp_path / "out", *CPU, *words)
    assert (done.code, message in done.err) == (code, True), done.err
    assert not (tmp_path / "out").exists()


def test_a_run_and_a_fine_tuning_are_told_apart(quick, result, tmp_path):
    out, _ = result
    done = byol("finetune", out, quick / "train", "--out", tmp_path / "out", *QUICK)
    assert (done.code, "was written by `byol finetune`; give one written by `byol train`" in done.err) == (1, True)
    done = byol("train", quick / "train", "--out", out, "--resume", "--device", "cpu")
    assert (done.code, "was written by `byol finetune`; choose another --out" in done.err) == (1, True)
    done = byol("finetune", quick / "run", tmp_path, "--out", out, *QUICK)
    assert done.code == 1
