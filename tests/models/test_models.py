import copy
import math
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mbpo_cli.build import build_model
from mbpo_cli.config.compose import make_config
from mbpo_cli.config.typed import Config
from mbpo_cli.failures import ConfigError
from mbpo_cli.models.environment_model import EnvironmentModel
from mbpo_cli.models.fit import ModelFitter, ModelTrainingOptions
from mbpo_cli.models.function import Normalizer
from mbpo_cli.models.is_done import LearnedIsDone
from mbpo_cli.models.regression import Regression
from mbpo_cli.models.reward import LearnedReward
from mbpo_cli.nn.networks import (
    NARROW,
    Activation,
    BatchedMLP,
    hidden_products_in,
    truncated_normal,
    uniform,
)
from mbpo_cli.types import Metrics, SpaceSpec, Transitions
from tests.conftest import TINY, random_transitions, spaces

SPACE = spaces((3, 1), action_size=2)
LEARNED = (*TINY, "model/reward=gaussian", "model/is_done=learned")


def built(config: Config, space: SpaceSpec = SPACE) -> EnvironmentModel:
    return build_model(config, space, torch.device("cpu"))


def fitter(model_training: ModelTrainingOptions, seed: int = 0, capacity: int = 1000) -> ModelFitter:
    return ModelFitter(model_training, capacity, torch.Generator().manual_seed(seed))


def parameters(model: EnvironmentModel) -> dict[str, list[Tensor]]:
    return {
        name: [p.detach().clone() for p in getattr(model, name).network.parameters()]
        for name in ("transition", "reward", "is_done")
        if hasattr(getattr(model, name), "network")
    }


def changed(before: list[Tensor], after: list[Tensor]) -> bool:
    return any(not torch.equal(b, a) for b, a in zip(before, after, strict=True))


@pytest.mark.parametrize("num_members", [1, 2, 5])
@pytest.mark.parametrize("columns", [1, 2, NARROW - 1, NARROW])
@pytest.mark.parametrize("activation", [functional.silu, functional.relu])
@pytest.mark.parametrize("is_compiling", [False, True])
def test_a_batched_network_equals_its_members_evaluated_one_by_one(
    num_members: int,
    columns: int,
    activation: Activation,
    is_compiling: bool,
    g: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_compiling)
    mlp = BatchedMLP(num_members, (4, 20, 8, columns), activation, truncated_normal, g)
    inputs = torch.randn(num_members, 6, 4, generator=g)
    outputs, expected = mlp(inputs), []
    for member in range(num_members):
        hidden = inputs[member]
        for layer, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
            hidden = hidden @ weight[member] + bias[member]
            if layer < 2:
                hidden = activation(hidden, inplace=False)
        expected.append(hidden)
    one_by_one = torch.stack(expected)
    torch.testing.assert_close(outputs, one_by_one)
    slopes = torch.randn(outputs.shape, generator=g)
    gradients = [torch.autograd.grad(v, list(mlp.parameters()), slopes) for v in (outputs, one_by_one)]
    for got, right in zip(*gradients, strict=True):
        torch.testing.assert_close(got, right)
    before = inputs.clone()
    with torch.no_grad():
        assert torch.equal(mlp(inputs), outputs)
    assert torch.equal(inputs, before)


