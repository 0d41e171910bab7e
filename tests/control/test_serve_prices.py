"""`orch serve --price-file`: what it warns of, what it refuses, and what quotes then compare with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from orchestrator.api.v1 import jobs_pb2, jobs_pb2_grpc
from orchestrator.cli.client import open_channel
from tests.control.serving import START_S, Serve, command, environment, serving

MODEL = "RTX4090"
HOUR_MS = 3_600_000


def prices(folder: Path, day: str, providers: str = "abc") -> Path:
    """A file in which each provider asks half a dollar."""
    file = folder / "prices.toml"
    entry = 'model = "{}"\nprovider = "{}"\nregion = "eu"\ndate = {}\nusd_per_gpu_hour = "0.50"\n'
    file.write_text("\n".join(f"[[price]]\n{entry.format(MODEL, name, day)}" for name in providers))
    return file


def quoted(serve: Serve) -> jobs_pb2.GetQuoteResponse:
    """A quote for one hour of the model."""
    _, metadata = serve.operator()
    request = jobs_pb2.GetQuoteRequest(metadata={"orch.gpu_model": MODEL}, duration_ms=HOUR_MS)
    authorities = Path(serve.endpoints["ca_file"]).read_bytes()
    with open_channel(serve.endpoints["grpc"], authorities) as channel:
        stub = jobs_pb2_grpc.JobsServiceStub(channel)
        answer: jobs_pb2.GetQuoteResponse = stub.GetQuote(request, metadata=metadata)
    return answer


def test_serve_price_file_sets_market_and_comparison_and_warns_of_old_prices(tmp_path: Path) -> None:
    file = prices(tmp_path, "2020-01-02")
    with serving(tmp_path / "data", "--price-file", str(file)) as serve:
        quote = quoted(serve).quote
        warnings = [json.loads(line) for line in serve.log.read_text().splitlines()]
    assert quote.cloud_median_microcredits == 500_000
    assert quote.below_median_bp >= 1_000
    said = [line["said"] for line in warnings if line["event"] == "price_file"]
    assert len(said) == 3
    assert all("2020-01-02" in one and str(file) in one for one in said)


def test_serve_without_price_file_compares_with_nobody_and_names_the_option(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as serve:
        quote = quoted(serve).quote
    assert not quote.HasField("cloud_median_microcredits")
    assert "--price-file" in quote.reasons[-1]


def test_serve_price_file_that_cannot_be_used_is_one_line_and_exit_2(tmp_path: Path) -> None:
    file = prices(tmp_path, "tomorrow")
    done = subprocess.run(
        command(tmp_path / "data"),
        env=environment() | {"ORCH_PRICE_FILE": str(file)},
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("orch: --price-file: ")
    assert str(file) in line
