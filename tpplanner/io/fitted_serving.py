"""Serving terms of a fitted profile and their residual models, to and from their records."""

import math
from typing import Final

from tpplanner.domain.serving_fit import SERVING_TERMS, CovarianceTerm, ResidualModel, ServingFit, ServingTerms
from tpplanner.errors import ProfileError, reject
from tpplanner.io.fitted_numbers import column, quantity_of, quantity_record, rounded
from tpplanner.io.fitted_records import CovarianceRecord, QuantityRecord, ResidualRecord, ServingRecord

_LENGTHS: Final = ("num_seqs_len", "tp_len", "isl_len", "osl_len")


def _covariance_record(term: CovarianceTerm) -> CovarianceRecord:
    lengths = {name: getattr(term, name) for name in _LENGTHS}
    return CovarianceRecord(std_frac=rounded(term.std_frac), within=term.within,
                            **{name: rounded(v) for name, v in lengths.items() if math.isfinite(v)})


def _covariance(record: CovarianceRecord) -> CovarianceTerm:
    given = {name: getattr(record, name) for name in _LENGTHS}
    return CovarianceTerm(std_frac=float(record.std_frac), within=record.within,
                          **{name: float(v) for name, v in given.items() if v is not None})


def _residual_record(model: ResidualModel) -> ResidualRecord:
    keys = tuple(dict.fromkeys(model.model_keys))
    index = {key: i for i, key in enumerate(keys)}
    return ResidualRecord(
        noise_std_frac=rounded(model.noise_std_frac), terms=tuple(map(_covariance_record, model.terms)), model_keys=keys,
        model=tuple(index[key] for key in model.model_keys), num_seqs=column(model.num_seqs), tp=column(model.tp),
        isl_tok=column(model.isl_tok), osl_tok=column(model.osl_tok), weights=column(model.weights),
    )


def _residual(record: ResidualRecord, dotted: str) -> ResidualModel:
    if any(i >= len(record.model_keys) for i in record.model):
        reject(ProfileError, f"{dotted}.model", f"count in the {len(record.model_keys)} model_keys", max(record.model))
    return ResidualModel(
        terms=tuple(map(_covariance, record.terms)), noise_std_frac=float(record.noise_std_frac),
        model_keys=tuple(record.model_keys[i] for i in record.model), num_seqs=tuple(map(float, record.num_seqs)),
        tp=tuple(map(float, record.tp)), isl_tok=tuple(map(float, record.isl_tok)),
        osl_tok=tuple(map(float, record.osl_tok)), weights=tuple(map(float, record.weights)),
    )


def _terms(table: dict[str, QuantityRecord], dotted: str, source: str) -> ServingTerms:
    unknown, missing = sorted(set(table) - set(SERVING_TERMS)), sorted(set(SERVING_TERMS) - set(table))
    if unknown or missing:
        reject(ProfileError, dotted, f"have the terms {', '.join(SERVING_TERMS)}", unknown or f"none for {missing}")
    return ServingTerms(**{name: quantity_of(table[name], name, source=source) for name in SERVING_TERMS})


def serving_record(fit: ServingFit) -> ServingRecord:
    """Return the record of a serving fit; machine and engine are the file's."""
    return ServingRecord(
        source=fit.source, num_runs=fit.num_runs,
        tpot={kind: _residual_record(model) for kind, model in fit.tpot.items()},
        ttft={kind: _residual_record(model) for kind, model in fit.ttft.items()},
        terms={name: {term: quantity_record(getattr(terms, term), source=fit.source) for term in SERVING_TERMS}
               for name, terms in fit.terms.items()},
    )


def serving_of(record: ServingRecord, *, machine: str, engine: str) -> ServingFit:
    """Return the serving fit of a record.

    Raises
    ------
    ProfileError
        A term is missing or unknown, or makes no sense.
    """
    try:
        return ServingFit(
            machine=machine, engine=engine, source=record.source, num_runs=record.num_runs,
            terms={name: _terms(table, f"terms.{name}", record.source) for name, table in record.terms.items()},
            tpot={kind: _residual(model, f"tpot.{kind}") for kind, model in record.tpot.items()},
            ttft={kind: _residual(model, f"ttft.{kind}") for kind, model in record.ttft.items()},
        )
    except ProfileError as error:
        raise ProfileError(f"serving: {error}") from None