@pytest.mark.parametrize("num_members", [1, 3])
@pytest.mark.parametrize("hidden", [[], [32], [32, 24], [20, 20, 8]])
def test_in_bfloat16_only_products_between_hidden_layers_are_rounded(
    num_members: int, hidden: list[int], g: torch.Generator
) -> None:
    exact = BatchedMLP(num_members, (4, *hidden, 2), functional.silu, uniform, g)
    with hidden_products_in(torch.bfloat16):
        rounded = BatchedMLP(num_members, (4, *hidden, 2), functional.silu, uniform, g)
    rounded.load_state_dict(exact.state_dict())
    rounded = copy.deepcopy(rounded)  # like a target network
    inputs = torch.randn(num_members, 50, 4, generator=g)
    slopes = torch.randn(num_members, 50, 2, generator=g)
    right, got = (
        [network(inputs), *torch.autograd.grad(network(inputs), list(network.parameters()), slopes)]
        for network in (exact, rounded)
    )
    for exactly, roughly in zip(right, got, strict=True):
        assert roughly.dtype == torch.float32
        assert (roughly - exactly).norm() <= 0.02 * exactly.norm()
    assert all(map(torch.equal, right, got)) == (len(hidden) < 2)
    with torch.no_grad():
        assert torch.equal(rounded(inputs), got[0])


def test_selected_members_are_evaluated_in_the_given_order(g: torch.Generator) -> None:
    mlp = BatchedMLP(4, (2, 8, 2), functional.silu, truncated_normal, g)
    inputs = torch.randn(2, 5, 2, generator=g)
    everyone = mlp(inputs[:1].expand(4, -1, -1))[3], mlp(inputs[1:].expand(4, -1, -1))[1]
    together = mlp(inputs, torch.tensor([3, 1]))
    torch.testing.assert_close(together, torch.stack(everyone))
    with torch.no_grad():  # evaluated one after the other
        torch.testing.assert_close(mlp(inputs, torch.tensor([3, 1])), together)


def test_initial_weights_differ_between_members_and_are_truncated(g: torch.Generator) -> None:
    mlp = BatchedMLP(3, (100, 50), functional.silu, truncated_normal, g)
    weight = mlp.weights[0].detach()
    assert not torch.equal(weight[0], weight[1])
    std = 1 / (2 * 100**0.5)
    assert weight.abs().max() <= 2 * std
    assert weight.std() == pytest.approx(0.88 * std, rel=0.02), (
        "the deviation of a normal truncated at two deviations"
    )


def test_a_constant_dimension_is_not_scaled() -> None:
    normalizer = Normalizer(3, torch.device("cpu"))
    values = torch.stack((torch.randn(50), torch.full((50,), 3.7), torch.full((50,), 1e6)), dim=1)
    normalizer.fit(values)
    assert normalizer.std[1:].tolist() == [1.0, 1.0]
    slightly_off = values + 0.01
    assert normalizer(slightly_off)[:, 1].abs().max() < 0.1


@pytest.mark.parametrize("distribution", ["deterministic", "gaussian"])
def test_a_regression_fits_a_noisy_function(distribution: str, g: torch.Generator) -> None:
    net = Regression(distribution, 2, 1, [16], (1,), g)  # type: ignore[arg-type]
    inputs = torch.rand(256, 1, generator=g) * 4 - 2
    noise = 0.1 * torch.randn(256, 1, generator=g)
    targets = 50 + 10 * inputs.square() + noise
    net.fit_normalizers(inputs, targets)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        _, objective = net.losses(inputs.expand(2, -1, -1), targets.expand(2, -1, -1))
        objective.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    mean, log_variance = net.moments(inputs.expand(2, -1, -1))
    assert (mean - targets).square().mean().sqrt() < 0.5, "in the targets' own units"
    if log_variance is not None:
        error = (mean - targets).square().mean().sqrt()
        assert 0.5 < (0.5 * log_variance).exp().mean() / error < 2, "the deviation matches the error"


@pytest.mark.parametrize("distribution", ["deterministic", "gaussian"])
def test_elements_with_small_and_large_units_are_learned_equally_well(
    distribution: str, g: torch.Generator
) -> None:
    net = Regression(distribution, 1, 2, [16], (2,), g)  # type: ignore[arg-type]
    inputs = torch.rand(1, 256, 2, generator=g) * 4 - 2
    targets = torch.stack((1e-9 * inputs[0, :, 0].square(), 1e6 * inputs[0, :, 1].square()), dim=-1)
    net.fit_normalizers(inputs[0], targets)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        _, objective = net.losses(inputs, targets[None])
        objective.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    error = (net.moments(inputs)[0][0] - targets).square().mean(0).sqrt() / targets.std(0)
    assert error.max() < 0.1
    if distribution == "deterministic":  # the reported loss is in the targets' own units
        mean = net.moments(inputs)[0]
        by_hand = 0.5 * (mean - targets).square().mean()
        torch.testing.assert_close(net.losses(inputs, targets[None])[0], by_hand[None])


