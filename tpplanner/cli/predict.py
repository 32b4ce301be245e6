"""``tpplanner predict``."""

import sys
from pathlib import Path

import click


@click.command()
@click.option("--cases", "cases_path", required=True, metavar="CSV",
              help="Columns id, model, system, engine, tp, isl, osl; one load of concurrency, request_rate, batch "
                   "(all per replica) or offline; optional dtype, kv_cache_dtype, gpu_memory_utilization, "
                   "max_num_seqs, ep.")
@click.option("--out", "out_path", required=True, metavar="CSV",
              help="Columns id, status, pred_ttft_ms, pred_tpot_ms, pred_throughput_tok_s, kv_capacity_tok.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output file.")
def predict(cases_path: str, out_path: str, overwrite: bool) -> None:
    """Predict many deployments at once; a bad row is reported in its status and stops no other."""
    from tpplanner.api.cases import predict_rows, prediction_notes
    from tpplanner.io.cases import predictions_csv, read_cases
    from tpplanner.io.files import check_writable, write_text_whole

    check_writable(Path(out_path), overwrite=overwrite)
    cases = read_cases(cases_path)
    with click.progressbar(predict_rows(cases), length=len(cases.rows), label="predict", file=sys.stderr,
                           hidden=not sys.stderr.isatty()) as rows:
        done = list(rows)
    write_text_whole(Path(out_path), predictions_csv(done), overwrite=overwrite)
    for note in prediction_notes(cases, done):
        click.echo(note, err=True)
    good = sum(row["status"] == "ok" for row in done)
    oom = sum(row["status"] == "OOM" for row in done)
    bad = len(done) - good - oom
    click.echo(f"{good} predicted, {oom} out of memory, {bad} {'error' if bad == 1 else 'errors'} -> {out_path}", err=True)
