"""`byol report`: what it reads, what it measures, what it writes. The page in a browser: test_page.py."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from byol.bundle.folder import Bundle
from byol.bundle.manifest import Finetuning, Origin
from byol.serve.evaluate.sets import Evaluation
from byol.serve.features.read import Features
from byol.serve.report import pictures
from byol.serve.report.accuracies import MOST_CLASSES, confusion_figure, shown_classes
from byol.serve.report.curves import POINTS, thinned
from byol.serve.report.explore import Exploration, Found, Query, explore, principal_components, projections
from byol.serve.report.measure import LABELS_PER_CLASS, Scores, few_amounts, measure
from byol.serve.report.page import render
from byol.serve.report.runs import Entry, open_entries, read_run
from byol.serve.report.sections import Report
from byol.serve.report.summary import tiles
from byol.training.run_folder import RunFolder
from tests.support.command_line import byol
from tests.support.inputs.features import write
from tests.support.reports import CPU, write_bundle_of, write_run
from tests.support.small import RESNET18, config
from tests.support.tiny import write_images, write_tiny_bundle


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Fewer fits: each takes a while on features as poor as a tiny encoder's."""
    monkeypatch.setattr("byol.serve.report.measure.LABELS_PER_CLASS", (1, 2))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """run/ and its bundle/ and untrained/, other/ (a run) and foreign/ (a bundle), train/, test/, flat/."""
    root = tmp_path_factory.mktemp("report")
    write_run(root / "run")
    write_run(root / "other", seed=7)
    write_bundle_of(root / "run", root / "bundle")
    write_bundle_of(root / "run", root / "untrained", steps=0, seed=1)
    write_tiny_bundle(root / "foreign", seed=2)
    manifest = Bundle.open(root / "foreign").manifest
    replace(manifest, training=None, origin=Origin("lightly", "r50.ckpt", "a" * 64)).write(root / "foreign")
    write_images(root / "train", {"cat": 20, "dog": 20, "owl": 12})
    write_images(root / "test", {"cat": 8, "dog": 6, "owl": 5}, seed=1)
    write_images(root / "flat", {"": 9}, seed=2)
    return root


def text_of(path: Path) -> str:
    """What a reader sees: without style, scripts and tags, white space as one blank."""
    html = path.read_text(encoding="utf-8")
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", bare))


def made(out: Path, *words: object) -> Path:
    done = byol("report", *words, "--out", out, *CPU)
    assert done.code == 0, done.err
    return out


# -------------------------------------------------------------------------------------------- runs and bundles


def test_a_run_and_the_bundle_exported_from_it_are_one(place, tmp_path):
    """The digest of the settings as `byol export` writes it is recomputed from config.json alone."""
    RunFolder(tmp_path / "run").create(
        config(**RESNET18), {"data": {"name": "photos", "images": 80, "digest": "0" * 16}}
    )
    RunFolder(tmp_path / "run").log({"step": 20, "epoch": 2.0, "loss": 1.0})
    entries = open_entries([tmp_path / "run", place / "bundle"])
    assert [(entry.name, entry.run is None, entry.bundle is None) for entry in entries] == [("run", False, False)]


def test_other_bundles_stay_entries_of_their_own(site):
    entries = open_entries([site / name for name in ("untrained", "run", "bundle", "foreign", "other")])
    assert [entry.name for entry in entries] == ["untrained", "run", "foreign", "other"]
    joined = entries[1].bundle
    assert joined is not None
    assert joined.folder == site / "bundle"  # not the one of step 0
    assert entries[3].bundle is None


def test_a_bundle_of_another_step_is_not_the_run(site, tmp_path):
    earlier = write_bundle_of(site / "run", tmp_path / "earlier", steps=10)
    for other in (site / "untrained", earlier):
        entries = open_entries([site / "run", other])
        assert [(entry.run is None, entry.bundle is None) for entry in entries] == [(False, True), (True, False)]


