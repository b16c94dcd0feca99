"""Where metrics go while a run trains, and how long each phase takes."""
