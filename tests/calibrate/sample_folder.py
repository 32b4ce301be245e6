"""A folder of samples of a processor that does not exist, from known coefficients."""

import msgspec
from test_calibration_fit import gemm_samples, host_samples, layer_samples, sampling_samples, step_samples

NAME = "cpu-a-cpu-9000"
FACTS = {"device": "cpu", "name": "A CPU (tm) 9000", "torch": "2.13", "num_cores": 2, "cache_bytes": 2**20,
         "host_memory_bytes": 16 * 2**30}


def frames():
    heads = {"kv_dtype": "fp32", "num_kv_heads": 4, "head_dim": 64}
    return {
        "gemm": gemm_samples(1).to_dict("records"),
        "decode_attention": [{**heads, "num_seqs": n, "context_tok": c, "num_heads": 8, "latency_s": 20e-6 + n * c * 2e-6}
                             for n in (1, 4, 16, 64) for c in (64, 256, 1024, 4096)],
        "prefill_attention": [{**heads, "isl_tok": c, "prefix_tok": 0, "num_heads": h, "latency_s": 2e-5 + c * c * h * 2e-9}
                              for c in (32, 64, 128, 256, 512, 1024) for h in (4, 8)],
        "layer": layer_samples(20e9).to_dict("records"), "sampling": sampling_samples().to_dict("records"),
        "host": host_samples().to_dict("records"), "step": step_samples().to_dict("records"),
        "collective": [{"op": op, "tp": 2, "mode": "between", "size_bytes": s, "latency_s": 5e-5 + s * 1e-9}
                       for op in ("all_reduce", "all_gather", "all_to_all") for s in (1024, 16384, 2**20, 2**24)],
        "memory": [{"kernel": "copy", "size_bytes": 2**28, "moved_bytes": 2.0**29, "latency_s": 2.0**29 / 20e9}],
    }


def write_samples(folder, facts=FACTS):
    """Write machine.json and one file per benchmark."""
    folder.mkdir(parents=True)
    (folder / "machine.json").write_bytes(msgspec.json.encode(facts))
    for bench, rows in frames().items():
        with (folder / f"{bench}.jsonl").open("wb") as file:
            for row in rows:
                latency_s = float(row.pop("latency_s"))
                values = {name: float(row.pop(name)) for name in ("moved_bytes",) if name in row}
                case = {k: v if isinstance(v, str) else int(v) for k, v in row.items()}
                file.write(msgspec.json.encode({"bench": bench, "case": case, "times_s": [latency_s], "timer": "host",
                                                "values": values}) + b"\n")
