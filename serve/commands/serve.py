"""`byol serve`: a bundle over HTTP. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path

import click

from byol.console import at_work, note, note_device
from byol.limits import MAX_BATCH_SIZE
from byol.options import of_option
from byol.serve.commands.evaluation import NAMELESS
from byol.serve.commands.options import BUNDLE, device_option, variant_option


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: on all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
@device_option
@click.option(
    "--batch-size",
    type=click.IntRange(1, MAX_BATCH_SIZE),
    help="Most images per run  [default: what suits the device; a CPU takes at most 16]",
)
@variant_option("Precision of the features")
@click.option(
    "--index",
    type=click.Path(exists=True, path_type=Path),
    help="Features that `extract` wrote: the server also finds the nearest images in them.",
)
@click.option("--log/--no-log", default=True, show_default=True, help="Write one line on stderr for each request.")
def serve(
    bundle: Path,
    host: str,
    port: int,
    device: str,
    batch_size: int | None,
    variant: str,
    index: Path | None,
    log: bool,
) -> None:
    """Answer with BUNDLE's features, and classes where it has a classifier, over HTTP (needs the `server` extra).

    One process that uses all cores. SIGTERM lets it finish what it has accepted.
    """
    from byol.serve.server.process import address_of, listen, run
    from byol.serve.server.service import Service

    service = Service(bundle, device, batch_size, variant, index)
    encoder = service.opened
    note_device(device, encoder.device, encoder.reason)
    if service.index and not service.index.is_named:
        note(NAMELESS.format(service.index.name))
    with of_option("--host"):
        listening = listen(host, port)
    architecture = encoder.manifest.architecture.name
    note(
        f"{architecture}, {encoder.image_size} px to {encoder.dim} features"
        f"{f', {len(service.classes)} classes' if service.classes else ''}, {encoder.device}, {encoder.variant}"
    )
    note(f"serving on {address_of(listening)}")
    if not host.startswith("127.") and host not in ("localhost", "::1"):
        note("whoever reaches this address may use it: it has no passwords and no TLS")
    with at_work(str):  # being idle needs no line a minute
        run(service, listening, log)
