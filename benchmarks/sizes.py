"""The sizes of all measurements."""

BATCH = 256
POLICY_HIDDEN = (256, 256)
ENSEMBLE, ELITES = 7, 5
MODEL_HIDDEN = (200, 200, 200, 200)
NUM_STARTS = 100_000
NUM_TRANSITIONS, NUM_TRAINING = 50_000, 40_000  # the rest is the hold-out set
SPACES = (11, 3)  # observation and action of Hopper
UPDATE_SPACES = {"sac": SPACES, "td3": SPACES, "ddpg": SPACES, "dqn": (4, 2)}  # DQN: CartPole's
UPDATES_PER_CALL = 20  # gradient steps per environment step, as in MBPO
DEFAULT_RUN = 600  # the default run is measured after this number of steps
# Of double-horizon MBPO: layers of actor, critics, model and reward; members; critics.
UNROLLED_HIDDEN, UNROLLED_ENSEMBLE, UNROLLED_CRITICS = (256, 256, 256), 8, 5
