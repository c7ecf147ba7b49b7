"""Several processes train one model: torch's FSDP2 shards the frozen matrices; each process holds all that trains.

    torchrun --nproc-per-node 2 -m minibeft finetune Llama-2-7b --task sst2 --terms v --dtype bfloat16

Only the matrices are large; they are gathered block by block, when a block computes. The trainable parameters are a few
thousand, so every process holds all of them and their optimiser. Each process scores its share of a batch; the scores
are gathered, so that loss and metrics are those of the whole batch everywhere, and the gradients are summed. So without
dropout the losses are those of one process up to rounding; for dropout each process draws its own random numbers. A
stack (stack.py) shares out the batch of each of its runs in this way.

One GPU of 80 GB is enough for 7B parameters. In bfloat16 LLaMA-2-7B has 6.48e9 parameters in the blocks' matrices, 2
bytes each, and 0.26e9 others, 4 bytes each: 14.0 GB. For the backward pass autograd keeps 16 C + 6 I bytes per token
and layer (C width, I the MLP's): 132 kB, 4.2 MB over 32 layers, and 0.4 MB for the logits of 32,000 tokens. So a batch
may have some 14,000 tokens; SST-2's 8 prompts have 500.
"""

import atexit
import os
import time
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from minibeft.errors import BadInput
from minibeft.models.transformer import Transformer
from minibeft.training.batches import Scorable

Kind = TypeVar("Kind", bound=Scorable)


def join() -> None:
    """Meet the other processes, where torchrun started several; afterwards "cuda" is this process's own GPU."""
    if not dist.is_torchelastic_launched() or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(leave)


def leave() -> None:
    """Part from the others at the interpreter's end.

    Gloo's threads outlive the group, because the mesh still holds it, and need the interpreter's lock to free the last
    tensors. Once the interpreter is gone, this aborts the process (pytorch/pytorch#179291). The pause gives them time.
    """
    dist.destroy_process_group()
    time.sleep(0.5)


def processes() -> int:
    """How many train together; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 is the one that writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def wait() -> None:
    """Wait until all processes are here."""
    if processes() > 1:
        dist.barrier()


def from_all(value: Any) -> list[Any]:
    """Every process's value, by rank."""
    values = [value] * processes()
    if processes() > 1:
        dist.all_gather_object(values, value)
    return values


def own_seed(seed: int) -> int:
    """The seed from which this process draws its random numbers, for a run of the given seed."""
    return seed + 1_000_003 * rank()


def place(model: Transformer, trained: Iterable[nn.Parameter], device: str) -> None:
    """Move the model to its device; with several processes, shard every frozen matrix outside a classification head.
    In a model that is sharded already, only the parameters that the next run of a stack trains are set up."""
    if processes() == 1:
        model.to(device)
        model.join()
        return
    from torch.distributed.fsdp import FSDPModule

    trained = list(trained)
    inner = {*trained} & {*model.blocks.parameters()}
    if any(value.ndim > 1 and value.numel() >= model.config.width**2 for value in inner):
        raise BadInput("--terms full trains in one process: start it without torchrun")
    head = model.head.parameters() if model.head is not None and model.config.task != "lm" else ()
    whole = {value for value in model.parameters() if value.ndim < 2} | {*trained, *head}
    for value in whole:
        value.data = value.data.to(device)
    if not isinstance(model, FSDPModule):
        shard(model, whole, device)
    for value in trained:
        value.register_post_accumulate_grad_hook(lambda value: dist.all_reduce(value.grad))


def shard(model: Transformer, whole: set[nn.Parameter], device: str) -> None:
    """Shard every matrix but these: this process keeps its share, and a matrix is gathered when its block computes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device, (processes(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, ignored_params=whole)
        register_fsdp_forward_method(block, "packed")
    fully_shard(model, mesh=mesh, ignored_params=whole)
    register_fsdp_forward_method(model, "first_states")


def scores(batch: Scorable, model: Transformer) -> Float[Tensor, "B K"]:
    """The scores of the whole batch, of which this process computes its share."""
    return gathered(share(batch).scores(model), len(batch.labels))


def share(batch: Kind) -> Kind:
    """This process's rows of a batch. Every process takes part in every step: if the rows do not divide evenly, copies
    of the batch's last row take the missing places."""
    if processes() == 1:
        return batch
    size = -(-len(batch.labels) // processes())
    rows = torch.arange(rank() * size, (rank() + 1) * size, device=batch.labels.device).clamp(max=len(batch.labels) - 1)
    return type(batch)(*(part[rows] for part in cast(tuple[Tensor, ...], batch)))


def gathered(own: Float[Tensor, "b K"], count: int) -> Float[Tensor, "B K"]:
    """The first `count` rows of all processes' shares. Only this process's own rows carry a gradient."""
    if processes() == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(processes())]
    dist.all_gather(parts, own.detach().contiguous())
    parts[rank()] = own
    return torch.cat(parts)[:count]