@pytest.mark.parametrize("step", [10, 23])
def test_a_bundle_of_a_run_that_goes_on_is_joined_and_says_its_step(tmp_path, step):
    """Exported before the last line of metrics, or between it and the next."""
    run = write_run(tmp_path / "run", epochs=4)
    bundles = [write_bundle_of(run, tmp_path / f"at-{steps}", steps=steps) for steps in (0, 5, step)]
    entries = open_entries([bundles[0], bundles[1], run, bundles[2]])
    assert [(entry.name, entry.bundle_step) for entry in entries] == [
        ("at-0", ""),
        ("at-5", ""),
        ("run", f"step {step} of 40"),
    ]
    shown = text_of(made(tmp_path / "r.html", run, bundles[2]))
    assert (
        f"20 of 40 steps, 2 epochs. The run was stopped early, or is still running. The bundle holds step {step} of 40."
        in shown
    )
    shown = text_of(made(tmp_path / "r.html", run, *bundles[1:]))
    assert f"20 of 40 (bundle: step {step} of 40)" in shown


def test_a_bundle_of_the_last_line_says_no_step_of_its_own(site):
    (entry,) = open_entries([site / "run", site / "bundle"])
    assert entry.bundle_step == ""


def test_a_fine_tuned_bundle_is_called_that_and_is_not_the_run(site, tmp_path):
    bundle = write_bundle_of(site / "run", tmp_path / "tuned")
    manifest = Bundle.open(bundle).manifest
    replace(manifest, finetuning=Finetuning("labelled", 12, 0.02, 30, from_scratch=False)).write(bundle)
    assert len(open_entries([site / "run", bundle])) == 2
    shown = text_of(made(tmp_path / "r.html", bundle))
    assert "8 features, fine-tuned with the labels of 12 images of labelled." in shown
    assert "Fine-tuned on labelled: 12 labelled images, 30 epochs" in shown
    tuning = Finetuning("labelled", 12, 0.02, 30, from_scratch=True)
    replace(manifest, training=None, finetuning=tuning).write(bundle)
    shown = text_of(made(tmp_path / "r.html", bundle))
    assert "30 epochs, from random weights" in shown
    assert "elsewhere" not in shown


def test_a_run_that_stopped_early_says_so_and_keeps_its_last_knn(tmp_path):
    run = write_run(tmp_path / "run", epochs=4)
    folder = RunFolder(run)
    measured = {"knn_top1": 0.625, "knn_queries": 400, "knn_bank": 40, "knn_classes": 4}
    lines = [{**record, **measured} if record["step"] == 10 else record for record in folder.metrics()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = text_of(made(tmp_path / "r.html", run))
    assert "20 of 40 steps, 2 epochs. The run was stopped early, or is still running." in shown
    assert "kNN 62.5 % top-1 at epoch 1, \u00b1 2.4" in shown  # sqrt(0.625 * 0.375 / 400)
    shown = text_of(made(tmp_path / "r.html", run, write_run(tmp_path / "other")))
    assert "20 of 40" in shown
    assert "62.5 (at epoch 1)" in shown


def test_the_folder_of_a_fine_tuning_is_to_be_exported_first(tmp_path):
    run = RunFolder(tmp_path / "tuned")
    run.start({"task": "finetune", "config": {}}, "resnet18")
    run.log({"draw": 0, "part": "final"})
    done = byol("report", run.path, "--out", tmp_path / "r.html")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "was written by `byol finetune`; export it and give the bundle" in done.err


def test_names_are_as_long_as_needed(tmp_path):
    paths = [write_run(tmp_path / part / "run") for part in ("a", "b")]
    assert [entry.name for entry in open_entries(paths)] == ["a/run", "b/run"]


def test_a_line_that_is_still_written_is_left_out(tmp_path):
    run = write_run(tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 21, "ep')
    assert (len(read_run(run).records), read_run(run).metrics.cut_off) == (20, True)
    done = byol("report", run, "--out", tmp_path / "r.html")
    assert done.code == 0
    assert "half-written last line" in done.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "it is missing or empty"),
        ('{"step": 1, "epo', "it is missing or empty"),
        ("nonsense\n", "all of its lines are damaged"),
        ("[1]\n", "all of its lines are damaged"),
        ('{"step": 1, "epoch": 1, "loss": "low"}\n', "all of its lines are damaged"),
    ],
)
def test_metrics_without_a_record_are_refused(tmp_path, content, words):
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text(content)
    done = byol("report", run, "--out", tmp_path / "r.html")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert words in done.err
    assert not (tmp_path / "r.html").exists()


