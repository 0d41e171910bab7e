"""The network that stays up after the demo: where everything is, and what to look at first."""

from __future__ import annotations

import json
from dataclasses import dataclass

from examples.demo.network import Network
from examples.demo.report import Progress
from examples.demo.watching import QUERIES, graph_url


@dataclass
class Standing:
    """What is told of it."""

    prometheus: str | None = None
    """URL of the Prometheus that scrapes it; None where none is installed."""

    def addresses(self, network: Network) -> dict[str, str | None]:
        """Each by its name; secrets by their files."""
        at = network.addresses
        return {
            "grpc": at.control,
            "sessions": at.sessions,
            "gateway": f"http://{at.gateway}",
            "metrics": f"http://{at.metrics}/metrics",
            "metrics_token_file": str(network.metrics_token_file),
            "prometheus": self.prometheus,
            "admin_token_file": str(network.admin_token_file),
            "ca_file": str(network.ca_file),
            "folder": str(network.folder),
        }

    def json_line(self, network: Network) -> str:
        """One line for programs: addresses, and queries for a first look."""
        return json.dumps({"addresses": self.addresses(network), "queries": QUERIES})

    def show(self, network: Network, progress: Progress) -> None:
        """For people, with commands as they are typed."""
        at = self.addresses(network)
        progress.title("the network stays up until Ctrl-C")
        progress.line(f"export ORCH_URL={at['grpc']} ORCH_TOKEN_FILE={at['admin_token_file']}")
        progress.line("orch status")
        progress.line("orch top")
        progress.line(f"gateway     {at['gateway']}")
        progress.line(f"metrics     {at['metrics']}")
        progress.line(f'            curl --oauth2-bearer "$(cat {at["metrics_token_file"]})" {at["metrics"]}')
        progress.line(f"logs        {network.folder}/*.log")
        if self.prometheus is None:
            return
        progress.line(f"Prometheus  {self.prometheus}")
        for what, query in QUERIES.items():
            progress.line(f"            {what}: {graph_url(self.prometheus, query)}")
