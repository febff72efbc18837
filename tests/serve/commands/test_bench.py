"""`byol bench`: every stage is measured and the figures fit together. How fast it is, is not tested."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from byol.bundle.folder import Bundle
from byol.serve.choices import Choice, best, measure_choices, open_choices
from byol.serve.commands.bench import BATCHES, SIZE, generated_pictures
from tests.support.command_line import byol
from tests.support.tiny import write_images, write_tiny_bundle


@pytest.mark.parametrize("given", [True, False])
def test_every_stage_is_measured(tmp_path: Path, given: bool) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    images = ("--images", write_images(tmp_path / "images", {"cat": 3})) if given else ()
    done = byol("bench", bundle, *images, "--seconds", 0.05, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert (values["device"], values["variant"], values["image_size"]) == ("cpu", "fp32", 16)
    rows = values["rows"]
    assert [row["batch"] for row in rows if row["stage"] == "session"] == list(BATCHES)
    assert {row["stage"] for row in rows} == {
        "decode, one thread", "preprocess, one thread", "session", "one image to features", "end to end, all threads"
    }  # fmt: skip
    (choice,) = values["choices"]
    assert (choice["device"], choice["variant"], choice["batch"], choice["cosine"]) == ("cpu", "fp32", 32, 1.0)
    assert (values["fastest"], values["fastest_fp32"]) == ("--device cpu", "--device cpu")
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["images_per_second"] > 0


def test_people_get_a_table(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    done = byol("bench", bundle, "--seconds", 0.05, "--device", "cpu")
    stages, choices = (part.splitlines() for part in done.out.split("\n\n"))
    assert stages[0].split() == ["batch", "images/s", "p50", "ms", "p99", "ms"]
    assert len(stages) == 1 + 2 + len(BATCHES) + 2
    assert [line.split()[0] for line in choices] == ["device", "cpu", "fastest:"]


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    write_images(tmp_path / "images", {"cat": 3})
    broken = sorted((tmp_path / "images").rglob("*.png"))[1]
    broken.write_bytes(b"broken")
    done = byol("bench", bundle, "--images", tmp_path / "images", "--seconds", 0.05, "--device", "cpu")
    assert (done.code, f"cat/{broken.name} cannot be read" in done.err) == (1, True), done.err


def test_what_does_not_run_is_noted_and_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("byol.serve.choices.driver_problem", lambda: None)  # CUDA still cannot be used
    monkeypatch.setattr("byol.serve.providers.installed.plugin_packages", lambda: {"other": "onnxruntime-ep-other"})
    encoders = open_choices(write_tiny_bundle(tmp_path / "bundle"), "auto")
    said = capfd.readouterr().err
    assert encoders[0].device == "cpu"
    assert said.count("onnxruntime-ep-other is not installed") == 1  # not once for each variant
    assert "cuda" in [encoder.device for encoder in encoders] or said.count("CUDA cannot be used") == 1


def test_cosines_are_those_of_the_golden_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their images are preprocessed already: resized once more, they would give other features."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    (encoder,) = open_choices(bundle, "cpu")
    images, expected = Bundle.open(bundle).golden()
    ran: list[np.ndarray] = []

    def encode(pixels: np.ndarray) -> np.ndarray:
        ran.append(pixels)
        return expected[: len(pixels)]

    monkeypatch.setattr(encoder, "encode", encode)
    (choice,) = measure_choices([encoder], bundle, images, 0)
    np.testing.assert_array_equal(ran[0], images)
    assert (choice.cosine, choice.batch, len(ran[1])) == (1.0, 32, 32)


def test_another_choice_is_named_only_where_it_is_clearly_faster() -> None:
    plain, same, fast, faster = (
        Choice(device, variant, 32, rate, 1.0)
        for device, variant, rate in (
            ("cpu", "fp32", 100.0), ("other", "fp32", 104.0), ("other", "fp32", 120.0), ("other", "bf16", 200.0)
        )
    )  # fmt: skip
    assert best([plain, same]).options == "--device cpu"
    assert best([plain, same, fast, faster]).options == "--device other --variant bf16"
    assert best([plain, same, fast, faster], ["fp32"]) == fast


@pytest.mark.parametrize(
    ("rates", "named"),
    [
        ({"cpu": 60, "cuda": 2000, "cuda fp16": 2001}, "--device cuda"),
        ({"cpu": 60, "cuda": 2000, "cuda fp16": 4000}, "--device cuda --variant fp16"),
        ({"cpu": 60, "cpu int8": 90, "cuda": 62}, "--device cpu --variant int8"),
        ({"cpu": 100, "cuda": 99}, "--device cuda"),  # what auto takes
        ({"cpu": 60, "openvino": 100, "openvino bf16": 100.1}, "--device openvino"),
        ({"cpu": 60, "cpu int8": 101, "openvino": 100}, "--device openvino"),
        ({"openvino": 100, "openvino bf16": 200}, "--device openvino --variant bf16"),
    ],
)
def test_fewer_bits_are_named_only_where_no_fp32_is_about_as_fast(rates: dict[str, float], named: str) -> None:
    choices = []
    for name, rate in rates.items():
        device, variant = f"{name} fp32".split()[:2]
        choices.append(Choice(device, variant, 32, rate, 1.0))
    assert best(choices).options == named


def test_generated_pictures_are_jpegs_of_the_usual_size() -> None:
    source = generated_pictures()
    assert {source.open(i).size for i in range(len(source))} == {SIZE}
    assert len({source.open(i).tobytes() for i in range(len(source))}) == len(source)
