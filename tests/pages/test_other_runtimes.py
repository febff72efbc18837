"""Bundles are reproduced by runtimes that are not ours: onnxruntime-web in Node and in Chromium, onnx's evaluator."""

from __future__ import annotations

import functools
import html
import http.server
import json
import shutil
import subprocess
import threading

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from byol.bundle.folder import Bundle
from byol.bundle.parity import GATES, compare_features
from tests.support.small import REPOSITORY
from tests.support.web.browser import CHROMIUM

NODE, NPM = shutil.which("node") or "", shutil.which("npm") or ""


@pytest.fixture(scope="module")
def web(tmp_path_factory, place, classified):
    """A site: the test's page, the documented function, onnxruntime-web from npm, and a bundle with every graph."""
    if not (NODE and NPM):
        pytest.skip("Node.js and npm are not installed")
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(REPOSITORY / "docs" / "browser", site / "docs" / "browser")
    shutil.copytree(REPOSITORY / "tests" / "pages" / "web", site / "tests" / "web")
    words = [NPM, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    done = subprocess.run(words, cwd=site / "tests" / "web", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install onnxruntime-web: {done.stderr.strip().splitlines()[:1]}")
    (site / "bundle").symlink_to(place / "with")
    return site


def assert_reproduced(figures, place):
    manifest = Bundle.open(place / "with").manifest
    assert set(figures) == {*manifest.graphs, "features.js"}
    for name, found in figures.items():
        gate = GATES["encoder.any-size.onnx" if name == "features.js" else name]
        assert gate.problem(found["error"], found["cosine"]) is None, (name, found)


def test_node_reproduces_every_graph(web, place):
    command = [NODE, "node.js", str(web / "bundle")]
    done = subprocess.run(command, cwd=web / "tests" / "web", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_reproduced(json.loads(done.stdout.splitlines()[-1]), place)


@pytest.fixture
def server(web):
    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}  # noqa: RUF012

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(web)))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_chromium_reproduces_every_graph(web, server, place, tmp_path):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=600000", "--timeout=300000", "--dump-dom"]
    done = subprocess.run([*command, f"{server}/tests/web/page.html"], capture_output=True, text=True, check=False)
    text = html.unescape(done.stdout.partition("<pre>")[2].partition("</pre>")[0])
    assert text, done.stderr
    figures = json.loads(text)
    assert "failed" not in figures, figures
    assert_reproduced(figures, place)


@pytest.mark.parametrize("graph", ["encoder.onnx", "encoder.any-size.onnx", "classifier.onnx"])
def test_onnxs_reference_evaluator_reproduces_the_golden_outputs(place, classified, graph):
    bundle = Bundle.open(place / "with")
    images, expected = bundle.golden(graph)
    evaluator = ReferenceEvaluator(onnx.load_model_from_string(bundle.read(graph)))
    found = np.asarray(next(iter(evaluator.run(None, {"images": images[:1]}))))
    assert GATES[graph].problem(*compare_features(expected[:1], found)) is None