def test_log_variance_limits_are_soft_learned_and_penalized(g: torch.Generator) -> None:
    net = Regression("gaussian", 1, 1, [4], (2,), g)
    with torch.no_grad():
        net.mlp.biases[-1][..., 2:] = 1000.0
    _, log_variance = net.moments(torch.zeros(1, 3, 1))
    assert log_variance is not None
    torch.testing.assert_close(log_variance, torch.full((1, 3, 2), 0.5), atol=1e-3, rtol=0)
    loss, objective = net.losses(torch.zeros(1, 3, 1), torch.zeros(1, 3, 2))
    torch.testing.assert_close(objective - loss.sum(), torch.tensor(0.01 * (0.5 + 10.0)))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert net.max_log_variance.grad is not None
    assert net.max_log_variance.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [1, 200])
def test_the_likelihood_outweighs_the_penalty_for_any_observation_size(size: int, g: torch.Generator) -> None:
    net = Regression("gaussian", 2, 1, [4], (size,), g)
    with torch.no_grad():
        net.mlp.weights[-1].zero_()
        net.mlp.biases[-1][..., size:] = -20.0  # confident and right: the lower limit is in the way
        net.min_log_variance.fill_(-5.0)
    _, objective = net.losses(torch.zeros(2, 3, 1), torch.zeros(2, 3, size))
    objective.backward()  # type: ignore[no-untyped-call]
    assert net.min_log_variance.grad is not None
    assert bool((net.min_log_variance.grad > 0).all())


def test_gaussian_predictions_have_the_predicted_spread(g: torch.Generator) -> None:
    net = Regression("gaussian", 1, 1, [4], (1,), g)
    inputs = torch.zeros(1, 20_000, 1)
    mean, log_variance = net.moments(inputs)
    assert log_variance is not None
    drawn = net.sample(inputs, g)
    torch.testing.assert_close(drawn.mean(), mean.mean(), atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std(), (0.5 * log_variance).exp().mean(), rtol=0.03, atol=0)


@pytest.mark.parametrize("predict_difference", [True, False])
def test_transition_targets_and_predictions_agree(predict_difference: bool, g: torch.Generator) -> None:
    flag = f"model.transition.predict_difference={predict_difference}"
    transition = built(make_config(*LEARNED, "model/transition=deterministic", flag)).transition
    data = random_transitions(5, SPACE)
    inputs, target = transition.examples(data)
    torch.testing.assert_close(inputs, torch.cat((data.obs, data.action), 1))
    torch.testing.assert_close(target, data.next_obs - data.obs if predict_difference else data.next_obs)
    member = torch.tensor([1])
    predicted = transition.predict(data.obs[None], data.action[None], member, g)
    mean, _ = transition.network.moments(inputs[None], member)
    torch.testing.assert_close(predicted, mean + data.obs if predict_difference else mean)


@pytest.mark.parametrize("transition", ["gaussian", "deterministic"])
def test_a_policy_can_be_trained_through_steps_of_the_model(transition: str, g: torch.Generator) -> None:
    model = built(make_config(*TINY, f"model/transition={transition}", "model/reward=deterministic"))
    weight = torch.randn(SPACE.obs_size, 2, generator=g, requires_grad=True)
    obs, total = torch.randn(20, SPACE.obs_size, generator=g), torch.zeros(20)
    by_step = []
    for _ in range(3):
        step = model.step(obs, torch.tanh(obs @ weight), g)
        obs, total = step.next_obs, total + step.reward
        by_step.append(torch.autograd.grad(obs.sum(), weight, retain_graph=True)[0])
    (gradient,) = torch.autograd.grad(total.sum(), weight)
    for each in (gradient, *by_step):
        assert bool(each.isfinite().all())
        assert float(each.abs().min()) > 0
    assert not torch.equal(by_step[0], by_step[1])


