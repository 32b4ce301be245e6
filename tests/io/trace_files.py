"""One small file of each trace format: name, content, and the requests in it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tpplanner.domain.traffic import Traffic

TRACES: Final = Path(__file__).parents[3] / "shared" / "traces"

OWN_CSV: Final = "arrival_s,isl_tok,osl_tok\n1.5,10,2\n1.5,20,1\n4.25,30,7\n"
OWN_LINES: Final = (
    '{"arrival_s": 1.5, "isl_tok": 10, "osl_tok": 2}\n{"isl_tok": 20, "osl_tok": 1, "arrival_s": 1.5}\n'
    '{"arrival_s": 4.25, "isl_tok": 30, "osl_tok": 7}\n'
)
VIDUR: Final = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.314579,396,109\n"
AZURE_2023: Final = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)
AZURE_2024: Final = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01+00:00,2399,6\n"
)
BURSTGPT: Final = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,0,0,0,Conversation log\n118,GPT-4,417,276,693,API log\n120,GPT-4,300,0,300,API log\n"
)
MOONCAKE: Final = (
    '{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}\n'
    '{"timestamp": 3052, "input_length": 2287, "output_length": 316, "hash_ids": [0, 42, 43, 44, 45]}\n'
)


def conversation(*turns: tuple[str, str]) -> dict[str, object]:
    return {"id": "x_0", "conversations": [{"from": speaker, "value": text} for speaker, text in turns]}


SHAREGPT: Final = json.dumps([
    conversation(("human", "q" * 41), ("gpt", "a" * 80), ("human", "q" * 99), ("gpt", "a" * 99)),
    conversation(("system", "s" * 50), ("gpt", "a" * 60), ("human", "q" * 20), ("gpt", "a" * 16)),
    conversation(("human", "no answer, never")),
    conversation(),
])

FILES: Final = {
    "own.csv": OWN_CSV, "own.jsonl": OWN_LINES, "vidur.csv": VIDUR, "azure_2023.csv": AZURE_2023, "azure_2024.csv": AZURE_2024,
    "burstgpt.csv": BURSTGPT, "mooncake.jsonl": MOONCAKE, "sharegpt.json": SHAREGPT,
}


def requests(traffic: Traffic) -> list[tuple[float | None, int, int]]:
    """Return arrival, prompt and output of each request."""
    arrivals: Iterable[float | None] = [None] * traffic.num_requests if traffic.arrival_s is None else traffic.arrival_s.tolist()
    return list(zip(arrivals, traffic.isl_tok.tolist(), traffic.osl_tok.tolist(), strict=True))
