//! Isolated.