def test_a_fit_moves_the_limits_of_the_log_variance() -> None:
    config = make_config(*TINY, "model/transition=gaussian")
    model = built(config)
    network = model.transition.network
    assert isinstance(network, Regression)
    before = network.max_log_variance.detach().clone(), network.min_log_variance.detach().clone()
    fitter(config.model.training).fit(model, random_transitions(100, SPACE), 1)
    assert bool((network.max_log_variance != before[0]).all())
    assert bool((network.min_log_variance != before[1]).all())


def test_every_learned_function_is_trained() -> None:
    config = make_config(*LEARNED)
    model = built(config)
    before = parameters(model)
    metrics = fitter(config.model.training).fit(model, random_transitions(100, SPACE), 1)
    after = parameters(model)
    assert all(changed(before[name], after[name]) for name in ("transition", "reward", "is_done"))
    assert {"model/transition_loss", "model/reward_loss", "model/is_done_loss"} <= set(metrics)


@pytest.mark.parametrize("part", ["transition", "reward", "is_done"])
def test_a_learning_rate_of_0_leaves_a_function_unchanged(part: str) -> None:
    config = make_config(*LEARNED, f"model.{part}.optimizer.learn_rate=0")
    model = built(config)
    before = parameters(model)
    metrics = fitter(config.model.training).fit(model, random_transitions(100, SPACE), 2)
    after = parameters(model)
    assert {name for name in before if changed(before[name], after[name])} == set(before) - {part}
    assert f"model/{part}_loss" not in metrics


def test_known_functions_are_not_trained() -> None:
    config = make_config(*TINY)
    model = built(config, spaces((3,)))
    metrics = fitter(config.model.training).fit(model, random_transitions(50, spaces((3,))), 1)
    assert "model/transition_loss" in metrics
    assert "model/reward_loss" not in metrics
    assert "model/is_done_loss" not in metrics


def test_functions_are_trained_in_the_order_of_the_page() -> None:
    assert list(built(make_config(*LEARNED)).learned) == ["transition", "reward", "is_done"]


def test_logged_transition_loss_is_the_loss_of_the_page() -> None:
    # The learning rate is too small to change any weight, and one batch holds all data.
    config = make_config(
        *LEARNED,
        "model/transition=deterministic",
        "model.transition.optimizer.learn_rate=1e-30",
        "model.training.num_mini_batches=all",
        "model.training.mini_batch_size=1000",
        "model.training.holdout_ratio=0",
        "model.transition.num_elites=null",
    )
    model = built(config)
    data = random_transitions(40, SPACE)
    loss = fitter(config.model.training).fit(model, data, 1)["model/transition_loss"]
    inputs, target = model.transition.examples(data)
    output, _ = model.transition.network.moments(inputs.expand(3, -1, -1))
    squared_MBD = (output.detach() - target).square()
    channel_losses = [squared_MBD[..., :3].sum(2), squared_MBD[..., 3:].sum(2)]
    by_hand = sum(c.mean() / 2 / size for c, size in zip(channel_losses, (3, 1), strict=True)) / 2
    torch.testing.assert_close(torch.as_tensor(loss), torch.as_tensor(by_hand))


def test_training_data_never_moves_to_the_holdout_set() -> None:
    options = make_config("model.training.holdout_ratio=0.3", "model.training.holdout_max=20").model.training
    fit = fitter(options)
    earlier: set[int] = set()
    for num_rows in (10, 50, 100, 1000):
        training, held_out = fit.split(num_rows)
        assert sorted(torch.cat((training, held_out)).tolist()) == list(range(num_rows))
        assert earlier <= set(training.tolist())
        earlier = set(training.tolist())
    assert len(held_out) == 20


