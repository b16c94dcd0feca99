"""Programs for developers: pictures and tables of the documentation."""