def test_wrong_paths_and_options_take_one_line(site, tmp_path):
    out = ("--out", tmp_path / "r.html")
    both = ("--train", site / "train", "--test", site / "test")
    cases = [
        (1, "neither a run (config.json) nor a bundle (manifest.json); give what it contains", site),
        (1, "neither a run", site / "train" / "cat"),
        (1, "is given twice", site / "run", site / "run"),
        (2, "does not exist", site / "nothing"),
        (2, "byol export RUN --out BUNDLE", site / "run", *both),
        (2, "give both --train and --test", site / "bundle", "--train", site / "train"),
        (
            1,
            "classes that",
            site / "bundle",
            "--train",
            site / "test",
            "--test",
            write_images(tmp_path / "x", {"emu": 2, "cat": 1}),
        ),
    ]
    for code, words, *arguments in cases:
        done = byol("report", *arguments, *out)
        assert done.code == code, (arguments, done.err)
        assert str(words) in done.err
        assert "Traceback" not in done.err
    assert not (tmp_path / "r.html").exists()


def test_a_file_where_the_pages_folder_would_be_is_refused_before_any_work(site, tmp_path, monkeypatch):
    (tmp_path / "notes").write_text("mine")
    monkeypatch.setattr("byol.serve.report.page.render", lambda _: pytest.fail("renders"))
    for out in (tmp_path / "notes" / "r.html", tmp_path / "notes" / "deep" / "r.html"):
        done = byol("report", site / "run", "--out", out)
        assert (done.code, "notes is not a writable folder" in done.err) == (2, True)


def test_a_damaged_config_is_named(tmp_path):
    run = write_run(tmp_path / "run")
    for content in ("{", "[]", "{}"):
        (run / "config.json").write_text(content)
        done = byol("report", run, "--out", tmp_path / "r.html")
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert "config.json" in done.err


# ---------------------------------------------------------------------------------------------------- measured


def test_figures_are_those_of_the_other_commands(site, tmp_path, monkeypatch):
    kept: list[Scores] = []

    def kept_measure(*words):
        kept.append(measure(*words))
        return kept[-1]

    monkeypatch.setattr("byol.serve.report.measure.measure", kept_measure)
    both = ("--train", site / "train", "--test", site / "test", *CPU)
    page = made(tmp_path / "r.html", site / "run", site / "bundle", *both[:4])
    knn = json.loads(byol("knn", site / "bundle", *both, "--json").out)
    words = ("--labels-per-class", "1", "--confusion", tmp_path / "c.csv", "--json")
    linear = json.loads(byol("linear", site / "bundle", *both, *words).out)
    shown = text_of(page)
    few = linear["few_labels"][0]
    assert f"kNN {100 * knn['top1']:.1f} % top-1, k = 20" in shown
    assert f"Linear probe {100 * linear['top1']:.1f} % top-1, all 52 labels" in shown
    assert f"With 1 label a class {100 * few['mean']:.1f} % linear, \u00b1 {100 * few['deviation']:.1f}" in shown
    assert "Top-1 on 19 test images; 52 labelled training images, 3 classes." in shown
    with open(tmp_path / "c.csv", newline="") as stream:
        rows = list(csv.reader(stream))[1:]
    drawn = confusion_figure(kept[0]).renderers[0].data_source.data
    assert drawn["count"].tolist() == [int(cell) for row in rows for cell in row[1:]]