def test_a_capped_holdout_set_is_spread_over_all_experience() -> None:
    options = make_config("model.training.holdout_ratio=0.2", "model.training.holdout_max=100").model.training
    _, held_out = fitter(options).split(1000)
    assert len(held_out) == 100
    assert 30 < int((held_out >= 500).sum()) < 70


def test_held_out_rows_never_enter_training() -> None:
    config = make_config(*LEARNED, "model.training.num_mini_batches=all")
    model = built(config)
    data = random_transitions(100, SPACE)
    fit = fitter(config.model.training)
    training, held_out = fit.split(100)
    poisoned = random_transitions(100, SPACE)
    for name in ("obs", "action", "reward", "next_obs"):
        getattr(poisoned, name)[held_out] = float("nan")
    fit.fit(model, poisoned, 1)
    assert all(torch.isfinite(p).all() for p in model.transition.network.parameters())
    assert 0 < len(held_out) < len(training)
    assert len(data) == 100


def test_elites_have_the_smallest_holdout_errors() -> None:
    config = make_config(*LEARNED, "model.transition.num_networks=4", "model.transition.num_elites=2")
    model = built(config)
    with torch.no_grad():
        model.transition.network.mlp.biases[-1][[0, 2]] += 100.0
    metrics = fitter(config.model.training).fit(model, random_transitions(100, SPACE), 1)
    assert set(model.transition.elites.tolist()) == {1, 3}
    errors = [float(metrics[f"model/holdout_error_member_{m}"]) for m in range(4)]
    assert sorted(range(4), key=errors.__getitem__)[:2] == model.transition.elites.tolist()


def test_without_holdout_all_members_predict() -> None:
    off = ("model.training.holdout_ratio=0", "model.transition.num_elites=null")
    config = make_config(*LEARNED, *off)
    model = built(config)
    metrics = fitter(config.model.training).fit(model, random_transitions(100, SPACE), 1)
    assert model.transition.elites.tolist() == [0, 1, 2]
    assert "model/holdout_error" not in metrics


def fitted_with_errors(
    config: Config, scripted: Sequence[tuple[float, ...]]
) -> tuple[EnvironmentModel, Metrics, list[list[Tensor]]]:
    """Fit a model whose members have these hold-out errors after each epoch.

    Also returns the metrics of the fit, and the weights after each epoch.
    """
    model = built(config)
    network = model.transition.network
    seen: list[list[Tensor]] = []

    def errors(inputs: Tensor, targets: Tensor) -> Tensor:
        seen.append([parameter.detach().clone() for parameter in network.parameters()])
        return torch.tensor(scripted[min(len(seen), len(scripted)) - 1], dtype=torch.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "errors", errors)
        metrics = fitter(config.model.training).fit(model, random_transitions(100, SPACE), 20)
    return model, metrics, seen


def test_early_stopping_restores_the_best_weights_of_each_member() -> None:
    # Errors of three members after each epoch; an improvement by less than 10 % does not count.
    scripted = [(9, 9, 9), (5, 9, 8.5), (6, 4, 8.4), (4.6, 3.7, 8.2), (7, 7, 8.1), (1, 1, 1)]
    best_epoch = (1, 2, 0)
    options = ("model.training.patience=1", "model.training.improvement=0.1")
    config = make_config(*LEARNED, *options, "model.training.keep_small_gains=false")
    model, metrics, seen = fitted_with_errors(config, scripted)
    assert metrics["model/transition_epochs"] == 5
    for member, epoch in enumerate(best_epoch):
        for parameter, then in zip(model.transition.network.parameters(), seen[epoch], strict=True):
            assert torch.equal(parameter[member], then[member])
    assert model.transition.optimizer.step_counts[0] == 5 * config.model.training.num_mini_batches


