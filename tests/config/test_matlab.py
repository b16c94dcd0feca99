"""Every option of MATLAB has a place here or a reason, and its name, typed by mistake, leads to it."""

import functools
from collections.abc import Sequence
from dataclasses import asdict

import pytest

from mbpo_cli.config.compose import composed, make_config
from mbpo_cli.config.matlab import OBJECTS, REMARKS
from mbpo_cli.config.suggest import suggest
from mbpo_cli.config.typed import Config, options_in, typed
from mbpo_cli.failures import ConfigError
from scripts.matlab_table import PAGE, keys_of, remark_of, with_table
from scripts.matlab_table import config_with as config_of_table
from scripts.option_table import COMMON, VARIANTS

# What is typed with agent=sac, env=pendulum, and what the answer must contain.
MISTAKES = [
    # rlMBPOAgentOptions
    ("RealSampleRatio", "did you mean mbpo.real_ratio?"),
    ("mbpo.RealRatio", "did you mean mbpo.real_ratio?"),
    ("mbpo.realratio", "did you mean mbpo.real_ratio?"),
    ("rlMBPOAgentOptions.NumEpochForTrainingModel", "did you mean mbpo.num_epoch_for_training_model?"),
    ("MBPOAgentOpts.NumMiniBatches", "did you mean model.training.num_mini_batches?"),
    (
        "rlMBPOAgentOptions.MiniBatchSize",
        "(model.training.mini_batch_size is that of the fit, the other is M)",
    ),
    ("mbpo.MiniBatchSize", "did you mean mbpo.mini_batch_size?"),
    ("model.training.MiniBatchSize", "did you mean model.training.mini_batch_size?"),
    ("mbpo.ModelExperienceBufferLength", "did you mean mbpo.model_experience_buffer_length?"),
    ("mbpo.TransitionOptimizerOptions", "did you mean model.transition.optimizer?"),
    ("TransitionOptimizerOptions.LearnRate", "did you mean model.transition.optimizer.learn_rate?"),
    (
        "mbpo.RewardOptimizerOptions.LearnRate",
        "did you mean model.reward.optimizer.learn_rate, with model/reward=deterministic?",
    ),
    (
        "mbpo.IsDoneOptimizerOptions.GradientThreshold",
        "did you mean model.is_done.optimizer.gradient_threshold, with model/is_done=learned?",
    ),
    ("mbpo.InfoToSave", "MATLAB's InfoToSave is no option here: checkpoints hold all"),
    ("ModelRolloutOptions", "did you mean mbpo.model_rollout_options?"),
    ("mbpo.ModelRolloutOptions.NumRollout", "did you mean mbpo.model_rollout_options.num_rollout?"),
    ("mbpo.ModelRolloutOptions.Horizon", "did you mean mbpo.model_rollout_options.horizon?"),
    ("HorizonUpdateSchedule", "did you mean mbpo.model_rollout_options.horizon_update_schedule?"),
    ("ModelRolloutOptions.HorizonMax", "did you mean mbpo.model_rollout_options.horizon_max?"),
    ("mbpo.NoiseOptions", "did you mean mbpo.model_rollout_options.noise_options?"),
    (
        "mbpo.ModelRolloutOptions.NoiseOptions.StandardDeviation",
        "noise_options.standard_deviation, with mbpo/model_rollout_options/noise_options=gaussian?",
    ),
    (
        "mbpo.ModelRolloutOptions.NoiseOptions.Epsilon",
        "noise_options.epsilon, with mbpo/model_rollout_options/noise_options=epsilon_greedy?",
    ),
    # rlNeuralNetworkEnvironment and its functions
    ("model.TransitionFcn", "did you mean model.transition? (the group model/transition chooses it)"),
    ("model.RewardFcn", "a known one is env.reward_function"),
    ("rlNeuralNetworkEnvironment.IsDoneFcn", "did you mean model.is_done?"),
    ("rlNeuralNetworkEnvironment.ObservationInfo", "spaces are read from the environment"),
    ("model.transition.PredictDiff", "did you mean model.transition.predict_difference?"),
    ("model.rlContinuousGaussianTransitionFunction", "did you mean model.transition.distribution?"),
    (
        "rlContinuousDeterministicTransitionFunction.ObservationInputNames",
        "no option here: a transition function has observation and action",
    ),
    (
        "rlContinuousDeterministicRewardFunction.ObservationInputNames",
        "did you mean model.reward.inputs, with model/reward=deterministic?",
    ),
    (
        "rlIsDoneFunction.UseDeterministicPredict",
        "did you mean model.is_done.use_deterministic_predict, with model/is_done=learned?",
    ),
    ("model.UseDevice", "did you mean device?"),
    # The base agents
    ("rlSACAgentOptions", "the options of MATLAB's rlSACAgentOptions lie in agent"),
    ("agent.MiniBatchSize", "did you mean agent.mini_batch_size?"),
    ("rlTD3AgentOptions.MiniBatchSize", "did you mean agent.mini_batch_size?"),
    ("agent.NumStepsToLookAhead", "did you mean agent.num_steps_to_look_ahead?"),
    ("agent.LearningFrequency", "did you mean agent.learning_frequency? (-1 is episode)"),
    ("agent.MaxMiniBatchPerEpoch", "did you mean agent.num_gradient_steps_per_update? (give the product"),
    ("agent.NumGradientStepsPerUpdate", "did you mean agent.num_gradient_steps_per_update?"),
    (
        "agent.TargetUpdateMethod",
        "did you mean agent.target_smooth_factor and agent.target_update_frequency?",
    ),
    ("agent.SampleTime", "no option here: time is counted in steps"),
    ("agent.SequenceLength", "no option here: networks are not recurrent"),
    ("agent.EntropyWeightOptions", "did you mean agent.entropy_weight_options?"),
    ("agent.EntropyWeightOptions.LearnRate", "did you mean agent.entropy_weight_options.learn_rate?"),
    ("EntropyWeightOptions.TargetEntropy", "did you mean agent.entropy_weight_options.target_entropy?"),
    ("rlDQNAgentOptions.UseDoubleDQN", "did you mean agent.use_double_dqn, with agent=dqn?"),
    (
        "agent.EpsilonGreedyExploration.EpsilonDecay",
        "did you mean agent.exploration.epsilon_decay, with agent=dqn?",
    ),
    ("agent.ExplorationModel", "did you mean agent.exploration, with agent=td3?"),
    (
        "TargetPolicySmoothModel.LowerLimit",
        "did you mean agent.target_policy_smooth_options.limit, with agent=td3?",
    ),
    ("agent.NoiseOptions", "did you mean agent.exploration, with agent=ddpg?"),
    (
        "agent.NoiseOptions.MeanAttractionConstant",
        "did you mean agent.exploration.mean_attraction_constant, with agent=ddpg?",
    ),
    # rlOptimizerOptions
    (
        "agent.ActorOptimizerOptions.GradientThreshold",
        "did you mean agent.actor_optimizer.gradient_threshold?",
    ),
    ("agent.CriticOptimizerOptions.Algorithm", "did you mean agent.critic_optimizer.algorithm?"),
    (
        "agent.CriticOptimizerOptions.OptimizerParameters.Momentum",
        "did you mean agent.critic_optimizer.gradient_decay_factor?",
    ),
    ("agent.CriticOptimizerOptions.Epsilon", "did you mean agent.critic_optimizer.epsilon?"),
    ("agent.actor_optimizer.LearnRate", "did you mean agent.actor_optimizer.learn_rate?"),
    # rlTrainingOptions, rlEvaluator
    ("trainer.MaxEpisodes", "did you mean trainer.max_episodes?"),
    ("trainOpts.MaxStepsPerEpisode", "write 'env.kwargs={max_episode_steps: 500}'"),
    ("rlTrainingOptions.StopTrainingCriteria", "did you mean trainer.stop_training_criteria?"),
    ("trainer.SaveAgentValue", "did you mean checkpoint.save_agent_value?"),
    ("trainer.UseParallel", "MATLAB's UseParallel is no option here: a run is one process"),
    ("rlTrainingOptions.Plots", "no option here: curves are shown by TensorBoard"),
    ("rlEvaluator.EvaluationFrequency", "did you mean trainer.evaluate_every_steps?"),
    ("rlEvaluator.RandomSeeds", "no option here: the episodes of evaluations follow from seed"),
]


