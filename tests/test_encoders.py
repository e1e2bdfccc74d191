"""Encoders: without a sample the prior, and nothing but the samples of the context matters."""

import dataclasses

import numpy as np
import pytest
import torch

from neuralpk.cohort import Cohort, Dose, Subject, Truth
from neuralpk.cohort_batch import collate
from neuralpk.encoders import (
    Encoder,
    Posterior,
    RecurrentEncoder,
    SampleReader,
    SetEncoder,
    feature_size,
    sample_features,
)
from neuralpk.part import describe, make
from neuralpk.scaling import Scaling

SCALING = Scaling(24.0, 100.0, (3.0, 40.0), {"WT": (70.0, 0.2, True)})


def people(truth=0.0):
    known = Truth(np.array([0.0, 24.0]), np.full((2, 1), truth), {"CL": truth})
    more = {"truth": known, "covariates": {"WT": ((0.0, 60.0), (3.0, 90.0))}}
    dose = (Dose(0, 100, row=1), Dose(6, 50, duration=2, row=5))
    return [
        Subject("1", [0.5, 2.0, 8.0, 20.0], [1.0, 2.0, 0.7, 0.1], dose, endpoints=[1, 2, 1, 1], **more),
        Subject("2", [1.0, 12.0], [2.5, 0.4], dose[:1], censored=[0, 1], **more),
        Subject("3", [4.0], [np.nan], (), **more),
    ]


def batch_of(subjects):
    return collate(Cohort(tuple(subjects)), dtype=torch.float64)


def built(encoder):
    encoder.build(SCALING, latent_size=3)
    return encoder.double()


@pytest.fixture(params=[SetEncoder, RecurrentEncoder])
def encoder(request):
    encoder = built(request.param(hidden=8))
    for p in encoder.parameters():  # far from the quiet start, so that everything that can matter does
        torch.nn.init.normal_(p, std=0.5)
    return encoder.requires_grad_(False)


def assert_equal(found, expected):
    # another shape of the batch may round differently
    for name in ("mean", "sd"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-12)


def test_without_a_sample_the_posterior_is_the_prior(encoder):
    posterior = encoder(batch_of(people()))
    assert posterior.mean[2].tolist() == [0.0] * 3
    assert posterior.sd[2].tolist() == [1.0] * 3
    assert float(posterior.kl()[2]) == 0.0
    assert (posterior.sd[:2] < 1).all(), "a sample must add to what is known"


def test_the_prior_of_every_subject_is_standard_normal():
    posterior = Posterior.prior(3, 3, like=batch_of(people()).time)
    assert posterior.mean.shape == (3, 3)
    assert posterior.mean.dtype == torch.float64
    assert posterior.kl().tolist() == [0.0] * 3


def test_the_divergence_from_the_prior_is_that_of_torch():
    mean, sd = torch.randn(4, 3).double(), torch.rand(4, 3).double() + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, sd), normal(0.0 * mean, sd / sd)).sum(-1)
    torch.testing.assert_close(Posterior(mean, sd).kl(), expected)


def test_a_subject_is_read_the_same_alone_and_in_any_batch(encoder):
    together = encoder(batch_of(people()))
    for k, one in enumerate(people()):
        assert_equal(encoder(batch_of([one])), Posterior(together.mean[k : k + 1], together.sd[k : k + 1]))
    turned = encoder(batch_of(people()[::-1]))
    assert_equal(Posterior(turned.mean.flip(0), turned.sd.flip(0)), together)


def test_the_padding_does_not_matter(encoder):
    batch = batch_of(people())
    seen = {name: torch.where(batch.mask, getattr(batch, name), 7.0) for name in ("time", "value")}
    seen |= {name: torch.where(batch.mask, getattr(batch, name), 1) for name in ("endpoint", "censored")}
    doses = {name: torch.where(batch.doses.mask, getattr(batch.doses, name), 3.0) for name in ("time", "amount")}
    changed = dataclasses.replace(batch, **seen, doses=dataclasses.replace(batch.doses, **doses))
    assert_equal(encoder(changed), encoder(batch))


def test_a_sample_outside_the_context_does_not_matter(encoder):
    batch = batch_of(people())
    hidden = batch.context.clone()
    hidden[0, 1] = False
    batch = dataclasses.replace(batch, context=hidden)
    value, time = batch.value.clone(), batch.time.clone()
    value[0, 1], time[0, 1] = 55.0, 2.5
    assert_equal(encoder(dataclasses.replace(batch, value=value, time=time)), encoder(batch))
    # and it is as if it had never been taken
    first = people()[0]
    kept = [0, 2, 3]
    left = dataclasses.replace(first, **{n: getattr(first, n)[kept] for n in ("times", "values", *FIELDS)})
    found = encoder(batch_of([left]))
    expected = encoder(batch)
    assert_equal(found, Posterior(expected.mean[:1], expected.sd[:1]))


FIELDS = ("compartments", "endpoints", "censored", "limits", "rows")


