"""Many runs in one table and one page: who won, by how much, and how sure that is."""
