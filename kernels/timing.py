"""Time on a GPU: a CUDA graph replayed many times, between events, over inputs that together exceed the L2."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]


def median_seconds(calls: Sequence[Call], device: torch.device, repeats: int) -> float:
    """Seconds per call: the median over `repeats` rounds through `calls`, after a warm-up.

    The calls do the same work on different inputs, so that no call finds its inputs in the cache. On a GPU a round is
    one CUDA graph, so no time includes launch overhead, which the eager contestants would pay many times. Must run on a
    side stream, and all that the calls differentiate must have been computed on that stream.
    """
    for _ in range(3 if device.type == "cuda" else 1):
        for call in calls:
            call()
    if device.type != "cuda":
        rounds = []
        for _ in range(repeats):
            start = time.perf_counter()
            for call in calls:
                call()
            rounds.append(time.perf_counter() - start)
        return statistics.median(rounds) / len(calls)

    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(device)):
        for call in calls:
            call()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    graph.replay()
    for start, stop in events:
        start.record()
        graph.replay()
        stop.record()
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(stop) for start, stop in events) / 1e3 / len(calls)


def input_sets(set_bytes: int, device: torch.device) -> int:
    """How many input sets together are three times as large as the L2; at least two."""
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, -(-3 * cache // set_bytes))


def matmul_ceiling(dtype: torch.dtype, device: torch.device, size: int, repeats: int) -> float:
    """Operations per second of a size³ matrix product through torch's own library, on random numbers."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / median_seconds([lambda: a @ b], device, repeats)


def copy_ceiling(device: torch.device, size: int, repeats: int) -> float:
    """Bytes per second of a copy of `size` bytes, counting bytes read and bytes written."""
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds([lambda: target.copy_(source)], device, repeats)