def test_small_gains_are_kept_but_do_not_prolong_a_fit() -> None:
    scripted = [(9, 9, 9), (8.5, 9.5, 3), (8.4, 8.9, 2.9), (8.3, 9, 2.8), (9, 9, 2.7), (0, 0, 0)]
    best_epoch = (3, 2, 4)
    options = ("model.training.patience=2", "model.training.improvement=0.1")
    config = make_config(*LEARNED, *options, "model.training.keep_small_gains=true")
    model, metrics, seen = fitted_with_errors(config, scripted)
    assert metrics["model/transition_epochs"] == 5, "the last gain of 10 % is in the second epoch"
    for member, epoch in enumerate(best_epoch):
        for parameter, then in zip(model.transition.network.parameters(), seen[epoch], strict=True):
            assert torch.equal(parameter[member], then[member])


@pytest.mark.parametrize(("min_epochs", "epochs"), [(1, 3), (3, 3), (7, 7), (50, 20)])
def test_early_stopping_waits_for_the_smallest_number_of_epochs(min_epochs: int, epochs: int) -> None:
    rate = "model.transition.optimizer.learn_rate=1e-30"  # nothing improves
    patience = ("model.training.patience=1", f"model.training.min_epochs={min_epochs}")
    config = make_config(*LEARNED, rate, *patience)
    metrics = fitter(config.model.training).fit(built(config), random_transitions(100, SPACE), 20)
    assert metrics["model/transition_epochs"] == epochs


def test_every_learned_function_stops_independently() -> None:
    steps = ("model.training.num_mini_batches=all", "model.training.mini_batch_size=16")
    rate = "model.transition.optimizer.learn_rate=0.01"
    config = make_config(*LEARNED, *steps, rate, "model.training.patience=2")
    model = built(config)
    data = random_transitions(100, SPACE)
    data.next_obs.copy_(data.obs + data.action[:, :1])  # the reward is noise
    metrics = fitter(config.model.training).fit(model, data, 1000)
    assert 3 < metrics["model/reward_epochs"] < metrics["model/transition_epochs"] < 1000


def test_early_stopping_needs_a_holdout_set() -> None:
    with pytest.raises(ConfigError, match=r"model.training.patience=3: .*needs holdout_ratio"):
        make_config("model.training.patience=3", "model.training.holdout_ratio=0")


def test_each_layer_has_its_own_weight_decay_and_biases_have_none(g: torch.Generator) -> None:
    mlp = BatchedMLP(2, (4, 8, 3), functional.silu, uniform, g)
    gradients = torch.autograd.grad(mlp.decay([0.5, 0.0]), list(mlp.parameters()), allow_unused=True)
    by_name = dict(zip((name for name, _ in mlp.named_parameters()), gradients, strict=True))
    torch.testing.assert_close(by_name["weights.0"], 0.5 * mlp.weights[0])
    assert by_name["weights.1"] is not None
    assert not by_name["weights.1"].any()
    assert by_name["biases.0"] is None


def test_weight_decay_keeps_weights_smaller() -> None:
    sizes = []
    for decays in ("null", "[10,0]"):
        config = make_config(*LEARNED, f"model.transition.layer_decays={decays}")
        model = built(config)
        fitter(config.model.training).fit(model, random_transitions(100, SPACE), 20)
        sizes.append(
            [float(weight.detach().square().sum()) for weight in model.transition.network.mlp.weights]
        )
    assert sizes[1][0] < 0.9 * sizes[0][0]


def test_weight_decay_needs_one_factor_per_layer() -> None:
    with pytest.raises(ConfigError, match=r"layer_decays=\[0.1\]: needs a value for each of 4 layers"):
        make_config("model.transition.layer_decays=[0.1]")


