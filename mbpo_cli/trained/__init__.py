"""One finished run put to use: load, play, film, export, or train on its model."""