def test_a_comparison_tabulates_every_encoder(site, tmp_path):
    names = ("run", "bundle", "untrained", "other")
    paths = [site / name for name in names]
    done = byol(
        "report", *paths, "--train", site / "train", "--test", site / "test", "--out", tmp_path / "r.html", *CPU
    )
    assert done.code == 0, done.err
    assert "other: no accuracies, as its bundle is not given" in done.err
    shown = text_of(tmp_path / "r.html")
    assert "3 encoders compared" in shown
    heads = "encoder kNN (%) linear (%) 1 label a class (%) kNN in training (%) steps loss"
    assert heads in shown  # accuracies first: on a phone the right of a table is out of sight
    for name in ("run", "untrained", "other"):
        assert name in shown
    assert "Confusion of the linear probe of run" in shown


def test_unlabelled_images_get_a_map_and_neighbours_only(site, tmp_path):
    for train, test in (("train", "flat"), ("flat", "flat"), ("flat", "test")):
        page = made(tmp_path / "r.html", site / "bundle", "--train", site / train, "--test", site / test)
        shown = text_of(page)
        assert "Nearest neighbours" in shown
        assert "Map of the features" in shown
        assert "Confusion" not in shown
        assert "top-1" not in shown


def test_few_images_are_enough(site, tmp_path):
    small = write_images(tmp_path / "small", {"cat": 1, "dog": 1})
    page = made(tmp_path / "r.html", site / "bundle", "--train", small, "--test", small)
    assert "each its 1 nearest of the 1 others" in text_of(page)
    page = made(tmp_path / "r.html", site / "bundle", "--train", small / "cat", "--test", small / "cat")
    assert "each its 0 nearest of the 0 others" in text_of(page)
    page = made(tmp_path / "r.html", site / "bundle", "--train", small, "--test", small / "cat" / "000.png")
    assert "1 of 1 test images" in text_of(page)


