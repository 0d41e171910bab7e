"""Train a small model by torch on RANKS machines, as training is done: each rank its own data, gradients all-reduced.

Prints what it came to, once the parameters of all ranks are the same to the bit. Usage: train_torch.py RANKS.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import ray

PORT = 29_500
"""Where torch's ranks meet: above Ray's ports, in a network of this cluster's own."""

STEPS = 20
ROWS, COLUMNS = 64, 8
LEARNING_RATE = 0.1


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


class Trainer:
    """One rank on one GPU's machine."""

    def address(self) -> str:
        return str(ray.util.get_node_ip_address())

    def train(self, rank: int, ranks: int, host: str) -> dict[str, Any]:
        # The runtime has it, whatever checks this file has not.
        torch = importlib.import_module("torch")
        distributed = importlib.import_module("torch.distributed")
        distributed.init_process_group(
            "gloo", init_method=f"tcp://{host}:{PORT}", rank=rank, world_size=ranks
        )
        # Each rank begins elsewhere, and takes what rank 0 has.
        torch.manual_seed(rank)
        model = torch.nn.Sequential(torch.nn.Linear(COLUMNS, ROWS), torch.nn.ReLU(), torch.nn.Linear(ROWS, 1))
        for parameter in model.parameters():
            distributed.broadcast(parameter.data, 0)
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        truth = torch.arange(COLUMNS, dtype=torch.float32) / COLUMNS
        losses = []
        for _ in range(STEPS):
            inputs = torch.randn(ROWS, COLUMNS)
            loss = torch.nn.functional.mse_loss(model(inputs).squeeze(1), inputs @ truth)
            optimizer.zero_grad()
            loss.backward()
            for parameter in model.parameters():
                distributed.all_reduce(parameter.grad)
                parameter.grad /= ranks
            optimizer.step()
            losses.append(float(loss.detach()))
        distributed.destroy_process_group()
        return {
            "parameters": [parameter.detach().flatten().tolist() for parameter in model.parameters()],
            "first": losses[0],
            "last": losses[-1],
        }


def train(ranks: int) -> None:
    ray.init(log_to_driver=False)
    trainer = ray.remote(Trainer).options(num_gpus=1, scheduling_strategy="SPREAD")
    trainers = [trainer.remote() for _ in range(ranks)]
    addresses = ray.get([one.address.remote() for one in trainers])
    assert len(set(addresses)) == ranks, addresses
    found = ray.get([one.train.remote(rank, ranks, addresses[0]) for rank, one in enumerate(trainers)])
    assert all(one["parameters"] == found[0]["parameters"] for one in found)
    assert all(one["last"] < one["first"] for one in found), found
    # On different rows, so these are different ranks.
    assert len({one["first"] for one in found}) == ranks
    say("trained alike on", *sorted(addresses))


if __name__ == "__main__":
    train(int(sys.argv[1]))