@pytest.mark.parametrize(("num_rows", "count", "size"), [(100, 3, 16), (20, 5, 16), (5, 4, 16), (1, 2, 16)])
def test_a_number_of_mini_batches(num_rows: int, count: int, size: int) -> None:
    options = make_config(
        f"model.training.num_mini_batches={count}", f"model.training.mini_batch_size={size}"
    ).model.training
    batches = list(fitter(options).mini_batches(num_rows, 3))
    assert [tuple(batch.shape) for batch in batches] == [(3, min(size, num_rows))] * count
    assert all(len(set(row.tolist())) == len(row) for batch in batches for row in batch)


def test_all_mini_batches_are_one_pass_in_a_different_order_for_each_member() -> None:
    options = make_config(
        "model.training.num_mini_batches=all", "model.training.mini_batch_size=16"
    ).model.training
    batches = list(fitter(options).mini_batches(50, 3))
    assert [batch.shape[1] for batch in batches] == [16, 16, 16, 2]
    rows = torch.cat(batches, dim=1)
    assert all(sorted(row.tolist()) == list(range(50)) for row in rows)
    assert not torch.equal(rows[0], rows[1])


def test_a_fit_continues_from_the_last_one() -> None:
    config = make_config(*LEARNED)
    model = built(config)
    fit = fitter(config.model.training)
    data = random_transitions(100, SPACE)
    fit.fit(model, data, 1)
    steps = [count.item() for count in model.transition.optimizer.step_counts]
    before = parameters(model)["transition"]
    fit.fit(model, data, 1)
    again = [count.item() for count in model.transition.optimizer.step_counts]
    assert steps[0] > 0
    assert again == [2 * step for step in steps], "the optimizer is not reset"
    difference = max(
        float((b - a).abs().max()) for b, a in zip(before, parameters(model)["transition"], strict=True)
    )
    assert 0 < difference < 0.1, "nor are the weights"


def test_learned_reward_and_is_done_fit_their_data(g: torch.Generator) -> None:
    space = spaces((1,))
    config = make_config(
        *LEARNED,
        "model/reward=deterministic",
        "model.training.num_mini_batches=all",
        "model.reward.optimizer.learn_rate=0.01",
    )
    model = built(config, space)
    obs, action = torch.randn(600, 1, generator=g), torch.rand(600, 1, generator=g) * 2 - 1
    next_obs = obs + action
    data = Transitions(
        obs, action, 3 * next_obs[:, 0] + action[:, 0], next_obs, (next_obs[:, 0] > 1.5).float()
    )
    fitter(config.model.training).fit(model, data, 80)
    assert isinstance(model.reward, LearnedReward)
    assert isinstance(model.is_done, LearnedIsDone)
    reward = model.reward.predict(obs, action, next_obs, g)
    assert (reward - data.reward).square().mean() < 0.05 * data.reward.var()
    done = model.is_done.predict(obs, action, next_obs, g)
    assert (done == data.terminated).float().mean() > 0.95


def test_state_survives_a_restart(g: torch.Generator) -> None:
    config = make_config(*LEARNED)
    model, restored = built(config), built(make_config(*LEARNED, "seed=1"))
    data = random_transitions(100, SPACE)
    fitter(config.model.training).fit(model, data, 1)
    restored.load_state_dict(model.state_dict())
    for each in (model, restored):
        fitter(config.model.training, seed=5).fit(each, data, 1)
    first = model.step(data.obs, data.action, torch.Generator().manual_seed(3))
    second = restored.step(data.obs, data.action, torch.Generator().manual_seed(3))
    assert torch.equal(first.next_obs, second.next_obs)
    assert torch.equal(first.reward, second.reward)