@functools.cache
def config_with(choices: Sequence[str] = ()) -> Config:
    return make_config(*choices)


@pytest.mark.parametrize(("key", "part"), MISTAKES)
def test_a_name_of_matlab_leads_to_the_option_or_to_the_reason(key: str, part: str) -> None:
    answer = suggest(key, config_with(), config_with)
    assert answer is not None
    assert part in answer
    assert not set("\n`") & set(answer)


def test_there_are_sixty_mistakes() -> None:
    assert len({key for key, _ in MISTAKES}) >= 60


def test_an_option_that_the_chosen_agent_has_needs_no_choice() -> None:
    answer = suggest("agent.NoiseOptions.StandardDeviation", config_with(("agent=td3",)), config_with)
    assert str(answer).startswith("did you mean agent.exploration.standard_deviation? (")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("RealSampleRatio=0.2", "did you mean mbpo.real_ratio?"),
        (
            "agent.ActorOptimizerOptions.GradientThreshold=1",
            "did you mean agent.actor_optimizer.gradient_threshold? (Inf is null)",
        ),
        ("agent.UseDoubleDQN=true", "did you mean agent.use_double_dqn, with agent=dqn?"),
        (
            "agent.CriticOptimizerOptions(2).LearnRate=0.001",
            "did you mean agent.critic_optimizer.learn_rate? (one for all, without an index)",
        ),
        (
            "agent.SequenceLength=2",
            "MATLAB's SequenceLength is no option here: networks are not recurrent",
        ),
    ],
)
def test_the_answer_is_one_line_of_the_command(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(override)
    assert str(caught.value) == f"{override}: no such option; {line}"


def test_a_name_of_matlab_in_a_file_leads_to_the_option() -> None:
    values = asdict(config_with())
    values["mbpo"]["RealRatio"] = 0.2
    with pytest.raises(ConfigError) as caught:
        typed(values)
    assert str(caught.value) == "mbpo.RealRatio=0.2: no such option; did you mean mbpo.real_ratio?"


def test_every_option_of_matlab_is_found_in_its_place_or_has_a_reason() -> None:
    for title, entry in OBJECTS.items():
        for name, keys in keys_of(entry).items():
            assert keys or remark_of(title, name), f"{title}.{name}"


def test_every_declared_name_is_an_option_or_an_object_of_matlab() -> None:
    known = {*OBJECTS, *(name for entry in OBJECTS.values() for name in entry.options)}
    for agent, choices in VARIANTS.items():
        for key, _, meaning, _ in options_in(
            config_of_table(*COMMON, f"agent={agent}", *choices), groups=True
        ):
            assert set(meaning.matlab) <= known, key


def test_every_declared_option_is_in_the_table_of_an_object() -> None:
    listed = {key for entry in OBJECTS.values() for keys in keys_of(entry).values() for key in keys}
    for agent, choices in VARIANTS.items():
        for key, _, meaning, _ in options_in(
            config_of_table(*COMMON, f"agent={agent}", *choices), groups=True
        ):
            assert key in listed or set(meaning.matlab) <= set(OBJECTS), key


def test_every_remark_is_about_an_option() -> None:
    for key in REMARKS:
        title, _, name = key.rpartition(".")
        entries = [OBJECTS[title]] if title else OBJECTS.values()
        assert any(name in entry.options for entry in entries), key


def test_the_tables_match_the_declarations() -> None:
    text = PAGE.read_text()
    assert text == with_table(text), "run python -m scripts.matlab_table"
