//! What the repository promises, shown on real storages and real clusters.