@pytest.mark.parametrize(
    ("inputs", "columns"),
    [
        ("obs_action_next_obs", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("obs_action", [0, 1, 2, 3, 4]),
        ("action_next_obs", [3, 4, 5, 6, 7]),
        ("next_obs", [5, 6, 7]),
    ],
)
@pytest.mark.parametrize("part", ["reward", "is_done"])
def test_reward_and_is_done_use_only_the_chosen_inputs(part: str, inputs: str, columns: list[int]) -> None:
    choices = ("model/reward=deterministic", "model/is_done=learned", f"model.{part}.inputs={inputs}")
    space = spaces((3,), action_size=2)
    model = build_model(make_config(*TINY, *choices), space, torch.device("cpu"))
    function = getattr(model, part)
    obs, action, next_obs = torch.tensor([[0.0, 1, 2]]), torch.tensor([[3.0, 4]]), torch.tensor([[5.0, 6, 7]])
    transitions = Transitions(obs, action, torch.zeros(1), next_obs, torch.zeros(1))
    seen, _ = function.examples(transitions)
    assert seen.tolist() == [columns]
    stream = torch.Generator().manual_seed(0)
    assert function.predict(obs, action, next_obs, stream).shape == (1,)


def test_is_done_is_rounded_or_sampled(g: torch.Generator) -> None:
    space = spaces((3,))
    for deterministic, expected in ((True, 1.0), (False, 0.7)):
        choices = (
            "model/is_done=learned",
            "model.is_done.max_false_ends=null",
            f"model.is_done.use_deterministic_predict={deterministic}",
        )
        is_done = build_model(make_config(*TINY, *choices), space, torch.device("cpu")).is_done
        assert isinstance(is_done, LearnedIsDone)
        with torch.no_grad():
            is_done.network.mlp.weights[-1].zero_()
            is_done.network.mlp.biases[-1].fill_(math.log(0.7 / 0.3))
            done = is_done.predict(torch.zeros(20_000, 3), torch.zeros(20_000, 1), torch.zeros(20_000, 3), g)
        assert set(done.tolist()) <= {0.0, 1.0}
        assert done.mean().item() == pytest.approx(expected, abs=0.02)


class Moments:
    """Transition functions with given predictions, shape (M, B, O)."""

    def __init__(self, mean: Tensor, deviation: Tensor | None, gaussian: bool) -> None:
        self._moments = mean, deviation
        self.network = SimpleNamespace(gaussian=gaussian)

    def moments(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._moments


MEANS = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[6.0, 8.0], [1.0, 1.0]]])
THREE = torch.tensor([[[0.0]], [[0.0]], [[3.0]]])
DEVIATIONS = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[1.0, 1.0], [0.6, 0.8]]])


@pytest.mark.parametrize(
    ("mean", "deviation", "gaussian", "expected"),
    [
        (MEANS, None, False, [5, 0]),  # both are 5 from the middle, (3, 4)
        (THREE, None, False, [2]),  # the mean is 1
        (MEANS, DEVIATIONS, True, [5, 1]),
        (MEANS, DEVIATIONS, False, [5, 0]),  # constant noise says nothing about a transition
    ],
)
def test_uncertainty_by_hand(
    mean: Tensor, deviation: Tensor | None, gaussian: bool, expected: list[float]
) -> None:
    model = EnvironmentModel(Moments(mean, deviation, gaussian), None, None)  # type: ignore[arg-type]
    rows = torch.zeros(mean.shape[1], mean.shape[2])
    assert model.spread(rows, rows).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("transition", ["deterministic", "constant_noise"])
def test_uncertainty_is_larger_where_the_model_was_not_fitted(transition: str) -> None:
    model = built(make_config(*TINY, f"model/transition={transition}", "model.transition.num_networks=5"))
    real = random_transitions(500, SPACE)
    real.next_obs = real.obs + functional.pad(0.3 * real.action, (0, 2))
    fitter(make_config(*TINY, "model.training.num_mini_batches=all").model.training).fit(model, real, 30)
    near = model.spread(real.obs, real.action).mean()
    assert model.spread(30 * real.obs, real.action).mean() > 3 * near > 0