def test_of_one_labelled_folder_no_image_is_its_own_neighbour(site, tmp_path):
    """As `byol knn` has it; what a probe says of the images it learned from, the page says, too."""
    words = (site / "bundle", "--train", site / "train", *CPU)
    done = byol("report", *words, "--test", site / "test" / ".." / "train", "--out", tmp_path / "r.html")
    assert (done.code, "kNN and neighbours leave each one out" in done.err) == (0, True), done.err
    knn, shown = json.loads(byol("knn", *words, "--json").out), text_of(tmp_path / "r.html")
    assert f"kNN {100 * knn['top1']:.1f} % top-1, k = 20, leave one out" in shown
    assert "top-1, on what it learned" in shown
    assert "Training and test set are the same images" in shown
    assert "Nothing was chosen on the test images" not in shown
    assert "6 nearest of the 51 others" in shown
    html = (tmp_path / "r.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    queries = json.loads(found[1])["queries"]
    assert len(queries) == 48
    for query in queries:
        assert len(query["neighbours"]) == 6
        assert query["id"] not in [near["id"] for near in query["neighbours"]]


def test_a_list_on_standard_input_is_read_once(site, tmp_path, monkeypatch):
    lines = "".join(f"{path}\n" for path in sorted((site / "test").rglob("*.png"))[:3])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    page = made(tmp_path / "r.html", site / "bundle", "--train", site / "train", "--test", "-")
    assert "3 of 3 test images, chosen at random, and to each its 6 nearest of 52" in text_of(page)


def test_features_of_one_encoder_are_refused_where_several_are_compared(site, tmp_path, monkeypatch):
    monkeypatch.setattr("byol.serve.report.measure.measure", lambda *_: pytest.fail("measures"))
    write(tmp_path / "f.parquet", 6, labels=["cat", "dog", "owl"] * 2)
    both = ("--train", tmp_path / "f.parquet", "--test", site / "test", "--out", tmp_path / "r.html")
    done = byol("report", site / "bundle", site / "foreign", *both, *CPU)
    assert (done.code, "holds the features of one encoder, but 2 bundles are compared" in done.err) == (2, True)


def test_features_files_have_no_pictures(site, tmp_path):
    for name in ("train", "test"):
        assert byol("extract", site / "bundle", site / name, "--out", tmp_path / f"{name}.parquet", *CPU).code == 0
    both = ("--train", tmp_path / "train.parquet", "--test", tmp_path / "test.parquet")
    shown = text_of(made(tmp_path / "r.html", site / "bundle", *both))
    assert "Features files hold no pictures" in shown
    assert "Confusion" in shown


def test_a_bundle_without_training_summary_says_where_it_is_from(site, tmp_path):
    shown = text_of(made(tmp_path / "r.html", site / "foreign"))
    assert "no training summary; read from r50.ckpt (lightly" in shown


def test_the_parity_of_the_page_is_that_of_the_fp32_encoder(site, tmp_path):
    """Each precision has a gate of its own; the table has them all."""
    bundle = write_bundle_of(site / "run", tmp_path / "bundle")
    manifest = Bundle.open(bundle).manifest
    encoder = manifest.files["encoder.onnx"]
    parity = encoder.parity
    assert parity is not None
    exact = replace(encoder, parity=replace(parity, max_relative_error=2e-6))
    coarse = replace(encoder, precision="int8", parity=replace(parity, max_relative_error=0.032))
    files = {**manifest.files, "encoder.onnx": exact, "encoder.int8.onnx": coarse}
    entry = Entry("bundle", bundle=Bundle(bundle, replace(manifest, files=files), "d" * 64))
    assert ("Parity", "2.0e-06", "largest relative error") in tiles(Report([entry]))


def test_classes_whose_names_read_alike_are_numbered_everywhere():
    """A line end in a name is shown as the two characters that another name really has."""
    labels = ["a\nb", "a\\nb", "cat"] * 4
    x = np.eye(3, dtype=np.float32)[np.arange(12) % 3] + np.linspace(0, 0.1, 12, dtype=np.float32)[:, None]
    part = Features("f", [str(i) for i in range(12)], list(labels), x, None)
    data = Evaluation(part, replace(part), ([], []), None)
    scores = measure(data, "cpu")
    assert scores.classes == ["a\\nb", "a\\nb (2)", "cat"]
    shown = confusion_figure(scores).renderers[0].data_source.data
    assert len(set(zip(shown["row"], shown["column"], strict=True))) == 9
    assert sorted(set(map(str, explore(data, "cpu").labels))) == scores.classes


def test_runs_whose_names_read_alike_are_numbered(tmp_path):
    entries = open_entries([write_run(tmp_path / name) for name in ("a\nb", "a\\nb")])
    assert [entry.name for entry in entries] == ["a\\nb", "a\\nb (2)"]
    assert "a\\nb (2)" in render(Report(entries))


def test_few_label_amounts_leave_labels_over(monkeypatch):
    monkeypatch.setattr("byol.serve.report.measure.LABELS_PER_CLASS", LABELS_PER_CLASS)
    assert few_amounts(np.repeat(["a", "b"], [30, 11])) == [1, 2, 5, 10]
    assert few_amounts(np.repeat(["a", "b"], [30, 1])) == []
    assert few_amounts(np.repeat(np.arange(1000).astype(str), 30)) == [1, 2, 5, 10]  # 20,000 labels are not few


def test_principal_components_are_scikit_learns():
    x = load_digits().data[:300].astype(np.float32)
    found, reference = principal_components(x), PCA(2).fit(x)
    expected = reference.transform(x)
    signs = np.sign((found.points * expected).sum(0))
    np.testing.assert_allclose(found.points * signs, expected, atol=1e-3)  # of values up to 40, from float32 features
    assert found.axes[0] == f"principal component 1 ({reference.explained_variance_ratio_[0]:.0%} of the variance)"


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (5, 1)])
def test_principal_components_of_very_little(shape):
    found = principal_components(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    assert found.points.shape == (shape[0], 2)
    assert np.isfinite(found.points).all()
    assert "nan" not in "".join(found.axes)


def test_umap_is_a_second_map(site, tmp_path):
    pytest.importorskip("umap", reason="umap-learn is not installed")
    page = made(tmp_path / "r.html", site / "bundle", "--train", site / "train", "--test", site / "test")
    assert "UMAP" in text_of(page)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("", "cannot import name 'UMAP' from 'umap'"),  # as the package of that name
        (r"raise RuntimeError('no locator available\nA page of advice')", "no locator available\n"),
    ],
)
def test_a_umap_that_does_not_work_is_left_out(tmp_path, monkeypatch, capfd, code, reason):
    (tmp_path / "umap.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "umap", raising=False)
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    assert [found.name for found in projections(x)] == ["PCA"]
    sys.modules.pop("umap", None)
    assert f"UMAP is left out: umap-learn does not work here: {reason}" in capfd.readouterr().err


# ---------------------------------------------------------------------------------------------------- the page


def test_a_long_run_is_thinned_to_its_ends():
    records = [{"step": step, "epoch": step / 100, "loss": 1.0} for step in range(1, 12346)]
    kept = thinned(records)
    assert len(kept) == POINTS
    assert (kept[0], kept[-1]) == (records[0], records[-1])


def test_pictures_of_noise_stay_within_their_budget():
    """Noise is what no codec makes smaller."""
    generator = np.random.default_rng(0)
    noise = (Image.fromarray(generator.integers(0, 256, (300, 400, 3), dtype=np.uint8)) for _ in range(976))
    shown = pictures.thumbnails(noise)
    assert len(shown) == 976
    assert sum(map(len, shown)) < 4 / 3 * pictures.THUMBNAIL_BYTES + 976 * 40


def test_tiles_are_larger_than_the_maps_pictures_and_square():
    wide = Image.new("RGB", (400, 200), "red")
    wide.paste("blue", (100, 0, 300, 200))
    sizes = []
    for uri in pictures.thumbnails([wide, wide], tiles={1}):
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as read:
            sizes.append(read.size)
            blue = np.asarray(read.convert("RGB"))[40, [2, -3], 2]
            assert (blue > 200).all()  # no red: the middle
    assert sizes == [(80, 80), (96, 96)]


def test_a_tiny_picture_keeps_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (uri,) = pictures.thumbnails([Image.fromarray(pixels)])
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as read:
        np.testing.assert_array_equal(np.asarray(read.convert("RGB")), pixels)


def test_what_knn_errs_to_is_written_beneath_the_tile(site):
    queries = [Query(0, "a.png", "cat", "cat", []), Query(1, "b.png", "cat", "<b>dog", [Found(2, "c.png", "dog", 0.9)])]
    shown = Exploration(
        ["a.png", "b.png"], ["cat", "dog"], [principal_components(np.eye(2))], queries, ["data:,"] * 3, 9, 9
    )
    html = render(Report(open_entries([site / "run"]), {}, shown, "run"))
    crossed = re.findall(r'<span class="name other"[^>]*>([^<]*)</span>', html)
    assert (crossed, html.count('class="wrong"')) == (["\u2717 &lt;b&gt;dog"], 1)


def test_a_page_beyond_5_mb_is_refused(site, monkeypatch):
    monkeypatch.setattr("byol.serve.report.page.MAX_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="compare fewer runs"):
        render(Report(open_entries([site / "run"])))


def test_many_classes_are_cut_to_the_most_confused():
    confusion = np.diag(np.full(100, 5))
    confusion[40, 41] = 3
    scores = Scores(1000, 503, {20: 0.5}, 0.9, [], [f"c{i:02}" for i in range(100)], confusion)
    chosen = shown_classes(scores)
    assert len(chosen) == MOST_CLASSES
    assert 40 in chosen
    assert list(chosen) == sorted(chosen)


def test_the_page_names_no_folder_of_this_machine(site, tmp_path):
    page = made(tmp_path / "r.html", site / "run", site / "bundle", "--train", site / "train", "--test", site / "test")
    assert str(site) not in page.read_text()
