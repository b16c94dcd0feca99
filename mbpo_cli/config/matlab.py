"""The options of MATLAB's Reinforcement Learning Toolbox: their defaults, and why some do not exist here.

Which option here a name of MATLAB stands for is declared beside the option; this module does not know it.
Source: MathWorks' documentation of the objects, names of older releases included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MatlabObject:
    """An object of MATLAB.

    Attributes:
        places: Options, and groups of options, among which those of the object are found here.
        options: MATLAB's default of each option; empty if the documentation does not give it.
        choices: Choices of groups with which the options exist here.
    """

    places: tuple[str, ...]
    options: Mapping[str, str]
    choices: tuple[str, ...] = ()

    def has(self, key: str) -> bool:
        """Return True if an option here lies where those of this object are found."""
        return any(f"{key}.".startswith(f"{place}.") for place in self.places)


OPTIMIZER = "rlOptimizerOptions object"
ROLLOUT_NOISE = "mbpo.model_rollout_options.noise_options"
OPTIMIZER_PLACES = (
    "agent.actor_optimizer",
    "agent.critic_optimizer",
    "agent.entropy_weight_options",
    "model.transition.optimizer",
    "model.reward.optimizer",
    "model.is_done.optimizer",
)
# What the four base agents share.
AGENT = {
    "DiscountFactor": "0.99",
    "ExperienceBufferLength": "10000",
    "MiniBatchSize": "64",
    "NumStepsToLookAhead": "1",
    "NumWarmStartSteps": "MiniBatchSize",
    "LearningFrequency": "",
    "NumEpoch": "1",
    "MaxMiniBatchPerEpoch": "100",
    "TargetSmoothFactor": "1e-3",
    "TargetUpdateFrequency": "1",
    "TargetUpdateMethod": "",
    "CriticOptimizerOptions": OPTIMIZER,
    "ResetExperienceBufferBeforeTraining": "",
    "SaveExperienceBufferWithAgent": "",
    "InfoToSave": "",
    "BatchDataRegularizerOptions": "[]",
    "SequenceLength": "1",
    "SampleTime": "1",
}
FUNCTION = {"ObservationInfo": "", "ActionInfo": "", "UseDevice": '"cpu"'}
INPUTS = {"ObservationInputNames": "", "ActionInputNames": ""}
OUTCOME = {**INPUTS, "NextObservationInputNames": ""}
NOISE = {"Mean": "0", "StandardDeviation": "", "StandardDeviationDecayRate": "0", "StandardDeviationMin": ""}

OBJECTS = {
    "rlMBPOAgentOptions": MatlabObject(
        ("mbpo", "model"),
        {
            "NumEpochForTrainingModel": "1",
            "NumMiniBatches": "10",
            "MiniBatchSize": "128",
            "TransitionOptimizerOptions": OPTIMIZER,
            "RewardOptimizerOptions": OPTIMIZER,
            "IsDoneOptimizerOptions": OPTIMIZER,
            "ModelExperienceBufferLength": "100000",
            "ModelRolloutOptions": "",
            "RealSampleRatio": "0.2",
            "RealRatio": "0.2",
            "InfoToSave": "",
        },
        ("model/reward=deterministic", "model/is_done=learned"),
    ),
    "ModelRolloutOptions": MatlabObject(
        ("mbpo.model_rollout_options",),
        {
            "NumRollout": "2000",
            "Horizon": "1",
            "HorizonUpdateSchedule": '"none"',
            "HorizonUpdateFrequency": "100",
            "HorizonUpdateStartEpoch": "1",
            "HorizonMax": "20",
            "NoiseOptions": "[]",
        },
    ),
    "rlNeuralNetworkEnvironment": MatlabObject(
        ("model",),
        {
            "TransitionFcn": "",
            "RewardFcn": "",
            "IsDoneFcn": "",
            "ObservationInfo": "",
            "ActionInfo": "",
            "Observation": "",
            "TransitionModelNum": "",
        },
    ),
    "rlContinuousDeterministicTransitionFunction": MatlabObject(
        ("model.transition", "device"),
        {**INPUTS, "NextObservationOutputNames": "", "PredictDiff": "false", **FUNCTION},
        ("model/transition=deterministic",),
    ),
    "rlContinuousGaussianTransitionFunction": MatlabObject(
        ("model.transition", "device"),
        {
            **INPUTS,
            "NextObservationMeanOutputNames": "",
            "NextObservationStandardDeviationOutputNames": "",
            "PredictDiff": "false",
            **FUNCTION,
        },
        ("model/transition=gaussian",),
    ),
    "rlContinuousDeterministicRewardFunction": MatlabObject(
        ("model.reward", "device"), {**OUTCOME, **FUNCTION}, ("model/reward=deterministic",)
    ),
    "rlContinuousGaussianRewardFunction": MatlabObject(
        ("model.reward", "device"),
        {**OUTCOME, "RewardMeanOutputName": "", "RewardStandardDeviationOutputName": "", **FUNCTION},
        ("model/reward=gaussian",),
    ),
    "rlIsDoneFunction": MatlabObject(
        ("model.is_done", "device"),
        {**OUTCOME, "UseDeterministicPredict": "true", **FUNCTION},
        ("model/is_done=learned",),
    ),
    "rlSACAgentOptions": MatlabObject(
        ("agent",),
        {
            **AGENT,
            "ActorOptimizerOptions": OPTIMIZER,
            "EntropyWeightOptions": "EntropyWeightOptions object",
            "NumGradientStepsPerUpdate": "1",
            "PolicyUpdateFrequency": "1",
            "CriticUpdateFrequency": "1",
        },
        ("agent=sac",),
    ),
    "EntropyWeightOptions": MatlabObject(
        ("agent.entropy_weight_options",),
        {
            "EntropyWeight": "1",
            "TargetEntropy": "[]",
            "LearnRate": "3e-4",
            "Algorithm": '"adam"',
            "GradientThreshold": "Inf",
            "OptimizerParameters": "",
        },
        ("agent=sac",),
    ),
    "rlTD3AgentOptions": MatlabObject(
        ("agent",),
        {
            **AGENT,
            "LearningFrequency": "-1",
            "TargetSmoothFactor": "5e-3",
            "TargetUpdateFrequency": "2",
            "ActorOptimizerOptions": OPTIMIZER,
            "ExplorationModel": "GaussianActionNoise object",
            "TargetPolicySmoothModel": "GaussianActionNoise object",
            "PolicyUpdateFrequency": "2",
        },
        ("agent=td3",),
    ),
    "rlDDPGAgentOptions": MatlabObject(
        ("agent",),
        {
            **AGENT,
            "ActorOptimizerOptions": OPTIMIZER,
            "NoiseOptions": "OrnsteinUhlenbeckActionNoise object",
        },
        ("agent=ddpg",),
    ),
    "rlDQNAgentOptions": MatlabObject(
        ("agent",),
        {
            **AGENT,
            "UseDoubleDQN": "true",
            "EpsilonGreedyExploration": "EpsilonGreedyExploration object",
        },
        ("agent=dqn",),
    ),
    "EpsilonGreedyExploration": MatlabObject(
        ("agent.exploration", ROLLOUT_NOISE),
        {"Epsilon": "1", "EpsilonDecay": "0.005", "EpsilonMin": "0.01"},
        ("agent=dqn", "mbpo/model_rollout_options/noise_options=epsilon_greedy"),
    ),
    "GaussianActionNoise": MatlabObject(
        ("agent.exploration", ROLLOUT_NOISE, "agent.target_policy_smooth_options"),
        {**NOISE, "LowerLimit": "-Inf", "UpperLimit": "Inf"},
        ("agent=td3", "mbpo/model_rollout_options/noise_options=gaussian"),
    ),
    "OrnsteinUhlenbeckActionNoise": MatlabObject(
        ("agent.exploration",),
        {
            **NOISE,
            "StandardDeviation": "0.3",
            "StandardDeviationMin": "0",
            "InitialAction": "0",
            "MeanAttractionConstant": "0.15",
        },
        ("agent=ddpg",),
    ),
    "rlOptimizerOptions": MatlabObject(
        OPTIMIZER_PLACES,
        {
            "LearnRate": "0.01",
            "GradientThreshold": "Inf",
            "GradientThresholdMethod": '"l2norm"',
            "L2RegularizationFactor": "1e-4",
            "Algorithm": '"adam"',
            "OptimizerParameters": "",
        },
        ("agent=sac", "model/reward=deterministic", "model/is_done=learned"),
    ),
    "OptimizerParameters": MatlabObject(
        OPTIMIZER_PLACES,
        {
            "Momentum": "0.9",
            "Epsilon": "1e-8",
            "GradientDecayFactor": "0.9",
            "SquaredGradientDecayFactor": "0.999",
        },
        ("agent=sac", "model/reward=deterministic", "model/is_done=learned"),
    ),
    "rlTrainingOptions": MatlabObject(
        ("trainer", "checkpoint", "env"),
        {
            "MaxEpisodes": "500",
            "MaxStepsPerEpisode": "500",
            "StopTrainingCriteria": '"AverageSteps"',
            "StopTrainingValue": "500",
            "ScoreAveragingWindowLength": "5",
            "SaveAgentCriteria": '"none"',
            "SaveAgentValue": '"none"',
            "SaveAgentDirectory": '"savedAgents"',
            "StopOnError": '"on"',
            "SimulationStorageType": '"memory"',
            "SaveSimulationDirectory": '"savedSims"',
            "SaveFileVersion": '"-v7"',
            "UseParallel": "false",
            "ParallelizationOptions": "",
            "Verbose": "false",
            "Plots": '"training-progress"',
        },
    ),
    "rlEvaluator": MatlabObject(
        ("trainer", "env"),
        {
            "EvaluationStatisticType": '"MeanEpisodeReward"',
            "NumEpisodes": "3",
            "MaxStepsPerEpisode": "[]",
            "UseExplorationPolicy": "false",
            "RandomSeeds": "",
            "EvaluationFrequency": "100",
        },
    ),
}

_LAYERS = "networks are built here, so that layers need no names"
_INPUTS = "a transition function has observation and action"
_SIMULINK = "it is about data of Simulink, which is not used here"
_PARALLEL = (
    "a run is one process; a sweep (-m) has several, and `env.num_envs` runs environments side by side"
)
# What to know about an option, or why there is none, by its name or by object and name.
REMARKS = {
    "rlContinuousDeterministicTransitionFunction.ActionInputNames": _INPUTS,
    "rlContinuousDeterministicTransitionFunction.ObservationInputNames": _INPUTS,
    "rlContinuousGaussianTransitionFunction.ActionInputNames": _INPUTS,
    "rlContinuousGaussianTransitionFunction.ObservationInputNames": _INPUTS,
    "rlMBPOAgentOptions.MiniBatchSize": "`model.training.mini_batch_size` is that of the fit, the other is M",
    "ActionInfo": "spaces are read from the environment",
    "BatchDataRegularizerOptions": "agents are trained in an environment, not from data alone",
    "CriticUpdateFrequency": "critics are updated in each gradient step",
    "EpsilonGreedyExploration": "the group `agent/exploration` chooses the noise",
    "EvaluationFrequency": "in steps of the environment here, in episodes there",
    "EvaluationStatisticType": "an evaluation counts by the mean return of its episodes",
    "ExplorationModel": "the group `agent/exploration` chooses the noise",
    "GradientThreshold": "Inf is null",
    "InfoToSave": "checkpoints hold all that exact resume needs; mbpo-export writes the policy alone",
    "IsDoneFcn": "the group `model/is_done` chooses it; a known one is `env.is_done_function`",
    "LearningFrequency": "-1 is episode",
    "LowerLimit": "in units of the scaled action, whose range is [-1, 1]",
    "MaxMiniBatchPerEpoch": "give the product of NumEpoch and MaxMiniBatchPerEpoch",
    "MaxStepsPerEpisode": "write `'env.kwargs={max_episode_steps: 500}'`",
    "MeanAttractionConstant": "per step here, per second there",
    "Mean": "in units of the scaled action, whose range is [-1, 1]",
    "NextObservationMeanOutputNames": _LAYERS,
    "NextObservationOutputNames": _LAYERS,
    "NextObservationStandardDeviationOutputNames": _LAYERS,
    "NoiseOptions": "a group chooses it, such as `agent/exploration` of an agent; [] is empty",
    "NumEpoch": "give the product of NumEpoch and MaxMiniBatchPerEpoch",
    "Observation": "a learned environment begins where real episodes did",
    "ObservationInfo": "spaces are read from the environment",
    "OptimizerParameters": "its fields are options beside the others, such as gradient_decay_factor",
    "ParallelizationOptions": _PARALLEL,
    "Plots": "curves are shown by TensorBoard (`make tensorboard`)",
    "RandomSeeds": "the episodes of evaluations follow from `seed`",
    "RewardFcn": "the group `model/reward` chooses it; a known one is `env.reward_function`",
    "RewardMeanOutputName": _LAYERS,
    "RewardStandardDeviationOutputName": _LAYERS,
    "SampleTime": "time is counted in steps of the environment",
    "SaveAgentDirectory": "checkpoints lie in the run's directory, which `hydra.run.dir` sets",
    "SaveExperienceBufferWithAgent": "checkpoints hold the experience, too",
    "SaveFileVersion": _SIMULINK,
    "SaveSimulationDirectory": _SIMULINK,
    "SequenceLength": "networks are not recurrent",
    "SimulationStorageType": _SIMULINK,
    "StandardDeviation": "of the scaled action; for exploration, see standard_deviation_units",
    "StopOnError": "an error ends the run with a line and an exit code; in a sweep, the other jobs go on",
    "TargetEntropy": "[] is null",
    "TargetUpdateMethod": "smoothing: a factor below 1; periodic: a factor of 1; periodic smoothing: both",
    "TransitionFcn": "the group `model/transition` chooses it",
    "TransitionModelNum": "`member` of mbpo_cli.LearnedVectorEnv chooses a transition function",
    "UpperLimit": "in units of the scaled action, whose range is [-1, 1]",
    "UseDevice": '"gpu" is cuda, for all networks of a run',
    "UseExplorationPolicy": "evaluations are greedy",
    "UseParallel": _PARALLEL,
    "Verbose": "the log is shown, and written to the run's directory (`train.log`)",
}
