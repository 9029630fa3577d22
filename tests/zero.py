"""The two processes of a test in test_torch.py: ``python zero.py RANK FILE``. They meet through the file."""

from __future__ import annotations

import copy
import sys

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer

import fusedstep.torch

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
for name in fusedstep.torch.__all__:
    cls = getattr(fusedstep.torch, name)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    same = copy.deepcopy(model)
    sharded = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=cls, lr=0.01)
    whole = cls(same.parameters(), lr=0.01)
    for _ in range(5):
        x = torch.randn(32, 8)
        for optimizer, net in ((sharded, model), (whole, same)):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        assert all(map(torch.equal, model.parameters(), same.parameters())), name
    assert 0 < len(sharded.optim.state) < len(whole.state), name
    sharded.consolidate_state_dict(to=0)
    if rank == 0:
        found, expected = sharded.state_dict()["state"], whole.state_dict()["state"]
        assert found.keys() == expected.keys()
        for key, states in expected.items():
            for state, value in states.items():
                assert torch.equal(torch.as_tensor(found[key][state]), torch.as_tensor(value)), (name, key, state)
dist.destroy_process_group()
