"""A first run: train on Pendulum, evaluate the policy, and act with it."""

# %% Train, as `mbpo-train agent=sac env=pendulum trainer.num_env_steps=600 seed=1` does.
# Given again, the same lines resume the run.
import gymnasium as gym

from mbpo_cli import evaluation_of, load, make_config, train

RUN = "outputs/examples/first_run"
config = make_config("agent=sac", "env=pendulum", "trainer.num_env_steps=600", "seed=1")
score = train(config, RUN)

# %% Evaluate the best checkpoint in 50 episodes.
trained = load(RUN, best=True)
evaluation = evaluation_of(trained, num_episodes=50)
print(f"score {score:.0f}; {trained.title}: {evaluation.return_mean:.0f} ± {evaluation.return_std:.0f}")

# %% Act: observations and actions are the environment's own.
env = gym.make("Pendulum-v1")
obs, info = env.reset(seed=0)
total, ended = 0.0, False
while not ended:
    action, state = trained.policy.predict(obs)
    obs, reward, terminated, truncated, info = env.step(action)
    total, ended = total + float(reward), terminated or truncated
print(f"return of one episode: {total:.0f}")
