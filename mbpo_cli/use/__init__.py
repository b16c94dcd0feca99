"""What runs have trained, put to use: policies that are played or exported, and models to train in."""