@pytest.mark.parametrize("name", ["value", "time", "doses.amount", "doses.time", "covariates"])
def test_everything_that_was_measured_or_given_matters(encoder, name):
    batch = batch_of(people())
    of, _, inner = name.partition(".")
    value = getattr(batch, of)
    moved = dataclasses.replace(value, **{inner: getattr(value, inner) + 0.01}) if inner else value + 0.01
    changed = dataclasses.replace(batch, **{of: moved})
    assert not torch.allclose(encoder(changed).mean[0], encoder(batch).mean[0], rtol=1e-9, atol=0.0)


def test_the_truth_does_not_matter(encoder):
    assert_equal(encoder(batch_of(people(truth=1e6))), encoder(batch_of(people())))


def test_what_is_scored_does_not_matter(encoder):
    batch = batch_of(people())
    assert_equal(encoder(dataclasses.replace(batch, target=~batch.target)), encoder(batch))


def test_a_set_has_no_order():
    encoder = built(SetEncoder(hidden=8)).requires_grad_(False)
    torch.nn.init.normal_(encoder.posterior.factors.weight)
    batch = batch_of(people())
    order = torch.tensor([2, 0, 3, 1])
    names = ("time", "value", "endpoint", "censored", "context", "mask", "observed", "target")
    assert_equal(encoder(dataclasses.replace(batch, **{n: getattr(batch, n)[:, order] for n in names})), encoder(batch))


def test_the_clock_of_a_subject_may_start_anywhere(encoder):
    moved = [
        dataclasses.replace(
            s,
            times=s.times + 1000,
            doses=[dataclasses.replace(d, time=d.time + 1000) for d in s.doses],
            covariates={"WT": tuple((t + 1000, v) for t, v in s.covariates["WT"])},
        )
        for s in people()
    ]
    assert_equal(encoder(batch_of(moved)), encoder(batch_of(people())))


def test_features_are_finite_and_say_what_was_given():
    batch = batch_of(people())
    features = sample_features(batch, SCALING)
    assert features.shape[-1] == feature_size(SCALING)
    assert features.isfinite().all()
    # columns 4 and 6: the time after the last dose, and log(1 + everything given until then)
    np.testing.assert_allclose(features[0, :, 4], np.array([0.5, 2.0, 2.0, 14.0]) / 24)
    np.testing.assert_allclose(features[0, :, 6], np.log1p([1.0, 1.0, 1.5, 1.5]))
    # the weight of the time: 60 until 3 h, then 90
    np.testing.assert_allclose(features[0, :, -1], np.log(np.array([60, 60, 90, 90]) / 70) / 0.2)


def test_the_gradient_reaches_every_weight_and_only_from_samples(encoder):
    encoder.requires_grad_(True)
    posterior = encoder(batch_of(people()))
    (posterior.mean[:2].sum() + posterior.sd[:2].sum()).backward()
    for name, p in encoder.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name
    encoder.zero_grad()
    encoder(batch_of(people()[2:])).mean.sum().backward()
    assert all(not p.grad.any() for p in encoder.parameters() if p.grad is not None)


def test_the_mean_is_learned_also_where_precisions_have_become_small(encoder):
    layer = encoder.requires_grad_(True).posterior.factors
    with torch.no_grad():
        layer.bias[: encoder.latent_size] = -50.0
    q = encoder(batch_of(people()))
    assert (1 - q.sd).abs().max() < 1e-9  # as good as the prior
    (slope,) = torch.autograd.grad(q.log_density(torch.ones_like(q.mean)[:, None]).sum(), layer.weight)
    assert slope[encoder.latent_size :].abs().max() > 0.1


def test_precisions_keep_a_gradient_however_large_what_is_read_becomes(encoder):
    layer = encoder.requires_grad_(True).posterior.factors
    read = -1e6 * layer.weight[0].detach()[None, None]  # as far against the first precision as can be
    q = encoder.posterior(read, torch.ones(1, 1, dtype=torch.bool))
    (slope,) = torch.autograd.grad(q.log_density(torch.ones_like(q.mean)[:, None]).sum(), layer.bias)
    assert slope[0].abs() > 1e-4


def test_a_reader_knows_a_sample_and_all_later_ones_only():
    reader = SampleReader(hidden=8).build(SCALING).double().requires_grad_(False)
    batch = batch_of(people())
    value = batch.value.clone()
    value[0, 1] += 1.0
    before, after = reader(batch)[0], reader(dataclasses.replace(batch, value=value))[0]
    assert before.shape == (4, 8)
    assert (before != after).any(1).tolist() == [True, True, False, False]


def test_an_encoder_is_made_again_from_its_description():
    for encoder in (SetEncoder(), SetEncoder(hidden=8), RecurrentEncoder(hidden=8)):
        again = make(describe(encoder), Encoder, "encoder")
        assert (type(again), again.hidden) == (type(encoder), encoder.hidden)
    assert describe(SetEncoder(hidden=8)) == {"class_path": "neuralpk.encoders.SetEncoder", "init_args": {"hidden": 8}}


@pytest.mark.parametrize("kind", [SetEncoder, RecurrentEncoder, SampleReader])
def test_a_width_is_at_least_one(kind):
    with pytest.raises(ValueError, match="hidden, the width of the encoder, must be 1 or more, got 0"):
        kind(hidden=0)
